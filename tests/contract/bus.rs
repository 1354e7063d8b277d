//! What any readiness bus promises, whatever it is made of. Run against the API server's adapter (its unit tests), against Kafka's with librdkafka's own
//! mock brokers (its unit tests) and against Kafka's with a real broker (e2e/tests/kafka.rs).

use std::{sync::Arc, time::Duration};

use drover::{
    domain::registry_event::{RegistryEvent, parse},
    ports::bus::{Announcer, Delivery, Subscription},
};

/// How long a bus may take to bring a message, its first connection and a change of the leader included.
const PATIENCE: Duration = Duration::from_secs(20);

/// A bus under test, in which the events' migrations exist.
pub struct Bus<'a> {
    /// The agent's end.
    pub announcer: &'a dyn Announcer,
    /// Makes the manager's end, as a new leader does; the one before is gone by then.
    pub subscribe: &'a dyn Fn() -> Arc<dyn Subscription>,
}

/// The golden event.
///
/// # Panics
/// Where it cannot be read, which its own test would tell first.
pub fn golden() -> RegistryEvent {
    parse(include_bytes!("../golden/registry-event.json")).expect("the golden event")
}

/// The golden event with another digest, which repeats this hex digit.
pub fn event(digit: &str) -> RegistryEvent {
    RegistryEvent { digest: format!("sha256:{}", digit.repeat(64)), ..golden() }
}

/// Runs the whole suite. `events` are of one migration, differ, and nobody has told of them before.
///
/// # Panics
/// Where the bus breaks its promise.
pub async fn holds(bus: Bus<'_>, events: [RegistryEvent; 3]) {
    let [first, second, third] = events;
    let leader = (bus.subscribe)();
    bus.announcer.announce(&first).await.expect("the bus takes it");
    let delivered = receive(&*leader, &first).await;
    assert_eq!(delivered.event, first, "what is announced arrives as it was");
    leader.settle(&delivered);

    bus.announcer.announce(&second).await.expect("the bus takes it");
    bus.announcer.announce(&second).await.expect("the bus takes it again");
    assert_eq!(receive(&*leader, &second).await.event, second);
    drop_in_background(leader).await;

    let next = (bus.subscribe)();
    let again = receive(&*next, &second).await;
    assert_eq!(again.event, second, "what was not settled is delivered to the next leader");
    next.settle(&again);
    bus.announcer.announce(&third).await.expect("the bus takes it");
    let last = receive(&*next, &third).await;
    next.settle(&last);
    wait_for(|| next.state().connected && bus.announcer.state().connected, "both ends say that they are connected").await;
    drop_in_background(next).await;
}

/// The next delivery of this event; others, of earlier times, are passed over.
async fn receive(subscription: &dyn Subscription, wanted: &RegistryEvent) -> Delivery {
    let found = async {
        loop {
            let delivery = subscription.receive().await.expect("the bus goes on");
            if delivery.event == *wanted {
                return delivery;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{wanted:?} does not arrive"))
}

async fn wait_for(holds: impl Fn() -> bool, what: &str) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A leader that goes may have to say goodbye, which blocks.
async fn drop_in_background(subscription: Arc<dyn Subscription>) {
    tokio::task::spawn_blocking(move || drop(subscription)).await.expect("it ends");
}
