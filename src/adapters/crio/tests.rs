//! CRI-O's files as its packages leave them, in a folder that stands for a node.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// As CRI-O's packages have it (`10-crio.conf`).
const PACKAGED: &str = r#"
[crio.runtime]
default_runtime = "crun"

[crio.runtime.runtimes.crun]
runtime_path = "/usr/libexec/crio/crun"
runtime_root = "/run/crun"
monitor_path = "/usr/libexec/crio/conmon"

[crio.runtime.runtimes.runc]
runtime_path = "/usr/libexec/crio/runc"
runtime_root = "/run/runc"
monitor_path = "/usr/libexec/crio/conmon"
"#;

fn node(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        write(root.path(), path, content, 0o644);
    }
    root
}

fn write(root: &Path, path: &str, content: &str, mode: u32) {
    let path = on_node(root, path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn read(root: &tempfile::TempDir) -> Configuration {
    Configuration::read(root.path(), "/etc/crio/crio.conf.d/90-drover.conf").unwrap()
}

#[test]
fn the_last_file_counts_whatever_its_ending_and_ours_does_not() {
    let root = node(&[
        ("/etc/crio/crio.conf", "[crio.runtime]\nhooks_dir = [\"/main\"]\n"),
        ("/etc/crio/crio.conf.d/10-crio.conf", PACKAGED),
        ("/etc/crio/crio.conf.d/20/hooks.bak", "[crio.runtime]\nhooks_dir = [\n  \"/a\",\n  \"/b\",\n]\n"),
        ("/etc/crio/crio.conf.d/90-drover.conf", "[crio.runtime]\nhooks_dir = []\n[crio.runtime.runtimes.drover]\n"),
    ]);
    assert_eq!(read(&root).hooks(), ["/a", "/b"]);
    assert_eq!(read(&root).possible_hooks(), ["/a", "/b", "/etc/containers/oci/hooks.d", "/main", "/usr/share/containers/oci/hooks.d"]);
    assert_eq!((read(&root).names_handler("drover"), read(&root).names_handler("runc")), (None, Some("/etc/crio/crio.conf.d/10-crio.conf")));
    assert_eq!(Configuration::read(root.path(), "").unwrap().names_handler("drover"), Some("/etc/crio/crio.conf.d/90-drover.conf"));
    assert_eq!(read(&node(&[])).hooks(), ["/usr/share/containers/oci/hooks.d"]);
}

#[test]
fn conmon_is_looked_for_where_the_default_runtime_has_it() {
    assert_eq!(read(&node(&[("/etc/crio/crio.conf.d/10-crio.conf", PACKAGED)])).monitors()[0], "/usr/libexec/crio/conmon");
    let conmonrs = "[crio.runtime.runtimes.crun]\nruntime_type = \"pod\"\nmonitor_path = \"/usr/libexec/crio/conmonrs\"\n";
    let monitors = read(&node(&[("/etc/crio/crio.conf", conmonrs)])).monitors();
    assert!(!monitors.iter().any(|path| path.ends_with("conmonrs")), "another type's monitor: {monitors:?}");
    assert_eq!((monitors[0].as_str(), monitors.last().unwrap().as_str()), ("/usr/local/sbin/conmon", "/usr/libexec/crio/conmon"));
    let old = "[crio.runtime]\nconmon = \"/opt/conmon\"\n";
    assert_eq!(read(&node(&[("/etc/crio/crio.conf", old)])).monitors()[0], "/opt/conmon");
    let bare = "[crio.runtime]\nconmon = \"\"\n[crio.runtime.runtimes.runc]\nmonitor_path = \"/r/conmon\"\n";
    assert_eq!(read(&node(&[("/etc/crio/crio.conf", bare)])).monitors()[0], "/r/conmon");
}

#[test]
fn a_link_leads_where_it_would_on_the_node() {
    let root = node(&[]);
    write(root.path(), "/usr/libexec/crio/runc", "x", 0o755);
    write(root.path(), "/usr/bin/text", "x", 0o644);
    fs::create_dir_all(on_node(root.path(), "/usr/local/bin")).unwrap();
    std::os::unix::fs::symlink("/usr/libexec/crio/runc", on_node(root.path(), "/usr/local/bin/runc")).unwrap();
    assert_eq!(in_path(root.path(), "runc").as_deref(), Some("/usr/local/bin/runc"));
    assert!(!is_program(root.path(), "/usr/bin/text") && !is_program(root.path(), "/usr/bin") && !is_program(root.path(), "/usr/bin/no"));
    assert!(!is_program(root.path(), "/../../../../../../bin/sh"), "nothing outside of the root");
}

#[test]
fn the_facts_are_those_of_the_files() {
    const HOOK: &str = r#"{"version": "1.0.0", "hook": {"path": "/lib/drover-gate"}, "when": {"always": true}, "stages": ["createRuntime"]}"#;
    let root = node(&[("/etc/crio/crio.conf.d/10-crio.conf", PACKAGED), ("/usr/share/containers/oci/hooks.d/broken.json", "{")]);
    assert_eq!(facts(root.path()), CrioFacts::default());
    write(root.path(), "/etc/crio/crio.conf.d/90-drover.conf", "[crio.runtime.runtimes.drover]\nruntime_path = \"/lib/drover-runc\"\n", 0o644);
    write(root.path(), "/usr/share/containers/oci/hooks.d/poststop.json", &HOOK.replace("createRuntime", "poststop"), 0o644);
    write(root.path(), "/usr/share/containers/oci/hooks.d/drover-gate.json", HOOK, 0o644);
    let handler = Some("/lib/drover-runc".to_owned());
    let hook = Some("/usr/share/containers/oci/hooks.d/drover-gate.json".to_owned());
    assert_eq!(facts(root.path()), CrioFacts { handler, hook, ..CrioFacts::default() });
    for program in ["/lib/drover-runc", "/lib/drover-gate", "/usr/bin/runc"] {
        write(root.path(), program, "x", 0o755);
    }
    let found = facts(root.path());
    assert!(found.is_program && found.has_gate && found.has_runc, "{found:?}");
    // CRI-O reads hooks where it is told to, and nowhere else.
    write(root.path(), "/etc/crio/crio.conf.d/99-hooks.conf", "[crio.runtime]\nhooks_dir = [\"/etc/containers/oci/hooks.d\"]\n", 0o644);
    assert_eq!(facts(root.path()).hook, None);
}
