//! The steps between freeze and verdict, and the end of a source whose copy lives.

use std::{collections::BTreeMap, fs, io, path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Look, SourceAgent, disk};
use crate::{
    agent::journal::Journal,
    api::attestation::{At, ContainerId, Kept, Pushed, PushedImage, Vote},
    domain::{attest::SourceAction, keys, tasks::all_paused, verdict},
    ports::{Growing, Mending, PortError, PortResult, PushTarget},
};

impl SourceAgent {
    pub(super) async fn perform(&self, look: &Look, action: &SourceAction) -> PortResult<()> {
        match action {
            SourceAction::Wait => Ok(()),
            SourceAction::Inspect => self.inspect(look).await,
            SourceAction::Freeze => self.within_budget(look, "the freeze", self.freeze(look)).await,
            SourceAction::Checkpoint => self.within_budget(look, "the checkpoint", self.checkpoint(look)).await,
            SourceAction::Push => self.within_budget(look, &transfer_to(look), self.push(look)).await,
            SourceAction::Vote => self.vote(look).await,
            SourceAction::Abort(reason) => self.abort(look, reason).await,
            SourceAction::Thaw => self.thaw(look).await,
            SourceAction::Kill if look.is_source_first() => self.kill_first(look).await,
            SourceAction::Kill => self.kill(look).await,
            SourceAction::Forget => self.forget(look).await,
            SourceAction::End => self.end(look).await,
            SourceAction::Collect => self.collect(look, false).await,
            SourceAction::Keep => self.collect(look, true).await,
        }
    }

    /// Bounds a step by what is left of the freeze budget.
    async fn within_budget(&self, look: &Look, step: &str, work: impl Future<Output = PortResult<()>>) -> PortResult<()> {
        let left = self.budget_left(&look.journal);
        match tokio::time::timeout(left, work).await {
            Ok(done) => done,
            Err(_) => Err(PortError::permanent(format!(
                "{step} did not end within what was left of the freeze budget ({} s); raise spec.freezeBudgetSeconds",
                left.as_secs()
            ))),
        }
    }

    fn budget_left(&self, journal: &Journal) -> Duration {
        let budget = Duration::from_secs(journal.budget_seconds.into());
        let spent = journal.frozen_at.map(|at| Duration::try_from(self.parts.clock.now().duration_since(at)).unwrap_or_default());
        budget.saturating_sub(spent.unwrap_or_default())
    }

    /// Has the kubelet checkpoint every container, then takes the CPU time that must not change until the vote (R2).
    async fn checkpoint(&self, look: &Look) -> PortResult<()> {
        let mut journal = look.journal.clone();
        if !journal.is_checkpointed() {
            self.dump(look, &mut journal).await?;
        }
        let at = self.now();
        self.attest(look, |status| status.checkpointed = Some(At { at })).await
    }

    async fn dump(&self, look: &Look, journal: &mut Journal) -> PortResult<()> {
        // Taken again after a crash, the archives of the first time may be the last to have the memory: that is seen before they go.
        self.all_paused(journal).await?;
        self.remove_archives(journal).await?;
        journal.archives.clear();
        journal.cpu_nanos.clear();
        let bytes = look.status.inspected.as_ref().and_then(|inspected| inspected.bytes).unwrap_or(0);
        for container in journal.containers.clone() {
            let limit = self.budget_left(journal);
            let archive = if look.leaves_memory() {
                self.dump_but_memory(look, &container).await
            } else if look.dumps_itself() {
                self.dump_and_send(look, &container, bytes).await
            } else {
                self.parts.kubelet.checkpoint(&journal.namespace, &journal.pod, &container.name, limit).await
            };
            let archive = archive.map_err(|e| e.context(&format!("the checkpoint of container {} failed", container.name)))?;
            journal.archives.insert(container.name, archive);
        }
        if look.is_source_first() {
            self.keep_volumes(journal).await?;
        }
        self.all_paused(journal).await?;
        for container in &journal.containers {
            journal.cpu_nanos.insert(container.container_id.clone(), self.parts.runtime.cpu_nanos(&container.container_id).await?);
        }
        self.save(journal)
    }

    async fn dump_but_memory(&self, look: &Look, container: &ContainerId) -> PortResult<PathBuf> {
        let folder = self.parts.dump.prepare(&look.journal.migration_uid, &container.name, 0).await?;
        self.parts.dump.dump_but_memory(container, &folder).await?;
        Ok(folder)
    }

    /// Has the runtime checkpoint a container while what it has written of the memory is already on its way.
    async fn dump_and_send(&self, look: &Look, container: &ContainerId, bytes: u64) -> PortResult<PathBuf> {
        let folder = self.parts.dump.prepare(&look.journal.migration_uid, &container.name, bytes).await?;
        let target = target_of(look)?;
        let growing = Growing { folder: folder.clone(), container: container.name.clone(), bytes, known: self.known_of(look, &container.name) };
        let written = CancellationToken::new();
        let dump = async {
            self.parts.dump.dump(container, &folder).await?;
            written.cancel();
            PortResult::Ok(())
        };
        let send = async {
            if let Err(error) = self.parts.pusher.send_ahead(&growing, &target, written.clone()).await {
                tracing::info!(%error, container = container.name, "memory was not sent while it was written; it is sent after that");
            }
            Ok(())
        };
        // Where the dump fails nobody waits for the other.
        tokio::try_join!(dump, send)?;
        Ok(folder)
    }

