//! The pod that comes after the source: a same-name replacement, one on a node without the gate, the fallback.

use std::collections::BTreeMap;

use super::{mend::volumes, *};
use crate::{
    agent::journal::Journal,
    api::migration::{ReplacementStatus, RestoredContainer},
};

const UID: &str = "5f1c22aa-0000-4000-8000-000000000001";
const NEW: &str = "0f1c22aa-0000-4000-8000-00000000000b";

impl Course {
    fn without_gate(phase: Phase) -> Self {
        let course = Self::released(phase);
        course.markers().disarm(POD).unwrap();
        course.node.manager_writes(|status| status.destination.as_mut().unwrap().without_gate = true);
        course
    }

    /// This node is the source's; its pod was deleted and is to go on here.
    fn falling_back() -> Self {
        let course = Self::released(Phase::Finishing);
        let archive = course.disk.path().join("archive.tar");
        let archives = BTreeMap::from([("app".to_owned(), archive)]);
        course.agent.parts.journals.save(&Journal { migration_uid: UID.into(), archives, ..Journal::default() }).unwrap();
        course.node.add_attestation(Role::Fallback, "n2", NEW);
        course.node.manager_writes(|status| {
            status.verdict = Some(Verdict::Rollback);
            status.source_first = Some(true);
            status.fallback = Some(ReplacementStatus { name: "p".into(), uid: NEW.into(), ..Default::default() });
        });
        let mut state = course.node.state();
        state.registry.clear();
        state.pods = vec![serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": NEW}})).unwrap()];
        drop(state);
        course
    }

    fn look_back(&self) -> PortResult<Option<Duration>> {
        settled(self.agent.reconcile_fallback("d", "m")).expect("no call hangs, and no step is taken for ever")
    }

    fn said_back(&self) -> AttestationStatus {
        self.node.attested(Role::Fallback)
    }

    fn claim_of(&self, uid: &str) -> Option<Claim> {
        self.markers().claim(uid, "app").unwrap()
    }
}

#[tokio::test]
async fn a_same_name_replacement_is_armed_under_its_own_uid_and_its_placeholder_never() {
    let course = Course::new();
    let pod = |uid: &str| Some(ReplacementStatus { name: "p".into(), uid: uid.into(), ..Default::default() });
    course.node.manager_writes(|status| (status.placeholder, status.replacement) = (pod(POD), pod("")));
    course.look().unwrap();
    assert!(course.said().prepared.is_some());
    assert_eq!(course.claim_of(POD), None, "the placeholder is restored by nobody");

    course.node.manager_writes(|status| status.phase = Phase::SourceDeleting);
    course.look().unwrap();
    assert!(course.said().armed.is_none(), "it is not made yet");
    course.node.manager_writes(|status| status.replacement = pod(NEW));
    course.look().unwrap();
    assert_eq!(course.said().armed.map(|armed| armed.pod_uid).as_deref(), Some(NEW));
    assert_eq!(course.claim_of(NEW), Some(Claim::Waiting));

    // What is restored, and what must be gone after a rollback, is that pod.
    course.node.manager_writes(|status| (status.phase, status.verdict) = (Phase::Finishing, Some(Verdict::Rollback)));
    course.node.state().pods = vec![serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": NEW}})).unwrap()];
    assert_eq!(course.look().unwrap(), Some(SOON));
    assert_eq!(course.claim_of(NEW), Some(Claim::Revoked));
    course.node.state().pods.clear();
    course.look().unwrap();
    assert!(course.said().cleaned.is_some() && course.claim_of(NEW).is_none());
}

#[tokio::test]
async fn without_a_gate_a_restore_is_attested_from_the_runtime_alone() {
    let course = Course::new();
    course.node.manager_writes(|status| status.destination.as_mut().unwrap().without_gate = true);
    course.look().unwrap();
    assert!(course.said().prepared.is_some() && course.claim().is_none(), "nobody would take a claim");

    let course = Course::without_gate(Phase::Restoring);
    course.node.state().tasks = vec![restored_task("new")];
    course.look().unwrap();
    assert_eq!(course.trace().last().map(String::as_str), Some("attest restored"));
}

#[tokio::test]
async fn without_a_gate_nobody_says_that_a_replacement_never_started() {
    let course = Course::without_gate(Phase::Restoring);
    course.asked_to_revoke();
    assert_eq!(course.look().unwrap(), Some(SOON));
    assert!(course.said().never_started.is_none());
    // Removed by force, its kubelet may be in the midst of a start that the runtime does not know of yet.
    course.node.state().pods.clear();
    assert_eq!(course.look().unwrap(), Some(SOON));
    assert!(course.said().died.is_none(), "its sandbox is there");
    // Gone, it may have run before: that is another word.
    course.node.state().inside.no_sandbox = true;
    course.look().unwrap();
    assert!(course.said().never_started.is_none() && course.said().died.is_some_and(|died| died.containers[0].state == "unknown"));

    // Late, but restored.
    let course = Course::without_gate(Phase::Restoring);
    course.asked_to_revoke();
    course.node.state().tasks = vec![restored_task("new")];
    course.look().unwrap();
    assert!(course.said().restored.is_some());
}

#[tokio::test]
async fn the_fallback_is_restored_from_the_kept_archive() {
    let course = Course::falling_back();
    assert_eq!(course.look_back().unwrap(), Some(SOON));
    assert_eq!(course.trace(), [format!("ensure {}", base()), "adopt_base".into(), "push app".into(), "attest prepared".into()]);
    assert_eq!(course.claim_of(NEW), Some(Claim::Waiting));

    course.node.state().tasks = vec![restored_task("new")];
    course.look_back().unwrap();
    assert!(course.said_back().restored.is_none(), "it was not let through by the gate");
    assert!(course.markers().advance(NEW, "app", Claim::Waiting, Claim::Taken).unwrap());
    course.node.state().trace.clear();
    course.look_back().unwrap();
    let checkpoint = keys::checkpoint_image(&repository(), "app");
    let restored = ["repoint app", &format!("remove {checkpoint}"), "own_stdio new", "attest restored"];
    assert_eq!(course.trace(), restored, "it is confirmed only once the manager has written it down");
    course.node.state().trace.clear();
    let named = RestoredContainer { name: "app".into(), container_id: "new".into() };
    course.node.manager_writes(|status| status.fallback.as_mut().unwrap().containers = vec![named]);
    course.look_back().unwrap();
    assert_eq!(course.trace(), ["attest confirmed", "purge_images 1", "attest cleaned"]);
    assert_eq!(course.claim_of(NEW), None, "an ordinary pod has no claims");
}

#[tokio::test]
async fn a_fallback_that_was_given_up_leaves_nothing_once_its_pod_is_gone() {
    let course = Course::falling_back();
    course.look_back().unwrap();
    assert_eq!(course.claim_of(NEW), Some(Claim::Waiting));
    course.node.state().tasks = vec![restored_task("new")];
    course.node.manager_writes(|status| status.given_up = Some(at(5)));
    course.node.state().trace.clear();
    assert_eq!(course.look_back().unwrap(), Some(SOON), "something of the pod is left");
    assert_eq!(course.claim_of(NEW), Some(Claim::Revoked), "nothing of it starts any more");
    course.node.state().tasks.clear();
    course.node.state().pods.clear();
    course.look_back().unwrap();
    assert!(course.trace().contains(&"attest cleaned".to_owned()), "{:?}", course.trace());
    assert!(course.claim_of(NEW).is_none() && course.node.state().registry.is_empty(), "{:?}", course.node.state().registry);
}

#[tokio::test]
async fn the_fallback_gets_its_volumes_back() {
    let course = Course::falling_back();
    let vote = Some(Vote { at: at(1), containers: vec![], images: vec![image('a'), volumes()] });
    course.node.other_attests(Role::Source, AttestationStatus { vote, ..Default::default() });
    course.node.state().registry.insert(format!("{}:{}", repository(), keys::VOLUMES_TAG), volumes());
    if course.look_back().is_err() {
        course.node.state().now = second(100 + 31);
        course.look_back().unwrap();
    }
    assert!(course.said_back().failure.is_some_and(|failure| failure.message.contains("no archive of the pod's volumes")));

    let mut journal = course.agent.parts.journals.load(UID).unwrap().unwrap();
    journal.archives.insert(keys::VOLUMES_TAG.into(), course.disk.path().join("volumes.tar"));
    course.agent.parts.journals.save(&journal).unwrap();
    course.node.state().trace.clear();
    course.look_back().unwrap();
    let filled = format!("fill_volumes {}", volumes().digest);
    let trace = course.trace();
    let at = |step: &str| trace.iter().position(|done| done == step).unwrap_or_else(|| panic!("{step}: {trace:?}"));
    assert!(at("push app") < at("push kept volumes") && at("push kept volumes") < at(&filled) && at(&filled) < at("attest prepared"));
}

#[tokio::test]
async fn an_archive_that_is_lost_or_another_is_told_and_never_restored() {
    type Spoil = fn(&Course);
    let spoilt: [(&str, Spoil); 4] = [
        ("journal of the migration is gone", |course| course.agent.parts.journals.remove(UID).unwrap()),
        ("names no archive of container app", |course| {
            course.agent.parts.journals.save(&Journal { migration_uid: UID.into(), ..Journal::default() }).unwrap();
        }),
        ("cannot be used", |course| course.node.fail("push", Failure::Permanent)),
        ("is not the one that was voted for", |course| {
            course.node.manager_writes(|status| status.containers[0].digest = image('f').digest);
        }),
    ];
    for (expected, spoil) in spoilt {
        let course = Course::falling_back();
        spoil(&course);
        if course.look_back().is_err() {
            course.node.state().now = second(100 + 31);
            course.look_back().unwrap();
        }
        let said = course.said_back();
        assert!(said.failure.as_ref().is_some_and(|failure| failure.message.contains(expected)), "{expected}: {:?}", said.failure);
        assert!(said.prepared.is_none() && course.claim_of(NEW).is_none());
    }
}
