//! Post-copy: the memory stays with the frozen source, and its copy fetches it.

use super::*;
use crate::api::migration::Lane;

impl Course {
    fn leaving_memory() -> Self {
        let course = Self::new();
        course.node.manager_writes(|status| status.lane = Some(Lane::Runtime));
        course.node.state().migration.as_mut().unwrap().spec.post_copy = true;
        course
    }

    /// Lets what the agent does beside its steps go on.
    async fn given(&self) -> Vec<String> {
        tokio::task::yield_now().await;
        let mut state = self.node.state();
        let (given, rest) = std::mem::take(&mut state.trace).into_iter().partition(|deed| deed.starts_with("give"));
        state.trace = rest;
        given
    }
}

const GIVEN: [&str; 2] = ["give memory of app", "give memory of side"];

#[tokio::test]
async fn the_memory_stays_and_is_given_away_until_the_verdict() {
    let course = Course::leaving_memory();
    let agent = course.agent();
    for _ in 0..4 {
        settled(agent.reconcile("d", "m")).unwrap().unwrap();
        course.manager();
    }
    assert_eq!(course.given().await, GIVEN, "once");
    let expected = [
        "pause one",
        "pause two",
        "attest frozen",
        "dump app but its memory",
        "dump side but its memory",
        "attest checkpointed",
        "push app",
        "push side",
        "attest pushed",
        "attest vote",
    ];
    assert_eq!(course.node.state().trace, expected);
    course.assert_frozen();
    // An agent that was started anew gives what nobody has fetched yet.
    let agent = course.agent();
    settled(agent.reconcile("d", "m")).unwrap().unwrap();
    assert_eq!(course.given().await, GIVEN);

    course.node.manager_writes(|status| (status.verdict, status.phase) = (Some(Verdict::Rollback), Phase::Finishing));
    settled(agent.reconcile("d", "m")).unwrap().unwrap();
    assert!(agent.giving.lock().unwrap().is_empty());
    course.assert_thawed();
    let agent = course.agent();
    settled(agent.reconcile("d", "m")).unwrap().unwrap();
    assert_eq!(course.given().await, [""; 0]);
}

#[tokio::test]
async fn a_way_that_is_closed_is_opened_again_unless_it_broke() {
    for (kind, again) in [(Failure::Transient, true), (Failure::Permanent, false)] {
        tokio::time::pause();
        let course = Course::leaving_memory();
        course.node.fail("give_memory", kind);
        let agent = course.agent();
        for _ in 0..4 {
            settled(agent.reconcile("d", "m")).unwrap().unwrap();
            course.manager();
        }
        assert_eq!(course.given().await, [""; 0]);
        course.node.mend("give_memory");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(course.given().await.len(), if again { 2 } else { 0 });
        tokio::time::resume();
    }
}

/// R8, R14: one that goes first leaves a whole archive behind, whatever is asked for.
#[tokio::test]
async fn a_source_that_goes_first_leaves_no_memory() {
    let course = Course::leaving_memory();
    course.node.manager_writes(|status| status.source_first = Some(true));
    course.go_on();
    assert!(course.said().vote.is_some());
    assert_eq!(course.node.state().trace.iter().filter(|deed| deed.starts_with("checkpoint")).count(), 2);
}

#[tokio::test]
async fn a_dump_that_fails_thaws() {
    for call in ["dump_but_memory", "push"] {
        let course = Course::leaving_memory();
        course.node.fail(call, Failure::Permanent);
        course.go_on();
        assert!(course.said().vote.is_none(), "{call}");
        course.assert_thawed();
    }
}
