//! The word that a checkpoint image is in the destination's registry, as it travels from that node's agent to the manager.
//!
//! It is a hint (I7): it may be lost, repeated, late or forged. It is bound to a Migration's UID and a digest, it is told only after the agent has
//! asked its own registry, and nothing is released by it: what releases is the vote and what the destination attests. docs/events.md has the schema.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ids::{Digest, is_dns_subdomain, is_uid};
use crate::api::{
    Migration, MigrationStatus, Phase,
    migration::{ContainerCheckpoint, RegistryConfirmation},
};

/// The version of the schema that is written.
pub const VERSION: u64 = 1;
/// Longest record that is read, in bytes: a well-formed one has less than two.
pub const LONGEST: usize = 16 << 10;
/// So many digests are noted for one container while the source has not voted: it pushes once, and a repeated push after a crash makes one more.
const MOST_PER_CONTAINER: usize = 4;

/// An image that a destination's registry holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryEvent {
    /// [`VERSION`].
    pub version: u64,
    /// When the agent had seen it in its registry, on the agent's clock.
    pub time: Timestamp,
    /// The Migration that it was pushed for.
    pub migration: MigrationRef,
    /// The node whose registry it is.
    pub node: String,
    /// Name of the container in the pod's spec.
    pub container: String,
    /// Digest of the image's manifest.
    pub digest: String,
    /// Bytes of the checkpoint archive.
    pub bytes: u64,
}

/// A Migration by its names and its UID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, which binds the event.
    pub uid: String,
}

/// Why a record is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Another version, perhaps of a newer Drover.
    #[error("version {0} is not known here (known: {VERSION}); is a newer Drover writing to this topic?")]
    UnknownVersion(u64),
    /// It does not say what an event says.
    #[error("{0}")]
    Malformed(String),
}

/// Reads an event; fields that are not known are passed over.
///
/// # Errors
/// Where it is of another version, too long, no JSON, or a field is missing or is not what it must be; the message names the field.
pub fn parse(record: &[u8]) -> Result<RegistryEvent, Unreadable> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let malformed = |what: String| Unreadable::Malformed(what);
    if record.len() > LONGEST {
        return Err(malformed(format!("it has {} bytes, more than {LONGEST}", record.len())));
    }
    let Versioned { version } = serde_json::from_slice(record).map_err(|error| malformed(format!("version cannot be read: {error}")))?;
    if version != VERSION {
        return Err(Unreadable::UnknownVersion(version));
    }
    let event: RegistryEvent = serde_json::from_slice(record).map_err(|error| malformed(error.to_string()))?;
    let names = [
        ("migration.namespace", &event.migration.namespace),
        ("migration.name", &event.migration.name),
        ("node", &event.node),
        ("container", &event.container),
    ];
    if let Some((field, value)) = names.into_iter().find(|(_, value)| !is_dns_subdomain(value)) {
        return Err(malformed(format!("{field} must be a name as Kubernetes has them, not {:?}", cut(value))));
    }
    if !is_uid(&event.migration.uid) {
        return Err(malformed(format!("migration.uid must be a UID, not {:?}", cut(&event.migration.uid))));
    }
    Digest::parse(&event.digest).map_err(|error| malformed(error.to_string()))?;
    Ok(event)
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// What an event is worth for a Migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It is news: note it.
    News,
    /// It is noted already.
    Repeated,
    /// The migration is past the time in which it matters, or has not begun its push.
    OutOfTime,
    /// Another Migration, or none, has this UID.
    UnknownMigration,
    /// It speaks of another node than the destination.
    WrongNode,
    /// The pod has no such container.
    UnknownContainer,
    /// The source has voted for another image.
    WrongDigest,
    /// More different images were told of than a source can have pushed.
    TooMany,
}

impl Judgement {
    /// As a metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::News => "recorded",
            Self::Repeated => "repeated",
            Self::OutOfTime => "out_of_time",
            Self::UnknownMigration => "unknown_migration",
            Self::WrongNode => "wrong_node",
            Self::UnknownContainer => "unknown_container",
            Self::WrongDigest => "wrong_digest",
            Self::TooMany => "too_many",
        }
    }

    /// Whether nobody who is what they say would send such an event.
    #[must_use]
    pub const fn is_suspect(self) -> bool {
        matches!(self, Self::WrongNode | Self::UnknownContainer | Self::WrongDigest | Self::TooMany)
    }
}

/// Judges an event by the Migration that it names.
///
/// A digest of a container whose source has not voted yet is noted, forged or not: the vote will tell ([`is_voted`]).
#[must_use]
pub fn judge(migration: &Migration, event: &RegistryEvent) -> Judgement {
    if migration.metadata.uid.as_ref() != Some(&event.migration.uid) {
        return Judgement::UnknownMigration;
    }
    migration.status.as_ref().map_or(Judgement::OutOfTime, |status| judge_by(status, event))
}

/// The same by the status of that Migration.
#[must_use]
pub fn judge_by(status: &MigrationStatus, event: &RegistryEvent) -> Judgement {
    let of_container = || status.confirmations.iter().filter(|known| known.container == event.container);
    if of_container().any(|known| known.digest == event.digest) {
        return Judgement::Repeated;
    }
    if status.verdict.is_some() || !(Phase::Checkpointing..=Phase::Restoring).contains(&status.phase) {
        return Judgement::OutOfTime;
    }
    if status.destination.as_ref().is_none_or(|destination| destination.node_name != event.node) {
        return Judgement::WrongNode;
    }
    if !status.source.iter().flat_map(|source| &source.containers).any(|container| container.name == event.container) {
        return Judgement::UnknownContainer;
    }
    if status.containers.is_empty() {
        return if of_container().count() >= MOST_PER_CONTAINER { Judgement::TooMany } else { Judgement::News };
    }
    if is_voted(&status.containers, &event.container, &event.digest) { Judgement::News } else { Judgement::WrongDigest }
}

/// Whether this image of a container is among those that were voted for.
#[must_use]
pub fn is_voted(voted: &[ContainerCheckpoint], container: &str, digest: &str) -> bool {
    voted.iter().any(|voted| voted.name == container && voted.digest == digest)
}

/// The event as the Migration's status notes it; `bus` is the way that it came.
#[must_use]
pub fn confirmation(event: &RegistryEvent, bus: &str) -> RegistryConfirmation {
    RegistryConfirmation {
        container: event.container.clone(),
        digest: event.digest.clone(),
        bytes: event.bytes,
        at: k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(event.time),
        bus: bus.to_owned(),
    }
}

/// The way by which every image of the vote was confirmed, where each was.
#[must_use]
pub fn confirmed_by(status: &MigrationStatus) -> Option<&str> {
    let of = |name: &str, digest: &str| status.confirmations.iter().find(|known| known.container == name && known.digest == digest);
    let mut buses = status.containers.iter().map(|voted| of(&voted.name, &voted.digest).map(|known| known.bus.as_str()));
    let first = buses.next()??;
    buses.all(|bus| bus.is_some()).then_some(first)
}

#[cfg(test)]
mod tests;
