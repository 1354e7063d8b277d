//! The keeper of a lazy restore: a process of its own that outlives the create, and sees to it that no process ever reads zeros where its memory was.
//!
//! A lazily restored container runs while `criu lazy-pages` puts its pages in their places, from images that lie in this node's memory. Where that daemon
//! ends too early the kernel closes its userfaultfds, and whatever has not come by then reads as zeros, silently. So the keeper stands between CRIU
//! and the daemon and holds a duplicate of every userfaultfd before the daemon has it: a process then waits for its page for ever, which is the time to
//! kill it.
//!
//! ```text
//! CRIU (restore) --lazy-pages.socket--> keeper --lazy-pages/lazy-pages.socket--> criu lazy-pages
//! ```
//!
//! Where the pages are still at their source (post-copy), the daemon asks for them over a connection that the keeper has made. It passes on what is asked
//! ([`super::remote`]), since CRIU says that it wants no more pages both when it has them all and when it has failed.
//!
//! | what happens | what the record says | what the keeper does |
//! | --- | --- | --- |
//! | all pages have come, the daemon has ended well | `complete` | ends |
//! | the daemon ends otherwise | `outstanding`, then `failed` | kills every process of the container, waits until they have ended, and only then lets go |
//! | the connection to the source ends before the daemon has ended well | as above | as above |
//! | the keeper itself is killed | `outstanding` for good | nothing: the daemon goes on and holds what it has, and only its later death would do harm |
//! | the same while pages come from their source | `outstanding` for good | nothing: the daemon waits, and every process that needs a page, until the container is deleted; then `drover-runc` ends it ([`super::delete`]) |
//! | CRIU gives up | none: the create fails | ends the daemon, and what CRIU may have left of the container |
//! | the container is deleted meanwhile | none | the daemon finds no process any more and ends |
//!
//! That a keeper was killed is found out by the node's agent, which looks for it while the record says `outstanding`, and attests a failure instead of `restored`.
//!
//! # What remains
//! A process that is forked while pages are outstanding gets a userfaultfd that the kernel gives to the daemon alone. The fork does not return before the
//! daemon has read of it, and the keeper looks every [`LOOK`] for such descriptors; but where the daemon is killed within that time after a fork, that one
//! child can read zeros until the keeper has killed it.

use std::{
    ffi::OsString,
    fs, io,
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::sockopt::socket_peercred,
    process::{Pid, PidfdFlags, pidfd_open, setsid},
};

use super::{
    Places,
    held::Held,
    kept::Logs,
    lazy::IS_READY,
    processes::{self, Program},
    program,
    record::{self, Pages},
    remote::Remote,
    restore::{bounded, last_error},
    wire::{Word, relay},
};

/// What CRIU asks for in its working folder, and the daemon listens at in its own (criu/uffd.c).
const SOCKET: &str = "lazy-pages.socket";
/// The daemon's folder, in CRIU's.
pub(super) const FOLDER: &str = "lazy-pages";
/// The daemon's log, in that.
pub(super) const LOG: &str = "lazy-pages.log";
/// How long the daemon may take to listen.
const BEGIN: Duration = Duration::from_secs(5);
/// How long a create has time to end when its container is to be killed.
const GRACE: Duration = Duration::from_secs(10);
/// How often the daemon is looked at for userfaultfds of forked processes.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// How often a daemon is asked whether it listens, a create whether it is done, and a process whether it has ended.
const ASK: Duration = Duration::from_millis(5);
/// How long a create may take to tell how it ended; the kubelet gives it 120 s.
const CREATE: Duration = Duration::from_mins(2);
/// How often runc is told again to kill: only it can thaw what somebody has frozen.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// Why memory that is still at its source cannot come.
const BROKEN: &str = "the connection to the source of its memory has ended before all of it had come";
/// Since this version of Linux each userfaultfd has an inode of its own.
const LINUX: (u32, u32) = (5, 12);

