//! The owners of a restored process's pipes.
//!
//! A runtime makes the pipes of a new container its user's. A restore does not: they stay root's, mode 600, and a program that is not root cannot open
//! /dev/stderr again, as servers do when they reload (WORKLOADS.md 3.2).

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

/// Standard input, output and error.
const STANDARD: [&str; 3] = ["0", "1", "2"];

/// Makes the pipes of the process below `/proc/PID` its own user's.
pub(super) fn own(process: &Path) -> io::Result<()> {
    let status = match fs::read(process.join("status")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let status = String::from_utf8_lossy(&status);
    let (uid, gid) = (effective(&status, "Uid:")?, effective(&status, "Gid:")?);
    for fd in STANDARD {
        let link = process.join("fd").join(fd);
        match fs::metadata(&link) {
            // Not by its path but by its link: only what the process has open changes.
            Ok(file) if file.file_type().is_fifo() && is_pipe(&link) && (file.uid(), file.gid()) != (uid, gid) => {
                std::os::unix::fs::chown(&link, Some(uid), Some(gid))?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A FIFO with a name in a file system is the pod's own matter.
fn is_pipe(link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target.to_string_lossy().starts_with("pipe:"))
}

/// The second of the four numbers.
fn effective(status: &str, field: &str) -> io::Result<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix(field));
    let number = numbers.and_then(|numbers| numbers.split_whitespace().nth(1)?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("its status has no {field}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_counts() {
        assert_eq!(effective("Name:\tx\nUid:\t0\t1000\t0\t0\nGid:\t5\t6\t7\t8\n", "Uid:").unwrap(), 1000);
        assert_eq!(effective("Uid:\t0\t1000\t0\t0\nGid:\t5\t6\t7\t8\n", "Gid:").unwrap(), 6);
        assert!(effective("Name:\tx\n", "Uid:").is_err());
    }

    #[test]
    fn ones_own_pipes_stay_and_a_process_that_is_gone_is_no_error() {
        let folder = std::path::PathBuf::from(format!("/proc/{}", std::process::id()));
        own(&folder).unwrap();
        own(Path::new("/proc/4294967295")).unwrap();
    }
}
