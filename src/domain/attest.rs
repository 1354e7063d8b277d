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
}

/// What the source agent does next.
///
/// `destination` is the other side's attestation. `budget` bounds the time from the freeze to the vote: the agent gives up by itself
/// when it is over, so that a manager or an API server that is away cannot keep a pod frozen for ever.
#[must_use]
pub fn source_next(
    status: &MigrationStatus,
    own: &AttestationStatus,
    destination: &AttestationStatus,
    journal: &SourceJournal,
    deletion: Deletion,
    budget: Duration,
    now: Timestamp,
) -> SourceAction {
    let voted = journal.voted || own.vote.is_some();
    let aborted = journal.aborted.clone().or_else(|| own.abort.as_ref().map(|abort| abort.message.clone()));
    match status.verdict {
        Some(Verdict::Rollback) if own.thawed.is_none() => SourceAction::Thaw,
        Some(Verdict::Commit) if own.ended.is_none() => end_step(status, destination, deletion),
        Some(_) => SourceAction::Wait,
        None if status.phase == Phase::Done => SourceAction::Wait,
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
        Phase::Freezing if own.frozen.is_none() => SourceAction::Freeze,
        Phase::Checkpointing if own.checkpointed.is_none() => SourceAction::Checkpoint,
        Phase::Transferring if own.pushed.is_none() => SourceAction::Push,
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
    /// Look whether the runtime has restored the containers; then take the checkpoint out of reach and say so (R16).
    Restore,
    /// Make sure that the replacement never starts, or find that it has; the claims on the disk decide, not what is running (R3).
    Revoke,
    /// Look once more whether the same containers run (R17).
    Confirm,
    /// Remove the checkpoint's blobs; the tags go on naming the base images.
    CleanAfterCommit,
    /// Remove everything of the migration's repository.
    CleanAfterRollback,
}

/// What the destination agent does next; `source` is the other side's attestation.
#[must_use]
pub fn destination_next(status: &MigrationStatus, own: &AttestationStatus, source: &AttestationStatus) -> DestinationAction {
    match status.verdict {
        Some(Verdict::Rollback) if own.cleaned.is_none() => DestinationAction::CleanAfterRollback,
        Some(Verdict::Commit) if own.confirmed.is_none() => DestinationAction::Confirm,
        Some(Verdict::Commit) if own.cleaned.is_none() => DestinationAction::CleanAfterCommit,
        Some(_) => DestinationAction::Wait,
        None => match status.phase {
            Phase::Preparing if own.prepared.is_none() && own.failure.is_none() => DestinationAction::Prepare,
            Phase::AwaitingReadiness if own.ready.is_none() && own.failure.is_none() && source.vote.is_some() => DestinationAction::Verify,
            Phase::Restoring if own.restored.is_none() && own.never_started.is_none() => {
                if status.revocation.is_some() {
                    DestinationAction::Revoke
                } else {
                    DestinationAction::Restore
                }
            }
            _ => DestinationAction::Wait,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::attestation::{At, Remark};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    const BUDGET: Duration = Duration::from_mins(1);

    fn second(n: i64) -> Timestamp {
        Timestamp::from_second(n).unwrap()
    }

    fn at() -> MicroTime {
        MicroTime(second(0))
    }

    fn in_phase(phase: Phase) -> MigrationStatus {
        MigrationStatus { phase, ..Default::default() }
    }

    fn next(status: &MigrationStatus, own: &AttestationStatus, journal: &SourceJournal, deletion: Deletion, now: i64) -> SourceAction {
        source_next(status, own, &AttestationStatus::default(), journal, deletion, BUDGET, second(now))
    }

    #[test]
    fn the_source_follows_the_phases() {
        let none = SourceJournal::default();
        let own = AttestationStatus::default();
        assert_eq!(next(&in_phase(Phase::Preparing), &own, &none, Deletion::NotShown, 0), SourceAction::Wait);
        assert_eq!(next(&in_phase(Phase::Freezing), &own, &none, Deletion::NotShown, 0), SourceAction::Freeze);
        assert_eq!(next(&in_phase(Phase::Checkpointing), &own, &none, Deletion::NotShown, 0), SourceAction::Checkpoint);
        assert_eq!(next(&in_phase(Phase::Transferring), &own, &none, Deletion::NotShown, 0), SourceAction::Push);
    }

    #[test]
    fn an_unvoted_source_gives_up_when_its_budget_is_over() {
        let journal = SourceJournal { frozen_at: Some(second(0)), ..Default::default() };
        let own = AttestationStatus::default();
        assert_eq!(next(&in_phase(Phase::Transferring), &own, &journal, Deletion::NotShown, 60), SourceAction::Push);
        assert!(matches!(next(&in_phase(Phase::Transferring), &own, &journal, Deletion::NotShown, 62), SourceAction::Abort(_)));
        let told = AttestationStatus { abort: Some(Remark { at: at(), message: "late".into() }), ..Default::default() };
        let journal = SourceJournal { aborted: Some("late".into()), ..journal };
        assert_eq!(next(&in_phase(Phase::Transferring), &told, &journal, Deletion::NotShown, 63), SourceAction::Thaw);
        let thawed = AttestationStatus { thawed: Some(At { at: at() }), ..told };
        assert_eq!(next(&in_phase(Phase::Transferring), &thawed, &journal, Deletion::NotShown, 64), SourceAction::Wait);
    }

    #[test]
    fn a_voter_waits_for_the_verdict_however_long_it_takes() {
        let journal = SourceJournal { frozen_at: Some(second(0)), voted: true, aborted: None };
        let own = AttestationStatus::default();
        for phase in [Phase::AwaitingReadiness, Phase::Restoring] {
            assert_eq!(next(&in_phase(phase), &own, &journal, Deletion::NotShown, 100_000), SourceAction::Wait);
        }
        let rollback = MigrationStatus { verdict: Some(Verdict::Rollback), phase: Phase::Finishing, ..Default::default() };
        assert_eq!(next(&rollback, &own, &journal, Deletion::NotShown, 100_000), SourceAction::Thaw);
    }

    #[test]
    fn the_source_is_killed_only_when_its_kubelet_shows_the_deletion() {
        let status = MigrationStatus { verdict: Some(Verdict::Commit), phase: Phase::Finishing, ..Default::default() };
        let confirmed = AttestationStatus { confirmed: Some(At { at: at() }), ..Default::default() };
        let step = |destination: &AttestationStatus, deletion| {
            source_next(&status, &AttestationStatus::default(), destination, &SourceJournal::default(), deletion, BUDGET, second(0))
        };
        assert_eq!(step(&confirmed, Deletion::NotShown), SourceAction::Wait);
        assert_eq!(step(&confirmed, Deletion::Shown), SourceAction::Kill);
        assert_eq!(step(&confirmed, Deletion::Gone), SourceAction::Forget);
        assert_eq!(step(&AttestationStatus::default(), Deletion::Shown), SourceAction::Wait);
    }

    #[test]
    fn a_frozen_pod_that_is_deleted_is_thawed_before_the_vote() {
        let journal = SourceJournal { frozen_at: Some(second(0)), ..Default::default() };
        let step = next(&in_phase(Phase::Checkpointing), &AttestationStatus::default(), &journal, Deletion::Shown, 1);
        assert!(matches!(step, SourceAction::Abort(_)));
    }
}
