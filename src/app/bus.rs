//! Which readiness bus is used: Kafka where it is set up, else the API server alone.

use std::sync::Arc;

use kube::Client;

use crate::{
    adapters::{
        direct::{DirectAnnouncer, DirectSubscription},
        kafka::{Bus, KafkaAnnouncer, KafkaAudit, KafkaSubscription},
    },
    metrics::Metrics,
    ports::{
        PortResult,
        bus::{Announcer, Audit, Subscription},
    },
};

pub use crate::adapters::kafka::{KafkaSettings, Sasl, Topics};

/// The agent's end.
///
/// # Errors
/// Where Kafka's settings cannot be used.
pub(super) fn announcer(kafka: Option<KafkaSettings>, client: Client, node: &str, metrics: &Metrics) -> PortResult<Arc<dyn Announcer>> {
    Ok(match kafka {
        Some(settings) => Arc::new(KafkaAnnouncer::start(&Bus::new(settings, metrics.clone()), node)?),
        None => Arc::new(DirectAnnouncer::new(client)),
    })
}

/// The manager's end.
///
/// # Errors
/// Where Kafka's settings cannot be used.
pub(super) fn subscription(kafka: Option<KafkaSettings>, client: Client, metrics: &Metrics) -> PortResult<Arc<dyn Subscription>> {
    Ok(match kafka {
        Some(settings) => Arc::new(KafkaSubscription::start(&Bus::new(settings, metrics.clone()))?),
        None => Arc::new(DirectSubscription::start(client)),
    })
}

/// Where other systems are told; nowhere without Kafka: Events of the Migration say the same to people.
///
/// # Errors
/// Where Kafka's settings cannot be used.
pub(super) fn audit(kafka: Option<KafkaSettings>, metrics: &Metrics) -> PortResult<Option<Arc<dyn Audit>>> {
    let Some(settings) = kafka else { return Ok(None) };
    Ok(Some(Arc::new(KafkaAudit::start(&Bus::new(settings, metrics.clone()))?)))
}
