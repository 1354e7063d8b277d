//! One seed: one schedule of steps and faults, from the request to rest.

use std::{collections::BTreeMap, time::Duration};

use drover::{
    api::{Migration, Outcome, migration::condition},
    domain::keys,
    ports::TaskState,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::{
    environment::{self, is_undecided},
    faults::{Fault, Plan, What},
    kind::Kind,
    mutation::Mutation,
    node::Content,
    process,
    world::{POD, Process, Sim, World},
};

/// Time from the end of the faults after which everything must have ended or be held.
const PATIENCE: Duration = Duration::from_mins(15);
/// How long everything must have been over before leftovers are looked for: two sweeps.
const REST: Duration = Duration::from_secs(75);

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Report {
    pub seed: u64,
    /// The invariant that was broken.
    pub broken: Option<String>,
    /// What was done, line by line.
    pub story: Vec<String>,
    pub kind: Kind,
    /// Migration → how it ended: an outcome, `Fallback`, or `Held` and why.
    pub ends: BTreeMap<String, String>,
    /// Port calls.
    pub calls: u64,
    pub plan: String,
}

impl Report {
    /// The story of a failed run, with what to type to see it again.
    pub fn tell(&self) -> String {
        format!(
            "seed {}: {}\n\nplan: {}\n\n{}\n\nagain: DROVER_SIM_SEED={} cargo test --test simulation -- --nocapture one_seed\n",
            self.seed,
            self.broken.as_deref().unwrap_or("all holds"),
            self.plan,
            self.story.join("\n"),
            self.seed
        )
    }
}

/// Where the disks lie: in memory where there is such a place, since every marker is synced.
fn disks() -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("drover-sim-").tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// Runs one seed.
pub fn run(seed: u64, mutation: Mutation) -> Report {
    let plan = Plan::of(seed, mutation);
    let told = format!("{plan:?}");
    let finished = disks().and_then(|disks| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        Ok(runtime.block_on(play(plan, disks.path())))
    });
    match finished {
        Ok(mut report) => {
            report.plan = told;
            report
        }
        Err(error) => Report {
            seed,
            broken: Some(format!("the simulation cannot run: {error}")),
            story: vec![],
            kind: Kind::of(seed),
            ends: BTreeMap::new(),
            calls: 0,
            plan: told,
        },
    }
}

async fn play(plan: Plan, disks: &std::path::Path) -> Report {
    let sim = Sim::new(plan, disks);
    sim.deed(environment::begin);
    let mut parts = tokio::task::JoinSet::new();
    parts.spawn(environment::run(sim.clone()));
    for process in Process::ALL {
        parts.spawn(process::supervise(sim.clone(), process));
    }
    let mut rests_since = None;
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let mut world = sim.lock();
        let at_rest = world.faults.are_over() && world.api.migrations.values().all(|m| has_ended(&world, m));
        rests_since = if at_rest { rests_since.or_else(|| Some(world.elapsed())) } else { None };
        let rested = rests_since.is_some_and(|since| world.elapsed() > since + REST);
        let too_long = world.elapsed() > crate::faults::FAULTS_END + PATIENCE;
        if rested || too_long {
            at_the_end(&mut world);
        }
        if world.broken.is_some() || rested || too_long {
            break report(&world);
        }
    }
}

fn report(world: &World) -> Report {
    let end = |m: &Migration| match m.status.as_ref().and_then(|s| s.outcome) {
        Some(Outcome::RolledBack) if m.status.as_ref().is_some_and(|s| s.fallback.is_some()) => "Fallback".to_owned(),
        Some(outcome) => outcome.as_str().to_owned(),
        None if is_held(m) => format!("Held, {}", held_for(m)),
        None => format!("in phase {}", m.phase()),
    };
    Report {
        seed: world.plan.seed,
        broken: world.broken.clone(),
        story: world.story.clone(),
        kind: world.plan.kind,
        ends: world.api.migrations.iter().map(|(name, m)| (name.clone(), end(m))).collect(),
        calls: world.calls,
        plan: String::new(),
    }
}

/// Ended, or held, and no person is going to decide.
fn has_ended(world: &World, migration: &Migration) -> bool {
    let decides = world.plan.person.is_some() && is_undecided(migration);
    (is_held(migration) && !decides) || (migration.is_done() && migration.finalizers().is_empty())
}

pub fn is_held(migration: &Migration) -> bool {
    migration.status.as_ref().and_then(|status| status.held()).is_some_and(|held| !held.message.is_empty())
}

