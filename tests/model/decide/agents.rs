//! What the agents, the kubelets' views and the gate are asked.

use std::sync::LazyLock;

use drover::{
    api::{AttestationStatus, MigrationStatus, Verdict, attestation::ContainerId},
    domain::{
        attest::{self, DestinationAction, FallbackAction, SourceAction},
        tasks::{self, Finding},
        verdict,
    },
    gate,
    markers::Claim,
};

use super::pretend::{as_if_confirmed, as_if_copied, as_if_voted};
use crate::{
    intern::{Id, Memo, STATUSES, WORDS},
    model::Drover,
    objects::{self, NAMES, NOW},
    rules::Rule,
    state::{Container, DestinationStep, Fence, Journal, Log, Mig, Object, SourceStep, SourceTask, Task, View, World},
};

static SOURCE: Memo<(Id, Id, Option<Id>, Option<Journal>, View), Option<SourceStep>> = Memo::new();
static DESTINATION: Memo<(Id, Id, Option<Id>), Option<DestinationStep>> = Memo::new();
static FALLBACK: Memo<(Id, Id), Option<DestinationStep>> = Memo::new();
static SOURCE_LEFT: Memo<(SourceTask, bool, bool, usize), bool> = Memo::new();
static LEFT: Memo<([(Task, bool); 2], View, usize), bool> = Memo::new();
static OVER: Memo<([Container; 2], usize, usize), bool> = Memo::new();
static GATE: Memo<([Option<Claim>; 2], usize, usize), gate::Rule> = Memo::new();
static JUDGE: Memo<(Id, [Container; 2], View, usize), Found> = Memo::new();
static REFUSED: Memo<(Id, [Container; 2], View, usize, usize), bool> = Memo::new();
static CONFIRM: Memo<(Id, Id, [Container; 2], View, usize), bool> = Memo::new();

/// How often the agents' side of the product was asked something new.
pub fn questions() -> usize {
    let looks = SOURCE.len() + DESTINATION.len() + FALLBACK.len() + SOURCE_LEFT.len();
    looks + LEFT.len() + OVER.len() + GATE.len() + JUDGE.len() + REFUSED.len() + CONFIRM.len()
}

/// What [`tasks::judge`] and [`tasks::trouble`] say together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    NotYet,
    /// It runs without the memory.
    Cold(String),
    Restored(Vec<ContainerId>),
    Wrong,
}

fn words(id: Option<Id>) -> &'static AttestationStatus {
    static NOTHING: LazyLock<AttestationStatus> = LazyLock::new(AttestationStatus::default);
    id.map_or(&NOTHING, |id| WORDS.get(id))
}

