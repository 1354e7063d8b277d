//! The processes: each is started, dies at some call, and is started again with nothing but what is on its disk.
//!
//! Managers and agents run the product's own code; what kube's controller does around it (a cache that lags, one look at a time for each object,
//! looking again) is done here, with the product's own times.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use drover::{
    agent::{
        controller::{self as agents, Sides},
        destination::{DestinationAgent, DestinationParts},
        journal::Journals,
        source::{SourceAgent, SourceParts},
    },
    api::{Attestation, Migration, Role, attestation::attestation_name},
    controllers::migration as managers,
    engine,
    ports::PortResult,
};
use futures::FutureExt as _;
use rand::Rng as _;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    api::name_of,
    kubelet,
    world::{Door, Handle, NAMESPACE, NODES, Process, Sim, World},
};

/// Starts a process whenever it may run, for as long as the run lasts.
pub async fn supervise(sim: Sim, process: Process) {
    loop {
        let (wait, runs) = {
            let mut world = sim.lock();
            let life = world.life(process).clone();
            let up = process.node().is_none_or(|n| world.nodes[n].is_up);
            (life.starts_at.filter(|at| *at > Instant::now()), up)
        };
        if let Some(at) = wait {
            tokio::time::sleep_until(at).await;
            continue;
        }
        if !runs {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        }
        let generation = {
            let mut world = sim.lock();
            let life = world.life(process);
            life.alive = true;
            life.generation
        };
        let handle = Handle { sim: sim.clone(), process, generation };
        let mut parts = parts_of(&handle);
        while sim.lock().life(process).generation == generation {
            sim.died(process).await;
        }
        // What was under way is dropped where it waits.
        parts.abort_all();
    }
}

fn parts_of(handle: &Handle) -> JoinSet<()> {
    let mut parts = JoinSet::new();
    match handle.process {
        Process::Manager(_) => {
            parts.spawn(guarded(handle.clone(), manager(handle.clone())));
        }
        Process::Kubelet(_) => {
            parts.spawn(guarded(handle.clone(), kubelet::run(handle.clone())));
        }
        Process::Agent(at) => {
            let sides = Arc::new(sides(handle, at));
            parts.spawn(guarded(handle.clone(), agents::watch_over(Arc::clone(&sides), CancellationToken::new())));
            parts.spawn(guarded(handle.clone(), agent(handle.clone(), sides)));
        }
    }
    parts
}

/// A panic of the product's is a failure of the run.
async fn guarded(handle: Handle, work: impl Future<Output = ()>) {
    if let Err(panic) = std::panic::AssertUnwindSafe(work).catch_unwind().await {
        let said = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        handle.sim.deed(|world| world.breaks(format!("the {} panics: {said}", handle.process)));
    }
}

fn sides(handle: &Handle, at: usize) -> Sides {
    let (markers, journals, checkpoints, disk, boot) = {
        let world = handle.sim.lock();
        let node = &world.nodes[at];
        (node.markers(), Journals::new(node.journals()), node.checkpoints(), node.disk.clone(), node.boot_id())
    };
    let port = || Arc::new(handle.clone());
    Sides {
        node: NODES[at].to_owned(),
        source: SourceAgent::new(SourceParts {
            node: NODES[at].to_owned(),
            runtime: port(),
            kubelet: port(),
            pusher: port(),
            api: port(),
            clock: port(),
            markers: markers.clone(),
            journals: journals.clone(),
            inside: port(),
            dump: port(),
            pre_copies: true,
            checkpoint_folder: checkpoints,
        }),
        destination: DestinationAgent::new(DestinationParts {
            node: NODES[at].to_owned(),
            runtime: port(),
            images: port(),
            kubelet: port(),
            registry: port(),
            verified: drover::agent::notified::Verified::nobody(),
            api: port(),
            clock: port(),
            inside: port(),
            layout: port(),
            pusher: port(),
            journals,
            markers,
            host_root: disk.join("host"),
            push_address: format!("10.0.0.{at}:5786"),
            boot: Some(boot),
            logs: disk.join("logs"),
        }),
    }
}

/// What a watch has brought: an object that looks are made for, and the versions of all that it depends on.
type Seen = BTreeMap<String, Vec<String>>;

