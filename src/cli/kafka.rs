//! Flags of the readiness bus, for the manager and the agents.

use std::path::PathBuf;

use crate::app::bus::{KafkaSettings, Sasl, Topics};

/// Kafka as the readiness bus; without brokers the API server is.
#[derive(Debug, clap::Args)]
pub struct KafkaArgs {
    /// `host:port` of some Kafka brokers, separated by commas. Without it no Kafka is used
    #[arg(long = "kafka-brokers")]
    brokers: Option<String>,
    /// File with the CA of the brokers' certificates; without it there is no TLS
    #[arg(long = "kafka-ca")]
    ca: Option<PathBuf>,
    /// Folder with user.crt and user.key, to show to the brokers
    #[arg(long = "kafka-client-certs")]
    client_certs: Option<PathBuf>,
    /// SASL mechanism
    #[arg(long = "kafka-sasl-mechanism", default_value = "SCRAM-SHA-512")]
    sasl_mechanism: String,
    /// User name for SASL; needs --kafka-password-file
    #[arg(long = "kafka-username", requires = "password_file")]
    username: Option<String>,
    /// File with the password for SASL
    #[arg(long = "kafka-password-file", requires = "username")]
    password_file: Option<PathBuf>,
    /// Any option of librdkafka, as key=value; may be repeated, and wins over Drover's own
    #[arg(long = "kafka-option", value_parser = option)]
    options: Vec<(String, String)>,
    /// So many replicas each topic must have
    #[arg(long = "kafka-least-replicas", default_value_t = 2)]
    least_replicas: usize,
    /// Consumer group of the managers
    #[arg(long = "kafka-group", default_value = "drover-manager")]
    group: String,
    /// Topic of the word of images
    #[arg(long = "kafka-registry-topic", default_value = "drover.registry.v1")]
    registry_topic: String,
    /// Topic of what cannot be read as such
    #[arg(long = "kafka-dead-letter-topic", default_value = "drover.registry.v1.dlq")]
    dead_letter_topic: String,
    /// Topic of the phases of Migrations
    #[arg(long = "kafka-migrations-topic", default_value = "drover.migrations.v1")]
    migrations_topic: String,
}

fn option(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl KafkaArgs {
    /// The settings; none where there are no brokers.
    #[must_use]
    pub fn settings(self) -> Option<KafkaSettings> {
        let sasl = self.username.zip(self.password_file);
        Some(KafkaSettings {
            brokers: self.brokers.filter(|brokers| !brokers.is_empty())?,
            topics: Topics {
                group: self.group,
                registry: self.registry_topic,
                dead_letters: self.dead_letter_topic,
                migrations: self.migrations_topic,
            },
            ca: self.ca,
            client_certs: self.client_certs,
            sasl: sasl.map(|(username, password_file)| Sasl { mechanism: self.sasl_mechanism, username, password_file }),
            options: self.options,
            least_replicas: self.least_replicas,
        })
    }
}
