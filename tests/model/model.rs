//! The model: where it begins, and what each action does.

use std::fmt;

use stateright::{Model, Property};

use crate::{
    action::Action,
    decide::Clock,
    faults::Node,
    filling::Memory,
    intern::STATUSES,
    owners::{Owned, Owner},
    properties,
    rules::{Off, Rule},
    state::{Destination, Fence, First, MOST, Mig, Object, Past, Resolve, Source, SourceTask, View, World},
};
use drover::api::{MigrationStatus, Phase, migration::InDoubt};

/// One configuration of the model.
#[derive(Clone, Copy, Debug)]
pub struct Drover {
    /// Containers of the pod.
    pub n: usize,
    /// Faults that may happen.
    pub faults: u8,
    /// Times that a manager may sleep over a decision.
    pub naps: u8,
    /// Where it begins: the course before it has no faults.
    pub from: Phase,
    /// Where it is not followed any further: the course from there on is another size's.
    pub until: Option<Phase>,
    /// Where the source goes first: the course before `from` ends in a destination that does not get ready, so that it leads to the fallback.
    pub falls_back: bool,
    /// The pod has a probe over the network that is less patient than the freeze may take.
    pub impatient: bool,
    /// `spec.inDoubt`.
    pub in_doubt: InDoubt,
    pub order: Order,
    /// Whether the runtime of the source node asks the gate, and that of the destination.
    pub gates: [bool; 2],
    /// What controls the pod.
    pub owner: Option<Owner>,
    pub memory: Memory,
    pub off: Off,
}

/// Which of the two goes first, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The source stays until its copy is confirmed, where both nodes have the gate.
    CopyFirst,
    /// The source goes first: its copy has its name (`spec.keepName`). It does so for a new name too where a node has no gate.
    SameName,
}

impl fmt::Display for Drover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, faults, naps) = (self.n, self.faults, self.naps);
        let order = match self.order {
            Order::CopyFirst => "",
            Order::SameName => "same name, ",
        };
        let gates = match self.gates {
            [true, true] => "",
            [false, true] => "no gate on the source node, ",
            [true, false] => "no gate on the destination node, ",
            [false, false] => "no gates, ",
        };
        let owner = match self.owner {
            None => "",
            Some(Owner::ReplicaSet) => "of a ReplicaSet, ",
            Some(Owner::Job) => "of a Job, ",
        };
        let memory = match self.memory {
            Memory::AtOnce => "",
            Memory::Lazily => "lazily, ",
            Memory::FromTheSource => "post-copy, ",
        };
        write!(
            f,
            "{order}{gates}{owner}{memory}containers {n}, faults {faults}, sleeping managers {naps}, inDoubt {:?}, from {}",
            self.in_doubt, self.from
        )?;
        if self.falls_back {
            f.write_str(" onto the source node")?;
        }
        self.until.map_or(Ok(()), |until| write!(f, " to {until}"))
    }
}

impl Drover {
    pub fn off(&self, rule: Rule) -> bool {
        self.off.is(rule)
    }

    pub fn keeps_name(&self) -> bool {
        self.order == Order::SameName
    }

    /// Whether the source goes before the release.
    pub fn goes_first(&self) -> bool {
        self.keeps_name() || self.gates != [true; 2]
    }

    /// Whether a node's runtime asks the gate.
    pub fn is_gated(&self, node: Node) -> bool {
        self.gates[usize::from(node == Node::Destination)]
    }

    /// destination.rs `Look::gated`: the same of the node where the copy is.
    pub fn gated(&self, world: &World) -> bool {
        self.is_gated(if world.first.turned { Node::Source } else { Node::Destination })
    }

    /// Every container, by bit.
    pub fn all(&self) -> u8 {
        (1 << self.n) - 1
    }

    pub fn all_restored(&self, world: &World) -> bool {
        world.past.restores == self.all()
    }

