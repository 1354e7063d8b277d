//! A message for each phase of a Migration.

use rdkafka::producer::FutureRecord;

use super::{Bus, link::Link, producer::Producer};
use crate::{
    domain::migration_event::MigrationEvent,
    ports::{PortResult, bus::Audit},
};

/// How long a message is kept while no broker takes it, in milliseconds.
const KEPT: u32 = 600_000;

/// Tells other systems by Kafka.
pub struct KafkaAudit {
    producer: Producer,
    topic: String,
}

impl KafkaAudit {
    /// Connects in the background.
    ///
    /// # Errors
    /// Where the settings cannot be used; not where no broker answers.
    pub fn start(bus: &Bus) -> PortResult<Self> {
        let producer = Producer::start(&bus.settings, "drover-manager-audit", KEPT, Link::beside())?;
        Ok(Self { producer, topic: bus.settings.topics.migrations.clone() })
    }
}

impl Audit for KafkaAudit {
    fn tell(&self, event: &MigrationEvent) {
        let Ok(value) = serde_json::to_vec(event) else { return };
        let id = event.id.clone();
        match self.producer.now().send_result(FutureRecord::to(&self.topic).key(&event.data.migration_uid).payload(&value)) {
            Ok(delivery) => {
                tokio::spawn(async move {
                    if let Ok(Err((error, _))) = delivery.await {
                        tracing::error!(event = id, %error, "Kafka has not taken the message of a phase; it stands in the Migration's status only");
                    }
                });
            }
            Err((error, _)) => {
                tracing::error!(event = id, %error, "Kafka's queue takes no message of a phase; it stands in the Migration's status only");
            }
        }
    }
}
