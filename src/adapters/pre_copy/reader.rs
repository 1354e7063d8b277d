//! Reads what CRIU would dump of the memory of a container's processes, while they run.
//!
//! Which pages these are is found out as CRIU does it (criu/mem.c, `should_dump_page`), but need not be exact: a page too many is sent for nothing, one too few
//! is sent with the dump.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, time::Instant};

use procfs::process::{MMPermissions, MMapPath, MemoryMap, MemoryPageFlags, PageInfo, PageMap, Process};

use crate::{
    domain::{
        memory::MemoryHasher,
        pages::{PAGE, PageIndex, hash_of},
    },
    runc::processes::of_container,
};

/// Pages that are looked at at once.
const WINDOW: usize = 64;
/// Bytes that are handed on at once.
const CHUNK: usize = WINDOW * PAGE;

/// What is read, and where it goes.
pub struct Reader<'r> {
    /// Bytes to read at most.
    pub most: u64,
    /// When to end, with what was read until then.
    pub until: Instant,
    /// Takes bytes; false where nobody wants more.
    pub give: &'r mut dyn FnMut(Vec<u8>) -> bool,
    /// The pages that were read.
    pub index: PageIndex,
    /// Of all that was handed on.
    pub digest: MemoryHasher,
    chunk: Vec<u8>,
    is_over: bool,
}

impl<'r> Reader<'r> {
    /// One that has read nothing yet.
    pub fn new(most: u64, until: Instant, give: &'r mut dyn FnMut(Vec<u8>) -> bool) -> Self {
        Self { most, until, give, index: PageIndex::default(), digest: MemoryHasher::default(), chunk: vec![], is_over: false }
    }

    /// Reads all processes in a container's cgroup. One that ends meanwhile is left out.
    ///
    /// # Errors
    /// Where the ID is none, or the processes cannot be listed.
    pub fn container(&mut self, id: &str) -> io::Result<()> {
        for pid in of_container(Path::new("/proc"), id)? {
            if let Err(error) = self.process(pid.as_raw_nonzero().get()) {
                tracing::debug!(%error, container = id, "a process was not read ahead");
            }
        }
        Ok(())
    }

    fn process(&mut self, pid: i32) -> io::Result<()> {
        let process = Process::new(pid).map_err(io::Error::other)?;
        let (maps, mut pages) = (process.smaps().map_err(io::Error::other)?, process.pagemap().map_err(io::Error::other)?);
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        // In CRIU's order, so that what has come needs not be brought into it: what a lazy restore needs at once, then the rest (criu/page-pipe.c).
        let (lazy, at_once): (Vec<_>, Vec<_>) = maps.iter().filter(|map| is_dumped(map)).partition(|map| can_be_lazy(map));
        for map in at_once.into_iter().chain(lazy) {
            self.mapping(map, &mut pages, &memory)?;
        }
        Ok(())
    }

    fn mapping(&mut self, map: &MemoryMap, pages: &mut PageMap, memory: &File) -> io::Result<()> {
        let size = procfs::page_size();
        let (is_private, is_whole) = (map.perms.contains(MMPermissions::PRIVATE), map.pathname == MMapPath::Vdso);
        let number = |address: u64| usize::try_from(address / size).map_err(io::Error::other);
        let (mut from, end) = (number(map.address.0)?, number(map.address.1)?);
        while from < end && !self.is_over() {
            let to = end.min(from + WINDOW);
            let found = pages.get_range_info(from..to).map_err(io::Error::other)?;
            let is_wanted: Vec<bool> = found.iter().map(|page| is_whole || is_written(page, is_private)).collect();
            let mut at = from as u64 * size;
            for run in is_wanted.chunk_by(|one, other| one == other) {
                let length = run.len() as u64 * size;
                if run[0] {
                    self.read(memory, at, length);
                }
                at += length;
            }
            from = to;
        }
        Ok(())
    }

    /// What cannot be read, such as memory of a device, is left out.
    fn read(&mut self, memory: &File, at: u64, length: u64) {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        if memory.read_exact_at(&mut bytes, at).is_err() {
            return;
        }
        for page in bytes.chunks_exact(PAGE) {
            let hash = hash_of(page);
            // Also where there is one like it: what has the order of CRIU's image already need not be brought into it.
            if self.index.add(hash) {
                self.digest.pages(&[hash]);
                self.chunk.extend_from_slice(page);
            }
        }
        if self.chunk.len() >= CHUNK {
            self.flush();
        }
    }

