//! The agents of all nodes in one task each side: they say what real ones say, when [`drover::domain::attest`] has them say it, and do nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::{HeaderName, HeaderValue};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    runtime::{
        WatchStreamExt as _, reflector,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use sha2::{Digest as _, Sha256};

use drover::{
    adapters::agent_api::KubeAgentApi,
    api::{
        Attestation, AttestationStatus, Migration, MigrationStatus, NodeProfileStatus, Role,
        attestation::{Armed, At, ContainerId, Frozen, Inspected, Prepared, Pushed, PushedImage, Remark, Restored, Vote, attestation_name},
        node_profile::{GateStatus, LaneStatus},
    },
    domain::{
        attest::{Deletion, DestinationAction, SourceAction, SourceJournal, destination_next, source_next},
        ids::hex,
        keys, lanes,
    },
    ports::{AgentApi as _, Failure},
};

use crate::cluster::SYSTEM;

/// How often an agent looks whether there is something to do.
const LOOK: Duration = Duration::from_millis(50);
/// How often a profile is written, as by real agents.
const PROFILE_EVERY: Duration = Duration::from_secs(30);
/// So much every pod seems to hold.
const BYTES: u64 = 64 << 20;

/// What the agents share.
pub struct Agents {
    apis: HashMap<String, KubeAgentApi>,
    migrations: Store<Migration>,
    attestations: Store<Attestation>,
    pods: Store<Pod>,
    /// What no agent should have been asked for.
    surprises: Mutex<Vec<String>>,
}

impl Agents {
    /// Starts the agents of these nodes; each writes its profile before this returns.
    pub async fn start(admin: &Config, nodes: &[String]) -> Arc<Self> {
        let client = Client::try_from(admin.clone()).unwrap();
        let (attestations, writer) = reflector::store();
        let apis = nodes.iter().map(|node| (node.clone(), KubeAgentApi::new(as_agent(admin, node), SYSTEM, node))).collect();
        let (migrations, pods) = (follow(&client).await, follow(&client).await);
        let agents = Arc::new(Self { apis, migrations, attestations, pods, surprises: Mutex::default() });
        for node in nodes {
            agents.write_profile(node).await;
            let (agents, node) = (Arc::clone(&agents), node.clone());
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(PROFILE_EVERY).await;
                    agents.write_profile(&node).await;
                }
            });
        }
        let sides = Arc::clone(&agents);
        let changes = reflector(writer, watcher(Api::<Attestation>::all(client), watcher::Config::default())).default_backoff();
        tokio::spawn(async move {
            let mut known = HashMap::new();
            let mut changes = std::pin::pin!(changes.applied_objects());
            while let Some(change) = changes.next().await {
                let Ok(attestation) = change else { continue };
                known.entry(attestation.uid().unwrap()).or_insert_with(|| {
                    let side = Side { agents: Arc::clone(&sides), own: attestation, journal: SourceJournal::default() };
                    tokio::spawn(side.run())
                });
            }
        });
        agents
    }

    /// What no agent should have been asked for.
    pub fn surprises(&self) -> Vec<String> {
        self.surprises.lock().unwrap().clone()
    }

    /// One that fails is written again in half a minute, as a real one; preflight allows for four in a row.
    async fn write_profile(&self, node: &str) {
        let _ = self.apis[node].write_profile(&profile()).await;
    }
}

/// Everything of a kind, kept up to date.
async fn follow<K>(client: &Client) -> Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changes = reflector(writer, watcher(Api::<K>::all(client.clone()), watcher::Config::default())).default_backoff();
    tokio::spawn(changes.for_each(|_| std::future::ready(())));
    store.wait_until_ready().await.unwrap();
    store
}

/// A client that the API server takes for the agent of this node, as a token bound to a pod there would make it.
fn as_agent(admin: &Config, node: &str) -> Client {
    let mut config = admin.clone();
    let username = format!("system:serviceaccount:{SYSTEM}:drover-agent");
    config.headers = [("impersonate-user", username.as_str()), ("impersonate-extra-authentication.kubernetes.io%2fnode-name", node)]
        .map(|(name, value)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap()))
        .into();
    Client::try_from(config).unwrap()
}

