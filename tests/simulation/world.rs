//! The simulated cluster: one state behind one lock, one clock, one source of chance.
//!
//! Everything that any process does to it is one *deed*, done at one instant; after each deed the invariants are checked ([`crate::truth`]). Between
//! deeds processes wait on tokio's paused clock, so the seed alone decides who goes next.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover::ports::{PortError, PortResult};
use jiff::Timestamp;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::Notify, time::Instant};

use crate::{
    api::Api,
    faults::{Faults, Plan},
    mutation::Mutation,
    node::Node,
    truth::Truth,
};

/// Namespace of the one workload.
pub const NAMESPACE: &str = "shop";
/// Name of its pod.
pub const POD: &str = "web";
/// Names of the two nodes.
pub const NODES: [&str; 2] = ["n1", "n2"];

/// What can die by itself and is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// A replica of the manager. Both think that they lead: the lease only makes that rare.
    Manager(usize),
    /// The agent of a node.
    Agent(usize),
    /// The kubelet of a node.
    Kubelet(usize),
}

impl Process {
    pub const ALL: [Self; 6] = [Self::Manager(0), Self::Manager(1), Self::Agent(0), Self::Agent(1), Self::Kubelet(0), Self::Kubelet(1)];

    /// The node that it runs on; managers run elsewhere.
    pub fn node(self) -> Option<usize> {
        match self {
            Self::Manager(_) => None,
            Self::Agent(node) | Self::Kubelet(node) => Some(node),
        }
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Manager(n) => write!(f, "manager {}", n + 1),
            Self::Agent(n) => write!(f, "agent of {}", NODES[*n]),
            Self::Kubelet(n) => write!(f, "kubelet of {}", NODES[*n]),
        }
    }
}

/// Whom a call goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The API server.
    Api,
    /// The container runtime of this node.
    Runtime(usize),
    /// The kubelet of this node.
    Kubelet(usize),
    /// The registry of this node, from the node itself.
    Registry(usize),
    /// The push door of the first node's agent, from the second node.
    Push(usize, usize),
}

/// How a process is.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// Grows with each death: what belongs to an earlier life does nothing any more.
    pub generation: u32,
    pub alive: bool,
    /// It may be started again from here.
    pub starts_at: Option<Instant>,
    /// SIGSTOP until then.
    pub stopped_until: Option<Instant>,
    /// Everything takes long until then.
    pub slow_until: Option<Instant>,
    /// It does not reach the API server.
    pub cut: bool,
    /// Milliseconds that its clock is ahead.
    pub skew: i64,
}

/// How one call goes.
pub struct Trip {
    pub there: Duration,
    pub back: Duration,
    /// The process dies before or after the deed.
    pub dies: Option<Moment>,
    /// The deed is done, the answer is lost.
    pub answer_is_lost: bool,
}

/// On which side of a deed a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// Everything there is.
pub struct World {
    pub chance: StdRng,
    pub plan: Plan,
    pub api: Api,
    pub nodes: [Node; 2],
    pub lives: BTreeMap<Process, Life>,
    pub truth: Truth,
    pub faults: Faults,
    /// Ports called so far.
    pub calls: u64,
    /// What was done, line by line: changes only.
    pub story: Vec<String>,
    /// The invariant that is broken; the run ends.
    pub broken: Option<String>,
    began: Instant,
}

/// The world as processes hold it.
#[derive(Clone)]
pub struct Sim {
    world: Arc<Mutex<World>>,
    bells: Arc<BTreeMap<Process, Bells>>,
}

/// What wakes a process's tasks up. Not tokio's `watch`, which draws lots for the order in which it wakes.
#[derive(Default)]
struct Bells {
    changed: Notify,
    died: Notify,
}

