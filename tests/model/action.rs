//! What can happen next, and how a trace of it reads.

use std::fmt;

use crate::{
    decide::Clock,
    faults::Node,
    state::{MOST, Resolve},
};

/// One step of the world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    ManagerActs,
    ManagerNaps { decided: bool },
    ManagerWakes,
    SourceLooks,
    SourceSteps,
    SourceFails,
    Watchdog,
    SourceSweeps,
    DestinationLooks,
    DestinationSteps,
    DestinationSweeps,
    FallbackLooks,
    FallbackSteps,
    FallbackSweeps,
    FallbackIsKilled,
    FallbackIsRemoved,
    PlaceholderGoes,
    KubeletSyncs(Node),
    KubeletKills(Node),
    KubeletRemoves(Node),
    SourceRestartsInPlace,
    Makes(usize),
    Starts(usize),
    CriuComplains(usize),
    CriuResumes(usize),
    CriuRefuses(usize),
    MemoryComes(usize),
    FillingStarves(usize),
    NodeStatus,
    PodsAreCollected(Node),
    DeadlinePasses,
    TimePasses(Clock),
    BudgetEnds,
    Boots(Node),
    Heals(Node),
    PersonResolves(Resolve),
    OwnerLooks,
    OwnerActs,
    SourceReadiness,
    CopyReadiness,
    // Faults.
    ManagerDies,
    AgentDies(Node),
    PowerFails(Node),
    IsLost(Node),
    IsReinstalled,
    Cut(Node),
    KubeletRestarts(Node),
    ProbeKills,
    RestoreIsKilled(usize),
    RestoreIsGivenUp { c: usize, removed: bool },
    FillingFails(usize),
    ProgramEnds(usize),
    PreparationFails,
    BlobsVanish,
    BlobIsAnother,
    WebhookIsMissed,
    DeletesMigration,
    DeletesSource { force: bool },
    DeletesReplacement { force: bool },
    DeletesFallback { force: bool },
    HandOnSource,
    AnotherMigration,
    CopyIsUnready,
    OwnerIsScaled(u8),
}

impl Action {
    /// Whether it takes from the budget. Time, CRIU's refusal and repairs do not.
    pub fn is_fault(self) -> bool {
        use Action as A;
        matches!(
            self,
            A::ManagerDies
                | A::AgentDies(_)
                | A::PowerFails(_)
                | A::IsLost(_)
                | A::IsReinstalled
                | A::Cut(_)
                | A::KubeletRestarts(_)
                | A::ProbeKills
                | A::RestoreIsKilled(_)
                | A::RestoreIsGivenUp { .. }
                | A::FillingFails(_)
                | A::ProgramEnds(_)
                | A::PreparationFails
                | A::BlobsVanish
                | A::BlobIsAnother
                | A::WebhookIsMissed
                | A::DeletesMigration
                | A::DeletesSource { .. }
                | A::DeletesReplacement { .. }
                | A::DeletesFallback { .. }
                | A::HandOnSource
                | A::AnotherMigration
                | A::CopyIsUnready
                | A::OwnerIsScaled(_)
        )
    }

    /// Whether it is a fault of the destination, with which a fallback has little to do.
    pub fn is_at_the_destination(self) -> bool {
        use Action as A;
        match self {
            A::AgentDies(node) | A::PowerFails(node) | A::IsLost(node) | A::Cut(node) | A::KubeletRestarts(node) => node == Node::Destination,
            A::RestoreIsKilled(c) | A::RestoreIsGivenUp { c, .. } | A::FillingFails(c) | A::ProgramEnds(c) => c < MOST,
            A::IsReinstalled | A::BlobsVanish => true,
            _ => false,
        }
    }

    /// Whether it belongs to the course that must lead to an end by itself: no fault, nobody sleeps for ever, and no person is needed.
    pub fn is_ordinary(self) -> bool {
        !self.is_fault() && !matches!(self, Self::ManagerNaps { .. } | Self::PersonResolves(_))
    }
}