    fn first(&self) -> World {
        World {
            migration: Some(Mig { status: STATUSES.put(MigrationStatus::default()), deleting: false, finalizer: false, resolve: None }),
            source_says: None,
            destination_says: None,
            source_pod: Object::Live,
            locked: false,
            replacement: None,
            credentials: false,
            overdue: false,
            node_ready: true,
            sleeper: None,
            source: Source {
                up: true,
                lost: false,
                cut: false,
                view: View::Listed,
                task: SourceTask::Running,
                fresh: false,
                removed: false,
                made: false,
                fence: Fence::None,
                journal: None,
                archive: false,
                moved: false,
                doing: None,
            },
            destination: Destination::EMPTY,
            first: First::default(),
            owned: self.owner.map(Owned::new),
            faults: self.faults,
            naps: self.naps,
            past: Past::default(),
        }
    }

    /// Containers of the replacement, and those of the fallback.
    fn copies(&self) -> impl Iterator<Item = usize> {
        let fallback = self.goes_first().then_some(MOST..MOST + self.n);
        (0..self.n).chain(fallback.into_iter().flatten())
    }

    /// What may happen without anything going wrong, and without haste.
    fn ordinary(&self) -> impl Iterator<Item = Action> {
        use Action as A;
        let managers = [A::ManagerActs, A::ManagerWakes, A::ManagerNaps { decided: true }, A::ManagerNaps { decided: false }];
        let source = [A::SourceLooks, A::SourceSteps, A::SourceFails, A::Watchdog, A::SourceSweeps, A::SourceRestartsInPlace];
        let destination = [A::DestinationLooks, A::DestinationSteps, A::DestinationSweeps];
        let node =
            |node| [A::KubeletSyncs(node), A::KubeletKills(node), A::KubeletRemoves(node), A::PodsAreCollected(node), A::Boots(node), A::Heals(node)];
        let container = |c| [A::Makes(c), A::Starts(c), A::CriuResumes(c), A::CriuComplains(c), A::CriuRefuses(c)];
        let time = [A::NodeStatus, A::DeadlinePasses, A::TimePasses(Clock::Phase), A::TimePasses(Clock::Revocation), A::BudgetEnds];
        // Nobody asks the fallback's log.
        let copy = |c| [A::Makes(c), A::Starts(c), A::CriuResumes(c), A::CriuRefuses(c)];
        let fallback = [
            A::PlaceholderGoes,
            A::FallbackLooks,
            A::FallbackSteps,
            A::FallbackSweeps,
            A::FallbackIsKilled,
            A::FallbackIsRemoved,
            A::TimePasses(Clock::Ended),
        ];
        let fallback = self.goes_first().then(|| fallback.into_iter().chain((MOST..MOST + self.n).flat_map(copy)));
        let owner = self.owner.map(|_| [A::OwnerLooks, A::OwnerActs, A::SourceReadiness, A::CopyReadiness]);
        let fills = |c| [A::MemoryComes(c), A::FillingStarves(c)];
        let filling = self.copies().filter(|_| self.memory != Memory::AtOnce).flat_map(fills);
        let nodes = [Node::Source, Node::Destination].into_iter().flat_map(node);
        let nodes = nodes.chain((0..self.n).flat_map(container)).chain(fallback.into_iter().flatten()).chain(owner.into_iter().flatten());
        managers.into_iter().chain(source).chain(destination).chain(nodes).chain(filling).chain(time)
    }

