//! What the API server enforces of the CRDs' CEL rules (R21), as functions; a test holds the list against the CRDs themselves.

use drover::api::{AttestationStatus, MigrationStatus, Outcome, Phase, Verdict, migration::Side};

/// A rule on a status: its message in the CRD, and whether it holds. `None` for the old one: the status is new, and rules on a change do not count.
pub type Rule<S> = (&'static str, fn(Option<&S>, &S) -> bool);

/// Rules of a Migration's status.
pub const MIGRATION: &[Rule<MigrationStatus>] = &[
    ("status.verdict is written once", |old, new| old.is_none_or(|old| kept(&old.verdict, &new.verdict))),
    ("status.outcome is written once", |old, new| old.is_none_or(|old| kept(&old.outcome, &new.outcome))),
    ("status.neverStarted is written once", |old, new| old.is_none_or(|old| kept(&old.never_started, &new.never_started))),
    ("status.phase never goes back", |old, new| old.is_none_or(|old| new.phase >= old.phase)),
    ("no release once a verdict stands", |_, new| new.phase != Phase::Restoring || new.verdict.is_none()),
    (
        "no rollback after the release without proof that the replacement never started (status.neverStarted), or a decision for the source (status.resolved)",
        |old, new| {
            let Some(old) = old else { return true };
            let rolls_back = new.verdict == Some(Verdict::Rollback) && old.verdict.is_none();
            let decided = new.resolved.as_ref().is_some_and(|resolved| resolved.prefer == Side::Source);
            let unproved = old.phase == Phase::Restoring && new.never_started.is_none() && !decided;
            !(rolls_back && (unproved || matches!(old.phase, Phase::Finishing | Phase::Done)))
        },
    ),
    ("status.resolved is written once", |old, new| old.is_none_or(|old| kept(&old.resolved, &new.resolved))),
    ("status.outcome follows the verdict (I5)", |_, new| match new.outcome {
        None | Some(Outcome::Failed) => true,
        Some(_) if !new.children.is_empty() => true,
        Some(outcome) => {
            new.verdict.is_some_and(|verdict| matches!(outcome, Outcome::RolledBack | Outcome::GivenUp) == (verdict == Verdict::Rollback))
        }
    }),
    ("status.children: a Migration of several pods moves none itself", |_, new| {
        new.children.is_empty() || (new.source.is_none() && new.verdict.is_none() && new.replacement.is_none())
    }),
    ("status.outcome is Partial only for a Migration of several pods", |_, new| new.outcome != Some(Outcome::Partial) || !new.children.is_empty()),
    ("what was decided in doubt is never Migrated (R7)", |_, new| new.outcome != Some(Outcome::Migrated) || new.resolved.is_none()),
    ("no commit of what was not released: status.verdict is Commit only from phase Restoring", |old, new| {
        new.verdict != Some(Verdict::Commit) || old.is_some_and(|old| old.verdict == Some(Verdict::Commit) || old.phase == Phase::Restoring)
    }),
    ("no commit of a replacement that never started (status.neverStarted)", |_, new| {
        new.verdict != Some(Verdict::Commit) || new.never_started.is_none()
    }),
    ("status.outcome is written with phase Done", |_, new| new.outcome.is_none() || new.phase == Phase::Done),
    ("status.lane is written once", |old, new| old.is_none_or(|old| kept(&old.lane, &new.lane))),
    ("status.sourceFirst is written once", |old, new| old.is_none_or(|old| kept(&old.source_first, &new.source_first))),
    ("the source is deleted before the release only where status.sourceFirst says so (R13)", |_, new| {
        new.phase != Phase::SourceDeleting || new.is_source_first()
    }),
    ("status.sourceFirst: no release before the source is deleted (R8)", |old, new| {
        let Some(old) = old else { return true };
        new.phase != Phase::Restoring || !new.is_source_first() || matches!(old.phase, Phase::SourceDeleting | Phase::Restoring)
    }),
    ("status.fallback is for a rollback (R13)", |_, new| new.fallback.is_none() || new.verdict == Some(Verdict::Rollback)),
    ("status.fallback stays", |old, new| old.is_none_or(|old| old.fallback.is_none() || new.fallback.is_some())),
    ("a source that was deleted is not thawed: such a rollback needs status.fallback (R13)", |old, new| {
        let Some(old) = old else { return true };
        let rolls_back = new.verdict == Some(Verdict::Rollback) && old.verdict.is_none() && new.is_source_first();
        !(rolls_back && matches!(old.phase, Phase::SourceDeleting | Phase::Restoring) && new.fallback.is_none())
    }),
    ("status.givenUp is for a fallback that has failed (status.fallback)", |_, new| new.given_up.is_none() || new.fallback.is_some()),
    ("status.givenUp is written once", |old, new| old.is_none_or(|old| kept(&old.given_up, &new.given_up))),
    ("status.outcome is GivenUp where a person has given the pod up (status.givenUp)", |_, new| {
        new.outcome.is_none_or(|outcome| (outcome == Outcome::GivenUp) == new.given_up.is_some())
    }),
];

/// Rules of an Attestation's status.
pub const ATTESTATION: &[Rule<AttestationStatus>] = &[
    ("status.inspected is written once", |old, new| old.is_none_or(|old| kept(&old.inspected, &new.inspected))),
    ("status.ended is written once", |old, new| old.is_none_or(|old| kept(&old.ended, &new.ended))),
    ("status.ended and status.thawed exclude each other (R13)", |_, new| new.ended.is_none() || new.thawed.is_none()),
    ("status.armed is written once", |old, new| old.is_none_or(|old| kept(&old.armed, &new.armed))),
    ("status.vote is written once", |old, new| old.is_none_or(|old| kept(&old.vote, &new.vote))),
    ("status.abort is written once", |old, new| old.is_none_or(|old| kept(&old.abort, &new.abort))),
    ("status.vote and status.abort exclude each other (R2)", |_, new| new.vote.is_none() || new.abort.is_none()),
    ("status.restored is written once", |old, new| old.is_none_or(|old| kept(&old.restored, &new.restored))),
    ("status.confirmed is written once", |old, new| old.is_none_or(|old| kept(&old.confirmed, &new.confirmed))),
    ("status.neverStarted is written once", |old, new| old.is_none_or(|old| kept(&old.never_started, &new.never_started))),
    ("status.restored and status.neverStarted exclude each other (R3, R4)", |_, new| new.restored.is_none() || new.never_started.is_none()),
    ("status.died is written once", |old, new| old.is_none_or(|old| kept(&old.died, &new.died))),
    ("status.coldStarted is written once", |old, new| old.is_none_or(|old| kept(&old.cold_started, &new.cold_started))),
    ("status.died and status.neverStarted exclude each other (R7)", |_, new| new.died.is_none() || new.never_started.is_none()),
    ("what started cold was not restored: status.coldStarted and status.restored exclude each other (R15)", |_, new| {
        new.cold_started.is_none() || new.restored.is_none()
    }),
    ("what died is not restored any more: status.restored after status.died (R7)", |old, new| {
        old.is_none_or(|old| new.restored.is_none() || old.restored.is_some() || new.died.is_none())
    }),
    ("status.confirmed needs status.restored, or a replacement that was let start cold (R17)", |_, new| {
        new.confirmed.is_none() || new.restored.is_some() || new.died.is_some() || new.cold_started.is_some()
    }),
];

fn kept<T: PartialEq>(old: &Option<T>, new: &Option<T>) -> bool {
    old.is_none() || old == new
}

/// The message of the first rule that a new status breaks.
pub fn broken<S>(rules: &[Rule<S>], old: Option<&S>, new: &S) -> Option<&'static str> {
    rules.iter().find(|(_, holds)| !holds(old, new)).map(|(message, _)| *message)
}

/// Every message of the validations below `status` in a CRD.
pub fn messages_in(crd: &serde_json::Value) -> Vec<String> {
    let mut found = vec![];
    collect(crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/status").unwrap_or(&serde_json::Value::Null), &mut found);
    found.sort();
    found
}

fn collect(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, below) in map {
                if key == "x-kubernetes-validations" {
                    let rules = below.as_array().into_iter().flatten();
                    found.extend(rules.filter_map(|rule| rule.get("message")?.as_str().map(str::to_owned)));
                } else {
                    collect(below, found);
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}
