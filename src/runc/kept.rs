//! CRIU's logs, kept on the node's disk when what they lie in goes: for a person, by `drover support`.
//!
//! ```text
//! <root>/<UID of the Migration or of the replacement>/ <container>.dump.log         of a checkpoint: by the Migration
//!                                                      <container>.restore.log      of a restore: by the replacement
//!                                                      <container>.lazy-pages.log   of its daemon
//! ```
//!
//! Nothing depends on them: what cannot be kept is not kept, and nobody waits for it.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    keeper::{FOLDER, LOG as LAZY_PAGES},
    name_of,
};
use crate::markers::evidence::LOG as RESTORE;

/// Where they lie on a node. On disk, since they are read when all is over.
pub const ROOT: &str = "/var/lib/drover/logs";
/// CRIU's log of a dump, as runc names it.
pub const DUMP: &str = "dump.log";
/// So much of the end of each is kept, in bytes.
const MOST_OF_ONE: u64 = 1 << 20;
/// Of so many Migrations and pods they are kept.
const MOST_FOLDERS: usize = 64;
/// And no more bytes than these, but for the newest folder.
const MOST: u64 = 64 << 20;

/// Logs that are open, and outlast the folder that they lie in.
#[derive(Debug, Default)]
pub struct Logs(Vec<(&'static str, File)>);

impl Logs {
    /// Those of a restore, by CRIU's working folder.
    #[must_use]
    pub fn of_restore(work: &Path) -> Self {
        let paths = [(RESTORE, work.join(RESTORE)), (LAZY_PAGES, work.join(FOLDER).join(LAZY_PAGES))];
        Self(paths.into_iter().filter_map(|(name, path)| Some((name, File::open(path).ok()?))).collect())
    }

    /// One that is known by its path; none where it is not there.
    #[must_use]
    pub fn one(name: &'static str, path: &Path) -> Self {
        Self(File::open(path).map(|file| (name, file)).into_iter().collect())
    }

    /// Copies their ends below `root`, and removes what is too old there.
    pub fn keep(self, root: &Path, uid: &str, container: &str) {
        let (Some(uid), Some(container)) = (name_of(uid.as_ref()), name_of(container.as_ref())) else { return };
        if self.0.is_empty() {
            return;
        }
        let folder = root.join(uid);
        for (name, log) in self.0 {
            let _ = copy(log, &folder, &format!("{container}.{name}"));
        }
        let _ = prune(root);
    }
}

fn copy(mut log: File, folder: &Path, name: &str) -> io::Result<()> {
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(MOST_OF_ONE)))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // Two may keep the same log; whoever is last replaces a whole file by a whole file.
    let part = folder.join(format!("{name}~{}", std::process::id()));
    let copied = File::options().write(true).create(true).truncate(true).mode(0o600).open(&part);
    let copied = copied.and_then(|mut file| io::copy(&mut log.take(MOST_OF_ONE), &mut file)).and_then(|_| fs::rename(&part, folder.join(name)));
    if copied.is_err() {
        let _ = fs::remove_file(&part);
    }
    copied
}

/// Removes the folders that were written least lately.
fn prune(root: &Path) -> io::Result<()> {
    let mut folders: Vec<(SystemTime, u64, PathBuf)> = vec![];
    for folder in fs::read_dir(root)?.flatten() {
        let path = folder.path();
        let Ok(written) = folder.metadata().and_then(|found| found.modified()) else { continue };
        let bytes = fs::read_dir(&path).map(|files| files.flatten().filter_map(|file| Some(file.metadata().ok()?.len())).sum()).unwrap_or_default();
        folders.push((written, bytes, path));
    }
    folders.sort();
    let mut total = 0;
    for (at, (_, bytes, path)) in folders.into_iter().rev().enumerate() {
        total += bytes;
        if at > 0 && (at >= MOST_FOLDERS || total > MOST) {
            let _ = fs::remove_dir_all(path);
        }
    }
    Ok(())
}