fn profile() -> NodeProfileStatus {
    NodeProfileStatus {
        runtime: "containerd".into(),
        runtime_version: "2.0.0".into(),
        lanes: vec![LaneStatus { name: lanes::IMAGE.into(), available: true, message: String::new() }],
        gate: GateStatus { installed: true, message: String::new() },
        kernel: "6.18.0".into(),
        architecture: "amd64".into(),
        cgroup_version: 2,
        free_bytes: 1 << 40,
        observed_at: Some(Time(Timestamp::now())),
        ..NodeProfileStatus::default()
    }
}

/// One side of one migration.
struct Side {
    agents: Arc<Agents>,
    /// As it was written last, for nobody else writes it.
    own: Attestation,
    journal: SourceJournal,
}

impl Side {
    async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let namespace = self.own.namespace().unwrap();
            let key = ObjectRef::new(&self.own.spec.migration).within(&namespace);
            // It may be that the Migration is not seen yet; its attestation goes with it.
            if self.agents.attestations.get(&ObjectRef::from_obj(&self.own)).is_none() {
                return;
            }
            let Some(migration) = self.agents.migrations.get(&key).filter(|m| m.metadata.uid.as_ref() == Some(&self.own.spec.migration_uid)) else {
                continue;
            };
            let mut status = self.own.status.clone().unwrap_or_default();
            let changed = match self.own.spec.role {
                Role::Source => self.source(&migration, &mut status).await,
                Role::Destination => self.destination(&migration, &mut status).await,
                Role::Fallback => self.surprise("a fallback"),
            };
            if changed {
                self.write(&status).await;
            } else if status.ended.is_some() || status.cleaned.is_some() || status.thawed.is_some() {
                return;
            }
        }
    }

    /// Until it is written: nothing else would be said of the step.
    async fn write(&mut self, status: &AttestationStatus) {
        loop {
            match self.agents.apis[&self.own.spec.node_name].attest(&self.own, status).await {
                Ok(written) => {
                    self.own = written;
                    return;
                }
                Err(error) if error.kind == Failure::Transient => tokio::time::sleep(Duration::from_millis(500)).await,
                Err(error) => {
                    self.surprise(&error.to_string());
                    return;
                }
            }
        }
    }

    fn surprise(&self, what: &str) -> bool {
        self.agents.surprises.lock().unwrap().push(format!("{}: {what}", self.own.name_any()));
        false
    }

    fn peer(&self, role: Role) -> AttestationStatus {
        let key = ObjectRef::new(&attestation_name(&self.own.spec.migration, role)).within(&self.own.namespace().unwrap());
        let found = self.agents.attestations.get(&key).filter(|a| a.spec.migration_uid == self.own.spec.migration_uid);
        found.and_then(|a| a.status.clone()).unwrap_or_default()
    }

    fn pod(&self, name: &str, uid: &str) -> Option<Arc<Pod>> {
        let key = ObjectRef::new(name).within(&self.own.namespace().unwrap());
        self.agents.pods.get(&key).filter(|pod| pod.metadata.uid.as_deref() == Some(uid))
    }

    /// Takes the source's next step; false where there is none.
    async fn source(&mut self, migration: &Migration, said: &mut AttestationStatus) -> bool {
        let course = migration.status.clone().unwrap_or_default();
        let source = course.source.clone().unwrap_or_default();
        let deletion = match self.pod(&source.name, &self.own.spec.pod_uid) {
            None => Deletion::Gone,
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => Deletion::Shown,
            Some(_) => Deletion::NotShown,
        };
        let budget = Duration::from_secs(migration.spec.freeze_budget_seconds.into());
        let copy = self.peer(Role::Destination);
        let action = source_next(&course, said, &copy, &self.journal, deletion, budget, Timestamp::now());
        let containers = || source.containers.iter().map(drover::api::migration::RunningContainer::id).collect::<Vec<ContainerId>>();
        match action {
            // What would be killed here is only on paper, and kwok has removed the pod by the next look.
            SourceAction::Wait | SourceAction::Kill => return false,
            SourceAction::Inspect => {
                let at = takes(20..200).await;
                said.inspected = Some(Inspected { at, blockers: vec![], warnings: vec![], bytes: Some(BYTES), volume_bytes: Some(0) });
            }
            SourceAction::Freeze => {
                let at = takes(20..100).await;
                self.journal.frozen_at = Some(at.0);
                said.frozen = Some(Frozen { at, containers: containers() });
            }
            SourceAction::Checkpoint => said.checkpointed = Some(At { at: takes(300..1200).await }),
            SourceAction::Push => said.pushed = Some(Pushed { at: takes(100..600).await, images: images(&course) }),
            SourceAction::Vote => {
                let at = takes(10..50).await;
                self.journal.voted = true;
                said.vote = Some(Vote { at, containers: containers(), images: images(&course) });
            }
            SourceAction::Abort(message) => {
                self.surprise(&message);
                said.abort = Some(Remark { at: now(), message });
            }
            SourceAction::Thaw => said.thawed = Some(At { at: takes(20..100).await }),
            SourceAction::Forget => said.ended = Some(At { at: takes(20..100).await }),
            SourceAction::End | SourceAction::Collect | SourceAction::Keep => {
                return self.surprise(&format!("{action:?}: no source goes first here"));
            }
        }
        true
    }

    /// Takes the destination's next step; false where there is none.
    async fn destination(&self, migration: &Migration, said: &mut AttestationStatus) -> bool {
        let course = migration.status.clone().unwrap_or_default();
        let source = self.peer(Role::Source);
        match destination_next(&course, said, &source) {
            DestinationAction::Wait => return false,
            DestinationAction::Prepare => {
                let (push_address, pull_address) = ("10.0.0.1:5786".to_owned(), keys::PULL_ADDRESS.to_owned());
                said.prepared = Some(Prepared { at: takes(50..300).await, push_address, pull_address });
            }
            DestinationAction::Verify => {
                let images = source.vote.map(|vote| vote.images).unwrap_or_default();
                said.ready = Some(Pushed { at: takes(20..100).await, images });
            }
            DestinationAction::Arm => {
                let pod_uid = course.replacement.map(|replacement| replacement.uid).unwrap_or_default();
                said.armed = Some(Armed { at: now(), pod_uid });
            }
            DestinationAction::Restore => {
                let Some(containers) = self.restored(&course) else { return false };
                said.restored = Some(Restored { at: takes(100..500).await, containers });
            }
            DestinationAction::Confirm => said.confirmed = Some(At { at: takes(20..100).await }),
            DestinationAction::CleanAfterCommit | DestinationAction::CleanAfterRollback => said.cleaned = Some(At { at: takes(20..100).await }),
            action @ (DestinationAction::Revoke | DestinationAction::StartCold) => return self.surprise(&format!("{action:?}")),
        }
        true
    }

    /// The replacement's containers, once they run from the checkpoint's images.
    fn restored(&self, course: &MigrationStatus) -> Option<Vec<ContainerId>> {
        let replacement = course.replacement.as_ref()?;
        let pod = self.pod(&replacement.name, &replacement.uid)?;
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        let id = |name: &str, image: &str| {
            let status = statuses.iter().find(|status| status.name == name && status.image == image && status.started == Some(true))?;
            Some(ContainerId { name: name.to_owned(), container_id: status.container_id.as_ref()?.strip_prefix("containerd://")?.to_owned() })
        };
        course.containers.iter().map(|checkpoint| id(&checkpoint.name, &checkpoint.image)).collect()
    }
}

/// A checkpoint image of each container, as any other migration has others.
fn images(course: &MigrationStatus) -> Vec<PushedImage> {
    let containers = course.source.iter().flat_map(|source| &source.containers);
    let digest = |id: &str| format!("sha256:{}", hex(&Sha256::digest(id)));
    containers
        .map(|c| PushedImage { container: c.name.clone(), digest: digest(&c.container_id), bytes: BYTES, memory_bytes: None, pre_copied_bytes: None })
        .collect()
}

/// The time at which something is done that takes so many milliseconds.
async fn takes(millis: std::ops::Range<u64>) -> MicroTime {
    tokio::time::sleep(Duration::from_millis(rand::random_range(millis))).await;
    now()
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}
