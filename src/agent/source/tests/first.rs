//! A source that goes before the release.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::api::{attestation::Restored, migration::ReplacementStatus};

impl Course {
    /// Past the point of no return; `without_gate`: the node has none.
    fn deleting(without_gate: bool) -> Self {
        let course = Self::voted();
        course.node.manager_writes(|status| {
            status.phase = Phase::SourceDeleting;
            status.source_first = Some(true);
            status.source.as_mut().unwrap().without_gate = without_gate;
        });
        course.node.state().trace.clear();
        course
    }

    fn kubelet_shows_the_deletion(&self) {
        self.node.state().pods[0].metadata.deletion_timestamp = Some(Time(second(1)));
    }

    fn kubelet_forgets(&self) {
        self.node.state().pods.clear();
    }

    /// Ended, with its archives.
    fn assert_ended(&self) {
        let said = self.said();
        assert!(said.ended.is_some() && said.thawed.is_none());
        assert_eq!(said.archived.map(|archived| (archived.paths.len(), archived.last)), Some((2, true)));
        assert_eq!((self.archives(), self.journals().all().unwrap().len()), (2, 1), "the archives are all that is left of the memory");
        assert_eq!(self.markers().fenced_by(POD).unwrap().as_deref(), Some(UID));
        assert!(!self.node.state().trace.iter().any(|deed| deed.starts_with("resume")), "never thawed");
    }

    fn decided(&self, verdict: Verdict) {
        self.node.manager_writes(|status| {
            (status.phase, status.verdict) = (Phase::Finishing, Some(verdict));
            status.fallback = (verdict == Verdict::Rollback).then(ReplacementStatus::default);
        });
    }

    fn copy_is_confirmed(&self, role: Role) {
        let restored = Some(Restored { at: at(1), containers: vec![] });
        self.node.other_attests(role, AttestationStatus { restored, confirmed: Some(At { at: at(1) }), ..Default::default() });
    }
}

#[tokio::test]
async fn it_is_killed_once_its_kubelet_shows_the_deletion_and_its_archives_stay() {
    let course = Course::deleting(false);
    assert_eq!(course.look().unwrap(), Some(SOON));
    course.assert_frozen();
    course.kubelet_shows_the_deletion();
    assert_eq!(course.look().unwrap(), Some(SOON), "looked at again until the kubelet has forgotten it");
    assert!(course.all_in(TaskState::Stopped) && course.said().ended.is_none());
    course.kubelet_forgets();
    course.look().unwrap();
    course.assert_ended();
    assert_eq!(course.node.state().trace, ["kill one", "kill two", "attest ended"]);
}

#[tokio::test]
async fn without_a_gate_it_is_over_only_when_the_runtime_has_no_container_of_it() {
    let course = Course::deleting(true);
    course.kubelet_shows_the_deletion();
    course.look().unwrap();
    course.kubelet_forgets();
    assert_eq!(course.look().unwrap(), Some(SOON));
    assert!(course.said().ended.is_none(), "a container that is made may still be started");
    course.node.state().tasks.clear();
    course.look().unwrap();
    course.assert_ended();
}

#[tokio::test]
async fn without_a_gate_a_checkpoint_is_the_last_only_where_the_voted_containers_were_seen_paused_to_the_end() {
    type Meanwhile = fn(&Course);
    let meanwhiles: [(&str, Meanwhile); 4] = [
        ("it has ended, and who knows what ran in its place", |course| course.node.state().tasks[0].state = TaskState::Stopped),
        ("its kubelet has started it again", |course| {
            let mut state = course.node.state();
            state.tasks[0].state = TaskState::Stopped;
            let again = Task { id: "again".into(), state: TaskState::Running, ..state.tasks[0].clone() };
            state.tasks.push(again);
        }),
        ("somebody has thawed it for a while", |course| *course.node.state().cpu_nanos.entry("one".into()).or_default() += 1),
        ("nobody has looked before it was gone", |course| course.node.state().tasks.clear()),
    ];
    for (why, meanwhile) in meanwhiles {
        for without_gate in [true, false] {
            let course = Course::deleting(without_gate);
            meanwhile(&course);
            course.kubelet_shows_the_deletion();
            course.look().unwrap();
            course.kubelet_forgets();
            course.node.state().tasks.clear();
            course.look().unwrap();
            let said = course.said();
            assert_eq!(said.ended.and(said.archived).map(|archived| archived.last), Some(!without_gate), "{why}; the fence keeps it where a gate is");
        }
    }
    // A death after the look and before the word.
    let course = Course::deleting(true);
    course.kubelet_shows_the_deletion();
    course.look().unwrap();
    assert!(course.journals().all().unwrap()[0].unmoved);
    course.kubelet_forgets();
    course.node.state().tasks.clear();
    course.look().unwrap();
    course.assert_ended();
}

#[tokio::test]
async fn a_container_that_the_kubelet_forgot_is_ended_all_the_same() {
    let course = Course::deleting(false);
    course.kubelet_forgets();
    course.look().unwrap();
    assert!(course.all_in(TaskState::Stopped) && course.said().ended.is_none());
    course.look().unwrap();
    course.assert_ended();
}

#[tokio::test]
async fn its_archives_are_collected_when_a_copy_is_confirmed_and_not_before() {
    for (verdict, copy) in [(Verdict::Commit, Role::Destination), (Verdict::Rollback, Role::Fallback)] {
        let course = Course::deleting(false);
        course.node.add_attestation(Role::Fallback, "n1", "fallback");
        course.kubelet_forgets();
        course.look().unwrap();
        course.look().unwrap();
        course.decided(verdict);
        course.look().unwrap();
        course.assert_ended();
        course.copy_is_confirmed(copy);
        assert_eq!(course.look().unwrap(), Some(SOON));
        assert_eq!(course.archives(), 0);
        assert!(course.said().cleaned.is_none(), "the fence stays while the runtime has anything of the pod");
        course.node.state().tasks.clear();
        course.look().unwrap();
        assert!(course.said().cleaned.is_some());
        assert_eq!((course.markers().fenced_by(POD).unwrap(), course.journals().all().unwrap()), (None, vec![]));
    }
}

#[tokio::test]
async fn the_archives_are_synced_before_the_vote_where_they_will_stand_alone() {
    let course = Course::new();
    course.node.manager_writes(|status| status.source_first = Some(true));
    course.go_on();
    assert!(course.said().vote.is_some());
    let trace = course.node.state().trace.clone();
    let place = |deed: &str| trace.iter().position(|done| done == deed).unwrap_or_else(|| panic!("{deed} in {trace:?}"));
    assert!(place("sync app") < place("attest vote") && place("sync side") < place("attest vote"));

    let course = Course::new();
    course.node.manager_writes(|status| status.source_first = Some(true));
    course.node.fail("sync", Failure::Permanent);
    course.go_on();
    course.assert_thawed();
}

#[tokio::test]
async fn a_death_at_any_call_of_the_end_ends_with_the_archives() {
    for after_the_deed in [false, true] {
        for call in 0.. {
            let course = Course::deleting(false);
            course.kubelet_shows_the_deletion();
            course.node.die_at(call, after_the_deed);
            let _ = settled(course.agent().reconcile("d", "m"));
            course.kubelet_forgets();
            let _ = settled(course.agent().reconcile("d", "m"));
            let survived = course.node.survived();
            for _ in 0..2 {
                course.look().unwrap();
            }
            course.assert_ended();
            if survived {
                assert!(call > 8, "the course has that many calls: {call}");
                break;
            }
        }
    }
}
