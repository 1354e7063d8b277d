//! Every rule switched off, one at a time: the model must break. A rule whose loss another one catches is off together with that one.

use std::time::Duration;

use drover::api::{Phase, migration::InDoubt};

use crate::{
    action::Action,
    explore::{Bounds, Stop, explore},
    faults::Node,
    filling::Memory,
    model::{Drover, Order},
    owners::Owner,
    rules::{Off, Rule},
};

/// A rule of DESIGN.md 3 without which something breaks.
pub struct Mutation {
    pub name: &'static str,
    /// What is off.
    pub off: Rule,
    /// The rule that catches the loss of this one, off too.
    pub masked_by: Option<(&'static str, Rule)>,
    pub faults: u8,
    pub naps: u8,
    pub containers: usize,
    /// Where the search begins, and where it is not followed any further.
    pub from: Phase,
    pub until: Option<Phase>,
    pub impatient: bool,
    pub in_doubt: InDoubt,
    pub order: Order,
    pub gates: [bool; 2],
    pub owner: Option<Owner>,
    pub memory: Memory,
}

const PLAIN: Mutation = Mutation {
    name: "",
    off: Rule::ReleaseIsAnIntent,
    masked_by: None,
    faults: 0,
    naps: 0,
    containers: 1,
    from: Phase::Freezing,
    until: None,
    impatient: false,
    in_doubt: InDoubt::HoldFrozen,
    order: Order::CopyFirst,
    gates: [true; 2],
    owner: None,
    memory: Memory::AtOnce,
};

const fn alone(name: &'static str, off: Rule, faults: u8, from: Phase) -> Mutation {
    Mutation { name, off, faults, from, ..PLAIN }
}

const fn masked(name: &'static str, off: Rule, by: (&'static str, Rule), faults: u8, from: Phase) -> Mutation {
    Mutation { name, off, masked_by: Some(by), faults, from, ..PLAIN }
}

/// The same, followed only as far as nothing of the replacement can run.
const fn before_release(mutation: &Mutation) -> Mutation {
    Mutation { until: Some(Phase::Restoring), ..*mutation }
}

/// The same of a pod that keeps its name.
const fn same_name(mutation: &Mutation) -> Mutation {
    Mutation { order: Order::SameName, ..*mutation }
}

/// The same where the source node has no gate, or the destination has none.
const fn without_gate(node: Node, mutation: &Mutation) -> Mutation {
    let gates = match node {
        Node::Source => [false, true],
        Node::Destination => [true, false],
    };
    Mutation { gates, ..*mutation }
}

/// The same of a pod that a controller owns.
const fn owned(owner: Owner, name: &'static str, off: Rule) -> Mutation {
    Mutation { owner: Some(owner), ..alone(name, off, 0, Phase::Finishing) }
}

