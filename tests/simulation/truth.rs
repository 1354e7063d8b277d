//! What really happens, whatever anybody says of it; and the invariants of DESIGN.md 3, checked after every deed.
//!
//! A program is a count of steps. Each start from nothing is a new lineage; a checkpoint is a lineage at a step. A lineage may only ever be
//! executed onward from the last step that was executed: a second runner, a rewind and a thaw after the copy has run all break that.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use drover::{
    api::{Attestation, AttestationStatus, Migration, MigrationStatus, Outcome, Phase, Role, Verdict, migration::Side},
    ports::TaskState,
};

use crate::{
    kind::went_first,
    node::{Container, Content, Memory, read_archive},
    world::World,
};

/// What is known of the past.
#[derive(Default)]
pub struct Truth {
    /// Lineage → steps executed.
    executed: BTreeMap<u64, u64>,
    /// Lineages that were frozen and have neither been thawed nor handed over.
    in_transit: BTreeSet<u64>,
    /// UIDs of pods of which something has executed.
    ran: BTreeSet<String>,
    /// UIDs of replacements that must never execute: their migration is rolled back.
    forbidden: BTreeSet<String>,
    /// UIDs of sources whose copy is confirmed.
    confirmed: BTreeSet<String>,
    /// UID of a migration → when it was committed.
    committed: BTreeMap<String, Duration>,
    /// Archives on the nodes' disks. The agents remove them without asking anybody.
    archives: Vec<(PathBuf, Memory)>,
    /// UID of a pod → what was dumped of it, the last for each program.
    dumped: BTreeMap<String, BTreeMap<u64, u64>>,
    /// UID of a pod and a container → the program that was executed there last.
    programs: BTreeMap<(String, String), u64>,
    /// Lineages whose pod has started anew since their checkpoint: going on from that is a decision (R8).
    outrun: BTreeSet<u64>,
    /// Containers that a kubelet without a gate has restored once more. Nothing prevents that, but none of them is a copy.
    rewound: BTreeSet<String>,
    /// UIDs of migrations whose fallback is confirmed.
    fallen_back: BTreeSet<String>,
    /// Everything that a status has told: also of migrations that are gone.
    pub told: Vec<String>,
    /// A user has deleted the source: it need not survive any more.
    pub given_up: bool,
    /// A user has deleted any pod: none need be left.
    pub user_deleted: bool,
}

/// A program starts from nothing.
pub fn begins_anew(world: &mut World, pod_uid: &str, container: &str) -> Memory {
    let truth = &mut world.truth;
    let lineage = truth.executed.len() as u64 + 1;
    truth.executed.insert(lineage, 0);
    let before = truth.programs.insert((pod_uid.to_owned(), container.to_owned()), lineage);
    truth.outrun.extend(before.filter(|before| truth.in_transit.contains(before)));
    Memory { lineage, steps: 0 }
}

/// A container executes for the first time.
pub fn started(world: &mut World, at: usize, id: &str) {
    let Some(container) = world.nodes[at].containers.get(id).cloned() else { return };
    world.truth.ran.insert(container.pod_uid.clone());
    if container.restored_from.is_none() {
        return;
    }
    let lineage = container.memory.lineage;
    if world.truth.outrun.contains(&lineage) {
        world.breaks(format!(
            "R8: {} ({id}) goes on from a checkpoint though its pod has started anew since, and nobody has decided so",
            container.name
        ));
    }
    let before = world.truth.programs.insert((container.pod_uid.clone(), container.name.clone()), lineage);
    if before == Some(lineage) && !world.nodes[at].gated {
        world.truth.executed.insert(lineage, container.memory.steps);
        world.truth.rewound.insert(id.to_owned());
    }
}

impl Truth {
    /// A program that was frozen runs again where it was.
    pub fn goes_on(&mut self, lineage: u64) {
        self.in_transit.remove(&lineage);
    }

    /// A kubelet has written an archive.
    pub fn archived(&mut self, path: PathBuf, memory: Memory, pod_uid: &str) {
        self.dumped.entry(pod_uid.to_owned()).or_default().insert(memory.lineage, memory.steps);
        self.archives.push((path, memory));
    }
}

