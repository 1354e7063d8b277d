//! The world of one migration, as compact as can be: what the API server stores, what lies on two nodes' disks and runs there, and what
//! a manager holds in its memory. Statuses are the product's own values, interned.

mod destination;
mod first;
mod past;

pub use destination::{Container, Destination, DestinationStep, Doing, Img, Log, Orphan, Task};
pub use first::{Fallback, First, Named, Placeholder};
pub use past::{Past, Wrongs};

use crate::{intern::Id, owners::Owned};
use drover::api::{MigrationStatus, Phase, Verdict};

/// Most containers that a pod of the model has.
pub const MOST: usize = 2;

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    /// None once the API server has removed it.
    pub migration: Option<Mig>,
    pub source_says: Option<Id>,
    pub destination_says: Option<Id>,
    pub source_pod: Object,
    pub locked: bool,
    pub replacement: Option<Replacement>,
    pub credentials: bool,
    /// `spec.deadlineSeconds` have passed.
    pub overdue: bool,
    /// The destination's Node object says Ready.
    pub node_ready: bool,
    pub sleeper: Option<Sleeper>,
    pub source: Source,
    pub destination: Destination,
    pub first: First,
    /// The controller that owns the pod.
    pub owned: Option<Owned>,
    /// Faults that may still happen.
    pub faults: u8,
    /// Times that a manager may still fall asleep over a decision.
    pub naps: u8,
    pub past: Past,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mig {
    pub status: Id,
    pub deleting: bool,
    pub finalizer: bool,
    /// A person's decision: the annotation that `drover resolve` writes.
    pub resolve: Option<Resolve>,
}

/// What a person may decide of a migration in doubt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Resolve {
    Source,
    /// The destination node is powered off and stays so.
    SourceSinceDestinationIsDown,
    Destination,
    /// A pod whose fallback has failed.
    GiveUp,
}

impl Mig {
    pub fn status(self) -> &'static MigrationStatus {
        crate::intern::STATUSES.get(self.status)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Object {
    Live,
    Deleting,
    Gone,
}

/// The replacement's object; UID 1 is the one that the migration made first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Replacement {
    pub uid: u8,
    pub deleting: bool,
    pub sandbox: bool,
    pub claimed: bool,
    pub images: bool,
}

/// A manager that has read, and perhaps decided, and does nothing for a while; the other one goes on meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Sleeper {
    pub migration: Mig,
    /// The Migration was written since: a compare-and-swap fails.
    pub outdated: bool,
    pub decision: Option<Decision>,
}

/// What [`drover::domain::migration::advance`] said.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    Write(Id),
    Effects([Option<Eff>; 2]),
}

/// [`drover::domain::migration::Effect`] without its strings.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Eff {
    AddFinalizer,
    RemoveFinalizer,
    Lock,
    /// By the number of the pod that carries it.
    Unlock(u8),
    AttestationOfSource,
    AttestationOfDestination,
    AttestationOfFallback,
    LayOutCredentials,
    RemoveCredentials,
    RehearseReplacement,
    CreateReplacement,
    KeepTemplate,
    RemoveTemplate,
    CreateSameName,
    CreateFallback,
    DeletePlaceholder(u8, bool),
    Claim(u8),
    RewriteImages(u8),
    DeleteReplacement(u8, bool),
    DeleteSource,
    DeleteFallback(u8),
    ReleaseSource,
    MarkSurplus,
    HandOver(u8, bool),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Age {
    Fresh,
    Old,
}

/// What a kubelet's `GET /pods` shows of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum View {
    /// Not read from the API server since the kubelet started: lists nothing.
    Unsynced,
    /// Read, and there is none.
    Unlisted,
    Listed,
    /// Listed, with images that exist.
    Released,
    Terminating,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Source {
    pub up: bool,
    /// It never comes back.
    pub lost: bool,
    /// Cut off from the API server.
    pub cut: bool,
    pub view: View,
    pub task: SourceTask,
    /// The container was restarted: another ID, no memory of before.
    pub fresh: bool,
    /// The kubelet has removed what was left of it in the runtime.
    pub removed: bool,
    /// The kubelet has made the dead container anew, and not started it yet; only where no gate refuses that.
    pub made: bool,
    pub fence: Fence,
    pub journal: Option<Journal>,
    /// A complete checkpoint archive lies on the disk.
    pub archive: bool,
    /// CPU time has been used since the baseline.
    pub moved: bool,
    pub doing: Option<(SourceStep, u8)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SourceTask {
    Running,
    Paused,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fence {
    None,
    Ours,
    /// Another migration's, which has frozen the pod and may have released its copy.
    Other,
}

/// [`drover::agent::journal::Journal`] without its strings.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Journal {
    pub frozen: Option<Age>,
    /// It names the restarted container.
    pub fresh: bool,
    pub dumped: bool,
    pub pushed: bool,
    pub vote: bool,
    pub aborted: bool,
    pub thawed: bool,
    pub unmoved: bool,
}

/// [`drover::domain::attest::SourceAction`], and the watchdog's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SourceStep {
    Inspect,
    Freeze,
    Checkpoint,
    Push,
    Vote,
    Abort,
    Thaw,
    Kill,
    Forget,
    End,
    Collect,
    Keep,
    Watchdog,
}

impl World {
    /// Writes the Migration's object: whoever has read it before holds an outdated one.
    pub fn write_migration(&mut self, to: Option<Mig>) {
        if self.migration != to {
            self.migration = to;
            if let Some(sleeper) = &mut self.sleeper {
                sleeper.outdated = true;
            }
        }
    }

    pub fn status(&self) -> Option<&'static MigrationStatus> {
        self.migration.map(Mig::status)
    }

    /// Forgets what makes no difference any more, so that worlds that go on alike are one. `regained`: the nodes that have the memory.
    pub fn settle(&mut self, regained: [bool; 2]) {
        let released = self.status().is_none_or(|status| status.phase >= Phase::Restoring);
        self.overdue &= !released;
        self.first.settle();
        let copy = self.replacement.is_some();
        self.owned.iter_mut().for_each(|owned| owned.settle(self.source_pod, copy));
        self.first.ended_long_ago &= self.awaits_destination();
        // Nobody asks a person any more once a rollback stands, nor how a copy has ended.
        if let Some(mig) = self.migration.as_mut().filter(|mig| mig.status().verdict == Some(Verdict::Rollback)) {
            mig.resolve = None;
            if self.destination.doing.is_none() {
                self.destination.containers.iter_mut().for_each(|c| (c.log, c.booted, c.proof) = (Log::None, false, false));
            }
        }
        self.past.disks_lost.iter_mut().zip(regained).for_each(|(lost, regained)| *lost &= !regained);
        // A lock goes with its pod.
        self.locked &=
            self.source_pod != Object::Gone || self.replacement.is_some() || self.first.fallback.as_ref().is_some_and(|it| it.pod.is_some());
        self.source.moved &= self.source.journal.is_some_and(|journal| journal.dumped && !journal.vote);
    }

    pub fn source_runs(&self) -> bool {
        self.source.up && self.source.task == SourceTask::Running
    }
}

impl Source {
    /// What every instruction of the source means to the others.
    pub fn executes(&mut self, past: &mut Past) {
        self.moved = true;
        past.ran_on |= self.archive || self.journal.is_some_and(|journal| journal.dumped);
    }
}
