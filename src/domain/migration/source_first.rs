//! The order in which the source goes before the release: for same-name pods, and for nodes without the gate (R8, R13).
//!
//! # Flow
//! 1. Preparing: the order is fixed ([`fix_order`](Course::fix_order)), and what other pods are made from is kept, before anything is frozen. A same-name
//!    pod has a placeholder on the destination, which reserves and chooses the node.
//! 2. AwaitingReadiness: instead of the release, SourceDeleting is written by compare-and-swap. It is the point of no return: no thaw after it, whatever
//!    happens, for the delete may be on its way already.
//! 3. SourceDeleting: the source is deleted (its UID is the precondition). Its agent kills the paused tasks once its kubelet shows the deletion, and attests
//!    `ended` when nothing of the pod is left; the archives, synced before the vote, stay (R14).
//! 4. Only when the API server has no such pod **and** `ended` stands is anything else done. A same-name pod: the placeholder is deleted, the replacement
//!    made under the source's own name and bound to the placeholder's node, its UID recorded by compare-and-swap; the destination's agent arms claims for
//!    that UID and attests `armed`.
//! 5. Restoring is written, and from there the course is the ordinary one. The archives are collected once a copy is confirmed (R18).
//!
//! # Failures
//! Up to AwaitingReadiness as ever: thaw. In SourceDeleting nothing is undone before the source is over; then a destination that fails leads to the
//! fallback (`fallback.rs`), without proof, since nothing was released (R1). A checkpoint that may be outrun, since no gate kept the kubelet from starting an
//! ended container again between the vote and the deletion, is restored nowhere before a person or `spec.inDoubt` has decided so (R8). After the release
//! the same proofs are needed as in the other order. A source that cannot be proved to be over, or a name that somebody else has taken, is a hold.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::{
    Effect, Step,
    course::Course,
    doubt::who,
    observed::{self, pod_is_gone},
    status::StatusExt as _,
};
use crate::{
    api::{
        MigrationStatus, Phase, Verdict,
        migration::{ReplacementStatus, Side, condition},
    },
    domain::verdict,
};

/// How long the source's node may take to end the source before a person is told.
const SOURCE_PATIENCE: Duration = Duration::from_mins(2);
/// How long the destination may take, from the end of the source, until a same-name replacement may be released. It had everything ready before.
const DESTINATION_PATIENCE: Duration = Duration::from_mins(1);
/// After this time a placeholder, of which nothing ever started, is removed by force.
const FORCE_AFTER: Duration = Duration::from_secs(20);

