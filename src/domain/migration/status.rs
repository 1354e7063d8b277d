//! Writing a status: phases with their times, conditions in the API conventions.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};

use crate::api::{
    MigrationStatus, Outcome, Phase,
    migration::{PhaseTiming, condition},
};

/// Milliseconds from one moment to a later one; 0 where the clocks disagree about the order.
pub(super) fn millis(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

/// Time since a moment; zero where the clocks disagree about the order.
#[must_use]
pub fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

pub(in crate::domain) trait StatusExt {
    /// Goes on to a phase: ends the time of the one before.
    fn enter(&mut self, phase: Phase, now: Timestamp);
    /// Ends the migration.
    fn finish(&mut self, outcome: Outcome, now: Timestamp);
    /// Ends a check that found nothing.
    fn complete_check(&mut self, now: Timestamp);
    /// How long the migration has been in a phase; zero where it is not in it.
    fn time_in(&self, phase: Phase, now: Timestamp) -> Duration;
    /// Sets a condition.
    fn set_condition(&mut self, kind: &'static str, value: bool, reason: &str, message: &str, now: Timestamp);
    /// Makes a condition false where it stands.
    fn clear_condition(&mut self, kind: &'static str, reason: &'static str, now: Timestamp);
    /// Whether a condition is true with this very reason and message.
    fn condition_is(&self, kind: &str, reason: &str, message: &str) -> bool;
}

impl StatusExt for MigrationStatus {
    fn enter(&mut self, phase: Phase, now: Timestamp) {
        if let Some(last) = self.phases.last_mut().filter(|last| last.millis.is_none()) {
            last.millis = Some(millis(last.started_at.0, now));
        }
        self.phases.push(PhaseTiming { phase, started_at: MicroTime(now), millis: None });
        self.phase = phase;
    }

    fn finish(&mut self, outcome: Outcome, now: Timestamp) {
        self.outcome = Some(outcome);
        let message = self.message.clone();
        self.set_condition(condition::COMPLETE, true, outcome.as_str(), &message, now);
        self.enter(Phase::Done, now);
    }

    fn complete_check(&mut self, now: Timestamp) {
        let message = self.message.clone();
        self.set_condition(condition::COMPLETE, true, "CheckPassed", &message, now);
        self.enter(Phase::Done, now);
    }

    fn time_in(&self, phase: Phase, now: Timestamp) -> Duration {
        let entered = self.phases.iter().rev().find(|timing| timing.phase == phase);
        entered.map_or(Duration::ZERO, |timing| Duration::from_millis(millis(timing.started_at.0, now)))
    }

    fn set_condition(&mut self, kind: &'static str, value: bool, reason: &str, message: &str, now: Timestamp) {
        let status = if value { "True" } else { "False" };
        let since = self.conditions.iter().find(|c| c.type_ == kind && c.status == status).map_or(Time(now), |c| c.last_transition_time.clone());
        let condition = Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: since,
            observed_generation: self.observed_generation,
        };
        self.conditions.retain(|c| c.type_ != kind);
        self.conditions.push(condition);
    }

    fn clear_condition(&mut self, kind: &'static str, reason: &'static str, now: Timestamp) {
        if self.conditions.iter().any(|c| c.type_ == kind && c.status == "True") {
            self.set_condition(kind, false, reason, "", now);
        }
    }

    fn condition_is(&self, kind: &str, reason: &str, message: &str) -> bool {
        self.conditions.iter().any(|c| c.type_ == kind && c.status == "True" && c.reason == reason && c.message == message)
    }
}
