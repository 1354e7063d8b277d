//! What word from the readiness bus adds to a status: a note of each image, and a condition. No rule of the protocol looks at either (I7).

use jiff::Timestamp;

use super::{Observed, StatusExt as _, Step};
use crate::{
    api::{Migration, MigrationStatus, migration::condition},
    domain::registry_event::{Judgement, confirmation, confirmed_by, judge},
};

/// The step, with the news of the bus in the status that it writes; a step that writes none writes the news first.
pub(super) fn with_news(migration: &Migration, observed: &Observed, now: Timestamp, step: Step) -> Step {
    let mut judged = migration.clone();
    let mut status = step.status.clone().or_else(|| migration.status.clone()).unwrap_or_default();
    let known = status.confirmations.len();
    for told in &observed.told {
        // By what is written next, so that the vote of this very step counts, and the same event twice is one.
        judged.status = Some(status.clone());
        if judge(&judged, &told.event) == Judgement::News {
            status.confirmations.push(confirmation(&told.event, told.bus));
        }
    }
    if status.confirmations.len() == known {
        return step;
    }
    set_condition(&mut status, now);
    Step::write(status)
}

/// Says how the images that were voted for were confirmed, as soon as all of them are.
fn set_condition(status: &mut MigrationStatus, now: Timestamp) {
    let reason = match confirmed_by(status) {
        Some("Kafka") => "Kafka",
        Some(_) => "Direct",
        None => return,
    };
    status.set_condition(condition::REGISTRY_CONFIRMED, true, reason, "", now);
}

/// At the release: how its images were confirmed.
pub(super) fn conclude(status: &mut MigrationStatus, now: Timestamp) {
    if confirmed_by(status).is_some() {
        set_condition(status, now);
    } else {
        let message = "no word of every image came by the bus; the destination's agent has asked its registry itself";
        status.set_condition(condition::REGISTRY_CONFIRMED, false, "Polled", message, now);
    }
}
