//! The runtime as it is built: what it hands to runc, and how it changes a root folder.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_drover-runc");

/// Calls that a node makes of runc whatever its markers are.
fn through(folder: &Path, arguments: &[&str]) -> Output {
    let input = folder.join("input");
    fs::write(&input, "what comes in").expect("a file");
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env("PATH", folder).env("WHO", "containerd").stdin(File::open(input).expect("a file")).output().expect("a program")
}

#[test]
fn runc_gets_the_call_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let runc = folder.path().join("runc");
    fs::write(&runc, "#!/bin/sh\nprintf '<%s>' \"$WHO\" \"$@\"\n/bin/cat\necho its words >&2\nexit 42\n").unwrap();
    fs::set_permissions(&runc, fs::Permissions::from_mode(0o755)).unwrap();
    for arguments in [&["--version"][..], &[], &["--root", "/a b", "--odd", "state", "x\ny", ""], &["--log", "/dev/null", "kill", "id", "9"]] {
        let output = through(folder.path(), arguments);
        let words = arguments.iter().fold(String::new(), |words, word| words + "<" + word + ">");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("<containerd>{words}what comes in"));
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(42), &b"its words\n"[..]));
    }
}

#[test]
fn without_runc_the_log_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let output = through(folder.path(), &["--log", log.to_str().unwrap(), "--log-format", "json", "state", "id"]);
    assert_eq!(output.status.code(), Some(1));
    let line: serde_json::Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert!(line["msg"].as_str().unwrap().contains("there is no program runc"), "{line}");
    fs::remove_file(&log).unwrap();
    through(folder.path(), &["--log", log.to_str().unwrap(), "state", "id"]);
    let line = fs::read_to_string(&log).unwrap();
    assert!(line.starts_with("time=\"2") && line.contains(" level=error msg=\"drover: there is no program runc"), "{line}");
}

#[test]
fn a_layer_is_unpacked_in_a_root_folder_of_its_own() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may change its root folder");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (root, tar) = (folder.path().join("root"), folder.path().join("tar"));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("old"), "").unwrap();
    let unpack = |name: &str| {
        let mut layer = tar::Builder::new(vec![]);
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o4711);
        header.set_uid(1234);
        header.set_gid(1235);
        header.set_mtime(1);
        header.set_size(1);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        layer.append(&header, &b"x"[..]).unwrap();
        fs::write(&tar, layer.into_inner().unwrap()).unwrap();
        Command::new(PROGRAM).arg("apply-rootfs-diff").arg(&root).stdin(File::open(&tar).unwrap()).stdout(Stdio::null()).output().unwrap()
    };
    assert!(unpack("a/program").status.success());
    let found = fs::metadata(root.join("a/program")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o4711);
    assert_eq!((std::os::unix::fs::MetadataExt::uid(&found), std::os::unix::fs::MetadataExt::gid(&found)), (1234, 1235));
    assert!(unpack(".wh.old").status.success());
    assert!(!root.join("old").exists());
    let output = unpack("../tar");
    assert!(!output.status.success() && String::from_utf8(output.stderr).unwrap().contains("\"../tar\": it leads out"));
}
