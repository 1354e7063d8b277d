//! What an overlay has changed, as a layer; put onto a copy of what lies below it, the two look alike.
//!
//! Marks in `trusted.*` may be made by root alone, on a file system that has them; elsewhere the part of a test that needs them is left out.

use std::{
    ffi::OsStr,
    io::ErrorKind,
    os::unix::ffi::OsStrExt as _,
    path::{Component, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, XattrFlags},
    io::Errno,
};
use tar::Archive;
use tempfile::TempDir;

use super::*;
use crate::runc;

fn folder_of(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, content) in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

/// As overlayfs marks what was removed.
fn whiteout(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

/// Whether it could be set.
fn mark(path: &Path, attribute: &str, value: &[u8]) -> bool {
    match rustix::fs::lsetxattr(path, attribute, value, XattrFlags::empty()) {
        Ok(()) => true,
        Err(Errno::PERM | Errno::NOTSUP) => false,
        Err(error) => panic!("{attribute}: {error}"),
    }
}

fn changes(upper: &TempDir) -> Vec<u8> {
    let mut tar = vec![];
    pack::pack_changes(upper.path(), &mut tar).unwrap();
    tar
}

fn names(tar: &[u8]) -> Vec<PathBuf> {
    Archive::new(tar).entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect()
}

#[test]
fn what_was_removed_in_an_overlay_is_removed_in_a_copy_of_what_lies_below() {
    let lower = folder_of(&[
        ("gone", "x"),
        ("gone-folder/deep/x", "x"),
        ("etc/hosts", "old"),
        ("etc/passwd", "root"),
        ("etc/kept", "kept"),
        ("data/lower", "l"),
        ("data/sub/lower", "l"),
    ]);
    let upper = folder_of(&[("etc/hosts", "new"), ("etc/added/file", "added"), ("data/sub/fresh", "fresh")]);
    for removed in ["gone", "gone-folder", "etc/passwd", "never-there"] {
        whiteout(&upper.path().join(removed));
    }
    // Newer kernels give one whiteout several names.
    fs::remove_file(upper.path().join("gone")).unwrap();
    fs::hard_link(upper.path().join("gone-folder"), upper.path().join("gone")).unwrap();
    let opaque = mark(&upper.path().join("data"), "trusted.overlay.opaque", b"y");

    runc::apply(lower.path(), changes(&upper).as_slice()).unwrap();
    let read = |name: &str| fs::read_to_string(lower.path().join(name)).ok();
    for gone in ["gone", "gone-folder", "etc/passwd", "never-there"] {
        assert!(fs::symlink_metadata(lower.path().join(gone)).is_err(), "{gone} is there");
    }
    assert_eq!([read("etc/hosts"), read("etc/kept"), read("etc/added/file")], ["new", "kept", "added"].map(|text| Some(text.to_owned())));
    assert_eq!(read("data/sub/fresh").as_deref(), Some("fresh"));
    let left = [read("data/lower"), read("data/sub/lower")];
    assert!(left.iter().all(|file| file.is_none() == opaque), "opaque: {opaque}: {left:?}");
    let strange: Vec<_> =
        fs::read_dir(lower.path()).unwrap().map(|entry| entry.unwrap().file_name()).filter(|name| name.as_bytes().starts_with(b".wh.")).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn every_name_of_a_layer_is_a_path_below_its_root() {
    let upper = folder_of(&[("file", ""), ("folder/deeper/file", "")]);
    whiteout(&upper.path().join("gone"));
    whiteout(&upper.path().join("folder/gone"));
    let found = names(&changes(&upper));
    let expected = ["file", "folder", "folder/deeper", "folder/deeper/file", "folder/.wh.gone", ".wh.gone"].map(PathBuf::from);
    assert_eq!(found, expected);
    assert!(found.iter().all(|name| !name.as_os_str().is_empty() && name.components().all(|part| matches!(part, Component::Normal(_)))));
    assert!(names(&changes(&tempfile::tempdir().unwrap())).is_empty(), "nothing has changed");
}

#[test]
fn a_name_that_is_no_text_is_removed_by_its_bytes() {
    let name = OsStr::from_bytes(b"caf\xe9");
    let (lower, upper) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(lower.path().join(name), "x").unwrap();
    whiteout(&upper.path().join(name));
    let tar = changes(&upper);
    assert_eq!(names(&tar), [Path::new(OsStr::from_bytes(b".wh.caf\xe9"))]);
    runc::apply(lower.path(), tar.as_slice()).unwrap();
    assert!(!lower.path().join(name).exists());
}

#[test]
fn what_an_overlay_has_elsewhere_is_not_left_out_in_silence() {
    for attribute in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        let upper = folder_of(&[("renamed/file", "x")]);
        if !mark(&upper.path().join("renamed"), attribute, b"before") {
            continue;
        }
        let error = pack::pack_changes(upper.path(), &mut vec![]).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidData && error.to_string().contains("renamed"), "{error}");
    }
}

#[test]
fn what_a_program_may_do_and_devices_come_along() {
    let (lower, upper) = (tempfile::tempdir().unwrap(), folder_of(&[("ping", "binary"), (&"n".repeat(150), "long")]));
    // CAP_NET_RAW, as `struct vfs_cap_data` of revision 2 has it.
    let capability: Vec<u8> = [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let marked = ["ping".to_owned(), "n".repeat(150)].map(|file| mark(&upper.path().join(file), "security.capability", &capability));
    let device =
        rustix::fs::mknodat(CWD, upper.path().join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3));
    runc::apply(lower.path(), changes(&upper).as_slice()).unwrap();
    for (file, is_marked) in ["ping".to_owned(), "n".repeat(150)].iter().zip(marked) {
        let mut value = [0; 64];
        let length = rustix::fs::lgetxattr(lower.path().join(file), "security.capability", &mut value[..]).unwrap_or_default();
        assert_eq!(&value[..length], if is_marked { capability.as_slice() } else { &[] }, "{file}");
    }
    if device.is_ok() {
        let found = fs::symlink_metadata(lower.path().join("null")).unwrap();
        assert!(found.file_type().is_char_device() && found.rdev() == rustix::fs::makedev(1, 3));
    }
}

/// As of a container engine that runs in a pod.
#[test]
fn the_marks_of_an_overlay_in_a_volume_make_no_whiteouts() {
    let from = folder_of(&[("upper/folder/file", "x")]);
    whiteout(&from.path().join("upper/gone"));
    mark(&from.path().join("upper/folder"), "trusted.overlay.opaque", b"y");
    mark(&from.path().join("upper/folder"), "trusted.overlay.redirect", b"before");
    assert_eq!(names(&packed(from.path())), ["shm", "shm/upper", "shm/upper/folder", "shm/upper/folder/file"].map(PathBuf::from));
}

#[test]
fn a_layer_is_written_in_the_place_of_an_earlier_one_and_read_by_nobody_else() {
    let upper = folder_of(&[("file", "x")]);
    let to = tempfile::tempdir().unwrap();
    let tar = to.path().join("rootfs-diff.tar");
    archive_changes(folder_of(&[("a", "1"), ("b", "2"), ("c", "3")]).path(), &tar).unwrap();
    archive_changes(upper.path(), &tar).unwrap();
    assert_eq!(fs::read(&tar).unwrap(), changes(&upper));
    assert_eq!(fs::metadata(&tar).unwrap().mode() & 0o777, 0o600);
}
