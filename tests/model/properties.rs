//! What must always hold, and what must be reachable.

use std::fmt;

use drover::api::{MigrationStatus, Outcome, Phase, Verdict};
use stateright::Property;

use crate::{
    faults::Node,
    filling::Memory,
    intern::WORDS,
    model::Drover,
    state::{Resolve, SourceTask, World, Wrongs},
};

/// I6, of the whole graph: from everywhere an ordinary course leads to an end, or to a hold with a reason.
pub const ENDS: &str = "I6 it ends, or is held with a reason";

/// I6, of the whole graph: a person's decision for the source is carried out.
pub const RESOLVES: &str = "I6 what a person decides for the source ends";

/// Ended, or held with a reason that a person can read.
pub fn has_ended(world: &World) -> bool {
    world.status().is_none_or(|status| status.phase == Phase::Done)
}

pub fn is_held(world: &World) -> bool {
    world.status().and_then(|status| status.held()).is_some_and(|held| !held.message.is_empty())
}

/// Held, for this reason.
pub fn is_held_for(world: &World, reason: &str) -> bool {
    world.status().and_then(|status| status.held()).is_some_and(|held| held.reason == reason)
}

/// A person has decided for the source, and both nodes are there and know their claims: an ordinary course must lead to the end.
pub fn is_decided(model: &Drover, world: &World) -> bool {
    let open = world.status().is_some_and(|status| status.verdict.is_none());
    let restored = world.destination_says.is_some_and(|id| WORDS.get(id).restored.is_some());
    let known = (!model.is_gated(Node::Destination) || world.destination.containers[0].claim.is_some()) && !restored;
    let decided = world.migration.is_some_and(|mig| mig.resolve == Some(Resolve::Source));
    decided && open && known && !world.destination.lost && !world.source.lost
}

/// Nobody is left to thaw a frozen pod, though its migration is gone.
fn is_forsaken(world: &World) -> bool {
    world.migration.is_none() && world.source.up && world.source.task == SourceTask::Paused && world.source.fence == crate::state::Fence::Ours
}

/// What a world that has come to rest rests in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rest {
    Ended(&'static str),
    Held(String),
    /// The Migration's object is gone.
    Removed,
    UnderWay(Phase),
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(outcome) => f.write_str(outcome),
            Self::Held(reason) => write!(f, "Held({reason})"),
            Self::Removed => f.write_str("removed"),
            Self::UnderWay(phase) => write!(f, "UNDER WAY in {phase}"),
        }
    }
}

pub fn rest(world: &World) -> Rest {
    let Some(status) = world.status() else { return Rest::Removed };
    match status.held() {
        _ if status.phase == Phase::Done => Rest::Ended(status.outcome.map_or("no outcome", Outcome::as_str)),
        Some(held) => Rest::Held(held.reason.clone()),
        None => Rest::UnderWay(status.phase),
    }
}

fn outcome(world: &World) -> Option<Outcome> {
    world.status().and_then(|status| status.outcome)
}

fn goes_first(world: &World) -> bool {
    world.status().is_some_and(MigrationStatus::is_source_first)
}

fn fell_back(world: &World, how: impl Fn(&MigrationStatus) -> bool) -> bool {
    outcome(world) == Some(Outcome::RolledBack) && world.status().is_some_and(|status| status.fallback.is_some() && how(status))
}

fn never(wrong: u16) -> impl Fn(&World) -> bool {
    move |world| !world.past.wrongs.has(wrong)
}

/// What can be said of a state alone.
pub fn of_states() -> Vec<Property<Drover>> {
    let mut all = invariants();
    all.extend(ends());
    all
}