/// The rules in their order.
pub const ALL: &[Mutation] = &[
    alone("R1 the release is written before any effect of it", Rule::ReleaseIsAnIntent, 0, Phase::AwaitingReadiness),
    alone("R1 no rollback after the release without proof", Rule::RollbackNeedsProof, 0, Phase::Restoring),
    alone("R2 no release without the vote", Rule::ReleaseNeedsTheVote, 0, Phase::Transferring),
    alone("R2 the vote needs unchanged CPU times", Rule::VoteNeedsCpu, 2, Phase::Transferring),
    masked("R2 the vote needs every container paused", Rule::VoteNeedsPause, ("R2 CPU times", Rule::VoteNeedsCpu), 1, Phase::Transferring),
    alone("R2 a voter waits for the verdict", Rule::VoterWaits, 0, Phase::AwaitingReadiness),
    alone("R3 a claim is closed on the disk before that is said", Rule::RevocationIsWritten, 0, Phase::Restoring),
    alone("R4 nobody deletes a replacement in doubt", Rule::NoDeletionInDoubt, 0, Phase::Restoring),
    alone("R5 never started is read from the marker, not from what runs", Rule::FailureNeedsProof, 1, Phase::Restoring),
    alone("R5 a marker that is missing proves nothing", Rule::MissingIsUnknown, 1, Phase::Restoring),
    without_gate(
        Node::Destination,
        &Mutation {
            in_doubt: InDoubt::PreferSource,
            ..alone("R6 only the absence of everything ends a replacement without a gate", Rule::AbsenceIsProved, 0, Phase::Restoring)
        },
    ),
    without_gate(Node::Destination, &alone("R6 its sandbox must be gone too", Rule::SandboxIsGone, 1, Phase::Restoring)),
    masked("R7 what started and died was not restored", Rule::DeadIsNotRestored, ("R17", Rule::ConfirmationLooks), 1, Phase::Restoring),
    alone("R7 what died is said to have only once it is over", Rule::DeadNeedsAnEnd, 0, Phase::Restoring),
    alone("R7 an end is the runtime's, with no process left in the cgroup", Rule::EndNeedsNoProcess, 1, Phase::Restoring),
    alone("R8 the fence keeps the frozen pod's containers from starting", Rule::Fence, 1, Phase::AwaitingReadiness),
    without_gate(
        Node::Source,
        &alone("R8 without a gate the checkpoint is the last that was executed", Rule::CheckpointIsLast, 1, Phase::AwaitingReadiness),
    ),
    without_gate(
        Node::Source,
        &alone("R8 without a gate the source is over before the release", Rule::OverBeforeRelease, 1, Phase::AwaitingReadiness),
    ),
    same_name(&alone("R8 a same-name source is over before the release", Rule::OverBeforeRelease, 0, Phase::SourceDeleting)),
    Mutation { impatient: true, ..alone("R9 a probe is more patient than the freeze", Rule::ProbesFit, 1, Phase::Pending) },
    masked("R10 the source ends only when its kubelet shows the deletion", Rule::KillNeedsDeletion, ("R8", Rule::Fence), 0, Phase::Finishing),
    masked("R11 a pod has one active migration", Rule::Lock, ("R11 the fence's owner", Rule::ThawNeedsOwnFence), 1, Phase::Preparing),
    before_release(&alone("R11 only who froze thaws", Rule::ThawNeedsOwnFence, 2, Phase::Transferring)),
    alone("R12 a Migration cannot vanish before its end", Rule::Finalizer, 1, Phase::AwaitingReadiness),
    same_name(&masked("R13 past SourceDeleting there is no thaw", Rule::PointOfNoReturn, ("R21", Rule::Cel), 0, Phase::SourceDeleting)),
    same_name(&alone("R14 the archive stays until a copy is confirmed", Rule::ArchiveWaits, 0, Phase::SourceDeleting)),
    masked(
        "R15 what is let start cold is not restored after all",
        Rule::ColdIsCold,
        ("I8 an open claim", Rule::OpenIsNoRestore),
        1,
        Phase::Restoring,
    ),
    alone("R16 the checkpoint is out of reach before 'restored' is said", Rule::OutOfReachFirst, 1, Phase::Restoring),
    alone("R17 the source goes only after the confirmation", Rule::Confirmation, 0, Phase::Restoring),
    alone("R17 the confirmation looks once more", Rule::ConfirmationLooks, 1, Phase::Restoring),
    alone("R18 the destination's checkpoint waits for the source to run", Rule::CollectionWaits, 1, Phase::Restoring),
    alone("R18 the checkpoint is kept where the memory lives nowhere else", Rule::Kept, 1, Phase::Restoring),
    Mutation { memory: Memory::Lazily, ..alone("R19 what waits for memory is not restored yet", Rule::PagesAreThere, 0, Phase::Restoring) },
    Mutation {
        memory: Memory::FromTheSource,
        ..alone("R19 what waits for the source's memory is not restored yet", Rule::PagesAreThere, 0, Phase::Restoring)
    },
    alone("R20 a claim is taken once", Rule::OneShot, 1, Phase::Restoring),
    alone("R20 the gate takes the claim before the restore", Rule::GateTakes, 0, Phase::Restoring),
    alone("R20 ordinary creates pass only after the confirmation", Rule::OpenAfterConfirmation, 1, Phase::Restoring),
    Mutation {
        naps: 1,
        ..masked("R21 the API server refuses what breaks a rule", Rule::Cel, ("compare-and-swap", Rule::CompareAndSwap), 0, Phase::Restoring)
    },
    owned(Owner::ReplicaSet, "a ReplicaSet's source is its cheapest pod before the copy is handed over", Rule::SourceIsCheapest),
    owned(Owner::ReplicaSet, "a ReplicaSet's copy is handed over when it is ready, or the source is not", Rule::CopyIsReady),
    owned(Owner::ReplicaSet, "a ReplicaSet's copy is handed over before the source goes", Rule::HandedOverFirst),
    owned(Owner::Job, "a Job's copy is handed over before the source goes", Rule::HandedOverFirst),
    owned(Owner::Job, "a Job loses the source before it has the copy", Rule::JobLosesFirst),
    alone("I7 what the source says is verified in the registry", Rule::VerifiedImages, 1, Phase::Transferring),
];

