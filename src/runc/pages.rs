//! Pages that stay at their source until they are asked for (post-copy): what the agent and the server of a frozen container's pages tell each other, by
//! files in a folder of that container below [`ROOT`].
//!
//! | file | who | what it says |
//! | --- | --- | --- |
//! | `request` | agent | the next checkpoint is to leave the pages where they are; the server removes it when it begins |
//! | `lock` | agent | whoever has it locked is the server, or a runc or CRIU of its: none of them is alive once it can be locked |
//! | `pages.sock` | server | where pages are asked for, by one connection |
//! | `complete` | server | whoever asked has said that every page is where it belongs |
//! | `failed` | server | that did not happen, and why |
//! | `cancel` | agent | it is to end; the server removes the folder as its last act |
//!
//! Whatever happens, the container stays frozen: thawing or killing it is the agent's.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::name_of;

/// Where the folders are. In memory: no page outlives a boot.
pub const ROOT: &str = "/run/drover/pages";
/// Where pages are asked for.
pub const SOCKET: &str = "pages.sock";
/// Asks for it.
const REQUEST: &str = "request";
/// Locked by whoever serves.
const LOCK: &str = "lock";
/// Says that all has come.
const COMPLETE: &str = "complete";
/// Says that it has not.
const FAILED: &str = "failed";
/// Says that nobody wants it any more.
const CANCEL: &str = "cancel";
/// How often somebody looks whether the other has said something.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// How far a container's pages have got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serving {
    /// They are, or are about to be, handed out; whether by now is seen by the checkpoint's success.
    Serving,
    /// Every page is where it belongs.
    Complete,
    /// They can be had no more, for this reason.
    Failed(String),
}

/// Asks that the next checkpoint of a container leaves its pages where they are. What was asked for or served before is ended.
///
/// # Errors
/// Where the ID is none, the folder cannot be made, or what was there before does not end.
pub fn request(root: &Path, id: &str) -> io::Result<()> {
    let folder = folder(root, id.as_ref())?;
    if !end(root, id, Duration::from_secs(10))? {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("the pages of {id} are served already, and that does not end")));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    create(&folder.join(LOCK))?;
    create(&folder.join(REQUEST)).map(drop)
}

/// Ends what was asked for or is served, and removes its folder. True when it is over: then nothing of it is alive, and the container frozen as before.
/// False where that takes longer than `patience`.
///
/// # Errors
/// Where the ID is none, or the folder cannot be read or removed.
pub fn end(root: &Path, id: &str, patience: Duration) -> io::Result<bool> {
    let (folder, begin) = (folder(root, id.as_ref())?, Instant::now());
    let lock = match create(&folder.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    while !lock_for_oneself(&lock)? {
        match create(&folder.join(CANCEL)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ if begin.elapsed() >= patience => return Ok(false),
            _ => thread::sleep(LOOK),
        }
    }
    remove(&folder)?;
    Ok(true)
}

/// How far a container's pages have got; none where nobody serves them, has, or has begun to.
///
/// # Errors
/// Where the ID is none, or the folder cannot be read.
pub fn state(root: &Path, id: &str) -> io::Result<Option<Serving>> {
    let folder = folder(root, id.as_ref())?;
    let lock = match File::open(folder.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    // Shared and for a moment: a server that begins meanwhile tries again.
    let is_dead = match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => false,
        other => other.map(|()| true)?,
    };
    match fs::read_to_string(folder.join(FAILED)) {
        Ok(reason) => return Ok(Some(Serving::Failed(reason))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if folder.join(COMPLETE).try_exists()? {
        return Ok(Some(Serving::Complete));
    }
    Ok(match (is_dead, folder.join(REQUEST).try_exists()?) {
        (_, true) => None,
        (false, false) => Some(Serving::Serving),
        (true, false) if !folder.try_exists()? => None,
        (true, false) => Some(Serving::Failed("its server was killed".into())),
    })
}

/// IDs of the containers whose pages were asked for, and not ended since.
///
/// # Errors
/// Where the folder cannot be read.
pub fn containers(root: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        entries => entries?.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect(),
    }
}

/// A container's folder.
fn folder(root: &Path, id: &OsStr) -> io::Result<PathBuf> {
    let name = name_of(id).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no container's ID", id.display())))?;
    Ok(root.join(name))
}

/// The folder of a container whose pages are asked for.
pub(super) fn requested(root: &Path, id: &OsStr) -> Option<PathBuf> {
    folder(root, id).ok().filter(|folder| folder.join(REQUEST).exists())
}

/// Takes the request for oneself; the lock is held as long as anybody has the file.
pub(super) fn take(folder: &Path) -> io::Result<File> {
    let lock = File::open(folder.join(LOCK))?;
    let begin = Instant::now();
    while !lock_for_oneself(&lock)? {
        // Somebody may only have looked.
        if begin.elapsed() >= Duration::from_secs(1) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "they are served already"));
        }
        thread::sleep(LOOK);
    }
    // Whoever has ended it in between has removed it.
    fs::remove_file(folder.join(REQUEST))?;
    Ok(lock)
}