impl World {
    /// Every program that executes takes a step, and every invariant must hold.
    pub fn check(&mut self) {
        let mut broken = None;
        for node in &mut self.nodes {
            for container in node.containers.values_mut() {
                // A source whose copy is confirmed is only waiting for its end.
                if container.state == TaskState::Paused && container.ended.is_none() && !self.truth.confirmed.contains(&container.pod_uid) {
                    self.truth.in_transit.insert(container.memory.lineage);
                }
                if !container.executes {
                    continue;
                }
                container.cpu_nanos += 1000;
                let executed = self.truth.executed.entry(container.memory.lineage).or_default();
                if *executed == container.memory.steps {
                    *executed += 1;
                    container.memory.steps += 1;
                } else {
                    broken.get_or_insert(format!(
                        "I1, I8: {} ({}) on {} executes step {} though its program has executed {} already",
                        container.name, container.id, node.name, container.memory.steps, executed
                    ));
                }
                if self.truth.forbidden.contains(&container.pod_uid) {
                    broken.get_or_insert(format!("I4: {} ({}) executes though its migration is rolled back", container.name, container.id));
                }
            }
        }
        let broken = broken.or_else(|| self.two_runners());
        if let Some(what) = broken
            && self.broken.is_none()
        {
            self.breaks(what);
        }
        if let Some(at) = self.truth.archives.iter().position(|(path, _)| !path.exists()) {
            drover_collects(self, |world| {
                let (path, memory) = world.truth.archives.remove(at);
                // Kept under another name it is not lost.
                let beside = path.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
                let unknown = beside
                    .map(|entry| entry.path())
                    .find(|p| read_archive(p) == Some(memory) && !world.truth.archives.iter().any(|(known, _)| known == p));
                world.truth.archives.extend(unknown.map(|path| (path, memory)));
            });
        }
    }

    fn two_runners(&self) -> Option<String> {
        let runs = |node: usize| self.nodes[node].containers.values().filter(|c| c.executes);
        let same = |one: &Container, other: &Container| one.name == other.name && one.id != other.id;
        let across = runs(0).find(|one| runs(1).any(|other| same(one, other)));
        let found = across.or_else(|| (0..2).find_map(|node| runs(node).find(|one| runs(node).any(|other| same(one, other)))));
        found.map(|one| format!("I1: {} ({}) and another copy of it execute at once", one.name, one.id))
    }

    /// The furthest step of a lineage that anything holds: a living task, an archive, an image.
    fn best(&self, lineage: u64) -> Option<u64> {
        let of = |memory: Memory| (memory.lineage == lineage).then_some(memory.steps);
        let image = |content: &Content| match content {
            Content::Checkpoint(memory) => of(*memory),
            Content::Base => None,
        };
        let mut steps: Vec<u64> = self.truth.archives.iter().filter_map(|(_, memory)| of(*memory)).collect();
        for node in &self.nodes {
            steps.extend(node.containers.values().filter(|c| c.is_alive()).filter_map(|c| of(c.memory)));
            steps.extend(node.registry.values().flat_map(|r| r.manifests.values()).filter_map(|(content, _)| image(content)));
            steps.extend(node.store.values().filter_map(image));
        }
        steps.into_iter().max()
    }

    fn best_in_transit(&self) -> BTreeMap<u64, Option<u64>> {
        self.truth.in_transit.iter().map(|lineage| (*lineage, self.best(*lineage))).collect()
    }
}

/// I2: Drover removes something; the best that is left of a program in transit must not get worse.
pub fn drover_collects(world: &mut World, deed: impl FnOnce(&mut World)) {
    let before = world.best_in_transit();
    deed(world);
    let after = world.best_in_transit();
    if let Some((lineage, best)) = before.iter().find(|(lineage, best)| after.get(lineage).is_some_and(|now| now < best))
        && !world.truth.given_up
    {
        world.breaks(format!("I2: Drover removes the last checkpoint (step {best:?}) of program {lineage}, which is neither thawed nor confirmed"));
    }
}

/// R13, R14: whether a container of a source that goes first may end: its archive has all that it has executed. Without a gate it may have executed more,
/// which is lost; that nothing goes on from the archive then is checked where something does.
fn may_go_first(world: &World, container: &Container) -> bool {
    went_first(world, &container.pod_uid).is_some_and(|status| {
        let without_gate = status.source.as_ref().is_some_and(|source| source.without_gate);
        without_gate || world.truth.archives.iter().any(|(_, memory)| *memory == container.memory)
    })
}