/// Follows the API with a lag, and looks at each object whenever anything that it depends on has changed, or its time has come.
async fn control<S, L, F>(
    handle: Handle,
    read: impl Fn(&World) -> (Seen, S),
    store: Arc<Mutex<S>>,
    look: L,
    retry: fn(&drover::ports::PortError) -> Duration,
) where
    L: Fn(String) -> F + Clone + Send + 'static,
    F: Future<Output = PortResult<Option<Duration>>> + Send + 'static,
{
    handle.sim.look_again(handle.process);
    let mut seen = Seen::new();
    let mut wakers: BTreeMap<String, Arc<Notify>> = BTreeMap::new();
    let mut looks = JoinSet::new();
    loop {
        handle.sim.changed(handle.process).await;
        let lag = handle.sim.aside(|world| if world.once_in(12) { world.millis(100..3000) } else { world.millis(2..80) });
        handle.sleep(lag).await;
        let open = { handle.sim.lock().closed(handle.process, Door::Api).is_none() };
        if !open {
            handle.sleep(Duration::from_millis(400)).await;
            handle.sim.look_again(handle.process);
            continue;
        }
        let (now, content) = read(&handle.sim.lock());
        *store.lock().unwrap_or_else(PoisonError::into_inner) = content;
        for (name, versions) in &now {
            if seen.get(name) == Some(versions) {
                continue;
            }
            wakers
                .entry(name.clone())
                .or_insert_with(|| {
                    let waker = Arc::new(Notify::new());
                    looks.spawn(guarded(handle.clone(), look_often(handle.clone(), name.clone(), Arc::clone(&waker), look.clone(), retry)));
                    waker
                })
                .notify_one();
        }
        seen = now;
    }
}

async fn look_often<L, F>(handle: Handle, name: String, waker: Arc<Notify>, look: L, retry: fn(&drover::ports::PortError) -> Duration)
where
    L: Fn(String) -> F,
    F: Future<Output = PortResult<Option<Duration>>>,
{
    let mut again = None;
    loop {
        match again {
            Some(time) => drop(tokio::time::timeout(time, waker.notified()).await),
            None => waker.notified().await,
        }
        handle.sleep(Duration::from_millis(1)).await;
        again = match look(name.clone()).await {
            Ok(after) => after,
            Err(error) => Some(retry(&error)),
        };
    }
}

/// The controller of migrations.
async fn manager(handle: Handle) {
    let store: Arc<Mutex<BTreeMap<String, Migration>>> = Arc::default();
    let read = |world: &World| {
        let versions = |m: &Migration| {
            let own = m.metadata.resource_version.clone().unwrap_or_default();
            let attested = world.api.attestations.values().filter(|a| Some(&a.spec.migration_uid) == m.metadata.uid.as_ref());
            let pods = world.api.pods.values().filter(|pod| managers::concerns(m, pod));
            let others = attested.map(|a| &a.metadata).chain(pods.map(|pod| &pod.metadata));
            std::iter::once(own).chain(others.map(|meta| meta.resource_version.clone().unwrap_or_default())).collect()
        };
        let seen = world.api.migrations.iter().map(|(name, m)| (name.clone(), versions(m))).collect();
        (seen, world.api.migrations.clone())
    };
    let look = {
        let (handle, store) = (handle.clone(), Arc::clone(&store));
        move |name: String| {
            let (handle, store) = (handle.clone(), Arc::clone(&store));
            async move {
                let Some(migration) = store.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned() else { return Ok(None) };
                let sim = handle.sim.clone();
                let fresh = move || {
                    let mut world = sim.lock();
                    let (one, other): (u64, u64) = (world.chance.random(), world.chance.random());
                    format!("drover/{one:016x}{other:016x}")
                };
                Box::pin(engine::reconcile(migration, &handle, &handle, &fresh, &|_, _| {})).await
            }
        }
    };
    control(handle, read, store, look, managers::look_again_after).await;
}

/// The controller of one node's attestations.
async fn agent(handle: Handle, sides: Arc<Sides>) {
    let store: Arc<Mutex<BTreeMap<String, Attestation>>> = Arc::default();
    let node = sides.node.clone();
    let read = move |world: &World| {
        let versions = |a: &Attestation| {
            let all_sides =
                [Role::Source, Role::Destination, Role::Fallback].map(|role| world.api.attestations.get(&attestation_name(&a.spec.migration, role)));
            let migration = world.api.migrations.get(&a.spec.migration).map(|m| &m.metadata);
            let all = all_sides.into_iter().flatten().map(|a| &a.metadata).chain(migration);
            all.map(|meta| meta.resource_version.clone().unwrap_or_default()).collect()
        };
        let own = world.api.attestations.iter().filter(|(_, a)| a.spec.node_name == node);
        let seen = own.clone().map(|(name, a)| (name.clone(), versions(a))).collect();
        (seen, own.map(|(name, a)| (name.clone(), a.clone())).collect())
    };
    let look = {
        let store = Arc::clone(&store);
        move |name: String| {
            let (sides, store) = (Arc::clone(&sides), Arc::clone(&store));
            async move {
                let Some(found) = store.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned() else { return Ok(None) };
                debug_assert_eq!(name_of(&found.metadata), name, "kept under its name");
                match found.spec.role {
                    Role::Source => sides.source.reconcile(NAMESPACE, &found.spec.migration).await,
                    Role::Destination => sides.destination.reconcile(NAMESPACE, &found.spec.migration).await,
                    Role::Fallback => sides.destination.reconcile_fallback(NAMESPACE, &found.spec.migration).await,
                }
            }
        }
    };
    control(handle, read, store, look, agents::look_again_after).await;
}
