//! A counter on its way from n1 to n2, held at a moment that is otherwise over in milliseconds, so that a fault hits it just there.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, api::LogParams};

use drover::{
    api::{Migration, MigrationSpec, Outcome, Phase, Role, attestation::attestation_name},
    markers::{Claim, GATE_ROOT},
};

use super::{
    NODES, Namespace,
    agents::{Part, on_disk, signal_all},
    counter::{Follower, assert_contiguous, assert_went_on},
    eventually, lab,
    leftovers::AFTER_SWEEP,
    migrations::{assert_outcome, replacement, status},
    pods::{container, counter},
};

/// Where a migration is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Frozen and without a vote: the destination's registry, to which the checkpoint goes, is stopped.
    BeforeVote,
    /// Voted for and not released: the managers are stopped.
    BeforeRelease,
    /// Released, and the gate has let nothing through: the image cannot be pulled, and the destination's agent is stopped.
    Released,
    /// The gate has let the restore through; the destination's agent, which is stopped, has not seen it.
    Taken,
}

/// A pod `c` with one container `c`, and its migration.
pub struct Moving {
    pub namespace: Namespace,
    pub source: Follower,
    /// As it was seen last.
    pub migration: Migration,
    /// Processes that are stopped.
    stopped: Vec<u32>,
    pulls_are_off: bool,
}

/// Nothing answers where the runtime pulls checkpoint images ([`drover::domain::keys::PULL_ADDRESS`]).
const NO_PULLS: &str = "nft add table inet no-pulls; nft add chain inet no-pulls out '{ type filter hook output priority 0; }'; \
                        nft add rule inet no-pulls out tcp dport 5785 drop";

impl Drop for Moving {
    fn drop(&mut self) {
        self.go_on();
    }
}

impl Moving {
    /// Starts a counter of so many MiB on n1, and its migration once it counts.
    pub async fn begin(namespace: &Namespace, mib: u32, spec: MigrationSpec) -> Self {
        namespace.run(&counter("c", "n1", mib, 50)).await;
        let source = namespace.follow("c", "c").await;
        source.beyond(5).await;
        let migration = namespace.make(spec).await;
        Self::of(namespace, source, migration)
    }

    /// One that has just been begun, of a pod whose container `c` is followed.
    pub fn of(namespace: &Namespace, source: Follower, migration: Migration) -> Self {
        Self { namespace: namespace.clone(), source, migration, stopped: vec![], pulls_are_off: false }
    }

    pub fn name(&self) -> String {
        self.migration.name_any()
    }