impl Course<'_> {
    /// What is made on the destination before the source is touched.
    pub(super) fn create_waiting(&self) -> Vec<Effect> {
        if self.migration.spec.keep_name {
            // What refuses the source's own name later must refuse it now.
            vec![Effect::RehearseReplacement, Effect::CreateReplacement]
        } else {
            vec![Effect::CreateReplacement]
        }
    }

    /// Fixes the order, and keeps what it needs; none where that is done.
    pub(super) fn fix_order(&self, status: &MigrationStatus) -> Option<Step> {
        if status.source_first.is_none() {
            let mut status = status.clone();
            let (source, destination) = (status.source.as_mut()?, status.destination.as_mut()?);
            source.without_gate = !self.observed.source_gated;
            destination.without_gate = !self.observed.destination_gated;
            let ungated = [(source.without_gate, source.node_name.clone()), (destination.without_gate, destination.node_name.clone())];
            if let Some(owner) = source.owner.as_ref().filter(|owner| !owner.tied_by.is_empty())
                && let Some((_, node)) = ungated.iter().find(|(without_gate, _)| *without_gate)
            {
                // Its ReplicaSet would start another pod at once.
                let why = format!(
                    "node {node} has no gate, so that the source would have to go first, and {} {} would replace it by a new pod",
                    owner.kind, owner.name
                );
                return Some(self.roll_back(status.clone(), &format!("{why}; run drover node setup --apply there and restart its containerd")));
            }
            if self.migration.spec.post_copy
                && let Some((_, node)) = ungated.iter().find(|(without_gate, _)| *without_gate)
            {
                // The preflight has seen one there.
                let why =
                    format!("node {node} has no gate any more, so that the source would have to go first, and with it the memory (spec.postCopy)");
                return Some(self.roll_back(status.clone(), &format!("{why}; run drover node setup --apply there and restart its containerd")));
            }
            status.source_first = Some(self.migration.spec.keep_name || ungated.iter().any(|(without_gate, _)| *without_gate));
            return Some(Step::write(status));
        }
        (status.is_source_first() && self.observed.template.is_none()).then(|| Step::perform(vec![Effect::KeepTemplate]))
    }

    pub(super) fn source_deleting(&self, mut status: MigrationStatus) -> Step {
        let Some(source) = status.source.clone() else { return Step::wait() };
        let (said, gone) = (self.observed.source_status(), self.observed.source_is_gone(&status));
        if !verdict::is_over(said, gone) {
            let deleting = self.observed.source.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
            if gone || deleting {
                return self.await_source(status, &source.node_name);
            }
            return Step::perform(vec![Effect::DeleteSource { uid: source.uid }]);
        }
        if !verdict::is_last(said) {
            return self.outrun(status, &source.node_name);
        }
        if let Some(reason) = self.destination_failed(&status) {
            return self.fall_back(status, &reason);
        }
        if status.placeholder.is_some()
            && let Some(step) = self.same_name(&status)
        {
            return step;
        }
        if !verdict::may_release_after_source(&status, said, gone, self.observed.destination_status()) {
            return Step::told(status, "the source is over; waiting for the destination to expect its replacement");
        }
        status.message.clear();
        status.clear_condition(condition::HELD, "SourceEnded", self.now);
        status.enter(Phase::Restoring, self.now);
        Step::write(status)
    }

    fn await_source(&self, status: MigrationStatus, node: &str) -> Step {
        if status.time_in(Phase::SourceDeleting, self.now) <= SOURCE_PATIENCE {
            return Step::told(status, &format!("waiting for the agent of node {node} to end the source"));
        }
        let message = format!(
            "nobody has proved that the deleted source has ended: the agent of node {node} has not said so within {} s. Bring that node and its \
             drover-agent back (kubectl get pods -A -o wide); the migration then goes on by itself",
            SOURCE_PATIENCE.as_secs()
        );
        self.held(status, "SourceNotEnded", message)
    }

    /// Whoever goes on from the checkpoint loses what was executed after it, if anything was: a person decides that, or `spec.inDoubt`.
    fn outrun(&self, mut status: MigrationStatus, node: &str) -> Step {
        let why = format!(
            "nobody can say that the checkpoint is the last that the pod executed: nothing kept the kubelet of node {node} from starting an ended container again \
             between the vote and the deletion"
        );
        if let Some(preference) = self.standing_preference(&status).filter(|preference| preference.side == Side::Source) {
            self.resolve(&mut status, preference, &why);
            return self.fall_back(status, &format!("{why}; decided by {}", who(preference)));
        }
        let command = self.command("--prefer source");
        let message = format!(
            "{why}. Nothing of the pod runs. To go on from the checkpoint on that node, losing what was executed since: {command}{}",
            self.archives()
        );
        self.held(status, "SourceRanOn", message)
    }

    /// Why the replacement cannot be released any more, once the source is over.
    fn destination_failed(&self, status: &MigrationStatus) -> Option<String> {
        let destination = self.observed.destination_status();
        if let Some(failure) = &destination.failure {
            return Some(failure.message.clone());
        }
        let node = status.destination.as_ref().map_or("", |d| d.node_name.as_str());
        if self.observed.destination_ready == Some(false) {
            return Some(format!("the destination node {node} is not Ready"));
        }
        let replacement = status.replacement.as_ref()?;
        let pod = self.observed.replacement.as_ref();
        if !replacement.uid.is_empty() {
            if pod_is_gone(pod, &replacement.uid) {
                return Some(format!("the waiting replacement {} is gone", replacement.name));
            }
            if pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()) {
                return Some(format!("the waiting replacement {} is being deleted", replacement.name));
            }
            if let Some(other) = pod.and_then(observed::node_of).filter(|other| *other != node) {
                return Some(format!("the replacement was placed on node {other}, where there is no checkpoint"));
            }
        }
        let waited = self.observed.source_status().ended.as_ref().map(|ended| self.since(ended.at.0)).unwrap_or_default();
        (waited > DESTINATION_PATIENCE).then(|| {
            let last = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
            format!("the replacement was not ready for its restore within {} s{last}", DESTINATION_PATIENCE.as_secs())
        })
    }

    /// The replacement of the source's own name; none where it waits to be released.
    fn same_name(&self, status: &MigrationStatus) -> Option<Step> {
        if let Some(effect) = self.remove_placeholder(self.time_since_end() > FORCE_AFTER) {
            return Some(Step::perform(vec![effect]));
        }
        let replacement = status.replacement.clone()?;
        let Some(pod) = &self.observed.replacement else { return Some(Step::perform(vec![Effect::CreateSameName])) };
        if !self.observed.is_our_replacement(pod, self.migration) {
            return Some(self.name_taken(status.clone(), &replacement.name));
        }
        if replacement.uid.is_empty() {
            let mut status = status.clone();
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            status.replacement = Some(ReplacementStatus { uid, ..replacement });
            return Some(Step::write(status));
        }
        if observed::node_of(pod).is_none() {
            return Some(Step::told(status.clone(), &observed::scheduling_message(pod)));
        }
        (!observed::sandbox_ready(pod)).then(|| Step::told(status.clone(), "waiting for the replacement's sandbox"))
    }

    fn time_since_end(&self) -> Duration {
        self.observed.source_status().ended.as_ref().map(|ended| self.since(ended.at.0)).unwrap_or_default()
    }

    /// The next step against a placeholder that is still there; one that is on its way out is waited for only where `force` is due.
    pub(super) fn remove_placeholder(&self, force: bool) -> Option<Effect> {
        let pod = self.observed.placeholder.as_ref().filter(|pod| self.observed.is_our_replacement(pod, self.migration))?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        (force || pod.metadata.deletion_timestamp.is_none()).then_some(Effect::DeletePlaceholder { uid, force })
    }

    /// Somebody has made another pod of the name that the migration needs. Whose it is, Drover cannot know.
    fn name_taken(&self, status: MigrationStatus, name: &str) -> Step {
        let message = format!(
            "the source is over, and another pod has taken its name {name}: delete that pod (kubectl delete pod {name}), the migration then goes on by \
             itself{}",
            self.archives()
        );
        self.held(status, "NameTaken", message)
    }

    /// The verdict of a migration whose source was deleted and whose replacement will never run: the pod goes on from the archive, where it was.
    pub(super) fn fall_back(&self, mut status: MigrationStatus, reason: &str) -> Step {
        if !verdict::may_fall_back(&status, self.observed.source_status(), self.observed.source_is_gone(&status)) {
            return Step::wait();
        }
        status.message = format!("rolled back in phase {}: {reason}", status.phase);
        status.verdict = Some(Verdict::Rollback);
        name_fallback(&mut status);
        status.clear_condition(condition::HELD, "RolledBack", self.now);
        status.enter(Phase::Finishing, self.now);
        Step::write(status)
    }

    /// Where the source's archives are kept, as the end of a message; empty where there are none (R18).
    pub(super) fn archives(&self) -> String {
        let node = self.observed.source_attestation.as_ref().map_or("", |a| a.spec.node_name.as_str());
        match &self.observed.source_status().archived {
            Some(archived) if !archived.paths.is_empty() => format!("; the checkpoint is kept on node {node}: {}", archived.paths.join(", ")),
            _ => String::new(),
        }
    }

    /// What a migration in this order leaves in the API: none where that is nothing.
    pub(super) fn remove_rest(&self, force: bool) -> Option<Effect> {
        self.remove_placeholder(force).or_else(|| self.observed.template.is_some().then_some(Effect::RemoveTemplate))
    }
}

/// Where the source was deleted before the release, a rollback is the fallback (R13).
pub(super) fn name_fallback(status: &mut MigrationStatus) {
    if status.is_source_first()
        && let Some(source) = &status.source
    {
        status.fallback = Some(ReplacementStatus { name: source.name.clone(), ..ReplacementStatus::default() });
    }
}

/// Whether a pod is on its way out.
pub(super) fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}
