//! What a manager reads, in the product's own types, and what the product says to it.

use drover::{
    api::{MigrationStatus, Phase, Role, migration::InDoubt},
    domain::{
        keys,
        migration::{self, Effect, Observed, Step},
    },
};
use k8s_openapi::api::core::v1::Pod;

use crate::{
    intern::{Id, STATUSES, WORDS},
    objects::{self, Made, NOW},
    owners::{Owner, Ties},
    state::{Decision, Eff, Mig, Named, Object, Placeholder, Replacement},
};

/// What a manager reads besides the Migration.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Seen {
    pub mig: Mig,
    pub source_says: Option<Id>,
    pub destination_says: Option<Id>,
    pub named: Option<Named>,
    /// [`Named::Source`] is being deleted.
    pub source_deleting: bool,
    pub locked: bool,
    pub replacement: Option<Replacement>,
    pub credentials: bool,
    pub overdue: bool,
    pub node_ready: bool,
    pub n: usize,
    /// [`crate::model::Drover::impatient`], as preflight sees it.
    pub impatient: bool,
    pub policy: u8,
    pub failed: bool,
    pub keep_name: bool,
    /// The source node's, and the destination's.
    pub gates: [bool; 2],
    pub placeholder: Option<Placeholder>,
    pub template: bool,
    pub fallback_says: Option<Id>,
    pub ties: Option<Ties>,
}

const POLICIES: [InDoubt; 3] = [InDoubt::HoldFrozen, InDoubt::PreferSource, InDoubt::PreferDestination];

pub fn answer(seen: &Seen) -> Option<Decision> {
    let (mig, n, status) = (seen.mig, seen.n, seen.mig.status());
    let migration = objects::migration(mig, seen.overdue, POLICIES[usize::from(seen.policy)], seen.keep_name);
    let prepares = status.phase >= Phase::Preparing;
    let waits = |it: Placeholder| Replacement { uid: it.uid, deleting: it.deleting, sandbox: it.sandbox, claimed: false, images: false };
    let source = of_the_name(seen);
    let observed = Observed {
        blockers: if status.phase == Phase::Preflight { objects::blockers(&migration, seen) } else { vec![] },
        // engine.rs: one read where both have one name.
        replacement: match (seen.keep_name, seen.replacement) {
            (true, _) => source.clone().filter(|_| prepares),
            (false, it) => it.filter(|_| prepares).map(|it| {
                let pod = objects::made_pod(Made::Replacement, it, false, mig, n);
                match seen.ties {
                    Some(ties) => ties.copy(pod),
                    None => pod,
                }
            }),
        },
        source,
        source_attestation: seen.source_says.map(|id| objects::attestation(Role::Source, WORDS.get(id))),
        destination_attestation: seen.destination_says.map(|id| objects::attestation(Role::Destination, WORDS.get(id))),
        fallback_attestation: seen.fallback_says.filter(|_| status.fallback.is_some()).map(|id| objects::attestation(Role::Fallback, WORDS.get(id))),
        placeholder: seen
            .placeholder
            .filter(|_| status.placeholder.is_some())
            .map(|it| objects::made_pod(Made::Placeholder, waits(it), false, mig, n)),
        template: (seen.template && prepares && status.is_source_first()).then(|| objects::template(n)),
        source_gated: seen.gates[0],
        destination_gated: seen.gates[1],
        destination_ready: prepares.then_some(seen.node_ready),
        fresh_repository: format!("{}{}", keys::REPOSITORY_PREFIX, "0".repeat(32)),
        replacement_name: keys::replacement_name("p", objects::MIGRATION),
        owner_selector: seen.ties.map(|_| Owner::selector()).unwrap_or_default(),
        pull_credentials_left: status.phase == Phase::Finishing && seen.credentials,
        ..Observed::default()
    };
    let step = if seen.failed {
        migration::effect_failed(&migration, &observed, "the webhook refuses it", *NOW)
    } else {
        migration::advance(&migration, &observed, *NOW)
    };
    decision(step)
}

