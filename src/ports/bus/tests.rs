//! What waits in the inbox, and until when.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::testing::bus_contract::golden as event;

fn noting(event: &RegistryEvent) -> Migration {
    serde_json::from_value(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "spec": {},
        "metadata": {"name": event.migration.name, "namespace": event.migration.namespace, "uid": event.migration.uid},
        "status": {"phase": "Transferring", "confirmations": [
            {"container": event.container, "digest": event.digest, "bytes": event.bytes, "at": "2026-11-28T07:05:02.123456Z", "bus": "Kafka"}
        ]}
    }))
    .expect("a migration")
}

#[tokio::test(start_paused = true)]
async fn an_event_waits_until_a_status_notes_it() {
    let inbox = Arc::new(Inbox::default());
    let (theirs, told) = (Arc::clone(&inbox), Told { bus: "Kafka", event: event() });
    let delivery = tokio::spawn(async move { theirs.deliver(told, Duration::from_secs(5), std::future::ready(())).await });
    tokio::task::yield_now().await;
    assert!(inbox.of(&event().migration.uid).is_some() && inbox.of("another").is_none());
    let mut other = noting(&event());
    other.status.as_mut().expect("a status").confirmations.clear();
    inbox.written(&other);
    assert!(!delivery.is_finished(), "a status that does not note it is no reason to forget it");
    inbox.written(&noting(&event()));
    assert!(delivery.await.expect("an end"));
    assert!(inbox.of(&event().migration.uid).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_notes_is_given_up_and_leaves_nothing() {
    let inbox = Inbox::default();
    assert!(!inbox.deliver(Told { bus: "Kafka", event: event() }, Duration::from_secs(5), std::future::ready(())).await);
    assert!(inbox.of(&event().migration.uid).is_none() && inbox.lock().is_none());
}
