//! The destination's course with every port faked.

mod doubt;
mod fallback;
mod init_containers;
mod lazy;
mod mend;

use serde_json::json;

use super::*;
use crate::{
    api::{
        Phase, Verdict,
        attestation::{ContainerId, Vote},
        migration::{ContainerCheckpoint, PhaseTiming},
    },
    markers::Claim,
    ports::{Task, TaskState},
    testing::{FakeNode, at, second, settled},
};

const POD: &str = "0f1c22aa-0000-4000-8000-000000000000";

/// What takes one sign of a proof away.
type Spoil = fn(&Course);

struct Course {
    node: FakeNode,
    /// The gate's markers lie here.
    disk: tempfile::TempDir,
    /// One process: its patience is its own.
    agent: DestinationAgent,
}

mod runtime_lane;

fn repository() -> String {
    format!("drover/{}", "0".repeat(32))
}

fn base() -> String {
    format!("r/i@sha256:{}", "b".repeat(64))
}

fn image(digest: char) -> PushedImage {
    PushedImage {
        container: "app".into(),
        digest: format!("sha256:{}", digest.to_string().repeat(64)),
        bytes: 7,
        memory_bytes: None,
        pre_copied_bytes: None,
    }
}

fn restored_task(id: &str) -> Task {
    let restored_from = Some(keys::checkpoint_image(&repository(), "app"));
    Task { container: "app".into(), id: id.into(), state: TaskState::Running, restored_from, spoilt: None }
}

impl Course {
    fn new() -> Self {
        let migration = serde_json::from_value(json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "Migration",
            "metadata": {"name": "m", "namespace": "d", "uid": "5f1c22aa-0000-4000-8000-000000000001"},
            "spec": {"podName": "p"},
            "status": {
                "phase": "Preparing",
                "source": {"name": "p", "uid": "source", "nodeName": "n1", "containers": [{"name": "app", "containerID": "one", "image": base()}]},
                "destination": {"nodeName": "n2", "repository": repository()}
            }
        }));
        let node = FakeNode::new(migration.unwrap());
        node.add_attestation(Role::Source, "n1", "source");
        node.add_attestation(Role::Destination, "n2", POD);
        node.state().pods = vec![serde_json::from_value(json!({"metadata": {"name": "p-1", "namespace": "d", "uid": POD}})).unwrap()];
        let disk = tempfile::tempdir().unwrap();
        let port = || Arc::new(node.clone());
        let agent = DestinationAgent::new(DestinationParts {
            node: "n2".into(),
            runtime: port(),
            images: port(),
            kubelet: port(),
            inside: port(),
            layout: port(),
            registry: port(),
            pusher: port(),
            journals: Journals::new(disk.path().join("journals")),
            verified: crate::agent::notified::Verified::nobody(),
            api: port(),
            clock: port(),
            markers: Markers::new(disk.path()),
            host_root: disk.path().join("host"),
            push_address: "10.0.0.2:5786".into(),
            boot: crate::markers::evidence::this_boot(),
            logs: disk.path().join("logs"),
        });
        Self { node, disk, agent }
    }

    fn markers(&self) -> Markers {
        Markers::new(self.disk.path())
    }

    fn claim(&self) -> Option<Claim> {
        self.markers().claim(POD, "app").unwrap()
    }

    /// What the gate does for the one restore; CRIU's log says this.
    fn take(&self, log: &str) {
        let bundle = self.disk.path().join("host/bundle");
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(bundle.join("restore.log"), log).unwrap();
        crate::markers::evidence::note(&self.markers().evidence_path(POD, "app").unwrap(), "new", Some(&bundle)).unwrap();
        assert!(self.markers().advance(POD, "app", Claim::Waiting, Claim::Taken).unwrap());
    }

    fn asked_to_revoke(&self) {
        self.node.manager_writes(|status| status.revocation = Some(Remark { at: at(9), message: "doubt".into() }));
    }

    /// In a phase after the vote, with the checkpoint in the registry.
    fn released(phase: Phase) -> Self {
        let course = Self::new();
        course.node.state().registry.insert(format!("{}:app", repository()), image('a'));
        let vote = Some(Vote { at: at(1), containers: vec![], images: vec![image('a')] });
        course.node.other_attests(Role::Source, AttestationStatus { vote, ..Default::default() });
        course.node.manager_writes(|status| {
            let PushedImage { container: name, digest, bytes, memory_bytes, pre_copied_bytes } = image('a');
            status.containers = vec![ContainerCheckpoint {
                image: keys::checkpoint_image(&repository(), &name),
                name,
                digest,
                bytes,
                memory_bytes,
                pre_copied_bytes,
            }];
            status.phase = phase;
        });
        course.markers().arm(POD, "app", "5f1c22aa-0000-4000-8000-000000000001").unwrap();
        course
    }

    /// The runtime has restored the container.
    fn restored() -> Self {
        let course = Self::released(Phase::Restoring);
        course.take("Restore finished successfully. Tasks resumed.");
        course.node.state().tasks = vec![restored_task("new")];
        course
    }

    /// Attested as restored, and committed.
    fn committed() -> Self {
        let course = Self::restored();
        course.look().unwrap();
        course.node.manager_writes(|status| (status.phase, status.verdict) = (Phase::Finishing, Some(Verdict::Commit)));
        course.node.state().trace.clear();
        course
    }

    fn look(&self) -> PortResult<Option<Duration>> {
        settled(self.agent.reconcile("d", "m")).expect("no call hangs, and no step is taken for ever")
    }

    fn said(&self) -> AttestationStatus {
        self.node.attested(Role::Destination)
    }

    fn failure(&self) -> String {
        self.said().failure.map(|failure| failure.message).unwrap_or_default()
    }

    fn trace(&self) -> Vec<String> {
        self.node.state().trace.clone()
    }
}

