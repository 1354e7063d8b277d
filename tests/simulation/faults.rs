//! What goes wrong in a run: drawn from the seed before it begins, and struck when its moment comes.

use std::{collections::BTreeMap, time::Duration};

use drover::{
    api::{Phase, migration::InDoubt},
    ports::TaskState,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

use crate::{
    kind::{Kind, pod_of, went_first},
    mutation::Mutation,
    node::Content,
    runtime::end,
    world::{Moment, NODES, POD, Process, World},
};

/// No fault begins after this time.
pub const FAULTS_END: Duration = Duration::from_secs(150);

/// Everything that the seed decides beforehand.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub mutation: Mutation,
    pub kind: Kind,
    /// `spec.keepName`.
    pub keep_name: bool,
    /// Which nodes have the gate.
    pub gated: [bool; 2],
    /// Containers of the pod.
    pub containers: usize,
    /// The Migration names its destination; otherwise the scheduler chooses.
    pub names_node: bool,
    pub deadline_seconds: u32,
    pub freeze_budget_seconds: u32,
    pub has_pull_credentials: bool,
    pub skews: BTreeMap<Process, i64>,
    pub slow_dump: Option<Duration>,
    pub slow_push: Option<Duration>,
    pub dump_is_refused: bool,
    pub restore_is_refused: bool,
    /// Also on the node that the pod came from.
    pub fallback_is_refused: bool,
    /// CRIU's log of a restore has an error that does not end it.
    pub log_is_noisy: bool,
    pub base_is_missing: bool,
    /// `spec.inDoubt`.
    pub in_doubt: InDoubt,
    /// What a person decides of what is held, when the faults are over.
    pub person: Option<&'static str>,
    /// A person looks at a node that is down and decides without it.
    pub person_sees_nodes: bool,
    /// When the first has migrated it, the pod goes back.
    pub goes_back: bool,
    pub faults: Vec<Fault>,
}

/// One fault and its moment.
#[derive(Clone, Debug)]
pub struct Fault {
    pub when: When,
    pub what: What,
}

#[derive(Clone, Copy, Debug)]
pub enum When {
    /// At this port call of the run.
    Call(u64),
    /// So many port calls after a migration has entered a phase.
    Phase(Phase, u64),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum What {
    Dies(Process, Moment),
    PowerLoss(usize, Duration),
    NodeCut(usize, Duration),
    ProcessCut(Process, Duration),
    NodesApart(Duration),
    ApiAway(Duration),
    ApiFlaky(Duration),
    WebhookAway(Duration),
    RegistryAway(usize, Duration),
    RuntimeAway(usize, Duration),
    Stopped(Process, Duration),
    Slow(Process, Duration),
    MigrationDeleted,
    PodDeleted { source: bool, force: bool },
    SecondMigration,
    ProgramEnds { source: bool },
    ProbeKills,
    BlobsLost(usize),
    ThawedByHand,
}

/// What stands of the faults at present.
#[derive(Debug, Default)]
pub struct Faults {
    pending: Vec<Fault>,
    /// Phase → calls when it was first entered.
    entered: BTreeMap<Phase, u64>,
    pub dying: Option<(Process, Moment)>,
    pub nodes_are_apart: bool,
    pub flaky_until: Option<Instant>,
    /// What is made good again, and when.
    pub repairs: Vec<(Instant, What)>,
    /// Archives made so far: their names differ.
    pub archives: u32,
}

impl Faults {
    pub fn of(plan: &Plan) -> Self {
        Self { pending: plan.faults.clone(), ..Self::default() }
    }

    /// Nothing is broken and nothing will be.
    pub fn are_over(&self) -> bool {
        self.pending.is_empty() && self.repairs.is_empty()
    }

