//! The rollback of a migration whose source was deleted: the pod goes on from the archive that its node has kept (R13, R18).
//!
//! # Flow
//! The verdict Rollback stands, with `status.fallback`; nothing is thawed. What was made for the destination is deleted by UID (by force where its node does
//! not answer: it is proved never to have started, or a person has decided), then a pod of the source's own name is made for the source node, and its UID
//! recorded by compare-and-swap. That node's agent pushes the kept archives into its own registry, checks them against the vote, arms claims, and attests
//! `prepared` in an attestation of its own; the manager claims the pod, the webhook accepts that claim, and from there it is a restore like any other:
//! `restored` (R16), `confirmed` (R17), and only then are the archives collected.
//!
//! # Failures
//! Nothing is left to roll back to: every failure is a hold with the reason `FallbackFailed` that names the archives. It goes on by itself where the cause
//! passes without a second restore (a node or an agent that comes back); a restore that was refused, or a pod that was deleted, is not tried again (R20). Then
//! a person may give the pod up, which is written before anything is done: its pod goes, the archives are kept, and whoever owns the name may use it again.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::MicroTime};

use super::{
    Effect, Step,
    course::{Course, attestation},
    observed::{self, pod_is_gone},
    released::{WAITING, before_waiting},
    source_first::is_going,
    status::{self, StatusExt as _},
};
use crate::{
    api::{
        MigrationStatus, Outcome, Phase, Role,
        migration::{ReplacementStatus, RestoredContainer, SourceStatus, condition},
    },
    domain::{
        replacement::init_images,
        resolution::{FALLBACK_FAILED, gives_up},
    },
};

/// How long the fallback may take before a person is told; a restore of 1 GiB takes half a minute.
const PATIENCE: Duration = Duration::from_mins(3);
/// After this time the failed replacement is removed by force: its node does not answer.
const FORCE_AFTER: Duration = Duration::from_secs(20);
/// What separates the cause of the rollback from the state of the fallback in the message.
const SUFFIX: &str = "; the fallback onto the source node";
/// How long the end waits for a destination that cleans up, which it does once the archives are collected, before it leaves that to it.
const CLEAN_PATIENCE: Duration = Duration::from_secs(45);

