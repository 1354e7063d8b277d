//! What the source agent writes down on its own disk before it acts, so that a restarted agent knows what it has done.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::attestation::{ContainerId, Pushed, Vote},
    domain::{attest::SourceJournal, ids},
    markers::write_durably,
};

/// The journal of one migration that this node is the source of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    /// UID of the Migration.
    pub migration_uid: String,
    /// Namespace of Migration and pod.
    pub namespace: String,
    /// Name of the Migration.
    pub migration: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Seconds from the freeze until the agent gives up by itself.
    pub budget_seconds: u32,
    /// When it began to freeze.
    pub frozen_at: Option<Timestamp>,
    /// The containers that it pauses.
    pub containers: Vec<ContainerId>,
    /// Container → archive on this node.
    pub archives: BTreeMap<String, PathBuf>,
    /// Container ID → CPU nanoseconds when the last dump had returned (R2).
    pub cpu_nanos: BTreeMap<String, u64>,
    /// What it has pushed.
    pub pushed: Option<Pushed>,
    /// Its vote.
    pub vote: Option<Vote>,
    /// It will never vote, and why.
    pub aborted: Option<String>,
    /// It has thawed, but not said so yet.
    pub thawed: bool,
    /// The containers of the vote were still paused, and had executed nothing since, when the kubelet showed the deletion of a source that goes first (R8).
    #[serde(default)]
    pub unmoved: bool,
}

impl Journal {
    /// What the pure decision needs of it.
    #[must_use]
    pub fn view(&self) -> SourceJournal {
        SourceJournal { frozen_at: self.frozen_at, voted: self.vote.is_some(), aborted: self.aborted.clone() }
    }

    /// Whether the pod must be thawed without asking anybody: it was given up or its budget is over, and no vote forbids it.
    #[must_use]
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        let frozen_for = self.frozen_at.map_or(0, |at| now.duration_since(at).as_secs());
        self.vote.is_none() && !self.thawed && (self.aborted.is_some() || frozen_for > i64::from(self.budget_seconds))
    }

    /// Whether every container has been dumped and its CPU time taken after the last dump.
    #[must_use]
    pub fn is_checkpointed(&self) -> bool {
        !self.containers.is_empty()
            && self.containers.iter().all(|c| self.archives.contains_key(&c.name) && self.cpu_nanos.contains_key(&c.container_id))
    }
}

/// The journals of a node, one file a migration.
#[derive(Debug, Clone)]
pub struct Journals {
    folder: PathBuf,
}

impl Journals {
    /// The journals below a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn path(&self, migration_uid: &str) -> io::Result<PathBuf> {
        if ids::is_uid(migration_uid) {
            Ok(self.folder.join(format!("{migration_uid}.json")))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "migration UID: only hex digits and dashes are allowed"))
        }
    }

    /// The journal of a migration, or none.
    ///
    /// # Errors
    /// Where the file is there but cannot be read or understood.
    pub fn load(&self, migration_uid: &str) -> io::Result<Option<Journal>> {
        match fs::read(self.path(migration_uid)?) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a journal; durable when it returns.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, journal: &Journal) -> io::Result<()> {
        write_durably(&self.path(&journal.migration_uid)?, &serde_json::to_vec(journal).map_err(io::Error::other)?)
    }

    /// Removes a journal; nothing happens where there is none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, migration_uid: &str) -> io::Result<()> {
        match fs::remove_file(self.path(migration_uid)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Every journal that can be read; a broken one is logged and left.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn all(&self) -> io::Result<Vec<Journal>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            other => other?,
        };
        let mut journals = vec![];
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(uid) = name.strip_suffix(".json") else { continue };
            match self.load(uid) {
                Ok(journal) => journals.extend(journal),
                Err(error) => tracing::error!(file = name, %error, "a journal cannot be read; its pod may stay frozen: look at the file"),
            }
        }
        Ok(journals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_outlives_its_agent() {
        let folder = tempfile::tempdir().unwrap();
        let journals = Journals::new(folder.path());
        assert_eq!(journals.all().unwrap(), vec![]);
        let journal =
            Journal { migration_uid: "0f1c22aa-0001".into(), frozen_at: Some(Timestamp::UNIX_EPOCH), budget_seconds: 5, ..Default::default() };
        journals.save(&journal).unwrap();
        assert_eq!(journals.all().unwrap(), vec![journal.clone()]);
        assert!(!journal.is_overdue(Timestamp::from_second(5).unwrap()));
        assert!(journal.is_overdue(Timestamp::from_second(6).unwrap()));
        journals.remove(&journal.migration_uid).unwrap();
        journals.remove(&journal.migration_uid).unwrap();
        assert_eq!(journals.load(&journal.migration_uid).unwrap(), None);
        assert!(journals.load("../../etc/passwd").is_err());
    }
}
