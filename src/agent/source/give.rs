//! Memory that stays with the frozen source until its copy has fetched it (post-copy).

use std::{sync::Arc, sync::PoisonError, time::Duration};

use tokio::task::JoinSet;

use super::{Look, SourceAgent, steps::target_of};
use crate::{
    api::attestation::ContainerId,
    ports::{Failure, PortResult, PushTarget, Pusher},
};

/// How long until a way that could not be opened, or was closed before anybody used it, is opened again.
const AGAIN: Duration = Duration::from_millis(500);

impl Look {
    /// Whether the memory stays where it is until the copy runs.
    pub(super) fn leaves_memory(&self) -> bool {
        self.dumps_itself() && self.migration.spec.post_copy
    }
}

impl SourceAgent {
    /// Lets the copy fetch the memory from the dump to the verdict, and not after that. Also after a crash of this agent, as long as nothing was fetched.
    pub(super) fn give_or_stop(&self, look: &Look) -> PortResult<()> {
        let journal = &look.journal;
        let is_frozen = journal.is_checkpointed() && journal.aborted.is_none() && look.status.thawed.is_none();
        let gives = look.leaves_memory() && is_frozen && look.migration.verdict().is_none();
        let mut giving = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        if !gives {
            giving.remove(&journal.migration_uid);
        } else if !giving.contains_key(&journal.migration_uid) {
            let target = target_of(look)?;
            let gifts = journal.containers.iter().map(|container| give(Arc::clone(&self.parts.pusher), container.clone(), target.clone()));
            giving.insert(journal.migration_uid.clone(), gifts.collect::<JoinSet<()>>());
        }
        Ok(())
    }
}

async fn give(pusher: Arc<dyn Pusher>, container: ContainerId, target: PushTarget) {
    loop {
        match pusher.give_memory(&container, &target).await {
            Ok(()) => return tracing::info!(container = container.name, "the copy has all of the memory"),
            Err(error) if error.kind == Failure::Permanent => {
                return tracing::warn!(%error, container = container.name, "the memory is not given away");
            }
            Err(error) => tracing::warn!(%error, container = container.name, "the memory cannot be fetched yet"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
