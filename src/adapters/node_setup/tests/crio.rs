//! Nodes of CRI-O, by what its packages leave on them (`10-crio.conf`): none of this has run on one.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

const PACKAGED: &str = r#"[crio.image]
signature_policy = "/etc/crio/policy.json"

[crio.runtime]
default_runtime = "crun"

[crio.runtime.runtimes.crun]
runtime_path = "/usr/libexec/crio/crun"
monitor_path = "/usr/libexec/crio/conmon"
allowed_annotations = [
    "io.containers.trace-syscall",
]

[crio.runtime.runtimes.runc]
runtime_path = "/usr/libexec/crio/runc"
monitor_path = "/usr/libexec/crio/conmon"
"#;
const DROP_IN: &str = "etc/crio/crio.conf.d/90-drover.conf";
const USUAL: &str = "usr/share/containers/oci/hooks.d/drover-gate.json";
const OVERRIDE: &str = "etc/containers/oci/hooks.d/drover-gate.json";

fn crio_node(programs: &[&str]) -> (tempfile::TempDir, SetupOptions) {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "etc/crio/crio.conf.d/10-crio.conf", PACKAGED);
    for name in ["gate-source", "runtime-source"].iter().chain(programs) {
        write(root.path(), name, "\x7fELF");
        fs::set_permissions(root.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (gate, runtime) = (root.path().join("gate-source"), Some(root.path().join("runtime-source")));
    (root, SetupOptions { gate, runtime, container_runtime: ContainerRuntime::Crio })
}

fn write(root: &Path, path: &str, content: &str) {
    fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
    fs::write(root.join(path), content).unwrap();
}

fn text_of(root: &tempfile::TempDir, path: &str) -> String {
    fs::read_to_string(root.path().join(path)).unwrap()
}

const WHOLE: [&str; 2] = ["usr/bin/runc", "usr/libexec/crio/conmon"];

#[test]
fn the_files_are_these() {
    let (root, options) = crio_node(&WHOLE);
    apply(&install(root.path(), &options).unwrap());
    assert_eq!(
        text_of(&root, DROP_IN),
        r#"# Made by drover node setup; drover node remove takes it away.
[crio.runtime.runtimes.drover]
runtime_path = "/usr/local/lib/drover/drover-runc"
runtime_type = "oci"
runtime_root = "/run/runc"
monitor_path = "/usr/libexec/crio/conmon"
monitor_env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
"#
    );
    assert_eq!(
        text_of(&root, USUAL),
        r#"{
  "version": "1.0.0",
  "hook": {"path": "/usr/local/lib/drover/drover-gate"},
  "when": {"always": true},
  "stages": ["createRuntime"]
}
"#
    );
    let handler: toml_edit::DocumentMut = text_of(&root, DROP_IN).parse().unwrap();
    assert_eq!(handler["crio"]["runtime"]["runtimes"]["drover"]["runtime_path"].as_str(), Some(RUNTIME));
    let hook: serde_json::Value = serde_json::from_str(&text_of(&root, USUAL)).unwrap();
    assert_eq!(hook.pointer("/hook/path").unwrap(), GATE);
    assert_eq!(text_of(&root, "etc/criu/runc.conf").lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(), CRIU_LINES);
    assert!(!root.path().join("etc/containerd").exists(), "nothing of containerd's");
    // What the agent says of it afterwards.
    let facts = crate::adapters::crio::facts(root.path());
    assert!(facts.is_program && facts.has_gate && facts.has_runc && facts.hook.is_some(), "{facts:?}");
}

#[test]
fn setting_up_twice_changes_nothing_and_removing_leaves_no_trace() {
    for hooks in [
        "",
        "[crio.runtime]\nhooks_dir = [\"/usr/share/containers/oci/hooks.d\", \"/etc/containers/oci/hooks.d\", \"/run/containers/oci/hooks.d\"]\n",
    ] {
        let (root, options) = crio_node(&WHOLE);
        write(root.path(), "etc/crio/crio.conf", hooks);
        write(root.path(), "etc/criu/runc.conf", "tcp-close\n");
        write(root.path(), "usr/share/containers/oci/hooks.d/theirs.json", "{}");
        let before = files(root.path());
        apply(&install(root.path(), &options).unwrap());
        assert_eq!(install(root.path(), &options).unwrap(), []);
        assert_eq!((root.path().join(USUAL).exists(), root.path().join(OVERRIDE).exists()), (hooks.is_empty(), !hooks.is_empty()));
        let first = uninstall(root.path()).unwrap();
        assert!(concern_crio(&first));
        apply(&first);
        for program in [GATE, RUNTIME] {
            assert!(root.path().join(&program[1..]).exists(), "CRI-O ends the handler's pods by {program}");
        }
        let second = uninstall(root.path()).unwrap();
        assert!(!concern_crio(&second));
        apply(&second);
        assert_eq!(files(root.path()), before);
        assert_eq!(uninstall(root.path()).unwrap(), []);
    }
}

