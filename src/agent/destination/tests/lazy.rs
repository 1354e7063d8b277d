//! A replacement that runs while its memory still comes.

use super::*;

#[tokio::test]
async fn it_is_not_restored_before_its_last_page_is_there() {
    let course = Course::restored();
    course.node.state().tasks[0].state = TaskState::Filling;
    assert_eq!(course.look().unwrap(), Some(SOON));
    assert!(course.said().restored.is_none() && course.said().failure.is_none() && course.trace().is_empty(), "{:?}", course.trace());
    course.node.state().tasks[0].state = TaskState::Running;
    course.look().unwrap();
    assert!(course.said().restored.is_some());
}

#[tokio::test]
async fn one_whose_memory_did_not_come_whole_has_failed() {
    let course = Course::restored();
    let spoilt = Some("the lazy-pages daemon has ended".to_owned());
    course.node.state().tasks = vec![Task { state: TaskState::Stopped, spoilt, ..restored_task("new") }];
    course.look().unwrap();
    assert!(course.said().restored.is_none());
    assert_eq!(course.failure(), "the restore of container app failed: the lazy-pages daemon has ended");
}