impl Sim {
    /// A world of a plan; disks lie below `disks`.
    pub fn new(plan: Plan, disks: &std::path::Path) -> Self {
        let chance = StdRng::seed_from_u64(plan.seed);
        let folder = |name: &str| PathBuf::from(disks).join(name);
        let nodes = [0, 1].map(|at| Node::new(NODES[at], folder(NODES[at]), plan.gated[at]));
        let faults = Faults::of(&plan);
        let mut lives = BTreeMap::new();
        for process in Process::ALL {
            let skew = plan.skews.get(&process).copied().unwrap_or_default();
            lives.insert(process, Life { skew, ..Life::default() });
        }
        let world = World {
            chance,
            api: Api::new(plan.mutation == Mutation::NoCompareAndSwap),
            nodes,
            lives,
            truth: Truth::default(),
            faults,
            calls: 0,
            story: vec![],
            broken: None,
            began: Instant::now(),
            plan,
        };
        let bells = Process::ALL.into_iter().map(|process| (process, Bells::default())).collect();
        Self { world: Arc::new(Mutex::new(world)), bells: Arc::new(bells) }
    }

    /// Returns when an object of the API has changed since the last time that this process asked.
    pub async fn changed(&self, process: Process) {
        if let Some(bells) = self.bells.get(&process) {
            bells.changed.notified().await;
        }
    }

    /// Has [`Self::changed`] return at once.
    pub fn look_again(&self, process: Process) {
        self.bells.iter().filter(|(who, _)| **who == process).for_each(|(_, bells)| bells.changed.notify_one());
    }

    /// Returns when any process has died.
    pub async fn died(&self, process: Process) {
        if let Some(bells) = self.bells.get(&process) {
            bells.died.notified().await;
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One deed, after which everything must still hold.
    pub fn deed<T>(&self, deed: impl FnOnce(&mut World) -> T) -> T {
        self.aside(|world| {
            let result = deed(world);
            world.check();
            result
        })
    }

    /// Something that takes no time: no program executes meanwhile.
    pub fn aside<T>(&self, deed: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.lock();
        let before = (world.api.version, world.total_deaths());
        let result = deed(&mut world);
        let after = (world.api.version, world.total_deaths());
        drop(world);
        if before.0 != after.0 {
            self.bells.values().for_each(|bells| bells.changed.notify_one());
        }
        if before.1 != after.1 {
            self.bells.values().for_each(|bells| bells.died.notify_one());
        }
        result
    }
}

impl World {
    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The true time.
    pub fn now(&self) -> Timestamp {
        const BEGAN: i64 = 1_800_000_000;
        let elapsed = jiff::SignedDuration::try_from(self.elapsed()).unwrap_or_default();
        Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(BEGAN) + elapsed
    }

    /// A line of the story.
    pub fn tell(&mut self, line: impl std::fmt::Display) {
        let at = self.elapsed();
        // Messages name archives, and where the disks lie differs from run to run.
        let root = self.nodes[0].disk.parent().map(|root| root.display().to_string()).unwrap_or_default();
        let line = line.to_string().replace(&root, "");
        self.story.push(format!("{:>8.3} s  {line}", at.as_secs_f64()));
    }

    /// An invariant does not hold; the first one counts.
    pub fn breaks(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.tell(format_args!("BROKEN: {what}"));
        self.broken.get_or_insert(what);
    }

    pub fn life(&mut self, process: Process) -> &mut Life {
        self.lives.entry(process).or_default()
    }

    fn total_deaths(&self) -> u64 {
        self.lives.values().map(|life| u64::from(life.generation)).sum()
    }

    /// A whole number of milliseconds from a range.
    pub fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.chance.random_range(range))
    }

    /// True once in `n` on average.
    pub fn once_in(&mut self, n: u32) -> bool {
        self.chance.random_range(0..n) == 0
    }

    /// A process dies, and comes back after a while.
    pub fn kill(&mut self, process: Process, down: Duration) {
        let life = self.life(process);
        if !life.alive {
            return;
        }
        life.alive = false;
        life.generation += 1;
        life.stopped_until = None;
        life.starts_at = Some(Instant::now() + down);
        self.tell(format_args!("fault: the {process} dies"));
        if let (Process::Agent(node), Mutation::JournalsAreNotDurable) = (process, self.plan.mutation) {
            let _ = std::fs::remove_dir_all(self.nodes[node].journals());
        }
        if let Process::Kubelet(node) = process {
            self.nodes[node].kubelet.forget();
        }
    }

