//! Every decision of the model: asked of the product's own functions, with values built from the state. A rule that is off changes the question
//! or the answer, never the product.

mod agents;
mod manager;
mod pretend;

use drover::{
    api::{MigrationStatus, Phase, Verdict, migration::InDoubt},
    domain::admission::{self, Change, Requester, World as Cluster},
};

pub use agents::Found;
pub use manager::Seen;
use manager::answer;
pub use pretend::pushed;
use pretend::{as_if_confirmed, as_if_last, as_if_over, as_if_proved, as_if_voted};

use crate::{
    intern::{Id, Memo, STATUSES, WORDS},
    model::Drover,
    objects::{self, Made, NOW},
    rules::Rule,
    state::{Age, Decision, Eff, Mig, Object, Replacement, World},
};

static ADVANCE: Memo<Seen, Option<Decision>> = Memo::new();
static CLAIMS: Memo<(Mig, Made, Replacement, usize), Option<bool>> = Memo::new();

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
        if world.first.ended_long_ago {
            source_says = source_says.map(ended_long_ago);
        }
        let mut named = world.named(self.keeps_name());
        if self.off(Rule::OverBeforeRelease) && mig.status().phase == Phase::SourceDeleting {
            source_says = source_says.map(as_if_over);
            // Two pods cannot have one name, whatever is believed.
            named = named.filter(|_| self.keeps_name());
        }
        if self.off(Rule::CheckpointIsLast) {
            source_says = source_says.map(as_if_last);
        }
        let mut destination_says = world.destination_says;
        if self.off(Rule::Confirmation) && mig.status().verdict == Some(Verdict::Commit) {
            destination_says = destination_says.map(as_if_confirmed);
        }
        // What has passed since the phase began may all have passed since the confirmation.
        if mig.status().phases.last().is_some_and(|timing| timing.started_at.0 == objects::at(Age::Old)) {
            destination_says = destination_says.map(confirmed_long_ago);
        }
        if self.off(Rule::RollbackNeedsProof) && mig.status().revocation.is_some() {
            destination_says = destination_says.map(|id| as_if_proved(id, self.n));
        }
        Seen {
            mig,
            source_says,
            destination_says,
            named,
            source_deleting: world.source_pod == Object::Deleting,
            locked: world.locked,
            replacement: world.replacement,
            credentials: world.credentials,
            overdue: world.overdue,
            node_ready: world.node_ready,
            n: self.n,
            impatient: self.impatient && !self.off(Rule::ProbesFit),
            policy: self.in_doubt as u8,
            failed,
            keep_name: self.keeps_name(),
            gates: self.gates,
            placeholder: world.first.placeholder,
            template: world.first.template,
            ties: self.seen_ties(world),
            fallback_says: world.first.fallback.as_ref().and_then(|it| it.says),
        }
    }

    fn without_rules(&self, world: &World, mig: Mig, answer: Option<Decision>) -> Option<Decision> {
        let status = mig.status();
        if self.off(Rule::Finalizer) && answer == Some(Decision::Effects([Some(Eff::AddFinalizer), None])) {
            let pretended = Mig { finalizer: true, ..mig };
            return *ADVANCE.ask(self.seen(world, pretended, false), manager::answer);
        }
        if self.off(Rule::PointOfNoReturn) && status.phase == Phase::SourceDeleting {
            let earlier = MigrationStatus { phase: Phase::AwaitingReadiness, ..status.clone() };
            let pretended = Mig { status: STATUSES.put(earlier), ..mig };
            let undone = *ADVANCE.ask(self.seen(world, pretended, false), manager::answer);
            let undone = undone.filter(|it| matches!(it, Decision::Write(id) if STATUSES.get(*id).verdict == Some(Verdict::Rollback)));
            return undone.or(answer);
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
    pub fn webhook(&self, mig: Mig, kind: Made, pod: Replacement) -> Option<bool> {
        if self.off(Rule::ReleaseIsAnIntent) {
            return Some(true);
        }
        *CLAIMS.ask((mig, kind, pod, self.n), |(mig, kind, pod, n)| {
            let old = objects::made_pod(*kind, *pod, true, *mig, *n);
            let new = objects::made_pod(*kind, Replacement { claimed: true, ..*pod }, true, *mig, *n);
            let requester = Requester { username: "manager".into(), is_manager: true };
            let migration = objects::migration(*mig, false, InDoubt::HoldFrozen, mig.status().placeholder.is_some());
            let cluster = Cluster { migrations: vec![migration], ..Cluster::unseen(*NOW) };
            match admission::decide(Change::Update { old: &old, new: &new }, &requester, &cluster) {
                admission::Decision::Allow { patch, .. } => Some(!patch.0.is_empty()),
                admission::Decision::Deny { .. } | admission::Decision::Answer { .. } => None,
            }
        })
    }
}

/// What of a status grows old.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Clock {
    Phase,
    Revocation,
    /// Since the source, which goes first, has ended.
    Ended,
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
            Clock::Ended => None,
        };
        let moment = moment.filter(|moment| moment.0 != old)?;
        moment.0 = old;
        Some(STATUSES.put(status))
    })
}

/// What the destination says, when its confirmation is long ago.
fn confirmed_long_ago(said: Id) -> Id {
    static AGED: Memo<Id, Id> = Memo::new();
    *AGED.ask(said, |said| {
        let mut words = WORDS.get(*said).clone();
        words.confirmed.iter_mut().for_each(|moment| moment.at.0 = objects::at(Age::Old));
        WORDS.put(words)
    })
}

/// What the source says, when that is long ago.
fn ended_long_ago(said: Id) -> Id {
    static AGED: Memo<Id, Id> = Memo::new();
    *AGED.ask(said, |said| {
        let mut words = WORDS.get(*said).clone();
        let moments = [words.ended.as_mut(), words.cleaned.as_mut()];
        moments.into_iter().flatten().for_each(|moment| moment.at.0 = objects::at(Age::Old));
        WORDS.put(words)
    })
}