#[tokio::test]
async fn base_images_are_there_before_anything_is_frozen() {
    let course = Course::new();
    course.look().unwrap();
    assert_eq!(course.trace(), [format!("ensure {}", base()), "adopt_base".into(), "attest prepared".into()]);
    assert_eq!(course.said().prepared.map(|p| p.push_address).as_deref(), Some("10.0.0.2:5786"));
    course.look().unwrap();
    assert_eq!(course.trace().len(), 3, "once");
}

#[tokio::test]
async fn a_base_image_that_cannot_be_pulled_ends_the_migration() {
    let course = Course::new();
    course.node.fail("ensure", Failure::Permanent);
    course.look().unwrap();
    assert!(course.failure().contains("failed to pull the base image"), "{}", course.failure());

    let course = Course::new();
    course.node.fail("ensure", Failure::Transient);
    assert!(course.look().is_err());
    course.node.state().now = second(100 + 30);
    assert!(course.look().is_err(), "what may pass has its time");
    course.node.state().now = second(100 + 31);
    course.look().unwrap();
    assert!(course.failure().contains("ensure was made to fail"));
}

#[tokio::test]
async fn only_the_images_that_were_voted_for_are_ready() {
    let course = Course::released(Phase::AwaitingReadiness);
    course.look().unwrap();
    assert_eq!(course.said().ready.map(|ready| ready.images), Some(vec![image('a')]));
}

#[tokio::test]
async fn claims_that_a_replaced_disk_has_lost_stand_again_before_it_is_ready() {
    let course = Course::released(Phase::AwaitingReadiness);
    course.markers().disarm(POD).unwrap();
    course.look().unwrap();
    assert!(course.said().ready.is_some());
    assert_eq!(course.claim(), Some(Claim::Waiting));
}

#[tokio::test]
async fn another_digest_is_a_failure_once_patience_is_over() {
    let course = Course::released(Phase::AwaitingReadiness);
    course.node.state().registry.insert(format!("{}:app", repository()), image('f'));
    assert!(course.look().is_err());
    assert_eq!(course.failure(), "");
    course.node.state().now = second(100 + 31);
    // It ends, instead of asking the registry again and again until the manager has written its verdict.
    course.look().unwrap();
    assert!(course.failure().contains("the source voted for"), "{}", course.failure());
    assert!(course.said().ready.is_none());
}

