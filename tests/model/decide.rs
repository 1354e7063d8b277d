//! Every decision of the model: asked of the product's own functions, with values built from the state. A rule that is off changes the question
//! or the answer, never the product.

mod agents;
mod pretend;

use drover::{
    api::{MigrationStatus, Phase, Role, Verdict, migration::InDoubt},
    domain::{
        admission::{self, Change, Requester, World as Cluster},
        keys,
        migration::{self, Effect, Observed, Step},
    },
};

pub use agents::Found;
pub use pretend::pushed;
use pretend::{as_if_confirmed, as_if_proved, as_if_voted};

use crate::{
    intern::{Id, Memo, STATUSES, WORDS},
    model::Drover,
    objects::{self, NOW},
    rules::Rule,
    state::{Age, Decision, Eff, Mig, Object, Replacement, World},
};

/// What a manager reads besides the Migration.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Seen {
    mig: Mig,
    source_says: Option<Id>,
    destination_says: Option<Id>,
    source_pod: Object,
    locked: bool,
    replacement: Option<Replacement>,
    credentials: bool,
    overdue: bool,
    node_ready: bool,
    n: usize,
    /// [`Drover::impatient`], as preflight sees it.
    impatient: bool,
    policy: u8,
    failed: bool,
}

static ADVANCE: Memo<Seen, Option<Decision>> = Memo::new();
static CLAIMS: Memo<(Mig, Replacement, usize), Option<bool>> = Memo::new();

/// How often the product was asked something new.
pub fn questions() -> usize {
    ADVANCE.len() + CLAIMS.len() + agents::questions()
}

impl Drover {
    /// `engine::observe` and [`migration::advance`], on the Migration as the manager has it.
    pub fn advance(&self, world: &World, mig: Mig) -> Option<Decision> {
        let answer = *ADVANCE.ask(self.seen(world, mig, false), answer);
        self.without_rules(world, mig, answer)
    }

    /// [`migration::effect_failed`].
    pub fn effect_failed(&self, world: &World, mig: Mig) -> Option<Decision> {
        *ADVANCE.ask(self.seen(world, mig, true), answer)
    }

    fn seen(&self, world: &World, mig: Mig, failed: bool) -> Seen {
        let mut source_says = world.source_says;
        if self.off(Rule::ReleaseNeedsTheVote) {
            source_says = source_says.map(|id| as_if_voted(id, self.n));
        }
        let mut destination_says = world.destination_says;
        if self.off(Rule::Confirmation) && mig.status().verdict == Some(Verdict::Commit) {
            destination_says = destination_says.map(as_if_confirmed);
        }
        if self.off(Rule::RollbackNeedsProof) && mig.status().revocation.is_some() {
            destination_says = destination_says.map(|id| as_if_proved(id, self.n));
        }
        Seen {
            mig,
            source_says,
            destination_says,
            source_pod: world.source_pod,
            locked: world.locked,
            replacement: world.replacement,
            credentials: world.credentials,
            overdue: world.overdue,
            node_ready: world.node_ready,
            n: self.n,
            impatient: self.impatient && !self.off(Rule::ProbesFit),
            policy: self.in_doubt as u8,
            failed,
        }
    }

    fn without_rules(&self, world: &World, mig: Mig, answer: Option<Decision>) -> Option<Decision> {
        let status = mig.status();
        if self.off(Rule::Finalizer) && answer == Some(Decision::Effects([Some(Eff::AddFinalizer), None])) {
            let pretended = Mig { finalizer: true, ..mig };
            return *ADVANCE.ask(self.seen(world, pretended, false), crate::decide::answer);
        }
        if let Some(Decision::Write(id)) = answer
            && self.off(Rule::ReleaseIsAnIntent)
            && STATUSES.get(id).phase == Phase::Restoring
            && let Some(replacement) = world.replacement.filter(|it| !it.images)
        {
            return Some(Decision::Effects([Some(Eff::Claim(replacement.uid)), Some(Eff::RewriteImages(replacement.uid))]));
        }
        if self.off(Rule::NoDeletionInDoubt)
            && status.phase == Phase::Restoring
            && status.revocation.is_some()
            && let Some(replacement) = world.replacement.filter(|it| !it.deleting)
        {
            return Some(Decision::Effects([Some(Eff::DeleteReplacement(replacement.uid, false)), None]));
        }
        answer
    }

