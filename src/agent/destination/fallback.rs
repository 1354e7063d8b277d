//! The fallback: a pod whose source was deleted goes on where it was, from the archive kept on this node (R13). It is a restore like any other, but for
//! where the checkpoint comes from.

use std::{path::Path, time::Duration};

use super::{DestinationAgent, Look, SOON};
use crate::{
    api::{Role, attestation::PushedImage},
    domain::{
        attest::{FallbackAction, fallback_next},
        keys,
    },
    ports::{Mending, PortError, PortResult, PushTarget},
};

impl DestinationAgent {
    /// Takes steps for one migration that falls back onto this node, until there is none to take; returns when to look again though nothing changes.
    ///
    /// # Errors
    /// What a port said; the same step is taken again later.
    pub async fn reconcile_fallback(&self, namespace: &str, migration: &str) -> PortResult<Option<Duration>> {
        loop {
            let Some(look) = self.look(namespace, migration, Role::Fallback).await? else { return Ok(None) };
            let action = fallback_next(&look.course, &look.status);
            let done = match action {
                FallbackAction::Wait => return Ok(None),
                FallbackAction::Prepare => self.prepare_fallback(&look).await,
                FallbackAction::Restore => self.restore(&look).await,
                FallbackAction::Confirm => self.confirm(&look).await.map(|()| true),
                FallbackAction::Clean => self.clean_after_commit(&look).await.map(|()| true),
                FallbackAction::Clear => self.clean_after_rollback(&look).await,
            };
            match done {
                Ok(true) => {
                    tracing::info!(migration, namespace, ?action, "fallback");
                    self.recovered(look.uid());
                }
                Ok(false) => return Ok(Some(SOON)),
                Err(error) => {
                    self.failed(&look, action == FallbackAction::Prepare, error).await?;
                    // Said, and tried again: whatever is mended counts.
                    return Ok(Some(super::PATIENCE));
                }
            }
        }
    }

    /// False until the pod's sandbox is there.
    async fn prepare_fallback(&self, look: &Look) -> PortResult<bool> {
        self.adopt_bases(look).await?;
        self.push_kept(look).await?;
        self.arm(look, look.pod_uid())?;
        if !self.ready_the_sandbox(look, look.pod_uid()).await? {
            return Ok(false);
        }
        self.lay_out(look, look.pod_uid(), &look.checkpoints()).await?;
        self.attest_prepared(look).await?;
        Ok(true)
    }

    /// Pushes the kept archives into this node's own registry, and holds them to the vote.
    async fn push_kept(&self, look: &Look) -> PortResult<()> {
        let journal = self.parts.journals.load(look.uid()).map_err(|e| PortError::transient(format!("failed to read the journal: {e}")))?;
        let journal =
            journal.ok_or_else(|| PortError::permanent("this node's journal of the migration is gone, and with it the place of the archives"))?;
        let target =
            PushTarget { address: self.parts.push_address.clone(), node: self.parts.node.clone(), repository: look.repository()?.to_owned() };
        for (container, base_image) in look.bases() {
            let archive = journal.archives.get(container);
            let archive = archive.ok_or_else(|| PortError::permanent(format!("the journal names no archive of container {container}")))?;
            let mending = Mending { base_image: base_image.to_owned() };
            let pushed = self.parts.pusher.push(archive, container, &mending, &target).await;
            let voted = look.course.containers.iter().find(|c| c.name == container).map(|c| c.digest.as_str());
            held_to_the_vote(archive, pushed, voted)?;
        }
        if let Some(voted) = look.volumes() {
            let archive = journal.archives.get(keys::VOLUMES_TAG);
            let archive = archive.ok_or_else(|| PortError::permanent("the journal names no archive of the pod's volumes"))?;
            held_to_the_vote(archive, self.parts.pusher.push_volumes_archive(archive, &target).await, Some(&voted.digest))?;
        }
        Ok(())
    }
}

fn held_to_the_vote(archive: &Path, pushed: PortResult<PushedImage>, voted: Option<&str>) -> PortResult<()> {
    // Whatever it is, it may pass (a door that has not seen the verdict yet, a full disk), and nothing else is left to try.
    let pushed = pushed.map_err(|e| PortError::transient(format!("the kept archive {} cannot be used: {e}", archive.display())))?;
    if voted == Some(pushed.digest.as_str()) {
        return Ok(());
    }
    Err(PortError::permanent(format!("the kept archive {} is not the one that was voted for: it gives {}", archive.display(), pushed.digest)))
}
