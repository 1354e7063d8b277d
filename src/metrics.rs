//! What is counted and measured. Every label value is a static string: names and error texts never become labels.

use std::sync::Arc;

use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::api::{Outcome, Phase};

/// Seconds: from the fastest freeze measured (0.3 s, MEASURED.md 10) to the longest deadline that anybody sets.
const SECONDS: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 600.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdmissionLabels {
    webhook: &'static str,
    decision: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExtenderLabels {
    verb: &'static str,
    answer: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    certificate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// What became of a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmissionDecision {
    /// Let through as it was.
    Allowed,
    /// Let through, changed.
    Patched,
    /// Refused.
    Denied,
    /// Could not be read, or what it depends on could not be looked up.
    Failed,
}

impl AdmissionDecision {
    const fn label(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Patched => "patched",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// What kube-scheduler was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtenderAnswer {
    /// The pod is none of Drover's.
    Ordinary,
    /// Some node is left for a pod of Drover's, or for one that preempts.
    Placed,
    /// No node is.
    Refused,
    /// The request could not be read, or what the answer depends on could not be looked up.
    Failed,
}

impl ExtenderAnswer {
    const fn label(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Placed => "placed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// All metrics of a process. Clones share the numbers.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    admissions: Family<AdmissionLabels, Counter>,
    extender: Family<ExtenderLabels, Counter>,
    migrations: Family<OutcomeLabels, Counter>,
    phase_seconds: Family<PhaseLabels, Histogram, fn() -> Histogram>,
    frozen_seconds: Histogram,
    certificates: Family<CertificateLabels, Gauge>,
    notifications: Family<ResultLabels, Counter>,
    registry_events: Family<ResultLabels, Counter>,
    bus_connected: Gauge,
    bus_lag: Gauge,
    pushed_bytes: Counter,
    push_seconds: Histogram,
    rebalanced: Family<ResultLabels, Counter>,
    pushes_resumed: Counter,
    pull_connections: Family<ResultLabels, Counter>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("drover");
        let admissions = Family::default();
        let extender = Family::default();
        let migrations = Family::default();
        let phase_seconds = Family::new_with_constructor(seconds as fn() -> Histogram);
        let frozen_seconds = seconds();
        let certificates = Family::default();
        registry.register("admission_decisions", "Answers of the admission webhooks", admissions.clone());
        registry.register("extender_answers", "Answers of the scheduler extender", extender.clone());
        registry.register("migrations", "Migrations that have ended", migrations.clone());
        registry.register_with_unit("phase", "How long a phase took", Unit::Seconds, phase_seconds.clone());
        registry.register_with_unit("frozen", "Time in which neither copy of a pod ran", Unit::Seconds, frozen_seconds.clone());
        registry.register("certificate_expiry_timestamp_seconds", "When a certificate ends, in seconds since 1970", certificates.clone());
        let (notifications, registry_events) = (Family::default(), Family::default());
        let (bus_connected, bus_lag) = (Gauge::default(), Gauge::default());
        let (pushed_bytes, push_seconds, pushes_resumed) = (Counter::default(), seconds(), Counter::default());
        registry.register_with_unit("pushed", "Checkpoints and volumes that were pushed to other nodes", Unit::Bytes, pushed_bytes.clone());
        registry.register_with_unit("push", "How long a push took, with what was sent again", Unit::Seconds, push_seconds.clone());
        registry.register("push_resumed", "Cut pushes that went on where they had stopped", pushes_resumed.clone());
        registry.register("registry_notifications", "What the node's registry has told its agent", notifications.clone());
        registry.register("registry_events", "Word of images on the readiness bus", registry_events.clone());
        registry.register("bus_connected", "Whether the readiness bus is connected: 1 or 0", bus_connected.clone());
        registry.register("bus_lag_records", "Records on the readiness bus that are not settled", bus_lag.clone());
        let rebalanced = Family::default();
        registry.register("rebalance_proposals", "Pods that were to leave an overloaded node", rebalanced.clone());
        let pull_connections = Family::default();
        registry.register("pull_connections", "Connections to the door for pulls, by who made them", pull_connections.clone());
        Self {
            registry: Arc::new(registry),
            admissions,
            extender,
            migrations,
            phase_seconds,
            frozen_seconds,
            certificates,
            notifications,
            registry_events,
            bus_connected,
            bus_lag,
            pushed_bytes,
            push_seconds,
            rebalanced,
            pushes_resumed,
            pull_connections,
        }
    }
}

impl Metrics {
    /// Counts an answer of a webhook.
    pub fn admission(&self, webhook: &'static str, decision: AdmissionDecision) {
        self.admissions.get_or_create(&AdmissionLabels { webhook, decision: decision.label() }).inc();
    }

    /// Counts an answer of the scheduler extender.
    pub fn extender(&self, verb: &'static str, answer: ExtenderAnswer) {
        self.extender.get_or_create(&ExtenderLabels { verb, answer: answer.label() }).inc();
    }

    /// Counts a Migration that has ended; `frozen_millis` where its pod was frozen at all.
    pub fn migration_ended(&self, outcome: Outcome, frozen_millis: Option<u64>) {
        self.migrations.get_or_create(&OutcomeLabels { outcome: outcome.as_str() }).inc();
        if let Some(millis) = frozen_millis {
            self.frozen_seconds.observe(seconds_of(millis));
        }
    }

    /// Measures a phase that is over.
    pub fn phase(&self, phase: Phase, millis: u64) {
        self.phase_seconds.get_or_create(&PhaseLabels { phase: phase.as_str() }).observe(seconds_of(millis));
    }

    /// Says when a certificate ends.
    pub fn certificate(&self, certificate: &'static str, not_after: Timestamp) {
        self.certificates.get_or_create(&CertificateLabels { certificate }).set(not_after.as_second());
    }

    /// Counts what became of a registry's notification.
    pub fn notification(&self, result: &'static str) {
        self.notifications.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts what became of an event on the readiness bus.
    pub fn registry_event(&self, result: &'static str) {
        self.registry_events.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts a pod that is to leave an overloaded node, `done` or only proposed.
    pub fn rebalanced(&self, done: bool) {
        self.rebalanced.get_or_create(&ResultLabels { result: if done { "moved" } else { "dry_run" } }).inc();
    }

    /// Says whether the readiness bus is connected.
    pub fn bus_connected(&self, connected: bool) {
        self.bus_connected.set(connected.into());
    }

    /// Says how many records wait on the readiness bus.
    pub fn bus_lag(&self, records: i64) {
        self.bus_lag.set(records);
    }

    /// Counts a push that another node's registry has taken.
    pub fn pushed(&self, bytes: u64, took: std::time::Duration) {
        self.pushed_bytes.inc_by(bytes);
        self.push_seconds.observe(took.as_secs_f64());
    }

    /// Counts a push that was cut and goes on where it had stopped.
    pub fn push_resumed(&self) {
        self.pushes_resumed.inc();
    }

    /// Counts a connection to the door for pulls, by who made it.
    pub fn pull_connection(&self, result: &'static str) {
        self.pull_connections.get_or_create(&ResultLabels { result }).inc();
    }

    /// All of it in OpenMetrics text.
    ///
    /// # Errors
    /// Where a metric cannot be written, which no metric of ours does.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn seconds_of(millis: u64) -> f64 {
    std::time::Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_arrive_under_their_names() {
        let metrics = Metrics::default();
        metrics.admission("pods", AdmissionDecision::Denied);
        metrics.extender("filter", ExtenderAnswer::Refused);
        metrics.migration_ended(Outcome::Migrated, Some(1500));
        metrics.phase(Phase::Freezing, 30);
        metrics.certificate("webhook", Timestamp::UNIX_EPOCH);
        metrics.notification("taken");
        metrics.registry_event("recorded");
        metrics.rebalanced(false);
        metrics.bus_connected(true);
        metrics.bus_lag(3);
        metrics.pull_connection("contained");
        metrics.pushed(7, std::time::Duration::from_millis(250));
        let text = metrics.text().expect("text");
        for line in [
            r#"drover_admission_decisions_total{webhook="pods",decision="denied"} 1"#,
            r#"drover_extender_answers_total{verb="filter",answer="refused"} 1"#,
            r#"drover_migrations_total{outcome="Migrated"} 1"#,
            "drover_frozen_seconds_sum 1.5",
            r#"drover_phase_seconds_bucket{le="0.1",phase="Freezing"} 1"#,
            r#"drover_certificate_expiry_timestamp_seconds{certificate="webhook"} 0"#,
            r#"drover_registry_notifications_total{result="taken"} 1"#,
            r#"drover_registry_events_total{result="recorded"} 1"#,
            r#"drover_rebalance_proposals_total{result="dry_run"} 1"#,
            r#"drover_pull_connections_total{result="contained"} 1"#,
            "drover_bus_connected 1",
            "drover_bus_lag_records 3",
            "drover_pushed_bytes_total 7",
            "drover_push_seconds_sum 0.25",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