    /// The webhook's answer to a claim: whether it writes the images; none where it refuses.
    pub fn webhook(&self, mig: Mig, replacement: Replacement) -> Option<bool> {
        if self.off(Rule::ReleaseIsAnIntent) {
            return Some(true);
        }
        *CLAIMS.ask((mig, replacement, self.n), |(mig, replacement, n)| {
            let old = objects::replacement_pod(*replacement, mig.status(), *mig, *n);
            let new = objects::replacement_pod(Replacement { claimed: true, ..*replacement }, mig.status(), *mig, *n);
            let requester = Requester { username: "manager".into(), is_manager: true };
            let cluster = Cluster { migrations: vec![objects::migration(*mig, false, InDoubt::HoldFrozen)], ..Cluster::unseen(*NOW) };
            match admission::decide(Change::Update { old: &old, new: &new }, &requester, &cluster) {
                admission::Decision::Allow { patch, .. } => Some(!patch.0.is_empty()),
                admission::Decision::Deny { .. } => None,
            }
        })
    }
}

const POLICIES: [InDoubt; 3] = [InDoubt::HoldFrozen, InDoubt::PreferSource, InDoubt::PreferDestination];

fn answer(seen: &Seen) -> Option<Decision> {
    let status = seen.mig.status();
    let migration = objects::migration(seen.mig, seen.overdue, POLICIES[usize::from(seen.policy)]);
    let observed = Observed {
        blockers: if status.phase == Phase::Preflight { objects::blockers(&migration, seen.impatient, seen.n) } else { vec![] },
        source: objects::source_pod(seen.source_pod, seen.locked, seen.n),
        replacement: seen.replacement.map(|it| objects::replacement_pod(it, status, seen.mig, seen.n)).filter(|_| status.phase >= Phase::Preparing),
        source_attestation: seen.source_says.map(|id| objects::attestation(Role::Source, WORDS.get(id))),
        destination_attestation: seen.destination_says.map(|id| objects::attestation(Role::Destination, WORDS.get(id))),
        source_gated: true,
        destination_gated: true,
        destination_ready: (status.phase >= Phase::Preparing).then_some(seen.node_ready),
        fresh_repository: format!("{}{}", keys::REPOSITORY_PREFIX, "0".repeat(32)),
        replacement_name: keys::replacement_name("p", objects::MIGRATION),
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

fn decision(step: Step) -> Option<Decision> {
    assert!(step.status.is_none() || step.effects.is_empty(), "a step writes or acts, never both");
    if let Some(status) = step.status {
        return Some(Decision::Write(STATUSES.put(without_times(status))));
    }
    let mut effects = step.effects.iter().map(compact);
    let pair = [effects.next(), effects.next()];
    assert!(effects.next().is_none(), "the model knows steps of at most two effects");
    pair[0].map(|_| Decision::Effects(pair))
}

/// Only the times that a decision depends on: of the phase that lasts, and of the revocation.
fn without_times(mut status: MigrationStatus) -> MigrationStatus {
    let last = status.phases.pop();
    status.phases = last.into_iter().collect();
    for condition in &mut status.conditions {
        condition.last_transition_time.0 = *NOW;
    }
    status
}

fn compact(effect: &Effect) -> Eff {
    match effect {
        Effect::AddFinalizer => Eff::AddFinalizer,
        Effect::RemoveFinalizer => Eff::RemoveFinalizer,
        Effect::Lock { .. } => Eff::Lock,
        Effect::Unlock { .. } => Eff::Unlock,
        Effect::CreateAttestation { role: Role::Source, .. } => Eff::AttestationOfSource,
        Effect::CreateAttestation { role: Role::Destination, .. } => Eff::AttestationOfDestination,
        Effect::LayOutPullCredentials => Eff::LayOutCredentials,
        Effect::RemovePullCredentials => Eff::RemoveCredentials,
        Effect::CreateReplacement => Eff::CreateReplacement,
        Effect::Claim { uid } => Eff::Claim(objects::replacement_number(uid)),
        Effect::RewriteImages { uid } => Eff::RewriteImages(objects::replacement_number(uid)),
        Effect::DeleteReplacement { uid, force } => Eff::DeleteReplacement(objects::replacement_number(uid), *force),
        Effect::DeleteSource { .. } => Eff::DeleteSource,
        Effect::DeleteMigration => unreachable!("the model's Migration has no time to live"),
        other => unreachable!("{other:?}: the model has no pods that go source-first"),
    }
}

/// What of a status grows old.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Clock {
    Phase,
    Revocation,
}

/// The same status when its time is over; none where nothing grows old.
pub fn aged(id: Id, clock: Clock) -> Option<Id> {
    static AGED: Memo<(Id, Clock), Option<Id>> = Memo::new();
    *AGED.ask((id, clock), |(id, clock)| {
        let mut status = STATUSES.get(*id).clone();
        let old = objects::at(Age::Old);
        let moment = match clock {
            Clock::Phase => status.phases.last_mut().map(|timing| &mut timing.started_at),
            Clock::Revocation => status.revocation.as_mut().map(|asked| &mut asked.at),
        };
        let moment = moment.filter(|moment| moment.0 != old)?;
        moment.0 = old;
        Some(STATUSES.put(status))
    })
}