/// One log that was kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    /// `<UID>/<file>`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// What was kept since then.
///
/// # Errors
/// Where the folder is there but cannot be read.
pub fn list(root: &Path, since: SystemTime) -> io::Result<Vec<Kept>> {
    let folders = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        other => other?,
    };
    let mut found = vec![];
    for folder in folders.flatten() {
        let uid = folder.file_name().to_string_lossy().into_owned();
        // It may have been removed since, to make room for others.
        let Ok(files) = fs::read_dir(folder.path()) else { continue };
        for file in files.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let is_new = file.metadata().and_then(|found| found.modified()).is_ok_and(|written| written >= since);
            if is_new && !name.contains('~') {
                found.push(Kept { name: format!("{uid}/{name}"), path: file.path() });
            }
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;

    fn names(root: &Path, since: SystemTime) -> Vec<String> {
        list(root, since).unwrap().into_iter().map(|kept| kept.name).collect()
    }

    #[test]
    fn logs_outlast_their_folder_by_their_ends_and_are_nobody_elses_to_read() {
        let (work, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = root.path().join("logs");
        assert_eq!(names(&root, SystemTime::UNIX_EPOCH), [""; 0]);
        fs::create_dir(work.path().join(FOLDER)).unwrap();
        let most = usize::try_from(MOST_OF_ONE).unwrap();
        fs::write(work.path().join(RESTORE), ["x".repeat(most), "the end\n".to_owned()].concat()).unwrap();
        fs::write(work.path().join(FOLDER).join(LAZY_PAGES), "pages\n").unwrap();
        let logs = Logs::of_restore(work.path());
        drop(work);
        logs.keep(&root, "uid", "c");
        assert_eq!(names(&root, SystemTime::UNIX_EPOCH), ["uid/c.lazy-pages.log", "uid/c.restore.log"]);
        let kept = fs::read_to_string(root.join("uid/c.restore.log")).unwrap();
        assert!(kept.len() == most && kept.ends_with("xthe end\n"), "{}", kept.len());
        for (path, mode) in [("", 0o700), ("uid", 0o700), ("uid/c.restore.log", 0o600)] {
            assert_eq!(fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777, mode, "{path}");
        }
    }

    #[test]
    fn no_name_leads_out_and_what_is_not_there_makes_no_folder() {
        let root = tempfile::tempdir().unwrap();
        let log = root.path().join("log");
        fs::write(&log, "x").unwrap();
        let logs = root.path().join("below/logs");
        for (uid, container) in [("..", "c"), ("../up", "c"), ("uid", "../../c"), ("", "c")] {
            Logs::one(DUMP, &log).keep(&logs, uid, container);
        }
        Logs::one(DUMP, &root.path().join("none")).keep(&logs, "uid", "c");
        assert!(!root.path().join("below").exists());
    }

    #[test]
    fn the_oldest_go_and_the_rest_is_found_by_its_time() {
        let root = tempfile::tempdir().unwrap();
        let log = root.path().join("log");
        fs::write(&log, "x").unwrap();
        let logs = root.path().join("logs");
        for at in 0..MOST_FOLDERS + 3 {
            Logs::one(DUMP, &log).keep(&logs, &format!("{at:03}"), "c");
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(at).unwrap() + 1);
            File::open(logs.join(format!("{at:03}"))).unwrap().set_modified(time).unwrap();
        }
        let left = names(&logs, SystemTime::UNIX_EPOCH);
        assert_eq!((left.len(), left[0].as_str(), left[63].as_str()), (MOST_FOLDERS, "003/c.dump.log", "066/c.dump.log"));
        assert_eq!(names(&logs, SystemTime::now() + Duration::from_secs(9)), [""; 0]);
    }

    #[test]
    fn a_few_large_ones_push_the_older_out_but_the_newest_stays() {
        let root = tempfile::tempdir().unwrap();
        for (at, megabytes) in [(1, 1), (2, 40), (3, 70)] {
            let folder = root.path().join(at.to_string());
            fs::create_dir(&folder).unwrap();
            File::create(folder.join("c.dump.log")).unwrap().set_len(megabytes << 20).unwrap();
            File::open(&folder).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(at)).unwrap();
        }
        prune(root.path()).unwrap();
        assert_eq!(names(root.path(), SystemTime::UNIX_EPOCH), ["3/c.dump.log"]);
    }
}