impl Course<'_> {
    pub(super) fn finish_fallback(&self, mut status: MigrationStatus) -> Step {
        let (Some(source), Some(fallback)) = (status.source.clone(), status.fallback.clone()) else { return Step::wait() };
        if status.given_up.is_some() {
            return self.end_given_up(status, &source.node_name, &fallback);
        }
        let said = self.observed.fallback_status();
        // R4: a pod that is being deleted is no copy; its agent confirms only what is written here, and until then the archives stay.
        let pod = self.observed.source.as_ref();
        let is_there = !pod_is_gone(pod, &fallback.uid) && !pod.is_some_and(is_going);
        if let Some(restored) = said.restored.as_ref().filter(|_| fallback.containers.is_empty() && is_there) {
            let named = restored.containers.iter().map(|c| RestoredContainer { name: c.name.clone(), container_id: c.container_id.clone() });
            status.fallback = Some(ReplacementStatus { containers: named.collect(), ..fallback });
            status.frozen_millis = self.observed.source_status().frozen.as_ref().map(|frozen| status::millis(frozen.at.0, restored.at.0));
            return Step::write(status);
        }
        if said.confirmed.is_some() {
            return self.end_fallback(status, &source);
        }
        if let Some(step) = self.remove_failed(&status) {
            return step;
        }
        match self.observed.source.as_ref() {
            None if fallback.uid.is_empty() => Step::perform(vec![Effect::CreateFallback]),
            Some(pod) if fallback.uid.is_empty() && observed::is_our_fallback(pod, self.migration) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                status.fallback = Some(ReplacementStatus { uid, ..fallback });
                Step::write(status)
            }
            Some(_) if fallback.uid.is_empty() => {
                let name = &fallback.name;
                self.fallback_failed(status, &format!("another pod has taken the name {name}; delete that one (kubectl delete pod {name})"))
            }
            pod if pod_is_gone(pod, &fallback.uid) || pod.is_some_and(is_going) => self.fallback_failed(status, "its pod was deleted"),
            Some(pod) => self.restore_fallback(status, &source, &fallback, pod),
            None => Step::wait(),
        }
    }

    /// The step against what was made for the destination; none where nothing of it is left in the API.
    fn remove_failed(&self, status: &MigrationStatus) -> Option<Step> {
        let force = status.time_in(Phase::Finishing, self.now) > FORCE_AFTER;
        let soon = Step { after: Some(Duration::from_secs(1)), ..Step::default() };
        if let Some(effect) = self.remove_placeholder(force) {
            return Some(Step::perform(vec![effect]));
        }
        let pod = self.observed.replacement.as_ref().filter(|pod| self.observed.is_our_replacement(pod, self.migration))?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        Some(if is_going(pod) && !force { soon } else { Step::perform(vec![Effect::DeleteReplacement { uid, force }]) })
    }

    fn restore_fallback(&self, status: MigrationStatus, source: &SourceStatus, fallback: &ReplacementStatus, pod: &Pod) -> Step {
        let said = self.observed.fallback_status();
        if self.observed.fallback_attestation.is_none() {
            return Step::perform(vec![Effect::LayOutPullCredentials, attestation(Role::Fallback, &source.node_name, &fallback.uid)]);
        }
        if let Some(failure) = &said.failure {
            return self.fallback_failed(status, &failure.message.clone());
        }
        let Some(node) = observed::node_of(pod) else { return self.await_fallback(status, &observed::scheduling_message(pod)) };
        if node != source.node_name {
            return self.fallback_failed(status, &format!("its pod was placed on node {node}"));
        }
        if said.prepared.is_none() {
            return self.await_fallback(status, &format!("waiting for the agent of node {node} to read the archive"));
        }
        if !observed::sandbox_ready(pod) {
            return self.await_fallback(status, "waiting for the pod's sandbox");
        }
        if !observed::has_init_images(pod, &init_images(self.migration)) {
            return Step::perform(vec![Effect::WriteInitImages { uid: fallback.uid.clone() }]);
        }
        if !observed::claimed_by(pod, self.migration) {
            return Step::perform(vec![Effect::Claim { uid: fallback.uid.clone() }]);
        }
        if !observed::has_images(pod, &status.containers) {
            return Step::perform(vec![Effect::RewriteImages { uid: fallback.uid.clone() }]);
        }
        self.await_fallback(status, &format!("waiting for node {node} to restore the pod from the archive"))
    }

    fn await_fallback(&self, status: MigrationStatus, what: &str) -> Step {
        if status.time_in(Phase::Finishing, self.now) > PATIENCE {
            return self.fallback_failed(status, &format!("it has taken more than {} s, {what}", PATIENCE.as_secs()));
        }
        let message = format!("{}{SUFFIX}: {what}", cause(&status));
        Step::told(status, &message)
    }

    pub(super) fn fallback_failed(&self, mut status: MigrationStatus, why: &str) -> Step {
        if gives_up(self.migration) && status.given_up.is_none() {
            status.message = format!("{}{SUFFIX} has failed: {why}, and it was given up by drover resolve: nothing of the pod runs", cause(&status));
            status.given_up = Some(MicroTime(self.now));
            status.clear_condition(condition::HELD, "GivenUp", self.now);
            return Step::write(status);
        }
        let message = format!(
            "{}{SUFFIX} has failed: {why}. Nothing of the pod runs. Look at the pod with kubectl describe pod and at the node: what comes back by itself goes \
             on, a restore that was refused or a pod that was deleted is not tried again, and the checkpoint stays{}. To give it up, so that its controller \
             may start another from the image: {}",
            cause(&status),
            self.archives(),
            self.command("--give-up")
        );
        self.held(status, FALLBACK_FAILED, message)
    }

    /// Nothing is asked of what a restore may have come to: the pod is deleted like any other, and only its kubelet's word ends it.
    fn end_given_up(&self, mut status: MigrationStatus, node: &str, fallback: &ReplacementStatus) -> Step {
        if let Some(step) = self.remove_failed(&status) {
            return step;
        }
        let is_ours = |pod: &&Pod| pod.metadata.uid.as_ref() == Some(&fallback.uid) || observed::is_our_fallback(pod, self.migration);
        if let Some(pod) = self.observed.source.as_ref().filter(is_ours) {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            return if is_going(pod) { self.await_end(status, node, "end the pod") } else { Step::perform(vec![Effect::DeleteFallback { uid }]) };
        }
        let cleaned = self.observed.fallback_attestation.is_none() || self.observed.fallback_status().cleaned.is_some();
        match self.observed.source_status().cleaned.as_ref().filter(|_| cleaned) {
            Some(collected) => {
                let reason = before_waiting(&status.message).to_owned();
                status.message = reason;
                self.end_onto_source(status, collected.at.0, Outcome::GivenUp)
            }
            None => self.await_end(status, node, "give the archives their lasting names"),
        }
    }

    fn await_end(&self, status: MigrationStatus, node: &str, what: &str) -> Step {
        let message = format!("{}{WAITING} {node} to {what}", before_waiting(&status.message));
        if status.given_up.as_ref().is_some_and(|at| self.since(at.0) <= PATIENCE) {
            return Step::told(status, &message);
        }
        self.waits_for(status, node, &message, "The checkpoint stays there.")
    }

    fn end_fallback(&self, mut status: MigrationStatus, source: &SourceStatus) -> Step {
        let node = &source.node_name;
        let collected = self.observed.source_status().cleaned.as_ref().filter(|_| self.observed.fallback_status().cleaned.is_some());
        let Some(collected) = collected else {
            let message = format!("{}{SUFFIX}: the pod runs again; waiting for the agent of node {node} to clean up", cause(&status));
            // Long enough for the restore, after which a person is told already.
            if status.time_in(Phase::Finishing, self.now) <= PATIENCE {
                return Step::told(status, &message);
            }
            let there = status.destination.as_ref().map_or(String::new(), |d| d.node_name.clone());
            let meanwhile = format!("It goes on meanwhile, and a copy of the checkpoint stays in the registry of node {there} until then.");
            return self.waits_for(status, node, &message, &meanwhile);
        };
        status.message = format!("{}; restored on the source node {node} from the kept archive", cause(&status));
        self.end_onto_source(status, collected.at.0, Outcome::RolledBack)
    }

    /// The last of the end, whatever has become of the fallback: `collected` is when the source's agent was done with the archives.
    fn end_onto_source(&self, mut status: MigrationStatus, collected: Timestamp, outcome: Outcome) -> Step {
        let there = self.observed.destination_attestation.is_none() || self.observed.destination_status().cleaned.is_some();
        if !there && self.observed.destination_ready != Some(false) && self.since(collected) <= CLEAN_PATIENCE {
            return Step { after: Some(Duration::from_secs(1)), ..Step::default() };
        }
        if let Some(step) = self.leave_nothing() {
            return step;
        }
        if !there {
            status.message.push_str("; the destination's agent does not answer and cleans up when it is back");
        }
        status.message.push_str(&self.kept());
        self.end(status, outcome)
    }
}

/// Why the migration was rolled back: its message without what has become of the fallback since.
fn cause(status: &MigrationStatus) -> &str {
    status.message.split(SUFFIX).next().unwrap_or_default()
}
