//! When an event is settled, and as what.

use std::sync::Mutex;

use async_trait::async_trait;
use serde_json::json;

use super::*;
use crate::{
    ports::bus::{BusState, Delivery, Position},
    testing::bus_contract::golden as event,
};

fn migration(phase: &str, noted: bool) -> Migration {
    let event = event();
    let known = json!([{"container": event.container, "digest": event.digest, "bytes": 1, "at": "2026-11-28T07:05:02.000000Z", "bus": "Queue"}]);
    serde_json::from_value(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "spec": {},
        "metadata": {"name": event.migration.name, "namespace": event.migration.namespace, "uid": event.migration.uid},
        "status": {
            "phase": phase, "destination": {"nodeName": "n2", "repository": "drover/0"}, "confirmations": if noted { known } else { json!([]) },
            "source": {"name": "counter", "uid": "source", "nodeName": "n1", "containers": [{"name": "counter", "containerID": "c1", "image": "i"}]}
        }
    }))
    .expect("a migration")
}

/// A bus of one queue.
struct Queue {
    waiting: tokio::sync::Mutex<mpsc::Receiver<RegistryEvent>>,
    settled: Mutex<Vec<RegistryEvent>>,
}

#[async_trait]
impl Subscription for Queue {
    fn name(&self) -> &'static str {
        "Queue"
    }

    async fn receive(&self) -> PortResult<Delivery> {
        match self.waiting.lock().await.recv().await {
            Some(event) => Ok(Delivery { event, position: Position::default() }),
            None => std::future::pending().await,
        }
    }

    fn settle(&self, delivery: &Delivery) {
        self.settled.lock().expect("a lock").push(delivery.event.clone());
    }

    fn state(&self) -> BusState {
        BusState { connected: true, message: String::new() }
    }
}

/// The API server: one migration at most.
struct Known(Mutex<Option<Migration>>);

#[async_trait]
impl Migrations for Known {
    async fn migration(&self, namespace: &str, name: &str) -> PortResult<Option<Migration>> {
        let known = self.0.lock().expect("a lock").clone();
        Ok(known.filter(|it| it.metadata.name.as_deref() == Some(name) && it.metadata.namespace.as_deref() == Some(namespace)))
    }
}

struct World {
    bus: Arc<Queue>,
    tell: mpsc::Sender<RegistryEvent>,
    inbox: Arc<Inbox>,
    asked: mpsc::Receiver<ObjectRef<Migration>>,
    known: Arc<Known>,
    metrics: Metrics,
}

fn world(known: Option<Migration>) -> World {
    let known = Arc::new(Known(Mutex::new(known)));
    let (tell, waiting) = mpsc::channel(20);
    let bus = Arc::new(Queue { waiting: waiting.into(), settled: Mutex::default() });
    let (looks, asked) = mpsc::channel(ROOM);
    let (inbox, metrics) = (Arc::new(Inbox::default()), Metrics::default());
    let parts = Parts { bus: bus.clone(), migrations: known.clone(), inbox: inbox.clone(), looks, metrics: metrics.clone() };
    tokio::spawn(run(parts, CancellationToken::new()));
    World { bus, tell, inbox, asked, known, metrics }
}

impl World {
    fn settled(&self) -> usize {
        self.bus.settled.lock().expect("a lock").len()
    }

    fn counted(&self, result: &str, times: u32) -> bool {
        self.metrics.text().expect("text").contains(&format!("drover_registry_events_total{{result=\"{result}\"}} {times}\n"))
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_is_settled_only_when_a_status_notes_it() {
    let mut world = world(Some(migration("Transferring", false)));
    for _ in 0..10 {
        world.tell.send(event()).await.expect("a consumer");
    }
    let asked = world.asked.recv().await.expect("a look is asked for");
    assert_eq!((asked.name.as_str(), asked.namespace.as_deref()), ("counter-1", Some("default")));
    assert!(world.inbox.of(&event().migration.uid).is_some(), "the look finds it");
    assert_eq!(world.settled(), 0);
    world.inbox.written(&migration("Transferring", true));
    *world.known.0.lock().expect("a lock") = Some(migration("Transferring", true));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.settled(), 10, "the same event again is worth nothing");
    assert!(world.counted("recorded", 1) && world.counted("repeated", 9));
}

#[tokio::test(start_paused = true)]
async fn what_is_forged_or_late_is_settled_and_does_not_stop_the_others() {
    let world = world(Some(migration("Transferring", true)));
    let changed = |change: fn(&mut RegistryEvent)| {
        let mut event = event();
        change(&mut event);
        event
    };
    let forged = [
        changed(|event| event.migration.uid = "00000000-0000-4000-8000-000000000000".into()),
        changed(|event| event.migration.name = "other".into()),
        changed(|event| {
            event.node = "n3".into();
            event.digest = format!("sha256:{}", "b".repeat(64));
        }),
        event(),
    ];
    for event in forged {
        world.tell.send(event).await.expect("a consumer");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.settled(), 4);
    assert!(world.counted("unknown_migration", 2) && world.counted("wrong_node", 1) && world.counted("repeated", 1));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_nobody_can_note_is_given_up_after_a_while() {
    let world = world(Some(migration("Transferring", false)));
    world.tell.send(event()).await.expect("a consumer");
    tokio::time::sleep(PATIENCE / 2).await;
    assert_eq!(world.settled(), 0);
    tokio::time::sleep(PATIENCE).await;
    assert_eq!(world.settled(), 1);
    assert!(world.counted("given_up", 1) && world.inbox.of(&event().migration.uid).is_none());
}
