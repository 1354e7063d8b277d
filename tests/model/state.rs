//! The world of one migration, as compact as can be: what the API server stores, what lies on two nodes' disks and runs there, and what
//! a manager holds in its memory. Statuses are the product's own values, interned.

use crate::intern::Id;
use drover::{
    api::{MigrationStatus, Phase},
    markers::Claim,
};

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
    /// Faults that may still happen.
    pub faults: u8,
    /// Times that a manager may still fall asleep over a decision.
    pub naps: u8,
    pub past: Past,
}

/// What has happened, as no part of the product knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Past {
    /// Containers whose memory was resumed on the destination, by bit.
    pub restores: u8,
    /// The replacement has run from its base image before the confirmation.
    pub cold: bool,
    /// The source has executed since it was dumped.
    pub ran_on: bool,
    /// The last running or frozen copy was lost by a user's own hand or as any pod is lost with its node.
    pub excused: bool,
    /// Drover has deleted the released replacement without a verdict.
    pub deleted_in_doubt: bool,
    pub wrongs: Wrongs,
}

/// What must never happen, each a bit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Wrongs(pub u16);

impl Wrongs {
    pub const VERDICT_REWRITTEN: u16 = 1;
    pub const THAWED_AFTER_VOTE: u16 = 2;
    pub const STALE_RESTORE: u16 = 4;
    pub const FALSE_COMMIT: u16 = 8;
    pub const FOREIGN_THAW: u16 = 16;
    pub const REWOUND: u16 = 32;
    pub const KILLED_EARLY: u16 = 64;
    pub const FORGED: u16 = 128;
    pub const COPY_ENDED: u16 = 256;

    pub fn add(&mut self, wrong: u16) {
        self.0 |= wrong;
    }

    pub fn has(self, wrong: u16) -> bool {
        self.0 & wrong != 0
    }
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
    Unlock,
    AttestationOfSource,
    AttestationOfDestination,
    LayOutCredentials,
    RemoveCredentials,
    CreateReplacement,
    Claim(u8),
    RewriteImages(u8),
    DeleteReplacement(u8, bool),
    DeleteSource,
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
    Watchdog,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Destination {
    pub up: bool,
    /// It never comes back.
    pub lost: bool,
    pub cut: bool,
    pub view: View,
    /// The checkpoint's blobs are in the registry.
    pub blobs: bool,
    pub containers: [Container; MOST],
    pub doing: Option<Doing>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Doing {
    pub what: DestinationStep,
    pub stage: u8,
    /// Containers, by bit: whose restore was proved to have been refused, or whose taken restore is over.
    pub of: u8,
}

/// [`drover::domain::attest::DestinationAction`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DestinationStep {
    Prepare,
    Verify,
    Restore,
    Revoke,
    /// revoke.rs `look_for_the_end`.
    End,
    Confirm,
    StartCold,
    CleanAfterCommit,
    CleanAfterRollback,
}

/// One container of the replacement on its node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Container {
    pub claim: Option<Claim>,
    pub task: Task,
    /// The runtime still lists an ended one of the same name.
    pub earlier: bool,
    pub log: Log,
    /// The node has booted since its evidence was noted.
    pub booted: bool,
    /// The proof beside the claim.
    pub proof: bool,
    /// What the tag names.
    pub tag: Option<Img>,
    /// The runtime's store has the checkpoint image.
    pub store: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Img {
    Checkpoint,
    Base,
    /// A checkpoint that the source has not made.
    Forged,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Task {
    None,
    /// The kubelet has made the container and not started it.
    Made(Img),
    /// runc restores it; nothing of it executes.
    Restoring,
    Running {
        restored: bool,
    },
    /// It could not be started; the kubelet has runc's error.
    Refused,
    /// It has run and ended.
    Dead,
}

/// CRIU's log of the one restore.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Log {
    None,
    Begun,
    /// With an error line that ended nothing, or everything.
    Error,
    Resumed {
        error: bool,
    },
}

impl Container {
    /// Nothing has been made yet.
    pub const EMPTY: Self =
        Self { claim: None, task: Task::None, earlier: false, log: Log::None, booted: false, proof: false, tag: None, store: false };
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

    /// Forgets what makes no difference any more, so that worlds that go on alike are one.
    pub fn settle(&mut self) {
        let released = self.status().is_none_or(|status| status.phase >= Phase::Restoring);
        self.overdue &= !released;
        self.source.moved &= self.source.journal.is_some_and(|journal| journal.dumped && !journal.vote);
    }

    pub fn source_runs(&self) -> bool {
        self.source.up && self.source.task == SourceTask::Running
    }

    pub fn destination_runs(&self) -> bool {
        self.destination.up && self.destination.containers.iter().any(|c| matches!(c.task, Task::Running { .. }))
    }
}

impl Source {
    /// What every instruction of the source means to the others.
    pub fn executes(&mut self, past: &mut Past) {
        self.moved = true;
        past.ran_on |= self.archive || self.journal.is_some_and(|journal| journal.dumped);
    }
}