impl Drover {
    /// [`attest::source_next`] as `SourceAgent::decide` asks it.
    pub fn source_next(&self, world: &World) -> Option<SourceStep> {
        let (mig, own) = (world.migration?, world.source_says?);
        let status = mig.status();
        let mut copy = match status.fallback {
            Some(_) => world.first.fallback.as_ref().and_then(|it| it.says),
            None => world.destination_says,
        };
        if self.off(Rule::Confirmation) && status.verdict == Some(Verdict::Commit) {
            copy = copy.map(as_if_confirmed);
        }
        if self.off(Rule::ArchiveWaits) && status.verdict.is_some() && status.is_source_first() {
            copy = Some(as_if_copied(copy));
        }
        let journal = world.source.journal;
        let view = if self.off(Rule::KillNeedsDeletion) && mig.status().verdict.is_some() { View::Terminating } else { world.source.view };
        let step = *SOURCE.ask((mig.status, own, copy, journal, view), |(status, own, copy, journal, view)| {
            let status = STATUSES.get(*status);
            let matters = match status.verdict {
                None => journal.is_some_and(|journal| journal.frozen.is_some()) && WORDS.get(*own).ended.is_none(),
                Some(Verdict::Commit) => WORDS.get(*own).ended.is_none(),
                Some(Verdict::Rollback) => false,
            };
            let deletion = match view {
                _ if !matters => attest::Deletion::NotShown,
                // adapters/kubelet.rs: a list that is not whole is an error; it is asked again.
                View::Unsynced => return None,
                View::Unlisted => attest::Deletion::Gone,
                View::Terminating => attest::Deletion::Shown,
                View::Listed | View::Released => attest::Deletion::NotShown,
            };
            let journal = journal.map(|it| objects::journal(it, 1).view()).unwrap_or_default();
            let budget = std::time::Duration::from_mins(1);
            match attest::source_next(status, WORDS.get(*own), words(*copy), &journal, deletion, budget, *NOW) {
                SourceAction::Wait => None,
                SourceAction::Inspect => Some(SourceStep::Inspect),
                SourceAction::Freeze => Some(SourceStep::Freeze),
                SourceAction::Checkpoint => Some(SourceStep::Checkpoint),
                SourceAction::Push => Some(SourceStep::Push),
                SourceAction::Vote => Some(SourceStep::Vote),
                SourceAction::Abort(_) => Some(SourceStep::Abort),
                SourceAction::Thaw => Some(SourceStep::Thaw),
                SourceAction::Kill => Some(SourceStep::Kill),
                SourceAction::Forget => Some(SourceStep::Forget),
                SourceAction::End => Some(SourceStep::End),
                SourceAction::Collect => Some(SourceStep::Collect),
                SourceAction::Keep => Some(SourceStep::Keep),
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
        let fenced = source.fence == Fence::Ours;
        verdict::may_vote(&objects::source_ids(journal.fresh, self.n), &before, &now, fenced).is_ok()
    }

    /// [`tasks::nothing_left`], of the source.
    pub fn source_left(&self, world: &World) -> bool {
        let source = &world.source;
        let listed = matches!(source.view, View::Listed | View::Released | View::Terminating);
        source.view != View::Unsynced
            && *SOURCE_LEFT.ask((source.task, source.removed, listed, self.n), |(task, removed, listed, n)| {
                let tasks = if *removed { vec![] } else { objects::source_tasks(*task, false, *n) };
                tasks::nothing_left(objects::source_pod(Object::Live, false, *n).filter(|_| *listed).as_ref(), &tasks)
            })
    }

    /// [`attest::fallback_next`].
    fn fallback_next(&self, world: &World) -> Option<DestinationStep> {
        let (mig, own) = (world.migration?, world.destination_says?);
        *FALLBACK.ask((mig.status, own), |(status, own)| match attest::fallback_next(STATUSES.get(*status), WORDS.get(*own)) {
            FallbackAction::Wait => None,
            FallbackAction::Prepare => Some(DestinationStep::PrepareFallback),
            FallbackAction::Restore => Some(DestinationStep::Restore),
            FallbackAction::Confirm => Some(DestinationStep::Confirm),
            FallbackAction::Clean => Some(DestinationStep::CleanAfterCommit),
            FallbackAction::Clear => Some(DestinationStep::CleanAfterRollback),
        })
    }

    /// [`attest::destination_next`].
    pub fn destination_next(&self, world: &World) -> Option<DestinationStep> {
        if world.first.turned {
            return self.fallback_next(world);
        }
        let (mig, own) = (world.migration?, world.destination_says?);
        let mut source = world.source_says.map(|id| if self.off(Rule::ReleaseNeedsTheVote) { as_if_voted(id, self.n) } else { id });
        if self.off(Rule::CollectionWaits) && mig.status().verdict == Some(Verdict::Rollback) {
            source = None;
        }
        *DESTINATION.ask((mig.status, own, source), |(status, own, source)| {
            match attest::destination_next(STATUSES.get(*status), WORDS.get(*own), words(*source)) {
                DestinationAction::Wait => None,
                DestinationAction::Prepare => Some(DestinationStep::Prepare),
                DestinationAction::Verify => Some(DestinationStep::Verify),
                DestinationAction::Arm => Some(DestinationStep::Arm),
                DestinationAction::Restore => Some(DestinationStep::Restore),
                DestinationAction::Revoke => Some(DestinationStep::Revoke),
                DestinationAction::Confirm => Some(DestinationStep::Confirm),
                DestinationAction::StartCold => Some(DestinationStep::StartCold),
                DestinationAction::CleanAfterCommit => Some(DestinationStep::CleanAfterCommit),
                DestinationAction::CleanAfterRollback => Some(DestinationStep::CleanAfterRollback),
            }
        })
    }

    /// `DestinationAgent::judge`, by [`tasks::judge`] and [`tasks::trouble`].
    pub fn judge(&self, world: &World, mig: Mig) -> &'static Found {
        let mut containers = self.as_filled(world);
        if self.off(Rule::DeadIsNotRestored) {
            for container in &mut containers {
                if container.task == Task::Dead {
                    *container = Container { task: Task::Running { restored: true }, earlier: false, ..*container };
                }
            }
        }
        JUDGE.ask((mig.status, containers, world.destination.view, self.n), |(status, containers, view, n)| {
            let status = STATUSES.get(*status);
            let finding = tasks::judge(&status.containers, &objects::replacement_tasks(&containers[..*n], status));
            let pod = objects::replacement_listed(*view, &containers[..*n]);
            match (finding, pod.as_ref().and_then(tasks::trouble)) {
                (Finding::Cold(message), _) => Found::Cold(message),
                (Finding::Wrong(_), _) | (_, Some(_)) => Found::Wrong,
                // The kubelet's answer is awaited.
                _ if *view == View::Unsynced => Found::NotYet,
                (Finding::NotYet, None) => Found::NotYet,
                (Finding::Restored(containers), None) => Found::Restored(containers),
            }
        })
    }

    /// [`tasks::nothing_left`]; a kubelet that has not read its pods cannot say so.
    pub fn nothing_left(&self, world: &World) -> bool {
        let (view, n) = (world.destination.view, self.n);
        view != View::Unsynced
            && *LEFT.ask((world.destination.containers.map(|c| (c.task, c.earlier)), view, n), |_| {
                let containers = &world.destination.containers[..n];
                let tasks = objects::replacement_tasks(containers, &MigrationStatus::default());
                tasks::nothing_left(objects::replacement_listed(view, containers).as_ref(), &tasks)
            })
    }

    /// [`tasks::unconfirmed`].
    pub fn unconfirmed(&self, world: &World, mig: Mig) -> bool {
        let Some(own) = world.destination_says.filter(|_| !self.off(Rule::ConfirmationLooks)) else { return false };
        let key = (mig.status, own, self.as_filled(world), world.destination.view, self.n);
        *CONFIRM.ask(key, |(status, own, containers, view, n)| {
            let status = STATUSES.get(*status);
            let Some(restored) = &WORDS.get(*own).restored else { return true };
            let (tasks, pod) = (objects::replacement_tasks(&containers[..*n], status), objects::replacement_listed(*view, &containers[..*n]));
            tasks::unconfirmed(&status.containers, &restored.containers, &tasks, pod.as_ref()).is_some()
        })
    }

    /// The containers for whoever asks whether they are restored.
    fn as_filled(&self, world: &World) -> [Container; 2] {
        let filled = |c: Container| if c.task == Task::Filling { Container { task: Task::Running { restored: true }, ..c } } else { c };
        let all = world.destination.containers;
        if self.off(Rule::PagesAreThere) { all.map(filled) } else { all }
    }

    /// The containers for whoever asks whether they have ended.
    fn as_ended(&self, world: &World) -> [Container; 2] {
        let all = world.destination.containers;
        if self.off(Rule::EndNeedsNoProcess) { all.map(|c| Container { orphan: None, ..c }) } else { all }
    }

    /// `DestinationAgent::proof_of_failure`, by [`tasks::refused`].
    pub fn refused(&self, world: &World, mig: Mig, c: usize) -> bool {
        if self.off(Rule::FailureNeedsProof) {
            let task = world.destination.containers[c].task;
            return !(task.executes() || task == Task::Restoring);
        }
        let key = (mig.status, self.as_ended(world), world.destination.view, self.n, c);
        *REFUSED.ask(key, |(status, containers, view, n, c)| {
            // A log that a power failure has cut proves nothing.
            let is_over = !containers[*c].booted && objects::first_has_ended(&containers[*c]);
            let Some(log) = objects::log_text(containers[*c].log).filter(|_| is_over) else { return false };
            let tasks = objects::replacement_tasks(&containers[..*n], STATUSES.get(*status));
            tasks::refused(NAMES[*c], &tasks, log, objects::replacement_listed(*view, &containers[..*n]).as_ref()).is_some()
        })
    }

    /// [`tasks::is_over`], as `DestinationAgent::look_for_the_end` asks it.
    pub fn is_over(&self, world: &World, c: usize) -> bool {
        if self.off(Rule::DeadNeedsAnEnd) {
            return true;
        }
        *OVER.ask((self.as_ended(world), self.n, c), |(containers, n, c)| {
            let tasks = objects::replacement_tasks(&containers[..*n], &MigrationStatus::default());
            let container = containers[*c];
            container.log != Log::None && tasks::is_over(container.booted || objects::first_has_ended(&container), &tasks)
        })
    }

    /// [`tasks::none_awaits_its_restore`], as `DestinationAgent::start_cold` asks it.
    pub fn none_awaits_its_restore(&self, world: &World, mig: Mig) -> bool {
        if self.off(Rule::ColdIsCold) {
            return true;
        }
        let containers = &self.as_ended(world)[..self.n];
        let taken: Vec<String> = (0..self.n).filter(|c| containers[*c].log != Log::None).map(objects::first_id).collect();
        let (tasks, over) = (objects::replacement_tasks(containers, mig.status()), objects::over(containers));
        tasks::none_awaits_its_restore(&mig.status().containers, &taken, &over, &tasks)
    }

    /// [`tasks::all_run`].
    pub fn all_run(&self, world: &World, mig: Mig) -> bool {
        let containers = &world.destination.containers[..self.n];
        tasks::all_run(&mig.status().containers, &objects::replacement_tasks(containers, mig.status()))
    }

    /// The gate of the node where the copy is, by [`gate::rule`].
    pub fn gate(&self, world: &World, c: usize) -> gate::Rule {
        if !self.gated(world) {
            return gate::Rule::Pass;
        }
        let containers = &world.destination.containers;
        let claims = [containers[0].claim, containers[1].claim];
        let rule = *GATE.ask((claims, self.n, c), |(claims, n, c)| {
            let claims: Vec<(String, Claim)> =
                NAMES[..*n].iter().zip(claims).filter_map(|(name, claim)| Some(((*name).to_owned(), (*claim)?))).collect();
            gate::rule(&claims, NAMES[*c])
        });
        match rule {
            gate::Rule::Over(Claim::Taken) if self.off(Rule::OneShot) => gate::Rule::Pass,
            rule => rule,
        }
    }
}
