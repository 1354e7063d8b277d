//! What nothing can be proved of: held with the command to type, or decided by `spec.inDoubt` or a person (R7).

use std::fmt::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt as _;

use super::{
    Effect, Step,
    course::Course,
    observed::{has_finalizer, is_being_deleted, pod_is_gone},
    released::END_PATIENCE,
    source_first::name_fallback,
    status::StatusExt as _,
};
use crate::{
    api::{
        MigrationStatus, Phase, Verdict,
        migration::{Decider, ReplacementStatus, Resolved, Side, SourceStatus, condition},
    },
    domain::{
        containers, keys,
        resolution::{self, Preference, course, preference},
    },
};

impl Course<'_> {
    /// What a decision leads to, once the destination was asked to close the claims (R4); none where there is no decision or it must wait.
    pub(super) fn decided_in_doubt(&self, status: &MigrationStatus, replacement: &ReplacementStatus) -> Option<Step> {
        status.revocation.as_ref()?;
        let preference = self.standing_preference(status)?;
        let gone = pod_is_gone(self.observed.replacement.as_ref(), &replacement.uid);
        match course(preference, self.observed.destination_status(), self.replacement_is_there(replacement), gone) {
            resolution::Course::Wait => None,
            // Written before it is done, as a release is: from here on nothing is committed, so that a delayed deletion never meets a committed copy.
            resolution::Course::DeleteReplacement { .. } if status.resolved.is_none() => Some(self.decide_for_the_source(status.clone(), preference)),
            resolution::Course::DeleteReplacement { force } => {
                Some(Step::perform(vec![Effect::DeleteReplacement { uid: replacement.uid.clone(), force }]))
            }
            resolution::Course::RollBack => Some(self.roll_back_resolved(status.clone(), preference)),
            resolution::Course::StartCold => Some(self.commit_cold(status.clone(), preference)),
        }
    }

    /// The decision that is written stands; a person may add to it that the destination node is down, and nothing else.
    pub(super) fn standing_preference(&self, status: &MigrationStatus) -> Option<Preference> {
        let asked = preference(self.migration);
        let Some(resolved) = &status.resolved else { return asked };
        let destination_is_down = asked.is_some_and(|asked| asked.side == resolved.prefer && asked.destination_is_down);
        Some(Preference { side: resolved.prefer, by: resolved.by, destination_is_down })
    }

    fn decide_for_the_source(&self, mut status: MigrationStatus, preference: Preference) -> Step {
        let message =
            format!("decided by {}: the replacement is ended, what it did since the release is lost, and then the source goes on", who(preference));
        self.resolve(&mut status, preference, &message);
        Step::write(status)
    }

    /// Whether the released replacement is an ordinary pod, not deleted or being so.
    pub(super) fn replacement_is_there(&self, replacement: &ReplacementStatus) -> bool {
        let pod = self.observed.replacement.as_ref();
        !pod_is_gone(pod, &replacement.uid) && pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    fn roll_back_resolved(&self, mut status: MigrationStatus, preference: Preference) -> Step {
        let known = if self.observed.destination_status().died.is_some() {
            "nothing of the replacement runs any more"
        } else {
            "the destination node was said to be down for good"
        };
        let message = format!(
            "rolled back after the release, decided by {}: {known}; the source goes on from where it was frozen, and what the replacement did since the release is lost",
            who(preference)
        );
        self.resolve(&mut status, preference, &message);
        status.verdict = Some(Verdict::Rollback);
        name_fallback(&mut status);
        status.enter(Phase::Finishing, self.now);
        Step::write(status)
    }

    /// R15. What stayed with the source's processes goes with them.
    fn what_is_kept(&self) -> &'static str {
        if self.migration.spec.post_copy {
            "the frozen source, which alone had all of it (spec.postCopy), is ended, and no checkpoint is kept"
        } else {
            "the checkpoint is kept on the source node"
        }
    }

    fn commit_cold(&self, mut status: MigrationStatus, preference: Preference) -> Step {
        let message = format!(
            "committed in doubt, decided by {}: the replacement goes on from its image without the memory; {}",
            who(preference),
            self.what_is_kept()
        );
        self.resolve(&mut status, preference, &message);
        status.verdict = Some(Verdict::Commit);
        status.enter(Phase::Finishing, self.now);
        Step::write(status)
    }

    pub(super) fn resolve(&self, status: &mut MigrationStatus, preference: Preference, message: &str) {
        // What is written once stays.
        status.resolved.get_or_insert_with(|| Resolved {
            at: MicroTime(self.now),
            prefer: preference.side,
            by: preference.by,
            message: message.to_owned(),
        });
        message.clone_into(&mut status.message);
        status.clear_condition(condition::HELD, "Resolved", self.now);
    }

    /// After the release nothing is undone without proof: the source stays frozen, and a person is told why and what to type.
    pub(super) fn hold(&self, status: MigrationStatus, reason: &'static str, message: &str) -> Step {
        let mut text = format!("held after the release, {}: {message}. ", self.survivor());
        if reason == "Died" || reason == "ColdStarted" {
            let source = if self.lost().is_empty() { "the frozen source" } else { "the source, from its image" };
            let (prefer, cold) = (self.command("--prefer source"), self.command("--prefer destination"));
            let _ = write!(text, "To go on with {source}: {prefer}; with the replacement, from its image: {cold}");
        } else if status.destination.as_ref().is_some_and(|d| d.without_gate) {
            let source = self.command("--prefer source");
            let _ = write!(
                text,
                "The destination node has no gate, so that nobody can prove there that the replacement never ran; it goes on by itself only where it was restored \
                 after all. To delete the replacement and go on from the checkpoint, losing what it may have done since the release: {source}"
            );
        } else {
            let node = status.destination.as_ref().map_or("", |d| d.node_name.as_str());
            let down = self.command("--prefer source --destination-is-down");
            let _ = write!(
                text,
                "It goes on by itself as soon as the agent of node {node} attests that the containers were restored, or that they never started: look at that node \
                 and at the replacement (kubectl describe pod). Only where you know that node {node} is powered off and stays so: {down}"
            );
        }
        self.held(status, reason, text)
    }

    /// Whether everything of a released migration was deleted, as with its namespace: both pods, the Migration, and the attestations, without which nobody can
    /// say anything of it any more. What kubelets and agents have left they end by themselves; to wait for proof would keep the namespace for ever. A replacement in
    /// another namespace stays as it is: after its source it is what is left.
    pub(super) fn is_abandoned(&self, status: &MigrationStatus) -> bool {
        let pods = [(&status.replacement, &self.observed.replacement), (&status.placeholder, &self.observed.placeholder)];
        let silent = [&self.observed.source_attestation, &self.observed.destination_attestation, &self.observed.fallback_attestation];
        let stays = self.migration.elsewhere().is_some() && !status.is_source_first();
        (Phase::SourceDeleting..Phase::Done).contains(&status.phase)
            && is_being_deleted(self.migration)
            && has_finalizer(self.migration)
            && self.observed.source_is_gone(status)
            && (stays || pods.into_iter().all(|(made, pod)| made.as_ref().is_none_or(|made| pod_is_gone(pod.as_ref(), &made.uid))))
            && silent.into_iter().all(Option::is_none)
    }

    /// R17: committed, and the copy was not yet seen running once more. Where that goes wrong it never becomes `Migrated`: a decision for the replacement lets
    /// it start cold, and without one the source stays frozen.
    pub(super) fn unconfirmed(&self, mut status: MigrationStatus) -> Step {
        let there = self.replacement_is_there(&status.replacement.clone().unwrap_or_default());
        let failure = self.observed.destination_status().failure.as_ref().map(|failure| failure.message.clone());
        let by_hand = "to go on with the frozen source see docs/operations.md, Held";
        let waits = status.time_in(Phase::Finishing, self.now) <= END_PATIENCE;
        let text = match (&status.resolved, failure) {
            (Some(_), _) if there && waits => return Step::told(status, "waiting for the replacement to start from its image"),
            (Some(_), _) if there => {
                format!("committed in doubt, and the replacement has not started from its image; {}: {by_hand}", self.survivor())
            }
            (Some(_), _) => format!("committed in doubt, and the replacement that was to go on is gone; {}: {by_hand}", self.survivor()),
            (None, None) if waits => return Step::wait(),
            (None, None) => {
                let node = status.destination.as_ref().map_or("", |d| d.node_name.as_str());
                format!(
                    "committed, and the agent of node {node} has not confirmed that the copy still runs; {}: look at that node and its \
                     drover-agent pod; it goes on by itself once that is confirmed; {by_hand}",
                    self.survivor()
                )
            }
            (None, Some(message)) => {
                if let Some(preference) = preference(self.migration).filter(|p| there && p.side == Side::Destination) {
                    let lost = format!(
                        "the copy ended between the commit and its confirmation; decided by {}: the replacement goes on from its image without the memory; {}",
                        who(preference),
                        self.what_is_kept()
                    );
                    self.resolve(&mut status, preference, &lost);
                    return Step::write(status);
                }
                format!(
                    "committed but not confirmed, {}: {message}. To let the replacement go on from its image: {}; {by_hand}",
                    self.survivor(),
                    self.command("--prefer destination")
                )
            }
        };
        self.held(status, "NotConfirmed", text)
    }

    /// R4: a pod that is being deleted is no copy, whatever was confirmed of it: the source is not ended for it.
    pub(super) fn copy_is_going(&self, status: MigrationStatus, source: &SourceStatus) -> Step {
        let text = format!(
            "committed, and the copy is being deleted, or was; {}. If that is what you want, delete the source as well: kubectl delete pod {} -n {}; to go on with the \
             frozen source see docs/operations.md, Held",
            self.survivor(),
            source.name,
            self.migration.namespace().unwrap_or_default()
        );
        self.held(status, "NotConfirmed", text)
    }

    /// What of the pod is left while it is held.
    fn survivor(&self) -> String {
        let node = self.observed.source_attestation.as_ref().map_or("", |a| a.spec.node_name.as_str());
        if let Some(archived) = &self.observed.source_status().archived {
            return format!("the source was deleted and its checkpoint is kept on node {node} ({})", archived.paths.join(", "));
        }
        let lost = self.lost();
        if lost.is_empty() {
            return "the source stays frozen and is not deleted".to_owned();
        }
        format!("the source is not deleted, but of it {} runs no more, as after a boot of node {node}: its memory is lost", lost.join(", "))
    }

    /// The source's containers that its kubelet says have ended since they were frozen.
    fn lost(&self) -> Vec<&str> {
        let frozen = self.migration.status.iter().filter_map(|status| status.source.as_ref());
        let pod = self.observed.source.as_ref().filter(|pod| frozen.clone().any(|source| Some(&source.uid) == pod.metadata.uid.as_ref()));
        let told: Vec<_> = pod.into_iter().flat_map(containers::statuses).collect();
        let has_ended = |name: &str| told.iter().any(|of| of.name == name && of.state.as_ref().is_some_and(|state| state.running.is_none()));
        frozen.flat_map(|source| &source.containers).map(|container| container.name.as_str()).filter(|name| has_ended(name)).collect()
    }

    /// Holds with a message that says all.
    pub(super) fn held(&self, mut status: MigrationStatus, reason: &'static str, mut text: String) -> Step {
        if let Some(value) = self.migration.annotations().get(keys::RESOLVE).filter(|_| preference(self.migration).is_none()) {
            let shown: String = value.chars().take(40).collect();
            let _ = write!(text, ". metadata.annotations[{}]: {shown:?} is no decision; use drover resolve", keys::RESOLVE);
        }
        if status.condition_is(condition::HELD, reason, &text) {
            return Step::wait();
        }
        status.set_condition(condition::HELD, true, reason, &text, self.now);
        status.message = text;
        Step::write(status)
    }

    pub(super) fn command(&self, how: &str) -> String {
        format!("drover resolve {} -n {} {how}", self.migration.name_any(), self.migration.namespace().unwrap_or_default())
    }

    /// What a source's agent that does not answer will do with its archives when it is back, in words that follow a message.
    pub(super) fn uncollected(&self, status: &MigrationStatus) -> String {
        if status.resolved.is_none() {
            return "; the source node's agent does not answer and collects its archives when it is back".to_owned();
        }
        // R15: they alone have the memory, and once this is done nobody is told any more what has become of them.
        let uid = self.migration.uid().unwrap_or_default();
        let named: Vec<String> = status.containers.iter().map(|c| keys::kept_archive(&uid, &c.name)).collect();
        format!(
            "{}; that node's agent does not answer, and gives them the names {} there when it is back (remove them when they are not needed)",
            self.archives(),
            named.join(", ")
        )
    }

    /// The archives that the source's agent has kept, in words that follow a message.
    pub(super) fn kept(&self) -> String {
        let Some(kept) = &self.observed.source_status().kept else { return String::new() };
        let node = self.observed.source_attestation.as_ref().map_or("", |a| a.spec.node_name.as_str());
        format!("; the memory as it was frozen is kept on node {node}: {} (remove it when it is not needed)", kept.archives.join(", "))
    }
}

pub(super) fn who(preference: Preference) -> &'static str {
    match preference.by {
        Decider::Policy => "spec.inDoubt",
        Decider::Person => "drover resolve",
    }
}
