//! The rules that the code implements, each of which a test may switch off.

/// One rule, as the code implements it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Rule {
    /// R1: the release stands in the status before anything of it is done.
    ReleaseIsAnIntent,
    /// R1, R2: no release without the vote.
    ReleaseNeedsTheVote,
    /// R2: the vote needs every container paused.
    VoteNeedsPause,
    /// R2: the vote needs unchanged CPU times.
    VoteNeedsCpu,
    /// R2: a voter does not give up by itself.
    VoterWaits,
    /// R2: who gives up writes that down before it thaws.
    AbortIsWrittenFirst,
    /// R3: a claim is closed on the disk before it is attested as closed.
    RevocationIsWritten,
    /// R4: nobody deletes a replacement in doubt.
    NoDeletionInDoubt,
    /// R5: a marker that is missing proves nothing.
    MissingIsUnknown,
    /// R3: a taken claim counts as failed only with CRIU's evidence.
    FailureNeedsProof,
    /// I4: no rollback after the release without proof.
    RollbackNeedsProof,
    /// R7: what has started and died was not restored.
    DeadIsNotRestored,
    /// R7: what has died is said to have only once nothing of it can execute any more.
    DeadNeedsAnEnd,
    /// R7: the runtime's end is none while a process is left in the container's cgroup.
    EndNeedsNoProcess,
    /// R6: without a gate nothing but the absence of everything says that a replacement is over.
    AbsenceIsProved,
    /// R8: a source that goes first is proved to be over before the release.
    OverBeforeRelease,
    /// R8: what goes first must not have executed anything after its checkpoint.
    CheckpointIsLast,
    /// R6: its sandbox is gone too.
    SandboxIsGone,
    /// R8: the fence stops new containers of the frozen pod.
    Fence,
    /// R13: there is no thaw once the source's deletion is decided.
    PointOfNoReturn,
    /// R14: the archive stays until a copy is confirmed.
    ArchiveWaits,
    /// R9: preflight refuses probes that are less patient than the freeze.
    ProbesFit,
    /// R10: the source is ended only when its kubelet shows the deletion.
    KillNeedsDeletion,
    /// R11: only who froze thaws.
    ThawNeedsOwnFence,
    /// R11: a pod has one active migration.
    Lock,
    /// R12: a Migration that has not ended cannot vanish.
    Finalizer,
    /// R16: the checkpoint is out of reach before `restored` is attested.
    OutOfReachFirst,
    /// R17: the source goes only after the confirmation.
    Confirmation,
    /// R17: a confirmation looks once more.
    ConfirmationLooks,
    /// R19: what waits for memory is not restored yet.
    PagesAreThere,
    /// R20: a claim is taken once.
    OneShot,
    /// R20: the gate takes the claim before it lets the restore through.
    GateTakes,
    /// R20: ordinary creates pass only after the confirmation.
    OpenAfterConfirmation,
    /// R20, I4: a container that runs without a taken claim was not gated.
    OnlyTakenCounts,
    /// I3: a status is written by compare-and-swap.
    CompareAndSwap,
    /// R15, I8: what is let start without the memory is not restored after all.
    ColdIsCold,
    /// I8: an open claim lets no restore through.
    OpenIsNoRestore,
    /// R18: the destination's copy of the checkpoint stays until the original is seen running.
    CollectionWaits,
    /// R18: the checkpoint stays until the original is seen running or the copy is confirmed.
    Kept,
    /// I2: a ReplicaSet has the source as the cheapest pod before it has one too many.
    SourceIsCheapest,
    /// I2: a ReplicaSet gets the copy when it is ready, or the source is not.
    CopyIsReady,
    /// I2: a Job loses the source before it has the copy.
    JobLosesFirst,
    /// The owner has the copy before the source goes.
    HandedOverFirst,
    /// R21: the API server's CEL rules.
    Cel,
    /// I7: what the source says is verified in the registry.
    VerifiedImages,
}

/// The rules that are off.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Off(u64);

impl Off {
    pub const NONE: Self = Self(0);

    pub fn of(rules: &[Rule]) -> Self {
        Self(rules.iter().fold(0, |bits, rule| bits | (1 << *rule as u32)))
    }

    pub fn is(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u32) != 0
    }
}
