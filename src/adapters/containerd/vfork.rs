//! Processes that were frozen between vfork and exec.
//!
//! The parent of a vfork sleeps in the kernel until its child executes a program or ends; most libraries start programs so (`posix_spawn`, busybox's
//! shell, Go's `os/exec`, the JVM). No signal but SIGKILL wakes it, ptrace neither, so that CRIU gives up after 10 s (`Unseizable non-zombie … found,
//! state D`, of "Timeout reached"), for the child that it would have to wait for is stopped as well (seen with 4.2.1 on the lab, twice in some 200 checkpoints of
//! a shell that starts a program each 100 ms). Nor could it dump the two: they share their memory.

use std::{fs, io, path::Path};

use super::cgroup;
use crate::adapters::processes::is_gone;

/// Where the kernel sleeps for the child (kernel/fork.c; the first is inlined into the others by some compilers, the last two are older than 5.10).
const WAITS: [&str; 4] = ["wait_for_vfork_done", "kernel_clone", "_do_fork", "do_fork"];

/// The threads of a container, its cgroup at `cgroups_path` (as in the OCI spec) below the host's `/sys/fs/cgroup`, that wait for a child of vfork.
///
/// # Errors
/// Where the cgroup or `/proc` cannot be read.
pub(super) fn waiting(root: &Path, cgroups_path: &str) -> io::Result<Vec<i32>> {
    among(Path::new("/proc"), &cgroup::members(root, cgroups_path)?)
}

fn among(proc: &Path, pids: &[i32]) -> io::Result<Vec<i32>> {
    let mut waiting = vec![];
    for pid in pids {
        match waiting_threads(&proc.join(pid.to_string()).join("task")) {
            Ok(threads) => waiting.extend(threads),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(waiting)
}

fn waiting_threads(tasks: &Path) -> io::Result<Vec<i32>> {
    let mut waiting = vec![];
    for task in fs::read_dir(tasks)? {
        let task = task?;
        let place = fs::read_to_string(task.path().join("wchan"))?;
        if WAITS.contains(&place.trim()) {
            waiting.extend(task.file_name().to_str().and_then(|id| id.parse::<i32>().ok()));
        }
    }
    Ok(waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_thread_that_sleeps_in_vfork_waits() {
        let proc = tempfile::tempdir().unwrap();
        // As the kernel tells them of a frozen pod: in wait(2), stopped on its way out of the kernel, in vfork; one of other compilers.
        for (pid, thread, place) in
            [(7, 7, "do_wait"), (7, 8, "__refrigerator"), (9, 9, "0"), (9, 10, "kernel_clone"), (11, 11, "wait_for_vfork_done")]
        {
            let folder = proc.path().join(format!("{pid}/task/{thread}"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("wchan"), place).unwrap();
        }
        assert!(among(proc.path(), &[7]).unwrap().is_empty());
        assert_eq!(among(proc.path(), &[7, 9, 11, 13]).unwrap(), [10, 11], "13 has ended meanwhile");
    }
}
