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
    let path = seen(root, Path::new(path));
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
fn a_setting_is_the_same_however_it_is_written() {
    const FILE: &str = r#"
# [crio.runtime.runtimes.commented]
[crio.runtime]   # a table
default_runtime = "crun" # as it comes
hooks_dir = [
    "/usr/share/containers/oci/hooks.d", # one
    # "/not/this",
    '/etc/\plain', "/a#b\u0020c", """
/on/more/\
    lines""",
]
no_pivot = false
conmon = """/opt/"conmon"\t"""
[crio.runtime.runtimes."crun"]
runtime_path = "/usr/libexec/crio/crun"
[crio.runtime.runtimes]
kata.runtime_path = '/usr/bin/kata'
drover = { runtime_path = "/usr/bin/{dro}ver" }
"with.dot" = {}
"#;
    let found = read(&node(&[("/etc/crio/crio.conf", FILE)]));
    assert_eq!(found.hooks(), ["/usr/share/containers/oci/hooks.d", r"/etc/\plain", "/a#b c", "/on/more/lines"]);
    assert_eq!((found.word(&["default_runtime"]), found.word(&["conmon"])), (Some("crun"), Some("/opt/\"conmon\"\t")));
    assert_eq!((found.word(&["no_pivot"]), found.word(&["hooks_dir", "more"])), (None, None), "another kind has no words");
    let paths = ["crun", "kata", "drover", "with.dot"].map(|handler| found.of_handler(handler, "runtime_path"));
    assert_eq!(paths, [Some("/usr/libexec/crio/crun"), Some("/usr/bin/kata"), Some("/usr/bin/{dro}ver"), None]);
    assert_eq!(["drover", "with.dot", "commented", "dot"].map(|handler| found.names_handler(handler).is_some()), [true, true, false, false]);
    for (file, hooks) in [("crio.runtime.hooks_dir = ['/a']", "/a"), ("crio = { runtime = { hooks_dir = [\"/b\"] } }", "/b")] {
        assert_eq!(read(&node(&[("/etc/crio/crio.conf", file)])).hooks(), [hooks]);
    }
    assert!(read(&node(&[("/etc/crio/crio.conf", "crio = 1")])).names_handler("drover").is_none());
}

#[test]
fn what_is_no_toml_is_said_by_its_file_and_line() {
    let long = format!("[crio.runtime]\nx = {}\n", "secret ".repeat(1000));
    for (text, what) in [
        ("[crio.runtime\nhooks_dir = [\n\"/a\",", "line 1 is no TOML: "),
        ("[crio.runtime]\na = 1\na = 2\n", "line 3 is no TOML: duplicate key"),
        ("x = \"open\n", "line 1 is no TOML: "),
        (long.as_str(), "line 2 is no TOML: "),
    ] {
        let root = node(&[("/etc/crio/crio.conf", PACKAGED), ("/etc/crio/crio.conf.d/50-theirs.conf", text)]);
        let (path, error) = Configuration::read(root.path(), "").unwrap_err();
        assert_eq!(path, seen(root.path(), Path::new("/etc/crio/crio.conf.d/50-theirs.conf")));
        let error = error.to_string();
        assert!(error.starts_with(what) && error.len() < 300 && !error.contains(['\n']) && !error.contains("secret"), "{error}");
        let unreadable = Some(format!("/etc/crio/crio.conf.d/50-theirs.conf cannot be read: {error}"));
        assert_eq!(facts(root.path()), CrioFacts { unreadable, ..CrioFacts::default() });
    }
    let root = node(&[]);
    fs::create_dir_all(seen(root.path(), Path::new(FOLDER))).unwrap();
    fs::write(seen(root.path(), Path::new(CONFIG)), b"x = \"\xff\"\n").unwrap();
    let (path, error) = Configuration::read(root.path(), "").unwrap_err();
    assert!(path.ends_with("crio.conf") && error.to_string().contains("UTF-8"), "{error}");
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
    fs::create_dir_all(seen(root.path(), Path::new("/usr/local/bin"))).unwrap();
    std::os::unix::fs::symlink("/usr/libexec/crio/runc", seen(root.path(), Path::new("/usr/local/bin/runc"))).unwrap();
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
