//! The readiness bus on Kafka, and the audit of phases (docs/events.md).
//!
//! ```text
//! agents ── drover.registry.v1, key = the Migration's UID ──▶ the leading manager (group drover-manager, one static member)
//!                    └── what cannot be read ──▶ drover.registry.v1.dlq, with the reason
//! the leading manager ── drover.migrations.v1, CloudEvents ──▶ whoever listens
//! ```
//!
//! TLS is as Strimzi hands it out: PEM files in Secrets (`ca.crt` of the cluster; `user.crt` and `user.key`, or a password for SCRAM).

mod announcer;
mod audit;
mod link;
mod producer;
mod subscription;
mod topics;

use std::{path::PathBuf, sync::Arc};

use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, Producer as _},
};

use tokio_util::task::AbortOnDropHandle;

pub use announcer::KafkaAnnouncer;
pub use audit::KafkaAudit;
pub use subscription::KafkaSubscription;

use crate::{
    metrics::Metrics,
    ports::{PortError, PortResult},
};
use link::Link;
use producer::Producer;

/// Name of the bus.
pub const NAME: &str = "Kafka";

/// How to reach the brokers, and who we are there.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// `host:port` of some brokers, separated by commas.
    pub brokers: String,
    /// The topics.
    pub topics: Topics,
    /// File with the CA of the brokers' certificates; none: no TLS.
    pub ca: Option<PathBuf>,
    /// Folder with `user.crt` and `user.key`.
    pub client_certs: Option<PathBuf>,
    /// User name and password file for SASL.
    pub sasl: Option<Sasl>,
    /// Further options of librdkafka: they win over ours.
    pub options: Vec<(String, String)>,
    /// So many replicas a topic must have at least.
    pub least_replicas: usize,
}

/// Who we are by SASL.
#[derive(Debug, Clone)]
pub struct Sasl {
    /// `SCRAM-SHA-512`, or another that librdkafka knows.
    pub mechanism: String,
    /// User name.
    pub username: String,
    /// File with the password.
    pub password_file: PathBuf,
}

/// Names of the topics, and of the managers' consumer group.
#[derive(Debug, Clone)]
pub struct Topics {
    /// Consumer group of the managers, and its one member: a name that stays the same lets the next leader take over without waiting for a session to end.
    pub group: String,
    /// Word of images.
    pub registry: String,
    /// What could not be read as such.
    pub dead_letters: String,
    /// Phases of Migrations.
    pub migrations: String,
}

impl KafkaSettings {
    /// Options that every client has.
    fn client(&self, id: &str) -> PortResult<ClientConfig> {
        let mut config = ClientConfig::new();
        let protocol = match (&self.ca, &self.sasl) {
            (None, None) => "plaintext",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), None) => "ssl",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", id)
            .set("security.protocol", protocol)
            .set("statistics.interval.ms", "1000")
            // A broker that is back is found within a second
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "1000");
        if let Some(ca) = &self.ca {
            config.set("ssl.ca.location", ca.display().to_string());
        }
        if let Some(folder) = &self.client_certs {
            config.set("ssl.certificate.location", folder.join("user.crt").display().to_string());
            config.set("ssl.key.location", folder.join("user.key").display().to_string());
        }
        if let Some(sasl) = &self.sasl {
            let path = &sasl.password_file;
            let password = std::fs::read_to_string(path)
                .map_err(|error| PortError::permanent(format!("the Kafka user's password cannot be read from {}: {error}", path.display())))?;
            config.set("sasl.mechanism", &sasl.mechanism).set("sasl.username", &sasl.username).set("sasl.password", password.trim_end());
        }
        Ok(config)
    }

    fn with_options(&self, mut config: ClientConfig) -> ClientConfig {
        for (key, value) in &self.options {
            config.set(key, value);
        }
        config
    }

    fn producer(&self, id: &str, millis: u32, link: Link) -> PortResult<FutureProducer<Link>> {
        let mut config = self.client(id)?;
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("message.timeout.ms", millis.to_string())
            // Of the gigabyte that is the default, nobody has that much to tell
            .set("queue.buffering.max.kbytes", "16384");
        self.with_options(config).create_with_context(link).map_err(|error| unusable(&error))
    }
}

/// librdkafka has refused the configuration itself: a certificate that cannot be read, an option that it does not know.
fn unusable(error: &rdkafka::error::KafkaError) -> PortError {
    PortError::permanent(format!("Kafka's client cannot be made: {error}; look at the values kafka.* of the chart and at the Secrets they name"))
}

/// Looks at the topics as soon as the brokers answer, and again where something is missing; says it in the link's state. Goes on until dropped.
fn watch_topics(producer: Producer, link: Link, topics: Vec<String>, least_replicas: usize) -> AbortOnDropHandle<()> {
    let topics = Arc::new(topics);
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let (producer, names) = (producer.now(), Arc::clone(&topics));
            // Blocks for as long as the brokers do not answer.
            let looked = tokio::task::spawn_blocking(move || topics::examine(producer.client(), &names, least_replicas)).await;
            let (remark, pause) = match looked {
                Ok(Ok(())) => (String::new(), topics::SELDOM),
                Ok(Err(problem)) => (problem, topics::SOON),
                Err(error) => (error.to_string(), topics::SOON),
            };
            link.remark(&remark);
            tokio::time::sleep(pause).await;
        }
    }))
}

/// What all parts of one process's bus share: its numbers, and one word of how it is doing.
#[derive(Debug, Clone)]
pub struct Bus {
    settings: KafkaSettings,
    metrics: Metrics,
}

impl Bus {
    /// The bus behind these settings.
    #[must_use]
    pub fn new(settings: KafkaSettings, metrics: Metrics) -> Self {
        Self { settings, metrics }
    }
}

#[cfg(test)]
mod tests;
