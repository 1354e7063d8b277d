//! Producers that follow their files: certificates and passwords are renewed while a process runs, and librdkafka reads them once.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::producer::FutureProducer;

use super::{KafkaSettings, Link};
use crate::{
    domain::{ids::Digest, image::digest_of},
    ports::PortResult,
};

/// A producer that loses and doubles nothing that it has taken, for as long as `millis`. Clones share it.
#[derive(Clone)]
pub(super) struct Producer {
    settings: KafkaSettings,
    id: String,
    millis: u32,
    link: Link,
    current: Arc<Mutex<(Digest, FutureProducer<Link>)>>,
}

impl Producer {
    pub(super) fn start(settings: &KafkaSettings, id: &str, millis: u32, link: Link) -> PortResult<Self> {
        let current = (fingerprint(settings), settings.producer(id, millis, link.clone())?);
        Ok(Self { settings: settings.clone(), id: id.to_owned(), millis, link, current: Arc::new(Mutex::new(current)) })
    }

    /// The producer, made anew where a file has changed; with the files half written, the one before.
    pub(super) fn now(&self) -> FutureProducer<Link> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let files = fingerprint(&self.settings);
        if current.0 != files {
            match self.settings.producer(&self.id, self.millis, self.link.clone()) {
                Ok(producer) => {
                    tracing::info!(client = self.id, "Kafka's certificates or password were renewed");
                    *current = (files, producer);
                }
                Err(error) => tracing::warn!(%error, client = self.id, "Kafka's renewed certificates cannot be used yet"),
            }
        }
        current.1.clone()
    }
}

/// What stands in the files; one that cannot be read counts as empty.
pub(super) fn fingerprint(settings: &KafkaSettings) -> Digest {
    let certificates = settings.client_certs.iter().flat_map(|folder| [folder.join("user.crt"), folder.join("user.key")]);
    let password = settings.sasl.iter().map(|sasl| sasl.password_file.clone());
    let files = settings.ca.iter().cloned().chain(certificates).chain(password);
    let contents: Vec<Digest> = files.map(|path| digest_of(&std::fs::read(path).unwrap_or_default())).collect();
    digest_of(contents.iter().map(Digest::as_str).collect::<Vec<_>>().join(" ").as_bytes())
}