/// One restore's keeper.
#[derive(Debug)]
pub(super) struct Keeper<'a> {
    pub places: &'a Places,
    /// CRIU's working folder.
    pub work: PathBuf,
    pub images: PathBuf,
    /// Where pages are asked for that are not among the images.
    pub source: Option<PathBuf>,
    /// Where the container's record is or will be; its name is the container's ID.
    pub record: PathBuf,
    /// runc's arguments before its command.
    pub globals: &'a [OsString],
}

/// The daemon, and the ways to it.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    handle: OwnedFd,
    stream: UnixStream,
    listener: UnixListener,
    /// The way to the source of the pages.
    remote: Option<Remote>,
    /// The program whose connection was accepted.
    criu: Option<Program>,
}

/// The keeper as a program: the record, the images, the socket where pages are asked for, if any, runc's global arguments; CRIU's working folder is its own, since no socket's path may be long.
pub(super) fn main(places: &Places, arguments: &[OsString]) -> ExitCode {
    let [record, images, globals @ ..] = arguments else { return ExitCode::FAILURE };
    // runc's begin with a hyphen.
    let (source, globals) = match globals {
        [source, rest @ ..] if Path::new(source).is_absolute() => (Some(PathBuf::from(source)), rest),
        _ => (None, globals),
    };
    // A signal to the group of whoever called must not end it. It fails where it has a group of its own already.
    let _ = setsid();
    let keeper = Keeper { places, work: ".".into(), images: images.into(), source, record: record.into(), globals };
    match keeper.begin() {
        Ok(daemon) => {
            println!("{IS_READY}");
            keeper.keep(daemon, std::io::stdin());
            ExitCode::SUCCESS
        }
        Err(problem) => {
            println!("{problem}");
            ExitCode::FAILURE
        }
    }
}

