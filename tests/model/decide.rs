//! Every decision of the model: asked of the product's own functions, with values built from the state. A rule that is off changes the question
//! or the answer, never the product.

use std::sync::Arc;

use drover::{
    api::{
        AttestationStatus, MigrationStatus, Phase, Role, Verdict,
        attestation::{ClosedClaim, ContainerId, NeverStarted, Pushed, Vote},
    },
    domain::{
        admission::{self, Change, Requester, World as Cluster},
        attest::{self, DestinationAction, SourceAction},
        keys,
        migration::{self, Effect, Observed, Step},
        tasks::{self, Finding},
        verdict,
    },
    gate,
    markers::Claim,
};

use crate::{
    intern::{Id, Memo, STATUSES, WORDS},
    model::Drover,
    objects::{self, NAMES, NOW},
    rules::Rule,
    state::{Age, Container, Decision, DestinationStep, Eff, Journal, Mig, Object, Replacement, SourceStep, View, World},
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
    failed: bool,
}

static ADVANCE: Memo<Seen, Option<Decision>> = Memo::new();
static CLAIMS: Memo<(Mig, Replacement, usize), Option<bool>> = Memo::new();
static SOURCE: Memo<(Id, Id, Option<Id>, Option<Journal>, View, bool), Option<SourceStep>> = Memo::new();
static DESTINATION: Memo<(Id, Id, Option<Id>), Option<DestinationStep>> = Memo::new();
static JUDGE: Memo<(Id, [Container; 2], View, usize), Found> = Memo::new();
static REFUSED: Memo<(Id, [Container; 2], View, usize, usize), Option<String>> = Memo::new();
static CONFIRM: Memo<(Id, Id, [Container; 2], View, usize), Option<String>> = Memo::new();

/// How often the product was asked something new.
pub fn questions() -> usize {
    ADVANCE.len() + CLAIMS.len() + SOURCE.len() + DESTINATION.len() + JUDGE.len() + REFUSED.len() + CONFIRM.len()
}

/// What [`tasks::judge`] and [`tasks::trouble`] say together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    NotYet,
    Restored(Vec<ContainerId>),
    Wrong(String),
}

fn words(id: Option<Id>) -> Arc<AttestationStatus> {
    id.map_or_else(Arc::default, |id| WORDS.get(id))
}

impl Drover {
    /// `engine::observe` and [`migration::advance`], on the Migration as the manager has it.
    pub fn advance(&self, world: &World, mig: Mig) -> Option<Decision> {
        let answer = ADVANCE.ask(self.seen(world, mig, false), answer);
        self.without_rules(world, mig, answer)
    }

