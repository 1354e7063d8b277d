//! The runtime lane: the checkpoint is the runtime's own, not the kubelet's archive.

use super::{kept::kept_names, *};
use crate::api::migration::Lane;

impl Course {
    /// Of a migration in the runtime lane.
    fn by_runtime() -> Self {
        let course = Self::new();
        course.node.manager_writes(|status| status.lane = Some(Lane::Runtime));
        course
    }

    fn voted_by_runtime() -> Self {
        let course = Self::by_runtime();
        course.go_on();
        assert!(course.said().vote.is_some());
        course
    }

    fn roll_back(&self) {
        self.node.manager_writes(|status| (status.verdict, status.phase) = (Some(Verdict::Rollback), Phase::Finishing));
    }

    fn dumps(&self) -> std::path::PathBuf {
        self.disk.path().join("checkpoints").join(UID)
    }

    fn deeds(&self, of: &str) -> Vec<String> {
        self.node.state().trace.iter().filter(|deed| deed.starts_with(of)).cloned().collect()
    }

    fn end_containers(&self) {
        for task in &mut self.node.state().tasks {
            task.state = TaskState::Stopped;
        }
    }
}

fn both_kept() -> [String; 2] {
    ["app", "side"].map(|container| format!("kept-{UID}-{container}.tar"))
}

#[tokio::test]
async fn the_runtime_dumps_and_a_rollback_discards_what_it_has_dumped() {
    let course = Course::voted_by_runtime();
    let expected = [
        "pause one",
        "pause two",
        "attest frozen",
        "dump app",
        "send ahead app",
        "dump side",
        "send ahead side",
        "attest checkpointed",
        "push app",
        "push side",
        "attest pushed",
        "attest vote",
    ];
    assert_eq!(course.node.state().trace, expected);
    course.assert_frozen();

    course.node.state().trace.clear();
    course.roll_back();
    course.look().unwrap();
    assert_eq!(course.node.state().trace, ["resume one", "resume two", "discard dump", "attest thawed"]);
    assert!(course.said().kept.is_none());
    course.assert_thawed();
}

/// Its fallback restores from the kubelet's archive, in whichever lane the copy was to be restored (R14).
#[tokio::test]
async fn the_kubelet_dumps_a_source_that_goes_first() {
    let course = Course::by_runtime();
    course.node.manager_writes(|status| status.source_first = Some(true));
    course.go_on();
    assert!(course.said().vote.is_some());
    assert_eq!(course.deeds("checkpoint"), ["checkpoint app", "checkpoint side"]);
    assert!(course.deeds("dump").is_empty());
    assert_eq!(course.deeds("sync").len(), 2, "they stand for it");
}

#[tokio::test]
async fn memory_that_cannot_be_sent_while_it_is_written_is_pushed_with_the_rest() {
    let course = Course::by_runtime();
    course.node.fail("send_ahead", Failure::Permanent);
    course.go_on();
    assert_eq!(course.deeds("push"), ["push app", "push side"]);
    assert!(course.said().vote.is_some());
}

#[tokio::test]
async fn a_failed_step_thaws_and_leaves_no_dump() {
    for call in ["prepare", "dump", "cpu_nanos", "push"] {
        let course = Course::by_runtime();
        course.node.fail(call, Failure::Permanent);
        course.go_on();
        let reason = course.said().abort.map(|abort| abort.message).unwrap_or_default();
        assert!(reason.contains(&format!("{call} was made to fail")), "{call}: {reason}");
        assert!(course.said().vote.is_none(), "{call}");
        course.assert_thawed();
    }
}

#[tokio::test]
async fn a_death_at_any_call_before_the_vote_leaves_both_dumps() {
    survives_a_death_at_any_call_before_the_vote(Course::by_runtime, |course, when| {
        assert_eq!(std::fs::read_dir(course.dumps()).unwrap().count(), 2, "{when}");
    });
}

#[tokio::test]
async fn a_dump_is_kept_and_named_where_its_memory_lives_no_more() {
    let course = Course::voted_by_runtime();
    course.end_containers();
    course.roll_back();
    course.look().unwrap();
    assert_eq!(kept_names(&course), both_kept(), "and nothing else is left");
    assert_eq!(course.deeds("keep").len(), 2);
    let kept = course.said().kept.unwrap().archives;
    assert!(kept.len() == 2 && kept[0].ends_with(&both_kept()[0]), "{kept:?}");
}

#[tokio::test]
async fn a_death_at_any_call_while_dumps_are_kept_loses_none() {
    for after_the_deed in [false, true] {
        for call in 0.. {
            let course = Course::voted_by_runtime();
            course.end_containers();
            course.roll_back();
            course.node.die_at(call, after_the_deed);
            let _ = settled(course.agent().reconcile("d", "m"));
            let survived = course.node.survived();
            course.look().unwrap();
            assert_eq!(kept_names(&course), both_kept(), "call {call}, after the deed: {after_the_deed}");
            assert_eq!(course.said().kept.map(|kept| kept.archives.len()), Some(2), "call {call}, after the deed: {after_the_deed}");
            if survived {
                assert!(call > 5, "keeping has that many calls: {call}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_dump_that_no_journal_names_is_kept_too() {
    let course = Course::by_runtime();
    course.freeze();
    // The pod ends while it is dumped, before the journal names what there is.
    course.node.after("dump", |state| state.tasks.clear());
    course.look().unwrap();
    assert!(course.said().abort.is_some_and(|abort| abort.message.contains("not all paused any more")));
    assert!(course.journals().all().unwrap().iter().all(|journal| journal.archives.is_empty()));
    course.roll_back();
    course.look().unwrap();
    assert_eq!(kept_names(&course), both_kept());
    assert_eq!(course.said().kept.map(|kept| kept.archives.len()), Some(2));
}

#[tokio::test]
async fn a_confirmed_copy_ends_the_dump() {
    let course = Course::voted_by_runtime();
    course.node.manager_writes(|status| (status.phase, status.verdict) = (Phase::Finishing, Some(Verdict::Commit)));
    course.node.other_attests(Role::Destination, AttestationStatus { confirmed: Some(At { at: at(1) }), ..Default::default() });
    course.node.state().pods.clear();
    course.node.state().tasks.clear();
    course.look().unwrap();
    assert!(course.said().ended.is_some() && course.said().kept.is_none());
    assert_eq!((course.archives(), course.journals().all().unwrap()), (0, vec![]));
}

#[tokio::test]
async fn a_death_at_any_call_of_the_thaw_ends_thawed() {
    for (after_the_deed, by_runtime_too) in [(false, false), (true, false), (false, true), (true, true)] {
        for call in 0.. {
            let course = if by_runtime_too { Course::voted_by_runtime() } else { Course::voted() };
            course.node.manager_writes(|status| status.verdict = Some(Verdict::Rollback));
            course.node.die_at(call, after_the_deed);
            let _ = settled(course.agent().reconcile("d", "m"));
            let survived = course.node.survived();
            course.look().unwrap();
            course.assert_thawed();
            if survived {
                break;
            }
        }
    }
}
