//! The node where the copy is: what lies on its disk, and what runs there.

use drover::markers::Claim;

use super::{MOST, View};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Destination {
    pub up: bool,
    /// It never comes back.
    pub lost: bool,
    pub cut: bool,
    pub view: View,
    /// The pod's sandbox is there; followed only where no gate is, since only then anybody asks (R6).
    pub sandbox: bool,
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
    /// destination.rs `expect`.
    Arm,
    /// fallback.rs `prepare_fallback`.
    PrepareFallback,
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
    /// The restore that the gate let through goes on, and the runtime has given it up.
    pub orphan: Option<Orphan>,
}

/// A restore that nobody supervises: the kubelet was told that the start has failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Orphan {
    /// CRIU has resumed it.
    pub runs: bool,
    /// The runtime still has its container; else only its cgroup names it.
    pub listed: bool,
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
    /// The kubelet is about to make it, and the runtime knows nothing of it; followed only where no gate is.
    Pulling,
    /// The kubelet has made the container and not started it.
    Made(Img),
    /// runc restores it; nothing of it executes.
    Restoring,
    /// It runs, and has not got all of its memory yet.
    Filling,
    Running {
        restored: bool,
    },
    /// It could not be started; the kubelet has runc's error.
    Refused,
    /// It has run and ended.
    Dead,
    /// Its keeper has ended it, since its memory did not come.
    Spoilt,
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

impl Destination {
    /// Nothing of a pod has come to the node yet.
    pub const EMPTY: Self = Self {
        up: true,
        lost: false,
        cut: false,
        view: View::Unlisted,
        sandbox: false,
        blobs: false,
        containers: [Container::EMPTY; MOST],
        doing: None,
    };

    /// Something of the copy executes.
    pub fn runs(&self) -> bool {
        self.up && self.containers.iter().any(Container::runs)
    }

    /// The copy.
    pub fn has_a_copy(&self) -> bool {
        self.up && self.containers.iter().any(Container::runs_restored)
    }

    /// The copy, or the checkpoint in the node's registry. No pod goes on from what the runtime has given up.
    pub fn has_the_memory(&self) -> bool {
        self.blobs || self.containers.iter().any(|c| c.task == Task::Running { restored: true })
    }
}

impl Task {
    pub fn executes(self) -> bool {
        matches!(self, Self::Filling | Self::Running { .. })
    }

    /// It is still listed, and nothing of it executes or will.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Refused | Self::Dead | Self::Spoilt)
    }
}

impl Container {
    /// Nothing has been made yet.
    pub const EMPTY: Self =
        Self { claim: None, task: Task::None, earlier: false, log: Log::None, booted: false, proof: false, tag: None, store: false, orphan: None };

    pub fn runs(&self) -> bool {
        self.task.executes() || self.orphan.is_some_and(|it| it.runs)
    }

    pub fn runs_restored(&self) -> bool {
        matches!(self.task, Task::Filling | Task::Running { restored: true }) || self.orphan.is_some_and(|it| it.runs)
    }

    /// CRIU is at work on it.
    pub fn is_restoring(&self) -> bool {
        self.task == Task::Restoring || self.orphan.is_some_and(|it| !it.runs)
    }
}
