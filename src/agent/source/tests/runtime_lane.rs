//! Sources that the runtime dumps itself, and the thaw of those of both lanes.

use super::*;
use crate::api::migration::Lane;

fn by_runtime() -> Course {
    let course = Course::new();
    course.node.manager_writes(|status| status.lane = Some(Lane::Runtime));
    course
}

fn dumped() -> Course {
    let course = by_runtime();
    course.go_on();
    assert!(course.said().vote.is_some());
    course
}

#[tokio::test]
async fn the_runtime_dumps_and_a_thaw_removes_it() {
    let course = dumped();
    let trace = course.node.state().trace.join(", ");
    assert!(trace.contains("dump app, dump side, attest checkpointed, push app, push side"), "{trace}");
    course.assert_frozen();
    course.node.manager_writes(|status| status.verdict = Some(Verdict::Rollback));
    course.look().unwrap();
    course.assert_thawed();
}

#[tokio::test]
async fn a_source_that_goes_first_leaves_the_kubelets_archive() {
    let course = by_runtime();
    course.node.manager_writes(|status| status.source_first = Some(true));
    course.go_on();
    let trace = course.node.state().trace.join(", ");
    assert!(trace.contains("checkpoint app") && !trace.contains("dump app"), "{trace}");
}

#[tokio::test]
async fn memory_that_lives_nowhere_else_is_kept() {
    let course = dumped();
    course.node.state().tasks[0].state = TaskState::Stopped;
    course.node.manager_writes(|status| status.verdict = Some(Verdict::Rollback));
    course.look().unwrap();
    let kept = course.said().kept.map(|kept| kept.archives).unwrap_or_default();
    assert!(kept.iter().any(|path| path.contains("kept-") && path.ends_with("app.tar")), "{kept:?}");
    assert!(course.node.state().trace.contains(&"discard dump".to_owned()), "only the kept one is left");
}

#[tokio::test]
async fn a_death_at_any_call_of_the_thaw_ends_thawed() {
    for (after_the_deed, by_runtime_too) in [(false, false), (true, false), (false, true), (true, true)] {
        for call in 0.. {
            let course = if by_runtime_too { dumped() } else { Course::voted() };
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
