//! The model: its actions, and which of them are faults.

use stateright::{Model, Property};

use crate::{
    decide::Clock,
    intern::STATUSES,
    nodes::Node,
    properties,
    rules::{Off, Rule},
    state::{Container, Destination, Fence, Log, MOST, Mig, Object, Past, Source, SourceTask, Task, View, World},
};
use drover::api::{MigrationStatus, Phase};

/// One configuration of the model.
#[derive(Clone, Debug)]
pub struct Drover {
    /// Containers of the pod.
    pub n: usize,
    /// Faults that may happen.
    pub faults: u8,
    /// Times that a manager may sleep over a decision.
    pub naps: u8,
    /// Where it begins: the course before it has no faults.
    pub from: Phase,
    pub off: Off,
}

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
    KubeletSyncs(Node),
    KubeletKills(Node),
    KubeletRemoves(Node),
    SourceRestartsInPlace,
    Makes(usize),
    Starts(usize),
    CriuComplains(usize),
    CriuResumes(usize),
    CriuRefuses(usize),
    NodeStatus,
    DeadlinePasses,
    TimePasses(Clock),
    BudgetEnds,
    Boots(Node),
    Heals(Node),
    // Faults.
    AgentDies(Node),
    PowerFails(Node),
    Cut(Node),
    KubeletRestarts(Node),
    RestoreIsKilled(usize),
    ProgramEnds(usize),
    PreparationFails,
    WebhookIsMissed,
    DeletesMigration,
    DeletesSource { force: bool },
    DeletesReplacement { force: bool },
    HandOnSource,
    AnotherMigration,
}

impl Action {
    /// Whether it takes from the budget. Time, CRIU's refusal and repairs do not.
    pub fn is_fault(self) -> bool {
        matches!(
            self,
            Self::AgentDies(_)
                | Self::PowerFails(_)
                | Self::Cut(_)
                | Self::KubeletRestarts(_)
                | Self::RestoreIsKilled(_)
                | Self::ProgramEnds(_)
                | Self::PreparationFails
                | Self::WebhookIsMissed
                | Self::DeletesMigration
                | Self::DeletesSource { .. }
                | Self::DeletesReplacement { .. }
                | Self::HandOnSource
                | Self::AnotherMigration
        )
    }
}

impl Drover {
    pub fn off(&self, rule: Rule) -> bool {
        self.off.is(rule)
    }

    fn first(&self) -> World {
        let container = Container { claim: None, task: Task::None, earlier: false, log: Log::None, proof: false, tag: None, store: false };
        World {
            migration: Some(Mig { status: STATUSES.put(MigrationStatus::default()), deleting: false, finalizer: false }),
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
                cut: false,
                view: View::Listed,
                task: SourceTask::Running,
                fresh: false,
                fence: Fence::None,
                journal: None,
                archive: false,
                moved: false,
                doing: None,
            },
            destination: Destination { up: true, cut: false, view: View::Unlisted, blobs: false, containers: [container; MOST], doing: None },
            faults: self.faults,
            naps: self.naps,
            past: Past::default(),
        }
    }

    /// What happens without anything going wrong, and without haste.
    pub fn ordinary(&self, world: &World) -> Vec<Action> {
        use Action as A;
        let mut actions = vec![A::ManagerActs, A::ManagerWakes, A::SourceLooks, A::SourceSteps, A::Watchdog, A::SourceSweeps];
        actions.extend([A::DestinationLooks, A::DestinationSteps, A::DestinationSweeps]);
        for node in [Node::Source, Node::Destination] {
            actions.extend([A::KubeletSyncs(node), A::KubeletKills(node), A::KubeletRemoves(node), A::Boots(node), A::Heals(node)]);
        }
        actions.push(A::SourceRestartsInPlace);
        for c in 0..self.n {
            actions.extend([A::Makes(c), A::Starts(c), A::CriuResumes(c), A::CriuComplains(c), A::CriuRefuses(c)]);
        }
        actions.extend([A::NodeStatus, A::DeadlinePasses, A::TimePasses(Clock::Phase), A::TimePasses(Clock::Revocation), A::BudgetEnds]);
        actions.extend([A::SourceFails, A::ManagerNaps { decided: true }, A::ManagerNaps { decided: false }]);
        actions.retain(|action| self.apply(world, *action).is_some());
        actions
    }

    fn faults(&self) -> Vec<Action> {
        use Action as A;
        let mut actions = vec![];
        for node in [Node::Source, Node::Destination] {
            actions.extend([A::AgentDies(node), A::PowerFails(node), A::Cut(node), A::KubeletRestarts(node)]);
        }
        actions.extend((0..self.n).flat_map(|c| [A::RestoreIsKilled(c), A::ProgramEnds(c)]));
        actions.extend([A::PreparationFails, A::WebhookIsMissed, A::DeletesMigration, A::HandOnSource, A::AnotherMigration]);
        for force in [false, true] {
            actions.extend([A::DeletesSource { force }, A::DeletesReplacement { force }]);
        }
        actions
    }

    pub fn apply(&self, before: &World, action: Action) -> Option<World> {
        use Action as A;
        let mut world = before.clone();
        let w = &mut world;
        if action.is_fault() {
            w.faults = w.faults.checked_sub(1)?;
        }
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
            A::Makes(c) => self.makes(w, c),
            A::Starts(c) => self.starts(w, c),
            A::CriuComplains(c) => self.criu_complains(w, c),
            A::CriuResumes(c) => self.criu_resumes(w, c),
            A::CriuRefuses(c) => self.criu_refuses(w, c),
            A::NodeStatus => self.node_status_follows(w),
            A::DeadlinePasses => self.time_passes(w, None),
            A::TimePasses(clock) => self.time_passes(w, Some(clock)),
            A::BudgetEnds => self.budget_ends(w),
            A::Boots(node) => self.boots(w, node),
            A::Heals(node) => self.is_cut(w, node, false),
            A::AgentDies(Node::Source) => w.source.doing.take().map(drop),
            A::AgentDies(Node::Destination) => w.destination.doing.take().map(drop),
            A::PowerFails(node) => self.power_fails(w, node),
            A::Cut(node) => self.is_cut(w, node, true),
            A::KubeletRestarts(node) => self.kubelet_restarts(w, node),
            A::RestoreIsKilled(c) => self.restore_is_killed(w, c),
            A::ProgramEnds(c) => self.program_ends(w, c),
            A::PreparationFails => self.destination_fails(w),
            A::WebhookIsMissed => self.claim_misses_the_webhook(w),
            A::DeletesMigration => self.user_deletes_migration(w),
            A::DeletesSource { force } => self.user_deletes_source(w, force),
            A::DeletesReplacement { force } => self.user_deletes_replacement(w, force),
            A::HandOnSource => self.hand_on_source(w),
            A::AnotherMigration => self.another_migration(w),
        }?;
        (world != *before).then_some(world)
    }
}

impl Model for Drover {
    type State = World;
    type Action = Action;

    /// The course up to `from`, without a fault and each part as soon as it can.
    fn init_states(&self) -> Vec<World> {
        let mut world = self.first();
        while world.status().is_some_and(|status| status.phase < self.from) {
            let next = self.ordinary(&world);
            world = self.apply(&world, *next.first().expect("the course goes on")).expect("it was possible");
        }
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(self.ordinary(world));
        if world.faults > 0 {
            actions.extend(self.faults());
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.apply(world, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
