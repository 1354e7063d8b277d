//! A frozen pod leaves its Services: what would be sent to it waits until it goes on, and nobody knows where.
//!
//! Its kubelet takes a paused container for a running one, so that the pod stays Ready. The condition `Ready` is what Services, disruption budgets and
//! controllers go by, and it is the one thing that can be taken from any pod without touching what its owner knows it by: a Service of a Deployment selects
//! by labels that its ReplicaSet needs as well. The kubelet writes its own word again every ten seconds (`syncTicker` of its status manager), and is
//! contradicted as soon as that is seen; after the thaw it would put the pod back by itself, if nobody did.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::migration::condition;
use crate::api::{AttestationStatus, MigrationStatus, Verdict};

/// Reason in the pod's condition `Ready` while it is frozen.
pub const FROZEN: &str = "FrozenByDrover";
/// The type of that condition.
const READY: &str = "Ready";

/// Whether the source's condition `Ready` must change: what it becomes. None where it is as it should be, or is not ours to say.
#[must_use]
pub fn readiness(status: &MigrationStatus, said: &AttestationStatus, source: &Pod, now: Timestamp) -> Option<PodCondition> {
    let is_it = status.source.as_ref().is_some_and(|known| source.metadata.uid.as_ref() == Some(&known.uid));
    let shown = condition(source, READY).filter(|_| is_it && source.metadata.deletion_timestamp.is_none())?;
    let is_frozen = said.frozen.is_some() && said.thawed.is_none() && said.ended.is_none() && status.verdict != Some(Verdict::Rollback);
    let since = |status: &str, reason: Option<&str>, message: Option<&str>| PodCondition {
        type_: READY.to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    if is_frozen && shown.status == "True" {
        return Some(since("False", Some(FROZEN), Some("frozen for a migration (kubectl get migrations)")));
    }
    let returns = said.thawed.is_some() && is_taken_out(source) && condition(source, "ContainersReady").is_some_and(|c| c.status == "True");
    returns.then(|| since("True", None, None))
}

/// Whether a pod would be Ready but for this module.
#[must_use]
pub fn is_taken_out(pod: &Pod) -> bool {
    condition(pod, READY).is_some_and(|c| c.status == "False" && c.reason.as_deref() == Some(FROZEN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(conditions: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "status": {"conditions": conditions}})).unwrap()
    }

    fn ready(status: &str, reason: Option<&str>) -> Pod {
        pod(&json!([{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": status, "reason": reason}]))
    }

    fn says(what: &Value) -> AttestationStatus {
        serde_json::from_value(what.clone()).unwrap()
    }

    fn becomes(status: &Value, said: &Value, pod: &Pod) -> Option<(String, Option<String>)> {
        let mut all = json!({"source": {"name": "p", "uid": "u", "nodeName": "n1"}});
        json_patch::merge(&mut all, status);
        let status = serde_json::from_value(all).unwrap();
        readiness(&status, &says(said), pod, Timestamp::UNIX_EPOCH).map(|c| (c.status, c.reason))
    }

    #[test]
    fn a_frozen_pod_is_not_ready_and_a_thawed_one_is_again() {
        let at = json!("2026-11-23T06:00:00.000000Z");
        let frozen = json!({"frozen": {"at": at, "containers": []}});
        let thawed = json!({"frozen": {"at": at, "containers": []}, "thawed": {"at": at}});
        let out = Some(("False".to_owned(), Some(FROZEN.to_owned())));
        assert_eq!(becomes(&json!({}), &json!({}), &ready("True", None)), None, "not frozen yet");
        assert_eq!(becomes(&json!({}), &frozen, &ready("True", None)), out);
        assert_eq!(becomes(&json!({"verdict": "Commit"}), &frozen, &ready("True", None)), out, "until it is gone");
        assert_eq!(becomes(&json!({}), &frozen, &ready("False", Some(FROZEN))), None, "done");
        assert_eq!(becomes(&json!({}), &frozen, &ready("False", Some("ContainersNotReady"))), None, "its own probe says so");
        assert_eq!(becomes(&json!({"verdict": "Rollback"}), &frozen, &ready("True", None)), None, "it is about to go on");
        assert_eq!(becomes(&json!({"verdict": "Rollback"}), &thawed, &ready("False", Some(FROZEN))), Some(("True".to_owned(), None)));
        assert_eq!(becomes(&json!({}), &thawed, &ready("False", Some("ContainersNotReady"))), None, "that was not us");
        let unwell = pod(&json!([{"type": "ContainersReady", "status": "False"}, {"type": "Ready", "status": "False", "reason": FROZEN}]));
        assert_eq!(becomes(&json!({}), &thawed, &unwell), None, "its kubelet knows why");
    }

    #[test]
    fn nothing_is_said_of_another_pod_or_of_one_that_goes() {
        let frozen = json!({"frozen": {"at": "2026-11-23T06:00:00.000000Z", "containers": []}});
        let mut other = ready("True", None);
        other.metadata.uid = Some("another".into());
        assert_eq!(becomes(&json!({}), &frozen, &other), None);
        let mut going = ready("True", None);
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(becomes(&json!({}), &frozen, &going), None);
        assert_eq!(becomes(&json!({}), &frozen, &pod(&json!([]))), None);
    }
}
