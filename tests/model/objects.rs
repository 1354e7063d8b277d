//! From the model's state to the API's own types: the one place where they meet.

use std::{collections::BTreeMap, sync::LazyLock};

use drover::{
    agent::journal,
    api::{
        Attestation, AttestationSpec, AttestationStatus, Migration, MigrationSpec, MigrationStatus, NodeProfileStatus, Role,
        attestation::{ContainerId, Pushed, PushedImage, Vote},
        migration::{Decider, Destination, InDoubt, Side},
    },
    domain::{
        keys,
        preflight::{self, Blocker, Facts, NodeView},
        replacement,
        resolution::{GIVE_UP, Preference},
        tasks::{self, TaskState},
    },
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use serde_json::json;

use crate::{
    decide::Seen,
    state::{Age, Container, Journal, MOST, Mig, Object, Orphan, Replacement, Resolve, SourceTask, Task, View},
};

pub const MIGRATION: &str = "5f1c22aa-0000-4000-8000-000000000000";
/// A kept checkpoint archive on the source node.
pub const ARCHIVE: &str = "/archive";
pub const NAMES: [&str; MOST] = ["app", "side"];
const SOURCE: &str = "0f1c22aa-0000-4000-8000-000000000100";
/// What is added to the numbers of fallbacks.
pub const FALLBACK: u8 = 10;
/// The number of the placeholder that was made first.
pub const PLACEHOLDER: u8 = 5;

/// Time stands still; what is old has been made so.
pub static NOW: LazyLock<Timestamp> = LazyLock::new(|| Timestamp::from_second(1_000_000).expect("a moment"));
/// Older than every limit.
static LONG_AGO: LazyLock<Timestamp> = LazyLock::new(|| *NOW - SignedDuration::from_hours(100));

pub fn at(age: Age) -> Timestamp {
    match age {
        Age::Fresh => *NOW,
        Age::Old => *LONG_AGO,
    }
}

pub fn now() -> MicroTime {
    MicroTime(*NOW)
}

pub fn replacement_uid(uid: u8) -> String {
    format!("0f1c22aa-0000-4000-8000-0000000001{uid:02}")
}

/// The number of a pod's UID; 0 for the source, and for none.
pub fn replacement_number(uid: &str) -> u8 {
    uid.get(34..).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

pub fn migration(mig: Mig, overdue: bool, in_doubt: InDoubt, keep_name: bool) -> Migration {
    let destination = Destination { node_name: Some("n2".into()), ..Destination::default() };
    let (pod_name, deadline_seconds, freeze_budget_seconds) = (Some("p".into()), 600, 60);
    let spec = MigrationSpec { pod_name, destination, deadline_seconds, freeze_budget_seconds, in_doubt, keep_name, ..Default::default() };
    let mut migration = Migration::new("m", spec);
    migration.metadata.namespace = Some("d".into());
    migration.metadata.uid = Some(MIGRATION.into());
    migration.metadata.creation_timestamp = Some(Time(if overdue { *LONG_AGO } else { *NOW }));
    migration.metadata.deletion_timestamp = mig.deleting.then(|| Time(*NOW));
    migration.metadata.finalizers = mig.finalizer.then(|| vec![keys::FINALIZER.to_owned()]);
    let decision = |side, destination_is_down| Preference { side, by: Decider::Person, destination_is_down }.as_annotation();
    let decision = mig.resolve.map(|resolve| match resolve {
        Resolve::Source => decision(Side::Source, false),
        Resolve::SourceSinceDestinationIsDown => decision(Side::Source, true),
        Resolve::Destination => decision(Side::Destination, false),
        Resolve::GiveUp => GIVE_UP,
    });
    migration.metadata.annotations = decision.map(|value| [(keys::RESOLVE.to_owned(), value.to_owned())].into());
    migration.status = Some(mig.status().clone());
    migration
}

pub fn source_pod(object: Object, locked: bool, n: usize) -> Option<Pod> {
    let name = |i: usize| NAMES[i];
    let pod = json!({
        "metadata": {"name": "p", "namespace": "d", "uid": SOURCE, "annotations": {}},
        "spec": {"nodeName": "n1", "containers": (0..n).map(|i| json!({"name": name(i), "image": "i"})).collect::<Vec<_>>()},
        "status": {"phase": "Running", "containerStatuses": (0..n).map(|i| json!({"name": name(i), "image": "i", "ready": true, "restartCount": 0,
            "imageID": format!("r/i@sha256:{}", "b".repeat(64)), "containerID": format!("containerd://{}-one", name(i)), "state": {"running": {}}}))
            .collect::<Vec<_>>()}
    });
    let mut pod: Pod = serde_json::from_value(pod).expect("a pod");
    if locked {
        pod.metadata.annotations.get_or_insert_default().insert(keys::LOCK.into(), MIGRATION.into());
    }
    pod.metadata.deletion_timestamp = (object == Object::Deleting).then(|| Time(*NOW));
    (object != Object::Gone).then_some(pod)
}

/// What preflight says of the pod and of two healthy nodes.
pub fn blockers(migration: &Migration, seen: &Seen) -> Vec<Blocker> {
    let Some(mut pod) = source_pod(Object::Live, false, seen.n) else { return vec![] };
    for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers).filter(|_| seen.impatient) {
        let probe = json!({"tcpSocket": {"port": 80}, "periodSeconds": 1, "failureThreshold": 3});
        container.liveness_probe = Some(serde_json::from_value(probe).expect("a probe"));
    }
    let profile = |gate: bool| -> NodeProfileStatus {
        let profile =
            json!({"lanes": [{"name": "image", "available": true}], "freeBytes": 1u64 << 30, "gate": {"installed": gate}, "observedAt": *NOW});
        serde_json::from_value(profile).expect("a profile")
    };
    let node = |name: &str, gate| NodeView { name: name.into(), ready: true, profile: Some(profile(gate)), ..NodeView::default() };
    let facts = Facts {
        nodes: vec![node("n1", seen.gates[0]), node("n2", seen.gates[1])],
        active_migrations: vec![MIGRATION.into()],
        now: *NOW,
        ..Facts::default()
    };
    preflight::examine(migration, &pod, &facts)
}

/// What is kept of the source.
pub fn template(n: usize) -> Pod {
    replacement::template(&source_pod(Object::Live, true, n).expect("it lives"))
}

/// A pod that the migration has made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Made {
    Placeholder,
    Replacement,
    Fallback,
}

