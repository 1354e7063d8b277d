//! The course from the release on: forward, or held with a reason.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::MicroTime};

use super::{
    Effect, Step,
    course::Course,
    observed::{self, pod_is_gone},
    source_first::name_fallback,
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
/// How long the end of a committed or rolled back migration may take before a person is told which node it waits for.
pub(super) const END_PATIENCE: Duration = Duration::from_mins(2);
/// Bytes that a copy fetches in a second when the nodes and their network are busy.
const FETCHED_A_SECOND: u64 = 16 << 20;
/// Begins what follows the reason of a rollback while it waits.
pub(super) const WAITING: &str = "; waiting for the agent of node";
/// Why a migration is held whose replacement has ended.
const DIED: &str = "the replacement may have run, and nothing of it runs any more; what it did since the release is lost";
/// Why a migration is held whose replacement began without the memory.
const COLD: &str = "the replacement has started from another image than the checkpoint, without the memory";
/// What a migrated pod's status says (I5).
const MIGRATED: &str = "the destination's runtime restored the pod from this migration's checkpoint, and it was seen running after the commit";

impl Course<'_> {
    pub(super) fn restoring(&self, mut status: MigrationStatus) -> Step {
        let Some(mut replacement) = status.replacement.clone() else { return Step::wait() };
        let destination = self.observed.destination_status();
        // R4: a copy that is being deleted is not committed to; that it has ended will be attested.
        if let Some(restored) = destination.restored.as_ref().filter(|_| status.resolved.is_none() && self.replacement_is_there(&replacement)) {
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
        if let Some(step) = self.decided_in_doubt(&status, &replacement) {
            return step;
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
        let patience = self.patience();
        (status.time_in(Phase::Restoring, self.now) > patience)
            .then(|| format!("the destination has not said within {} s whether the containers were restored", patience.as_secs()))
    }

    /// How long a restore may take. Memory that is fetched from the source while the copy runs counts as well.
    fn patience(&self) -> Duration {
        let fetched =
            self.observed.source_status().inspected.as_ref().and_then(|inspected| inspected.bytes).filter(|_| self.migration.spec.post_copy);
        HOLD_AFTER + Duration::from_secs(fetched.unwrap_or(0) / FETCHED_A_SECOND)
    }

    /// Doubt is resolved by revocation, not by looking (R3): first the destination's agent is asked to close the claims. Where it cannot say that
    /// the replacement never started, the source stays frozen and a person is told why.
    fn resolve_doubt(&self, mut status: MigrationStatus, reason: &str) -> Step {
        let destination = self.observed.destination_status();
        match &status.revocation {
            None => {
                status.revocation = Some(Remark { at: MicroTime(self.now), message: reason.to_owned() });
                status.message = format!("after the release: {reason}; the destination is asked whether the replacement ever started");
                Step::write(status)
            }
            Some(_) if destination.died.is_some() => self.hold(status, "Died", DIED),
            Some(_) if destination.cold_started.is_some() => self.hold(status, "ColdStarted", COLD),
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
        name_fallback(&mut status);
        status.clear_condition(condition::HELD, "RolledBack", self.now);
        status.enter(Phase::Finishing, self.now);
        Step::write(status)
    }

    pub(super) fn finish_commit(&self, mut status: MigrationStatus) -> Step {
        let Some(source) = status.source.clone() else { return Step::wait() };
        let destination = self.observed.destination_status();
        let Some(confirmed) = &destination.confirmed else { return self.unconfirmed(status) };
        if let Some(step) = self.hand_over(&status) {
            return step;
        }
        if !pod_is_gone(self.observed.source.as_ref(), &source.uid) {
            let deleting = self.observed.source.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
            return if deleting {
                self.waits_for(status, &source.node_name, "the copy is confirmed; waiting for the source to end", "The copy goes on meanwhile.")
            } else if !self.replacement_is_there(&status.replacement.clone().unwrap_or_default()) {
                // A manager may have slept between its last look at the copy and the Commit, and the kubelet that confirms it may hear late of its deletion.
                self.copy_is_going(status, &source)
            } else {
                Step::perform(vec![Effect::DeleteSource { uid: source.uid }])
            };
        }
        let ended = self.observed.source_status().ended.is_some();
        if !ended || destination.cleaned.is_none() {
            let there = status.destination.as_ref().map_or(String::new(), |d| d.node_name.clone());
            let (side, node) = if ended { ("destination", &there) } else { ("source", &source.node_name) };
            let text = format!("the copy is confirmed; waiting for the {side} node's agent to clean up");
            return self.waits_for(status, node, &text, "The copy goes on meanwhile.");
        }
        let collected = !status.is_source_first() || self.observed.source_status().cleaned.is_some();
        // From the confirmation on: before that its agent must not collect them, however long that has taken.
        if !collected && self.since(confirmed.at.0) <= CLEAN_PATIENCE {
            return Step::told(status, "the copy is confirmed; waiting for the source node's agent to collect its archives");
        }
        if let Some(step) = self.leave_nothing() {
            return step;
        }
        let outcome = verdict::outcome(Verdict::Commit, status.resolved.is_some());
        match &status.resolved {
            Some(resolved) => status.message = format!("{}{}", resolved.message, self.kept()),
            None => MIGRATED.clone_into(&mut status.message),
        }
        if !collected {
            let left = self.uncollected(&status);
            status.message.push_str(&left);
        }
        self.end(status, outcome)
    }

    pub(super) fn finish_rollback(&self, mut status: MigrationStatus) -> Step {
        let waited = status.time_in(Phase::Finishing, self.now);
        let replacement = status.replacement.clone().unwrap_or_default();
        if let Some(effect) = self.remove_placeholder(waited > FORCE_AFTER) {
            return Step::perform(vec![effect]);
        }
        if self.observed.placeholder.as_ref().is_some_and(|pod| self.observed.is_our_replacement(pod, self.migration)) {
            return Step { after: Some(Duration::from_secs(1)), ..Step::default() };
        }
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
            let there = status.destination.as_ref().map_or("", |d| d.node_name.as_str()).to_owned();
            let kept = format!("The checkpoint, memory included, stays in the registry of node {there} until then.");
            if waited <= END_PATIENCE {
                return Step::wait();
            }
            let what = format!("{}{WAITING} {node} to thaw the source", before_waiting(&status.message));
            return self.waits_for(status, &node, &what, &kept);
        }
        let cleaned = self.observed.destination_attestation.is_none() || self.observed.destination_status().cleaned.is_some();
        if !cleaned && waited <= CLEAN_PATIENCE {
            return Step { after: Some(Duration::from_secs(1)), ..Step::default() };
        }
        if let Some(step) = self.leave_nothing() {
            return step;
        }
        let reason = before_waiting(&status.message).to_owned();
        status.message = reason;
        if !cleaned {
            status.message.push_str("; the destination's agent does not answer and cleans up when it is back");
        }
        status.message.push_str(&self.kept());
        let outcome = verdict::outcome(Verdict::Rollback, status.resolved.is_some());
        self.end(status, outcome)
    }

    /// What is removed last, whatever the outcome; none where nothing is left.
    pub(super) fn leave_nothing(&self) -> Option<Step> {
        let credentials = self.observed.pull_credentials_left.then_some(Effect::RemovePullCredentials);
        let effect = credentials.or_else(|| self.remove_rest(true)).or_else(|| self.unlock())?;
        Some(Step::perform(vec![effect]))
    }

    /// The end, with the message that stands.
    pub(super) fn end(&self, mut status: MigrationStatus, outcome: Outcome) -> Step {
        status.clear_condition(condition::FROZEN, outcome.as_str(), self.now);
        status.clear_condition(condition::HELD, outcome.as_str(), self.now);
        status.finish(outcome, self.now);
        Step::write(status)
    }

    /// The verdict stands, and one node has not done its part: told at first, and held where it lasts, since the node may be gone for good (I6).
    pub(super) fn waits_for(&self, status: MigrationStatus, node: &str, what: &str, meanwhile: &str) -> Step {
        if status.time_in(Phase::Finishing, self.now) <= END_PATIENCE {
            return Step::told(status, what);
        }
        let text = format!(
            "{what}. {meanwhile} It ends by itself once that is done: look at node {node} and its drover-agent pod. Where that node is gone for good: remove it \
             from the cluster (kubectl delete node {node}), delete this Migration and take its finalizer off"
        );
        self.held(status, "NodeSilent", text)
    }

    pub(super) fn done(&self, status: &MigrationStatus) -> Step {
        if let Some(effect) = self.remove_late(status) {
            return Step::perform(vec![effect]);
        }
        // A migration that was refused after it had locked its pod.
        if let Some(effect) = self.unlock() {
            return Step::perform(vec![effect]);
        }
        if observed::has_finalizer(self.migration) {
            return Step::perform(vec![Effect::RemoveFinalizer]);
        }
        let Some(ttl) = self.migration.spec.ttl_seconds_after_finished else { return Step::default() };
        let left = Duration::from_secs(ttl.into()).saturating_sub(status.time_in(Phase::Done, self.now));
        if left.is_zero() { Step::perform(vec![Effect::DeleteMigration]) } else { Step { after: Some(left), ..Step::default() } }
    }
}

impl Course<'_> {
    /// A waiting pod that a manager has made which was stopped between its decision and the deed, while another one has ended the migration. Nobody else
    /// would remove it. Once the pod is moved, its replacement is the workload, and only a placeholder, which has a name of its own, is too late.
    fn remove_late(&self, status: &MigrationStatus) -> Option<Effect> {
        if status.verdict != Some(Verdict::Rollback) {
            return self.remove_placeholder(false);
        }
        let late = |pod: &&Pod| self.observed.is_our_replacement(pod, self.migration) && pod.metadata.deletion_timestamp.is_none();
        let replacement = self.observed.replacement.as_ref().filter(late).and_then(|pod| pod.metadata.uid.clone());
        replacement.map(|uid| Effect::DeleteReplacement { uid, force: false }).or_else(|| self.remove_placeholder(false))
    }

    /// The lock of the pod that has the source's name: the source, or what has taken its place. None where it is not this migration's.
    pub(super) fn unlock(&self) -> Option<Effect> {
        let pod = self.observed.source.as_ref().filter(|_| self.observed.locked_by(self.migration))?;
        Some(Effect::Unlock { uid: pod.metadata.uid.clone().unwrap_or_default() })
    }

    /// Time since a moment; zero where the clocks disagree about the order.
    pub(super) fn since(&self, then: Timestamp) -> Duration {
        millis_since(then, self.now)
    }
}

/// Why it was rolled back, without what was awaited since.
pub(super) fn before_waiting(message: &str) -> &str {
    message.split_once(WAITING).map_or(message, |(before, _)| before)
}

fn millis_since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::from_millis(status::millis(then, now))
}