/// I2, R17: an agent ends a source.
pub fn drover_kills(world: &mut World, container: &Container) {
    if !world.truth.confirmed.contains(&container.pod_uid) && !may_go_first(world, container) {
        world.breaks(format!("I2: the agent kills {} ({}) though its copy is not confirmed", container.name, container.id));
    }
}

/// I2, R4, R17: the manager deletes a pod; what lives in it must have been confirmed elsewhere.
pub fn drover_deletes(world: &mut World, uid: &str) {
    // A person, or `spec.inDoubt`, may have decided that the replacement is ended and what it did is lost.
    let given_up = |m: &Migration| {
        let status = m.status.as_ref();
        let decided = status.and_then(|s| s.resolved.as_ref()).is_some_and(|resolved| resolved.prefer == Side::Source);
        decided && status.and_then(|s| s.replacement.as_ref()).is_some_and(|replacement| replacement.uid == uid)
    };
    if world.api.migrations.values().any(given_up) {
        return;
    }
    let lives = world.nodes.iter().flat_map(|node| node.of_pod(uid)).any(|c| c.is_alive() && !may_go_first(world, c));
    if lives && !world.truth.confirmed.contains(uid) {
        world.breaks("I2: the manager deletes a pod whose program lives and has no confirmed copy");
    }
}

/// A kubelet ends a container: who wanted that is checked where the pod was deleted.
pub fn kubelet_kills(world: &mut World, _at: usize, container: &Container) {
    if world.truth.given_up {
        world.truth.in_transit.remove(&container.memory.lineage);
    }
}

/// R2: a frozen source goes on.
pub fn thawed(world: &mut World, container: &Container) {
    world.truth.goes_on(container.memory.lineage);
    if went_first(world, &container.pod_uid).is_some() {
        world.breaks("R13: the source is thawed past the point of no return");
    }
    let has_voted = |a: &&Attestation| a.spec.pod_uid == container.pod_uid && a.status.as_ref().is_some_and(|s| s.vote.is_some());
    let voted: Vec<&str> = world.api.attestations.values().filter(has_voted).map(|a| a.spec.migration_uid.as_str()).collect();
    let bound = |m: &&Migration| {
        let is_voted = m.metadata.uid.as_deref().is_some_and(|uid| voted.contains(&uid));
        is_voted && !m.is_done() && m.verdict() != Some(Verdict::Rollback)
    };
    if let Some(name) = world.api.migrations.values().find(bound).and_then(|m| m.metadata.name.clone()) {
        world.breaks(format!("R2: the source is thawed after its vote in {name}, without Rollback"));
    }
}

/// I5, R17: the destination confirms.
pub fn attested(world: &mut World, before: &AttestationStatus, after: &Attestation) {
    let status = after.status.clone().unwrap_or_default();
    if after.spec.role == Role::Source || status.confirmed.is_none() || before.confirmed.is_some() {
        return;
    }
    let is_fallback = after.spec.role == Role::Fallback;
    let migration = world.api.migrations.values().find(|m| m.metadata.uid.as_ref() == Some(&after.spec.migration_uid)).and_then(|m| m.status.clone());
    let migration = migration.unwrap_or_default();
    let source = migration.source.as_ref().map(|source| source.uid.clone()).unwrap_or_default();
    if is_fallback {
        world.truth.fallen_back.insert(after.spec.migration_uid.clone());
    } else {
        world.truth.confirmed.insert(source.clone());
    }
    if migration.resolved.is_some() && !is_fallback {
        // It was decided that the replacement goes on, with or without the memory.
        let frozen = world.nodes.iter().flat_map(|node| node.containers.values()).filter(|c| world.truth.confirmed.contains(&c.pod_uid));
        let given_up: Vec<u64> = frozen.map(|c| c.memory.lineage).collect();
        world.truth.in_transit.retain(|lineage| !given_up.contains(lineage));
        return;
    }
    let key = if is_fallback { fallback_of(&after.spec.migration_uid) } else { after.spec.migration_uid.clone() };
    let committed = world.truth.committed.get(&key).copied();
    for named in status.restored.iter().flat_map(|restored| &restored.containers) {
        let found = world.nodes.iter().find_map(|node| node.containers.get(&named.container_id));
        let ran = found.is_some_and(|c| c.restored_from.is_some() && committed.is_some_and(|at| c.ended.is_none_or(|ended| ended >= at)));
        let lineage = found.map(|c| c.memory.lineage);
        let dumped = world.truth.dumped.get(&source).is_some_and(|dumped| lineage.is_some_and(|lineage| dumped.contains_key(&lineage)));
        if world.truth.rewound.contains(&named.container_id) {
            world.breaks(format!("I8: {} is confirmed though its program was restored twice", named.container_id));
        } else if ran && dumped {
            world.truth.in_transit.retain(|kept| Some(*kept) != lineage);
        } else {
            world.breaks(format!(
                "R17: {} is confirmed though it did not go on from the checkpoint, or did not run after what must stand first",
                named.container_id
            ));
        }
    }
}

