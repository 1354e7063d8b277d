//! The course from the release on: forward, or held with a reason.

use std::time::Duration;

use super::{
    Effect, Step,
    course::Course,
    observed::{self, pod_is_gone},
    status::{self, StatusExt as _},
};
use crate::api::{
    MigrationStatus, Outcome, Phase, Verdict,
    migration::{RestoredContainer, condition},
};

/// Time in Restoring after which a person is told that the migration is held.
const HOLD_AFTER: Duration = Duration::from_mins(2);
/// How long a rollback waits for a destination that does not answer before it leaves the cleaning to that node's janitor.
const CLEAN_PATIENCE: Duration = Duration::from_secs(45);
/// After this time the waiting replacement, which was never released, is removed by force: its node does not answer.
const FORCE_AFTER: Duration = Duration::from_secs(20);
/// What a migrated pod's status says (I5).
const MIGRATED: &str = "the destination's runtime restored the pod from this migration's checkpoint, and it was seen running after the commit";

impl Course<'_> {
    pub(super) fn restoring(&self, mut status: MigrationStatus) -> Step {
        let Some(mut replacement) = status.replacement.clone() else { return Step::wait() };
        let destination = self.observed.destination_status();
        if let Some(restored) = &destination.restored {
            replacement.containers =
                restored.containers.iter().map(|c| RestoredContainer { name: c.name.clone(), container_id: c.container_id.clone() }).collect();
            status.replacement = Some(replacement);
            status.verdict = Some(Verdict::Commit);
            status.frozen_millis = self.observed.source_status().frozen.as_ref().map(|frozen| status::millis(frozen.at.0, restored.at.0));
            status.clear_condition(condition::HELD, "Restored", self.now);
            status.message.clear();
            status.enter(Phase::Finishing, self.now);
            return Step::write(status);
        }
        if let Some(failure) = &destination.failure {
            return self.hold(status, "RestoreFailed", &failure.message);
        }
        if pod_is_gone(self.observed.replacement.as_ref(), &replacement.uid) {
            return self.hold(
                status,
                "ReplacementGone",
                &format!("the released replacement {} is gone, and nobody has proved that it never ran", replacement.name),
            );
        }
        let Some(pod) = &self.observed.replacement else { return Step::wait() };
        if pod.metadata.deletion_timestamp.is_some() {
            return self.hold(status, "ReplacementDeleted", &format!("the released replacement {} is being deleted", replacement.name));
        }
        if !observed::claimed_by(pod, self.migration) {
            return Step::perform(vec![Effect::Claim { uid: replacement.uid }]);
        }
        if !observed::has_images(pod, &status.containers) {
            return Step::perform(vec![Effect::RewriteImages { uid: replacement.uid }]);
        }
        if status.time_in(Phase::Restoring, self.now) > HOLD_AFTER {
            return self.hold(status, "NoAttestation", "the destination has not said whether the containers were restored");
        }
        Step::wait()
    }

    /// After the release nothing is undone without proof: the source stays frozen, and a person is told why.
    pub(super) fn hold(&self, mut status: MigrationStatus, reason: &'static str, message: &str) -> Step {
        let message = format!(
            "held after the release, the source stays frozen: {message}. Look at the replacement with kubectl describe pod and at the destination node; \
             the migration goes on by itself as soon as the destination's agent attests the restore"
        );
        if status.condition_is(condition::HELD, reason, &message) {
            return Step::wait();
        }
        status.set_condition(condition::HELD, true, reason, &message, self.now);
        status.message = message;
        Step::write(status)
    }

    pub(super) fn finish_commit(&self, mut status: MigrationStatus) -> Step {
        let Some(source) = status.source.clone() else { return Step::wait() };
        let destination = self.observed.destination_status();
        if destination.confirmed.is_none() {
            return match &destination.failure {
                Some(failure) => self.hold_unconfirmed(status, &failure.message.clone()),
                None => Step::wait(),
            };
        }
        if !pod_is_gone(self.observed.source.as_ref(), &source.uid) {
            let deleting = self.observed.source.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
            return if deleting {
                Step::told(status, "the copy is confirmed; waiting for the source to end")
            } else {
                Step::perform(vec![Effect::DeleteSource { uid: source.uid }])
            };
        }
        let ended = self.observed.source_status().ended.is_some();
        if !ended || destination.cleaned.is_none() {
            let side = if ended { "destination" } else { "source" };
            return Step::told(status, &format!("the copy is confirmed; waiting for the {side} node's agent to clean up"));
        }
        if self.observed.pull_credentials_left {
            return Step::perform(vec![Effect::RemovePullCredentials]);
        }
        MIGRATED.clone_into(&mut status.message);
        status.clear_condition(condition::FROZEN, "Migrated", self.now);
        status.clear_condition(condition::HELD, "Migrated", self.now);
        status.finish(Outcome::Migrated, self.now);
        Step::write(status)
    }

    pub(super) fn hold_unconfirmed(&self, mut status: MigrationStatus, message: &str) -> Step {
        let message = format!("committed but not confirmed, the source stays frozen and is not deleted: {message}");
        if status.condition_is(condition::HELD, "NotConfirmed", &message) {
            return Step::wait();
        }
        status.set_condition(condition::HELD, true, "NotConfirmed", &message, self.now);
        status.message = message;
        Step::write(status)
    }

    pub(super) fn finish_rollback(&self, mut status: MigrationStatus) -> Step {
        let waited = status.time_in(Phase::Finishing, self.now);
        let replacement = status.replacement.clone().unwrap_or_default();
        if let Some(pod) = self.observed.replacement.as_ref().filter(|pod| self.observed.is_our_replacement(pod, self.migration)) {
            let uid = pod.metadata.uid.clone().unwrap_or_else(|| replacement.uid.clone());
            let force = waited > FORCE_AFTER;
            return if pod.metadata.deletion_timestamp.is_none() || force {
                Step::perform(vec![Effect::DeleteReplacement { uid, force }])
            } else {
                Step { after: Some(Duration::from_secs(1)), ..Step::default() }
            };
        }
        let thawed = self.observed.source_attestation.is_none() || self.observed.source_status().thawed.is_some();
        if !thawed {
            let node = status.source.as_ref().map_or("", |s| s.node_name.as_str()).to_owned();
            return if waited > CLEAN_PATIENCE {
                Step::told(status, &format!("waiting for the agent of node {node} to thaw the source"))
            } else {
                Step::wait()
            };
        }
        let cleaned = self.observed.destination_attestation.is_none() || self.observed.destination_status().cleaned.is_some();
        if !cleaned && waited <= CLEAN_PATIENCE {
            return Step { after: Some(Duration::from_secs(1)), ..Step::default() };
        }
        if self.observed.pull_credentials_left {
            return Step::perform(vec![Effect::RemovePullCredentials]);
        }
        if self.observed.locked_by(self.migration) {
            let uid = status.source.as_ref().map(|s| s.uid.clone()).unwrap_or_default();
            return Step::perform(vec![Effect::Unlock { uid }]);
        }
        if !cleaned {
            status.message.push_str("; the destination's agent does not answer and cleans up when it is back");
        }
        status.clear_condition(condition::FROZEN, "RolledBack", self.now);
        status.finish(Outcome::RolledBack, self.now);
        Step::write(status)
    }

    pub(super) fn done(&self, status: &MigrationStatus) -> Step {
        // A migration that was refused after it had locked its pod.
        if self.observed.locked_by(self.migration) {
            let uid = status.source.as_ref().map(|s| s.uid.clone()).unwrap_or_default();
            return Step::perform(vec![Effect::Unlock { uid }]);
        }
        if observed::has_finalizer(self.migration) {
            return Step::perform(vec![Effect::RemoveFinalizer]);
        }
        let Some(ttl) = self.migration.spec.ttl_seconds_after_finished else { return Step::default() };
        let left = Duration::from_secs(ttl.into()).saturating_sub(status.time_in(Phase::Done, self.now));
        if left.is_zero() { Step::perform(vec![Effect::DeleteMigration]) } else { Step { after: Some(left), ..Step::default() } }
    }
}