#[test]
fn the_hook_moves_along_when_the_folders_do() {
    let (root, options) = crio_node(&WHOLE);
    apply(&install(root.path(), &options).unwrap());
    write(root.path(), "etc/crio/crio.conf.d/50-hooks.conf", "[crio.runtime]\nhooks_dir = [\"/etc/containers/oci/hooks.d\"]\n");
    apply(&install(root.path(), &options).unwrap());
    assert_eq!((root.path().join(USUAL).exists(), root.path().join(OVERRIDE).exists()), (false, true));
    for none in ["[]", "[\"/run/containers/oci/hooks.d\"]"] {
        write(root.path(), "etc/crio/crio.conf.d/50-hooks.conf", &format!("[crio.runtime]\nhooks_dir = {none}\n"));
        assert!(matches!(install(root.path(), &options), Err(SetupError::Hooks)), "{none}");
    }
}

#[test]
fn somebody_elses_handler_of_the_name_is_left_alone() {
    for file in
        ["etc/crio/crio.conf", "etc/crio/crio.conf.d/10-before.conf", "etc/crio/crio.conf.d/99-after.conf", "etc/crio/crio.conf.d/more/a.toml"]
    {
        let (root, options) = crio_node(&WHOLE);
        write(root.path(), file, "[crio.runtime.runtimes.\"drover\"]\nruntime_path = \"/opt/other\"\n");
        let error = install(root.path(), &options).unwrap_err();
        assert!(matches!(&error, SetupError::Handler(path) if path.ends_with(file)), "{error}");
        let without = SetupOptions { runtime: None, ..options.clone() };
        assert!(install(root.path(), &without).is_ok(), "the gate is in nobody's way");
        write(root.path(), file, "[crio.runtime.runtimes]\ndrover = { runtime_path = \"/opt/other\" }\n");
        assert!(matches!(install(root.path(), &options), Err(SetupError::Handler(path)) if path.ends_with(file)), "an inline table");
    }
}

#[test]
fn nothing_is_done_by_files_that_cannot_be_read() {
    let (root, options) = crio_node(&WHOLE);
    apply(&install(root.path(), &options).unwrap());
    write(root.path(), "etc/crio/crio.conf.d/50-broken.conf", "[crio.runtime]\nhooks_dir = /a\n");
    let without = SetupOptions { runtime: None, ..options.clone() };
    // A removal neither: a hook may be left in the folder that is not known, and the next round takes its program.
    for result in [install(root.path(), &options), install(root.path(), &without), uninstall(root.path())] {
        let Err(SetupError::File { path, source }) = result else { unreachable!("{result:?}") };
        assert!(path.ends_with("50-broken.conf") && source.to_string().starts_with("line 2 is no TOML: "), "{source}");
    }
    fs::remove_file(root.path().join("etc/crio/crio.conf.d/50-broken.conf")).unwrap();
    // Our own file is made anew, whatever it has become.
    write(root.path(), DROP_IN, "[broken");
    apply(&install(root.path(), &options).unwrap());
    assert!(text_of(&root, DROP_IN).starts_with("# Made by drover"));
}

#[test]
fn a_handler_that_could_not_work_is_not_set_up() {
    let said = |programs: &[&str]| {
        let (root, options) = crio_node(programs);
        let error = install(root.path(), &options).unwrap_err().to_string();
        assert!(install(root.path(), &SetupOptions { runtime: None, ..options }).is_ok());
        error
    };
    let nothing = said(&["usr/libexec/crio/conmon", "usr/bin/crun"]);
    assert!(
        nothing.contains("the node has none in /usr/local/sbin:") && nothing.contains("install it") && nothing.contains("crun, does not do"),
        "{nothing}"
    );
    let hidden = said(&["usr/libexec/crio/conmon", "usr/libexec/crio/runc"]);
    assert!(hidden.contains("ln -s /usr/libexec/crio/runc /usr/local/bin/runc"), "{hidden}");
    let alone = said(&["usr/bin/runc"]);
    assert!(alone.contains("conmon is not found") && alone.contains("keeps CRI-O from starting"), "{alone}");
}

#[test]
fn a_node_may_do_without_the_handler() {
    let (root, options) = crio_node(&WHOLE);
    apply(&install(root.path(), &options).unwrap());
    apply(&install(root.path(), &SetupOptions { runtime: None, ..options }).unwrap());
    assert!(!root.path().join(DROP_IN).exists() && root.path().join(USUAL).exists());
}

#[test]
fn what_runs_the_containers_is_told_by_configuration_or_program() {
    let with = |folders: &[&str], programs: &[&str]| {
        let root = tempfile::tempdir().unwrap();
        for folder in folders {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for program in programs {
            write(root.path(), program, "x");
            fs::set_permissions(root.path().join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        runs_crio(root.path()).map_err(|error| error.to_string())
    };
    assert_eq!(with(&["etc/crio"], &[]), Ok(true));
    assert_eq!(with(&[], &["usr/local/bin/crio"]), Ok(true));
    assert_eq!(with(&["etc/containerd"], &[]), Ok(false));
    assert_eq!(with(&[], &["usr/bin/containerd"]), Ok(false));
    let flag = "say by --container-runtime containerd or --container-runtime cri-o what runs its containers";
    assert_eq!(with(&["etc/crio"], &["usr/bin/containerd"]), Err(format!("the node has containerd and CRI-O: {flag}")));
    assert_eq!(with(&["etc"], &[]), Err(format!("the node has neither containerd nor CRI-O where they usually are: {flag}")));
}