pub fn made_pod(kind: Made, it: Replacement, locked: bool, mig: Mig, n: usize) -> Pod {
    let status = mig.status();
    let keep_name = status.placeholder.is_some();
    let migration = migration(mig, false, InDoubt::HoldFrozen, keep_name);
    let (mut pod, node, number) = match kind {
        Made::Fallback => (replacement::fallback(&template(n), &migration, "n1"), "n1", it.uid + FALLBACK),
        Made::Replacement if keep_name => (replacement::same_name(&template(n), &migration, "n2"), "n2", it.uid),
        Made::Placeholder | Made::Replacement => {
            let source = source_pod(Object::Live, true, n).expect("it lives");
            (replacement::build(&source, &migration, &["n2".to_owned()]), "n2", it.uid)
        }
    };
    pod.metadata.uid = Some(replacement_uid(number));
    pod.metadata.deletion_timestamp = it.deleting.then(|| Time(*NOW));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    if it.claimed {
        annotations.insert(keys::CLAIM.into(), MIGRATION.into());
    }
    if !locked {
        annotations.remove(keys::LOCK);
    }
    let ready = if it.sandbox { "True" } else { "False" };
    pod.status = serde_json::from_value(json!({"conditions": [{"type": "PodReadyToStartContainers", "status": ready}]})).expect("a status");
    let spec = pod.spec.as_mut().expect("it has one");
    spec.node_name = Some(node.into());
    for container in spec.containers.iter_mut().filter(|_| it.images) {
        let checkpoint = status.containers.iter().find(|c| c.name == container.name);
        container.image = checkpoint.map(|c| c.image.clone());
    }
    pod
}

