//! The end of a source that goes before the release, whose archives then stand for it (R13, R14).

use std::path::PathBuf;

use super::{Look, SourceAgent, disk};
use crate::{
    agent::journal::Journal,
    api::attestation::{Archived, At, Kept},
    domain::{keys, tasks::nothing_left},
    ports::{Failure, PortResult, TaskState},
};

impl Look {
    fn is_without_gate(&self) -> bool {
        self.migration.status.as_ref().and_then(|s| s.source.as_ref()).is_none_or(|source| source.without_gate)
    }
}

impl SourceAgent {
    /// Ends a source whose kubelet shows its deletion. Without a gate that kubelet may have started a container again that ended after the vote, and the
    /// checkpoint would be outrun. It starts none any more now, and none was started as long as the voted ones live: so they are looked at once more, and what
    /// is seen is written down before they end (R8).
    pub(super) async fn kill_first(&self, look: &Look) -> PortResult<()> {
        let journal = &look.journal;
        if look.is_without_gate() && !journal.unmoved {
            match self.nothing_ran_since_the_dump(journal).await {
                Ok(()) => self.save(&Journal { unmoved: true, ..journal.clone() })?,
                Err(error) if error.kind == Failure::Permanent => {
                    tracing::warn!(migration = journal.migration, namespace = journal.namespace, %error, "the checkpoint may not be the last that the pod executed");
                }
                Err(error) => return Err(error),
            }
        }
        self.kill(look).await
    }

    /// The kubelet does not list the pod any more: says so once nothing of it can start again. Archives, journal and fence stay.
    pub(super) async fn end(&self, look: &Look) -> PortResult<()> {
        let tasks = self.parts.runtime.tasks(&look.journal.pod_uid).await?;
        let fence = self.parts.markers.fenced_by(&look.journal.pod_uid).map_err(|e| disk("read the fence", &e))?;
        let fenced = !look.is_without_gate() && fence.as_deref() == Some(look.journal.migration_uid.as_str());
        // Without the fence a kubelet that has forgotten the pod may still start a container that it has made for it.
        let over = if fenced { tasks.iter().all(|task| task.state == TaskState::Stopped) } else { tasks.is_empty() };
        if !over {
            return self.kill_first(look).await;
        }
        let at = self.now();
        let paths = look.journal.archives.values().map(|path| path.display().to_string()).collect();
        self.attest(look, |status| {
            status.archived = Some(Archived { at: at.clone(), paths, last: fenced || look.journal.unmoved });
            status.ended = Some(At { at });
        })
        .await
    }

    /// A copy is confirmed: nothing of the source is needed any more. `keep`: the copy lacks the memory, so that the archives stay for a person.
    pub(super) async fn collect(&self, look: &Look, keep: bool) -> PortResult<()> {
        let journal = &look.journal;
        let archives = if keep { self.keep_archives(journal).await? } else { self.remove_archives(journal).await.map(|()| vec![])? };
        let pod = self.parts.kubelet.pod(&journal.pod_uid).await?;
        if !nothing_left(pod.as_ref(), &self.parts.runtime.tasks(&journal.pod_uid).await?) {
            return Ok(());
        }
        self.parts.markers.unfence(&journal.pod_uid, &journal.migration_uid).map_err(|e| disk("remove the fence", &e))?;
        let at = self.now();
        self.attest(look, |status| {
            status.cleaned = Some(At { at: at.clone() });
            if !archives.is_empty() {
                status.kept = Some(Kept { at, archives });
            }
        })
        .await?;
        self.parts.journals.remove(&journal.migration_uid).map_err(|e| disk("remove the journal", &e))
    }

    /// The kubelet removes the volumes with the source, so that a fallback needs them from elsewhere (R14).
    pub(super) async fn keep_volumes(&self, journal: &mut Journal) -> PortResult<()> {
        let archive = self.volumes_archive(journal);
        if self.parts.inside.archive_volumes(&journal.pod_uid, &archive).await? {
            journal.archives.insert(keys::VOLUMES_TAG.to_owned(), archive);
        }
        Ok(())
    }

    /// Where this migration keeps the pod's volumes.
    pub(super) fn volumes_archive(&self, journal: &Journal) -> PathBuf {
        self.parts.checkpoint_folder.join(format!("volumes-{}.tar", journal.migration_uid))
    }

    /// From the end of the source on nothing else holds the memory (R14).
    pub(super) async fn sync_archives(&self, journal: &Journal) -> PortResult<()> {
        for archive in journal.archives.values() {
            self.parts.kubelet.sync(archive).await.map_err(|e| e.context("failed to sync an archive"))?;
        }
        Ok(())
    }
}