impl Keeper<'_> {
    /// Starts the daemon, and listens for CRIU.
    ///
    /// # Errors
    /// Why pages cannot come lazily on this node. Nothing of it is left running.
    pub(super) fn begin(&self) -> Result<Daemon, String> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        if version(&release).is_none_or(|version| version < LINUX) {
            return Err(format!("Linux {} is older than {}.{}", release.trim(), LINUX.0, LINUX.1));
        }
        let criu = program("criu", &self.places.path).ok_or_else(|| format!("there is no program criu in {}", self.places.path.display()))?;
        self.attempt(&criu).or_else(|problem| {
            // What somebody with less rights has run CRIU for is remembered as what the kernel cannot do (criu/kerndat.c); it is found out anew.
            fs::remove_file(&self.places.criu_cache).map_err(|_| problem)?;
            self.attempt(&criu)
        })
    }

    fn attempt(&self, criu: &Path) -> Result<Daemon, String> {
        let failed = |doing: &str, error: io::Error| format!("the keeper cannot {doing}: {error}");
        let (socket, folder) = (self.work.join(SOCKET), self.work.join(FOLDER));
        for old in [&socket, &folder.join(SOCKET)] {
            let _ = fs::remove_file(old);
        }
        fs::create_dir_all(&folder).map_err(|error| failed("make the daemon's folder", error))?;
        let listener = UnixListener::bind(&socket).map_err(|error| failed("listen for CRIU", error))?;
        let mut command = Command::new(criu);
        command.args(["lazy-pages", "-v1", "--log-file", LOG, "--images-dir"]).arg(&self.images).arg("--work-dir").arg(&folder);
        let remote = self.source.as_deref().map(|source| Remote::connect(source, &mut command)).transpose()?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("{} cannot be run: {error}", criu.display()))?;
        let connected = self.connect(&mut child).and_then(|stream| Ok((handle(&child)?, stream)));
        match connected {
            Ok((handle, stream)) => Ok(Daemon { child, handle, stream, listener, remote: remote.map(Remote::begin), criu: None }),
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                let _ = fs::remove_file(&socket);
                Err(failed("reach the lazy-pages daemon", error) + &self.said())
            }
        }
    }

    /// The daemon's socket is there a moment before anybody listens at it.
    fn connect(&self, child: &mut Child) -> io::Result<UnixStream> {
        let begin = Instant::now();
        loop {
            match UnixStream::connect(self.work.join(FOLDER).join(SOCKET)) {
                Ok(stream) => return Ok(stream),
                Err(error) if begin.elapsed() > BEGIN => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("it has ended ({status})")));
            }
            thread::sleep(ASK);
        }
    }

    /// Keeps until the end; `caller` is closed when the create ends.
    pub(super) fn keep(&self, mut daemon: Daemon, caller: impl AsFd) {
        let mut held = Held::default();
        let watched = watch(&mut daemon, &caller, &mut held);
        // Now, since they go with a container that has ended; they are read when nobody waits any more.
        let logs = Logs::of_restore(&self.work);
        let pages = match watched {
            Ok(()) => Pages::Complete,
            Err(problem) => {
                let _ = daemon.child.kill().and_then(|()| daemon.child.wait());
                self.let_criu_end(daemon.criu, &caller);
                self.kill();
                Pages::Failed(problem + &self.said())
            }
        };
        // Only now may the kernel let go of what waits.
        drop(held);
        let _ = fs::remove_file(self.work.join(SOCKET));
        self.settle(&pages);
        if let Some((pod, container)) = self.restored() {
            logs.keep(&self.places.logs, &pod, &container);
        }
    }

    /// The pod's UID and the container, by where their images lie: the record may be gone by now.
    fn restored(&self) -> Option<(String, String)> {
        let container = self.images.parent()?;
        let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
        Some((name(container.parent()?)?, name(container)?))
    }

    /// Waits for the end of a create that is still on its way. CRIU is in the container's cgroup while it restores, and killed there it would leave its
    /// mounts behind; but what it restores may wait for a page, and it for that.
    fn let_criu_end(&self, criu: Option<Program>, caller: &impl AsFd) {
        let (begin, id) = (Instant::now(), self.record.file_name().unwrap_or_default().to_string_lossy());
        while begin.elapsed() < GRACE && poll(&mut [PollFd::new(caller, PollFlags::IN)], Some(&LOOK)).is_ok_and(|ready| ready == 0) {
            if criu.is_some() {
                // What cannot be killed now is so in a moment.
                let _ = processes::kill_but(Path::new("/proc"), &id, criu);
            }
        }
    }

    /// Ends every process of the container, and waits until each has ended, however long: one that is let go of would read zeros.
    fn kill(&self) {
        let id = self.record.file_name().unwrap_or_default();
        let runc = program("runc", &self.places.path);
        let mut told: Option<Instant> = None;
        loop {
            if told.is_none_or(|told| told.elapsed() >= KILL_AGAIN) {
                // Whether it can is seen below; it may not know the container yet, or no more.
                if let Some(runc) = &runc {
                    let mut command = Command::new(runc);
                    // Not in the log of the create, whose last error is what `kubectl describe` shows: that is why it failed.
                    command.args(self.globals).args(["--log", "/dev/null", "kill", "--all"]).arg(id).arg("KILL");
                    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
                }
                told = Some(Instant::now());
            }
            let (proc, id) = (Path::new("/proc"), id.to_string_lossy());
            match processes::kill(proc, &id).and_then(|_| processes::alive(proc, &id)) {
                Ok(0) => return,
                // Not an ID of containerd's: then it is runc's word alone.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
                _ => thread::sleep(ASK),
            }
        }
    }

    /// Says it in the record, as soon as the create has said that there is one.
    fn settle(&self, pages: &Pages) {
        let begin = Instant::now();
        while begin.elapsed() < CREATE {
            // In this order: what is not pending any more has its record by now, or has none.
            let is_pending = record::pending(&self.record).exists();
            match record::settle(&self.record, pages) {
                Ok(false) if is_pending => thread::sleep(ASK),
                // What cannot be written stays as it is: outstanding.
                _ => return,
            }
        }
    }

    /// The daemon's last error, to be put behind a sentence.
    fn said(&self) -> String {
        last_error(&self.work.join(FOLDER).join(LOG)).map(|words| format!(": CRIU says: {}", bounded(&words))).unwrap_or_default()
    }
}

