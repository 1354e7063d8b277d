//! A node and the API server that its agents see: every port over one shared state, with a trace of what was done.
//!
//! Fakes answer at once, so no test sleeps. A call can be made to fail, to hang (a process that dies there), or to be followed by a change of
//! the world that only it could have met.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::MicroTime};

use crate::{
    api::{
        Attestation, AttestationSpec, AttestationStatus, Migration, NodeProfileStatus, Role, attestation::PushedImage, attestation::attestation_name,
    },
    domain::ids::Digest,
    ports::{AgentApi, BlobStream, Clock, Failure, ImageManifest, Images, Kubelet, PortError, PortResult, PullCredential, Runtime, Task, TaskState},
};

/// A moment of the fake clock.
pub(crate) fn second(n: i64) -> Timestamp {
    Timestamp::from_second(n).unwrap()
}

/// The same as the API writes it.
pub(crate) fn at(n: i64) -> MicroTime {
    MicroTime(second(n))
}

/// What a future that only calls fakes comes to; none where one of them hangs, in which case it is dropped like a process that dies.
pub(crate) fn settled<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::task::unconstrained(work).now_or_never()
}

type Twist = Box<dyn FnOnce(&mut State) + Send>;

/// What the node and its API server hold.
pub(crate) struct State {
    /// What was done, in order: changes only.
    pub(crate) trace: Vec<String>,
    /// The fake clock.
    pub(crate) now: Timestamp,
    /// The runtime's containers.
    pub(crate) tasks: Vec<Task>,
    /// Container ID → CPU time.
    pub(crate) cpu_nanos: BTreeMap<String, u64>,
    /// IDs of tasks without a process, whatever the runtime shows.
    pub(crate) emptied: BTreeSet<String>,
    /// What the kubelet lists.
    pub(crate) pods: Vec<Pod>,
    /// Where the kubelet puts archives.
    pub(crate) checkpoints: PathBuf,
    /// The one migration.
    pub(crate) migration: Option<Migration>,
    /// Checkpoints in the runtime's store.
    pub(crate) checkpoint_images: Vec<String>,
    /// `pod UID/container` of the checkpoints that are laid out.
    pub(crate) laid_out: BTreeSet<String>,
    /// The inside of the pod.
    pub(crate) inside: super::inside::Inside,
    attestations: BTreeMap<String, Attestation>,
    /// `repository:tag` → image.
    pub(crate) registry: BTreeMap<String, PushedImage>,
    failing: BTreeMap<&'static str, PortError>,
    twists: BTreeMap<&'static str, Twist>,
    calls_until_death: Option<usize>,
    dies_after_the_deed: bool,
}

/// A node. Clones are the same node.
#[derive(Clone)]
pub(crate) struct FakeNode(Arc<Mutex<State>>);

