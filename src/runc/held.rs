//! The userfaultfds that a keeper holds beside the lazy-pages daemon. A process that reads a page which has not come blocks as long as anybody holds its
//! userfaultfd, and reads zeros as soon as nobody does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{OwnedFd, RawFd},
    path::Path,
};

use rustix::{
    fs::fstat,
    io::Errno,
    process::{PidfdGetfdFlags, pidfd_getfd},
};

/// What /proc shows of one.
const USERFAULTFD: &str = "anon_inode:[userfaultfd]";

/// Those that are held, by their inode, which is another one for each (Linux 5.12).
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<u64, One>);

#[derive(Debug)]
struct One {
    _descriptor: OwnedFd,
    /// The daemon was seen to have it.
    is_seen: bool,
}

impl Held {
    /// Holds one that the daemon is about to get.
    pub(super) fn add(&mut self, descriptor: OwnedFd) -> io::Result<()> {
        let inode = fstat(&descriptor)?.st_ino;
        self.0.insert(inode, One { _descriptor: descriptor, is_seen: false });
        Ok(())
    }

    /// Takes from the daemon those that are not held yet, and gives up those that it has closed, since a process of which all pages have come would
    /// otherwise wait for someone to serve it.
    ///
    /// # Errors
    /// Where the daemon's descriptors cannot be read. One that ends meanwhile changes nothing.
    pub(super) fn follow(&mut self, daemon: &OwnedFd, descriptors: &Path) -> io::Result<()> {
        let mut listed = BTreeSet::new();
        for entry in fs::read_dir(descriptors)? {
            let entry = entry?;
            let is_one = fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == USERFAULTFD);
            let Some(number) = entry.file_name().to_str().filter(|_| is_one).and_then(|name| name.parse::<RawFd>().ok()) else { continue };
            match pidfd_getfd(daemon, number, PidfdGetfdFlags::empty()) {
                Ok(descriptor) => {
                    let inode = fstat(&descriptor)?.st_ino;
                    listed.insert(inode);
                    self.0.entry(inode).or_insert(One { _descriptor: descriptor, is_seen: true }).is_seen = true;
                }
                Err(Errno::BADF) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The list of one that is ending is cut short, and says nothing of what it had. Its first descriptor is there to the last.
        if pidfd_getfd(daemon, 0, PidfdGetfdFlags::empty()).is_ok() {
            self.0.retain(|inode, one| !one.is_seen || listed.contains(inode));
        }
        Ok(())
    }
}