    /// [`migration::effect_failed`].
    pub fn effect_failed(&self, world: &World, mig: Mig) -> Option<Decision> {
        ADVANCE.ask(self.seen(world, mig, true), answer)
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
            failed,
        }
    }

    fn without_rules(&self, world: &World, mig: Mig, answer: Option<Decision>) -> Option<Decision> {
        if self.off(Rule::Finalizer) && answer == Some(Decision::Effects([Some(Eff::AddFinalizer), None])) {
            let pretended = Mig { finalizer: true, ..mig };
            return ADVANCE.ask(self.seen(world, pretended, false), crate::decide::answer);
        }
        if let Some(Decision::Write(id)) = answer
            && self.off(Rule::ReleaseIsAnIntent)
            && STATUSES.get(id).phase == Phase::Restoring
            && let Some(replacement) = world.replacement.filter(|it| !it.images)
        {
            return Some(Decision::Effects([Some(Eff::Claim(replacement.uid)), Some(Eff::RewriteImages(replacement.uid))]));
        }
        answer
    }

    /// The webhook's answer to a claim: whether it writes the images; none where it refuses.
    pub fn webhook(&self, mig: Mig, replacement: Replacement) -> Option<bool> {
        if self.off(Rule::ReleaseIsAnIntent) {
            return Some(true);
        }
        CLAIMS.ask((mig, replacement, self.n), |(mig, replacement, n)| {
            let old = objects::replacement_pod(*replacement, &mig.status(), *mig, *n);
            let new = objects::replacement_pod(Replacement { claimed: true, ..*replacement }, &mig.status(), *mig, *n);
            let requester = Requester { username: "manager".into(), is_manager: true };
            let cluster = Cluster { migrations: vec![objects::migration(*mig, false)], ..Cluster::unseen(*NOW) };
            match admission::decide(Change::Update { old: &old, new: &new }, &requester, &cluster) {
                admission::Decision::Allow { patch, .. } => Some(!patch.0.is_empty()),
                admission::Decision::Deny { .. } => None,
            }
        })
    }

    /// [`attest::source_next`] as `SourceAgent::decide` asks it.
    pub fn source_next(&self, world: &World) -> Option<SourceStep> {
        let (mig, own) = (world.migration?, world.source_says?);
        let mut destination = world.destination_says;
        if self.off(Rule::Confirmation) && mig.status().verdict == Some(Verdict::Commit) {
            destination = destination.map(as_if_confirmed);
        }
        let journal = world.source.journal;
        let view = if self.off(Rule::KillNeedsDeletion) && mig.status().verdict.is_some() { View::Terminating } else { world.source.view };
        let step = SOURCE.ask((mig.status, own, destination, journal, view, true), |(status, own, destination, journal, view, _)| {
            let status = STATUSES.get(*status);
            let matters = match status.verdict {
                None => journal.is_some_and(|journal| journal.frozen.is_some()),
                Some(Verdict::Commit) => WORDS.get(*own).ended.is_none(),
                Some(Verdict::Rollback) => false,
            };
            let deletion = match view {
                _ if !matters => attest::Deletion::NotShown,
                View::Unsynced | View::Unlisted => attest::Deletion::Gone,
                View::Terminating => attest::Deletion::Shown,
                View::Listed | View::Released => attest::Deletion::NotShown,
            };
            let journal = journal.map(|it| objects::journal(it, 1).view()).unwrap_or_default();
            let budget = std::time::Duration::from_secs(60);
            match attest::source_next(&status, &WORDS.get(*own), &words(*destination), &journal, deletion, budget, *NOW) {
                SourceAction::Wait => None,
                SourceAction::Freeze => Some(SourceStep::Freeze),
                SourceAction::Checkpoint => Some(SourceStep::Checkpoint),
                SourceAction::Push => Some(SourceStep::Push),
                SourceAction::Vote => Some(SourceStep::Vote),
                SourceAction::Abort(_) => Some(SourceStep::Abort),
                SourceAction::Thaw => Some(SourceStep::Thaw),
                SourceAction::Kill => Some(SourceStep::Kill),
                SourceAction::Forget => Some(SourceStep::Forget),
            }
        });
        // A source that was never asked for its vote pushes no further.
        step.filter(|step| !(self.off(Rule::ReleaseNeedsTheVote) && *step == SourceStep::Vote))
    }

    /// Whether the watchdog thaws: [`drover::agent::journal::Journal::is_overdue`].
    pub fn is_overdue(&self, journal: Journal) -> bool {
        let asked = if self.off(Rule::VoterWaits) { Journal { vote: false, ..journal } } else { journal };
        objects::journal(asked, self.n).is_overdue(*NOW)
    }

    /// `SourceAgent::all_paused`, by [`tasks::all_paused`].
    pub fn all_paused(&self, world: &World, journal: Journal) -> bool {
        let source = &world.source;
        self.off(Rule::VoteNeedsPause)
            || tasks::all_paused(&objects::source_ids(journal.fresh, self.n), &objects::source_tasks(source.task, source.fresh, self.n))
    }

    /// [`verdict::may_vote`].
    pub fn may_vote(&self, world: &World, journal: Journal) -> bool {
        let source = &world.source;
        let before = objects::journal(journal, self.n).cpu_nanos;
        let now = objects::cpu(source.moved && !self.off(Rule::VoteNeedsCpu), journal.fresh, self.n);
        let fenced = source.fence == crate::state::Fence::Ours;
        verdict::may_vote(&objects::source_ids(journal.fresh, self.n), &before, &now, fenced).is_ok()
    }

    /// [`attest::destination_next`].
    pub fn destination_next(&self, world: &World) -> Option<DestinationStep> {
        let (mig, own) = (world.migration?, world.destination_says?);
        let source = world.source_says.map(|id| if self.off(Rule::ReleaseNeedsTheVote) { as_if_voted(id, self.n) } else { id });
        DESTINATION.ask((mig.status, own, source), |(status, own, source)| {
            match attest::destination_next(&STATUSES.get(*status), &WORDS.get(*own), &words(*source)) {
                DestinationAction::Wait => None,
                DestinationAction::Prepare => Some(DestinationStep::Prepare),
                DestinationAction::Verify => Some(DestinationStep::Verify),
                DestinationAction::Restore => Some(DestinationStep::Restore),
                DestinationAction::Revoke => Some(DestinationStep::Revoke),
                DestinationAction::Confirm => Some(DestinationStep::Confirm),
                DestinationAction::CleanAfterCommit => Some(DestinationStep::CleanAfterCommit),
                DestinationAction::CleanAfterRollback => Some(DestinationStep::CleanAfterRollback),
            }
        })
    }

    /// `DestinationAgent::judge`, by [`tasks::judge`] and [`tasks::trouble`].
    pub fn judge(&self, world: &World, mig: Mig) -> Found {
        let mut containers = world.destination.containers;
        if self.off(Rule::DeadIsNotRestored) {
            for container in &mut containers {
                if container.task == crate::state::Task::Dead {
                    *container = Container { task: crate::state::Task::Running { restored: true }, earlier: false, ..*container };
                }
            }
        }
        JUDGE.ask((mig.status, containers, world.destination.view, self.n), |(status, containers, view, n)| {
            let status = STATUSES.get(*status);
            let finding = tasks::judge(&status.containers, &objects::replacement_tasks(&containers[..*n], &status));
            let pod = objects::replacement_listed(*view, &containers[..*n]);
            match (finding, pod.as_ref().and_then(tasks::trouble)) {
                (Finding::Wrong(message), _) | (_, Some(message)) => Found::Wrong(message),
                (Finding::NotYet, None) => Found::NotYet,
                (Finding::Restored(containers), None) => Found::Restored(containers),
            }
        })
    }

    /// [`tasks::unconfirmed`].
    pub fn unconfirmed(&self, world: &World, mig: Mig) -> Option<String> {
        if self.off(Rule::ConfirmationLooks) {
            return None;
        }
        let key = (mig.status, world.destination_says?, world.destination.containers, world.destination.view, self.n);
        CONFIRM.ask(key, |(status, own, containers, view, n)| {
            let status = STATUSES.get(*status);
            let Some(restored) = &WORDS.get(*own).restored else { return Some("nothing was attested as restored".to_owned()) };
            let pod = objects::replacement_listed(*view, &containers[..*n]);
            tasks::unconfirmed(&status.containers, &restored.containers, &objects::replacement_tasks(&containers[..*n], &status), pod.as_ref())
        })
    }

    /// `DestinationAgent::proof_of_failure`, by [`tasks::refused`].
    pub fn refused(&self, world: &World, mig: Mig, c: usize) -> Option<String> {
        if self.off(Rule::FailureNeedsProof) {
            let alive = matches!(world.destination.containers[c].task, crate::state::Task::Running { .. } | crate::state::Task::Restoring);
            return (!alive).then(|| "nothing runs".to_owned());
        }
        let key = (mig.status, world.destination.containers, world.destination.view, self.n, c);
        REFUSED.ask(key, |(status, containers, view, n, c)| {
            let tasks = objects::replacement_tasks(&containers[..*n], &STATUSES.get(*status));
            let log = objects::log_text(containers[*c].log)?;
            tasks::refused(NAMES[*c], &tasks, log, objects::replacement_listed(*view, &containers[..*n]).as_ref())
        })
    }

    /// The destination's gate, by [`gate::rule`].
    pub fn gate(&self, containers: &[Container], c: usize) -> gate::Rule {
        let claims: Vec<(String, Claim)> =
            NAMES.iter().zip(&containers[..self.n]).filter_map(|(name, it)| Some(((*name).to_owned(), it.claim?))).collect();
        match gate::rule(&claims, NAMES[c]) {
            gate::Rule::Over(Claim::Taken) if self.off(Rule::OneShot) => gate::Rule::Pass,
            rule => rule,
        }
    }
}

