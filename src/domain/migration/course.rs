//! The course up to the release: everything here can be undone.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{
    Effect, Observed, Step, confirmation,
    observed::{self, pod_is_gone},
    owner::owner_blocker,
    status::{self, StatusExt as _},
};
use crate::{
    api::{
        Migration, MigrationStatus, Outcome, Phase, Role, Verdict,
        attestation::Inspected,
        migration::{ContainerCheckpoint, DestinationStatus, Lane, ReplacementStatus, condition},
    },
    domain::{
        comparison::differences,
        estimate, keys, owner,
        preflight::{self, Blocker},
        registry_event::is_voted,
        replacement::{build, init_images},
        room::{self, Carried},
        verdict,
    },
};

/// How long the source node's agent may take to look at the pod's processes: it answers within a second where it runs, and reads for 10 s at most.
const INSPECTION_PATIENCE: Duration = Duration::from_secs(20);
/// The same where the migration is refused anyway.
const INSPECTION_PATIENCE_OF_A_REFUSAL: Duration = Duration::from_secs(4);

/// How far the look at the pod's processes has come.
enum Inspection<'a> {
    /// This is to be done until it is there.
    Awaited(Box<Step>),
    /// It will not come.
    Missing(Blocker),
    /// It is there.
    Done(&'a Inspected),
}

/// One look at one migration.
pub(super) struct Course<'a> {
    pub(super) migration: &'a Migration,
    pub(super) observed: &'a Observed,
    pub(super) now: Timestamp,
}

