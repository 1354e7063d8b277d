//! Checkpoints laid out in a node that is a temporary folder.

mod memory;

use std::os::unix::fs::PermissionsExt as _;

use bytes::Bytes;
use futures::StreamExt as _;
use tar::{Builder, Header};

use super::*;

const POD: &str = "6f1c22aa-0000-4000-8000-000000000000";

fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = Header::new_gnu();
        // By hand, since the builder refuses what a hostile archive has.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn copy(bytes: u64) -> Copy {
    let image = "127.0.0.1:5785/drover/00:app".to_owned();
    let repository = format!("drover/{}", "0".repeat(32));
    Copy { repository, pod_uid: POD.into(), pod: "shop_web".into(), container: "app".into(), image, bytes, is_post_copy: false }
}

async fn lay_out(layout: &NodeLayout, tar: Vec<u8>, bytes: u64) -> PortResult<()> {
    let digest = Hashed::new(&tar[..]).finish().unwrap();
    lay_out_as(layout, tar, bytes, &digest).await
}

async fn lay_out_as(layout: &NodeLayout, tar: Vec<u8>, bytes: u64, digest: &Digest) -> PortResult<()> {
    layout.lay_out(&copy(bytes), futures::stream::iter([Ok(Bytes::from(tar))]).boxed(), digest).await
}

fn whole() -> Vec<u8> {
    archive(&[
        ("checkpoint/", EntryType::Directory, b""),
        ("./checkpoint/pages-1.img", EntryType::Regular, b"memory"),
        ("checkpoint/tmpfs-dev-7.tar.gz.img", EntryType::Regular, b"\x1f\x8b compressed by CRIU"),
        ("rootfs-diff.tar", EntryType::Regular, b"difference"),
        ("container.log", EntryType::Regular, b"so far\n"),
        ("spec.dump", EntryType::Regular, b"{}"),
    ])
}

fn place(node: &Path) -> PathBuf {
    node.join("run/drover/restore").join(POD).join("app")
}

#[tokio::test]
async fn what_a_restore_needs_is_laid_out_with_the_place_of_its_log() {
    let node = tempfile::tempdir().unwrap();
    let layout = NodeLayout::new(node.path(), Path::new("/var/lib/drover/restore"));
    let logs = node.path().join("var/log/pods").join(format!("shop_web_{POD}"));
    fs::create_dir_all(&logs).unwrap();
    assert!(!layout.is_laid_out(POD, "app").await.unwrap());
    // Twice: the second try replaces the first.
    for _ in 0..2 {
        lay_out(&layout, whole(), 1).await.unwrap();
    }
    let place = place(node.path());
    let read = |name: &str| fs::read_to_string(place.join(name)).unwrap();
    assert_eq!((read("checkpoint/pages-1.img"), read("rootfs-diff.tar")), ("memory".into(), "difference".into()));
    assert_eq!(fs::read(place.join("checkpoint/tmpfs-dev-7.tar.gz.img")).unwrap(), b"\x1f\x8b compressed by CRIU");
    assert_eq!(read("ready"), "127.0.0.1:5785/drover/00:app");
    assert!(place.join("lazy").exists());
    assert!(!place.join("spec.dump").exists() && !logs.join("app").exists());
    assert_eq!((read("container.log"), read("log-folder")), ("so far\n".into(), format!("/var/log/pods/shop_web_{POD}/app")));
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(place.join("checkpoint/pages-1.img")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(layout.is_laid_out(POD, "app").await.unwrap());
    assert_eq!(layout.pods().await.unwrap(), [POD]);
    layout.discard(POD).await.unwrap();
    layout.discard(POD).await.unwrap();
    assert!(layout.pods().await.unwrap().is_empty());
}

#[tokio::test]
async fn lazy_restores_can_be_switched_off() {
    let node = tempfile::tempdir().unwrap();
    let layout = NodeLayout::new(node.path(), Path::new("/disk")).with_lazy(false);
    lay_out(&layout, whole(), 1).await.unwrap();
    let place = place(node.path());
    assert!(place.join("ready").exists() && !place.join("lazy").exists());
}

#[test]
fn the_difference_is_unpacked_where_it_is_compressed() {
    let mut gzip = flate2::read::GzEncoder::new(&b"a tar"[..], flate2::Compression::fast());
    let mut compressed = vec![];
    gzip.read_to_end(&mut compressed).unwrap();
    for content in [compressed, b"a tar".to_vec()] {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_unpacked(&mut content.as_slice(), &mut file.reopen().unwrap()).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "a tar");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    write_unpacked(&mut &b"\x1f"[..], &mut file.reopen().unwrap()).unwrap();
    assert_eq!(fs::read(file.path()).unwrap(), b"\x1f");
}

#[tokio::test]
async fn what_memory_has_no_room_for_lies_on_disk() {
    let node = tempfile::tempdir().unwrap();
    let layout = NodeLayout::new(node.path(), Path::new("/var/lib/drover/restore"));
    lay_out(&layout, whole(), u64::MAX).await.unwrap();
    let far = Path::new("/var/lib/drover/restore").join(POD).join("app");
    assert_eq!(fs::read_link(place(node.path())).unwrap(), far, "by its path on the node");
    let seen = node.path().join(far.strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(seen.join("checkpoint/pages-1.img")).unwrap(), "memory");
    assert!(!seen.join("lazy").exists());
    assert!(layout.is_laid_out(POD, "app").await.unwrap());
    layout.discard(POD).await.unwrap();
    assert!(!seen.exists() && layout.pods().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_changed_on_the_way_is_never_ready() {
    let node = tempfile::tempdir().unwrap();
    let layout = NodeLayout::new(node.path(), Path::new("/disk"));
    let error = lay_out_as(&layout, whole(), 1, &Digest::from_sha256(&[1; 32])).await.unwrap_err();
    assert!(error.kind == crate::ports::Failure::Permanent && error.message.contains("changed on the way"), "{error}");
    assert!(!layout.is_laid_out(POD, "app").await.unwrap());
}

#[tokio::test]
async fn a_hostile_archive_is_refused() {
    for (name, kind) in [
        ("checkpoint/../../../escaped", EntryType::Regular),
        ("/etc/passwd", EntryType::Regular),
        ("checkpoint/pages-1.img", EntryType::Symlink),
        ("rootfs-diff.tar", EntryType::Fifo),
    ] {
        let node = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(node.path(), Path::new("/disk"));
        let error = lay_out(&layout, archive(&[(name, kind, b"")]), 1).await.unwrap_err();
        assert!(error.kind == crate::ports::Failure::Permanent && error.message.contains(name), "{error}");
        assert!(!layout.is_laid_out(POD, "app").await.unwrap());
    }
    let layout = NodeLayout::new(Path::new("/nonexistent"), Path::new("/disk"));
    for (pod, container) in [("../../etc", "app"), (POD, "../app"), (POD, "")] {
        assert!(layout.is_laid_out(pod, container).await.is_err());
    }
}
