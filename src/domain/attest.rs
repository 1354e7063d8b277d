//! What an agent does next for a migration, on either side. Pure: what is on the disk and in the runtime comes in as an argument.

use std::time::Duration;

use jiff::Timestamp;

use super::verdict;
use crate::api::{AttestationStatus, MigrationStatus, Phase, Verdict};

/// What the source's own kubelet shows of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// It is an ordinary pod.
    NotShown,
    /// It is being deleted.
    Shown,
    /// The kubelet does not list it any more.
    Gone,
}

/// What the source agent has written down on its own disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceJournal {
    /// When it began to freeze; absent while it has not.
    pub frozen_at: Option<Timestamp>,
    /// It has voted.
    pub voted: bool,
    /// It will never vote, and why.
    pub aborted: Option<String>,
}

/// One step of the source agent. Each may be repeated after a crash in its middle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceAction {
    /// Nothing to do.
    Wait,
    /// Look at what the pod's processes hold, and say so; nothing is touched.
    Inspect,
    /// Fence the pod and pause its containers.
    Freeze,
    /// Have the kubelet checkpoint every container.
    Checkpoint,
    /// Pack and push the checkpoints.
    Push,
    /// Check that they are the last that was executed, write that down, and say so (R2).
    Vote,
    /// Write down that there will be no vote, and say so.
    Abort(String),
    /// Resume, unfence, remove the archives, say so.
    Thaw,
    /// SIGKILL to the paused processes, whose deletion the kubelet shows.
    Kill,
    /// The pod is gone: remove fence and archives, say so.
    Forget,
    /// The pod, which goes first, is gone: say so, and where its archives are kept (R14).
    End,
    /// A copy of a pod that went first is confirmed: remove its archives, say so (R18).
    Collect,
    /// Its replacement goes on without the memory: keep the archives for a person, say so (R15).
    Keep,
}

/// What the source agent does next.
///
/// `copy` is the attestation of the node where the copy is: the destination's, or the fallback's once there is one. `budget` bounds the time from the freeze to the vote: the agent gives up by itself
/// when it is over, so that a manager or an API server that is away cannot keep a pod frozen for ever.
#[must_use]
pub fn source_next(
    status: &MigrationStatus,
    own: &AttestationStatus,
    copy: &AttestationStatus,
    journal: &SourceJournal,
    deletion: Deletion,
    budget: Duration,
    now: Timestamp,
) -> SourceAction {
    let voted = journal.voted || own.vote.is_some();
    let aborted = journal.aborted.clone().or_else(|| own.abort.as_ref().map(|abort| abort.message.clone()));
    match status.verdict {
        Some(_) if own.archived.is_some() => {
            if own.cleaned.is_some() {
                SourceAction::Wait
            } else if verdict::may_collect(status, copy) {
                SourceAction::Collect
            } else if verdict::must_keep(status, copy) {
                SourceAction::Keep
            } else {
                SourceAction::Wait
            }
        }
        Some(Verdict::Rollback) if own.thawed.is_none() && verdict::may_thaw(status, voted, aborted.is_some()) => SourceAction::Thaw,
        Some(Verdict::Commit) if own.ended.is_none() => end_step(status, copy, deletion),
        Some(_) => SourceAction::Wait,
        None if status.phase == Phase::Done => SourceAction::Wait,
        None if own.ended.is_none() && verdict::may_end_first(status, voted, deletion != Deletion::NotShown) => {
            if deletion == Deletion::Gone {
                SourceAction::End
            } else {
                SourceAction::Kill
            }
        }
        None if voted => match (&own.vote, status.phase) {
            (None, Phase::Transferring) => SourceAction::Vote,
            _ => SourceAction::Wait,
        },
        None => match aborted {
            Some(reason) if own.abort.is_none() => SourceAction::Abort(reason),
            Some(_) if own.thawed.is_none() && verdict::may_thaw(status, voted, true) => SourceAction::Thaw,
            Some(_) => SourceAction::Wait,
            None => unvoted_step(status, own, journal, deletion, budget, now),
        },
    }
}

fn end_step(status: &MigrationStatus, destination: &AttestationStatus, deletion: Deletion) -> SourceAction {
    if !verdict::may_end(status, destination, deletion != Deletion::NotShown) {
        return SourceAction::Wait;
    }
    if deletion == Deletion::Gone { SourceAction::Forget } else { SourceAction::Kill }
}

fn unvoted_step(
    status: &MigrationStatus,
    own: &AttestationStatus,
    journal: &SourceJournal,
    deletion: Deletion,
    budget: Duration,
    now: Timestamp,
) -> SourceAction {
    if let Some(frozen_at) = journal.frozen_at {
        let frozen_for = Duration::try_from(now.duration_since(frozen_at)).unwrap_or_default();
        if frozen_for > budget {
            return SourceAction::Abort(format!(
                "the source was frozen for {} s without a vote; spec.freezeBudgetSeconds allows {} s",
                frozen_for.as_secs(),
                budget.as_secs()
            ));
        }
        if deletion != Deletion::NotShown {
            return SourceAction::Abort("the source pod is being deleted; it is thawed so that it can end in order".to_owned());
        }
    }
    match status.phase {
        Phase::Preflight if own.inspected.is_none() => SourceAction::Inspect,
        Phase::Freezing if own.frozen.is_none() => SourceAction::Freeze,
        // Ahead of the manager, which only follows with the phase: each word of it would cost the frozen pod its way there and back. Not further, since what
        // the registry tells before it counts the checkpoint as made is not believed.
        Phase::Freezing | Phase::Checkpointing if own.checkpointed.is_none() => SourceAction::Checkpoint,
        Phase::Checkpointing | Phase::Transferring if own.pushed.is_none() => SourceAction::Push,
        Phase::Transferring => SourceAction::Vote,
        _ => SourceAction::Wait,
    }
}

