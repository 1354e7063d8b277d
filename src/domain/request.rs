//! From an annotated pod to its Migration.
//!
//! # Exactly one Migration for each request
//! The pod carries the number of requests that were taken up before ([`keys::REQUESTS`]). The Migration's name is derived from the pod's UID, that
//! number and the value, so making it again after a crash finds it there. Taking the request up is one patch on the pod: the annotation goes and
//! the number grows. A later request, also with the same value, has another number and so another name.

use std::collections::BTreeMap;

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{
    ids::{derived_name, is_dns_subdomain},
    keys, owner,
};
use crate::api::{
    Migration, MigrationSpec,
    migration::{Destination, Lane},
};

/// So much of the pod's name stands in the Migration's, whose limit is 52.
const STEM: usize = 40;

/// A pod's request to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    namespace: String,
    pod: String,
    uid: String,
    value: String,
    taken_up: u64,
    keep_name: bool,
    /// What the pod says of it, if it does.
    post_copy: Option<bool>,
    keys: Vec<(&'static str, String)>,
}

/// The request that a pod carries, if it carries one and lives on.
#[must_use]
pub fn request(pod: &ObjectMeta) -> Option<Request> {
    let empty = BTreeMap::new();
    let annotations = pod.annotations.as_ref().unwrap_or(&empty);
    let value = keys::requested_destination(annotations)?.to_owned();
    if pod.deletion_timestamp.is_some() {
        return None;
    }
    let keys = [keys::MIGRATE_TO, keys::MIGRATE_TO_BARE].into_iter().filter_map(|key| Some((key, annotations.get(key)?.clone()))).collect();
    Some(Request {
        keep_name: owner::keeps_its_name(pod),
        post_copy: annotations.get(keys::POST_COPY).map(|value| value == "true"),
        namespace: pod.namespace.clone()?,
        pod: pod.name.clone()?,
        uid: pod.uid.clone()?,
        value,
        // The webhook keeps users from writing it; where it was down, a number that cannot be read counts as none.
        taken_up: annotations.get(keys::REQUESTS).and_then(|n| n.parse().ok()).unwrap_or(0),
        keys,
    })
}

/// The Migration of a pod to where an annotation's value says. The pod keeps its name where its controller knows it by that.
///
/// # Errors
/// Where no node can have that name.
pub fn migration_to(value: &str, name: &str, pod: &str, keep_name: bool) -> Result<Migration, String> {
    let node_name = match value {
        keys::AUTO => None,
        node if is_dns_subdomain(node) => Some(node.to_owned()),
        other => return Err(format!("{other:?} is no node's name (lower-case letters, digits, '-' and '.') and not {:?}", keys::AUTO)),
    };
    let spec = MigrationSpec {
        pod_name: Some(pod.to_owned()),
        keep_name,
        destination: Destination { node_name, ..Destination::default() },
        deadline_seconds: crate::api::migration::default_deadline(),
        freeze_budget_seconds: crate::api::migration::default_freeze_budget(),
        ..MigrationSpec::default()
    };
    Ok(Migration::new(name, spec))
}

impl Request {
    /// Namespace of the pod and of its Migration.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Name of the pod.
    #[must_use]
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// UID of the pod.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// What the annotation says.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The Migration. Whether the pod can be moved is the preflight's business; only a value that no node can have makes no Migration.
    ///
    /// # Errors
    /// What is wrong with the value.
    pub fn migration(&self) -> Result<Migration, String> {
        let mut migration = migration_to(&self.value, &self.migration_name(), &self.pod, self.keep_name)?;
        if self.post_copy == Some(true) {
            (migration.spec.post_copy, migration.spec.lane) = (true, Lane::Runtime);
        }
        migration.metadata.namespace = Some(self.namespace.clone());
        migration.metadata.annotations = Some(BTreeMap::from([(keys::POD_UID.to_owned(), self.uid.clone())]));
        Ok(migration)
    }

    /// Whether the pod leaves it to its policy whether it is moved by post-copy.
    #[must_use]
    pub fn leaves_post_copy_open(&self) -> bool {
        self.post_copy.is_none()
    }

    /// Whether a Migration of this name was made for this very request.
    #[must_use]
    pub fn is_made_by(&self, migration: &Migration) -> bool {
        let uid = migration.metadata.annotations.as_ref().and_then(|a| a.get(keys::POD_UID));
        migration.spec.pod_name.as_ref() == Some(&self.pod) && uid == Some(&self.uid)
    }

    fn migration_name(&self) -> String {
        derived_name(&self.pod, STEM, &format!("{}\n{}\n{}", self.uid, self.taken_up, self.value))
    }

