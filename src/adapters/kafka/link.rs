//! How the connection is doing, as librdkafka's callbacks tell it.
//!
//! A wrong certificate, a wrong password or an unknown CA never show on a message: it only times out. The cause comes by the error callback.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::{
    ClientContext, Statistics,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{metrics::Metrics, ports::bus::BusState};

/// One client's view of the brokers. Clones share it.
#[derive(Clone)]
pub(super) struct Link {
    state: Arc<Mutex<Seen>>,
    /// None: another client of this process reports.
    metrics: Option<Metrics>,
}

#[derive(Default)]
struct Seen {
    connected: bool,
    trouble: String,
    remark: String,
}

impl Link {
    /// One whose state is the bus's.
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics: Some(metrics), ..Self::beside() }
    }

    /// One of a client beside that.
    pub(super) fn beside() -> Self {
        let trouble = "no broker has answered yet".to_owned();
        Self { state: Arc::new(Mutex::new(Seen { trouble, ..Seen::default() })), metrics: None }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> BusState {
        let seen = self.lock();
        let message = match (seen.connected, seen.remark.is_empty()) {
            (true, _) => seen.remark.clone(),
            (false, true) => seen.trouble.clone(),
            (false, false) => format!("{}; {}", seen.trouble, seen.remark),
        };
        BusState { connected: seen.connected && seen.remark.is_empty(), message }
    }

    /// What is wrong with the topics; empty where nothing is.
    pub(super) fn remark(&self, remark: &str) {
        let mut seen = self.lock();
        if seen.remark != remark {
            if remark.is_empty() {
                tracing::info!("Kafka's topics are as they should be");
            } else {
                tracing::error!(problem = remark, "Kafka's topics cannot be used as they are");
            }
            remark.clone_into(&mut seen.remark);
        }
    }

    fn trouble(&self, reason: &str) {
        let mut seen = self.lock();
        if seen.trouble != reason {
            // librdkafka says it again at every try.
            tracing::warn!(reason, "Kafka");
            reason.clone_into(&mut seen.trouble);
        }
    }

    /// What the statistics say each second, or a message that has just come or gone.
    pub(super) fn connected(&self, connected: bool) {
        let mut seen = self.lock();
        if seen.connected != connected {
            seen.connected = connected;
            if connected {
                tracing::info!("a Kafka broker answers");
                seen.trouble.clear();
            } else {
                tracing::warn!("no Kafka broker answers");
            }
        }
        drop(seen);
        if let Some(metrics) = &self.metrics {
            metrics.bus_connected(connected);
        }
    }
}

impl ClientContext for Link {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Errors come by the callback below, each once.
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn stats(&self, statistics: Statistics) {
        self.connected(statistics.brokers.values().any(|broker| broker.state == "UP"));
        let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
        let lags: Vec<i64> = partitions.map(|partition| partition.consumer_lag_stored).filter(|lag| *lag >= 0).collect();
        if let Some(metrics) = self.metrics.as_ref().filter(|_| !lags.is_empty()) {
            metrics.bus_lag(lags.iter().sum());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // That all are down follows the reason of each, which says more.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            self.trouble(reason);
        }
    }
}

impl ConsumerContext for Link {}
