//! What CRIU says to its lazy-pages daemon while it restores (criu/uffd.c): for each process its ID, and a userfaultfd with a byte that means nothing; a
//! negative ID of a process that has ended, alone; and one word when all of them are about to run.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg};

/// No process ID is as large.
const FINISHED: u32 = 0x5253_5446;

/// From here on no descriptor is used by runc or CRIU for anything else by chance.
const DESCRIPTORS: i32 = 100;

/// A duplicate that whatever is started from now on has as well, by the same number.
pub(super) fn bequeath(descriptor: &impl AsFd) -> io::Result<OwnedFd> {
    let there = fcntl_dupfd_cloexec(descriptor, DESCRIPTORS)?;
    fcntl_setfd(&there, FdFlags::empty())?;
    Ok(there)
}

/// What was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// There is a process, with memory to come or without any.
    Process,
    /// All of them are there, and run from now on.
    Finished,
    /// Nothing more: CRIU has ended.
    End,
}

/// Takes what is said next, has a userfaultfd kept, and only then says it to the daemon, if any.
///
/// # Errors
/// Where it is no such word or the daemon does not take it. What was to be kept has been kept.
pub(super) fn relay(criu: &UnixStream, daemon: Option<&UnixStream>, keep: impl FnOnce(OwnedFd) -> io::Result<()>) -> io::Result<Word> {
    // Not a byte more at once: the ID and what follows it must not become one message, of which the daemon would lose the descriptor.
    let mut id = [0; 4];
    let mut filled = 0;
    while filled < id.len() {
        match take(criu, &mut id[filled..])?.0 {
            0 if filled == 0 => return Ok(Word::End),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => filled += bytes,
        }
    }
    let finished = u32::from_ne_bytes(id) == FINISHED;
    if finished || i32::from_ne_bytes(id) < 0 {
        daemon.map_or(Ok(()), |daemon| pass(daemon, &id, None))?;
        return Ok(if finished { Word::Finished } else { Word::Process });
    }
    let mut byte = [0];
    let (1, Some(descriptor)) = take(criu, &mut byte)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "CRIU has named a process without its userfaultfd"));
    };
    let for_daemon = descriptor.try_clone();
    keep(descriptor)?;
    let for_daemon = for_daemon?;
    if let Some(daemon) = daemon {
        pass(daemon, &id, None)?;
        pass(daemon, &byte, Some(&for_daemon))?;
    }
    Ok(Word::Process)
}

fn take(from: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let read = recvmsg(from, &mut [IoSliceMut::new(bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let descriptors = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((read, descriptors.flatten().next()))
}

fn pass(to: &UnixStream, bytes: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.iter().map(|descriptor| descriptor.as_fd()).collect();
    if !descriptors.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let sent = sendmsg(to, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        fs::File,
        io::Write as _,
        sync::{Mutex, MutexGuard, PoisonError},
    };

    use super::*;

    /// Programs that are started at once would each have what was meant for the other, and wait for its end.
    pub(in crate::runc) fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As CRIU does it.
    pub(in crate::runc) fn send_process(to: &UnixStream, id: i32, descriptor: &OwnedFd) {
        pass(to, &id.to_ne_bytes(), None).unwrap();
        pass(to, &[0], Some(descriptor)).unwrap();
    }

    /// The last word.
    pub(in crate::runc) fn send_finished(to: &UnixStream) {
        pass(to, &FINISHED.to_ne_bytes(), None).unwrap();
    }

    #[test]
    fn each_word_is_passed_on_as_it_came_and_descriptors_are_kept_first() {
        let (criu, from) = UnixStream::pair().unwrap();
        let (to, daemon) = UnixStream::pair().unwrap();
        send_process(&criu, 7, &File::open("/dev/null").unwrap().into());
        pass(&criu, &(-9_i32).to_ne_bytes(), None).unwrap();
        send_finished(&criu);
        drop(criu);
        let mut kept = vec![];
        let mut words = vec![];
        while words.last() != Some(&Word::End) {
            words.push(
                relay(&from, Some(&to), |descriptor| {
                    kept.push(descriptor);
                    Ok(())
                })
                .unwrap(),
            );
        }
        assert_eq!((words, kept.len()), (vec![Word::Process, Word::Process, Word::Finished, Word::End], 1));
        // As the daemon reads it: whatever came with the first four bytes would be lost.
        let mut id = [0; 4];
        assert!(matches!(take(&daemon, &mut id).unwrap(), (4, None)));
        assert_eq!(i32::from_ne_bytes(id), 7);
        assert!(matches!(take(&daemon, &mut [0]).unwrap(), (1, Some(_))));
        assert!(matches!(take(&daemon, &mut id).unwrap(), (4, None)));
        assert_eq!(i32::from_ne_bytes(id), -9);
        assert!(matches!(take(&daemon, &mut id).unwrap(), (4, None)));
        assert_eq!(u32::from_ne_bytes(id), FINISHED);
    }

    #[test]
    fn a_daemon_that_is_gone_is_an_error_after_the_descriptor_is_kept() {
        let (criu, from) = UnixStream::pair().unwrap();
        let (to, daemon) = UnixStream::pair().unwrap();
        drop(daemon);
        send_process(&criu, 7, &File::open("/dev/null").unwrap().into());
        let mut kept = None;
        let relayed = relay(&from, Some(&to), |descriptor| {
            kept = Some(descriptor);
            Ok(())
        });
        assert!(relayed.is_err() && kept.is_some());
        (&criu).write_all(&[1, 2]).unwrap();
        drop(criu);
        assert!(relay(&from, None, |_| Ok(())).is_err(), "a word that is cut off");
    }
}
