//! What must always hold, and what must be reachable.

use drover::api::{Outcome, Phase, Verdict, migration::condition};
use stateright::Property;

use crate::{
    model::Drover,
    state::{SourceTask, Task, World, Wrongs},
};

/// The copy, frozen copy, or complete checkpoint that is left (I2).
pub fn survives(world: &World) -> bool {
    let source = world.source.task != SourceTask::Dead && !world.source.fresh;
    let copy = world.destination.containers.iter().any(|c| c.task == Task::Running { restored: true });
    source || copy || world.source.archive || world.destination.blobs
}

/// Ended, or held with a reason that a person can read.
pub fn has_ended(world: &World) -> bool {
    world.status().is_none_or(|status| status.phase == Phase::Done)
}

pub fn is_held(world: &World) -> bool {
    let held =
        |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| c.type_ == condition::HELD && c.status == "True" && !c.message.is_empty();
    world.status().is_some_and(|status| status.conditions.iter().any(held))
}

/// Nobody is left to thaw a frozen pod, though its migration is gone.
fn is_forsaken(world: &World) -> bool {
    world.migration.is_none() && world.source.up && world.source.task == SourceTask::Paused && world.source.fence == crate::state::Fence::Ours
}

pub fn is_quiescent(model: &Drover, world: &World) -> bool {
    model.ordinary(world).is_empty()
}

fn outcome(world: &World) -> Option<Outcome> {
    world.status().and_then(|status| status.outcome)
}

fn never(wrong: u16) -> impl Fn(&World) -> bool {
    move |world| !world.past.wrongs.has(wrong)
}

pub fn all() -> Vec<Property<Drover>> {
    vec![
        Property::<Drover>::always("I1 one runner", |_, w| !(w.source_runs() && w.destination_runs())),
        Property::<Drover>::always("I1 no restore of a checkpoint that the source has outrun", |_, w| never(Wrongs::STALE_RESTORE)(w)),
        Property::<Drover>::always("I2 one survivor", |_, w| survives(w) || w.past.excused),
        Property::<Drover>::always("I3 the verdict is written once", |_, w| never(Wrongs::VERDICT_REWRITTEN)(w)),
        Property::<Drover>::always("I3 no thaw after the vote without Rollback, no end without Commit and confirmation", |_, w| {
            never(Wrongs::THAWED_AFTER_VOTE)(w) && never(Wrongs::KILLED_EARLY)(w)
        }),
        Property::<Drover>::always("I4 no rollback once anything of the replacement ran", |_, w| {
            let ran = w.past.restores > 0 || w.past.cold;
            !(ran && w.status().is_some_and(|status| status.verdict == Some(Verdict::Rollback)))
        }),
        Property::<Drover>::always("I5 no false Migrated", |_, w| {
            never(Wrongs::FALSE_COMMIT)(w) && (outcome(w) != Some(Outcome::Migrated) || (w.past.restores == 1 && !w.past.cold))
        }),
        Property::<Drover>::always("I8 no rewind", |_, w| never(Wrongs::REWOUND)(w)),
        Property::<Drover>::always("R11 only who froze thaws", |_, w| never(Wrongs::FOREIGN_THAW)(w)),
        Property::<Drover>::always("I6 what comes to rest has ended or is held", |model, w| {
            !is_forsaken(w) && (has_ended(w) || is_held(w) || !is_quiescent(model, w))
        }),
        Property::<Drover>::sometimes("Migrated", |_, w| outcome(w) == Some(Outcome::Migrated)),
        Property::<Drover>::sometimes("RolledBack before the release", |_, w| {
            outcome(w) == Some(Outcome::RolledBack) && w.status().is_some_and(|status| status.never_started.is_none())
        }),
        Property::<Drover>::sometimes("RolledBack after the release, with proof", |_, w| {
            outcome(w) == Some(Outcome::RolledBack) && w.status().is_some_and(|status| status.never_started.is_some())
        }),
        Property::<Drover>::sometimes("Held", |_, w| is_held(w)),
    ]
}