/// I3, I4, I5: the manager has written a status.
pub fn status_written(world: &mut World, migration: &Migration, before: &MigrationStatus) {
    let status = migration.status.clone().unwrap_or_default();
    let uid = migration.metadata.uid.clone().unwrap_or_default();
    crate::faults::phase_entered(world, status.phase);
    if status.message.contains("kept-") {
        world.truth.told.push(status.message.clone());
    }
    if before.verdict.is_some() && before.verdict != status.verdict {
        world.breaks("I3: the verdict is written a second time");
    }
    if before.verdict.is_none() {
        match status.verdict {
            Some(Verdict::Commit) => {
                let now = world.elapsed();
                world.truth.committed.insert(uid, now);
            }
            Some(Verdict::Rollback) => roll_back(world, &status),
            None => {}
        }
    }
    let restored = |status: &MigrationStatus| status.fallback.as_ref().is_some_and(|fallback| !fallback.containers.is_empty());
    let own = migration.metadata.uid.clone().unwrap_or_default();
    if restored(&status) && !restored(before) {
        let now = world.elapsed();
        world.truth.committed.insert(fallback_of(&own), now);
    }
    let source = status.source.as_ref().map(|s| s.uid.clone()).unwrap_or_default();
    if before.outcome.is_none() && status.outcome == Some(Outcome::RolledBack) && status.fallback.is_some() && !world.truth.fallen_back.contains(&own)
    {
        world.breaks("I5: RolledBack is written though no fallback was confirmed");
    }
    if before.outcome.is_none() && status.outcome == Some(Outcome::Migrated) && !world.truth.confirmed.contains(&source) {
        world.breaks("I5: Migrated is written though no copy was confirmed");
    }
    if before.outcome.is_none() && status.outcome == Some(Outcome::RolledBack) {
        let frozen = world.nodes.iter().flat_map(|node| node.of_pod(&source)).any(|c| c.state == TaskState::Paused && c.ended.is_none());
        if frozen {
            world.breaks("RolledBack is written though the source is still frozen");
        }
    }
    if before.outcome.is_none()
        && status.outcome == Some(Outcome::GivenUp)
        && let Some(fallback) = &status.fallback
        && world.nodes.iter().flat_map(|node| node.of_pod(&fallback.uid)).any(|c| c.ended.is_none())
    {
        world.breaks("GivenUp is written though something of the fallback has not ended");
    }
    debug_assert!(status.phase != Phase::Done || status.outcome.is_some() || migration.spec.check_only, "an end has an outcome");
}

/// Under which key it is kept when a fallback was written down as restored.
fn fallback_of(migration_uid: &str) -> String {
    format!("{migration_uid}/fallback")
}

fn roll_back(world: &mut World, status: &MigrationStatus) {
    if status.resolved.is_some() {
        lose_what_ran_since(world, status);
    }
    let Some(replacement) = status.replacement.as_ref().filter(|r| !r.uid.is_empty()) else { return };
    if status.resolved.is_none() && world.truth.ran.contains(&replacement.uid) {
        world.breaks("I4: Rollback is written though the replacement has executed");
    }
    world.truth.forbidden.insert(replacement.uid.clone());
}

/// R7: it was decided that the source goes on: what the copy has executed since is lost, as the status says. The copy must be over by now.
fn lose_what_ran_since(world: &mut World, status: &MigrationStatus) {
    let source = status.source.as_ref().map(|s| s.uid.clone()).unwrap_or_default();
    let frozen: Vec<Memory> = world.nodes.iter().flat_map(|node| node.of_pod(&source)).map(|c| c.memory).collect();
    world.truth.executed.extend(frozen.into_iter().map(|memory| (memory.lineage, memory.steps)));
    if status.is_source_first() {
        let dumped = world.truth.dumped.get(&source).cloned().unwrap_or_default();
        world.truth.outrun.retain(|lineage| !dumped.contains_key(lineage));
        world.truth.executed.extend(dumped);
    }
}