impl Course<'_> {
    /// Why a migration that has not released its replacement must be undone, if it must.
    pub(super) fn reason_to_roll_back(&self, status: &MigrationStatus) -> Option<String> {
        if !verdict::may_roll_back(status) || status.phase == Phase::Pending {
            return None;
        }
        let source = self.observed.source_status();
        let destination = self.observed.destination_status();
        if observed::is_being_deleted(self.migration) {
            return Some("the Migration was deleted".to_owned());
        }
        if let Some(abort) = &source.abort {
            return Some(abort.message.clone());
        }
        if let Some(failure) = &destination.failure {
            return Some(failure.message.clone());
        }
        if status.phase >= Phase::Preparing
            && let Some(reason) = self.pods_changed(status)
        {
            return Some(reason);
        }
        let limit = self.migration.spec.deadline_seconds;
        self.is_overdue().then(|| {
            let last = if status.message.is_empty() { String::new() } else { format!(", {}", status.message) };
            format!("not released within spec.deadlineSeconds ({limit} s); it was in phase {}{last}", status.phase)
        })
    }

    fn is_overdue(&self) -> bool {
        self.age() > Duration::from_secs(self.migration.spec.deadline_seconds.into())
    }

    fn age(&self) -> Duration {
        let created = self.migration.metadata.creation_timestamp.as_ref().map_or(self.now, |t| t.0);
        status::age(created, self.now)
    }

    pub(super) fn pods_changed(&self, status: &MigrationStatus) -> Option<String> {
        let source = status.source.as_ref()?;
        if pod_is_gone(self.observed.source.as_ref(), &source.uid) {
            return Some(format!("the source pod {} is gone", source.name));
        }
        if self.observed.source.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()) {
            return Some(format!("the source pod {} is being deleted", source.name));
        }
        let (pod, replacement) = self.observed.waiting(status);
        let replacement = replacement.filter(|r| !r.uid.is_empty())?;
        if pod_is_gone(pod, &replacement.uid) {
            return Some(format!("the waiting replacement {} is gone", replacement.name));
        }
        if pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()) {
            return Some(format!("the waiting replacement {} is being deleted", replacement.name));
        }
        if self.observed.destination_ready == Some(false) {
            let node = status.destination.as_ref().map_or("", |d| d.node_name.as_str());
            return Some(format!("the destination node {node} is not Ready"));
        }
        None
    }

    pub(super) fn roll_back(&self, mut status: MigrationStatus, reason: &str) -> Step {
        if status.phase <= Phase::Preflight && status.destination.is_none() {
            return self.refuse(status, reason);
        }
        status.verdict = Some(Verdict::Rollback);
        status.message = format!("rolled back in phase {}: {reason}", status.phase);
        status.enter(Phase::Finishing, self.now);
        Step::write(status)
    }

    pub(super) fn refuse(&self, mut status: MigrationStatus, reason: &str) -> Step {
        reason.clone_into(&mut status.message);
        status.finish(Outcome::Failed, self.now);
        Step::write(status)
    }

    pub(super) fn pending(&self, mut status: MigrationStatus) -> Step {
        if observed::is_being_deleted(self.migration) {
            return self.refuse(status, "the Migration was deleted before it began");
        }
        let Some(pod) = &self.observed.source else {
            let name = self.migration.spec.pod_name.as_deref().unwrap_or_default();
            return self.refuse(status, &format!("spec.podName: there is no pod {name:?} in this namespace"));
        };
        let asked = self.migration.annotations().get(keys::POD_UID);
        if asked.is_some() && asked != pod.metadata.uid.as_ref() {
            return self.refuse(status, "the pod that was annotated is gone; another one has its name");
        }
        // Applied together with its pod, a Migration waits for it.
        if observed::is_starting(pod) && !self.is_overdue() {
            return Step::told(status, "waiting for the pod to run");
        }
        let mut source = observed::source_status(pod);
        if let Some(owner) = &mut source.owner {
            owner.tied_by = owner::tie(pod.labels(), &self.observed.owner_selector);
        }
        status.source = Some(source);
        status.observed_generation = self.migration.metadata.generation;
        status.enter(Phase::Preflight, self.now);
        Step::write(status)
    }

    pub(super) fn preflight(&self, mut status: MigrationStatus) -> Step {
        let mut blockers = self.observed.blockers.clone();
        blockers.extend(owner_blocker(&status));
        match self.inspection(&status, blockers.is_empty()) {
            Inspection::Awaited(step) => return *step,
            Inspection::Missing(blocker) => blockers.push(blocker),
            Inspection::Done(inspected) => {
                blockers.extend(inspected.blockers.iter().cloned().map(Blocker::from));
                status.warnings = inspected.warnings.iter().cloned().map(|warning| Blocker::from(warning).to_string()).collect();
                let of_spec = self.observed.source.as_ref().map(preflight::warnings).unwrap_or_default();
                status.warnings.extend(of_spec.iter().map(ToString::to_string));
                self.estimate(&mut status, inspected);
                let destination = self.migration.spec.destination.node_name.as_deref().unwrap_or_default();
                blockers.extend(self.missing_room(&status, destination));
            }
        }
        if !blockers.is_empty() {
            status.blockers = blockers.iter().map(ToString::to_string).collect();
            return self.refuse(status, &Blocker::join(&blockers));
        }
        status.lane = Some(self.observed.lane.lane).filter(|lane| *lane != Lane::Auto);
        if self.migration.spec.check_only {
            "preflight found no blocker; nothing was touched".clone_into(&mut status.message);
            if let Some(lane) = status.lane {
                status.message = format!("{}; lane {lane}: {}", status.message, self.observed.lane.reason);
            }
            if !status.warnings.is_empty() {
                status.message = format!("{}; after a move: {}", status.message, status.warnings.join("; "));
            }
            status.complete_check(self.now);
            return Step::write(status);
        }
        let Some(source) = status.source.clone() else { return Step::wait() };
        if !self.observed.locked_by(self.migration) {
            return Step::perform(vec![Effect::Lock { uid: source.uid }]);
        }
        status.destination = Some(DestinationStatus {
            node_name: self.migration.spec.destination.node_name.clone().unwrap_or_default(),
            repository: self.observed.fresh_repository.clone(),
            push_address: String::new(),
            without_gate: false,
        });
        let waiting = ReplacementStatus { name: self.observed.replacement_name.clone(), ..Default::default() };
        if self.migration.spec.keep_name {
            status.placeholder = Some(waiting);
            status.replacement = Some(ReplacementStatus { name: source.name, ..Default::default() });
        } else {
            status.replacement = Some(waiting);
        }
        status.enter(Phase::Preparing, self.now);
        Step::write(status)
    }

    /// What the source node's agent has found in the running processes. Everything that is in the way is told at once, so the spec's blockers wait for
    /// it too, though not as long.
    fn inspection(&self, status: &MigrationStatus, is_all_else_well: bool) -> Inspection<'_> {
        let Some(source) = status.source.as_ref().filter(|source| !source.node_name.is_empty()) else {
            return Inspection::Missing(Blocker::new("spec.nodeName", "the pod is on no node", "wait until it runs"));
        };
        if let Some(inspected) = &self.observed.source_status().inspected {
            return Inspection::Done(inspected);
        }
        let patience = if is_all_else_well { INSPECTION_PATIENCE } else { INSPECTION_PATIENCE_OF_A_REFUSAL };
        if status.time_in(Phase::Preflight, self.now) > patience {
            let node = &source.node_name;
            let message = format!("the agent of node {node} has not looked at the running processes within {} s", patience.as_secs());
            return Inspection::Missing(Blocker::new("processes", message, "is its drover-agent pod ready? see its log"));
        }
        Inspection::Awaited(Box::new(if self.observed.source_attestation.is_none() {
            Step::perform(vec![attestation(Role::Source, &source.node_name, &source.uid)])
        } else {
            Step::wait()
        }))
    }

    fn estimate(&self, status: &mut MigrationStatus, inspected: &Inspected) {
        let Some(bytes) = inspected.bytes else { return };
        let containers = status.source.as_ref().map_or(0, |source| source.containers.len());
        // What stays behind keeps nobody waiting.
        let carried = if self.migration.spec.post_copy { 0 } else { bytes };
        let freeze = estimate::freeze(self.observed.lane.lane, status.is_source_first(), carried, containers);
        status.estimated_freeze_millis = u64::try_from(freeze.as_millis()).ok();
        let limit = self.migration.spec.deadline_seconds;
        let left = Duration::from_secs(limit.into()).saturating_sub(self.age());
        let warnings = estimate::warning(freeze, self.migration.spec.freeze_budget_seconds).into_iter().chain(estimate::late(freeze, left, limit));
        status.warnings.extend(warnings.map(|warning| warning.to_string()));
    }

    fn missing_room(&self, status: &MigrationStatus, destination: &str) -> Vec<Blocker> {
        let inspected = self.observed.source_status().inspected.as_ref();
        let bytes = inspected.and_then(|inspected| inspected.bytes).unwrap_or(0);
        // An agent of before does not tell them apart: then all of it may be volumes.
        let volumes = inspected.and_then(|inspected| inspected.volume_bytes).unwrap_or(bytes).min(bytes);
        let source_first = status.is_source_first() || self.migration.spec.keep_name;
        let carried = match status.lane.unwrap_or(self.observed.lane.lane) {
            // A source that goes first leaves the kubelet's archive behind in either lane (R14).
            Lane::Runtime if !source_first => Carried { stored: volumes, memory: if self.migration.spec.post_copy { 0 } else { bytes - volumes } },
            _ => Carried { stored: bytes, memory: 0 },
        };
        let source = status.source.as_ref().map_or("", |source| source.node_name.as_str());
        room::missing(carried, &self.observed.rooms, source, destination)
    }

    pub(super) fn preparing(&self, mut status: MigrationStatus) -> Step {
        let (Some(source), Some(mut destination)) = (status.source.clone(), status.destination.clone()) else { return Step::wait() };
        let (pod, waiting) = self.observed.waiting(&status);
        let (pod, Some(mut waiting)) = (pod.cloned(), waiting.cloned()) else { return Step::wait() };
        if self.observed.source_attestation.is_none() {
            return Step::perform(vec![attestation(Role::Source, &source.node_name, &source.uid)]);
        }
        let Some(pod) = pod else { return Step::perform(self.create_waiting()) };
        if !self.observed.is_our_replacement(&pod, self.migration) {
            return self.roll_back(status, &format!("a pod {} exists already and is not this migration's replacement", waiting.name));
        }
        let node = observed::node_of(&pod);
        if waiting.uid.is_empty() || (destination.node_name.is_empty() && node.is_some()) {
            waiting.uid = pod.metadata.uid.clone().unwrap_or_default();
            destination.node_name = node.map_or(destination.node_name, str::to_owned);
            *(if status.placeholder.is_some() { &mut status.placeholder } else { &mut status.replacement }) = Some(waiting);
            status.destination = Some(destination);
            return Step::write(status);
        }
        let Some(node) = node else {
            return Step::told(status, &observed::scheduling_message(&pod));
        };
        if node == source.node_name || node != destination.node_name {
            return self.roll_back(status, &format!("the replacement was placed on node {node}, where it must not run"));
        }
        if let Some(changes) = self.meddled_with(&pod) {
            return self.roll_back(status, &changes);
        }
        if let Some(step) = self.fix_order(&status) {
            return step;
        }
        if self.observed.destination_attestation.is_none() {
            return Step::perform(vec![Effect::LayOutPullCredentials, attestation(Role::Destination, node, &waiting.uid)]);
        }
        match &self.observed.destination_status().prepared {
            Some(prepared) if observed::sandbox_ready(&pod) => {
                if let Some(step) = self.initialize(&status, &pod) {
                    return step;
                }
                // With `auto` the node was not known to the preflight; and what was free then may be full now.
                if let Some(blocker) = self.missing_room(&status, node).first() {
                    return self.roll_back(status, &blocker.to_string());
                }
                if let Some(step) = self.take_turn(&status, node) {
                    return step;
                }
                destination.push_address.clone_from(&prepared.push_address);
                status.destination = Some(destination);
                status.message.clear();
                status.enter(Phase::Freezing, self.now);
                Step::write(status)
            }
            Some(_) => Step::told(status, "waiting for the replacement's sandbox"),
            None => Step::told(status, "waiting for the destination's base images"),
        }
    }

    /// What others have made of the waiting pod that would not let the checkpoint be restored in it.
    fn meddled_with(&self, waiting: &Pod) -> Option<String> {
        let asked = build(self.observed.source.as_ref()?, self.migration, &[]);
        let changes = differences(asked.spec.as_ref()?, waiting.spec.as_ref()?);
        let told = changes.join(", ");
        (!changes.is_empty()).then(|| {
            format!("an admission webhook or policy has changed the waiting pod, and a checkpoint fits only what it was taken from: {told} (except its pods from that one)")
        })
    }

    /// What the init containers of a waiting pod still have to go through; a placeholder, which never runs, has nothing to.
    fn initialize(&self, status: &MigrationStatus, pod: &Pod) -> Option<Step> {
        let images = init_images(self.migration);
        if images.is_empty() || status.placeholder.is_some() {
            return None;
        }
        if !observed::has_init_images(pod, &images) {
            return Some(Step::perform(vec![Effect::WriteInitImages { uid: pod.metadata.uid.clone().unwrap_or_default() }]));
        }
        (!observed::has_initialized(pod)).then(|| Step::told(status.clone(), "waiting for the replacement to pass its init containers"))
    }

    pub(super) fn freezing(&self, mut status: MigrationStatus) -> Step {
        let Some(frozen) = &self.observed.source_status().frozen else { return Step::wait() };
        let expected = status.source.as_ref().map(|s| s.containers.clone()).unwrap_or_default();
        let same = frozen.containers.len() == expected.len()
            && expected.iter().all(|c| frozen.containers.iter().any(|f| f.name == c.name && f.container_id == c.container_id));
        if !same {
            return self.roll_back(status, "the pod's containers are not those that preflight saw: one was restarted in between");
        }
        status.set_condition(condition::FROZEN, true, "Frozen", "the source is paused", self.now);
        status.enter(Phase::Checkpointing, self.now);
        Step::write(status)
    }

    pub(super) fn checkpointing(&self, mut status: MigrationStatus) -> Step {
        if self.observed.source_status().checkpointed.is_none() {
            return Step::wait();
        }
        status.enter(Phase::Transferring, self.now);
        Step::write(status)
    }

    pub(super) fn transferring(&self, mut status: MigrationStatus) -> Step {
        let Some(vote) = &self.observed.source_status().vote else { return Step::wait() };
        let Some(destination) = &status.destination else { return Step::wait() };
        let repository = destination.repository.clone();
        status.containers = vote
            .images
            .iter()
            .filter(|image| image.container != keys::VOLUMES_TAG)
            .map(|image| ContainerCheckpoint {
                name: image.container.clone(),
                digest: image.digest.clone(),
                bytes: image.bytes,
                memory_bytes: image.memory_bytes,
                pre_copied_bytes: image.pre_copied_bytes,
                image: keys::checkpoint_image(&repository, &image.container),
            })
            .collect();
        let MigrationStatus { confirmations, containers, .. } = &mut status;
        confirmations.retain(|known| is_voted(containers, &known.container, &known.digest));
        status.enter(Phase::AwaitingReadiness, self.now);
        Step::write(status)
    }

    pub(super) fn awaiting_readiness(&self, mut status: MigrationStatus) -> Step {
        if !verdict::may_release(&status, self.observed.source_status(), self.observed.destination_status()) {
            return Step::wait();
        }
        confirmation::conclude(&mut status, self.now);
        status.enter(if status.is_source_first() { Phase::SourceDeleting } else { Phase::Restoring }, self.now);
        Step::write(status)
    }
}

pub(super) fn attestation(role: Role, node: &str, pod_uid: &str) -> Effect {
    Effect::CreateAttestation { role, node: node.to_owned(), pod_uid: pod_uid.to_owned() }
}