#[tokio::test]
async fn restored_is_said_only_when_the_checkpoint_is_out_of_reach() {
    let course = Course::released(Phase::Restoring);
    assert_eq!(course.look().unwrap(), Some(SOON), "nothing runs yet");
    let course = Course::restored();
    course.look().unwrap();
    let checkpoint = keys::checkpoint_image(&repository(), "app");
    assert_eq!(course.trace(), ["repoint app".into(), format!("remove {checkpoint}"), "own_stdio new".into(), "attest restored".into()]);
    assert_eq!(course.said().restored.map(|r| r.containers), Some(vec![ContainerId { name: "app".into(), container_id: "new".into() }]));

    for call in ["repoint", "remove"] {
        let course = Course::restored();
        course.node.fail(call, Failure::Transient);
        assert!(course.look().is_err());
        assert!(course.said().restored.is_none(), "{call}");
    }
}

#[tokio::test]
async fn what_does_not_come_about_is_asked_for_less_often() {
    let course = Course::released(Phase::Restoring);
    let began = vec![PhaseTiming { phase: Phase::Restoring, started_at: at(100), millis: None }];
    course.node.manager_writes(|status| status.phases = began);
    assert_eq!(course.look().unwrap(), Some(SOON));
    course.node.state().now = second(161);
    assert_eq!(course.look().unwrap(), Some(SELDOM), "a held migration may stay so for days");
}

