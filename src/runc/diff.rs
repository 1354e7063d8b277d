//! Applies an OCI layer to a container's root folder: what has changed there since its image.
//!
//! The tar is the source node's, and its entries are the workload's own: nothing in it is trusted. The process that unpacks it has the folder for
//! its root, and no entry is put through a link.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read},
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use tar::{Archive, Entry, EntryType};

/// A name that begins so says that the rest of it is gone.
const WHITEOUT: &[u8] = b".wh.";
/// In a folder: nothing is left of what the image has there.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of AUFS's own, of no meaning here.
const AUFS: &[u8] = b".wh..wh.";
/// How PAX records name extended attributes.
const ATTRIBUTE: &str = "SCHILY.xattr.";
/// Attributes of the file system below, not of the file: overlayfs keeps its own there.
const TRUSTED: &str = "trusted.";

/// Makes `root` this process's root folder, and applies a layer to it.
///
/// # Errors
/// As [`apply`]; also where the root cannot be changed, which takes `CAP_SYS_CHROOT`.
pub(super) fn apply_inside(root: &Path, tar: impl Read) -> io::Result<()> {
    rustix::process::chroot(root)?;
    rustix::process::chdir("/")?;
    apply(Path::new("."), tar)
}

/// Applies a layer to a folder.
///
/// # Errors
/// `InvalidData` for an entry that leads out of the folder or is of an unknown kind; else what the file system says. The folder then has a part of it.
pub(crate) fn apply(root: &Path, tar: impl Read) -> io::Result<()> {
    let mut layer = Layer { root, made: BTreeSet::new(), folders: BTreeMap::new() };
    for entry in Archive::new(tar).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        layer.add(&name, &mut entry).map_err(|error| io::Error::new(error.kind(), format!("the entry {:?}: {error}", shown(&name))))?;
    }
    // What is put into a folder changes its time.
    for (folder, times) in &layer.folders {
        rustix::fs::utimensat(CWD, folder, times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

struct Layer<'a> {
    root: &'a Path,
    /// What this layer has put there, and the folders above it.
    made: BTreeSet<PathBuf>,
    folders: BTreeMap<PathBuf, Timestamps>,
}

impl Layer<'_> {
    fn add<R: Read>(&mut self, name: &Path, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = self.place(name)?;
        let last = path.file_name().unwrap_or_default().as_bytes();
        if path != self.root && last.starts_with(WHITEOUT) {
            return self.without(&path, last);
        }
        let inner = Inner::of(entry)?;
        self.replace(&path, kind, entry)?;
        inner.set_on(&path, kind)?;
        if kind == EntryType::Directory {
            self.folders.insert(path.clone(), inner.times.clone());
        }
        self.made.insert(path);
        Ok(())
    }

    /// Where an entry belongs; the folders above it are there afterwards, and none of them is a link.
    fn place(&mut self, name: &Path) -> io::Result<PathBuf> {
        let mut parts: Vec<&OsStr> = vec![];
        for part in name.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(wrong("leads out of the root folder")),
            }
        }
        let mut path = self.root.to_owned();
        let Some((last, above)) = parts.split_last() else { return Ok(path) };
        for part in above {
            path.push(part);
            match path.symlink_metadata() {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(wrong("is below what is no folder")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(&path)?,
                Err(error) => return Err(error),
            }
            self.made.insert(path.clone());
        }
        Ok(path.join(last))
    }

    fn without(&self, path: &Path, last: &[u8]) -> io::Result<()> {
        let folder = path.parent().unwrap_or(self.root);
        if last == OPAQUE {
            return self.empty(folder);
        }
        if last.starts_with(AUFS) {
            return Ok(());
        }
        let rest = &last[WHITEOUT.len()..];
        if rest.is_empty() || rest == b"." || rest == b".." {
            return Err(wrong("takes nothing away"));
        }
        let gone = folder.join(OsStr::from_bytes(rest));
        // A whiteout is about what lies below the layer, not about what the layer has itself.
        match gone.symlink_metadata() {
            Ok(found) if !self.made.contains(&gone) => remove(&gone, found.is_dir()),
            Ok(found) if found.is_dir() => self.empty(&gone),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes from a folder, and from those in it, what this layer has not put there.
    fn empty(&self, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, is_folder) = (entry.path(), entry.file_type()?.is_dir());
            match (self.made.contains(&path), is_folder) {
                (false, _) => remove(&path, is_folder)?,
                (true, true) => self.empty(&path)?,
                (true, false) => {}
            }
        }
        Ok(())
    }

    /// Makes what the entry is in the place of what is there; a folder that is there stays.
    fn replace<R: Read>(&mut self, path: &Path, kind: EntryType, entry: &mut Entry<'_, R>) -> io::Result<()> {
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() && kind == EntryType::Directory => return Ok(()),
            Ok(_) if path == self.root => return Err(wrong("is the root folder, but no folder")),
            Ok(found) => {
                remove(path, found.is_dir())?;
                // By these names there may soon be something else.
                self.folders.retain(|folder, _| !folder.starts_with(path));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let node = |kind, device| rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device).map_err(io::Error::from);
        match kind {
            EntryType::Directory => fs::create_dir(path),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = File::options().write(true).create_new(true).open(path)?;
                io::copy(entry, &mut file).map(|_| ())
            }
            EntryType::Symlink => symlink(link_of(entry)?, path),
            EntryType::Link => {
                let target = self.place(Path::new(&link_of(entry)?))?;
                fs::hard_link(target, path)
            }
            EntryType::Fifo => node(FileType::Fifo, 0),
            EntryType::Char | EntryType::Block => {
                let (major, minor) = (entry.header().device_major()?, entry.header().device_minor()?);
                let device = rustix::fs::makedev(major.unwrap_or_default(), minor.unwrap_or_default());
                node(if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice }, device)
            }
            _ => Err(wrong("is of a kind that no layer has")),
        }
    }
}