    /// Waits for the moment, and holds the migration there until [`Moving::go_on`]. Called right after [`Moving::begin`]: what must not come too early has
    /// a brake from the start, since this process may be slow to see a phase.
    pub async fn hold(&mut self, moment: Moment) {
        let name = self.name();
        match moment {
            Moment::BeforeVote => self.stop_the_transfer().await,
            Moment::BeforeRelease => {
                self.stop_the_transfer().await;
                let registry = std::mem::take(&mut self.stopped);
                self.stop(Part::Managers.pids());
                signal_all(&registry, "CONT");
                self.until_voted().await;
                self.migration = self.namespace.migrations().get(&name).await.unwrap();
                assert!(self.migration.phase() < Phase::Restoring, "the managers were stopped too late: {}", self.migration.phase());
            }
            Moment::Released => {
                lab::on_node("n2", NO_PULLS);
                self.pulls_are_off = true;
                let agent = Part::Agent("n2").pids();
                self.migration = self.namespace.until_phase(&name, Phase::Restoring).await;
                self.stop(agent);
                // The kubelet learns of the release, and waits for the image.
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert!(self.claim(Claim::Waiting).exists(), "the agent was stopped too late: the restore has begun");
            }
            Moment::Taken => {
                let agent = Part::Agent("n2").pids();
                // Looked for from before the release on: a move may be over before this process has heard of its phase.
                self.until("has a replacement", |m| status(m).replacement.is_some_and(|replacement| !replacement.uid.is_empty())).await;
                let taken = self.claim(Claim::Taken);
                let end = Instant::now() + Duration::from_mins(1);
                while !taken.exists() {
                    assert!(Instant::now() < end, "the gate did not let the restore through within a minute");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                self.stop(agent);
                self.migration = self.namespace.until_phase(&name, Phase::Restoring).await;
            }
        }
    }

    /// Frozen and dumped; nothing reaches the destination's registry.
    async fn stop_the_transfer(&mut self) {
        let (kubelet, registry) = (Part::Kubelet("n1").pids(), Part::Registry("n2").pids());
        // It makes the checkpoints.
        self.stop(kubelet.clone());
        self.namespace.until_phase(&self.name(), Phase::Checkpointing).await;
        self.stop(registry);
        signal_all(&kubelet, "CONT");
        self.migration = self.namespace.until_phase(&self.name(), Phase::Transferring).await;
    }

    fn stop(&mut self, pids: Vec<u32>) {
        assert!(!pids.is_empty(), "what is to be stopped does not run");
        signal_all(&pids, "STOP");
        self.stopped = pids;
    }

    /// Lets what was stopped run again; what has been killed meanwhile is left alone.
    pub fn go_on(&mut self) {
        if std::mem::take(&mut self.pulls_are_off) {
            drop(lab::try_lab(&["exec", "n2", "nft", "delete", "table", "inet", "no-pulls"]));
        }
        let stopped = std::mem::take(&mut self.stopped);
        if !stopped.is_empty() {
            signal_all(&stopped, "CONT");
        }
    }

    async fn until_voted(&self) {
        let attestation = attestation_name(&self.name(), Role::Source);
        let end = Instant::now() + Duration::from_mins(1);
        while self.namespace.attestations().get(&attestation).await.unwrap().status.is_none_or(|status| status.vote.is_none()) {
            assert!(Instant::now() < end, "the source did not vote within a minute");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The replacement's claim on n2's disk, as it is while it stands so; seen from outside, since a shell in the node would come too late.
    fn claim(&self, claim: Claim) -> PathBuf {
        let uid = status(&self.migration).replacement.map(|r| r.uid).unwrap_or_default();
        on_disk("n2", Path::new(GATE_ROOT)).join(uid).join(format!("c.{}", claim.as_str()))
    }

    /// Waits until the replacement, of which nobody has said anything yet, prints a number that the source has not.
    pub async fn until_copy_counts(&self) -> Follower {
        let copy = replacement(&self.migration);
        let end = Instant::now() + Duration::from_mins(1);
        loop {
            if self.namespace.pods().logs(&copy, &LogParams::default()).await.is_ok() {
                let copy = self.namespace.follow(&copy, "c").await;
                copy.beyond(self.source.last()).await;
                return copy;
            }
            assert!(Instant::now() < end, "{copy} has printed nothing within a minute");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until the migration is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Migration) -> bool) -> &Migration {
        let name = self.name();
        self.migration = self.namespace.first(&format!("Migration {name}: {what}"), |m| m.name_any() == name && wanted(m)).await;
        &self.migration
    }

    /// Waits until the migration is held for this reason, and returns what the message says.
    pub async fn until_held(&mut self, reason: &str) -> String {
        self.until(&format!("held with reason {reason}"), |m| is_held(m, reason)).await;
        let status = status(&self.migration);
        assert_eq!(status.outcome, None);
        let command = format!("drover resolve {} -n {} --prefer source", self.name(), self.namespace.name);
        assert!(status.message.contains(&command), "{command:?} is not in {:?}", status.message);
        status.message
    }

    /// `drover resolve`, as the message says.
    #[track_caller]
    pub fn resolve(&self, how: &[&str]) {
        let (code, told) = lab::drover(&[&["resolve", &self.name(), "-n", &self.namespace.name], how].concat());
        assert_eq!(code, Some(0), "{how:?}: {told}");
    }

    /// A person decides a held migration for its source, which goes on alone.
    pub async fn source_is_preferred(&mut self) {
        self.resolve(&["--prefer", "source"]);
        self.migration = self.namespace.until_done(&self.name()).await;
        assert_outcome(&self.migration, Outcome::RolledBack);
        self.source_goes_on().await;
        self.namespace.assert_one_runs("n1");
    }

    /// Waits for the move's end: the copy goes on where the source stopped, it alone runs, and nothing is left.
    pub async fn migrates(&mut self) {
        self.migration = self.namespace.until_done(&self.name()).await;
        assert_outcome(&self.migration, Outcome::Migrated);
        let copy = self.namespace.follow(&replacement(&self.migration), "c").await;
        copy.beyond(self.source.last() + 5).await;
        assert_went_on(&self.source.lines(), &copy.lines(), &self.migration);
        self.namespace.assert_one_runs("n2");
        self.namespace.assert_no_leftovers(&self.migration).await;
    }

    /// Waits for a rollback that says why; the source goes on without a gap, it alone runs, and nothing is left.
    pub async fn rolls_back(&mut self, because: &str, patience: Duration) {
        self.migration = self.namespace.until_done(&self.name()).await;
        assert_outcome(&self.migration, Outcome::RolledBack);
        let message = status(&self.migration).message;
        assert!(message.contains(because), "{because:?} is not in {message:?}");
        self.source_goes_on().await;
        self.namespace.assert_one_runs("n1");
        self.namespace.assert_no_leftovers_within(patience, &self.migration).await;
    }

    /// Waits for a rollback that says why, of a source whose process was lost: its container is started anew, once.
    pub async fn begins_anew(&mut self, because: &str) {
        self.migration = self.namespace.until_done(&self.name()).await;
        assert_outcome(&self.migration, Outcome::RolledBack);
        let message = status(&self.migration).message;
        assert!(message.contains(because), "{because:?} is not in {message:?}");
        let restarted = |pod: Option<&Pod>| pod.is_some_and(|pod| container(pod, "c").restart_count >= 1 && container(pod, "c").ready);
        self.namespace.until_pod("c", "is started again", restarted).await;
        let anew = self.namespace.follow("c", "c").await;
        anew.beyond(5).await;
        assert_eq!(anew.lines()[0].number, 1);
        assert_contiguous(&anew.lines());
        self.namespace.assert_one_runs("n1");
        self.namespace.assert_no_leftovers_within(AFTER_SWEEP, &self.migration).await;
        // The memory as it was frozen stays on the disk, for a person.
        let kept = format!("/var/lib/kubelet/checkpoints/kept-{}-c.tar", self.migration.uid().unwrap());
        assert!(message.contains(&kept), "{kept:?} is not in {message:?}");
        lab::on_node("n1", &format!("rm {kept}"));
    }

    /// Of a pod that has ended, and whose place nothing takes: nothing of it runs, nothing of its migration is left on the nodes.
    #[track_caller]
    pub fn leaves_nothing(&self) {
        eventually(AFTER_SWEEP, || {
            let (running, left) = (self.namespace.running(), self.namespace.on_nodes(&self.migration, &[]));
            (!running.is_empty() || !left.is_empty()).then(|| format!("nothing runs and nothing is left; there are {running:?}\n{left}"))
        });
    }

    /// The source counts without a gap; read anew, since a fault may have ended the reading.
    pub async fn source_goes_on(&self) {
        let anew = self.namespace.follow("c", "c").await;
        anew.beyond(self.source.last()).await;
        anew.more(5).await;
        assert_contiguous(&anew.lines());
    }
}

/// Whether a migration is held for this reason.
pub fn is_held(migration: &Migration, reason: &str) -> bool {
    status(migration).held().is_some_and(|held| held.reason == reason)
}

impl Namespace {
    /// The containers of this namespace that execute, as the nodes' runtimes know them: `NODE ID`.
    pub fn running(&self) -> Vec<String> {
        NODES.into_iter().flat_map(|node| self.running_on(node)).collect()
    }

    /// The same of one node.
    pub fn running_on(&self, node: &str) -> Vec<String> {
        let ours = format!("labels.\"io.kubernetes.pod.namespace\"=={},labels.\"io.cri-containerd.kind\"==container", self.name);
        let script = format!(
            "exec 2>/dev/null; ids=$(ctr -n k8s.io containers ls -q '{ours}'); ctr -n k8s.io tasks ls | while read -r id _ state; do \
             case \" $(echo $ids) \" in *\" $id \"*) [ \"$state\" != RUNNING ] || echo \"$id\";; esac; done"
        );
        lab::on_node(node, &script).lines().map(|id| format!("{node} {id}")).collect()
    }

    /// Exactly one copy executes, on this node. The kubelet may still be ending the other, which is frozen or was never started.
    pub fn assert_one_runs(&self, node: &str) {
        eventually(Duration::from_secs(10), || {
            let running = self.running();
            let one = running.len() == 1 && running[0].starts_with(&format!("{node} "));
            (!one).then(|| format!("one container runs, on {node}; there are {running:?}"))
        });
    }
}

/// Powers a node off, and on again when dropped at the latest.
pub struct PoweredOff(Option<&'static str>);

impl PoweredOff {
    #[track_caller]
    pub fn node(node: &'static str) -> Self {
        lab::lab(&["power-off", node]);
        Self(Some(node))
    }

    /// Boots it, and waits until it is Ready.
    #[track_caller]
    pub fn on(mut self) {
        if let Some(node) = self.0.take() {
            lab::lab(&["power-on", node]);
        }
    }
}

impl Drop for PoweredOff {
    fn drop(&mut self) {
        if let Some(node) = self.0 {
            drop(lab::try_lab(&["power-on", node]));
        }
    }
}

/// Cuts a node's network, and heals it when dropped at the latest.
pub struct Cut(&'static str);

impl Cut {
    #[track_caller]
    pub fn node(node: &'static str) -> Self {
        lab::lab(&["cut", node]);
        Self(node)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        drop(lab::try_lab(&["heal", self.0]));
    }
}
