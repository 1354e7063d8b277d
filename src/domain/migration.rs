//! The state machine of a migration: what the manager writes and does next, from what it reads.
//!
//! # Flow
//! The controller reads the Migration and what it speaks of ([`Observed`]), calls [`advance`], and obeys the [`Step`]: either it writes the new status
//! by compare-and-swap and comes again, or it performs the effects. Never both, so that an effect always follows a decision that is already durable
//! (R1: the release is written before anything of it is done).
//!
//! # Guarantees
//! Pure and total: no clock, no randomness, no error. Phases go forward only; the verdict is written once (I3); no rollback is written after
//! the release (I4); every effect may be performed twice.
//!
//! # Assumptions
//! Effects are idempotent and carry UIDs. Attestations are written by the agents of their nodes alone.

mod confirmation;
mod course;
mod doubt;
mod fallback;
mod observed;
mod owner;
mod released;
mod source_first;
mod status;
#[cfg(test)]
mod tests;
mod turn;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use course::Course;
pub(in crate::domain) use observed::condition;
pub(in crate::domain) use observed::node_of;
pub use observed::{Observed, Told, pod_is_gone};
pub(in crate::domain) use status::StatusExt;
pub use status::age;

use super::verdict;
use crate::api::{Migration, MigrationStatus, Phase, Role, Verdict, migration::SourceStatus};

/// How often an unchanged migration is looked at again; everything else comes by watch.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What the manager does next.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Step {
    /// The new status, to be written by compare-and-swap. With it there are no effects.
    pub status: Option<MigrationStatus>,
    /// What is to be done, in this order.
    pub effects: Vec<Effect>,
    /// When to look again though nothing has changed.
    pub after: Option<Duration>,
}

/// One thing that the manager does. Each names what it acts on by UID, and may be done twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Put Drover's finalizer on the Migration (R12).
    AddFinalizer,
    /// Take it off: the migration has ended.
    RemoveFinalizer,
    /// Mark the pod as this migration's by compare-and-swap, and take the request's annotation off (R11).
    Lock {
        /// UID of the source pod.
        uid: String,
    },
    /// Take the mark off again.
    Unlock {
        /// UID of the pod that carries it: the source, or what has taken its place under its name.
        uid: String,
    },
    /// Count the source as disrupted in this budget, or go on doing so.
    TakeDisruption {
        /// Name of the budget.
        budget: String,
    },
    /// Take a place at the destination, by compare-and-swap.
    TakePermit {
        /// Its node.
        node: String,
    },
    /// Count it as healthy again.
    GiveBackDisruption {
        /// Name of the budget.
        budget: String,
    },
    /// Make the attestation of one side.
    CreateAttestation {
        /// The side.
        role: Role,
        /// Its node.
        node: String,
        /// UID of the pod there.
        pod_uid: String,
    },
    /// Lay out the pod's pull credentials for the destination's agent.
    LayOutPullCredentials,
    /// Remove them again.
    RemovePullCredentials,
    /// Have the API server judge a same-name replacement without making it, so that a refusal comes while the source still runs.
    RehearseReplacement,
    /// Make the waiting replacement, or the placeholder of a same-name one.
    CreateReplacement,
    /// Keep what other pods are made from once the source is gone.
    KeepTemplate,
    /// Remove it again.
    RemoveTemplate,
    /// Make the same-name replacement, from the template.
    CreateSameName,
    /// Make the pod that goes on from the kept archive on the source node, from the template (R13).
    CreateFallback,
    /// Delete that pod again: it was given up.
    DeleteFallback {
        /// UID of that pod.
        uid: String,
    },
    /// Delete the placeholder.
    DeletePlaceholder {
        /// UID of the placeholder.
        uid: String,
        /// Remove the object at once: the node does not answer.
        force: bool,
    },
    /// Release: name the claim on the replacement, or the fallback; the webhook rewrites the images in the same request.
    Claim {
        /// UID of that pod.
        uid: String,
    },
    /// Give the init containers of a waiting pod what stands in for their images; nothing is released by that.
    WriteInitImages {
        /// UID of that pod.
        uid: String,
    },
    /// Release where the webhook was missed: write the checkpoint images.
    RewriteImages {
        /// UID of that pod.
        uid: String,
    },
    /// Delete the replacement, which was never released.
    DeleteReplacement {
        /// UID of the replacement.
        uid: String,
        /// Remove the object at once: the node does not answer.
        force: bool,
    },
    /// Have the source's ReplicaSet take it first when it has a pod too many.
    MarkSurplus {
        /// UID of the source pod.
        uid: String,
    },
    /// Take the label from the source by which its Job knows it: a Job has no pod too many.
    ReleaseSource {
        /// UID of the source pod.
        uid: String,
    },
    /// Give the copy the label by which the source's controller adopts it.
    HandOver {
        /// UID of the replacement.
        uid: String,
        /// Only as long as it is Ready: its ReplicaSet, with one pod too many, would take it and not the source.
        ready: bool,
    },
    /// Delete the source: its copy is confirmed (R17), or it goes first (R13).
    DeleteSource {
        /// UID of the source pod.
        uid: String,
    },
    /// Delete the Migration: its time after the end is over.
    DeleteMigration,
}

