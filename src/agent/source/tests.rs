//! The source's course with every port faked: its steps, its failures, and a death at every single call.

mod first;
mod inside;
mod kept;
mod post_copy;
mod pre_copy;
mod runtime;
mod watchdog;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    api::{Phase, attestation::At},
    ports::{Task, TaskState},
    testing::{FakeNode, at, second, settled},
};

const UID: &str = "5f1c22aa-0000-4000-8000-000000000001";
const OTHER: &str = "5f1c22aa-0000-4000-8000-000000000002";
const POD: &str = "0f1c22aa-0000-4000-8000-000000000000";
const BUDGET: i64 = 60;

/// A pod of two containers on node n1, about to be frozen.
struct Course {
    node: FakeNode,
    disk: TempDir,
}

impl Course {
    fn new() -> Self {
        let container = |name: &str, id: &str| json!({"name": name, "containerID": id, "image": format!("r/i@sha256:{}", "b".repeat(64))});
        let migration = serde_json::from_value(json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "m", "namespace": "d", "uid": UID},
            "spec": {"podName": "p", "freezeBudgetSeconds": BUDGET},
            "status": {
                "phase": "Freezing",
                "source": {"name": "p", "uid": POD, "nodeName": "n1", "containers": [container("app", "one"), container("side", "two")]},
                "destination": {"nodeName": "n2", "repository": format!("drover/{}", "0".repeat(32)), "pushAddress": "10.0.0.2:5786"}
            }
        }));
        let node = FakeNode::new(migration.unwrap());
        let disk = tempfile::tempdir().unwrap();
        std::fs::create_dir(disk.path().join("checkpoints")).unwrap();
        {
            let mut state = node.state();
            state.checkpoints = disk.path().join("checkpoints");
            let task =
                |name: &str, id: &str| Task { container: name.into(), id: id.into(), state: TaskState::Running, restored_from: None, spoilt: None };
            state.tasks = vec![task("app", "one"), task("side", "two")];
            state.pods = vec![serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": POD}})).unwrap()];
        }
        node.add_attestation(Role::Source, "n1", POD);
        node.add_attestation(Role::Destination, "n2", "replacement");
        Self { node, disk }
    }

    /// A new process of the agent on the same disk.
    fn agent(&self) -> SourceAgent {
        let node = || Arc::new(self.node.clone());
        SourceAgent::new(SourceParts {
            node: "n1".into(),
            runtime: node(),
            kubelet: node(),
            dump: node(),
            inside: node(),
            pusher: node(),
            api: node(),
            clock: node(),
            markers: self.markers(),
            journals: self.journals(),
            pre_copies: true,
            checkpoint_folder: self.disk.path().join("checkpoints"),
        })
    }

    fn markers(&self) -> Markers {
        Markers::new(self.disk.path().join("gate"))
    }

    fn journals(&self) -> Journals {
        Journals::new(self.disk.path().join("journals"))
    }

    fn look(&self) -> PortResult<Option<Duration>> {
        settled(self.agent().reconcile("d", "m")).expect("no call hangs")
    }

    /// The manager's next phase, where what it waits for was attested.
    fn manager(&self) {
        let said = self.said();
        self.node.manager_writes(|status| {
            status.phase = match status.phase {
                Phase::Freezing if said.frozen.is_some() => Phase::Checkpointing,
                Phase::Checkpointing if said.checkpointed.is_some() => Phase::Transferring,
                Phase::Transferring if said.vote.is_some() => Phase::AwaitingReadiness,
                phase => phase,
            };
        });
    }

    /// Up to the vote, or to wherever it ends before it.
    fn go_on(&self) {
        for _ in 0..4 {
            self.look().unwrap();
            self.manager();
        }
    }

    /// Frozen, not yet checkpointed.
    fn frozen() -> Self {
        let course = Self::new();
        course.freeze();
        course
    }

    /// As where the agent is restarted before it begins the checkpoint.
    fn freeze(&self) {
        for first in ["checkpoint", "prepare"] {
            self.node.fail(first, Failure::Conflict);
        }
        assert!(self.look().is_err() && self.said().frozen.is_some());
        for first in ["checkpoint", "prepare"] {
            self.node.mend(first);
        }
    }

    fn voted() -> Self {
        let course = Self::new();
        course.go_on();
        assert!(course.said().vote.is_some());
        course
    }

    fn said(&self) -> AttestationStatus {
        self.node.attested(Role::Source)
    }

    fn all_in(&self, state: TaskState) -> bool {
        self.node.state().tasks.iter().all(|task| task.state == state)
    }

    fn archives(&self) -> usize {
        std::fs::read_dir(self.disk.path().join("checkpoints")).unwrap().count()
    }

    /// The source goes on as if nothing had happened, and no trace is left.
    fn assert_thawed(&self) {
        assert!(self.all_in(TaskState::Running));
        assert!(self.said().thawed.is_some());
        assert_eq!((self.markers().fenced_by(POD).unwrap(), self.archives()), (None, 0));
        assert_eq!(self.journals().all().unwrap(), vec![]);
    }

    fn assert_frozen(&self) {
        assert!(self.all_in(TaskState::Paused));
        assert!(self.said().thawed.is_none());
        assert_eq!(self.markers().fenced_by(POD).unwrap().as_deref(), Some(UID));
    }
}