    async fn push(&self, look: &Look) -> PortResult<()> {
        let mut journal = look.journal.clone();
        if journal.pushed.is_none() {
            let synced = async { if look.is_source_first() { self.sync_archives(&look.journal).await } else { Ok(()) } };
            let (images, ()) = tokio::try_join!(self.push_all(look), synced)?;
            journal.pushed = Some(Pushed { at: self.now(), images });
            self.save(&journal)?;
        }
        self.attest(look, |status| status.pushed = journal.pushed).await
    }

    async fn push_all(&self, look: &Look) -> PortResult<Vec<PushedImage>> {
        let target = target_of(look)?;
        let source = look.migration.status.as_ref().and_then(|status| status.source.as_ref());
        let source = source.ok_or_else(|| PortError::permanent("the Migration's status names no source"))?;
        let mut images = vec![];
        for container in &source.containers {
            let archive = look.journal.archives.get(&container.name);
            let archive = archive.ok_or_else(|| PortError::permanent(format!("there is no archive of container {}", container.name)))?;
            let mending = Mending { base_image: container.image.clone() };
            let pushed = self.parts.pusher.push(archive, &container.name, &mending, &target).await;
            images.push(pushed.map_err(|e| e.context(&format!("the push of container {} to node {} failed", container.name, target.node)))?);
        }
        // Everything of the pod is paused, so nothing in them changes any more.
        let pushed = if look.is_source_first() {
            let Some(kept) = look.journal.archives.get(keys::VOLUMES_TAG) else { return Ok(images) };
            self.parts.pusher.push_volumes_archive(kept, &target).await
        } else {
            let volumes = self.parts.inside.volumes(&look.journal.pod_uid).await?;
            if volumes.is_empty() {
                return Ok(images);
            }
            self.parts.pusher.push_volumes(&volumes, &target).await
        };
        images.push(pushed.map_err(|e| e.context(&format!("the push of the pod's volumes to node {} failed", target.node)))?);
        Ok(images)
    }

    /// R2: the same containers are still paused by this migration and have not executed anything since the last dump.
    async fn vote(&self, look: &Look) -> PortResult<()> {
        let mut journal = look.journal.clone();
        if journal.vote.is_none() {
            let pushed = look.status.pushed.as_ref().ok_or_else(|| PortError::permanent("nothing was pushed"))?;
            self.nothing_ran_since_the_dump(&journal).await?;
            journal.vote = Some(Vote { at: self.now(), containers: journal.containers.clone(), images: pushed.images.clone() });
            self.save(&journal)?;
        }
        self.attest(look, |status| status.vote = journal.vote).await
    }

    pub(super) async fn nothing_ran_since_the_dump(&self, journal: &Journal) -> PortResult<()> {
        self.all_paused(journal).await?;
        let mut cpu_nanos = BTreeMap::new();
        for container in &journal.containers {
            cpu_nanos.insert(container.container_id.clone(), self.parts.runtime.cpu_nanos(&container.container_id).await?);
        }
        let fence = self.parts.markers.fenced_by(&journal.pod_uid).map_err(|e| disk("read the fence", &e))?;
        verdict::may_vote(&journal.containers, &journal.cpu_nanos, &cpu_nanos, fence.as_deref() == Some(journal.migration_uid.as_str()))
            .map_err(PortError::permanent)
    }

    async fn all_paused(&self, journal: &Journal) -> PortResult<()> {
        let same = all_paused(&journal.containers, &self.live_tasks(&journal.pod_uid).await?);
        if same {
            Ok(())
        } else {
            Err(PortError::permanent("the pod's containers are not all paused any more: somebody thawed, ended or restarted one"))
        }
    }

    pub(super) async fn kill(&self, look: &Look) -> PortResult<()> {
        for task in self.live_tasks(&look.journal.pod_uid).await? {
            self.parts.runtime.kill(&task.id).await.map_err(|e| e.context("failed to end the source"))?;
        }
        Ok(())
    }

    async fn forget(&self, look: &Look) -> PortResult<()> {
        let journal = &look.journal;
        if !self.live_tasks(&journal.pod_uid).await?.is_empty() {
            // The kubelet forgot the pod, its runtime did not: end it all the same, its copy lives.
            self.kill(look).await?;
            return Err(PortError::transient("the source's containers have not ended yet"));
        }
        self.parts.markers.unfence(&journal.pod_uid, &journal.migration_uid).map_err(|e| disk("remove the fence", &e))?;
        // R15: no copy has the memory; the checkpoint stays for a person.
        let cold = look.migration.status.as_ref().is_some_and(|status| status.resolved.is_some());
        let archives = if cold { self.keep_archives(journal).await? } else { self.remove_archives(journal).await.map(|()| vec![])? };
        let at = self.now();
        self.attest(look, |status| {
            status.ended = Some(At { at: at.clone() });
            if !archives.is_empty() {
                status.kept = Some(Kept { at, archives });
            }
        })
        .await?;
        self.parts.journals.remove(&journal.migration_uid).map_err(|e| disk("remove the journal", &e))
    }