/// What the code does twice: each of these alone breaks nothing, and why. That it stays so is tested, so that nobody trusts a belt that is gone.
pub const TWICE: &[(Mutation, &str)] = &[(
    before_release(&alone("R2 an abort is written before the thaw", Rule::AbortIsWrittenFirst, 1, Phase::Transferring)),
    "the budget is counted from the journal's own time, so who has thawed for it finds it over again, whatever was written",
)];

/// Rules that this model has no row for, and why.
pub const NOT_HERE: &str = "\
R21: that the API server itself enforces the CRDs' rules is proved on the lab (e2e); here they are evaluated as written";

/// What a mutation has broken.
pub struct Broken {
    pub property: &'static str,
    pub trace: Vec<Action>,
}

impl Mutation {
    fn model(&self, off: &[Rule], faults: u8) -> Drover {
        let Self { containers: n, naps, from, until, impatient, in_doubt, order, gates, owner, memory, .. } = *self;
        Drover { n, faults, naps, from, until, falls_back: false, impatient, in_doubt, order, gates, owner, memory, off: Off::of(off) }
    }

    /// Whether a plain `cargo test` can afford it. What breaks without the other one is seen only once every state was.
    pub fn is_quick(&self) -> bool {
        self.faults == 0 && self.off != Rule::OverBeforeRelease
    }

    fn rules(&self) -> Vec<Rule> {
        [self.off].into_iter().chain(self.masked_by.map(|(_, rule)| rule)).collect()
    }

    /// The first property that breaks.
    pub fn run(&self) -> Option<Broken> {
        broken(&self.model(&self.rules(), self.faults), 3_000_000, Stop::AtTheFirst).into_iter().next()
    }

    /// Whether this property breaks with fewer faults than it says, or without a second rule off; then what else does.
    pub fn says_too_much(&self, property: &str, states: usize) -> Result<Vec<String>, String> {
        let mut others = vec![];
        let fewer = self.faults.checked_sub(1).map(|fewer| (self.model(&self.rules(), fewer), format!("with {fewer} faults")));
        let alone = self.masked_by.map(|_| (self.model(&[self.off], self.faults), "alone".to_owned()));
        for (model, how) in fewer.into_iter().chain(alone) {
            for broken in broken(&model, states, Stop::At(property)) {
                let text = format!("{}: {how} it breaks {}", self.name, broken.property);
                if broken.property == property {
                    return Err(text);
                }
                others.push(text);
            }
        }
        Ok(others)
    }
}

fn broken(model: &Drover, states: usize, stop: Stop) -> Vec<Broken> {
    let found = explore(model, Bounds { states, time: Duration::from_mins(10), stop });
    found.broken.into_iter().map(|(property, trace)| Broken { property, trace }).collect()
}