    fn faults(&self) -> impl Iterator<Item = Action> {
        use Action as A;
        let node = |node| [A::AgentDies(node), A::PowerFails(node), A::IsLost(node), A::Cut(node), A::KubeletRestarts(node)];
        let given_up = |c, removed| A::RestoreIsGivenUp { c, removed };
        let container = move |c| [A::RestoreIsKilled(c), given_up(c, false), given_up(c, true), A::ProgramEnds(c)];
        let users = [A::DeletesMigration, A::HandOnSource, A::AnotherMigration]
            .into_iter()
            .chain([false, true].into_iter().flat_map(|force| [A::DeletesSource { force }, A::DeletesReplacement { force }]));
        let rest = [A::ManagerDies, A::IsReinstalled, A::ProbeKills, A::PreparationFails, A::BlobsVanish, A::BlobIsAnother, A::WebhookIsMissed];
        let nodes = [Node::Source, Node::Destination].into_iter().flat_map(node);
        let owner = self.owner.map(|_| [A::CopyIsUnready, A::OwnerIsScaled(0), A::OwnerIsScaled(1), A::OwnerIsScaled(2)]);
        let fallback = [A::DeletesFallback { force: false }, A::DeletesFallback { force: true }].into_iter();
        let fallback = self.goes_first().then(|| fallback.chain((MOST..MOST + self.n).map(A::ProgramEnds)));
        let filling = self.copies().filter(|_| self.memory != Memory::AtOnce).map(A::FillingFails);
        let all = nodes
            .chain((0..self.n).flat_map(container))
            .chain(users)
            .chain(rest)
            .chain(filling)
            .chain(fallback.into_iter().flatten())
            .chain(owner.into_iter().flatten());
        all.filter(|action| !(self.falls_back && action.is_at_the_destination()))
    }

    /// Whether nothing happens any more without a fault.
    pub fn is_at_rest(&self, world: &World) -> bool {
        self.ordinary().filter(|action| action.is_ordinary()).all(|action| self.apply(world, action).is_none())
    }

    pub fn apply(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        let w = &mut world;
        if action.is_fault() {
            w.faults = w.faults.checked_sub(1)?;
        }
        self.happens(w, action)?;
        world.settle(self.memories(&world));
        if self.is_void(&world) {
            world.sleeper = None;
        }
        (world != *before).then_some(world)
    }

    fn happens(&self, w: &mut World, action: Action) -> Option<()> {
        use Action as A;
        match action {
            A::ManagerActs => self.manage(w),
            A::ManagerNaps { decided } => self.nap(w, decided),
            A::ManagerWakes => self.wake(w),
            A::SourceLooks => self.source_looks(w),
            A::SourceSteps => self.source_steps(w),
            A::SourceFails => self.source_fails(w),
            A::Watchdog => self.watchdog_looks(w),
            A::SourceSweeps => self.source_sweeps(w),
            A::DestinationLooks => self.destination_looks(w),
            A::DestinationSteps => self.destination_steps(w),
            A::DestinationSweeps => self.destination_sweeps(w),
            A::KubeletSyncs(Node::Source) => self.source_syncs(w),
            A::KubeletSyncs(Node::Destination) => self.destination_syncs(w),
            A::KubeletKills(Node::Source) => self.source_kubelet_kills(w),
            A::KubeletKills(Node::Destination) => self.destination_kubelet_kills(w),
            A::KubeletRemoves(Node::Source) => self.source_kubelet_removes(w),
            A::KubeletRemoves(Node::Destination) => self.destination_kubelet_removes(w),
            A::SourceRestartsInPlace => self.source_kubelet_restarts(w),
            A::FallbackLooks => w.fall_back(|w| self.destination_looks(w)),
            A::FallbackSteps => w.fall_back(|w| self.destination_steps(w)),
            A::FallbackSweeps => w.fall_back(|w| self.destination_sweeps(w)),
            A::FallbackIsKilled => w.fall_back(|w| self.destination_kubelet_kills(w)),
            A::FallbackIsRemoved => w.fall_back(|w| self.destination_kubelet_removes(w)),
            A::PlaceholderGoes => self.placeholder_goes(w),
            A::Makes(c) => of(w, c, |w, c| self.makes(w, c)),
            A::Starts(c) => of(w, c, |w, c| self.starts(w, c)),
            A::CriuComplains(c) => self.criu_complains(w, c),
            A::CriuResumes(c) => of(w, c, |w, c| self.criu_resumes(w, c)),
            A::CriuRefuses(c) => of(w, c, |w, c| self.criu_refuses(w, c)),
            A::MemoryComes(c) => of(w, c, |w, c| self.memory_comes(w, c)),
            A::FillingStarves(c) => of(w, c, |w, c| self.filling_starves(w, c)),
            A::NodeStatus => self.node_status_follows(w),
            A::DeadlinePasses => self.time_passes(w, None),
            A::TimePasses(clock) => self.time_passes(w, Some(clock)),
            A::BudgetEnds => self.budget_ends(w),
            A::Boots(node) => self.boots(w, node),
            A::Heals(node) => self.is_cut(w, node, false),
            A::PersonResolves(resolve) => self.person_resolves(w, resolve),
            A::OwnerLooks => self.owner_looks(w),
            A::OwnerActs => self.owner_acts(w),
            A::SourceReadiness => self.source_readiness(w),
            A::CopyReadiness => self.copy_readiness(w),
            A::PodsAreCollected(node) => self.pods_are_collected(w, node),
            fault => self.goes_wrong(w, fault),
        }
    }