fn answer(seen: &Seen) -> Option<Decision> {
    let status = seen.mig.status();
    let migration = objects::migration(seen.mig, seen.overdue);
    let observed = Observed {
        source: objects::source_pod(seen.source_pod, seen.locked, seen.n),
        replacement: seen.replacement.map(|it| objects::replacement_pod(it, &status, seen.mig, seen.n)).filter(|_| status.phase >= Phase::Preparing),
        source_attestation: seen.source_says.map(|id| objects::attestation(Role::Source, &WORDS.get(id))),
        destination_attestation: seen.destination_says.map(|id| objects::attestation(Role::Destination, &WORDS.get(id))),
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
    AGED.ask((id, clock), |(id, clock)| {
        let mut status = (*STATUSES.get(*id)).clone();
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

fn as_if_voted(id: Id, n: usize) -> Id {
    static VOTED: Memo<(Id, usize), Id> = Memo::new();
    VOTED.ask((id, n), |(id, n)| {
        let mut words = (*WORDS.get(*id)).clone();
        if words.pushed.is_some() {
            words.vote.get_or_insert_with(|| Vote { images: objects::images(*n), ..objects::vote(*n) });
            words.abort = None;
            words.thawed = None;
        }
        WORDS.put(words)
    })
}

fn as_if_confirmed(id: Id) -> Id {
    let mut words = (*WORDS.get(id)).clone();
    words.confirmed = Some(drover::api::attestation::At { at: objects::now() });
    WORDS.put(words)
}

fn as_if_proved(id: Id, n: usize) -> Id {
    let mut words = (*WORDS.get(id)).clone();
    words.never_started.get_or_insert_with(|| never_started(n, "revoked"));
    words.restored = None;
    WORDS.put(words)
}

pub fn never_started(n: usize, state: &str) -> NeverStarted {
    let containers = NAMES[..n].iter().map(|name| ClosedClaim { name: (*name).into(), state: state.into(), proof: String::new() });
    NeverStarted { at: objects::now(), containers: containers.collect() }
}

pub fn pushed(n: usize) -> Pushed {
    Pushed { at: objects::now(), images: objects::images(n) }
}
