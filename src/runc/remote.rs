//! A keeper's way to pages that are still at their source.
//!
//! ```text
//! criu lazy-pages --ps-socket--> keeper --> the agent's socket ~~> CRIU at the source
//! ```
//!
//! What is asked and what comes is passed on as it is, but for the last question: the daemon says that it wants no more pages also where it has failed, so
//! that is for the source to hear only once the daemon has ended well.
//!
//! The daemon has both ends of its pair of sockets. Were the keeper killed, it would else see the connection end, end as well, and let go of its userfaultfds;
//! like this it waits for ever, and so does every process that needs a page.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{
    transfer::{self, Question},
    wire::bequeath,
};

/// A connection to the source.
#[derive(Debug)]
pub(super) struct Remote {
    source: Arc<UnixStream>,
    daemon: Arc<UnixStream>,
    /// What the daemon gets, until it has it.
    bequeathed: Vec<OwnedFd>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Pages are wanted.
    Open,
    /// This was the last question, and nothing is wanted any more.
    Last(Question),
    /// The connection has ended before that.
    Broken,
}

impl Remote {
    /// Connects, and has the daemon that is about to be started ask there.
    ///
    /// # Errors
    /// Where nobody listens.
    pub(super) fn connect(source: &Path, command: &mut Command) -> Result<Self, String> {
        let failed = |error: io::Error| format!("the source of its memory cannot be reached through {}: {error}", source.display());
        let stream = UnixStream::connect(source).map_err(failed)?;
        let (daemon, there) = UnixStream::pair().map_err(failed)?;
        let bequeathed = vec![bequeath(&there).map_err(failed)?, bequeath(&daemon).map_err(failed)?];
        command.args(["--page-server", "--ps-socket"]).arg(bequeathed[0].as_raw_fd().to_string());
        let state = Arc::new(Mutex::new(State::Open));
        Ok(Self { source: Arc::new(stream), daemon: Arc::new(daemon), bequeathed, state })
    }

    /// Passes on from now on; the daemon has been started.
    pub(super) fn begin(mut self) -> Self {
        self.bequeathed.clear();
        let (source, daemon, state) = (Arc::clone(&self.source), Arc::clone(&self.daemon), Arc::clone(&self.state));
        thread::spawn(move || {
            // What ends is the source or the connection; or the daemon, and that is its end in any case.
            let _ = transfer::pages(&source, &daemon);
            broken(&state);
            let _ = daemon.shutdown(Shutdown::Both);
        });
        let (source, daemon, state) = (Arc::clone(&self.source), Arc::clone(&self.daemon), Arc::clone(&self.state));
        thread::spawn(move || {
            while let Ok(Some(question)) = Question::next(&daemon) {
                if question.is_last() {
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    if matches!(*state, State::Open) {
                        *state = State::Last(question);
                    }
                    // It waits for this before it ends.
                    let _ = transfer::take_leave(&daemon);
                    return;
                }
                if question.ask(&source).is_err() {
                    break;
                }
            }
            broken(&state);
            let _ = daemon.shutdown(Shutdown::Both);
        });
        self
    }

    /// Whether nothing will come any more that was wanted.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.state(), State::Broken)
    }

    /// Tells the source that every page is where it belongs, since the daemon has ended well.
    ///
    /// # Errors
    /// Where that cannot be.
    pub(super) fn finish(&self) -> Result<(), String> {
        let State::Last(question) = self.state() else {
            return Err("the lazy-pages daemon has ended without having asked for all memory".to_owned());
        };
        // Where it does not hear it, it holds on to what nobody needs any more.
        let _ = question.ask(&self.source);
        Ok(())
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // What was said is heard even so, and the source must not wait for a daemon that has ended.
        let _ = self.source.shutdown(Shutdown::Both);
    }
}

/// The end has come too early, unless all was there.
fn broken(state: &Mutex<State>) {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*state, State::Open) {
        *state = State::Broken;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
        process::{Child, Stdio},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::runc::wire::tests::alone;

    /// A daemon that asks for a page, waits for a byte of it, and goes on as it is told.
    const DAEMON: &str = r#"
[ "$1 $2" = "--page-server --ps-socket" ] || exit 9
ask() { printf "$1"; printf '%28s' ''; } >&"$3"
ask '\x07\x00\x00\x00' x "$3"
[ "$(head -c 1 <&"$3")" = p ] || exit 8
"#;
    const CLOSE: &str = "ask '\\x24\\x10\\x00\\x00' x \"$3\"; [ \"$(head -c 4 <&\"$3\" | wc -c)\" = 4 ] || exit 7\n";

    fn begin(rest: &str) -> (UnixStream, Remote, Child) {
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{DAEMON}{rest}"), "daemon"]);
        let remote = Remote::connect(&path, &mut command).unwrap();
        let daemon = command.stdin(Stdio::null()).spawn().unwrap();
        (listener.accept().unwrap().0, remote.begin(), daemon)
    }

    fn heard(mut source: &UnixStream) -> u32 {
        let mut question = [0; 32];
        source.read_exact(&mut question).unwrap();
        u32::from_ne_bytes(question[..4].try_into().unwrap())
    }

    #[test]
    fn the_source_hears_the_end_only_when_the_daemon_has_ended_well() {
        for is_well in [true, false] {
            let (mut source, remote, mut daemon) = begin(&format!("{CLOSE}exit 0"));
            assert_eq!(heard(&source), 7);
            source.write_all(b"p").unwrap();
            assert!(daemon.wait().unwrap().success());
            assert!(!remote.is_broken());
            if is_well {
                remote.finish().unwrap();
                assert_eq!(heard(&source), 0x1024);
            }
            drop(remote);
            source.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(source.read(&mut [0]).unwrap(), 0, "{is_well}");
        }
    }

    #[test]
    fn a_connection_that_ends_too_early_is_found_out() {
        let (source, remote, mut daemon) = begin("exit 0");
        assert_eq!(heard(&source), 7);
        drop(source);
        assert_eq!(daemon.wait().unwrap().code(), Some(8), "the daemon sees it too");
        let begin = Instant::now();
        while !remote.is_broken() {
            assert!(begin.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(5));
        }
        assert!(remote.finish().is_err());
    }

    #[test]
    fn a_daemon_that_ends_without_a_word_has_not_got_all() {
        let (mut source, remote, mut daemon) = begin("exit 0");
        source.write_all(b"p").unwrap();
        assert!(daemon.wait().unwrap().success());
        assert!(remote.finish().is_err());
        let mut command = Command::new("true");
        let problem = Remote::connect(Path::new("/nonexistent/socket"), &mut command).unwrap_err();
        assert!(problem.contains("/nonexistent/socket"), "{problem}");
    }
}
