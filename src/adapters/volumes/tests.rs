//! Packed and unpacked again, everything is as it was; and what no pod of ours has packed is refused.

mod changes;

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use tar::{Builder, EntryType, Header};

use super::*;

fn volume(folder: &Path) -> Vec<Volume> {
    vec![Volume { name: "shm".into(), folder: folder.to_owned() }]
}

fn packed(folder: &Path) -> Vec<u8> {
    let mut tar = vec![];
    pack::pack(&volume(folder), &mut tar).unwrap();
    tar
}

#[test]
fn everything_comes_out_as_it_went_in() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| from.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/file"), b"content").unwrap();
    fs::set_permissions(at("folder"), fs::Permissions::from_mode(0o1730)).unwrap();
    fs::set_permissions(at("folder/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(at("folder/file"), at("folder/other")).unwrap();
    symlink("/etc/shadow", at("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
    fs::write(at(&"n".repeat(200)), b"long").unwrap();
    fs::set_permissions(from.path(), fs::Permissions::from_mode(0o2750)).unwrap();
    fs::File::open(at("folder/file")).unwrap().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_hours(24)).unwrap();
    fs::write(to.path().join("old"), b"from an earlier try").unwrap();

    unpack(packed(from.path()).as_slice(), &volume(to.path())).unwrap();
    let found = |name: &str| fs::symlink_metadata(to.path().join(name)).unwrap();
    assert_eq!((found("folder").mode() & 0o7777, found("folder/file").mode() & 0o7777), (0o1730, 0o640));
    assert_eq!(fs::read(to.path().join("folder/file")).unwrap(), b"content");
    assert_eq!(found("folder/file").ino(), found("folder/other").ino());
    assert_eq!(fs::read_link(to.path().join("link")).unwrap(), Path::new("/etc/shadow"));
    assert!(found("fifo").file_type().is_fifo());
    assert_eq!(fs::read(to.path().join("n".repeat(200))).unwrap(), b"long");
    assert!(!to.path().join("old").exists());
    assert_eq!(
        (to.path().metadata().unwrap().mode() & 0o7777, found("folder/file").mtime()),
        (0o2750, 86_400),
        "the volume's own mode, a file's time"
    );
    assert_eq!(packed(from.path()), packed(to.path()), "owners and modes too");
}

#[tokio::test]
async fn a_stream_goes_on_from_any_byte() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("file"), (0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    let whole = packed(from.path());
    for at in [0, 1, 511, CHUNK, CHUNK + 1, whole.len() - 1, whole.len()] {
        let mut chunks = stream(volume(from.path()), at as u64);
        let mut rest = vec![];
        while let Some(chunk) = chunks.recv().await {
            rest.extend_from_slice(&chunk.unwrap());
        }
        assert!(rest == whole[at..], "from byte {at}");
    }
}

#[test]
fn a_hole_stays_one() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = fs::File::create(from.path().join("segment")).unwrap();
    file.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"x", (4 << 20) + 7).unwrap();
    unpack(packed(from.path()).as_slice(), &volume(to.path())).unwrap();
    let copy = to.path().join("segment");
    assert_eq!(fs::read(&copy).unwrap(), fs::read(from.path().join("segment")).unwrap());
    assert!(fs::metadata(copy).unwrap().blocks() * 512 < 1 << 20);
}

#[tokio::test]
async fn the_stream_is_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("big"), vec![7; 3 << 20]).unwrap();
    let layer = measure(&volume(folder.path())).unwrap();
    let mut chunks = stream(volume(folder.path()), 0);
    let mut all = vec![];
    while let Some(chunk) = chunks.recv().await {
        all.extend(chunk.unwrap());
    }
    assert_eq!((all.len() as u64, crate::domain::image::digest_of(&all)), (layer.size, layer.digest.clone()));
    assert_eq!(Hashed::new(all.as_slice()).finish().unwrap(), layer.digest);
    let kept = folder.path().with_extension("tar");
    archive(&volume(folder.path()), &kept).unwrap();
    let found = (measure_archive(&kept).unwrap(), fs::metadata(&kept).unwrap().mode() & 0o777);
    fs::remove_file(kept).unwrap();
    assert_eq!(found, (layer, 0o600));
}

#[test]
fn what_would_leave_its_volume_is_refused() {
    let entry = |kind: EntryType, name: &str, target: &str| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        // Not by the library's own setter, which refuses such names itself.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        header
    };
    let cases = [
        vec![entry(EntryType::Regular, "shm/../x", "")],
        vec![entry(EntryType::Regular, "/shm/x", "")],
        vec![entry(EntryType::Regular, "other/x", "")],
        vec![entry(EntryType::Regular, "shm", "")],
        vec![entry(EntryType::Regular, "shm/none/x", "")],
        vec![entry(EntryType::Symlink, "shm/a", "/etc"), entry(EntryType::Regular, "shm/a/x", "")],
        vec![entry(EntryType::Link, "shm/a", "/etc/passwd")],
        vec![entry(EntryType::Link, "shm/a", "shm/none")],
        vec![entry(EntryType::Symlink, "shm/a", "/etc/passwd"), entry(EntryType::Link, "shm/b", "shm/a")],
        vec![entry(EntryType::Block, "shm/a", "")],
    ];
    for (index, headers) in cases.into_iter().enumerate() {
        let mut tar = Builder::new(vec![]);
        for header in &headers {
            tar.append(header, std::io::empty()).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let error = unpack(tar.into_inner().unwrap().as_slice(), &volume(folder.path())).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "case {index}: {error}");
    }
}