fn invariants() -> Vec<Property<Drover>> {
    vec![
        Property::<Drover>::always("I1 one runner", |_, w| {
            let runners = [w.source_runs(), w.destination.runs(), w.fallback_runs()];
            runners.into_iter().filter(|runs| *runs).count() <= 1
        }),
        Property::<Drover>::always("I1 no restore of a checkpoint that the source has outrun", |_, w| never(Wrongs::STALE_RESTORE)(w)),
        Property::<Drover>::always("I2 one survivor", |model, w| model.survives(w) || w.past.excused),
        Property::<Drover>::always("I2 Drover ends no running copy in doubt", |_, w| never(Wrongs::COPY_ENDED)(w)),
        Property::<Drover>::always("I3 the verdict is written once", |_, w| never(Wrongs::VERDICT_REWRITTEN)(w)),
        Property::<Drover>::always("I3 no thaw after the vote without Rollback, no end without Commit and confirmation", |_, w| {
            never(Wrongs::THAWED_AFTER_VOTE)(w) && never(Wrongs::KILLED_EARLY)(w)
        }),
        Property::<Drover>::always("I4 no rollback once anything of the replacement ran, unless decided in doubt", |_, w| {
            let ran = w.past.restores > 0 || w.past.cold;
            !(ran && w.status().is_some_and(|status| status.verdict == Some(Verdict::Rollback) && status.resolved.is_none()))
        }),
        Property::<Drover>::always("I5 no false Migrated", |model, w| {
            let once = model.all_restored(w) && !w.past.cold && never(Wrongs::REPEATED)(w);
            never(Wrongs::FALSE_COMMIT)(w) && (outcome(w) != Some(Outcome::Migrated) || once)
        }),
        Property::<Drover>::always("I5 no false RolledBack onto the archive", |model, w| {
            let fell_back = outcome(w) == Some(Outcome::RolledBack) && w.status().is_some_and(|status| status.fallback.is_some());
            !fell_back || w.first.fallback.as_ref().is_some_and(|it| it.restores == model.all() && !it.cold)
        }),
        Property::<Drover>::always("R15 what was given up keeps its archive", |_, w| {
            outcome(w) != Some(Outcome::GivenUp) || w.source.archive || w.past.disks_lost[0]
        }),
        Property::<Drover>::always("I7 nothing is restored but what the source voted for", |_, w| never(Wrongs::FORGED)(w)),
        Property::<Drover>::always("R19 nothing is said to be restored while memory is outstanding", |_, w| never(Wrongs::OUTSTANDING)(w)),
        Property::<Drover>::always("I8 no rewind", |_, w| never(Wrongs::REWOUND)(w)),
        Property::<Drover>::always("owners: the copy is not what its controller has too many", |_, w| never(Wrongs::COPY_SURPLUS)(w)),
        Property::<Drover>::always("owners: no controller makes another pod for one that is moved", |_, w| never(Wrongs::ANOTHER_POD)(w)),
        Property::<Drover>::always("owners: a Job counts no failure", |_, w| never(Wrongs::JOB_FAILED)(w)),
        Property::<Drover>::always("R11 only who froze thaws", |_, w| never(Wrongs::FOREIGN_THAW)(w)),
        Property::<Drover>::always("I6 nobody is frozen for a migration that is gone", |_, w| !is_forsaken(w)),
    ]
}

/// What must be reachable.
fn ends() -> Vec<Property<Drover>> {
    vec![
        Property::<Drover>::sometimes("Migrated", |_, w| outcome(w) == Some(Outcome::Migrated)),
        Property::<Drover>::sometimes("RolledBack before the release", |_, w| {
            outcome(w) == Some(Outcome::RolledBack) && w.status().is_some_and(|status| status.never_started.is_none())
        }),
        Property::<Drover>::sometimes("RolledBack after the release, with proof", |_, w| {
            outcome(w) == Some(Outcome::RolledBack) && w.status().is_some_and(|status| status.never_started.is_some())
        }),
        Property::<Drover>::sometimes("ColdStarted, decided in doubt", |_, w| outcome(w) == Some(Outcome::ColdStarted)),
        Property::<Drover>::sometimes("RolledBack, decided in doubt", |_, w| {
            outcome(w) == Some(Outcome::RolledBack) && w.status().is_some_and(|status| status.resolved.is_some())
        }),
        Property::<Drover>::sometimes("Held", |_, w| is_held(w)),
        Property::<Drover>::sometimes("Migrated lazily", |model, w| outcome(w) == Some(Outcome::Migrated) && model.memory == Memory::Lazily),
        Property::<Drover>::sometimes("Migrated with the memory from the source", |model, w| {
            outcome(w) == Some(Outcome::Migrated) && model.leaves_memory()
        }),
        Property::<Drover>::sometimes("Held for memory that did not come, the source frozen", |model, w| {
            is_held(w) && model.leaves_memory() && w.past.spoilt && w.source.task == SourceTask::Paused
        }),
        Property::<Drover>::sometimes("RolledBack in doubt for memory that did not come, by a thaw", |model, w| {
            let resolved = outcome(w) == Some(Outcome::RolledBack) && w.status().is_some_and(|status| status.resolved.is_some());
            resolved && model.leaves_memory() && w.past.spoilt && w.source_runs() && !w.source.fresh
        }),
        Property::<Drover>::sometimes("Migrated, the source first", |_, w| outcome(w) == Some(Outcome::Migrated) && goes_first(w)),
        Property::<Drover>::sometimes("RolledBack by a thaw, where the source would have gone first", |_, w| {
            outcome(w) == Some(Outcome::RolledBack) && goes_first(w) && w.status().is_some_and(|status| status.fallback.is_none())
        }),
        Property::<Drover>::sometimes("RolledBack by the fallback before the release", |_, w| {
            fell_back(w, |status| status.resolved.is_none() && status.never_started.is_none())
        }),
        Property::<Drover>::sometimes("RolledBack by the fallback after the release, with proof", |_, w| {
            fell_back(w, |status| status.never_started.is_some())
        }),
        Property::<Drover>::sometimes("RolledBack by the fallback, decided in doubt", |_, w| fell_back(w, |status| status.resolved.is_some())),
        Property::<Drover>::sometimes("ColdStarted, the source first", |_, w| outcome(w) == Some(Outcome::ColdStarted) && goes_first(w)),
        Property::<Drover>::sometimes("Held, the source first", |_, w| is_held(w) && goes_first(w)),
    ]
}

/// All of them, as stateright's own checkers take them.
pub fn all() -> Vec<Property<Drover>> {
    let mut all = of_states();
    all.push(Property::<Drover>::always(ENDS, |model, w| has_ended(w) || is_held(w) || !model.is_at_rest(w)));
    all
}
