//! What kind of pod and of nodes a seed has, and so which order of the protocol it goes through; and which pod of a migration is which.

use drover::api::{Migration, MigrationStatus, Phase};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::world::{POD, World};

/// The courses of the protocol. The seed alone says which one it is: one seed stays one schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A copy of another name, on nodes with the gate: the source goes last.
    NewName,
    /// `spec.keepName` on nodes with the gate: the source goes first.
    SameName,
    /// One of the nodes or both have no gate: the source goes first.
    Gateless,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::NewName, Self::SameName, Self::Gateless];

    pub fn of(seed: u64) -> Self {
        match seed % 3 {
            0 => Self::NewName,
            1 => Self::SameName,
            _ => Self::Gateless,
        }
    }

    /// Whether the name keeps, and which nodes have the gate. Drawn apart from everything else, which then is the same for each kind.
    pub fn draw(self, seed: u64) -> (bool, [bool; 2]) {
        let mut chance = StdRng::seed_from_u64(seed ^ 0x5eed_0001);
        match self {
            Self::NewName => (false, [true, true]),
            Self::SameName => (true, [true, true]),
            Self::Gateless => (chance.random_range(0..3) == 0, [[false, true], [true, false], [false, false]][chance.random_range(0..3)]),
        }
    }

    /// Where faults strike: the point of no return, and what comes around it, more often.
    pub fn phases(self) -> &'static [Phase] {
        if self == Self::NewName { &LAST } else { &FIRST }
    }
}

const LAST: [Phase; 9] = [
    Phase::Preparing,
    Phase::Freezing,
    Phase::Checkpointing,
    Phase::Transferring,
    Phase::AwaitingReadiness,
    Phase::AwaitingReadiness,
    Phase::Restoring,
    Phase::Restoring,
    Phase::Finishing,
];

const FIRST: [Phase; 11] = [
    Phase::Preparing,
    Phase::Checkpointing,
    Phase::Transferring,
    Phase::AwaitingReadiness,
    Phase::SourceDeleting,
    Phase::SourceDeleting,
    Phase::SourceDeleting,
    Phase::Restoring,
    Phase::Restoring,
    Phase::Finishing,
    Phase::Finishing,
];

/// The pod that is the source of m1, or the one that stands or waits in its place. By UID: they may have one name.
pub fn pod_of(world: &World, source: bool) -> Option<(String, String)> {
    let status = world.api.migrations.get("m1").and_then(|m| m.status.clone()).unwrap_or_default();
    let uids: Vec<String> = if source {
        let first = || world.api.pods.get(POD).and_then(|pod| pod.metadata.uid.clone());
        status.source.map(|s| s.uid).or_else(first).into_iter().collect()
    } else {
        [status.fallback, status.replacement, status.placeholder].into_iter().flatten().map(|made| made.uid).collect()
    };
    let there = |uid: &String| world.api.pods.iter().find(|(_, pod)| pod.metadata.uid.as_ref() == Some(uid)).map(|(name, _)| name.clone());
    uids.into_iter().filter(|uid| !uid.is_empty()).find_map(|uid| Some((there(&uid)?, uid)))
}

/// The migration past whose point of no return a pod is the source (R13).
pub fn went_first<'a>(world: &'a World, pod_uid: &str) -> Option<&'a MigrationStatus> {
    let is_source = |status: &&MigrationStatus| {
        let first = status.is_source_first() && (status.phase == Phase::SourceDeleting || status.phase == Phase::Restoring || is_past(status));
        first && status.source.as_ref().is_some_and(|source| source.uid == pod_uid)
    };
    world.api.migrations.values().filter_map(|m: &Migration| m.status.as_ref()).find(is_source)
}

/// Ended, or about to, after the source was deleted: a rollback before that has no fallback.
fn is_past(status: &MigrationStatus) -> bool {
    status.phase > Phase::Restoring && (status.verdict == Some(drover::api::Verdict::Commit) || status.fallback.is_some())
}