    /// Hands on what was read.
    pub fn flush(&mut self) {
        let chunk = std::mem::take(&mut self.chunk);
        if !chunk.is_empty() && !(self.give)(chunk) {
            self.is_over = true;
        }
    }

    fn is_over(&self) -> bool {
        self.is_over || self.index.bytes() >= self.most || Instant::now() > self.until
    }
}

/// Whether CRIU dumps pages of a mapping: what is private or nowhere but in memory, and is not the kernel's own.
fn is_dumped(map: &MemoryMap) -> bool {
    let is_private = map.perms.contains(MMPermissions::PRIVATE);
    if map.pathname == MMapPath::Vdso {
        return true;
    }
    let is_resident = map.extension.map.get("Rss").is_none_or(|bytes| *bytes > 0);
    let is_of_dump = match &map.pathname {
        MMapPath::Vvar | MMapPath::Vsyscall => false,
        MMapPath::Other(name) => !name.starts_with("vvar"),
        // Shared memory that has no file (mm/shmem.c, `shmem_zero_setup`), and that of memfd_create(2).
        MMapPath::Path(path) => is_private || path.starts_with("/dev/zero (deleted)") || path.to_string_lossy().starts_with("/memfd:"),
        _ => true,
    };
    is_resident && is_of_dump
}

/// Whether CRIU may restore pages of a mapping after the process runs: what is private and has no file (include/vma.h, `vma_entry_can_be_lazy`).
fn can_be_lazy(map: &MemoryMap) -> bool {
    map.perms.contains(MMPermissions::PRIVATE) && !matches!(map.pathname, MMapPath::Path(_) | MMapPath::Vdso)
}

/// Whether a page is there and, of a private mapping, no longer that of its file.
fn is_written(page: &PageInfo, is_private: bool) -> bool {
    match page {
        PageInfo::MemoryPage(page) => page.contains(MemoryPageFlags::PRESENT) && !(is_private && page.contains(MemoryPageFlags::FILE)),
        PageInfo::SwapPage(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of this very process, whose heap has these pages.
    fn read(most: u64, until: Instant) -> (Vec<u8>, PageIndex) {
        let mut pages = vec![];
        let mut give = |chunk: Vec<u8>| {
            pages.extend(chunk);
            true
        };
        let mut reader = Reader::new(most, until, &mut give);
        reader.process(std::process::id().try_into().unwrap()).unwrap();
        reader.flush();
        let index = reader.index;
        (pages, index)
    }

    fn soon() -> Instant {
        Instant::now() + std::time::Duration::from_mins(1)
    }

    #[test]
    fn what_a_process_has_written_is_read() {
        // Three whole pages of it, all alike, since none of it begins where a page does.
        let written: Vec<u8> = std::iter::repeat_n(*b"drover! ", 4 * PAGE / 8).flatten().collect();
        let (pages, index) = read(u64::MAX, soon());
        assert_eq!(pages.len() as u64, index.bytes());
        let page = &std::hint::black_box(&written)[..PAGE];
        // And in what it is read into, maybe.
        assert!(pages.chunks_exact(PAGE).filter(|found| *found == page).count() >= 3);
    }

    #[test]
    fn no_more_is_read_than_is_wanted() {
        assert!(read(PAGE as u64, soon()).0.len() <= 2 * CHUNK);
        assert!(read(u64::MAX, Instant::now().checked_sub(std::time::Duration::from_secs(1)).unwrap()).0.is_empty());
        let mut calls = 0;
        let mut nobody = |_| {
            calls += 1;
            false
        };
        let mut reader = Reader::new(u64::MAX, soon(), &mut nobody);
        reader.process(std::process::id().try_into().unwrap()).unwrap();
        assert_eq!(calls, 1);
    }

    #[test]
    fn an_id_that_is_none_is_refused() {
        assert!(Reader::new(1, soon(), &mut |_| true).container("1").is_err());
    }
}