/// One step of the destination agent. Each may be repeated after a crash in its middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestinationAction {
    /// Nothing to do.
    Wait,
    /// Pull the base images and copy their blobs into the own registry.
    Prepare,
    /// Ask the own registry for the images that were voted for.
    Verify,
    /// Expect the same-name replacement, which was made just now: arm its claims and say so.
    Arm,
    /// Look whether the runtime has restored the containers; then take the checkpoint out of reach and say so (R16).
    Restore,
    /// Make sure that the replacement never starts, or find that it has; the claims on the disk decide, not what is running (R3).
    Revoke,
    /// Look once more whether the same containers run (R17).
    Confirm,
    /// It was decided in doubt that the replacement goes on: take the checkpoint out of reach, let it start from its image, and say when it runs.
    StartCold,
    /// Remove the checkpoint's blobs; the tags go on naming the base images.
    CleanAfterCommit,
    /// Remove everything of the migration's repository.
    CleanAfterRollback,
}

/// What the destination agent does next; `source` is the other side's attestation.
#[must_use]
pub fn destination_next(status: &MigrationStatus, own: &AttestationStatus, source: &AttestationStatus) -> DestinationAction {
    match status.verdict {
        // R18: until the original is seen running again the checkpoint here is the copy that a loss of its node would leave. One that was deleted runs
        // again as the fallback, and its agent collects the archives only once that is confirmed.
        Some(Verdict::Rollback) if status.fallback.is_some() && source.cleaned.is_none() => DestinationAction::Wait,
        Some(Verdict::Rollback) if source.frozen.is_some() && source.thawed.is_none() && source.ended.is_none() => DestinationAction::Wait,
        Some(Verdict::Rollback) if own.cleaned.is_none() => DestinationAction::CleanAfterRollback,
        Some(Verdict::Commit) if own.confirmed.is_none() && status.resolved.is_some() => DestinationAction::StartCold,
        Some(Verdict::Commit) if own.confirmed.is_none() => DestinationAction::Confirm,
        Some(Verdict::Commit) if own.cleaned.is_none() && verdict::may_collect_copy(status, source) => DestinationAction::CleanAfterCommit,
        Some(_) => DestinationAction::Wait,
        None => match status.phase {
            Phase::Preparing if own.prepared.is_none() && own.failure.is_none() => DestinationAction::Prepare,
            Phase::AwaitingReadiness if own.ready.is_none() && own.failure.is_none() && source.vote.is_some() => DestinationAction::Verify,
            Phase::SourceDeleting if status.placeholder.is_some() && own.armed.is_none() && is_made(status) => DestinationAction::Arm,
            Phase::Restoring if own.never_started.is_some() || own.died.is_some() => DestinationAction::Wait,
            // Also of one that was restored: its pod may have been deleted since, and what has died is said to have (R7).
            Phase::Restoring if status.revocation.is_some() => DestinationAction::Revoke,
            Phase::Restoring if own.restored.is_none() => DestinationAction::Restore,
            _ => DestinationAction::Wait,
        },
    }
}

fn is_made(status: &MigrationStatus) -> bool {
    status.replacement.as_ref().is_some_and(|replacement| !replacement.uid.is_empty())
}

/// One step of the source node's agent for the fallback. Each may be repeated after a crash in its middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallbackAction {
    /// Nothing to do.
    Wait,
    /// Push the kept archives into the own registry, arm the fallback's claims.
    Prepare,
    /// As [`DestinationAction::Restore`].
    Restore,
    /// As [`DestinationAction::Confirm`].
    Confirm,
    /// As [`DestinationAction::CleanAfterCommit`].
    Clean,
    /// It was given up: as [`DestinationAction::CleanAfterRollback`].
    Clear,
}

/// What the source node's agent does next for the pod that goes on from the kept archive (R13). It has a verdict from the start: Rollback.
///
/// R4, R17: it confirms only what the manager has written down as restored, its pod being there by then. A kubelet may hear late of a deletion, and with the
/// confirmation the archives go.
#[must_use]
pub fn fallback_next(status: &MigrationStatus, own: &AttestationStatus) -> FallbackAction {
    let Some(fallback) = status.fallback.as_ref().filter(|it| status.verdict == Some(Verdict::Rollback) && !it.uid.is_empty()) else {
        return FallbackAction::Wait;
    };
    if own.cleaned.is_some() {
        FallbackAction::Wait
    } else if status.given_up.is_some() {
        FallbackAction::Clear
    } else if own.prepared.is_none() {
        FallbackAction::Prepare
    } else if own.restored.is_none() {
        FallbackAction::Restore
    } else if own.confirmed.is_some() {
        FallbackAction::Clean
    } else if fallback.containers.is_empty() {
        FallbackAction::Wait
    } else {
        FallbackAction::Confirm
    }
}

#[cfg(test)]
mod tests;