/// What an inode has beside its content.
struct Inner {
    owner: (Uid, Gid),
    mode: u32,
    times: Timestamps,
    attributes: Vec<(OsString, Vec<u8>)>,
}

impl Inner {
    fn of<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Self> {
        let header = entry.header();
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| wrong("has an owner that is none"));
        let owner = (Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?));
        let mode = header.mode()? & 0o7777;
        let mut modified = Timespec { tv_sec: i64::try_from(header.mtime()?).map_err(io::Error::other)?, tv_nsec: 0 };
        let mut attributes = vec![];
        for record in entry.pax_extensions()?.into_iter().flatten() {
            let record = record?;
            let Ok(key) = record.key() else { continue };
            if key == "mtime" {
                modified = record.value().ok().and_then(time_in).ok_or_else(|| wrong("has a time that is none"))?;
            } else if let Some(name) = key.strip_prefix(ATTRIBUTE).filter(|name| !name.starts_with(TRUSTED)) {
                attributes.push((name.into(), record.value_bytes().to_owned()));
            }
        }
        Ok(Self { owner, mode, times: Timestamps { last_access: modified, last_modification: modified }, attributes })
    }

    /// The owner first: whoever changes it takes the setuid bit and the capabilities away.
    fn set_on(&self, path: &Path, kind: EntryType) -> io::Result<()> {
        // A hard link has its inode's, which its first name has set.
        if kind == EntryType::Link {
            return Ok(());
        }
        rustix::fs::chownat(CWD, path, Some(self.owner.0), Some(self.owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != EntryType::Symlink {
            rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        }
        for (name, value) in &self.attributes {
            match rustix::fs::lsetxattr(path, name.as_os_str(), value, XattrFlags::empty()) {
                // A file system without attributes has had none to lose; containerd leaves them out there as well.
                Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        rustix::fs::utimensat(CWD, path, &self.times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }
}

/// `1700000000.25` of a PAX record.
fn time_in(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse::<u32>().ok()?;
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanoseconds.into() })
}

fn link_of<R: Read>(entry: &Entry<'_, R>) -> io::Result<PathBuf> {
    Ok(entry.link_name()?.ok_or_else(|| wrong("is a link to nothing"))?.into_owned())
}

fn remove(path: &Path, is_folder: bool) -> io::Result<()> {
    if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn shown(name: &Path) -> String {
    name.to_string_lossy().chars().take(80).collect()
}

fn wrong(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it {problem}"))
}

#[cfg(test)]
mod tests;
