//! The agents' end.

use std::time::Duration;

use async_trait::async_trait;
use rdkafka::{error::KafkaError, producer::FutureRecord};
use tokio_util::task::AbortOnDropHandle;

use super::{Bus, NAME, link::Link, producer::Producer, watch_topics};
use crate::{
    domain::registry_event::RegistryEvent,
    ports::{
        PortError, PortResult,
        bus::{Announcer, BusState},
    },
};

/// How long one try to deliver may take: who announces tries again, for as long as it matters.
const TRY: u32 = 5_000;

/// Tells of images by Kafka. The producer is made once: its first message takes half a second and more, later ones a few milliseconds.
pub struct KafkaAnnouncer {
    producer: Producer,
    link: Link,
    topic: String,
    /// Ends with this.
    _topics: AbortOnDropHandle<()>,
}

impl KafkaAnnouncer {
    /// Connects in the background.
    ///
    /// # Errors
    /// Where the settings cannot be used; not where no broker answers.
    pub fn start(bus: &Bus, node: &str) -> PortResult<Self> {
        let link = Link::new(bus.metrics.clone());
        let producer = Producer::start(&bus.settings, &format!("drover-agent-{node}"), TRY, link.clone())?;
        let topic = bus.settings.topics.registry.clone();
        let topics = watch_topics(producer.clone(), link.clone(), vec![topic.clone()], bus.settings.least_replicas);
        Ok(Self { producer, link, topic, _topics: topics })
    }
}

#[async_trait]
impl Announcer for KafkaAnnouncer {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn announce(&self, event: &RegistryEvent) -> PortResult<()> {
        let value = serde_json::to_vec(event).map_err(|error| PortError::permanent(format!("the event cannot be written: {error}")))?;
        let record = FutureRecord::to(&self.topic).key(&event.migration.uid).payload(&value);
        match self.producer.now().send(record, Duration::from_secs(1)).await {
            Ok(_) => {
                self.link.connected(true);
                Ok(())
            }
            Err((error, _)) => Err(self.failure(&error)),
        }
    }

    fn state(&self) -> BusState {
        self.link.state()
    }
}

impl KafkaAnnouncer {
    /// What a message says of its failure is seldom why: that is in the link.
    fn failure(&self, error: &KafkaError) -> PortError {
        let why = self.link.state().message;
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        PortError::transient(format!("Kafka has not taken the event: {error}{why}"))
    }
}
