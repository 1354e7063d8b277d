//! Pre-copy: memory that is sent while the pod still runs, so that of the frozen one only what has changed since then must travel (runtime lane).

use std::{
    collections::{BTreeMap, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use backon::{ConstantBuilder, Retryable as _};
use tokio::task::JoinSet;

use super::{Look, SourceAgent, steps::target_of};
use crate::{
    api::attestation::ContainerId,
    domain::{attest::SourceAction, pages::PageIndex},
    ports::{Failure, PortResult, PushTarget, Pusher},
};

/// Bytes of memory below which a frozen pod's pages are there as soon as what has changed of them would be.
const LEAST: u64 = 16 << 20;
/// How soon a pod whose memory is being sent is looked at again. It runs meanwhile.
const SOON: Duration = Duration::from_millis(100);
/// How long the freeze waits for it: longer than a kubelet leaves an agent that has died more than once. A destination that takes nothing for so long is left to
/// the push to complain of.
const LONGEST: Duration = Duration::from_mins(2);
/// How long until what failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long what is known of a pod that is being moved is kept: longer than a freeze may take.
const FORGOTTEN: Duration = Duration::from_hours(1);

/// Which pages the destination has, by container.
type Known = BTreeMap<String, Arc<PageIndex>>;

/// Memory that is on its way before the freeze.
pub(super) struct Sending {
    pub(super) begun: Instant,
    sent: Arc<Mutex<Known>>,
    /// Ends with this.
    task: JoinSet<()>,
}

impl Sending {
    /// Whether the freeze need not wait for it any more. What is on its way still is ended: it would take its time from what must travel of the frozen pod.
    fn is_over(&mut self) -> bool {
        while self.task.try_join_next().is_some() {}
        if self.begun.elapsed() > LONGEST {
            self.task.abort_all();
            return true;
        }
        self.task.is_empty()
    }
}

impl SourceAgent {
    /// Sends the memory ahead of the freeze; when to look again for its end, none where the freeze need not wait. Nothing of it is needed: where it fails, or this
    /// agent dies, all of the memory travels with the dump.
    pub(super) fn pre_copy_before(&self, look: &Look, action: &SourceAction) -> PortResult<Option<Duration>> {
        let uid = &look.journal.migration_uid;
        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        // Of migrations that were removed meanwhile, too.
        sending.retain(|_, one| one.begun.elapsed() < FORGOTTEN);
        if !matches!(action, SourceAction::Freeze | SourceAction::Checkpoint) {
            sending.remove(uid);
            return Ok(None);
        }
        let bytes = look.status.inspected.as_ref().and_then(|inspected| inspected.bytes).unwrap_or(0);
        let is_begun = look.journal.frozen_at.is_some() || *action == SourceAction::Checkpoint;
        if is_begun || !self.parts.pre_copies || !look.dumps_itself() || look.leaves_memory() || bytes < LEAST {
            return Ok(None);
        }
        let containers = look.migration.status.iter().flat_map(|status| &status.source).flat_map(|source| &source.containers);
        let containers: Vec<ContainerId> = containers.map(crate::api::migration::RunningContainer::id).collect();
        let one = match sending.entry(uid.clone()) {
            Entry::Occupied(begun) => begun.into_mut(),
            Entry::Vacant(place) => place.insert(send(&self.parts.pusher, containers, bytes, target_of(look)?)),
        };
        Ok((!one.is_over()).then_some(SOON))
    }

    /// Which pages of a container the destination has.
    pub(super) fn known_of(&self, look: &Look, container: &str) -> Arc<PageIndex> {
        let sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sending.get(&look.journal.migration_uid).map(|one| one.sent.lock().unwrap_or_else(PoisonError::into_inner));
        sent.and_then(|known| known.get(container).cloned()).unwrap_or_default()
    }
}

fn send(pusher: &Arc<dyn Pusher>, containers: Vec<ContainerId>, bytes: u64, target: PushTarget) -> Sending {
    let (sent, mut task) = (Arc::new(Mutex::new(Known::new())), JoinSet::new());
    let (pusher, result) = (Arc::clone(pusher), Arc::clone(&sent));
    task.spawn(async move {
        for container in containers {
            // A pod is not frozen for a destination that cannot be reached while it still runs.
            let attempt = || pusher.pre_copy(&container, bytes, &target);
            let tried = attempt.retry(ConstantBuilder::new().with_delay(AGAIN).without_max_times()).when(|error| error.kind == Failure::Transient);
            match tried.notify(|error, _| tracing::info!(%error, container = container.name, "the memory is sent again before the freeze")).await {
                Ok(pages) => drop(result.lock().unwrap_or_else(PoisonError::into_inner).insert(container.name, Arc::new(pages))),
                Err(error) => {
                    tracing::info!(%error, container = container.name, "the memory was not sent before the freeze; all of it is sent after that");
                }
            }
        }
    });
    Sending { begun: Instant::now(), sent, task }
}