impl FakeNode {
    pub(crate) fn new(migration: Migration) -> Self {
        Self(Arc::new(Mutex::new(State {
            trace: vec![],
            now: second(100),
            tasks: vec![],
            cpu_nanos: BTreeMap::new(),
            emptied: BTreeSet::new(),
            pods: vec![],
            checkpoints: PathBuf::from("/nonexistent"),
            migration: Some(migration),
            checkpoint_images: vec![],
            laid_out: BTreeSet::new(),
            inside: super::inside::Inside::default(),
            attestations: BTreeMap::new(),
            registry: BTreeMap::new(),
            failing: BTreeMap::new(),
            twists: BTreeMap::new(),
            calls_until_death: None,
            dies_after_the_deed: false,
        })))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the Migration's status, as the manager does.
    pub(crate) fn manager_writes(&self, change: impl FnOnce(&mut crate::api::MigrationStatus)) {
        change(self.state().migration.as_mut().unwrap().status.get_or_insert_default());
    }

    /// Makes the attestation of a side.
    pub(crate) fn add_attestation(&self, role: Role, node: &str, pod_uid: &str) {
        let mut state = self.state();
        let migration = state.migration.as_ref().unwrap();
        let (name, uid) = (migration.metadata.name.clone().unwrap(), migration.metadata.uid.clone().unwrap());
        let spec = AttestationSpec { migration: name.clone(), migration_uid: uid, node_name: node.into(), pod_uid: pod_uid.into(), role };
        let attestation = Attestation::new(&attestation_name(&name, role), spec);
        state.attestations.insert(attestation_name(&name, role), attestation);
    }

    /// What a side has attested so far.
    pub(crate) fn attested(&self, role: Role) -> AttestationStatus {
        let state = self.state();
        state.attestations.values().find(|a| a.spec.role == role).and_then(|a| a.status.clone()).unwrap_or_default()
    }

    /// Has the other node's agent attest something.
    pub(crate) fn other_attests(&self, role: Role, status: AttestationStatus) {
        self.state().attestations.values_mut().find(|a| a.spec.role == role).unwrap().status = Some(status);
    }

    /// From now on this call fails.
    pub(crate) fn fail(&self, call: &'static str, kind: Failure) {
        self.state().failing.insert(call, PortError::new(kind, format!("{call} was made to fail")));
    }

    /// From now on it works again.
    pub(crate) fn mend(&self, call: &'static str) {
        self.state().failing.remove(call);
    }

    /// Right after the next call of this name the world changes.
    pub(crate) fn after(&self, call: &'static str, twist: impl FnOnce(&mut State) + Send + 'static) {
        self.state().twists.insert(call, Box::new(twist));
    }

    /// The n-th call from now (0 is the next) never returns; whether its deed is done is the caller's choice.
    pub(crate) fn die_at(&self, call: usize, after_the_deed: bool) {
        let mut state = self.state();
        (state.calls_until_death, state.dies_after_the_deed) = (Some(call), after_the_deed);
    }

    /// Whether [`Self::die_at`] has not struck.
    pub(crate) fn survived(&self) -> bool {
        self.state().calls_until_death.take().is_some()
    }

    /// Does one call's deed, unless it fails or the process dies before it.
    pub(super) async fn call<T>(&self, name: &'static str, deed: impl FnOnce(&mut State) -> PortResult<T> + Send) -> PortResult<T> {
        let (result, dies) = {
            let mut state = self.state();
            let dies = state.calls_until_death == Some(0);
            state.calls_until_death = state.calls_until_death.and_then(|left| left.checked_sub(1));
            if dies && !state.dies_after_the_deed {
                (None, true)
            } else if let Some(error) = state.failing.get(name) {
                (Some(Err(error.clone())), dies)
            } else {
                let result = deed(&mut state);
                if let Some(twist) = state.twists.remove(name) {
                    twist(&mut state);
                }
                (Some(result), dies)
            }
        };
        match result {
            Some(result) if !dies => result,
            _ => std::future::pending().await,
        }
    }

    async fn set_state(&self, call: &'static str, id: &str, to: TaskState) -> PortResult<()> {
        self.call(call, |state| {
            state.trace.push(format!("{call} {id}"));
            if let Some(task) = state.tasks.iter_mut().find(|task| task.id == id) {
                task.state = to;
            }
            Ok(())
        })
        .await
    }
}

impl Clock for FakeNode {
    fn now(&self) -> Timestamp {
        self.state().now
    }
}

#[async_trait]
impl Runtime for FakeNode {
    async fn tasks(&self, _pod_uid: &str) -> PortResult<Vec<Task>> {
        self.call("tasks", |state| Ok(state.tasks.clone())).await
    }
    async fn pause(&self, id: &str) -> PortResult<()> {
        self.set_state("pause", id, TaskState::Paused).await
    }
    async fn resume(&self, id: &str) -> PortResult<()> {
        self.set_state("resume", id, TaskState::Running).await
    }
    async fn kill(&self, id: &str) -> PortResult<()> {
        self.set_state("kill", id, TaskState::Stopped).await
    }
    async fn remove_ended(&self, id: &str) -> PortResult<bool> {
        self.call("remove_ended", |state| {
            let ended = state.emptied.contains(id);
            let over = |task: &&mut Task| task.id == id && (ended || task.state == TaskState::Abandoned);
            state.tasks.iter_mut().filter(over).for_each(|task| task.state = TaskState::Stopped);
            Ok(ended)
        })
        .await
    }
    async fn cpu_nanos(&self, id: &str) -> PortResult<u64> {
        self.call("cpu_nanos", |state| Ok(state.cpu_nanos.get(id).copied().unwrap_or_default())).await
    }
}

#[async_trait]
impl Kubelet for FakeNode {
    async fn checkpoint(&self, namespace: &str, pod: &str, container: &str, _limit: Duration) -> PortResult<PathBuf> {
        self.call("checkpoint", |state| {
            state.trace.push(format!("checkpoint {container}"));
            let path = state.checkpoints.join(format!("checkpoint-{pod}_{namespace}-{container}-2026-11-23T06:20:00Z.tar"));
            std::fs::write(&path, container).map_err(|e| PortError::permanent(e.to_string()))?;
            Ok(path)
        })
        .await
    }
    async fn sync(&self, archive: &Path) -> PortResult<()> {
        self.call("sync", |state| {
            state.trace.push(format!("sync {}", std::fs::read_to_string(archive).map_err(|e| PortError::permanent(e.to_string()))?));
            Ok(())
        })
        .await
    }
    async fn pods(&self) -> PortResult<Vec<Pod>> {
        self.call("pods", |state| Ok(state.pods.clone())).await
    }
}

#[async_trait]
impl Images for FakeNode {
    async fn ensure(&self, reference: &str, _credentials: &[PullCredential]) -> PortResult<()> {
        self.call("ensure", |state| {
            state.trace.push(format!("ensure {reference}"));
            Ok(())
        })
        .await
    }
    async fn remove(&self, reference: &str) -> PortResult<()> {
        self.call("remove", |state| {
            state.trace.push(format!("remove {reference}"));
            Ok(())
        })
        .await
    }
    async fn checkpoints(&self) -> PortResult<Vec<String>> {
        self.call("checkpoints", |state| Ok(state.checkpoint_images.clone())).await
    }
    async fn manifest(&self, _reference: &str) -> PortResult<ImageManifest> {
        let (digest, bytes) = (Digest::from_sha256(&[7; 32]), br#"{"config": {}, "layers": []}"#.to_vec());
        self.call("manifest", |_| Ok(ImageManifest { media_type: String::new(), bytes, blobs: vec![(digest.clone(), 1)], digest })).await
    }
    async fn blob(&self, _digest: &Digest) -> PortResult<BlobStream> {
        let config = br#"{"config": {"Entrypoint": ["/init"]}, "rootfs": {"diff_ids": []}}"#;
        Ok(futures::stream::iter([Ok(bytes::Bytes::from_static(config))]).boxed())
    }
}

#[async_trait]
impl AgentApi for FakeNode {
    async fn migration(&self, _namespace: &str, name: &str) -> PortResult<Option<Migration>> {
        self.call("migration", |state| Ok(state.migration.clone().filter(|m| m.metadata.name.as_deref() == Some(name)))).await
    }
    async fn attestation(&self, _namespace: &str, name: &str) -> PortResult<Option<Attestation>> {
        self.call("attestation", |state| Ok(state.attestations.get(name).cloned())).await
    }
    async fn attest(&self, attestation: &Attestation, status: &AttestationStatus) -> PortResult<Attestation> {
        self.call("attest", |state| {
            let name = attestation.metadata.name.clone().unwrap_or_default();
            let stored = state.attestations.get_mut(&name).ok_or_else(|| PortError::new(Failure::NotFound, "no such attestation"))?;
            if stored.metadata.resource_version != attestation.metadata.resource_version {
                return Err(PortError::new(Failure::Conflict, "somebody wrote first"));
            }
            // What the API server enforces by CEL.
            let before = stored.status.clone().unwrap_or_default();
            assert!(before.vote.is_none() || before.vote == status.vote, "a vote is written once");
            assert!(status.vote.is_none() || status.abort.is_none(), "vote and abort exclude each other");
            assert!(before.restored.is_none() || before.restored == status.restored, "restored is written once");
            let said = said(status).into_iter().filter(|word| !self::said(&before).contains(word));
            state.trace.extend(said.map(|word| format!("attest {word}")));
            stored.status = Some(status.clone());
            let version = stored.metadata.resource_version.as_ref().map_or(0, |version| version.parse::<u64>().unwrap_or_default());
            stored.metadata.resource_version = Some((version + 1).to_string());
            Ok(stored.clone())
        })
        .await
    }
    async fn write_profile(&self, _status: &NodeProfileStatus) -> PortResult<()> {
        self.call("write_profile", |_| Ok(())).await
    }
    async fn arrivals(&self) -> PortResult<Vec<crate::ports::Arrival>> {
        self.call("arrivals", |_| Ok(vec![])).await
    }
    async fn pull_credentials(&self, _migration_uid: &str) -> PortResult<Vec<PullCredential>> {
        self.call("pull_credentials", |_| Ok(vec![])).await
    }
}

/// Which words stand in an attestation.
fn said(status: &AttestationStatus) -> Vec<&'static str> {
    [
        ("inspected", status.inspected.is_some()),
        ("frozen", status.frozen.is_some()),
        ("checkpointed", status.checkpointed.is_some()),
        ("pushed", status.pushed.is_some()),
        ("vote", status.vote.is_some()),
        ("abort", status.abort.is_some()),
        ("thawed", status.thawed.is_some()),
        ("ended", status.ended.is_some()),
        ("kept", status.kept.is_some()),
        ("armed", status.armed.is_some()),
        ("prepared", status.prepared.is_some()),
        ("ready", status.ready.is_some()),
        ("restored", status.restored.is_some()),
        ("never started", status.never_started.is_some()),
        ("died", status.died.is_some()),
        ("cold started", status.cold_started.is_some()),
        ("confirmed", status.confirmed.is_some()),
        ("cleaned", status.cleaned.is_some()),
        ("failure", status.failure.is_some()),
    ]
    .into_iter()
    .filter_map(|(word, stands)| stands.then_some(word))
    .collect()
}