    /// Why a call of a process through a door cannot go through, if it cannot.
    pub fn closed(&self, process: Process, door: Door) -> Option<PortError> {
        let (open, what) = match door {
            Door::Api => (self.reaches_api(process), "the API server does not answer"),
            Door::Runtime(n) => (self.nodes[n].is_up && self.nodes[n].runtime_up, "containerd does not answer"),
            Door::Kubelet(n) => (self.nodes[n].is_up && self.lives.get(&Process::Kubelet(n)).is_some_and(|l| l.alive), "the kubelet does not answer"),
            Door::Registry(n) => (self.nodes[n].is_up && self.nodes[n].registry_up, "the registry does not answer"),
            Door::Push(to, from) => (
                self.nodes[to].is_up
                    && self.nodes[to].registry_up
                    && (to == from || !self.faults.nodes_are_apart)
                    && self.lives.get(&Process::Agent(to)).is_some_and(|l| l.alive),
                "the push door does not answer",
            ),
        };
        (!open).then(|| PortError::transient(what))
    }

    pub fn reaches_api(&self, process: Process) -> bool {
        let life = self.lives.get(&process);
        self.api.is_up && life.is_some_and(|life| !life.cut) && process.node().is_none_or(|n| self.nodes[n].is_up && !self.nodes[n].is_cut)
    }

    /// How the next call of a process goes.
    pub fn depart(&mut self, process: Process) -> Trip {
        self.calls += 1;
        crate::faults::strike(self);
        let slow = self.lives.get(&process).and_then(|life| life.slow_until).is_some_and(|until| until > Instant::now());
        let (there, back) = if slow { (self.millis(50..3000), self.millis(10..1500)) } else { (self.millis(1..12), self.millis(1..12)) };
        let dies = self.faults.dying.take_if(|(who, _)| *who == process).map(|(_, moment)| moment);
        let answer_is_lost = self.faults.flaky_until.is_some_and(|until| until > Instant::now()) && self.once_in(5);
        Trip { there, back, dies, answer_is_lost }
    }
}

/// One life of one process: what its ports are made of.
#[derive(Clone)]
pub struct Handle {
    pub sim: Sim,
    pub process: Process,
    pub generation: u32,
}

impl Handle {
    /// One call through a door: it takes its time, may fail, may be the last, and does its deed at one instant.
    pub async fn call<T>(&self, door: Door, deed: impl FnOnce(&mut World) -> PortResult<T> + Send) -> PortResult<T> {
        let trip = self.sim.aside(|world| world.depart(self.process));
        self.sleep(trip.there).await;
        if trip.dies == Some(Moment::Before) {
            self.die().await;
        }
        let refused = { self.sim.lock().closed(self.process, door) };
        if let Some(error) = refused {
            return self.fail(error).await;
        }
        let result = self.sim.deed(deed);
        self.sleep(trip.back).await;
        if trip.dies == Some(Moment::After) {
            self.die().await;
        }
        let lost = { self.sim.lock().closed(self.process, door) };
        match lost {
            Some(error) => self.fail(error).await,
            None if trip.answer_is_lost && result.is_ok() => Err(PortError::transient("the answer was lost")),
            None => result,
        }
    }

    /// A peer that is away refuses at once, or does not answer for as long as a client waits.
    async fn fail<T>(&self, error: PortError) -> PortResult<T> {
        let wait = self.sim.aside(|world| if world.once_in(4) { Duration::from_secs(10) } else { world.millis(1..100) });
        self.sleep(wait).await;
        Err(error)
    }

    async fn die(&self) {
        self.sim.deed(|world| {
            let down = world.millis(100..20_000);
            world.kill(self.process, down);
        });
        std::future::pending::<()>().await;
    }

    /// Sleeps; a stopped process sleeps on, one that has died never wakes.
    pub async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
        loop {
            let until = {
                let world = self.sim.lock();
                let life = world.lives.get(&self.process).cloned().unwrap_or_default();
                if life.generation != self.generation || !life.alive {
                    None
                } else {
                    Some(life.stopped_until.filter(|until| *until > Instant::now()))
                }
            };
            match until {
                None => std::future::pending::<()>().await,
                Some(None) => return,
                Some(Some(until)) => tokio::time::sleep_until(until).await,
            }
        }
    }
}
