//! What passes between a CRIU that hands out pages and one that asks for them (criu/page-xfer.c): questions of one size, the last of which says that no
//! more will come, and in the other direction pages, which nobody here looks at.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
};

use rustix::{
    io::Errno,
    pipe::{SpliceFlags, fcntl_setpipe_size, splice},
};

/// A question: what is asked, and of how many pages, at which address, of which process.
const SIZE: usize = 32;
/// Pages are wanted.
const GET: u32 = 7;
/// None are wanted any more. CRIU says the second where its socket was given to it.
const CLOSE: [u32; 2] = [0x1023, 0x1024];
/// Above this there are flags.
const COMMAND: u32 = 0xffff;
/// What is under way at once, in bytes.
const PIPE: usize = 1 << 20;

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question([u8; SIZE]);

impl Question {
    /// The next one, or none where there will be none.
    ///
    /// # Errors
    /// Where it is cut short, or nothing that whoever restores asks: a source takes nothing else.
    pub(super) fn next(mut from: &UnixStream) -> io::Result<Option<Self>> {
        let mut bytes = [0; SIZE];
        let mut filled = 0;
        while filled < SIZE {
            match from.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let question = Self(bytes);
        if question.command() == GET || question.is_last() {
            return Ok(Some(question));
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("{:#x} is no question for pages", question.command())))
    }

    fn command(self) -> u32 {
        let [one, two, three, four, ..] = self.0;
        u32::from_ne_bytes([one, two, three, four]) & COMMAND
    }

    /// Whether it says that every page is where it belongs.
    pub(super) fn is_last(self) -> bool {
        CLOSE.contains(&self.command())
    }

    pub(super) fn ask(self, mut of: &UnixStream) -> io::Result<()> {
        of.write_all(&self.0)
    }
}

/// What CRIU hears after the last question: that it was understood.
pub(super) fn take_leave(mut of: &UnixStream) -> io::Result<()> {
    of.write_all(&0_i32.to_ne_bytes())
}

/// Passes pages on until there are no more, without a copy of them: they are still the frozen process's own on their way out.
///
/// # Errors
/// Where one of the two is gone.
pub(super) fn pages(from: &UnixStream, to: &UnixStream) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    // It may be less; then it takes longer.
    let size = fcntl_setpipe_size(&writer, PIPE).unwrap_or(1 << 16);
    loop {
        let mut count = match splice(from, None, &writer, None, size, SpliceFlags::MOVE) {
            Ok(0) => return Ok(()),
            Err(Errno::INTR) => continue,
            other => other?,
        };
        while count > 0 {
            match splice(&reader, None, to, None, count, SpliceFlags::MOVE) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(passed) => count -= passed,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::thread;

    use super::*;

    /// A question as CRIU puts it.
    pub(in crate::runc) fn question(command: u32) -> Vec<u8> {
        let mut bytes = vec![7; SIZE];
        bytes[..4].copy_from_slice(&command.to_ne_bytes());
        bytes
    }

    #[test]
    fn questions_are_told_apart() {
        let (mut criu, other) = UnixStream::pair().unwrap();
        for (command, last) in [(7, false), (0x1_0007, false), (0x1023, true), (0x1024, true)] {
            criu.write_all(&question(command)).unwrap();
            let found = Question::next(&other).unwrap().unwrap();
            assert_eq!((found.0.to_vec(), found.is_last()), (question(command), last));
        }
        criu.write_all(&question(6)).unwrap();
        assert_eq!(Question::next(&other).unwrap_err().kind(), io::ErrorKind::InvalidData);
        criu.write_all(&[7]).unwrap();
        drop(criu);
        assert_eq!(Question::next(&other).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(Question::next(&other).unwrap(), None);
    }

    #[test]
    fn pages_come_as_they_went() {
        let ((mut source, from), (to, mut destination)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let sent: Vec<u8> = (0..5_000_000_u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                pages(&from, &to).unwrap();
                drop(to);
            });
            scope.spawn(|| {
                source.write_all(&sent).unwrap();
                drop(source);
            });
            let mut heard = vec![];
            destination.read_to_end(&mut heard).unwrap();
            assert!(heard == sent);
        });
    }
}
