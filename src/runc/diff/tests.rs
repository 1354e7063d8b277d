//! Layers as containerd makes them, and such as only somebody with bad intentions does.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use tar::{Builder, Header};

use super::*;

/// A layer under construction; what is made belongs to whoever runs the test.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(vec![]))
    }

    fn entry(mut self, kind: EntryType, name: &str, mode: u32, content: &str, link: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        // Past the builder, which refuses such names itself
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content.as_bytes()).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, 0o644, content, "")
    }

    fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, 0o755, "", "")
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, name, 0o777, "", to)
    }

    fn records(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn onto(self, root: &Path) -> io::Result<()> {
        apply(root, self.0.into_inner().unwrap().as_slice())
    }
}

fn image() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (file, content) in [("etc/passwd", "root"), ("etc/hosts", "old"), ("old/deep/x", "x"), ("data/lower", "l"), ("data/sub/lower", "l")] {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    symlink("passwd", root.path().join("etc/link")).unwrap();
    root
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn all_kinds_of_files_come_with_what_belongs_to_them() {
    let root = image();
    let at = |name: &str| root.path().join(name);
    let layer = Tar::new()
        .entry(EntryType::Directory, "etc/", 0o700, "", "")
        .file("etc/hosts", "new")
        .entry(EntryType::Regular, "etc/suid", 0o4755, "s", "")
        .entry(EntryType::Link, "etc/again", 0o644, "", "etc/suid")
        .file("etc/link", "a file now")
        .symlink("etc/to", "/nonexistent")
        .entry(EntryType::Fifo, "etc/fifo", 0o620, "", "")
        .file("/absolute", "inside")
        .file("new/without/folders", "n")
        .symlink("old", "etc")
        .records(&[("mtime", b"1600000000.25"), ("SCHILY.xattr.user.colour", b"blue"), ("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .file("etc/attributes", "a");
    layer.onto(root.path()).unwrap();
    assert_eq!((read(at("etc/hosts")), read(at("etc/passwd")), read(at("etc/link"))), ("new".into(), "root".into(), "a file now".into()));
    assert_eq!((read(at("absolute")), read(at("new/without/folders"))), ("inside".into(), "n".into()));
    let mode = |name: &str| at(name).symlink_metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("etc"), mode("etc/suid"), mode("etc/fifo"), mode("etc/hosts")), (0o700, 0o4755, 0o620, 0o644));
    assert!(at("etc/fifo").metadata().unwrap().file_type().is_fifo());
    assert_eq!(at("etc/again").metadata().unwrap().ino(), at("etc/suid").metadata().unwrap().ino());
    assert_eq!(fs::read_link(at("old")).unwrap(), Path::new("etc"), "a link takes a folder's place");
    for name in ["etc", "etc/suid", "etc/to"] {
        assert_eq!(at(name).symlink_metadata().unwrap().mtime(), 1_700_000_000, "{name}");
    }
    let found = at("etc/attributes").metadata().unwrap();
    assert_eq!((found.mtime(), found.mtime_nsec()), (1_600_000_000, 250_000_000));
    let mut value = [0; 8];
    // Some file systems have no attributes of users'.
    match rustix::fs::lgetxattr(at("etc/attributes"), "user.colour", &mut value[..]) {
        Ok(length) => assert_eq!(&value[..length], b"blue"),
        Err(error) => assert_eq!(error, rustix::io::Errno::NOTSUP),
    }
}

#[test]
fn whiteouts_take_away_what_the_image_has_and_not_what_the_layer_has() {
    let root = image();
    let at = |name: &str| root.path().join(name);
    let layer = Tar::new()
        .file(".wh.old", "")
        .file("etc/.wh.hosts", "")
        .file("etc/.wh.never-there", "")
        .folder("data")
        .file("data/upper", "u")
        .folder("data/sub")
        .file("data/sub/upper", "u")
        .file("data/.wh..wh..opq", "")
        .file("data/later", "u")
        .file("data/.wh.upper", "")
        .file("data/.wh..wh.plnk", "");
    layer.onto(root.path()).unwrap();
    assert!(!at("old").exists() && !at("etc/hosts").exists() && at("etc/passwd").exists());
    assert!(!at("data/lower").exists() && !at("data/sub/lower").exists());
    assert!(at("data/upper").exists() && at("data/sub/upper").exists() && at("data/later").exists());
    let whiteouts = fs::read_dir(at("data")).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().as_bytes().starts_with(WHITEOUT));
    assert_eq!(whiteouts.count(), 0);
}

#[test]
fn nothing_leads_out_of_the_root_folder() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("x"), "safe").unwrap();
    let out = outside.path().to_str().unwrap();
    let layers = [
        ("up", Tar::new().file("../x", "bad")),
        ("up within", Tar::new().file("etc/../../x", "bad")),
        ("a link, then through it", Tar::new().symlink("way", out).file("way/x", "bad")),
        ("a whiteout through a link", Tar::new().symlink("way", out).file("way/.wh.x", "")),
        ("opaque through a link", Tar::new().symlink("way", out).file("way/.wh..wh..opq", "")),
        ("a hard link through a link", Tar::new().symlink("way", out).entry(EntryType::Link, "got", 0o644, "", "way/x")),
        ("a hard link up", Tar::new().entry(EntryType::Link, "got", 0o644, "", "../../../etc/passwd")),
        ("a whiteout of the folder above", Tar::new().file("etc/.wh...", "")),
        ("the root as a file", Tar::new().file("./", "bad")),
        ("a kind that is none", Tar::new().entry(EntryType::new(b'V'), "x", 0o644, "", "")),
    ];
    for (what, layer) in layers {
        let root = image();
        assert_eq!(layer.onto(root.path()).map_err(|error| error.kind()), Err(io::ErrorKind::InvalidData), "{what}");
        assert_eq!(read(outside.path().join("x")), "safe", "{what}");
    }
}

#[test]
fn what_replaces_a_link_does_not_follow_it() {
    let (root, outside) = (image(), tempfile::tempdir().unwrap());
    let out = outside.path().to_str().unwrap();
    fs::write(outside.path().join("x"), "safe").unwrap();
    let there = |name: &str| format!("{out}/{name}");
    let layer = Tar::new()
        .symlink("a", &there("x"))
        .file("a", "new")
        .symlink("b", out)
        .folder("b")
        .file("b/y", "y")
        .folder("c")
        .folder("c/d")
        .symlink("c", out);
    layer.onto(root.path()).unwrap();
    assert_eq!((read(outside.path().join("x")), read(root.path().join("b/y"))), ("safe".into(), "y".into()));
    assert!(!outside.path().join("y").exists());
}

#[test]
fn devices_are_made_or_it_is_an_error() {
    let root = image();
    let result = Tar::new().entry(EntryType::Char, "null", 0o666, "", "").onto(root.path());
    match result {
        Ok(()) => assert!(root.path().join("null").metadata().unwrap().file_type().is_char_device()),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
    }
}
