//! The end of a container whose memory never came whole: where its keeper was killed, CRIU's daemon may wait for pages for ever, and nobody else would end it.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::Path,
    process::Command,
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{
    Outcome, Pages, Places, Record,
    processes::{Program, alive, is_gone, pids, program_of},
    program,
};

const PROC: &str = "/proc";

/// Forgets that a container was restored; the rest is runc's, by exec as ever but where its record says that pages are outstanding.
pub(super) fn delete(places: &Places, id: &str, arguments: &[OsString], record: &Path) -> Outcome {
    let known = fs::read(record).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
    // Most were never restored, and one whose record stays only has its ID in memory until the next boot.
    let _ = fs::remove_file(record);
    let (true, Some(runc)) = (known.is_some_and(|known| known.pages == Pages::Outstanding), program("runc", &places.path)) else {
        return Outcome::Pass;
    };
    match Command::new(runc).args(arguments).status() {
        Ok(status) if status.success() => {
            // What cannot be ended costs a process that waits, and no pod anything.
            let _ = end_daemon(Path::new(PROC), id, &places.path);
            Outcome::Done
        }
        Ok(status) => Outcome::failed(status),
        // The call goes the ordinary way, which says why.
        Err(_) => Outcome::Pass,
    }
}

/// Ends the lazy-pages daemon of a container none of whose processes executes any more: one that did would read zeros without it.
fn end_daemon(proc: &Path, id: &str, path: &OsStr) -> io::Result<()> {
    let Some(criu) = program("criu", path).and_then(|criu| fs::metadata(criu).ok()) else { return Ok(()) };
    let criu = super::processes::of_file(&criu);
    if alive(proc, id)? > 0 {
        return Ok(());
    }
    for pid in pids(proc)?.into_iter().filter_map(Pid::from_raw) {
        if !is_daemon(proc, pid, id, criu)? {
            continue;
        }
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Asked again, since its number may be another process's by now; the handle is not.
            Ok(daemon) if is_daemon(proc, pid, id, criu)? => match pidfd_send_signal(&daemon, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            },
            Ok(_) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether a process is `criu lazy-pages` in a folder of this container: CRIU goes to its `--work-dir`, which lies in the bundle's, and that is named by the ID.
fn is_daemon(proc: &Path, pid: Pid, id: &str, criu: Program) -> io::Result<bool> {
    let of = proc.join(pid.to_string());
    let arguments = match fs::read(of.join("cmdline")) {
        Err(error) if is_gone(&error) => return Ok(false),
        other => other?,
    };
    if arguments.split(|byte| *byte == 0).nth(1) != Some(b"lazy-pages") || program_of(proc, pid) != Some(criu) {
        return Ok(false);
    }
    match fs::read_link(of.join("cwd")) {
        Ok(folder) => Ok(folder.components().any(|part| part.as_os_str() == id)),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