    /// Takes the request up: applies only to this pod and this value.
    #[must_use]
    pub fn take_up(&self) -> Patch {
        let mut operations = vec![test(["metadata", "uid"], &self.uid)];
        for (key, value) in &self.keys {
            operations.push(test(["metadata", "annotations", key].as_slice().iter().copied(), value));
            operations.push(PatchOperation::Remove(RemoveOperation { path: PointerBuf::from_tokens(["metadata", "annotations", key]) }));
        }
        operations.push(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(["metadata", "annotations", keys::REQUESTS]),
            value: json!(self.taken_up.saturating_add(1).to_string()),
        }));
        Patch(operations)
    }
}

fn test<'a>(path: impl IntoIterator<Item = &'a str>, value: &str) -> PatchOperation {
    PatchOperation::Test(TestOperation { path: PointerBuf::from_tokens(path), value: Value::String(value.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: &Value) -> Value {
        json!({"metadata": {"name": "web", "namespace": "shop", "uid": "5f1c22aa", "annotations": annotations}})
    }

    fn of(pod: &Value) -> Option<Request> {
        request(&serde_json::from_value(pod["metadata"].clone()).expect("metadata"))
    }

    fn name(pod: &Value) -> String {
        of(pod).expect("a request").migration().expect("a migration").metadata.name.expect("a name")
    }

    #[test]
    fn a_request_becomes_one_migration_however_often_it_is_seen() {
        let asking = pod(&json!({"drover.dev/migrate-to": "n2"}));
        assert_eq!(name(&asking), name(&asking));
        let migration = of(&asking).expect("a request").migration().expect("a migration");
        assert_eq!(migration.spec.pod_name.as_deref(), Some("web"));
        assert_eq!(migration.spec.destination.node_name.as_deref(), Some("n2"));
        assert_eq!((migration.spec.deadline_seconds, migration.spec.freeze_budget_seconds), (600, 120));
        assert!(of(&asking).expect("a request").is_made_by(&migration));
        assert_eq!(of(&pod(&json!({"migrate-to": "auto"}))).expect("a request").migration().expect("one").spec.destination.node_name, None);
    }

    #[test]
    fn post_copy_is_for_those_who_ask_for_it() {
        for (value, asked) in [(Some("true"), true), (Some("yes"), false), (Some(""), false), (None, false)] {
            let asking = pod(&json!({"drover.dev/migrate-to": "n2", "drover.dev/post-copy": value}));
            let asking = if value.is_some() { asking } else { pod(&json!({"drover.dev/migrate-to": "n2"})) };
            let spec = of(&asking).expect("a request").migration().expect("a migration").spec;
            assert_eq!((spec.post_copy, spec.lane == Lane::Runtime), (asked, asked), "{value:?}");
        }
    }

    #[test]
    fn every_later_request_becomes_another_one() {
        let mut pod = pod(&json!({"drover.dev/migrate-to": "n2", "migrate-to": "n3"}));
        let first = name(&pod);
        let taken = of(&pod).expect("a request").take_up();
        let old = pod.clone();
        json_patch::patch(&mut pod, &taken).expect("applies");
        assert_eq!(pod["metadata"]["annotations"], json!({"drover.dev/requests": "1"}));
        assert!(of(&pod).is_none(), "the request is gone");
        assert!(json_patch::patch(&mut pod, &taken).is_err(), "it is taken up once");

        pod["metadata"]["annotations"]["drover.dev/migrate-to"] = json!("n2");
        assert_ne!(name(&pod), first, "the same value again is another request");
        let mut changed = old;
        changed["metadata"]["annotations"]["drover.dev/migrate-to"] = json!("n9");
        assert!(json_patch::patch(&mut changed, &taken).is_err(), "a changed value is left alone");
    }

    #[test]
    fn names_fit_and_bad_values_make_nothing() {
        let mut long = pod(&json!({"drover.dev/migrate-to": "n2"}));
        long["metadata"]["name"] = json!(format!("{}-.{}", "a".repeat(38), "b".repeat(100)));
        assert_eq!(name(&long).len(), 38 + 7);
        assert!(of(&pod(&json!({"drover.dev/migrate-to": "N 2"}))).expect("a request").migration().is_err_and(|e| e.contains("\"N 2\"")));
        let mut going = pod(&json!({"drover.dev/migrate-to": "n2"}));
        going["metadata"]["deletionTimestamp"] = json!("2026-11-23T12:00:00Z");
        assert!(of(&going).is_none() && of(&pod(&json!({}))).is_none());
    }
}