/// What comes next for a migration.
#[must_use]
pub fn advance(migration: &Migration, observed: &Observed, now: Timestamp) -> Step {
    confirmation::with_news(migration, observed, now, next_step(migration, observed, now))
}

fn next_step(migration: &Migration, observed: &Observed, now: Timestamp) -> Step {
    let status = migration.status.clone().unwrap_or_default();
    let course = Course { migration, observed, now };
    if status.phase != Phase::Done && !observed::has_finalizer(migration) && !observed::is_being_deleted(migration) {
        return Step::perform(vec![Effect::AddFinalizer]);
    }
    if course.is_abandoned(&status) {
        return Step::perform(vec![Effect::RemovePullCredentials, Effect::RemoveFinalizer]);
    }
    if let Some(reason) = course.reason_to_roll_back(&status) {
        return course.roll_back(status, &reason);
    }
    match status.phase {
        Phase::Pending => course.pending(status),
        Phase::Preflight => course.preflight(status),
        Phase::Preparing => course.preparing(status),
        Phase::Freezing => course.freezing(status),
        Phase::Checkpointing => course.checkpointing(status),
        Phase::Transferring => course.transferring(status),
        Phase::AwaitingReadiness => course.awaiting_readiness(status),
        Phase::SourceDeleting => course.source_deleting(status),
        Phase::Restoring => course.restoring(status),
        Phase::Finishing => match status.verdict {
            Some(Verdict::Commit) => course.finish_commit(status),
            Some(Verdict::Rollback) if status.fallback.is_some() => course.finish_fallback(status),
            Some(Verdict::Rollback) => course.finish_rollback(status),
            None => Step::wait(),
        },
        Phase::Done => course.done(&status),
    }
}

/// The step after an effect that failed for good: before the release a rollback or the fallback, with the reason; after it a hold.
#[must_use]
pub fn effect_failed(migration: &Migration, observed: &Observed, message: &str, now: Timestamp) -> Step {
    let status = migration.status.clone().unwrap_or_default();
    let course = Course { migration, observed, now };
    if verdict::may_roll_back(&status) {
        course.roll_back(status, message)
    } else if status.phase == Phase::Restoring {
        course.hold(status, "EffectFailed", message)
    } else if status.phase == Phase::SourceDeleting {
        if verdict::may_fall_back(&status, observed.source_status(), observed.source_is_gone(&status)) {
            course.fall_back(status, message)
        } else {
            // The delete was refused: its source may be thawed no more (R13), and nothing else may run before it is gone.
            let message = format!("the source cannot be deleted: {message}; the migration goes on by itself as soon as it can{}", course.archives());
            course.held(status, "EffectFailed", message)
        }
    } else if status.fallback.is_some() && status.phase == Phase::Finishing {
        course.fallback_failed(status, message)
    } else {
        Step::wait()
    }
}

impl Step {
    fn perform(effects: Vec<Effect>) -> Self {
        Self { status: None, effects, after: Some(LOOK_AGAIN) }
    }

    fn wait() -> Self {
        Self::perform(vec![])
    }

    fn write(status: MigrationStatus) -> Self {
        Self { status: Some(status), effects: vec![], after: None }
    }

    /// Waits, and says what for where the message does not say so already.
    fn told(mut status: MigrationStatus, message: &str) -> Self {
        if status.message == message {
            return Self::wait();
        }
        message.clone_into(&mut status.message);
        Self::write(status)
    }
}

/// The source as `status.source` records it.
#[must_use]
pub fn source_of(pod: &Pod) -> SourceStatus {
    observed::source_status(pod)
}
