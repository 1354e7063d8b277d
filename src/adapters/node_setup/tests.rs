//! Node set-ups, shown, made and undone in a folder that stands for a node.

mod crio;

use std::{collections::BTreeMap, fs};

use super::{
    containerd::{DROP_IN, base_spec},
    *,
};

const SPEC: &str = r#"{"ociVersion":"1.3.0","process":{"cwd":"/","rlimits":[{"type":"RLIMIT_NOFILE","hard":1024,"soft":1024}],"noNewPrivileges":true},
    "linux":{"cgroupsPath":"/default","seccomp":{},"maskedPaths":["/proc/kcore"]},"mounts":[]}"#;

fn node(config: Option<&str>) -> (tempfile::TempDir, SetupOptions) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc/containerd")).unwrap();
    if let Some(config) = config {
        fs::write(root.path().join("etc/containerd/config.toml"), config).unwrap();
    }
    let gate = root.path().join("gate-source");
    fs::write(&gate, b"\x7fELF\xff").unwrap();
    let runtime = root.path().join("runtime-source");
    fs::write(&runtime, b"\x7fELF\xfe").unwrap();
    (root, SetupOptions { gate, runtime: Some(runtime), container_runtime: with_runtimes(&["runc"]) })
}

fn with_runtimes(names: &[&str]) -> ContainerRuntime {
    let runtimes = names.iter().map(|name| (*name).to_owned()).collect();
    ContainerRuntime::Containerd(ContainerdOptions { oci_spec: SPEC.as_bytes().to_vec(), runtimes, image_lane: true })
}

fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.join("etc"), root.join("usr")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn apply(changes: &[Change]) {
    for change in changes {
        change.apply().unwrap();
    }
}

#[test]
fn setting_up_twice_changes_nothing_and_removing_undoes_it() {
    for config in [None, Some("version = 3\n[grpc]\naddress = '/x'\n"), Some("version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n")] {
        let (root, options) = node(config);
        fs::create_dir_all(root.path().join("etc/criu")).unwrap();
        fs::write(root.path().join("etc/criu/runc.conf"), "ghost-limit 5\n").unwrap();
        let before = files(root.path());
        apply(&install(root.path(), &options).unwrap());
        assert_eq!(install(root.path(), &options).unwrap(), []);
        let criu = fs::read_to_string(root.path().join("etc/criu/runc.conf")).unwrap();
        assert!(criu.contains("tcp-close\n") && !criu.contains("1073741824"), "the administrator's own limit stays: {criu}");
        apply(&uninstall(root.path()).unwrap());
        for program in [GATE, RUNTIME] {
            assert!(root.path().join(&program[1..]).exists(), "containerd may still run with a configuration that names {program}");
        }
        apply(&uninstall(root.path()).unwrap());
        assert_eq!(files(root.path()), before);
        assert_eq!(uninstall(root.path()).unwrap(), []);
    }
}

#[test]
fn the_handler_goes_the_nodes_way_to_cgroups() {
    const HANDLER_LINES: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.drover]\nruntime_type = 'io.containerd.runc.v2'\n\
        base_runtime_spec = '/etc/containerd/drover-base.json'\n\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.drover.options]\n\
        BinaryName = '/usr/local/lib/drover/drover-runc'\n";
    const IMPORTING: &str = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n";
    for (setting, drop_in, expected) in [
        ("[x]\n  SystemdCgroup = true # as the kubelet\n", "", true),
        ("[x]\nSystemdCgroup = false\n# SystemdCgroup = true\n", "", false),
        ("", "[x]\nSystemdCgroup=true\n", true),
    ] {
        let (root, options) = node(Some(&format!("{IMPORTING}{setting}")));
        fs::create_dir_all(root.path().join("etc/containerd/conf.d")).unwrap();
        fs::write(root.path().join("etc/containerd/conf.d/90-kubeadm.toml"), drop_in).unwrap();
        apply(&install(root.path(), &options).unwrap());
        assert_eq!(install(root.path(), &options).unwrap(), [], "{setting}");
        let made = fs::read_to_string(root.path().join(&DROP_IN[1..])).unwrap();
        assert!(made.contains(HANDLER_LINES), "{made}");
        assert_eq!(made.ends_with("SystemdCgroup = true\n"), expected, "{setting}{drop_in}: {made}");
        assert_eq!(fs::read(root.path().join(&RUNTIME[1..])).unwrap(), b"\x7fELF\xfe");
    }
}

#[test]
fn a_node_may_do_without_the_runtime() {
    let (root, options) = node(None);
    apply(&install(root.path(), &SetupOptions { runtime: None, ..options.clone() }).unwrap());
    assert!(!root.path().join(&RUNTIME[1..]).exists());
    assert!(!fs::read_to_string(root.path().join(&DROP_IN[1..])).unwrap().contains("runtimes.drover"));
    let twice = SetupOptions { container_runtime: with_runtimes(&["drover"]), ..options };
    assert!(matches!(install(root.path(), &twice), Err(SetupError::Runtime(_))), "its handler is Drover's own");
}

#[test]
fn the_base_spec_limits_nobody() {
    let spec: serde_json::Value = serde_json::from_slice(&base_spec(SPEC.as_bytes()).unwrap()).unwrap();
    assert!(spec.pointer("/process/rlimits").is_none() && spec.pointer("/linux/seccomp").is_none() && spec.pointer("/linux/cgroupsPath").is_none());
    assert_eq!(spec.pointer("/linux/maskedPaths/0").unwrap(), "/proc/kcore");
    assert_eq!(spec.pointer("/hooks/createRuntime/0/path").unwrap(), GATE);
    assert!(base_spec(b"{}").is_err());
}

#[test]
fn somebody_elses_setting_is_left_alone() {
    let (root, options) = node(Some("version = 3\nimports = ['/elsewhere/*.toml']\n"));
    assert!(matches!(install(root.path(), &options), Err(SetupError::Imports(_))));
    let (root, options) = node(Some("base_runtime_spec = '/etc/other.json'\n"));
    assert!(matches!(install(root.path(), &options), Err(SetupError::Taken { .. })));
}

#[test]
fn the_difference_is_shown() {
    let (root, options) = node(Some("version = 3\n"));
    let shown: String = install(root.path(), &options).unwrap().iter().map(ToString::to_string).collect();
    assert!(shown.contains("drover-gate (new)\n  a program: 5 bytes"), "{shown}");
    assert!(shown.contains("config.toml (changed)\n  + # drover: begin\n  + imports"), "{shown}");
    assert!(!shown.contains("- version = 3"), "{shown}");
}