pub fn attestation(role: Role, status: &AttestationStatus) -> Attestation {
    let (node_name, pod_uid) = match role {
        Role::Source => ("n1".to_owned(), SOURCE.to_owned()),
        Role::Destination => ("n2".to_owned(), replacement_uid(1)),
        Role::Fallback => ("n1".to_owned(), replacement_uid(1 + FALLBACK)),
    };
    let mut attestation = Attestation::new("a", AttestationSpec { migration: "m".into(), migration_uid: MIGRATION.into(), node_name, pod_uid, role });
    attestation.status = Some(status.clone());
    attestation
}

/// The source's containers in its runtime; they are frozen and thawed together.
pub fn source_ids(fresh: bool, n: usize) -> Vec<ContainerId> {
    let run = if fresh { "two" } else { "one" };
    NAMES[..n].iter().map(|name| ContainerId { name: (*name).into(), container_id: format!("{name}-{run}") }).collect()
}

pub fn source_tasks(task: SourceTask, fresh: bool, n: usize) -> Vec<tasks::Task> {
    let state = match task {
        SourceTask::Running => TaskState::Running,
        SourceTask::Paused => TaskState::Paused,
        SourceTask::Dead => TaskState::Stopped,
    };
    source_ids(fresh, n)
        .into_iter()
        .map(|c| tasks::Task { container: c.name, id: c.container_id, state, restored_from: None, spoilt: None })
        .collect()
}

pub fn images(n: usize) -> Vec<PushedImage> {
    NAMES[..n]
        .iter()
        .map(|name| PushedImage {
            container: (*name).into(),
            digest: format!("sha256:{}", "a".repeat(64)),
            bytes: 7,
            memory_bytes: None,
            pre_copied_bytes: None,
        })
        .collect()
}

pub fn vote(n: usize) -> Vote {
    Vote { at: now(), containers: source_ids(false, n), images: images(n) }
}

/// The journal as the agent would read it from its disk.
pub fn journal(it: Journal, n: usize) -> journal::Journal {
    let containers = source_ids(it.fresh, n);
    journal::Journal {
        migration_uid: MIGRATION.into(),
        budget_seconds: 60,
        frozen_at: it.frozen.map(at),
        archives: containers.iter().filter(|_| it.dumped).map(|c| (c.name.clone(), ARCHIVE.into())).collect(),
        cpu_nanos: containers.iter().filter(|_| it.dumped).map(|c| (c.container_id.clone(), 1)).collect(),
        pushed: it.pushed.then(|| Pushed { at: now(), images: images(n) }),
        vote: it.vote.then(|| vote(n)),
        aborted: it.aborted.then(|| "given up".to_owned()),
        thawed: it.thawed,
        unmoved: it.unmoved,
        containers,
        ..journal::Journal::default()
    }
}

/// CPU times as the runtime gives them now.
pub fn cpu(moved: bool, fresh: bool, n: usize) -> BTreeMap<String, u64> {
    source_ids(fresh, n).into_iter().map(|c| (c.container_id, if moved { 2 } else { 1 })).collect()
}

