//! What the bus is told of.

use std::sync::Mutex as StdMutex;

use async_trait::async_trait;
use kube::runtime::{reflector, watcher::Event};
use serde_json::json;

use super::*;
use crate::{
    ports::{PortError, bus::BusState},
    testing::FakeNode,
};

const REPOSITORY: &str = "drover/00112233445566778899aabbccddeeff";

fn digest(digit: &str) -> String {
    format!("sha256:{}", digit.repeat(64))
}

fn migration() -> Migration {
    serde_json::from_value(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "m", "namespace": "d", "uid": "5f1c22aa-0000-4000-8000-000000000001"}, "spec": {},
        "status": {
            "phase": "Transferring", "destination": {"nodeName": "n2", "repository": REPOSITORY},
            "source": {"name": "p", "uid": "source", "nodeName": "n1", "containers": [{"name": "app", "containerID": "one", "image": "i"}]}
        }
    }))
    .expect("a migration")
}

/// A bus that fails so many times, then notes what it is told.
#[derive(Default)]
struct Noting {
    failures: StdMutex<u32>,
    told: StdMutex<Vec<RegistryEvent>>,
}

#[async_trait]
impl Announcer for Noting {
    fn name(&self) -> &'static str {
        "Noting"
    }

    async fn announce(&self, event: &RegistryEvent) -> PortResult<()> {
        let mut failures = self.failures.lock().expect("a lock");
        if *failures > 0 {
            *failures -= 1;
            return Err(PortError::transient("the broker is away"));
        }
        self.told.lock().expect("a lock").push(event.clone());
        Ok(())
    }

    fn state(&self) -> BusState {
        BusState { connected: true, message: String::new() }
    }
}

struct World {
    node: FakeNode,
    bus: Arc<Noting>,
    pushed: mpsc::Sender<Pushed>,
    metrics: Metrics,
}

/// An agent of n2 that announces.
fn world(failures: u32) -> World {
    let node = FakeNode::new(migration());
    let (migrations, mut writer) = reflector::store();
    writer.apply_watcher_event(&Event::Apply(migration()));
    let bus = Arc::new(Noting { failures: failures.into(), ..Noting::default() });
    let metrics = Metrics::default();
    let parts = Announcing {
        node: "n2".into(),
        registry: Arc::new(node.clone()),
        migrations,
        bus: bus.clone(),
        clock: Arc::new(node.clone()),
        metrics: metrics.clone(),
    };
    let (pushed, receiver) = mpsc::channel(ROOM);
    // Dropped with the runtime of the test.
    tokio::spawn(announce(Arc::new(parts), receiver, CancellationToken::new()));
    World { node, bus, pushed, metrics }
}

impl World {
    fn hold(&self, digit: &str) {
        let image = PushedImage { container: "app".into(), digest: digest(digit), bytes: 7, memory_bytes: None, pre_copied_bytes: None };
        self.node.state().registry.insert(format!("{REPOSITORY}:app"), image);
    }

    async fn hear(&self, repository: &str, tag: &str, digit: &str) {
        let push =
            Pushed { id: "one".into(), repository: repository.into(), tag: tag.into(), digest: Digest::parse(&digest(digit)).expect("a digest") };
        self.pushed.send(push).await.expect("an announcer");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    fn told(&self) -> Vec<RegistryEvent> {
        self.bus.told.lock().expect("a lock").clone()
    }

    fn counted(&self, result: &str, times: u32) -> bool {
        self.metrics.text().expect("text").contains(&format!("drover_registry_events_total{{result=\"{result}\"}} {times}\n"))
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_the_registry_holds_is_told_of_once_however_often_it_is_heard_of() {
    let world = world(0);
    world.hold("a");
    for _ in 0..10 {
        world.hear(REPOSITORY, "app", "a").await;
    }
    let told = world.told();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].container.as_str(), told[0].digest.as_str(), told[0].bytes), ("app", digest("a").as_str(), 7));
    assert_eq!((told[0].node.as_str(), told[0].migration.name.as_str()), ("n2", "m"));
    assert!(world.counted("announced", 1) && world.counted("repeated", 9));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_of_that_is_not_there_or_that_nobody_waits_for() {
    let world = world(0);
    world.hold("a");
    world.hear(REPOSITORY, "app", "b").await;
    world.hear(REPOSITORY, "other", "a").await;
    world.hear("drover/ffeeddccbbaa99887766554433221100", "app", "a").await;
    assert_eq!(world.told(), []);
    assert!(world.counted("not_held", 3));
    world.hold("b");
    world.hear(REPOSITORY, "app", "b").await;
    assert_eq!(world.told().len(), 1, "what was heard of too early is told when it is there");
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_away_is_tried_again_and_in_the_end_given_up() {
    let world = world(5);
    world.hold("a");
    world.hear(REPOSITORY, "app", "a").await;
    assert_eq!(world.told().len(), 1);

    let world = self::world(u32::MAX);
    world.hold("a");
    world.hear(REPOSITORY, "app", "a").await;
    tokio::time::sleep(TRIED_FOR).await;
    assert!(world.counted("given_up", 1));
    *world.bus.failures.lock().expect("a lock") = 0;
    Verified::new(world.pushed.clone())
        .tell(REPOSITORY, &[PushedImage { container: "app".into(), digest: digest("a"), bytes: 7, memory_bytes: None, pre_copied_bytes: None }]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.told().len(), 1, "the destination side has verified it since");
}