#[tokio::test]
async fn from_the_freeze_to_the_vote_and_back_on_rollback() {
    let course = Course::voted();
    let expected = [
        "pause one",
        "pause two",
        "attest frozen",
        "checkpoint app",
        "checkpoint side",
        "attest checkpointed",
        "push app",
        "push side",
        "attest pushed",
        "attest vote",
    ];
    assert_eq!(course.node.state().trace, expected);
    course.assert_frozen();
    let vote = course.said().vote.unwrap();
    assert_eq!((vote.containers.len(), vote.images.len()), (2, 2));

    course.node.state().trace.clear();
    course.node.manager_writes(|status| status.verdict = Some(Verdict::Rollback));
    course.look().unwrap();
    assert_eq!(course.node.state().trace, ["resume one", "resume two", "attest thawed"]);
    course.assert_thawed();
}

#[tokio::test]
async fn a_failed_step_before_the_vote_thaws() {
    for call in ["pause", "checkpoint", "cpu_nanos", "push"] {
        let course = Course::new();
        course.node.fail(call, Failure::Permanent);
        course.go_on();
        let reason = course.said().abort.map(|abort| abort.message).unwrap_or_default();
        assert!(reason.contains(&format!("{call} was made to fail")), "{call}: {reason}");
        assert!(course.said().vote.is_none(), "{call}");
        course.assert_thawed();
    }
}

#[tokio::test]
async fn a_failed_step_thaws_also_while_nothing_can_be_said() {
    let course = Course::frozen();
    course.manager();
    course.node.fail("checkpoint", Failure::Permanent);
    course.node.fail("attest", Failure::Transient);
    assert!(course.look().is_err());
    assert!(course.all_in(TaskState::Running), "it need not wait for the API server");
    course.node.mend("attest");
    course.go_on();
    assert!(course.said().abort.is_some_and(|abort| abort.message.contains("checkpoint was made to fail")));
    course.assert_thawed();
}

