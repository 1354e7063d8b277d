//! One message for each phase of a Migration, for audit and for other systems: CloudEvents 1.0 in structured mode
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>, `formats/json-format.md`).

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::migration::age;
use crate::api::{Migration, Outcome, Phase, Verdict};

/// `type` of every message.
const TYPE: &str = "dev.drover.migration.phase.v1";

/// One phase that a Migration has entered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationEvent {
    /// `1.0`.
    pub specversion: String,
    /// UID and phase: whoever reads a message twice knows it by this, with [`Self::source`].
    pub id: String,
    /// `/apis/drover.dev/v1alpha1/namespaces/<namespace>/migrations`.
    pub source: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name of the Migration.
    pub subject: String,
    /// When the phase was entered.
    pub time: Timestamp,
    /// Media type of [`Self::data`].
    pub datacontenttype: String,
    /// What has happened.
    pub data: Data,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Data {
    /// UID of the Migration.
    #[serde(rename = "migrationUID")]
    pub migration_uid: String,
    /// The phase.
    pub phase: Phase,
    /// The pod that is moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Place>,
    /// The pod that takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replacement: Option<Place>,
    /// Which copy goes on, once it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// How it ended, in the message of the phase `Done`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Milliseconds in which neither copy ran, once they are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_millis: Option<u64>,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A pod on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// Name of the pod.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its node; empty where it is not known yet.
    pub node_name: String,
}

/// How long after a Migration's end its messages may still have been in the hands of a manager that died: none keeps one as long.
const MAYBE_UNTOLD: Duration = Duration::from_hours(1);

/// Whether a manager that begins to lead tells of a Migration again: of one that ended long ago everybody has heard.
#[must_use]
pub fn may_be_untold(migration: &Migration, now: Timestamp) -> bool {
    let last = migration.status.as_ref().and_then(|status| status.phases.last());
    !migration.is_done() || last.is_some_and(|last| age(last.started_at.0, now) < MAYBE_UNTOLD)
}

/// The messages of the phases that a Migration has entered since it was `before`; of all of them where nothing is known of it.
#[must_use]
pub fn entered(before: Option<&Migration>, after: &Migration) -> Vec<MigrationEvent> {
    let Some(status) = &after.status else { return vec![] };
    let known = before.and_then(|m| m.status.as_ref()).map_or(0, |status| status.phases.len());
    let metadata = &after.metadata;
    let (uid, name) = (metadata.uid.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
    let source = format!("/apis/drover.dev/v1alpha1/namespaces/{}/migrations", metadata.namespace.as_deref().unwrap_or_default());
    let destination = status.destination.as_ref().map(|d| d.node_name.clone()).unwrap_or_default();
    let pod = status.source.as_ref().map(|pod| Place { name: pod.name.clone(), uid: pod.uid.clone(), node_name: pod.node_name.clone() });
    let replacement = status.replacement.as_ref().filter(|pod| !pod.uid.is_empty());
    let replacement = replacement.map(|pod| Place { name: pod.name.clone(), uid: pod.uid.clone(), node_name: destination });
    let last = status.phases.len().saturating_sub(1);
    let messages = status.phases.iter().enumerate().skip(known).map(|(index, timing)| MigrationEvent {
        specversion: "1.0".into(),
        id: format!("{uid}/{}", timing.phase),
        source: source.clone(),
        kind: TYPE.into(),
        subject: name.clone(),
        time: timing.started_at.0,
        datacontenttype: "application/json".into(),
        data: Data {
            migration_uid: uid.clone(),
            phase: timing.phase,
            pod: pod.clone(),
            replacement: replacement.clone(),
            verdict: status.verdict.filter(|_| timing.phase >= Phase::Finishing),
            outcome: status.outcome.filter(|_| timing.phase == Phase::Done),
            frozen_millis: status.frozen_millis.filter(|_| timing.phase == Phase::Done),
            message: if index == last { status.message.clone() } else { String::new() },
        },
    });
    messages.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn migration(phases: &[&str]) -> Migration {
        let timing = |(n, phase): (usize, &&str)| json!({"phase": phase, "startedAt": format!("2026-11-28T07:05:0{n}.000000Z")});
        serde_json::from_value(json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "spec": {},
            "metadata": {"name": "counter-1", "namespace": "default", "uid": "5f1c22aa-0000-4000-8000-000000000000"},
            "status": {
                "phase": phases.last(), "phases": phases.iter().enumerate().map(timing).collect::<Vec<_>>(), "message": "all of it",
                "source": {"name": "counter", "uid": "s", "nodeName": "n1"}, "destination": {"nodeName": "n2", "repository": "drover/0"},
                "replacement": {"name": "counter-5f1c22", "uid": "r"}, "verdict": "Commit", "outcome": "Migrated", "frozenMillis": 2400
            }
        }))
        .expect("a migration")
    }

    #[test]
    fn of_what_ended_long_ago_nobody_is_told_again() {
        let (running, ended) = (migration(&["Restoring"]), migration(&["Restoring", "Done"]));
        let at = |time: &str| time.parse().expect("a time");
        let (soon, late) = (at("2026-11-28T07:30:00Z"), at("2026-11-28T09:30:00Z"));
        assert!(may_be_untold(&running, late) && may_be_untold(&ended, soon) && !may_be_untold(&ended, late));
    }

    #[test]
    fn each_phase_is_told_once_and_the_last_with_its_outcome() {
        let (before, after) = (migration(&["Restoring"]), migration(&["Restoring", "Finishing", "Done"]));
        let told = entered(Some(&before), &after);
        assert_eq!(told.iter().map(|event| event.data.phase).collect::<Vec<_>>(), [Phase::Finishing, Phase::Done]);
        assert_eq!(entered(Some(&after), &after), []);
        assert_eq!(entered(None, &after).len(), 3);
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/migration-event.json")).expect("golden");
        assert_eq!(serde_json::to_value(&told[1]).expect("JSON"), golden);
        assert!(told[0].data.outcome.is_none() && told[0].data.message.is_empty());
    }
}
