//! Folders for the memory of processes: in the node's memory where there is room for it, and nobody else's to read.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

/// What stays free of the node's memory besides a checkpoint and the processes that are restored from it, in bytes.
const SPARE: u64 = 256 << 20;

/// Whether the file system of a folder, which is in memory, has room for so many bytes, and the node's memory for twice as many.
pub(super) fn has_room(folder: &Path, bytes: u64) -> bool {
    room(folder) > bytes
}

/// For how many bytes there is room: 0 where that cannot be found out.
pub(super) fn room(folder: &Path) -> u64 {
    let free = rustix::fs::statvfs(folder).map(|found| found.f_bavail.saturating_mul(found.f_frsize)).unwrap_or_default();
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text)).unwrap_or_default();
    free.min(available.saturating_sub(SPARE) / 2)
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn mem_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// A path of the node whose root is at `node`, as this process sees it.
pub(super) fn seen(node: &Path, path: &Path) -> PathBuf {
    node.join(path.strip_prefix("/").unwrap_or(path))
}

/// Makes a folder, with those above it, that nobody else may look into.
pub(super) fn make_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Removes whatever is there; nothing happens where nothing is. A link is not followed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        assert_eq!(mem_available("MemTotal: 10 kB\nMemAvailable:     2048 kB\n"), Some(2 << 20));
        assert_eq!(mem_available("MemTotal: 10 kB\n"), None);
    }
}