/// Whether the agent wants it to end.
pub(super) fn is_cancelled(folder: &Path) -> bool {
    folder.join(CANCEL).exists()
}

/// Says how it ended.
pub(super) fn settle(folder: &Path, outcome: &Result<(), String>) -> io::Result<()> {
    let (name, reason) = match outcome {
        Ok(()) => (COMPLETE, ""),
        Err(reason) => (FAILED, reason.as_str()),
    };
    let new = folder.join(format!("{name}~"));
    fs::write(&new, reason)?;
    fs::rename(new, folder.join(name))
}

/// Removes the folder, if it is there.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn lock_for_oneself(lock: &File) -> io::Result<bool> {
    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "id-1";

    #[test]
    fn what_is_asked_for_is_nobodys_until_it_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!((state(root, ID).unwrap(), requested(root, ID.as_ref())), (None, None));
        assert!(end(root, ID, Duration::ZERO).unwrap());
        assert_eq!(containers(&root.join("none")).unwrap(), [""; 0]);
        request(root, ID).unwrap();
        assert_eq!(containers(root).unwrap(), [ID]);
        let folder = requested(root, ID.as_ref()).unwrap();
        assert_eq!(state(root, ID).unwrap(), None);
        let lock = take(&folder).unwrap();
        assert_eq!((state(root, ID).unwrap(), requested(root, ID.as_ref())), (Some(Serving::Serving), None));
        assert!(!end(root, ID, Duration::ZERO).unwrap() && is_cancelled(&folder));
        drop(lock);
        assert!(matches!(state(root, ID).unwrap(), Some(Serving::Failed(reason)) if reason.contains("killed")));
        assert!(end(root, ID, Duration::ZERO).unwrap() && !folder.exists());
    }

    #[test]
    fn its_end_is_known_and_gone_with_the_next_request() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for (outcome, wanted) in [(Ok(()), Serving::Complete), (Err("why".to_owned()), Serving::Failed("why".into()))] {
            request(root, ID).unwrap();
            let folder = requested(root, ID.as_ref()).unwrap();
            let lock = take(&folder).unwrap();
            settle(&folder, &outcome).unwrap();
            assert_eq!(state(root, ID).unwrap(), Some(wanted.clone()));
            drop(lock);
            assert_eq!(state(root, ID).unwrap(), Some(wanted));
        }
    }

    #[test]
    fn what_was_ended_is_not_taken() {
        let root = tempfile::tempdir().unwrap();
        request(root.path(), ID).unwrap();
        let folder = requested(root.path(), ID.as_ref()).unwrap();
        assert!(end(root.path(), ID, Duration::ZERO).unwrap());
        assert_eq!(take(&folder).unwrap_err().kind(), io::ErrorKind::NotFound);
        for id in ["", "..", "a/b", "a b"] {
            assert_eq!(request(root.path(), id).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{id}");
            assert!(
                state(root.path(), id).is_err() && end(root.path(), id, Duration::ZERO).is_err() && requested(root.path(), id.as_ref()).is_none()
            );
        }
    }
}
