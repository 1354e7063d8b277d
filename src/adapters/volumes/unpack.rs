//! From a tar to folders.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{PermissionsExt as _, chown, fchown, lchown, symlink},
    path::{Component, Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use rustix::fs::{CWD, FileType, Mode};
use tar::{Archive, Entry, EntryType};

use super::Volume;

/// A stretch of zeros as long as this becomes a hole: a shared segment of a gibibyte of which a page is used takes a page again. The unit is the page's.
const HOLE: usize = 4096;

/// Empties these folders, and fills them from a tar of [`super::pack`].
///
/// # Errors
/// `InvalidData` for an entry that no such tar has; else what the file system says. Afterwards the folders hold a part of it.
pub fn unpack(tar: impl Read, volumes: &[Volume]) -> io::Result<()> {
    for volume in volumes {
        empty(&volume.folder)?;
    }
    let mut made = Made { volumes, folders: HashSet::new(), files: HashSet::new() };
    for entry in Archive::new(tar).entries()? {
        made.add(&mut entry?)?;
    }
    Ok(())
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

/// What has been made so far. Only in these folders anything is made, so no link of the tar is ever followed.
struct Made<'a> {
    volumes: &'a [Volume],
    folders: HashSet<PathBuf>,
    files: HashSet<PathBuf>,
}

impl Made<'_> {
    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let name = entry.path()?.into_owned();
        let header = entry.header();
        let modified = UNIX_EPOCH + Duration::from_secs(header.mtime()?);
        let mode = Permissions::from_mode(header.mode()? & 0o7777);
        let itself = self.volumes.iter().find(|volume| name == Path::new(&volume.name)).filter(|_| header.entry_type() == EntryType::Directory);
        let path = itself.map_or_else(|| self.place(&name), |volume| Ok(volume.folder.clone()))?;
        let id = |id: u64| u32::try_from(id).map_err(|_| wrong(&path, "has an owner that is no number of 32 bits"));
        let (uid, gid) = (Some(id(header.uid()?)?), Some(id(header.gid()?)?));
        match header.entry_type() {
            EntryType::Directory => {
                if itself.is_none() {
                    fs::create_dir(&path)?;
                }
                // Whose group one is not, one cannot make a folder's to inherit; as one's own it keeps that when it is given away.
                chown(&path, Some(0), Some(0))?;
                fs::set_permissions(&path, mode)?;
                chown(&path, uid, gid)?;
                self.folders.insert(path);
            }
            EntryType::Regular => {
                let size = header.size()?;
                let mut file = File::options().write(true).create_new(true).open(&path)?;
                write(entry, &mut file)?;
                file.set_len(size)?;
                // Before the owner changes: then it may not be done any more.
                file.set_permissions(mode)?;
                file.set_modified(modified)?;
                fchown(&file, uid, gid)?;
                self.files.insert(path);
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| wrong(&path, "is a link to nothing"))?;
                symlink(target, &path)?;
                lchown(&path, uid, gid)?;
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(|| wrong(&path, "is a link to nothing"))?;
                let target = self.place(&target)?;
                if !self.files.contains(&target) {
                    return Err(wrong(&path, "is another name of a file that is not there"));
                }
                fs::hard_link(target, &path)?;
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
                fs::set_permissions(&path, mode)?;
                chown(&path, uid, gid)?;
                self.files.insert(path);
            }
            _ => return Err(wrong(&path, "is of a kind that is not carried")),
        }
        Ok(())
    }

    /// Where an entry belongs: into its volume's folder, or into one below it that has been made.
    fn place(&self, name: &Path) -> io::Result<PathBuf> {
        let parts: Option<Vec<&OsStr>> = name.components().map(|part| if let Component::Normal(part) = part { Some(part) } else { None }).collect();
        let parts = parts.ok_or_else(|| wrong(name, "leads out of its volume"))?;
        let [volume, inside @ .., last] = parts.as_slice() else { return Err(wrong(name, "is in no volume")) };
        let volume = self.volumes.iter().find(|known| *volume == known.name.as_str()).ok_or_else(|| wrong(name, "is in no volume that is known"))?;
        let mut folder = volume.folder.clone();
        folder.extend(inside);
        if folder != volume.folder && !self.folders.contains(&folder) {
            return Err(wrong(name, "is in a folder that was not made before it"));
        }
        Ok(folder.join(last))
    }
}

/// Writes an entry's content, leaving holes where it has nothing but zeros.
fn write(content: &mut impl Read, file: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; super::CHUNK];
    loop {
        let filled = fill(content, &mut buffer)?;
        if filled == 0 {
            return Ok(());
        }
        for page in buffer[..filled].chunks(HOLE) {
            if page.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(i64::try_from(page.len()).map_err(io::Error::other)?))?;
            } else {
                file.write_all(page)?;
            }
        }
    }
}

/// Reads until the buffer is full or the content ends, so that pages stay aligned.
fn fill(content: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match content.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn wrong(path: &Path, problem: &str) -> io::Error {
    let shown: String = path.to_string_lossy().chars().take(80).collect();
    io::Error::new(io::ErrorKind::InvalidData, format!("the entry {shown:?} {problem}"))
}