/// The replacement's containers as the destination's runtime lists them.
pub fn replacement_tasks(containers: &[Container], status: &MigrationStatus) -> Vec<tasks::Task> {
    let mut tasks = vec![];
    for (name, container) in NAMES.iter().zip(containers) {
        let image = status.containers.iter().find(|c| c.name == *name).map(|c| c.image.clone());
        let task = |run: &str, state, restored_from| tasks::Task {
            container: (*name).into(),
            id: format!("{name}-{run}"),
            state,
            restored_from,
            spoilt: None,
        };
        // What goes on is the first that the gate let through.
        let given_up = match container.orphan.filter(|orphan| orphan.listed) {
            Some(Orphan { runs: true, .. }) => TaskState::Abandoned,
            Some(Orphan { runs: false, .. }) => TaskState::Created,
            None => TaskState::Stopped,
        };
        if container.earlier {
            tasks.push(task("earlier", given_up, image.clone()));
        }
        let (run, ended) = if container.earlier { ("again", TaskState::Stopped) } else { ("new", given_up) };
        match container.task {
            Task::None | Task::Pulling => {}
            Task::Made(_) | Task::Refused | Task::Dead => tasks.push(task(run, ended, image)),
            Task::Spoilt => tasks.push(tasks::Task { spoilt: Some("its pages stopped coming".into()), ..task(run, ended, image) }),
            Task::Filling => tasks.push(task(run, TaskState::Filling, image)),
            Task::Restoring => tasks.push(task(run, TaskState::Created, image)),
            Task::Running { restored } => tasks.push(task(run, TaskState::Running, image.filter(|_| restored))),
        }
    }
    tasks
}

/// What `Runtime::remove_ended` says of the container that the gate let through first: the runtime has ended or removed it, and no process is left.
pub fn first_has_ended(container: &Container) -> bool {
    container.orphan.is_none() && (container.earlier || container.task == Task::None || container.task.is_over())
}

/// IDs of which `Runtime::remove_ended` says so.
pub fn over(containers: &[Container]) -> Vec<String> {
    let mut ids = vec![];
    for (c, container) in containers.iter().enumerate() {
        if container.booted || first_has_ended(container) {
            ids.push(first_id(c));
        }
        if container.earlier {
            ids.extend(container.orphan.is_none().then(|| format!("{}-earlier", NAMES[c])));
            if container.task.is_over() {
                ids.push(format!("{}-again", NAMES[c]));
            }
        }
    }
    ids
}

/// ID of the container that the gate let through first, as its evidence has it.
pub fn first_id(c: usize) -> String {
    format!("{}-new", NAMES[c])
}

/// The replacement as the destination's kubelet lists it, if it does.
pub fn replacement_listed(view: View, containers: &[Container]) -> Option<Pod> {
    let status = |(name, container): (&&str, &Container)| {
        let state = match container.task {
            Task::None | Task::Pulling | Task::Made(_) | Task::Restoring => json!({"waiting": {"reason": "ContainerCreating"}}),
            Task::Filling | Task::Running { .. } => json!({"running": {}}),
            // Whoever refuses a restore, also the gate: runc's error begins like this.
            Task::Refused => json!({"waiting": {"reason": "RunContainerError", "message": "OCI runtime restore failed: refused"}}),
            Task::Dead | Task::Spoilt => json!({"terminated": {"exitCode": 137}}),
        };
        let restarts = u8::from(container.earlier && container.task.executes());
        json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state})
    };
    let statuses: Vec<_> = NAMES.iter().zip(containers).map(status).collect();
    let deletion = (view == View::Terminating).then_some("2026-01-01T00:00:00Z");
    let pod = json!({"metadata": {"uid": replacement_uid(1), "deletionTimestamp": deletion}, "status": {"containerStatuses": statuses}});
    let listed = matches!(view, View::Listed | View::Released | View::Terminating);
    listed.then(|| serde_json::from_value(pod).expect("a pod"))
}

/// A log of CRIU's.
pub fn log_text(log: crate::state::Log) -> Option<&'static str> {
    use crate::state::Log;
    match log {
        Log::None => None,
        Log::Begun => Some("(00.1) Restoring\n"),
        Log::Error => Some("(00.1) Restoring\n(00.2) Error (criu/mount.c:1): mnt: No mapping for 7\n"),
        Log::Resumed { error: false } => Some("(00.1) Restoring\n(00.3) Restore finished successfully. Tasks resumed.\n"),
        Log::Resumed { error: true } => Some("(00.2) Error (criu/x.c:1): no\n(00.3) Restore finished successfully. Tasks resumed.\n"),
    }
}
