//! What goes on in any cluster by itself: the scheduler, the node controller, garbage collection, repairs; and the user.

use std::time::Duration;

use drover::{
    api::{Migration, MigrationSpec, Outcome, migration::Destination},
    domain::{
        keys,
        resolution::{FALLBACK_FAILED, GIVE_UP},
    },
    ports::TaskState,
};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt as _;
use rand::Rng as _;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    api::name_of,
    faults::{self, FAULTS_END, What},
    node::Container,
    run::{held_for, is_held},
    runtime::base_image,
    truth,
    world::{NODES, POD, Process, Sim, World},
};

/// A node whose kubelet has said nothing for this long is not Ready.
const NODE_GRACE: Duration = Duration::from_secs(40);

/// How much longer a node stays down of which a person has said so.
const KEPT_DOWN: Duration = Duration::from_mins(2);

/// Runs until the end.
pub async fn run(sim: Sim) {
    loop {
        let pause = sim.aside(|world| world.millis(80..300));
        tokio::time::sleep(pause).await;
        sim.deed(tick);
    }
}

fn tick(world: &mut World) {
    if world.elapsed() > FAULTS_END {
        world.faults.forget_pending();
    }
    let due: Vec<_> = world.faults.repairs.extract_if(.., |(at, _)| *at <= Instant::now()).collect();
    for (_, what) in due {
        faults::repair(world, what);
    }
    schedule(world);
    let now = world.now();
    for at in 0..NODES.len() {
        world.nodes[at].view.ready = world.nodes[at].last_heartbeat.elapsed() < NODE_GRACE;
        if world.reaches_api(Process::Agent(at))
            && world.life(Process::Agent(at)).alive
            && let Some(profile) = &mut world.nodes[at].view.profile
        {
            profile.observed_at = Some(Time(now));
        }
    }
    if world.once_in(20) {
        world.api.collect_garbage();
    }
    go_back(world);
    decide(world);
}

/// A person reads why a migration is held, and types what the message says.
fn decide(world: &mut World) {
    let held: Vec<Migration> = world.api.migrations.values().filter(|m| is_held(m) && is_undecided(m)).cloned().collect();
    for migration in held {
        let status = migration.status.clone().unwrap_or_default();
        let Some(node) = status.destination.and_then(|d| NODES.iter().position(|name| *name == d.node_name)) else { continue };
        let is_down = !world.nodes[node].is_up && world.plan.person_sees_nodes && status.verdict.is_none();
        let decision = if is_down {
            // Which is to stay so until the migration has ended.
            world
                .faults
                .repairs
                .iter_mut()
                .filter(|(_, what)| matches!(what, What::PowerLoss(n, _) if *n == node))
                .for_each(|(at, _)| *at += KEPT_DOWN);
            for process in [Process::Agent(node), Process::Kubelet(node)] {
                let life = world.life(process);
                life.starts_at = life.starts_at.map(|at| at + KEPT_DOWN);
            }
            "source-destination-is-down"
        } else if held_for(&migration) == FALLBACK_FAILED {
            if !world.faults.are_over() || world.plan.person != Some("source") {
                continue;
            }
            GIVE_UP
        } else if world.faults.are_over() && status.verdict.is_none_or(|_| world.plan.person == Some("destination")) {
            let Some(decision) = world.plan.person else { continue };
            decision
        } else {
            continue;
        };
        let name = name_of(&migration.metadata);
        world.tell(format_args!("a person types: drover resolve {name}: {decision}"));
        world.api.annotate_migration(&name, keys::RESOLVE, decision);
    }
}

/// Whether a person may still decide: also anew, where what was decided has failed.
pub fn is_undecided(migration: &Migration) -> bool {
    let decision = migration.annotations().get(keys::RESOLVE);
    decision.is_none_or(|decision| held_for(migration) == FALLBACK_FAILED && decision != GIVE_UP)
}

