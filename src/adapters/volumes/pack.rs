//! From folders to a tar.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    io::{self, Read as _, Write},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};

use super::Volume;

/// Writes the tar of these volumes. The same content gives the same bytes.
pub(super) fn pack(volumes: &[Volume], out: &mut impl Write) -> io::Result<()> {
    let mut tar = Builder::new(out);
    for volume in volumes {
        let mut names = HashMap::new();
        // A program may have changed the owner or mode of the volume itself; databases do.
        add(&mut tar, Path::new(&volume.name), &fs::symlink_metadata(&volume.folder)?, EntryType::Directory, 0, &mut io::empty())?;
        add_folder(&mut tar, &volume.folder, Path::new(&volume.name), &mut names)?;
    }
    tar.finish()
}

/// Writes the tar of what an overlay has changed, as the layer of an image has it: whiteouts stand for what was removed (OCI image layer specification).
pub(super) fn pack_changes(upper: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut tar = Builder::new(out);
    add_folder(&mut tar, upper, Path::new(""), &mut HashMap::new())?;
    tar.finish()
}

/// Prefix of a file's name that stands for its absence.
const WHITEOUT: &str = ".wh.";
/// What says that a folder has nothing of the layers below.
const OPAQUE: &str = ".wh..wh..opq";

/// Whether an overlay shows nothing below this folder: it was removed and made anew (Linux, `Documentation/filesystems/overlayfs.rst`).
fn is_opaque(folder: &Path) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::lgetxattr(folder, "trusted.overlay.opaque", &mut value[..]).is_ok_and(|length| length == 1) && value == *b"y"
}

/// Whether an overlay marks a removed file by it: a character device 0/0.
fn is_whiteout(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}

/// Device and inode of a file that has several names → the first of them in the tar.
type Names = HashMap<(u64, u64), PathBuf>;

fn add_folder<W: Write>(tar: &mut Builder<W>, folder: &Path, name: &Path, names: &mut Names) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        let found = fs::symlink_metadata(&path)?;
        let kind = found.file_type();
        if kind.is_dir() {
            add(tar, &name, &found, EntryType::Directory, 0, &mut io::empty())?;
            if is_opaque(&path) {
                add(tar, &name.join(OPAQUE), &found, EntryType::Regular, 0, &mut io::empty())?;
            }
            add_folder(tar, &path, &name, names)?;
        } else if is_whiteout(&found) {
            let removed = name.with_file_name(format!("{WHITEOUT}{}", entry.file_name().to_string_lossy()));
            add(tar, &removed, &found, EntryType::Regular, 0, &mut io::empty())?;
        } else if found.nlink() > 1 && names.contains_key(&(found.dev(), found.ino())) {
            let mut header = header(&found, EntryType::Link, 0);
            tar.append_link(&mut header, &name, &names[&(found.dev(), found.ino())])?;
        } else {
            if kind.is_file() {
                add_file(tar, &path, &name, &found)?;
            } else if kind.is_symlink() {
                let mut header = header(&found, EntryType::Symlink, 0);
                tar.append_link(&mut header, &name, fs::read_link(&path)?)?;
            } else if kind.is_fifo() {
                add(tar, &name, &found, EntryType::Fifo, 0, &mut io::empty())?;
            } else {
                // A bound socket is made again by its own restore; devices are none of a volume's.
                tracing::debug!(path = %path.display(), "is neither a file, a link nor a FIFO; it is not carried");
                continue;
            }
            names.insert((found.dev(), found.ino()), name);
        }
    }
    Ok(())
}

fn add_file<W: Write>(tar: &mut Builder<W>, path: &Path, name: &Path, found: &Metadata) -> io::Result<()> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).map_err(io::Error::other)?;
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    // What the header says must come, whatever happens to the file.
    let mut content = file.take(found.len()).chain(io::repeat(0)).take(found.len());
    add(tar, name, found, EntryType::Regular, found.len(), &mut content)
}

fn add<W: Write>(tar: &mut Builder<W>, name: &Path, found: &Metadata, kind: EntryType, size: u64, content: &mut impl io::Read) -> io::Result<()> {
    let mut header = header(found, kind, size);
    tar.append_data(&mut header, name, content)
}

fn header(found: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(found.mode() & 0o7777);
    header.set_uid(found.uid().into());
    header.set_gid(found.gid().into());
    header.set_mtime(u64::try_from(found.mtime()).unwrap_or_default());
    header.set_size(size);
    header
}
