//! What a keeper that was killed leaves goes with its container.

use std::process::{Child, Stdio};

use super::*;

/// A process that is called as CRIU's daemon is, by the program `criu` of the node, and waits in a folder of this container's.
fn daemon(node: &Node, id: &str, command: &str) -> Child {
    let criu = node.folder.path().join("bin/criu");
    if !criu.exists() {
        std::os::unix::fs::symlink(fs::canonicalize("/bin/sh").unwrap(), &criu).unwrap();
    }
    let folder = node.folder.path().join("tasks").join(id).join("lazy-pages");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(command), "read line").unwrap();
    let mut daemon = Command::new(criu).args([command, "-v1"]).current_dir(&folder).stdin(Stdio::piped()).spawn().unwrap();
    assert_eq!(daemon.try_wait().unwrap(), None);
    daemon
}

fn note(node: &Node, id: &str, pages: Pages) {
    fs::create_dir_all(&node.places.records).unwrap();
    let record = Record { pod: POD.into(), container: "c".into(), checkpoint: "i".into(), pages, resumed: None };
    record::write(&node.places.records.join(id), &record).unwrap();
}

#[test]
fn a_daemon_that_waits_for_nobody_ends_with_its_container_and_no_other_does() {
    let node = Node::new();
    let (one, other) = ("d0".repeat(32), "d1".repeat(32));
    let (mut waits, mut of_other, mut no_daemon) =
        (daemon(&node, &one, "lazy-pages"), daemon(&node, &other, "lazy-pages"), daemon(&node, &one, "check"));
    note(&node, &one, Pages::Complete);
    assert_eq!(node.call(&["delete", &one]), Outcome::Pass, "nothing is outstanding: by exec, as ever");
    note(&node, &one, Pages::Outstanding);
    assert_eq!(node.call(&["delete", "--force", &one]), Outcome::Done);
    assert!(node.asked().ends_with(&format!("delete\n--force\n{one}\n")), "runc's first: {}", node.asked());
    assert!(!waits.wait().unwrap().success());
    assert_eq!((of_other.try_wait().unwrap(), no_daemon.try_wait().unwrap()), (None, None));
    assert!(!node.places.records.join(&one).exists());

    note(&node, &other, Pages::Outstanding);
    fs::write(node.folder.path().join("bin/fails"), "").unwrap();
    fs::write(node.folder.path().join("restore.log"), "").unwrap();
    assert_eq!(node.call(&["delete", &other]), Outcome::Failed(7), "runc's own end");
    assert_eq!(of_other.try_wait().unwrap(), None, "its processes may live on");
    for mut left in [of_other, no_daemon] {
        left.kill().and_then(|()| left.wait()).unwrap();
    }
}
