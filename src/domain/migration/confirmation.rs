//! What word from the readiness bus adds to a status: a note of each image, and a condition. No rule of the protocol looks at either (I7).

use jiff::Timestamp;

use super::{Observed, StatusExt as _, Step};
use crate::{
    api::{Migration, MigrationStatus, migration::condition},
    domain::registry_event::{Judgement, confirmation, confirmed_by, judge_by},
};

/// The step, with the news of the bus in the status that it writes; a step that writes none writes the news first.
pub(super) fn with_news(migration: &Migration, observed: &Observed, now: Timestamp, step: Step) -> Step {
    // By what is written next, so that the vote of this very step counts.
    let next = step.status.as_ref().or(migration.status.as_ref());
    let Some((told, next)) = observed.told.as_ref().zip(next).filter(|(told, next)| judge_by(next, &told.event) == Judgement::News) else {
        return step;
    };
    let mut status = next.clone();
    status.confirmations.push(confirmation(&told.event, told.bus));
    confirm(&mut status, now);
    Step::write(status)
}

/// Says by which bus the images that were voted for were confirmed, where all of them are; whether they are.
fn confirm(status: &mut MigrationStatus, now: Timestamp) -> bool {
    let Some(bus) = confirmed_by(status).map(str::to_owned) else { return false };
    status.set_condition(condition::REGISTRY_CONFIRMED, true, &bus, "", now);
    true
}

/// At the release: how its images were confirmed.
pub(super) fn conclude(status: &mut MigrationStatus, now: Timestamp) {
    if !confirm(status, now) {
        let message = "no word of every image came by the bus; the destination's agent has asked its registry itself";
        status.set_condition(condition::REGISTRY_CONFIRMED, false, "Polled", message, now);
    }
}