    /// Removes the archives that kubelet or runtime have written for this migration, also those that a crashed agent never heard of.
    pub(super) async fn remove_archives(&self, journal: &Journal) -> PortResult<()> {
        for container in &journal.containers {
            for archive in self.archives_of(journal, &container.name)? {
                fs::remove_file(archive).map_err(|e| disk("remove an archive", &e))?;
            }
        }
        match fs::remove_file(self.volumes_archive(journal)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk("remove the volumes' archive", &error)),
            _ => self.parts.dump.discard(&journal.migration_uid).await,
        }
    }

    /// The kubelet's archives of a container of this pod, oldest first.
    fn archives_of(&self, journal: &Journal, container: &str) -> PortResult<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.parts.checkpoint_folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            other => other.map_err(|e| disk("list the archives", &e))?,
        };
        let mut found = vec![];
        for entry in entries {
            let entry = entry.map_err(|e| disk("list the archives", &e))?;
            if is_archive_of(&entry.file_name().to_string_lossy(), &journal.pod, &journal.namespace, container) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Gives the archives names under which no later migration of a pod of this name removes them, and returns their paths. Where a crash fell
    /// in its middle, or after it, the same paths come out. One that no journal names counts too: the agent died before it heard of it.
    pub(super) async fn keep_archives(&self, journal: &Journal) -> PortResult<Vec<String>> {
        for container in &journal.containers {
            let Some(dump) = self.parts.dump.left(&journal.migration_uid, &container.name).await? else { continue };
            self.parts.dump.keep(&dump, &self.parts.checkpoint_folder.join(keys::kept_archive(&journal.migration_uid, &container.name))).await?;
        }
        self.parts.dump.discard(&journal.migration_uid).await?;
        let mut kept = vec![];
        let mut keep = |name: &str, from: Option<&PathBuf>| -> PortResult<()> {
            let to = self.parts.checkpoint_folder.join(keys::kept_archive(&journal.migration_uid, name));
            if let Some(from) = from {
                fs::rename(from, &to).map_err(|e| disk("keep an archive", &e))?;
            }
            if to.exists() {
                kept.push(to.display().to_string());
            }
            Ok(())
        };
        for container in &journal.containers {
            keep(&container.name, self.archives_of(journal, &container.name)?.last())?;
        }
        keep(keys::VOLUMES_TAG, Some(self.volumes_archive(journal)).filter(|archive| archive.exists()).as_ref())?;
        Ok(kept)
    }
}

pub(super) fn target_of(look: &Look) -> PortResult<PushTarget> {
    let destination = look.migration.status.as_ref().and_then(|status| status.destination.clone());
    let to = destination.ok_or_else(|| PortError::permanent("the Migration's status names no destination"))?;
    Ok(PushTarget { address: to.push_address, node: to.node_name, repository: to.repository })
}

/// The transfer, with the place that it goes to: that is where somebody must look when it does not end.
fn transfer_to(look: &Look) -> String {
    let destination = look.migration.status.as_ref().and_then(|status| status.destination.as_ref());
    destination.map_or_else(|| "the transfer".to_owned(), |d| format!("the transfer to the registry of node {} ({})", d.node_name, d.push_address))
}

/// Whether a file is the kubelet's archive of a container: `checkpoint-<pod>_<namespace>-<container>-<RFC 3339 time>.tar` (FACTS.md 1).
fn is_archive_of(file: &str, pod: &str, namespace: &str, container: &str) -> bool {
    let time = file.strip_prefix(&format!("checkpoint-{pod}_{namespace}-{container}-")).and_then(|rest| rest.strip_suffix(".tar"));
    time.map(str::as_bytes).is_some_and(|time| time.len() > 10 && time[..4].iter().all(u8::is_ascii_digit) && time[4] == b'-' && time[10] == b'T')
}

#[cfg(test)]
mod tests {
    use super::is_archive_of;

    #[test]
    fn only_the_containers_own_archives_are_removed() {
        let file = "checkpoint-web_shop-app-2026-11-23T06:20:00Z.tar";
        assert!(is_archive_of(file, "web", "shop", "app"));
        assert!(!is_archive_of(file, "web", "shop", "ap"));
        assert!(!is_archive_of("checkpoint-web_shop-app-2-2026-11-23T06:20:00Z.tar", "web", "shop", "app"));
        assert!(!is_archive_of("checkpoint-web_shop-app-2026-11-23T06:20:00Z.tar.part", "web", "shop", "app"));
    }
}