fn of_the_name(seen: &Seen) -> Option<Pod> {
    Some(match seen.named? {
        Named::Source => {
            let pod = objects::source_pod(if seen.source_deleting { Object::Deleting } else { Object::Live }, seen.locked, seen.n)?;
            match seen.ties {
                Some(ties) => ties.source(pod),
                None => pod,
            }
        }
        Named::Replacement(it) => objects::made_pod(Made::Replacement, it, seen.locked, seen.mig, seen.n),
        Named::Fallback(it) => objects::made_pod(Made::Fallback, it, seen.locked, seen.mig, seen.n),
    })
}

fn decision(step: Step) -> Option<Decision> {
    assert!(step.status.is_none() || step.effects.is_empty(), "a step writes or acts, never both");
    if let Some(status) = step.status {
        return Some(Decision::Write(STATUSES.put(settled(status))));
    }
    let mut effects = step.effects.iter().map(compact);
    let pair = [effects.next(), effects.next()];
    assert!(effects.next().is_none(), "the model knows steps of at most two effects");
    pair[0].map(|_| Decision::Effects(pair))
}

/// Only what a decision depends on: of the times that of the phase that lasts and of the revocation. A message leads at most to one more write of itself;
/// that a hold has one is looked at by [`crate::properties::is_held`].
fn settled(mut status: MigrationStatus) -> MigrationStatus {
    let last = status.phases.pop();
    status.phases = last.into_iter().collect();
    status.message.clear();
    let reasons = [status.revocation.as_mut().map(|it| &mut it.message), status.resolved.as_mut().map(|it| &mut it.message)];
    reasons.into_iter().flatten().for_each(|message| "a reason".clone_into(message));
    status.conditions.retain(|condition| condition.status == "True");
    status.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    for condition in &mut status.conditions {
        condition.last_transition_time.0 = *NOW;
        if !condition.message.is_empty() {
            "a message".clone_into(&mut condition.message);
        }
    }
    status
}

fn compact(effect: &Effect) -> Eff {
    let number = |uid: &str| objects::replacement_number(uid);
    match effect {
        Effect::AddFinalizer => Eff::AddFinalizer,
        Effect::RemoveFinalizer => Eff::RemoveFinalizer,
        Effect::Lock { .. } => Eff::Lock,
        Effect::Unlock { uid } => Eff::Unlock(number(uid)),
        Effect::CreateAttestation { role: Role::Source, .. } => Eff::AttestationOfSource,
        Effect::CreateAttestation { role: Role::Destination, .. } => Eff::AttestationOfDestination,
        Effect::CreateAttestation { role: Role::Fallback, .. } => Eff::AttestationOfFallback,
        Effect::LayOutPullCredentials => Eff::LayOutCredentials,
        Effect::RemovePullCredentials => Eff::RemoveCredentials,
        Effect::RehearseReplacement => Eff::RehearseReplacement,
        Effect::CreateReplacement => Eff::CreateReplacement,
        Effect::KeepTemplate => Eff::KeepTemplate,
        Effect::RemoveTemplate => Eff::RemoveTemplate,
        Effect::CreateSameName => Eff::CreateSameName,
        Effect::CreateFallback => Eff::CreateFallback,
        Effect::DeletePlaceholder { uid, force } => Eff::DeletePlaceholder(number(uid), *force),
        Effect::Claim { uid } => Eff::Claim(number(uid)),
        Effect::WriteInitImages { .. } => unreachable!("no pod of the model has init containers"),
        Effect::RewriteImages { uid } => Eff::RewriteImages(number(uid)),
        Effect::DeleteReplacement { uid, force } => Eff::DeleteReplacement(number(uid), *force),
        Effect::DeleteSource { .. } => Eff::DeleteSource,
        Effect::DeleteFallback { uid } => Eff::DeleteFallback(number(uid)),
        Effect::DeleteMigration => unreachable!("the model's Migration has no time to live"),
        Effect::TakeDisruption { .. } | Effect::GiveBackDisruption { .. } | Effect::TakePermit { .. } => {
            unreachable!("the model has no budgets and limits")
        }
        Effect::MarkSurplus { .. } => Eff::MarkSurplus,
        Effect::ReleaseSource { .. } => Eff::ReleaseSource,
        Effect::HandOver { uid, ready } => Eff::HandOver(number(uid), *ready),
    }
}
