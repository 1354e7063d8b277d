//! The server of a frozen container's pages: a checkpoint that leaves them where they are, and hands them out from then on ([`super::pages`]).
//!
//! ```text
//! containerd -> checkpoint -> server -> runc -> criu dump --lazy-pages
//!                               |                  |
//!       agent -- pages.sock ----+---- ps-socket ---+
//! ```
//!
//! CRIU gets its end of a pair of sockets by inheritance (`ps-socket`, in a file that `CRIU_CONFIG_FILE` names), since what it would listen at by itself
//! is a port of every address of the node, and the first to connect, whoever that is, would get the memory (criu/cr-service.c sets no address for a lazy dump).
//!
//! | what happens | what CRIU does | the container |
//! | --- | --- | --- |
//! | whoever asks says that it has every page | ends well | frozen |
//! | the connection ends before that, the server is cancelled or killed | ends, also well (criu/page-xfer.c takes an end for the end) | frozen |
//! | CRIU is killed | | frozen: it has thawed the container to stop its processes one by one, so that it is frozen again before anybody hears of the checkpoint |

use std::{
    ffi::OsString,
    fs, io,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::{
        fd::AsRawFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use rustix::{
    fs::{Mode, chmod},
    process::{Resource, Rlimit, getrlimit, setrlimit, setsid},
};

use super::{
    Outcome, Places, SERVE,
    arguments::{Call, value},
    freezer::Freezer,
    kept::DUMP,
    lazy::IS_READY,
    missing,
    pages::{self, LOOK},
    program, report,
    restore::{bounded, last_error},
    transfer::{self, Question},
    wire::bequeath,
};

/// Where runc keeps its state where the call does not say it.
const RUNC_ROOT: &str = "/run/runc";
/// CRIU's options beside those that runc gives it.
const CONFIG: &str = "criu.conf";
/// How long a checkpoint that has failed waits for what is left of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a call ends with where it fails.
type Problem = (u8, String);

/// One container's server.
#[derive(Debug)]
struct Server<'a> {
    places: &'a Places,
    folder: &'a Path,
    call: Call<'a>,
    /// What stands between the command and the ID.
    options: &'a [OsString],
}

/// A dump that is under way or handed out.
#[derive(Debug)]
struct Dump {
    runc: Child,
    criu: UnixStream,
    /// Says once that the pages can be asked for, and hangs up when neither runc nor CRIU is alive any more.
    said: Receiver<()>,
    freezer: Freezer,
    /// Held to the last.
    _lock: fs::File,
}

/// The checkpoint's part: starts the server, and goes on once it serves.
pub(super) fn checkpoint(places: &Places, call: &Call<'_>, arguments: &[OsString], folder: &Path) -> Outcome {
    match start(places, arguments, folder) {
        Ok(()) => Outcome::Done,
        Err((code, problem)) => {
            // The server has removed it, unless it was killed; then its CRIU ends by itself.
            let _ = pages::end(&places.pages, &call.id.unwrap_or_default().to_string_lossy(), PATIENCE);
            report::failure(Some(call), &problem);
            Outcome::Failed(code)
        }
    }
}

fn start(places: &Places, arguments: &[OsString], folder: &Path) -> Result<(), Problem> {
    let mut command = Command::new(&places.program);
    // Whoever waits for the call's output must not wait for it.
    command.arg(SERVE).arg(folder).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = command.spawn().map_err(|error| (1, format!("{} cannot be run: {error}", places.program.display())))?;
    let mut said = String::new();
    if let Some(output) = server.stdout.take() {
        let _ = BufReader::new(output).read_line(&mut said);
    }
    if said.trim_end() == IS_READY {
        return Ok(());
    }
    let code = server.wait().map_or(1, code);
    Err((code, if said.is_empty() { "the server of its pages did not begin".to_owned() } else { said.trim_end().to_owned() }))
}

/// The server as a program: its folder, and the call's arguments.
pub(super) fn main(places: &Places, arguments: &[OsString]) -> ExitCode {
    let [folder, arguments @ ..] = arguments else { return ExitCode::FAILURE };
    let Some(call) = Call::of(arguments) else { return ExitCode::FAILURE };
    // A signal to the group of whoever called must not end it. It fails where it has a group of its own already.
    let _ = setsid();
    let folder = Path::new(folder);
    let options = arguments.get(call.globals.len() + 1..arguments.len() - 1).unwrap_or_default();
    let server = Server { places, folder, call, options };
    let begun = server.begin().and_then(|mut dump| match server.listen(&mut dump, io::stdout()) {
        Ok(listener) => Ok((dump, listener)),
        Err(problem) => Err(server.give_up(dump, problem)),
    });
    match begun {
        Ok((dump, listener)) => {
            server.serve(dump, listener);
            ExitCode::SUCCESS
        }
        Err((code, problem)) => {
            let _ = pages::remove(folder);
            let _ = writeln!(io::stdout(), "{problem}");
            ExitCode::from(code)
        }
    }
}

impl Server<'_> {
    /// Starts the dump.
    fn begin(&self) -> Result<Dump, Problem> {
        let failed = |doing: &str| {
            let doing = doing.to_owned();
            move |error: io::Error| (1, format!("the server of its pages cannot {doing}: {error}"))
        };
        let lock = pages::take(self.folder).map_err(failed("take the request"))?;
        let root = value(self.call.globals, &["--root"]).map_or_else(|| RUNC_ROOT.into(), PathBuf::from);
        let freezer = Freezer::of(&root, &self.id()).map_err(|problem| (1, problem))?;
        if !freezer.is_frozen() {
            return Err((1, format!("{} is not paused", self.id())));
        }
        let runc = program("runc", &self.places.path).ok_or_else(|| (1, missing(self.places)))?;
        let (criu, of_criu) = UnixStream::pair().map_err(failed("make a pair of sockets"))?;
        let (mut said, say) = io::pipe().map_err(failed("make a pipe"))?;
        let inherited = [bequeath(&lock), bequeath(&of_criu), bequeath(&say)];
        let [held, of_criu_there, say_there] = inherited.map(|descriptor| descriptor.map_err(failed("pass a descriptor on")));
        let (held, of_criu_there, say_there) = (held?, of_criu_there?, say_there?);
        let config = self.folder.join(CONFIG);
        fs::write(&config, format!("ps-socket {}\n", of_criu_there.as_raw_fd())).map_err(failed("write CRIU's options"))?;
        // CRIU keeps pages in many pipes, and may not be allowed to raise this itself.
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
        let mut command = Command::new(&runc);
        command.args(self.call.globals).arg(self.call.command).args(self.options).args(["--lazy-pages", "--status-fd"]);
        command.arg(say_there.as_raw_fd().to_string()).args(self.call.id).env("CRIU_CONFIG_FILE", &config);
        let runc = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(failed("run runc"))?;
        drop((held, of_criu, of_criu_there, say, say_there));
        let (sender, receiver) = channel();
        thread::spawn(move || {
            if said.read_exact(&mut [0]).is_ok() && sender.send(()).is_ok() {
                // CRIU has it as well, and closes it by its end.
                let _ = said.read_to_end(&mut vec![]);
            }
        });
        Ok(Dump { runc, criu, said: receiver, freezer, _lock: lock })
    }

    /// Waits until the pages can be asked for, freezes the container again, and only then lets anybody know.
    fn listen(&self, dump: &mut Dump, mut told: impl io::Write) -> Result<UnixListener, Option<String>> {
        loop {
            match dump.said.recv_timeout(LOOK) {
                Ok(()) => break,
                Err(RecvTimeoutError::Disconnected) => return Err(None),
                Err(RecvTimeoutError::Timeout) if pages::is_cancelled(self.folder) => return Err(Some("it was cancelled".into())),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        dump.freezer.freeze().map_err(Some)?;
        let socket = self.folder.join(pages::SOCKET);
        let listening = UnixListener::bind(&socket).and_then(|listener| {
            chmod(&socket, Mode::RUSR | Mode::WUSR)?;
            writeln!(told, "{IS_READY}").map(|()| listener)
        });
        listening.map_err(|error| Some(format!("{} cannot be listened at: {error}", socket.display())))
    }

    /// Ends a dump of which nobody shall hear but that it has failed; without a problem it is runc's that counts.
    fn give_up(&self, mut dump: Dump, problem: Option<String>) -> Problem {
        let status = dump.end();
        let again = dump.freezer.freeze().err().map(|error| format!("; it may not be frozen any more: {error}")).unwrap_or_default();
        match problem {
            Some(problem) => (1, problem + &again),
            None => (status.map_or(1, code), format!("checkpoint of {} failed{}{again}", self.id(), self.criu_said())),
        }
    }

    /// Hands pages out until CRIU ends, and says how that was.
    fn serve(&self, mut dump: Dump, listener: UnixListener) {
        let has_all = Arc::new(AtomicBool::new(false));
        if let Ok(criu) = dump.criu.try_clone() {
            let has_all = Arc::clone(&has_all);
            thread::spawn(move || hand_out(&listener, &criu, &has_all));
        } else {
            let _ = dump.criu.shutdown(Shutdown::Both);
        }
        let mut cancelled = false;
        while dump.said.recv_timeout(LOOK) != Err(RecvTimeoutError::Disconnected) {
            cancelled = cancelled || pages::is_cancelled(self.folder);
            // A runc that was killed leaves its CRIU behind.
            if cancelled || dump.runc.try_wait().is_ok_and(|ended| ended.is_some()) {
                let _ = dump.criu.shutdown(Shutdown::Both);
            }
        }
        let status = dump.end();
        // It is by now, whatever has become of CRIU; and gone where the container is.
        let _ = dump.freezer.freeze();
        let outcome = match status {
            Some(status) if !status.success() => Err(format!("runc has ended ({status}) before every page was fetched{}", self.criu_said())),
            Some(_) if has_all.load(Ordering::SeqCst) => Ok(()),
            _ => Err("the connection has ended before every page was fetched".to_owned()),
        };
        let _ = fs::remove_file(self.folder.join(pages::SOCKET));
        // Where it cannot be said, that nobody serves is seen by the lock.
        let _ = pages::settle(self.folder, &outcome);
        if cancelled || pages::is_cancelled(self.folder) {
            let _ = pages::remove(self.folder);
        }
    }

    fn id(&self) -> String {
        self.call.id.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// CRIU's last error, to be put behind a sentence.
    fn criu_said(&self) -> String {
        let folder = value(self.options, &["--work-path"]).or_else(|| value(self.options, &["--image-path"]));
        let words = folder.and_then(|folder| last_error(&Path::new(folder).join(DUMP)));
        words.map(|words| format!(": CRIU says: {}", bounded(&words))).unwrap_or_default()
    }
}

impl Dump {
    /// Has CRIU end, which leaves the container as it was, and waits until nobody of it is alive.
    fn end(&mut self) -> Option<ExitStatus> {
        let _ = self.criu.shutdown(Shutdown::Both);
        while self.said.recv().is_ok() {}
        self.runc.wait().ok()
    }
}

/// Passes on what the first asks who asks anything.
fn hand_out(listener: &UnixListener, criu: &UnixStream, has_all: &AtomicBool) {
    let asked = loop {
        let Ok((asker, _)) = listener.accept() else { break Err(()) };
        match Question::next(&asker) {
            Ok(Some(question)) => break Ok((asker, question)),
            Ok(None) => {}
            Err(_) => break Err(()),
        }
    };
    if let Ok((asker, mut question)) = asked {
        let has_ended = thread::scope(|scope| {
            scope.spawn(|| {
                // Neither of the two may wait for one who will not hear it.
                if transfer::pages(criu, &asker).is_err() {
                    let _ = criu.shutdown(Shutdown::Both);
                }
                let _ = asker.shutdown(Shutdown::Both);
            });
            loop {
                if question.is_last() {
                    has_all.store(true, Ordering::SeqCst);
                }
                if question.ask(criu).is_err() || question.is_last() {
                    return question.is_last();
                }
                let Ok(Some(next)) = Question::next(&asker) else {
                    let _ = criu.shutdown(Shutdown::Both);
                    return false;
                };
                question = next;
            }
        });
        if has_ended {
            return;
        }
    }
    let _ = criu.shutdown(Shutdown::Both);
}

/// What a program ended with, that is not success.
fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1)
}

#[cfg(test)]
mod tests;
