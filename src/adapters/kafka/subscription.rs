//! The manager's end: one static member of one group, which takes over at once from the leader before it.

use std::time::Duration;

use async_trait::async_trait;
use backon::{ConstantBuilder, Retryable as _};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rdkafka::{
    Message as _,
    consumer::{Consumer as _, StreamConsumer},
    error::KafkaError,
    message::BorrowedMessage,
    producer::FutureRecord,
};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Bus, NAME,
    link::Link,
    producer::{Producer, fingerprint},
    watch_topics,
};
use crate::{
    domain::{
        ids::Digest,
        registry_event::{LONGEST, Unreadable, parse},
    },
    ports::{
        Failure, PortError, PortResult,
        bus::{BusState, Delivery, Position, Subscription},
    },
};

/// How long the dead-letter topic may take; after so many tries the record is passed over, since one bad record must not stop the others.
const TRY: u32 = 5_000;
const TRIES: usize = 3;
/// How often its files are looked at while nothing comes.
const FILES: Duration = Duration::from_mins(1);

/// Hears of images by Kafka.
pub struct KafkaSubscription {
    consumer: StreamConsumer<Link>,
    dead_letters: Producer,
    bus: Bus,
    /// What stood in the files when it was made.
    files: Digest,
    link: Link,
    /// Ends with this.
    _topics: AbortOnDropHandle<()>,
}

impl KafkaSubscription {
    /// Subscribes; connects in the background.
    ///
    /// # Errors
    /// Where the settings cannot be used; not where no broker answers.
    pub fn start(bus: &Bus) -> PortResult<Self> {
        let link = Link::new(bus.metrics.clone());
        let files = fingerprint(&bus.settings);
        let names = &bus.settings.topics;
        let mut config = bus.settings.client(&names.group)?;
        config
            .set("group.id", &names.group)
            .set("group.instance.id", &names.group)
            // What is fetched ahead lies in this process's memory
            .set("queued.max.messages.kbytes", "4096")
            .set("auto.offset.reset", "earliest")
            // What is settled is committed soon and in the background: a commit that waits would block its thread for as long as the brokers are away.
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "200")
            .set("enable.auto.offset.store", "false");
        let consumer: StreamConsumer<Link> =
            bus.settings.with_options(config).create_with_context(link.clone()).map_err(|error| super::unusable(&error))?;
        consumer.subscribe(&[&names.registry]).map_err(|error| super::unusable(&error))?;
        let dead_letters = Producer::start(&bus.settings, "drover-manager-dead-letters", TRY, Link::beside())?;
        let all = vec![names.registry.clone(), names.dead_letters.clone(), names.migrations.clone()];
        let topics = watch_topics(dead_letters.clone(), link.clone(), all, bus.settings.least_replicas);
        Ok(Self { consumer, dead_letters, bus: bus.clone(), files, link, _topics: topics })
    }

    /// Puts a record aside with the reason, then passes over it.
    async fn put_aside(&self, record: &BorrowedMessage<'_>, why: &Unreadable) {
        let label = if matches!(why, Unreadable::UnknownVersion(_)) { "unknown_version" } else { "malformed" };
        self.bus.metrics.registry_event(label);
        tracing::warn!(topic = record.topic(), partition = record.partition(), offset = record.offset(), reason = %why, "a record is no event; it goes to the dead letters");
        let bytes = record.payload().unwrap_or_default();
        let letter = json!({
            "version": 1, "reason": why.to_string(), "topic": record.topic(), "partition": record.partition(), "offset": record.offset(),
            "recordBase64": BASE64_STANDARD.encode(&bytes[..bytes.len().min(LONGEST)]), "truncated": bytes.len() > LONGEST,
        })
        .to_string();
        let (topic, key) = (&self.bus.settings.topics.dead_letters, record.key().unwrap_or_default());
        let send = || async {
            let record = FutureRecord::to(topic).key(key).payload(&letter);
            self.dead_letters.now().send(record, Duration::from_secs(1)).await.map_err(|(error, _)| error)
        };
        let at_once = ConstantBuilder::default().with_delay(Duration::ZERO).with_max_times(TRIES - 1);
        if let Err(error) = send.retry(at_once).notify(|error, _| tracing::debug!(%error, "the dead letters are tried again")).await {
            tracing::error!(%error, topic, "the dead letters take nothing; the record is passed over");
        }
        self.store(record.partition(), record.offset());
    }

    fn store(&self, partition: i32, offset: i64) {
        if let Err(error) = self.consumer.store_offset(&self.bus.settings.topics.registry, partition, offset) {
            // The partition is another's by now, who will see the record again.
            tracing::debug!(%error, partition, offset, "the offset is not noted");
        }
    }
}

#[async_trait]
impl Subscription for KafkaSubscription {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn receive(&self) -> PortResult<Delivery> {
        loop {
            let Ok(received) = tokio::time::timeout(FILES, self.consumer.recv()).await else {
                if fingerprint(&self.bus.settings) != self.files {
                    return Err(PortError::transient("Kafka's certificates or password were renewed"));
                }
                continue;
            };
            match received {
                Ok(record) => {
                    self.link.connected(true);
                    match parse(record.payload().unwrap_or_default()) {
                        Ok(event) => return Ok(Delivery { event, position: Position { partition: record.partition(), offset: record.offset() } }),
                        Err(why) => self.put_aside(&record, &why).await,
                    }
                }
                Err(KafkaError::MessageConsumptionFatal(code)) => {
                    return Err(PortError::new(
                        Failure::Permanent,
                        format!("Kafka has shut this subscriber out ({code}); does another cluster use the same topic and group?"),
                    ));
                }
                // librdkafka goes on by itself. No pause here: while brokers are away it queues more than ten of these a second, and the records come behind them.
                Err(error) => tracing::debug!(%error, "Kafka is tried again"),
            }
        }
    }

    fn settle(&self, delivery: &Delivery) {
        self.store(delivery.position.partition, delivery.position.offset);
    }

    fn state(&self) -> BusState {
        self.link.state()
    }
}
