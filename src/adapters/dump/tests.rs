//! What of it needs no containerd.

use std::{
    io::Read as _,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use super::*;
use crate::ports::Failure;

const UID: &str = "5f1c22aa-0000-4000-8000-000000000001";

/// On a node whose root is a temporary folder, and whose containerd is not there.
fn scene() -> (tempfile::TempDir, NodeDump) {
    let node = tempfile::tempdir().unwrap();
    let containerd = Containerd::at(&node.path().join("containerd.sock"));
    let dump = NodeDump::new(containerd, node.path(), Path::new("/var/lib/drover/dump"));
    (node, dump)
}

#[tokio::test]
async fn a_dump_lies_in_memory_or_where_there_is_no_room_on_disk_and_nowhere_else() {
    let (node, dump) = scene();
    let (in_memory, on_disk) = (Path::new("/run/drover/dump").join(UID).join("app"), Path::new("/var/lib/drover/dump").join(UID).join("app"));
    let seen = |folder: &Path| dump.on_node(folder);
    for (bytes, here, there) in [(1, &in_memory, &on_disk), (u64::MAX / 4, &on_disk, &in_memory), (1, &in_memory, &on_disk)] {
        assert_eq!(dump.fresh(UID, "app", bytes).unwrap(), *here, "{bytes}: by its path on the node");
        assert!(seen(here).starts_with(node.path()) && !seen(there).exists(), "{bytes}");
        assert_eq!(fs::read_dir(seen(here)).unwrap().count(), 0, "{bytes}: it is empty");
        assert_eq!(fs::metadata(seen(here)).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(seen(here).join("of an earlier try"), "x").unwrap();
    }
    dump.fresh(UID, "side", u64::MAX / 4).unwrap();
    for (folder, log) in [(in_memory.clone(), "of app"), (on_disk.with_file_name("side"), "of side")] {
        fs::create_dir(seen(&folder).join(WORK)).unwrap();
        fs::write(seen(&folder).join(WORK).join("dump.log"), log).unwrap();
    }
    dump.discard(UID).await.unwrap();
    dump.discard(UID).await.unwrap();
    let kept = |container: &str| fs::read_to_string(seen(Path::new(kept::ROOT)).join(UID).join(format!("{container}.dump.log"))).unwrap();
    assert_eq!((kept("app").as_str(), kept("side").as_str()), ("of app", "of side"));
    assert!([&in_memory, &on_disk].iter().all(|folder| !seen(folder.parent().unwrap()).exists()));
}

#[tokio::test]
async fn only_a_uid_names_a_folder() {
    let (_node, dump) = scene();
    assert_eq!(dump.discard("../../etc").await.unwrap_err().kind, Failure::Permanent);
    assert_eq!(dump.fresh("..", "app", 1).unwrap_err().kind, Failure::Permanent);
    assert_eq!(dump.left("", "app").await.unwrap_err().kind, Failure::Permanent);
}

#[tokio::test]
async fn what_is_left_is_found_in_memory_and_on_disk_once_it_is_whole() {
    for bytes in [1, u64::MAX / 4] {
        let (_node, dump) = scene();
        assert_eq!(dump.left(UID, "app").await.unwrap(), None);
        let folder = dump.on_node(&dump.fresh(UID, "app", bytes).unwrap());
        fs::create_dir(folder.join("checkpoint")).unwrap();
        fs::write(folder.join("checkpoint/pages-1.img"), "memory").unwrap();
        assert_eq!(dump.left(UID, "app").await.unwrap(), None, "nothing restores from it");
        fs::write(folder.join(INVENTORY), "inventory").unwrap();
        assert_eq!(dump.left(UID, "app").await.unwrap(), Some(folder.clone()));
        fs::write(folder.join(POST_COPY), "").unwrap();
        assert_eq!(dump.left(UID, "app").await.unwrap(), None, "its memory was left behind");
        assert_eq!(dump.left(UID, "side").await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_dump_is_kept_as_one_file_with_its_links_as_they_are() {
    let (node, dump) = scene();
    let folder = node.path().join("dump");
    fs::create_dir_all(folder.join("checkpoint")).unwrap();
    fs::write(folder.join(INVENTORY), "inventory").unwrap();
    fs::write(folder.join("container.log"), "so far\n").unwrap();
    symlink("/run/drover/dump/nowhere", folder.join("checkpoint/criu.work")).unwrap();
    let to = node.path().join("kept.tar");
    // The second time replaces what the first has left.
    for content in ["memory that is longer", "memory"] {
        fs::write(folder.join("checkpoint/pages-1.img"), content).unwrap();
        dump.keep(&folder, &to).await.unwrap();
    }
    let mut found = vec![];
    for entry in tar::Archive::new(File::open(&to).unwrap()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let link = entry.link_name().unwrap().map(|link| link.display().to_string());
        found.push((entry.path().unwrap().display().to_string().trim_end_matches('/').to_owned(), link.unwrap_or(content)));
    }
    found.sort();
    let expected = [
        ("checkpoint", ""),
        ("checkpoint/criu.work", "/run/drover/dump/nowhere"),
        (INVENTORY, "inventory"),
        ("checkpoint/pages-1.img", "memory"),
        ("container.log", "so far\n"),
    ];
    assert_eq!(found, expected.map(|(name, content)| (name.to_owned(), content.to_owned())));
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!to.with_extension("part").exists());
}

#[tokio::test]
async fn a_dump_that_is_not_there_leaves_no_file_that_passes_for_one() {
    let (node, dump) = scene();
    let to = node.path().join("kept.tar");
    let error = dump.keep(&node.path().join("none"), &to).await.unwrap_err();
    assert!(error.kind == Failure::Transient && error.message.contains("failed to keep a checkpoint"), "{error}");
    assert!(!to.exists());
}

#[tokio::test]
async fn a_failure_is_told_in_criu_s_own_words_where_it_has_any() {
    let (node, dump) = scene();
    let work = Path::new("/run/drover/dump/work");
    let told = || dump.explained(PortError::permanent("runc did not checkpoint"), work).message;
    assert_eq!(told(), "runc did not checkpoint");
    let log = node.path().join("run/drover/dump/work/dump.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::write(&log, b"(00.1) Dumping \xff\n(00.2) Error (criu/mount.c:1): mnt: No mapping for 7\n").unwrap();
    assert_eq!(told(), "Error (criu/mount.c:1): mnt: No mapping for 7");
}
