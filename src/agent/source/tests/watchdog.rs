//! The budget of a freeze, which the agent keeps by itself.

use super::*;

#[tokio::test]
async fn the_watchdog_thaws_without_the_api_server() {
    let course = Course::frozen();
    for call in ["migration", "attestation", "attest"] {
        course.node.fail(call, Failure::Transient);
    }
    course.node.state().now = second(100 + BUDGET);
    settled(course.agent().watch_budgets()).unwrap().unwrap();
    course.assert_frozen();
    course.node.state().now = second(101 + BUDGET);
    settled(course.agent().watch_budgets()).unwrap().unwrap();
    assert!(course.all_in(TaskState::Running), "thawed by itself");
    assert_eq!(course.markers().fenced_by(POD).unwrap(), None);

    for call in ["migration", "attestation", "attest"] {
        course.node.mend(call);
    }
    course.manager();
    course.look().unwrap();
    assert!(course.said().abort.is_some_and(|abort| abort.message.contains("freezeBudgetSeconds")), "said once the API server is back");
    course.assert_thawed();
}

#[tokio::test]
async fn the_watchdog_waits_for_no_call_that_the_api_server_does_not_answer() {
    for call in 0.. {
        // Checkpointed as well, so that the look has nothing to do: a step is bounded by the budget itself.
        let course = Course::new();
        course.look().unwrap();
        let agent = course.agent();
        course.node.die_at(call, false);
        let mut unanswered = Box::pin(agent.reconcile("d", "m"));
        let answered = futures::poll!(unanswered.as_mut()).is_ready();
        if course.node.survived() {
            assert!(answered && call > 2, "a look has more calls than {call}");
            break;
        }
        course.node.state().now = second(101 + BUDGET);
        settled(agent.watch_budgets()).unwrap().unwrap();
        assert!(course.all_in(TaskState::Running), "call {call} of a look keeps the pod frozen");
    }
}

#[tokio::test]
async fn a_pod_that_cannot_be_thawed_keeps_no_other_one_frozen() {
    let course = Course::frozen();
    let broken = Journal { migration_uid: "00000000-0000-4000-8000-000000000000".into(), pod_uid: "../bad".into(), ..Journal::default() };
    course.journals().save(&Journal { aborted: Some("late".into()), frozen_at: Some(second(0)), ..broken }).unwrap();
    course.node.state().now = second(101 + BUDGET);
    assert!(settled(course.agent().watch_budgets()).unwrap().is_err(), "what went wrong is told");
    assert!(course.all_in(TaskState::Running));
}
