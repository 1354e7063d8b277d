//! From folders to a tar.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, Metadata},
    io::{self, Read as _, Write},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, io::Errno};
use tar::{Builder, EntryType, Header};

use super::Volume;

/// Writes the tar of these volumes. The same content gives the same bytes.
pub(super) fn pack(volumes: &[Volume], out: &mut impl Write) -> io::Result<()> {
    let mut packing = Packing { tar: Builder::new(out), names: Names::new(), is_layer: false };
    for volume in volumes {
        packing.names.clear();
        // A program may have changed the owner or mode of the volume itself; databases do.
        packing.add(Path::new(&volume.name), &fs::symlink_metadata(&volume.folder)?, EntryType::Directory, 0, &mut io::empty())?;
        packing.add_folder(&volume.folder, Path::new(&volume.name))?;
    }
    packing.tar.finish()
}

/// Writes the tar of what an overlay has changed, as the layer of an image has it: whiteouts stand for what was removed (OCI image layer specification).
pub(super) fn pack_changes(upper: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut packing = Packing { tar: Builder::new(out), names: Names::new(), is_layer: true };
    packing.add_folder(upper, Path::new(""))?;
    packing.tar.finish()
}

/// Prefix of a file's name that stands for its absence.
const WHITEOUT: &str = ".wh.";
/// What says that a folder has nothing of the layers below.
const OPAQUE: &str = ".wh..wh..opq";
/// What a program may do that others may not. The one attribute that layers have, as containerd writes them.
const CAPABILITY: &str = "security.capability";
/// How PAX records name it.
const CAPABILITY_RECORD: &str = "SCHILY.xattr.security.capability";

/// Whether an overlay shows nothing below this folder: it was removed and made anew (Linux, `Documentation/filesystems/overlayfs.rst`).
fn is_opaque(folder: &Path) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::lgetxattr(folder, "trusted.overlay.opaque", &mut value[..]).is_ok_and(|length| length == 1) && value == *b"y"
}

/// Whether an overlay marks a removed file by it: a character device 0/0.
fn is_whiteout(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}

/// An overlay may keep a folder that was renamed, or a file whose mode alone was changed, without what is in it (`redirect_dir`, `metacopy`). A layer cannot say so.
fn is_whole(path: &Path) -> io::Result<()> {
    let has = |attribute: &str| rustix::fs::lgetxattr_query(path, attribute).is_ok();
    if has("trusted.overlay.redirect") || has("trusted.overlay.metacopy") {
        let problem = format!("{} has its content elsewhere (redirect_dir or metacopy of overlayfs): it cannot be carried", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(())
}

/// Device and inode of a file that has several names → the first of them in the tar.
type Names = HashMap<(u64, u64), PathBuf>;

struct Packing<W: Write> {
    tar: Builder<W>,
    names: Names,
    /// Of an overlay's changes. In a volume a pod may have an overlay of its own, whose marks mean nothing here.
    is_layer: bool,
}

impl<W: Write> Packing<W> {
    fn add_folder(&mut self, folder: &Path, name: &Path) -> io::Result<()> {
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            let found = fs::symlink_metadata(&path)?;
            if self.is_layer && is_whiteout(&found) {
                let mut removed = OsString::from(WHITEOUT);
                removed.push(entry.file_name());
                self.add(&name.with_file_name(removed), &found, EntryType::Regular, 0, &mut io::empty())?;
                continue;
            }
            if self.is_layer {
                is_whole(&path)?;
            }
            if found.is_dir() {
                self.add(&name, &found, EntryType::Directory, 0, &mut io::empty())?;
                if self.is_layer && is_opaque(&path) {
                    self.add(&name.join(OPAQUE), &found, EntryType::Regular, 0, &mut io::empty())?;
                }
                self.add_folder(&path, &name)?;
            } else {
                self.add_other(&path, name, &found)?;
            }
        }
        Ok(())
    }

    fn add_other(&mut self, path: &Path, name: PathBuf, found: &Metadata) -> io::Result<()> {
        let (kind, inode) = (found.file_type(), (found.dev(), found.ino()));
        if found.nlink() > 1
            && let Some(first) = self.names.get(&inode)
        {
            return self.tar.append_link(&mut header(found, EntryType::Link, 0), &name, first);
        }
        if kind.is_file() {
            if self.is_layer {
                self.add_capability(path)?;
            }
            self.add_file(path, &name, found)?;
        } else if kind.is_symlink() {
            self.tar.append_link(&mut header(found, EntryType::Symlink, 0), &name, fs::read_link(path)?)?;
        } else if kind.is_fifo() {
            self.add(&name, found, EntryType::Fifo, 0, &mut io::empty())?;
        } else if self.is_layer && (kind.is_char_device() || kind.is_block_device()) {
            let mut header = header(found, if kind.is_char_device() { EntryType::Char } else { EntryType::Block }, 0);
            header.set_device_major(rustix::fs::major(found.rdev()))?;
            header.set_device_minor(rustix::fs::minor(found.rdev()))?;
            self.tar.append_data(&mut header, &name, io::empty())?;
        } else {
            // A bound socket is made again by its own restore; devices are none of a volume's.
            tracing::debug!(path = %path.display(), "is neither a file, a link nor a FIFO; it is not carried");
            return Ok(());
        }
        self.names.insert(inode, name);
        Ok(())
    }

    /// Stands before its file.
    fn add_capability(&mut self, path: &Path) -> io::Result<()> {
        let mut value = [0_u8; 64];
        match rustix::fs::lgetxattr(path, CAPABILITY, &mut value[..]) {
            Ok(length) => self.tar.append_pax_extensions([(CAPABILITY_RECORD, &value[..length])]),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn add_file(&mut self, path: &Path, name: &Path, found: &Metadata) -> io::Result<()> {
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).map_err(io::Error::other)?;
        let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
        // What the header says must come, whatever happens to the file.
        let mut content = file.take(found.len()).chain(io::repeat(0)).take(found.len());
        self.add(name, found, EntryType::Regular, found.len(), &mut content)
    }

    fn add(&mut self, name: &Path, found: &Metadata, kind: EntryType, size: u64, content: &mut impl io::Read) -> io::Result<()> {
        let mut header = header(found, kind, size);
        self.tar.append_data(&mut header, name, content)
    }
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