pub fn held_for(migration: &Migration) -> &str {
    let conditions = migration.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().find(|c| c.type_ == condition::HELD).map_or("", |c| c.reason.as_str())
}

/// I6 and what must be left: nothing, where everything has ended.
fn at_the_end(world: &mut World) {
    let open: Vec<Migration> = world.api.migrations.values().filter(|m| !m.is_done()).cloned().collect();
    for migration in &open {
        if !is_held(migration) {
            let name = migration.metadata.name.clone().unwrap_or_default();
            let message = migration.status.as_ref().map(|s| s.message.clone()).unwrap_or_default();
            world.breaks(format!("I6: {name} neither ends nor is held: it is in phase {} ({message})", migration.phase()));
        }
    }
    if open.is_empty() {
        leftovers(world);
    }
}

fn leftovers(world: &mut World) {
    let mut found = vec![];
    for node in &world.nodes {
        let files = |folder: std::path::PathBuf| {
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned())
        };
        found.extend(files(node.journals()).map(|file| format!("journal {file} on {}", node.name)));
        found.extend(files(node.gate_root()).map(|file| format!("markers of pod {file} on {}", node.name)));
        // What is kept for a person is named in the status; where a user has deleted the Migration of a source that went first, in its agent's log.
        let is_there = |file: &str| world.api.migrations.values().filter_map(|m| m.metadata.uid.as_ref()).any(|uid| file.contains(uid));
        let logged = |file: &str| world.plan.kind != Kind::NewName && file.starts_with("kept-") && !is_there(file);
        let named = |file: &str| logged(file) || world.truth.told.iter().any(|message| message.contains(file));
        found.extend(files(node.checkpoints()).filter(|file| !named(file)).map(|file| format!("archive {file} on {}", node.name)));
        for container in node.containers.values().filter(|c| c.state == TaskState::Paused && c.ended.is_none()) {
            found.push(format!("{} ({}) is frozen on {}", container.name, container.id, node.name));
        }
        for (repository, stored) in &node.registry {
            let named = world
                .api
                .pods
                .values()
                .flat_map(|pod| pod.spec.iter().flat_map(|s| &s.containers))
                .any(|c| c.image.as_ref().is_some_and(|i| i.contains(repository)));
            if !named {
                found.push(format!("repository {repository} on {}", node.name));
            } else if stored.manifests.values().any(|(content, _)| *content != Content::Base) {
                found.push(format!("a checkpoint in repository {repository} on {}", node.name));
            }
        }
    }
    // One that a manager makes too late goes with its Migration, which owns it.
    let late = |fault: &Fault| matches!(fault.what, What::Stopped(Process::Manager(_), _) | What::Slow(Process::Manager(_), _));
    let templates = world.api.templates.keys().filter(|_| !world.plan.faults.iter().any(late));
    found.extend(templates.map(|uid| format!("the template of {uid}")));
    found.extend(world.api.pull_credentials.iter().map(|uid| format!("pull credentials of {uid}")));
    let active = |pod: &Pod| lock_of(pod).is_some_and(|lock| world.api.migrations.values().any(|m| m.metadata.uid.as_ref() == Some(lock)));
    found.extend(world.api.pods.iter().filter(|(_, pod)| active(pod)).map(|(name, _)| format!("a lock on pod {name}")));
    // One pod of the workload goes on, and it runs.
    let outcomes: Vec<Outcome> = world.api.migrations.values().filter_map(|m| m.status.as_ref()?.outcome).collect();
    // Nothing of the pod is to be left where a user has deleted it, or a person has given it up.
    let deleted = world.truth.user_deleted || outcomes.contains(&Outcome::GivenUp);
    if world.api.pods.is_empty() && !deleted {
        found.push(format!("no pod of {POD} is left after {outcomes:?}"));
    }
    if world.api.pods.len() > 1 {
        found.push(format!("{} pods are left: {:?}", world.api.pods.len(), world.api.pods.keys()));
    }
    let running = world.nodes.iter().flat_map(|node| node.containers.values()).filter(|c| c.executes).count();
    if running != world.plan.containers && !deleted {
        found.push(format!("{running} of {} containers run", world.plan.containers));
    }
    if !found.is_empty() {
        world.breaks(format!("everything has ended, and this is left: {}", found.join("; ")));
    }
}

/// The migration that has locked a pod. The lock of one that is gone binds nobody: a manager that was stopped in the middle may leave it.
fn lock_of(pod: &Pod) -> Option<&String> {
    pod.metadata.annotations.as_ref()?.get(keys::LOCK)
}