#[tokio::test]
async fn a_restart_is_never_said_to_be_restored() {
    // Between the restore and the re-pointing of the tag a crash still rewinds to the checkpoint.
    let course = Course::restored();
    course.node.after("repoint", |state| state.tasks = vec![restored_task("newer")]);
    assert!(course.look().is_err());
    assert!(course.said().restored.is_none());

    let course = Course::released(Phase::Restoring);
    course.node.state().tasks = vec![restored_task("new")];
    course.node.state().pods[0].status = serde_json::from_value(json!({"containerStatuses": [
        {"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 1}]}))
    .unwrap();
    course.look().unwrap();
    assert!(course.said().restored.is_none() && course.failure().contains("was restarted 1 times"), "{}", course.failure());

    let course = Course::released(Phase::Restoring);
    course.node.state().tasks = vec![Task { restored_from: None, ..restored_task("new") }];
    course.look().unwrap();
    assert!(course.said().restored.is_none() && course.failure().contains("was not restored from a checkpoint"));
}

#[tokio::test]
async fn the_copy_is_confirmed_and_only_then_cleaned_up() {
    let course = Course::committed();
    course.look().unwrap();
    assert_eq!(course.trace(), ["attest confirmed", "purge_images 1", "attest cleaned"]);
    assert_eq!(course.claim(), None, "an ordinary pod has no claims");
    let kept = std::fs::read_to_string(course.disk.path().join("logs").join(POD).join("app.restore.log")).unwrap();
    assert!(!kept.is_empty(), "what CRIU has said of the restore");
}

#[tokio::test]
async fn a_copy_that_is_ending_is_not_confirmed() {
    type End = fn(&FakeNode);
    let ending: [(&str, End); 4] = [
        ("is being deleted", |node| {
            node.state().pods[0].metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(second(1)));
        }),
        ("does not list the replacement", |node| node.state().pods.clear()),
        ("has ended since it was attested", |node| node.state().tasks[0].state = TaskState::Stopped),
        ("has ended since it was attested", |node| node.state().tasks = vec![restored_task("newer")]),
    ];
    for (expected, end) in ending {
        let course = Course::committed();
        end(&course.node);
        assert!(course.look().is_err());
        assert!(course.failure().contains(expected), "{expected}: {}", course.failure());
        assert_eq!(course.trace(), ["attest failure"], "nothing is confirmed, nothing is cleaned up");
    }
}

#[tokio::test]
async fn a_rollback_leaves_nothing_of_the_checkpoint() {
    let course = Course::released(Phase::Finishing);
    course.node.manager_writes(|status| status.verdict = Some(Verdict::Rollback));
    assert_eq!(course.look().unwrap(), Some(SOON), "the kubelet still lists the replacement");
    assert_eq!(course.claim(), Some(Claim::Revoked), "which can never start");
    course.node.state().pods.clear();
    course.node.state().trace.clear();
    course.look().unwrap();
    assert_eq!(course.claim(), None);
    assert_eq!(
        course.trace(),
        [format!("remove {}", keys::checkpoint_image(&repository(), "app")), "purge_repository".into(), "attest cleaned".into()]
    );
    assert!(course.node.state().registry.is_empty());
}

#[tokio::test]
async fn the_sweep_spares_what_a_pod_needs() {
    let course = Course::released(Phase::Done);
    course.node.state().pods[0].spec =
        serde_json::from_value(json!({"containers": [{"name": "app", "image": keys::checkpoint_image(&repository(), "app")}]})).unwrap();
    let image = keys::checkpoint_image(&repository(), "app");
    course.node.state().checkpoint_images = vec![image.clone()];
    settled(course.agent.sweep()).unwrap().unwrap();
    assert_eq!(course.trace(), Vec::<String>::new());
    course.node.state().pods.clear();
    settled(course.agent.sweep()).unwrap().unwrap();
    assert_eq!(course.trace(), [format!("remove {image}").as_str(), "purge_repository"], "a pulled checkpoint holds the memory too");
}

#[tokio::test]
async fn a_waiting_claim_is_revoked_when_there_is_doubt() {
    let course = Course::released(Phase::Restoring);
    course.asked_to_revoke();
    course.look().unwrap();
    assert_eq!(course.claim(), Some(Claim::Revoked));
    assert_eq!(course.said().never_started.map(|n| n.containers[0].state.clone()).as_deref(), Some("revoked"));
}

#[tokio::test]
async fn a_refused_restore_is_proved_by_its_log_the_runtime_and_the_kubelet() {
    let refused = "(00.1) Error (criu/mount.c:1): mnt: No mapping for 7\n(00.2) Error (criu/cr-restore.c:2): Restoring FAILED.\n";
    let told = json!({"containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 128, "reason": "StartError", "message": "OCI runtime restore failed: criu failed"}}}]});
    let scene = || {
        let course = Course::released(Phase::Restoring);
        course.take(refused);
        course.asked_to_revoke();
        course.node.state().pods[0].status = serde_json::from_value(told.clone()).unwrap();
        course.node.state().emptied.insert("new".into());
        course
    };
    let course = scene();
    course.look().unwrap();
    assert_eq!(course.claim(), Some(Claim::Failed));
    let closed = course.said().never_started.unwrap().containers;
    assert_eq!((closed[0].state.as_str(), closed[0].proof.as_str()), ("failed", "Error (criu/mount.c:1): mnt: No mapping for 7"));

    // Each missing sign means unknown, and unknown means that nothing is closed.
    let without: [(&str, Spoil); 5] = [
        ("a living task", |course| course.node.state().tasks = vec![Task { state: TaskState::Created, ..restored_task("again") }]),
        ("a process in its cgroup", |course| course.node.state().emptied.clear()),
        ("no word of the kubelet's", |course| course.node.state().pods[0].status = None),
        ("a log that breaks off", |course| std::fs::write(course.disk.path().join("host/bundle/restore.log"), "(00.1) Restoring\n").unwrap()),
        ("a log past the resume point", |course| {
            let log = "Error (x): once\nRestore finished successfully. Tasks resumed.\n";
            std::fs::write(course.disk.path().join("host/bundle/restore.log"), log).unwrap();
        }),
    ];
    for (what, spoil) in without {
        let course = scene();
        spoil(&course);
        let _ = course.look();
        assert_eq!((course.claim(), course.said().never_started), (Some(Claim::Taken), None), "{what}");
    }
}

#[tokio::test]
async fn what_runs_without_the_gates_word_is_not_said_to_be_restored() {
    let course = Course::released(Phase::Restoring);
    course.node.state().tasks = vec![restored_task("new")];
    course.look().unwrap();
    assert!(course.said().restored.is_none() && course.failure().contains("let through by the gate"), "{}", course.failure());
}
