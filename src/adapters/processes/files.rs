//! What one process has open and mapped.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::OFlags;

use super::{is_gone, mounts::Mounts};
use crate::domain::processes::{Deleted, Device, Mapping, OpenFile};

/// What the kernel adds to the name of a file that has lost it.
const DELETED: &str = " (deleted)";

/// Names of what is memory, not a file: CRIU knows it by other means.
const MEMORY: [&str; 5] = ["/memfd:", "/dev/zero (deleted)", "/SYSV", "/[aio]", "/anon_hugepage"];

/// `f_type` of the message queues' file system (`MQUEUE_MAGIC`).
const MQUEUE_MAGIC: i64 = 0x1980_0202;

/// An SQLite file begins with this; its bytes 18 and 19 are 1 for a rollback journal, 2 for WAL (SQLite's file format, 1.3).
const SQLITE: &[u8] = b"SQLite format 3\0";

/// Every open file of the process below `/proc/PID`.
pub(super) fn open_files(process: &Path, mounts: &Mounts) -> io::Result<Vec<OpenFile>> {
    let mut files = vec![];
    for entry in fs::read_dir(process.join("fd"))? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        match open_file(process, fd, mounts) {
            Ok(file) => files.push(file),
            // Closed in between.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    files.sort_by_key(|file| file.fd);
    Ok(files)
}

fn open_file(process: &Path, fd: i32, mounts: &Mounts) -> io::Result<OpenFile> {
    let link = process.join("fd").join(fd.to_string());
    let target = fs::read_link(&link)?.to_string_lossy().into_owned();
    let mut file = OpenFile { fd, target, ..OpenFile::default() };
    if file.target.starts_with("socket:") {
        file.protocol = protocol(&link);
    } else if file.target == "anon_inode:inotify" {
        let info = FdInfo::read(process, fd)?;
        file.unseen_watches = info.watches.iter().filter(|watch| mounts.is_unseen(watch.0, watch.1)).count();
    } else if file.target.starts_with('/') && !is_memory(&file.target) {
        on_a_mount(&mut file, &link, process, mounts)?;
    }
    Ok(file)
}

fn is_memory(target: &str) -> bool {
    MEMORY.iter().any(|prefix| target.starts_with(prefix))
}

/// The kernel's name of a socket's protocol, as the extended attribute that every socket has tells it.
fn protocol(link: &Path) -> Option<String> {
    let mut name = [0; 64];
    let length = rustix::fs::getxattr(link, "system.sockprotoname", name.as_mut_slice()).ok()?;
    Some(String::from_utf8_lossy(&name[..length]).trim_end_matches('\0').to_owned())
}

fn on_a_mount(file: &mut OpenFile, link: &Path, process: &Path, mounts: &Mounts) -> io::Result<()> {
    let info = FdInfo::read(process, file.fd)?;
    let mount = mounts.by_id(info.mount);
    if mount.is_some_and(|mount| mount.may_hang) {
        return Ok(());
    }
    file.image_volume = mount.filter(|mount| mount.is_image_volume).map(|mount| mount.point.clone());
    let found = fs::metadata(link)?;
    if mount.is_none() {
        file.message_queue = rustix::fs::statfs(link).is_ok_and(|fs| fs.f_type == MQUEUE_MAGIC);
        file.outside = true;
    }
    let kind = found.file_type();
    if kind.is_block_device() || kind.is_char_device() {
        let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        file.device = Some(Device { major, minor, block: kind.is_block_device() });
    } else if kind.is_file() {
        file.deleted = deleted(&file.target, &found, process);
        file.rollback_journal = info.writes && file.deleted.is_none() && has_rollback_journal(link, &found);
    }
    Ok(())
}

/// A file may also be called so by its owner: then it is found under that name.
fn deleted(target: &str, found: &fs::Metadata, process: &Path) -> Option<Deleted> {
    target.strip_suffix(DELETED)?;
    let named = fs::symlink_metadata(process.join("root").join(target.trim_start_matches('/')));
    let is_its_name = named.is_ok_and(|named| named.ino() == found.ino() && named.dev() == found.dev());
    (!is_its_name).then(|| Deleted { links: found.nlink(), bytes: found.len() })
}

/// Opened without waiting, since it may have become a FIFO in between.
fn has_rollback_journal(link: &Path, found: &fs::Metadata) -> bool {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
    let mut head = [0; 20];
    found.len() >= 100
        && fs::OpenOptions::new().read(true).custom_flags(flags).open(link).and_then(|mut file| file.read_exact(&mut head)).is_ok()
        && head.starts_with(SQLITE)
        && head[18..] == [1, 1]
}

/// What `/proc/PID/fdinfo/N` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct FdInfo {
    mount: i32,
    writes: bool,
    /// Inotify: device and inode of each watch.
    watches: Vec<(u64, u64)>,
}

impl FdInfo {
    fn read(process: &Path, fd: i32) -> io::Result<Self> {
        fs::read_to_string(process.join("fdinfo").join(fd.to_string())).map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for line in text.lines() {
            if let Some(id) = line.strip_prefix("mnt_id:") {
                info.mount = id.trim().parse().unwrap_or_default();
            } else if let Some(flags) = line.strip_prefix("flags:") {
                // In octal; the lowest two bits are O_RDONLY, O_WRONLY, O_RDWR.
                info.writes = u32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| flags & 3 != 0);
            } else if let Some(watch) = line.strip_prefix("inotify ") {
                let hex = |name: &str| watch.split(' ').find_map(|part| u64::from_str_radix(part.strip_prefix(name)?, 16).ok());
                info.watches.extend(hex("sdev:").zip(hex("ino:")));
            }
        }
        info
    }
}

/// Those mappings of the process below `/proc/PID` that are neither plain files nor memory.
pub(super) fn mappings(process: &Path) -> io::Result<Vec<Mapping>> {
    let text = fs::read(process.join("maps"))?;
    let mut found: Vec<Mapping> = vec![];
    for line in String::from_utf8_lossy(&text).lines() {
        // Address, permissions, offset, device, inode, name.
        let mut parts = line.splitn(6, ' ');
        let (Some(range), Some(name)) = (parts.next(), parts.nth(4)) else { continue };
        let (target, is_anonymous) = (name.trim_start(), name.trim_start().starts_with("anon_inode:"));
        if !is_anonymous && (!target.ends_with(DELETED) || is_memory(target)) || found.iter().any(|other| other.target == target) {
            continue;
        }
        let start = range.split('-').next().unwrap_or_default().to_owned();
        // The link's name has no leading zeros.
        let link: Vec<&str> = range.split('-').map(|end| end.trim_start_matches('0')).collect();
        let file = if is_anonymous { None } else { fs::metadata(process.join("map_files").join(link.join("-"))).ok() };
        let deleted = file.filter(fs::Metadata::is_file).map(|file| Deleted { links: file.nlink(), bytes: file.len() });
        found.push(Mapping { start, target: target.to_owned(), deleted });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_is_read_as_the_kernel_writes_it() {
        let text = "pos:\t0\nflags:\t02004002\nmnt_id:\t15\nino:\t1057\ninotify wd:2 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d\n";
        assert_eq!(FdInfo::parse(text), FdInfo { mount: 15, writes: true, watches: vec![(0x80_0013, 0x9e7e)] });
        assert_eq!(FdInfo::parse("flags:\t0100000\n"), FdInfo::default());
    }
}