/// A new process goes on after a death at each call in turn, before and after its deed: it ends voted and frozen, and `holds` of what it left.
fn survives_a_death_at_any_call_before_the_vote(begin: fn() -> Course, holds: impl Fn(&Course, &str)) {
    for after_the_deed in [false, true] {
        for call in 0.. {
            let course = begin();
            course.node.die_at(call, after_the_deed);
            for _ in 0..4 {
                if settled(course.agent().reconcile("d", "m")).is_none_or(|looked| looked.is_err()) {
                    // The next process.
                    course.look().unwrap();
                }
                course.manager();
            }
            let survived = course.node.survived();
            let when = format!("call {call}, after the deed: {after_the_deed}");
            assert!(course.said().vote.is_some(), "{when}: {:?}", course.node.state().trace);
            course.assert_frozen();
            holds(&course, &when);
            if survived {
                assert!(call > 20, "the course has that many calls: {call}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_death_at_any_call_before_the_vote_changes_nothing_in_the_end() {
    survives_a_death_at_any_call_before_the_vote(Course::new, |course, when| {
        assert_eq!(course.archives(), 2, "the archives of a dump that nobody heard of are gone: {when}");
    });
}

#[tokio::test]
async fn who_has_executed_since_the_dump_gets_no_vote() {
    let course = Course::new();
    course.node.after("push", |state| {
        state.cpu_nanos.insert("two".into(), 1);
    });
    course.go_on();
    assert!(course.said().abort.is_some_and(|abort| abort.message.contains("container side has used CPU time since its checkpoint")));
    course.assert_thawed();

    let course = Course::new();
    course.node.after("push", |state| state.tasks[0].state = TaskState::Running);
    course.go_on();
    assert!(course.said().abort.is_some_and(|abort| abort.message.contains("not all paused any more")));
    course.assert_thawed();
}

#[tokio::test]
async fn a_container_that_starts_during_the_freeze_ends_it() {
    let course = Course::new();
    course.node.after("pause", |state| {
        let newcomer = Task { id: "three".into(), state: TaskState::Running, ..state.tasks[0].clone() };
        state.tasks.push(newcomer);
    });
    course.go_on();
    assert!(course.said().abort.is_some_and(|abort| abort.message.contains("started while it was being frozen")));
    course.assert_thawed();
}

#[tokio::test]
async fn who_has_voted_thaws_on_rollback_alone() {
    let course = Course::voted();
    course.node.state().now = second(10_000);
    settled(course.agent().watch_budgets()).unwrap().unwrap();
    course.look().unwrap();
    course.assert_frozen();

    course.node.state().pods[0].metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(second(1)));
    course.look().unwrap();
    course.assert_frozen();

    let migration = course.node.state().migration.take();
    settled(course.agent().sweep()).unwrap().unwrap();
    course.assert_frozen();

    course.node.state().migration = migration;
    // Not even a kubelet that does not answer keeps a rollback from thawing.
    course.node.fail("pods", Failure::Transient);
    course.node.manager_writes(|status| status.verdict = Some(Verdict::Rollback));
    course.look().unwrap();
    course.assert_thawed();
}

#[tokio::test]
async fn an_unvoted_source_outlives_its_migration() {
    let course = Course::frozen();
    course.node.state().migration = None;
    settled(course.agent().sweep()).unwrap().unwrap();
    assert!(course.all_in(TaskState::Running));
    assert_eq!((course.markers().fenced_by(POD).unwrap(), course.journals().all().unwrap()), (None, vec![]));
}

#[tokio::test]
async fn what_an_ended_migration_left_thaws_no_later_one() {
    // The agent died between its last word and the end of its journal; then another migration froze the same containers.
    let course = Course::voted();
    let left = course.journals().all().unwrap().remove(0);
    course.node.manager_writes(|status| status.verdict = Some(Verdict::Rollback));
    course.look().unwrap();
    course.journals().save(&Journal { vote: None, ..left }).unwrap();
    course.markers().fence(POD, OTHER).unwrap();
    for task in &mut course.node.state().tasks {
        task.state = TaskState::Paused;
    }
    let migration = course.node.state().migration.take();
    settled(course.agent().sweep()).unwrap().unwrap();
    assert!(course.all_in(TaskState::Paused), "R11: the freeze is the other migration's");
    assert_eq!(course.markers().fenced_by(POD).unwrap().as_deref(), Some(OTHER));

    course.journals().save(&Journal { migration_uid: UID.into(), ..Journal::default() }).unwrap();
    course.node.state().migration = migration;
    course.look().unwrap();
    assert_eq!(course.journals().all().unwrap(), vec![], "a look at an ended migration clears up after it");
}

#[tokio::test]
async fn a_confirmed_source_ends_only_when_its_kubelet_shows_the_deletion() {
    let course = Course::voted();
    course.node.manager_writes(|status| (status.phase, status.verdict) = (Phase::Finishing, Some(Verdict::Commit)));
    course.look().unwrap();
    course.assert_frozen();
    course.node.other_attests(Role::Destination, AttestationStatus { confirmed: Some(At { at: at(1) }), ..Default::default() });
    course.look().unwrap();
    course.assert_frozen();

    course.node.state().pods[0].metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(second(1)));
    assert_eq!(course.look().unwrap(), Some(SOON), "looked at again until the kubelet has forgotten it");
    assert!(course.all_in(TaskState::Stopped) && course.said().ended.is_none());

    course.node.state().pods.clear();
    course.look().unwrap();
    assert!(course.said().ended.is_some() && course.said().thawed.is_none());
    assert!(!course.node.state().trace.iter().any(|deed| deed.starts_with("resume")), "never thawed");
    assert_eq!((course.markers().fenced_by(POD).unwrap(), course.archives(), course.journals().all().unwrap()), (None, 0, vec![]));
}