/// Binds pods to a ready node of their affinity.
fn schedule(world: &mut World) {
    let waits = |pod: &&Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.is_none()) && pod.metadata.deletion_timestamp.is_none();
    let Some(pod) = world.api.pods.values().find(waits).cloned() else { return };
    let terms =
        pod.spec.as_ref().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.clone());
    let fields = terms.iter().flat_map(|t| &t.node_selector_terms).flat_map(|t| t.match_fields.iter().flatten());
    let named: Vec<String> = fields.flat_map(|f| f.values.iter().flatten().cloned()).collect();
    let fitting: Vec<usize> = (0..NODES.len()).filter(|n| world.nodes[*n].view.ready && named.iter().any(|name| name == NODES[*n])).collect();
    if fitting.is_empty() {
        return;
    }
    let node = NODES[fitting[world.chance.random_range(0..fitting.len())]];
    let (name, uid) = (name_of(&pod.metadata), pod.metadata.uid.clone().unwrap_or_default());
    world.tell(format_args!("the scheduler places {name} on {node}"));
    world.api.touch_pod(&name, &uid, |pod| {
        if let Some(spec) = &mut pod.spec {
            spec.node_name = Some(node.to_owned());
        }
    });
}

/// The pod has migrated: the user wants it back on the first node, a second hop.
fn go_back(world: &mut World) {
    if !world.plan.goes_back || world.api.migrations.contains_key("m3") {
        return;
    }
    let Some(status) = world.api.migrations.get("m1").and_then(|m| m.status.as_ref()) else { return };
    if status.outcome != Some(Outcome::Migrated) {
        return;
    }
    let Some(name) = status.replacement.as_ref().map(|r| r.name.clone()) else { return };
    world.plan.goes_back = false;
    create_migration(world, "m3", &name);
}

/// A user makes a Migration.
pub fn create_migration(world: &mut World, name: &str, pod: &str) {
    let node_name = (world.plan.names_node && name != "m3").then(|| NODES[1].to_owned());
    let spec = MigrationSpec {
        pod_name: Some(pod.to_owned()),
        destination: Destination { node_name, ..Destination::default() },
        deadline_seconds: world.plan.deadline_seconds,
        freeze_budget_seconds: world.plan.freeze_budget_seconds,
        in_doubt: world.plan.in_doubt,
        keep_name: world.plan.keep_name,
        ..MigrationSpec::default()
    };
    let now = world.now();
    if world.api.create_migration(Migration::new(name, spec), now) {
        world.tell(format_args!("a user makes Migration {name} of pod {pod}"));
    }
}

/// The workload: one pod that runs on the first node.
pub fn begin(world: &mut World) {
    let names: Vec<String> = ["app", "side"].iter().take(world.plan.containers).map(|name| (*name).to_owned()).collect();
    let containers: Vec<_> = names.iter().map(|name| json!({"name": name, "image": base_image()})).collect();
    let pod = json!({"metadata": {"name": POD, "labels": {"app": POD}}, "spec": {"nodeName": NODES[0], "containers": containers}});
    let now = world.now();
    let pod: Pod = serde_json::from_value(pod).unwrap_or_default();
    if world.api.create_pod(&pod, now).is_err() {
        world.breaks("the workload cannot be made");
    }
    let uid = world.api.pods.get(POD).and_then(|pod| pod.metadata.uid.clone()).unwrap_or_default();
    for name in names {
        let memory = truth::begins_anew(world, &uid, &name);
        let id = world.nodes[0].fresh_id();
        let container = Container {
            id: id.clone(),
            pod_uid: uid.clone(),
            name,
            state: TaskState::Running,
            executes: true,
            memory,
            restored_from: None,
            cpu_nanos: 0,
            is_starting: false,
            ended: None,
        };
        world.nodes[0].containers.insert(id, container);
    }
    world.nodes[0].store.insert(base_image(), crate::node::Content::Base);
    create_migration(world, "m1", POD);
}
