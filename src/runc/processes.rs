//! The processes of a container, by its cgroup: whatever the runtime knows of it, they are found and ended.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// containerd's IDs have 64 hexadecimal digits.
const SHORTEST_ID: usize = 32;

/// The IDs of all processes.
///
/// # Errors
/// Where `/proc` cannot be read.
pub(crate) fn pids(proc: &Path) -> io::Result<Vec<i32>> {
    let pid = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).transpose();
    fs::read_dir(proc)?.filter_map(pid).collect()
}

/// The process, or one of its files, went away while it was looked at.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// The processes in a cgroup whose path names this container, as every runtime and driver has it.
///
/// # Errors
/// Of kind `InvalidInput` where the ID is none: a shorter text could be in every path.
pub(crate) fn of_container(proc: &Path, container: &str) -> io::Result<Vec<Pid>> {
    if container.len() < SHORTEST_ID || !container.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{container:?} is no container ID")));
    }
    let mut found = vec![];
    for pid in pids(proc)?.into_iter().filter_map(Pid::from_raw) {
        if is_in(proc, pid, container)? {
            found.push(pid);
        }
    }
    Ok(found)
}

/// False also where the process has ended meanwhile.
fn is_in(proc: &Path, pid: Pid, container: &str) -> io::Result<bool> {
    match fs::read(proc.join(pid.to_string()).join("cgroup")) {
        Ok(cgroup) => Ok(String::from_utf8_lossy(&cgroup).contains(container)),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends SIGKILL to every process in a cgroup of this container; how many there were.
///
/// # Errors
/// Where `/proc` cannot be read or the ID is none.
pub(crate) fn kill(proc: &Path, container: &str) -> io::Result<usize> {
    kill_but(proc, container, None)
}

/// A program, by its file's device and inode.
pub(super) type Program = (u64, u64);

/// The program that a process executes.
pub(super) fn program_of(proc: &Path, pid: Pid) -> Option<Program> {
    fs::metadata(proc.join(pid.to_string()).join("exe")).ok().as_ref().map(of_file)
}

/// The program in a file.
pub(super) fn of_file(file: &fs::Metadata) -> Program {
    (file.dev(), file.ino())
}

/// As [`kill`], but for the processes that execute a program that is to be spared.
///
/// # Errors
/// As of [`kill`].
pub(super) fn kill_but(proc: &Path, container: &str, spared: Option<Program>) -> io::Result<usize> {
    let mut found = of_container(proc, container)?;
    found.retain(|pid| spared.is_none() || program_of(proc, *pid) != spared);
    for pid in &found {
        match pidfd_open(*pid, PidfdFlags::empty()) {
            // Asked again, since its number may be another process's by now; the handle is not.
            Ok(process) if is_in(proc, *pid, container)? => match pidfd_send_signal(&process, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            },
            Ok(_) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found.len())
}

/// Whether a keeper of this container is there.
///
/// # Errors
/// Where `/proc` cannot be read.
#[cfg(any(test, feature = "full"))]
pub(crate) fn is_kept(proc: &Path, container: &str) -> io::Result<bool> {
    for pid in pids(proc)? {
        let arguments = match fs::read(proc.join(pid.to_string()).join("cmdline")) {
            Err(error) if is_gone(&error) => continue,
            other => other?,
        };
        let mut arguments = arguments.split(|byte| *byte == 0).skip(1);
        if arguments.next() == Some(super::KEEP.as_bytes()) && arguments.next().is_some_and(|record| record.ends_with(container.as_bytes())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many of a container's processes have not ended. One that nobody has reaped yet has: it executes nothing any more.
///
/// # Errors
/// As of [`kill`].
pub(super) fn alive(proc: &Path, container: &str) -> io::Result<usize> {
    let ended = |pid: &Pid| match fs::read_to_string(proc.join(pid.to_string()).join("stat")) {
        // The program's name, in parentheses, may have any byte in it.
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X'])),
        Err(error) => is_gone(&error),
    };
    Ok(of_container(proc, container)?.iter().filter(|pid| !ended(pid)).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_found_by_its_arguments() {
        let proc = tempfile::tempdir().unwrap();
        let id = "c0".repeat(32);
        for (pid, arguments) in
            [("7", format!("/proc/self/exe\0{}\0/run/drover/runc/{id}\0/images\0", super::super::KEEP)), ("8", format!("runc\0{id}\0"))]
        {
            fs::create_dir_all(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("cmdline"), arguments).unwrap();
        }
        fs::create_dir(proc.path().join("9")).unwrap();
        assert!(is_kept(proc.path(), &id).unwrap());
        assert!(!is_kept(proc.path(), &"c1".repeat(32)).unwrap());
        fs::remove_dir_all(proc.path().join("7")).unwrap();
        assert!(!is_kept(proc.path(), &id).unwrap());
    }

    #[test]
    fn a_process_is_found_by_its_cgroup() {
        let proc = tempfile::tempdir().unwrap();
        let (one, other) = ("c0".repeat(32), "c1".repeat(32));
        for (pid, cgroup) in [("7", format!("4:pids:/kubepods/pod1/{one}\n")), ("8", "0::/init\n".to_owned())] {
            fs::create_dir_all(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("cgroup"), cgroup).unwrap();
        }
        fs::create_dir(proc.path().join("9")).unwrap();
        fs::create_dir(proc.path().join("sys")).unwrap();
        assert_eq!(of_container(proc.path(), &one).unwrap(), [Pid::from_raw(7).unwrap()]);
        assert_eq!(of_container(proc.path(), &other).unwrap(), []);
        for (stat, is_alive) in [("7 (a) Z) S 1", 1), ("7 (a) Z 1", 0), ("7 (a) S 1", 1)] {
            fs::write(proc.path().join("7/stat"), stat).unwrap();
            assert_eq!(alive(proc.path(), &one).unwrap(), is_alive, "{stat}");
        }
        for none in ["", "c0", "kubepods"] {
            assert_eq!(kill(proc.path(), none).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{none:?} is in other paths too");
        }
    }
}