    pub fn forget_pending(&mut self) {
        self.pending.clear();
        self.dying = None;
    }
}

impl Plan {
    /// What a seed stands for.
    pub fn of(seed: u64, mutation: Mutation) -> Self {
        let mut chance = StdRng::seed_from_u64(seed ^ 0x5eed_0000);
        let mut one_in = |n: u32| chance.random_range(0..n) == 0;
        let (two, names_node, has_pull_credentials) = (one_in(3), !one_in(3), one_in(2));
        let (dump_is_refused, restore_is_refused, base_is_missing, goes_back) = (one_in(20), one_in(6), one_in(40), one_in(3));
        let (slow_dump, slow_push, skewed) = (one_in(8), one_in(8), one_in(3));
        let mut seconds = |range| chance.random_range(range);
        let kind = Kind::of(seed);
        let (keep_name, gated) = kind.draw(seed);
        let mut plan = Self {
            seed,
            mutation,
            kind,
            keep_name,
            gated,
            containers: if two { 2 } else { 1 },
            names_node,
            deadline_seconds: seconds(30..400),
            freeze_budget_seconds: seconds(5..90),
            has_pull_credentials,
            skews: BTreeMap::new(),
            slow_dump: slow_dump.then(|| Duration::from_secs(seconds(1..40).into())),
            slow_push: slow_push.then(|| Duration::from_secs(seconds(1..40).into())),
            dump_is_refused,
            restore_is_refused,
            fallback_is_refused: seed.is_multiple_of(4),
            log_is_noisy: false,
            base_is_missing,
            in_doubt: InDoubt::HoldFrozen,
            person: None,
            person_sees_nodes: false,
            goes_back,
            faults: vec![],
        };
        if skewed {
            plan.skews = Process::ALL.into_iter().map(|process| (process, chance.random_range(-4000..4000))).collect();
        }
        plan.log_is_noisy = chance.random_range(0..3) == 0;
        plan.in_doubt = [InDoubt::HoldFrozen, InDoubt::HoldFrozen, InDoubt::PreferSource, InDoubt::PreferDestination][chance.random_range(0..4)];
        plan.person = [None, Some("source"), Some("destination")][chance.random_range(0..3)];
        plan.person_sees_nodes = chance.random_range(0..3) == 0;
        // Faults that come together find more than the same number spread out.
        let phases = kind.phases();
        let focus = phases[chance.random_range(0..phases.len())];
        for _ in 0..chance.random_range(0..8) {
            plan.faults.push(Fault { when: moment(&mut chance, phases, focus), what: fault(&mut chance) });
        }
        plan
    }
}

fn moment(chance: &mut StdRng, phases: &[Phase], focus: Phase) -> When {
    match chance.random_range(0..10) {
        0 => When::Call(chance.random_range(0..500)),
        1..4 => When::Phase(phases[chance.random_range(0..phases.len())], chance.random_range(0..45)),
        _ => When::Phase(focus, chance.random_range(0..45)),
    }
}

fn fault(chance: &mut StdRng) -> What {
    let node = chance.random_range(0..2);
    let process = Process::ALL[chance.random_range(0..Process::ALL.len())];
    let manager = Process::Manager(chance.random_range(0..2));
    let moment = if chance.random_range(0..2) == 0 { Moment::Before } else { Moment::After };
    // From a third of a second to a minute and a half, short ones as often as long ones.
    let long = Duration::from_millis(300).mul_f64(chance.random_range(0.0_f64..5.7).exp());
    let flag = chance.random_range(0..2) == 0;
    match chance.random_range(0..32) {
        0..8 => What::Dies(process, moment),
        8..11 => What::PowerLoss(node, long),
        11 | 12 => What::NodeCut(node, long),
        13 => What::ProcessCut(process, long),
        14 => What::NodesApart(long),
        15 => What::ApiAway(long),
        16 | 17 => What::ApiFlaky(long),
        18 => What::WebhookAway(long),
        19 => What::RegistryAway(node, long),
        20 => What::RuntimeAway(node, long),
        21 | 22 => What::Stopped(manager, long),
        23 => What::Slow(process, long),
        24 => What::MigrationDeleted,
        25 | 26 => What::PodDeleted { source: flag, force: chance.random_range(0..2) == 0 },
        27 => What::SecondMigration,
        28 => What::ProgramEnds { source: flag },
        29 => What::ProbeKills,
        30 => What::BlobsLost(node),
        _ => What::ThawedByHand,
    }
}

/// A migration has entered a phase.
pub fn phase_entered(world: &mut World, phase: Phase) {
    let calls = world.calls;
    world.faults.entered.entry(phase).or_insert(calls);
}

/// Strikes what is due; called at every port call.
pub fn strike(world: &mut World) {
    if world.faults.pending.is_empty() {
        return;
    }
    let (calls, entered) = (world.calls, &world.faults.entered);
    let is_due = |fault: &Fault| match fault.when {
        When::Call(n) => n <= calls,
        When::Phase(phase, n) => entered.get(&phase).is_some_and(|at| at + n <= calls),
    };
    let due: Vec<Fault> = world.faults.pending.iter().filter(|fault| is_due(fault)).cloned().collect();
    if due.is_empty() {
        return;
    }
    let kept = world.faults.pending.iter().filter(|fault| !is_due(fault)).cloned().collect();
    world.faults.pending = kept;
    for fault in due {
        happens(world, fault.what);
    }
}

fn happens(world: &mut World, what: What) {
    if !matches!(what, What::Dies(..)) {
        world.tell(format_args!("fault: {what:?}"));
    }
    match what {
        What::Dies(process, moment) => world.faults.dying = Some((process, moment)),
        What::PowerLoss(node, time) => power_loss(world, node, time),
        What::NodeCut(node, _) => world.nodes[node].is_cut = true,
        What::ProcessCut(process, _) => world.life(process).cut = true,
        What::NodesApart(_) => world.faults.nodes_are_apart = true,
        What::ApiAway(_) => world.api.is_up = false,
        What::ApiFlaky(time) => world.faults.flaky_until = Some(Instant::now() + time / 3),
        What::WebhookAway(_) => world.api.webhook_is_down = true,
        What::RegistryAway(node, _) => world.nodes[node].registry_up = false,
        What::RuntimeAway(node, _) => world.nodes[node].runtime_up = false,
        What::Stopped(process, time) => world.life(process).stopped_until = Some(Instant::now() + time),
        What::Slow(process, time) => world.life(process).slow_until = Some(Instant::now() + time),
        What::MigrationDeleted => {
            let now = world.now();
            world.api.delete_migration("m1", now);
        }
        What::PodDeleted { source, force } => user_deletes(world, source, force),
        What::SecondMigration => crate::environment::create_migration(world, "m2", POD),
        What::ProgramEnds { source } => on_program(world, source, TaskState::Running),
        What::ProbeKills => on_program(world, true, TaskState::Paused),
        What::BlobsLost(node) => {
            let stored = world.nodes[node].registry.values_mut();
            stored.for_each(|repository| repository.manifests.retain(|_, (content, _)| *content == Content::Base));
        }
        What::ThawedByHand => thaw_by_hand(world),
    }
    if let Some(time) = what.lasts() {
        world.faults.repairs.push((Instant::now() + time, what));
    }
}

impl What {
    /// How long it stays until somebody makes it good; none for what happens once, or passes by itself.
    fn lasts(self) -> Option<Duration> {
        match self {
            Self::PowerLoss(_, time)
            | Self::NodeCut(_, time)
            | Self::ProcessCut(_, time)
            | Self::NodesApart(time)
            | Self::ApiAway(time)
            | Self::WebhookAway(time)
            | Self::RegistryAway(_, time)
            | Self::RuntimeAway(_, time) => Some(time),
            _ => None,
        }
    }
}

/// Makes good again what a fault has broken.
pub fn repair(world: &mut World, what: What) {
    world.tell(format_args!("repaired: {what:?}"));
    match what {
        What::PowerLoss(node, _) => world.nodes[node].is_up = true,
        What::NodeCut(node, _) => world.nodes[node].is_cut = false,
        What::ProcessCut(process, _) => world.life(process).cut = false,
        What::NodesApart(_) => world.faults.nodes_are_apart = false,
        What::ApiAway(_) => world.api.is_up = true,
        What::WebhookAway(_) => world.api.webhook_is_down = false,
        What::RegistryAway(node, _) => world.nodes[node].registry_up = true,
        What::RuntimeAway(node, _) => world.nodes[node].runtime_up = true,
        _ => {}
    }
}

fn power_loss(world: &mut World, node: usize, time: Duration) {
    if !world.nodes[node].is_up {
        return;
    }
    world.nodes[node].is_up = false;
    world.nodes[node].boots += 1;
    world.nodes[node].making.clear();
    world.nodes[node].sandboxes.clear();
    let mut containers = std::mem::take(&mut world.nodes[node].containers);
    for container in containers.values_mut() {
        container.is_starting = false;
        end(world, container);
    }
    world.nodes[node].containers = containers;
    if world.plan.mutation == Mutation::MarkersAreNotDurable {
        let _ = std::fs::remove_dir_all(world.nodes[node].gate_root());
    }
    world.kill(Process::Agent(node), time + Duration::from_secs(3));
    world.kill(Process::Kubelet(node), time + Duration::from_secs(1));
}

fn user_deletes(world: &mut World, source: bool, force: bool) {
    let Some((name, uid)) = pod_of(world, source) else { return };
    world.tell(format_args!("a user deletes pod {name}"));
    // Past the point of no return the source is deleted anyway, and lives in its archives.
    world.truth.given_up |= source && went_first(world, &uid).is_none();
    world.truth.user_deleted = true;
    let now = world.now();
    world.api.delete_pod(&name, &uid, force, now);
}

/// A program of a pod ends by itself, or is killed while it is frozen.
fn on_program(world: &mut World, source: bool, state: TaskState) {
    let Some((name, uid)) = pod_of(world, source) else { return };
    for (node, on) in NODES.iter().enumerate() {
        let Some(mut container) = world.nodes[node].of_pod(&uid).find(|c| c.state == state && c.is_alive()).cloned() else { continue };
        world.tell(format_args!("{} ({}) of pod {name} ends on {}", container.name, container.id, on));
        end(world, &mut container);
        world.nodes[node].containers.insert(container.id.clone(), container);
    }
}

/// Somebody resumes the source through the runtime, behind everybody's back; before the vote only: after it nothing could help.
fn thaw_by_hand(world: &mut World) {
    let Some((_, uid)) = pod_of(world, true) else { return };
    let voted = world.api.attestations.values().any(|a| a.status.as_ref().is_some_and(|s| s.pushed.is_some()));
    if voted {
        return;
    }
    for node in &mut world.nodes {
        for container in node.containers.values_mut().filter(|c| c.pod_uid == uid && c.state == TaskState::Paused && c.ended.is_none()) {
            (container.state, container.executes) = (TaskState::Running, true);
            world.truth.goes_on(container.memory.lineage);
        }
    }
}