    fn goes_wrong(&self, w: &mut World, fault: Action) -> Option<()> {
        use Action as A;
        match fault {
            A::ManagerDies => self.manager_dies(w),
            A::AgentDies(Node::Source) => self.source_agent_dies(w),
            A::AgentDies(Node::Destination) => w.destination.doing.take().map(drop),
            A::PowerFails(node) => self.power_fails(w, node),
            A::IsLost(node) => self.is_lost(w, node),
            A::IsReinstalled => self.is_reinstalled(w),
            A::ProbeKills => self.probe_kills(w),
            A::BlobsVanish => self.blobs_vanish(w),
            A::BlobIsAnother => self.blob_is_another(w),
            A::Cut(node) => self.is_cut(w, node, true),
            A::KubeletRestarts(node) => self.kubelet_restarts(w, node),
            A::RestoreIsKilled(c) => self.restore_is_killed(w, c),
            A::RestoreIsGivenUp { c, removed } => of(w, c, |w, c| self.restore_is_given_up(w, c, removed)),
            A::FillingFails(c) => of(w, c, |w, c| self.filling_fails(w, c)),
            A::ProgramEnds(c) => of(w, c, |w, c| self.program_ends(w, c)),
            A::PreparationFails => self.destination_fails(w).or_else(|| w.fall_back(|w| self.destination_fails(w))),
            A::WebhookIsMissed => self.claim_misses_the_webhook(w),
            A::DeletesMigration => self.user_deletes_migration(w),
            A::DeletesSource { force } => self.user_deletes_source(w, force),
            A::DeletesReplacement { force } => self.user_deletes_replacement(w, force),
            A::DeletesFallback { force } => self.user_deletes_fallback(w, force),
            A::HandOnSource => self.hand_on_source(w),
            A::CopyIsUnready => self.copy_is_unready(w),
            A::OwnerIsScaled(wanted) => self.owner_is_scaled(w, wanted),
            A::AnotherMigration => self.another_migration(w),
            other => unreachable!("{other:?} is no fault"),
        }
    }
}

/// What happens to a container of the replacement, or of the fallback.
fn of(world: &mut World, c: usize, act: impl FnOnce(&mut World, usize) -> Option<()>) -> Option<()> {
    if c < MOST { act(world, c) } else { world.fall_back(|world| act(world, c - MOST)) }
}

impl Model for Drover {
    type State = World;
    type Action = Action;

    /// The course up to `from`, without a fault and each part as soon as it can.
    fn init_states(&self) -> Vec<World> {
        let mut world = self.first();
        while world.status().is_some_and(|status| status.phase < self.from) {
            world = self.ordinary().filter(|action| action.is_ordinary()).find_map(|action| self.apply(&world, action)).expect("the course goes on");
            world.first.ended_long_ago |= self.falls_back && world.awaits_destination();
        }
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(self.ordinary());
        actions.extend([Resolve::Source, Resolve::SourceSinceDestinationIsDown, Resolve::Destination, Resolve::GiveUp].map(Action::PersonResolves));
        if world.faults > 0 {
            actions.extend(self.faults());
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.apply(world, action)
    }

    fn within_boundary(&self, world: &World) -> bool {
        let goes_on = |until| world.status().is_none_or(|status| status.phase < until || status.verdict.is_some() && until < Phase::Finishing);
        self.until.is_none_or(goes_on)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
