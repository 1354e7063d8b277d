//! What the destination does besides in the runtime lane.

use super::*;
use crate::api::migration::Lane;

fn by_runtime(course: Course) -> Course {
    course.node.manager_writes(|status| status.lane = Some(Lane::Runtime));
    course
}

#[tokio::test]
async fn the_checkpoint_is_laid_out_and_its_tag_names_the_base_image_before_the_release() {
    let course = by_runtime(Course::released(Phase::AwaitingReadiness));
    course.look().unwrap();
    assert_eq!(course.trace(), [format!("lay out {POD}/app"), "repoint app".into(), "attest ready".into()]);
    assert_eq!(course.said().ready.map(|ready| ready.images), Some(vec![image('a')]));
}

#[tokio::test]
async fn a_crash_after_the_tag_was_re_pointed_does_no_harm() {
    let course = by_runtime(Course::released(Phase::AwaitingReadiness));
    course.node.fail("attest", Failure::Transient);
    assert!(course.look().is_err());
    course.node.mend("attest");
    course.look().unwrap();
    assert_eq!(course.trace(), [format!("lay out {POD}/app"), "repoint app".into(), "repoint app".into(), "attest ready".into()], "laid out once");
}

#[tokio::test]
async fn nothing_is_laid_out_in_the_image_lane() {
    let course = Course::released(Phase::AwaitingReadiness);
    course.look().unwrap();
    assert_eq!(course.trace(), ["attest ready"]);
}

#[tokio::test]
async fn what_a_boot_has_taken_is_laid_out_again_as_long_as_the_claim_waits() {
    let course = by_runtime(Course::released(Phase::Restoring));
    course.look().unwrap();
    assert_eq!(course.trace(), [format!("lay out {POD}/app"), "repoint app".into()]);
    course.take("");
    course.node.state().laid_out.clear();
    course.look().unwrap();
    assert_eq!(course.trace().len(), 2, "whoever has taken it has read it");
}

#[tokio::test]
async fn nothing_is_laid_out_any_more_once_it_is_restored_or_rolled_back() {
    let course = by_runtime(Course::restored());
    course.node.state().laid_out.insert(format!("{POD}/app"));
    course.look().unwrap();
    let trace = course.trace();
    let when = |word: &str| trace.iter().position(|did| did.starts_with(word));
    assert!(when("discard").unwrap() < when("attest restored").unwrap(), "{trace:?}");

    let course = by_runtime(Course::released(Phase::Restoring));
    course.look().unwrap();
    course.node.state().pods.clear();
    course.node.manager_writes(|status| (status.phase, status.verdict) = (Phase::Finishing, Some(Verdict::Rollback)));
    course.look().unwrap();
    assert!(course.trace().contains(&format!("discard {POD}")), "{:?}", course.trace());
    assert!(course.node.state().laid_out.is_empty());
}

#[tokio::test]
async fn the_sweep_removes_what_was_laid_out_for_a_pod_that_is_not_here() {
    let course = Course::new();
    course.node.state().laid_out.extend([format!("{POD}/app"), "0000aaaa-gone/app".to_owned()]);
    course.agent.sweep().await.unwrap();
    assert_eq!(course.trace(), ["discard 0000aaaa-gone"]);
}

#[tokio::test]
async fn a_keeper_can_ask_for_memory_that_stays_before_anything_is_restored_and_again_after_a_crash() {
    let course = by_runtime(Course::released(Phase::AwaitingReadiness));
    course.node.state().migration.as_mut().unwrap().spec.post_copy = true;
    course.look().unwrap();
    let offered = format!("offer memory to {POD}/app");
    assert_eq!(course.trace(), [offered.clone(), format!("lay out {POD}/app"), "repoint app".into(), "attest ready".into()]);
    course.node.manager_writes(|status| status.phase = Phase::Restoring);
    course.look().unwrap();
    assert_eq!(course.trace()[4..], [offered, "repoint app".into()], "it is not laid out twice");
}