/// The story of a trace, a sentence an action.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Action as A;
        let plain = match *self {
            A::ManagerActs => "the leading manager reads, decides, and writes the status or performs the effects",
            A::ManagerNaps { decided: false } => "a manager has read the Migration and is stopped before it decides",
            A::ManagerNaps { decided: true } => "a manager has decided and is stopped before it acts",
            A::ManagerWakes => "the stopped manager wakes and goes on with what it had in mind",
            A::SourceLooks => "the source's agent looks and decides on its next step",
            A::SourceSteps => "the source's agent does the next write of its step",
            A::SourceFails => "the step of the source's agent fails (CRIU, the push, or the budget)",
            A::Watchdog => "the source's watchdog finds the freeze budget over",
            A::SourceSweeps => "the source's agent ends the freeze of a Migration that is gone",
            A::DestinationLooks => "the destination's agent looks and decides on its next step",
            A::DestinationSteps => "the destination's agent does the next write of its step",
            A::DestinationSweeps => "the destination's agent removes the claims and blobs that nobody needs",
            A::FallbackLooks => "the source node's agent looks after the fallback and decides on its next step",
            A::FallbackSteps => "the source node's agent does the next write of its step for the fallback",
            A::FallbackSweeps => "the source node's agent removes the claims and blobs that no fallback needs",
            A::FallbackIsKilled => "the source node's kubelet kills a fallback that is being deleted or that it does not know",
            A::FallbackIsRemoved => "the source node's kubelet confirms that nothing of the fallback is left",
            A::PlaceholderGoes => "the destination's kubelet confirms that nothing of the placeholder is left",
            A::SourceRestartsInPlace => {
                "the source's kubelet restarts the dead container in place (without a gate: makes it anew, and then starts it)"
            }
            A::NodeStatus => "the node controller writes whether the destination is Ready",
            A::DeadlinePasses => "spec.deadlineSeconds pass",
            A::TimePasses(Clock::Phase) => "the phase lasts longer than every limit",
            A::TimePasses(Clock::Revocation) => "the destination has been asked to revoke for longer than the manager's patience",
            A::TimePasses(Clock::Ended) => "since the end of the source more time passes than the destination has for its replacement",
            A::BudgetEnds => "spec.freezeBudgetSeconds pass",
            A::PersonResolves(Resolve::Source) => "a person types: drover resolve --prefer source",
            A::PersonResolves(Resolve::SourceSinceDestinationIsDown) => {
                "a person, knowing that the destination stays off, types: drover resolve --prefer source --destination-is-down"
            }
            A::PersonResolves(Resolve::GiveUp) => "a person types: drover resolve --give-up",
            A::PersonResolves(Resolve::Destination) => "a person types: drover resolve --prefer destination",
            A::OwnerLooks => "the pod's controller counts its pods and decides",
            A::OwnerActs => "the pod's controller does what it has decided",
            A::SourceReadiness => "the source's kubelet says whether it is Ready",
            A::CopyReadiness => "the destination's kubelet, or the node controller, says whether the copy is Ready",
            A::ManagerDies => "FAULT: a manager dies after the first of two effects",
            A::IsReinstalled => "FAULT: the destination node comes back with an empty disk",
            A::ProbeKills => "FAULT: the kubelet, for a liveness probe, or somebody else ends the frozen source",
            A::PreparationFails => "FAULT: the destination cannot pull a base image, or its registry fails",
            A::BlobsVanish => "FAULT: the destination's registry loses the checkpoint",
            A::BlobIsAnother => "FAULT: the registry holds another image than the source has pushed (forged, or torn)",
            A::WebhookIsMissed => "FAULT: the webhook is away when the manager writes the claim",
            A::DeletesMigration => "FAULT: a user deletes the Migration",
            A::DeletesSource { force: false } => "FAULT: a user deletes the source pod",
            A::DeletesSource { force: true } => "FAULT: a user force-deletes the source pod",
            A::DeletesReplacement { force: false } => "FAULT: a user deletes the replacement",
            A::DeletesReplacement { force: true } => "FAULT: a user force-deletes the replacement",
            A::DeletesFallback { force: false } => "FAULT: a user deletes the fallback, or the placeholder",
            A::DeletesFallback { force: true } => "FAULT: a user force-deletes the fallback, or the placeholder",
            A::HandOnSource => "FAULT: somebody resumes or pauses the source by hand",
            A::AnotherMigration => "FAULT: another Migration of the same pod freezes it",
            A::CopyIsUnready => "FAULT: the copy's readiness probe fails",
            _ => return self.with_place(f),
        };
        f.write_str(plain)
    }
}

impl Action {
    fn with_place(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Action as A;
        match self {
            A::KubeletSyncs(node) => write!(f, "the {node}'s kubelet reads its pods from the API server"),
            A::KubeletKills(node) => write!(f, "the {node}'s kubelet kills what is being deleted or what it does not know"),
            A::KubeletRemoves(node) => write!(f, "the {node}'s kubelet confirms that nothing of the pod is left"),
            A::Makes(c) => write!(f, "the kubelet makes container {}", copy(c)),
            A::Starts(c) => write!(f, "runc asks the gate and starts or restores container {}", copy(c)),
            A::CriuComplains(c) => write!(f, "CRIU logs an error about container {} that ends nothing", copy(c)),
            A::CriuResumes(c) => write!(f, "CRIU resumes container {}: the copy executes", copy(c)),
            A::CriuRefuses(c) => write!(f, "CRIU refuses container {} before the point of resumption", copy(c)),
            A::MemoryComes(c) => write!(f, "the last page of container {} comes", copy(c)),
            A::FillingStarves(c) => write!(f, "what container {} still waits for is lost: its keeper ends it", copy(c)),
            A::PodsAreCollected(node) => write!(f, "the {node} is gone from the cluster, and the collector removes its pod"),
            A::Boots(node) => write!(f, "the {node} boots"),
            A::Heals(node) => write!(f, "the {node} reaches the API server again"),
            A::AgentDies(node) => write!(f, "FAULT: the {node}'s agent is killed in the middle of its step"),
            A::PowerFails(node) => write!(f, "FAULT: the {node} loses power"),
            A::IsLost(node) => write!(f, "FAULT: the {node} is lost for ever, with its disk"),
            A::Cut(node) => write!(f, "FAULT: the {node} is cut off from the API server"),
            A::KubeletRestarts(node) => write!(f, "FAULT: the {node}'s kubelet restarts"),
            A::RestoreIsKilled(c) => write!(f, "FAULT: the restore of container {} is killed from outside", copy(c)),
            A::RestoreIsGivenUp { c, removed } => {
                let container = if removed { "forgets its container" } else { "tells that the start has failed" };
                write!(f, "FAULT: the runtime is restarted in the restore of container {} and {container}; CRIU goes on", copy(c))
            }
            A::FillingFails(c) => write!(f, "FAULT: the pages of container {} stop coming, and its keeper ends it", copy(c)),
            A::ProgramEnds(c) => write!(f, "FAULT: container {} ends by itself", copy(c)),
            A::OwnerIsScaled(wanted) => write!(f, "FAULT: a user scales the pod's controller to {wanted}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Containers of the fallback have the numbers after those of the replacement.
fn copy(c: usize) -> String {
    if c < MOST { format!("{c} of the replacement") } else { format!("{} of the fallback", c - MOST) }
}
