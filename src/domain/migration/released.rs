//! The course from the release on: forward, or held with a reason.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{
    Effect, Step,
    course::Course,
    observed::{self, pod_is_gone},
    status::{self, StatusExt as _},
};
use crate::{
    api::{
        MigrationStatus, Outcome, Phase, Verdict,
        attestation::Remark,
        migration::{ReplacementStatus, RestoredContainer, condition},
    },
    domain::verdict,
};

/// Time in Restoring after which the destination is asked whether the replacement ever started.
const HOLD_AFTER: Duration = Duration::from_mins(2);
/// How long the destination may take to close the claims before a person is told.
const REVOCATION_PATIENCE: Duration = Duration::from_secs(30);
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
        if verdict::may_roll_back_released(&status, destination) {
            return self.roll_back_released(status);
        }
        if let Some(reason) = self.doubt(&status, &replacement) {
            return self.resolve_doubt(status, &reason);
        }
        let Some(pod) = &self.observed.replacement else { return Step::wait() };
        if !observed::claimed_by(pod, self.migration) {
            return Step::perform(vec![Effect::Claim { uid: replacement.uid }]);
        }
        if !observed::has_images(pod, &status.containers) {
            return Step::perform(vec![Effect::RewriteImages { uid: replacement.uid }]);
        }
        Step::wait()
    }

    /// Why a released migration may not go on by itself, if it may not.
    fn doubt(&self, status: &MigrationStatus, replacement: &ReplacementStatus) -> Option<String> {
        if let Some(failure) = &self.observed.destination_status().failure {
            return Some(failure.message.clone());
        }
        if let Some(asked) = &status.revocation {
            return Some(asked.message.clone());
        }
        if pod_is_gone(self.observed.replacement.as_ref(), &replacement.uid) {
            return Some(format!("the released replacement {} is gone", replacement.name));
        }
        if self.observed.replacement.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()) {
            return Some(format!("the released replacement {} is being deleted", replacement.name));
        }
        if self.observed.destination_ready == Some(false) {
            let node = status.destination.as_ref().map_or("", |d| d.node_name.as_str());
            return Some(format!("the destination node {node} is not Ready"));
        }
        (status.time_in(Phase::Restoring, self.now) > HOLD_AFTER)
            .then(|| format!("the destination has not said within {} s whether the containers were restored", HOLD_AFTER.as_secs()))
    }

    /// Doubt is resolved by revocation, not by looking (R3): first the destination's agent is asked to close the claims. Where it cannot say that
    /// the replacement never started, the source stays frozen and a person is told why.
    fn resolve_doubt(&self, mut status: MigrationStatus, reason: &str) -> Step {
        match &status.revocation {
            None => {
                status.revocation = Some(Remark { at: MicroTime(self.now), message: reason.to_owned() });
                status.message = format!("after the release: {reason}; the destination is asked whether the replacement ever started");
                Step::write(status)
            }
            Some(asked) if millis_since(asked.at.0, self.now) > REVOCATION_PATIENCE => self.hold(status, "InDoubt", reason),
            Some(_) => Step { after: Some(Duration::from_secs(1)), ..Step::default() },
        }
    }

    /// The destination has proved that nothing of the replacement ever executed: the source goes on.
    fn roll_back_released(&self, mut status: MigrationStatus) -> Step {
        let Some(proof) = &self.observed.destination_status().never_started else { return Step::wait() };
        let claims = proof
            .containers
            .iter()
            .map(|c| if c.proof.is_empty() { format!("{} {}", c.name, c.state) } else { format!("{} {} ({})", c.name, c.state, c.proof) });
        let reason = status.revocation.as_ref().map(|r| r.message.clone()).unwrap_or_default();
        status.message = format!("rolled back after the release, the replacement never started: {}; {reason}", claims.collect::<Vec<_>>().join(", "));
        status.verdict = Some(Verdict::Rollback);
        status.never_started = Some(proof.at.clone());
        status.clear_condition(condition::HELD, "RolledBack", self.now);
        status.enter(Phase::Finishing, self.now);
        Step::write(status)
    }

    /// After the release nothing is undone without proof: the source stays frozen, and a person is told why.
    pub(super) fn hold(&self, mut status: MigrationStatus, reason: &'static str, message: &str) -> Step {
        let message = format!(
            "held after the release, the source stays frozen: {message}. Look at the replacement with kubectl describe pod and at the destination node; \
             the migration goes on by itself as soon as the destination's agent attests that the containers were restored, or that they never started"
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

fn millis_since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::from_millis(status::millis(then, now))
}
