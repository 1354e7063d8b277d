//! What is mended around the restore.

use super::*;

const ADDRESSES: [&str; 2] = ["10.244.1.7", "fd00::7"];

pub(super) fn volumes() -> PushedImage {
    PushedImage {
        container: keys::VOLUMES_TAG.into(),
        digest: format!("sha256:{}", "c".repeat(64)),
        bytes: 9,
        memory_bytes: None,
        pre_copied_bytes: None,
    }
}

/// After a vote for a container and the pod's volumes; the pod had addresses.
fn with_volumes(phase: Phase) -> Course {
    let course = Course::released(phase);
    course.node.state().registry.insert(format!("{}:{}", repository(), keys::VOLUMES_TAG), volumes());
    let vote = Some(Vote { at: at(1), containers: vec![], images: vec![image('a'), volumes()] });
    course.node.other_attests(Role::Source, AttestationStatus { vote, ..Default::default() });
    course.node.manager_writes(|status| status.source.as_mut().unwrap().pod_ips = ADDRESSES.map(str::to_owned).to_vec());
    course
}

#[tokio::test]
async fn the_sandbox_is_made_ready_before_the_destination_is() {
    let course = with_volumes(Phase::AwaitingReadiness);
    course.look().unwrap();
    let filled = format!("fill_volumes {}", volumes().digest);
    assert_eq!(course.trace(), [filled, "lend_addresses 10.244.1.7 fd00::7".into(), "attest ready".into()]);
    assert_eq!(course.said().ready.map(|ready| ready.images), Some(vec![image('a'), volumes()]));

    for call in ["layer", "fill_volumes", "lend_addresses"] {
        let course = with_volumes(Phase::AwaitingReadiness);
        course.node.fail(call, Failure::Permanent);
        course.look().unwrap();
        assert!(course.said().ready.is_none() && course.failure().contains(call), "{call}: {}", course.failure());
    }
}

#[tokio::test]
async fn a_sandbox_that_is_not_there_is_waited_for() {
    let course = with_volumes(Phase::AwaitingReadiness);
    course.node.state().inside.no_sandbox = true;
    assert_eq!(course.look().unwrap(), Some(SOON));
    assert!(course.said().ready.is_none());
    course.node.state().inside.no_sandbox = false;
    course.look().unwrap();
    assert!(course.said().ready.is_some());
}

#[tokio::test]
async fn volumes_that_were_voted_for_and_are_not_there_are_waited_for() {
    let course = with_volumes(Phase::AwaitingReadiness);
    course.node.state().registry.remove(&format!("{}:{}", repository(), keys::VOLUMES_TAG));
    assert!(course.look().is_err());
    assert!(course.said().ready.is_none());
}

#[tokio::test]
async fn what_was_lent_is_taken_back_and_pipes_get_their_owner() {
    let restored = || {
        let course = with_volumes(Phase::Restoring);
        course.take("Restore finished successfully. Tasks resumed.");
        course.node.state().tasks = vec![restored_task("new")];
        course
    };
    let course = restored();
    course.look().unwrap();
    assert_eq!(course.trace()[2..], ["own_stdio new", "take_addresses_back 10.244.1.7 fd00::7", "attest restored"]);

    // The processes run: that is no matter of doubt.
    let course = restored();
    course.node.fail("own_stdio", Failure::Permanent);
    course.node.fail("take_addresses_back", Failure::Permanent);
    course.look().unwrap();
    assert!(course.said().restored.is_some());
    course.node.mend("take_addresses_back");
    course.node.manager_writes(|status| (status.phase, status.verdict) = (Phase::Finishing, Some(Verdict::Commit)));
    course.node.state().trace.clear();
    course.look().unwrap();
    assert_eq!(course.trace(), ["attest confirmed", "take_addresses_back 10.244.1.7 fd00::7", "purge_images 2", "attest cleaned"]);
}