/// Until all pages have come, or why they have not.
fn watch(daemon: &mut Daemon, caller: &impl AsFd, held: &mut Held) -> Result<(), String> {
    let Some(criu) = accept(&daemon.listener, caller).map_err(|error| format!("CRIU cannot be heard: {error}"))? else {
        // Nothing can be outstanding: CRIU restores nothing lazily before it has come.
        let _ = daemon.child.kill().and_then(|()| daemon.child.wait());
        return Ok(());
    };
    daemon.criu = socket_peercred(&criu).ok().and_then(|peer| processes::program_of(Path::new("/proc"), peer.pid));
    if let Err(error) = hand_over(&criu, daemon, held) {
        // What CRIU has said already counts, should it have come to the end; else it learns now that there is none.
        let _ = criu.shutdown(Shutdown::Both);
        while matches!(relay(&criu, None, |descriptor| held.add(descriptor)), Ok(Word::Process)) {}
        return Err(format!("its memory could not be handed to the lazy-pages daemon: {error}"));
    }
    let descriptors = PathBuf::from(format!("/proc/{}/fd", daemon.child.id()));
    loop {
        match daemon.child.try_wait().map_err(|error| format!("the lazy-pages daemon cannot be waited for: {error}"))? {
            Some(status) if status.success() => return daemon.remote.as_ref().map_or(Ok(()), Remote::finish),
            Some(status) => return Err(format!("the lazy-pages daemon has ended ({status}) before all memory had come")),
            None if daemon.remote.as_ref().is_some_and(Remote::is_broken) => {
                return Err(BROKEN.to_owned());
            }
            None => {}
        }
        // Where that fails it is about to end.
        let _ = held.follow(&daemon.handle, &descriptors);
        let _ = poll(&mut [PollFd::new(&daemon.handle, PollFlags::IN)], Some(&LOOK));
    }
}

/// CRIU's connection; none where the create is over and has not had it made.
fn accept(listener: &UnixListener, caller: &impl AsFd) -> io::Result<Option<UnixStream>> {
    loop {
        let mut either = [PollFd::new(listener, PollFlags::IN), PollFd::new(caller, PollFlags::IN)];
        match poll(&mut either, None) {
            Ok(_) if either[0].revents().contains(PollFlags::IN) => return listener.accept().map(|(stream, _)| Some(stream)),
            Ok(_) if !either[1].revents().is_empty() => return Ok(None),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Passes on what CRIU says, until it says that the processes run. It may be that it never does, since one of them waits for a page that cannot come.
fn hand_over(criu: &UnixStream, daemon: &Daemon, held: &mut Held) -> io::Result<()> {
    loop {
        let mut either = [PollFd::new(criu, PollFlags::IN), PollFd::new(&daemon.handle, PollFlags::IN)];
        match poll(&mut either, daemon.remote.as_ref().map(|_| &LOOK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !either[1].revents().is_empty() {
            return Err(io::Error::other("the lazy-pages daemon has ended"));
        }
        if daemon.remote.as_ref().is_some_and(Remote::is_broken) {
            return Err(io::Error::other(BROKEN));
        }
        if either[0].revents().is_empty() {
            continue;
        }
        match relay(criu, Some(&daemon.stream), |descriptor| held.add(descriptor))? {
            Word::Process => {}
            Word::Finished => return Ok(()),
            Word::End => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "CRIU has given up the restore")),
        }
    }
}

fn handle(child: &Child) -> io::Result<OwnedFd> {
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    Ok(pidfd_open(id, PidfdFlags::empty())?)
}

/// The first two numbers of a version such as `6.18.44-1`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests;
