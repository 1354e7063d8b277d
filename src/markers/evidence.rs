//! What proves how a restore ended: which container it was, and CRIU's own log of it.
//!
//! CRIU writes `restore.log` into the task's working folder, which containerd removes together with a container whose restore was refused
//! (MEASURED.md 8). The log is open by the time the gate runs, so the gate gives the file a second name; it then outlives the folder, whole. The second
//! name lies beside the claim where that is the same file system, else below the runtime's own root.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::markers::write_durably;

/// The folder of containerd's tasks below its root; the root's own name is the installation's choice.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// CRIU's log in its working folder, as runc names it.
pub const LOG: &str = "restore.log";
/// Folder of Drover's below the runtime's root, for logs that cannot be linked beside their claim.
const LOGS: &str = "drover-restore-logs";

/// What the gate has let through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The runtime's ID of the container.
    pub id: String,
    /// CRIU's log on this node; none where it could not be kept.
    pub log: Option<PathBuf>,
    /// The boot of the node in which it was; none where that could not be told.
    #[serde(default)]
    pub boot: Option<String>,
}

/// This boot of the node: the kernel's boot ID, and when its first process was started (in clock ticks), since nodes that are namespaces of one
/// machine share the former. None where /proc does not say it.
#[must_use]
pub fn this_boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let first = fs::read_to_string("/proc/1/stat").ok()?;
    // proc(5): starttime is field 22; the name before it, in parentheses, may hold spaces.
    let started = first.rsplit_once(')')?.1.split_whitespace().nth(19)?.to_owned();
    Some(format!("{} {started}", id.trim()))
}

/// Writes the evidence of one restore; a log that cannot be kept is no error, since then nothing can be proved from it.
///
/// # Errors
/// Where the file cannot be written.
pub fn note(path: &Path, id: &str, bundle: Option<&Path>) -> io::Result<()> {
    let log = bundle.and_then(|bundle| keep_log(path, bundle));
    let evidence = Evidence { id: id.to_owned(), log, boot: this_boot() };
    write_durably(path, &serde_json::to_vec(&evidence).map_err(io::Error::other)?)
}

/// The evidence of a restore, or none.
///
/// # Errors
/// Where the file is there but cannot be read or understood.
pub fn read(path: &Path) -> io::Result<Option<Evidence>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the container of this bundle is being restored: CRIU has opened its log by the time that hooks run, and a container that is made anew has none.
#[must_use]
pub fn is_restore(bundle: &Path) -> bool {
    work_of(bundle).join(LOG).exists()
}

/// CRIU's working folder for a bundle's container: containerd's bundle names it by a link; a runtime without one works in the bundle itself.
#[must_use]
pub fn work_of(bundle: &Path) -> PathBuf {
    fs::canonicalize(bundle.join("work")).unwrap_or_else(|_| bundle.to_owned())
}

fn keep_log(evidence: &Path, bundle: &Path) -> Option<PathBuf> {
    let work = work_of(bundle);
    let log = work.join(LOG);
    let beside = evidence.with_extension("restore-log");
    let _ = fs::remove_file(&beside);
    if fs::hard_link(&log, &beside).is_ok() {
        return Some(beside);
    }
    let root = work.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == TASKS))?.parent()?;
    let folder = root.join(LOGS);
    fs::create_dir_all(&folder).ok()?;
    let pod = evidence.parent()?.file_name()?.to_string_lossy().into_owned();
    let far = folder.join(format!("{pod}.{}", beside.file_name()?.to_string_lossy()));
    let _ = fs::remove_file(&far);
    fs::hard_link(&log, &far).ok().map(|()| far)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_outlives_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let bundle = root.path().join("bundle");
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("restore.log"), "begin\n").unwrap();
        let path = root.path().join("gate/pod/c.evidence");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        note(&path, "id", Some(&bundle)).unwrap();
        // CRIU goes on writing, and the folder goes.
        fs::write(bundle.join("restore.log"), "begin\nError (x): no\n").unwrap();
        fs::remove_dir_all(&bundle).unwrap();
        let evidence = read(&path).unwrap().unwrap();
        assert_eq!(evidence.id, "id");
        assert_eq!(fs::read_to_string(evidence.log.unwrap()).unwrap(), "begin\nError (x): no\n");
    }

    #[test]
    fn without_a_log_there_is_evidence_of_the_container_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("c.evidence");
        note(&path, "id", None).unwrap();
        assert_eq!(read(&path).unwrap(), Some(Evidence { id: "id".into(), log: None, boot: this_boot() }));
        assert_eq!(read(&root.path().join("d.evidence")).unwrap(), None);
    }
}
