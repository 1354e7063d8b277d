//! The source's agent, as `agent/source/*.rs` does it: each durable write and each effect is one step, and a crash may fall before any of them.

mod first;

use drover::api::attestation::{At, Frozen, Inspected, Kept, Pushed, Remark};

use crate::{
    cel::attestation_allows,
    intern::{WORDS, with_word},
    model::Drover,
    objects,
    rules::Rule,
    state::{Age, Fence, Img, Journal, SourceStep, SourceTask, World, Wrongs},
};
use drover::api::{AttestationStatus, Phase, Verdict};

const NEW: Journal = Journal { frozen: None, fresh: false, dumped: false, pushed: false, vote: false, aborted: false, thawed: false, unmoved: false };

impl Drover {
    /// source.rs `reconcile`: look, and decide.
    pub fn source_looks(&self, world: &mut World) -> Option<()> {
        reachable(world).filter(|()| world.source.doing.is_none())?;
        let own = WORDS.get(world.source_says?);
        world.migration?;
        if let Some(step) = self.source_next(world) {
            self.is_worth_it(world, step).then(|| world.source.doing = Some((step, 0)))?;
            return Some(());
        }
        // source.rs `is_forgotten`: one that a crash between the last word and this left.
        let kept = own.archived.is_some() && own.cleaned.is_none();
        (own.thawed.is_some() || own.ended.is_some() && !kept).then(|| world.source.journal.take())?.map(drop)
    }

    /// freeze.rs `watch_budgets`: each second, whether the API server answers or not.
    pub fn watchdog_looks(&self, world: &mut World) -> Option<()> {
        let journal = world.source.journal.filter(|_| world.source.up && world.source.doing.is_none())?;
        self.is_overdue(journal).then(|| world.source.doing = Some((SourceStep::Watchdog, 0)))
    }

    /// freeze.rs `sweep`: a journal whose Migration is gone.
    pub fn source_sweeps(&self, world: &mut World) -> Option<()> {
        reachable(world).filter(|()| world.source.doing.is_none() && world.migration.is_none())?;
        let journal = world.source.journal.filter(|journal| !journal.vote)?;
        self.thaw_locally(world, journal, 0);
        self.thaw_locally(world, journal, 1);
        self.thaw_locally(world, journal, 2);
        world.source.journal = None;
        Some(())
    }

    /// The next write or effect of the step that is being taken.
    pub fn source_steps(&self, world: &mut World) -> Option<()> {
        let (step, stage) = world.source.doing.filter(|_| world.source.up)?;
        let journal = world.source.journal.unwrap_or(NEW);
        match step {
            // What it finds is no matter of the protocol: a pod with blockers ends before anything is touched.
            SourceStep::Inspect => self.source_attests(world, "inspected", |said| {
                said.inspected = Some(Inspected { at: objects::now(), blockers: vec![], warnings: vec![], bytes: None, volume_bytes: None });
            }),
            SourceStep::Freeze => self.freeze(world, stage, journal),
            SourceStep::Checkpoint => self.checkpoint(world, stage, journal),
            SourceStep::Push => self.push(world, stage, journal),
            SourceStep::Vote => self.vote(world, stage, journal),
            SourceStep::Abort => self.abort(world, stage, journal),
            SourceStep::Thaw => match stage {
                0..=2 => self.thaw_locally(world, journal, stage),
                3 => {
                    let kept = kept(world);
                    self.source_attests(world, if kept.is_some() { "thawed and kept" } else { "thawed" }, |said| {
                        said.thawed = Some(At { at: objects::now() });
                        said.kept = kept;
                    });
                }
                _ => self.forgets(world),
            },
            SourceStep::Watchdog => match stage {
                0 if self.off(Rule::AbortIsWrittenFirst) => self.source_goes_on(world),
                0 => self.saves(world, Journal { aborted: true, ..journal }),
                1..=3 => self.thaw_locally(world, journal, stage - 1),
                _ => {
                    world.source.journal = Some(Journal { thawed: true, ..journal });
                    world.source.doing = None;
                }
            },
            SourceStep::Kill if self.goes_first() => self.kill_first(world, stage, journal),
            SourceStep::Kill => {
                self.kill(world);
                world.source.doing = None;
            }
            SourceStep::Forget => self.forget(world, stage),
            SourceStep::End => self.end_first(world, journal),
            SourceStep::Collect => self.collect(world, stage, false),
            SourceStep::Keep => self.collect(world, stage, true),
        }
        Some(())
    }

    /// What the agent gives up on for reasons of its own: CRIU cannot dump, the push does not go through, the budget is over in the middle.
    pub fn source_fails(&self, world: &mut World) -> Option<()> {
        let (step, stage) = world.source.doing?;
        let may_fail = matches!((step, stage), (SourceStep::Freeze, 2) | (SourceStep::Checkpoint | SourceStep::Push, 0));
        may_fail.then(|| world.source.doing = Some((SourceStep::Abort, 0)))
    }

    fn freeze(&self, world: &mut World, stage: u8, journal: Journal) {
        let source = &mut world.source;
        match stage {
            0 if source.task == SourceTask::Dead => self.gives_up(world),
            0 => {
                let frozen = journal.frozen.or(Some(Age::Fresh));
                let fresh = source.fresh;
                self.saves(world, Journal { frozen, fresh, ..journal });
            }
            1 if source.fence == Fence::Other => self.gives_up(world),
            1 => {
                source.fence = Fence::Ours;
                self.source_goes_on(world);
            }
            2 => {
                if source.task == SourceTask::Running {
                    source.task = SourceTask::Paused;
                }
                self.source_goes_on(world);
            }
            // One that was started between the listing and the fence would go on running.
            _ if source.task == SourceTask::Running || source.fresh != journal.fresh => self.gives_up(world),
            _ => {
                let containers = objects::source_ids(journal.fresh, self.n);
                self.source_attests(world, if journal.fresh { "frozen anew" } else { "frozen" }, |said| {
                    said.frozen = Some(Frozen { at: objects::now(), containers });
                });
            }
        }
    }

    /// steps.rs `checkpoint` and `dump`.
    fn checkpoint(&self, world: &mut World, stage: u8, journal: Journal) {
        let skipped = if journal.dumped { stage + 2 } else { stage };
        match skipped {
            // The kubelet dumps what has a task, and what it dumps is what executed last.
            0 if world.source.task == SourceTask::Dead => self.gives_up(world),
            0 => {
                // Post-copy: what is written is not the memory.
                world.source.archive = !self.leaves_memory();
                world.past.ran_on = world.source.task == SourceTask::Running;
                self.source_goes_on(world);
            }
            1 if !self.all_paused(world, journal) => self.gives_up(world),
            1 => {
                world.source.moved = false;
                self.saves(world, Journal { dumped: true, ..journal });
                world.source.doing = Some((SourceStep::Checkpoint, 0));
            }
            _ => self.source_attests(world, "checkpointed", |said| said.checkpointed = Some(At { at: objects::now() })),
        }
    }

    fn push(&self, world: &mut World, stage: u8, journal: Journal) {
        let stage = if journal.pushed { 2 } else { stage };
        match stage {
            0 => {
                // controller.rs `may_push`: as long as there is no verdict.
                let open = world.status().is_some_and(|status| status.verdict.is_none());
                if !(open && world.destination.up && (world.source.archive || self.leaves_memory())) {
                    return self.gives_up(world);
                }
                world.destination.blobs = true;
                for container in &mut world.destination.containers[..self.n] {
                    container.tag = Some(Img::Checkpoint);
                }
                self.source_goes_on(world);
            }
            1 => {
                self.saves(world, Journal { pushed: true, ..journal });
                world.source.doing = Some((SourceStep::Push, 0));
            }
            _ => self.source_attests(world, "pushed", |said| said.pushed = Some(Pushed { at: objects::now(), images: objects::images(self.n) })),
        }
    }

    fn vote(&self, world: &mut World, stage: u8, journal: Journal) {
        match stage {
            0 if !(journal.vote || self.all_paused(world, journal) && self.may_vote(world, journal)) => self.gives_up(world),
            0 => self.saves(world, Journal { vote: true, ..journal }),
            _ => self.source_attests(world, "vote", |said| said.vote = Some(objects::vote(self.n))),
        }
    }

    fn abort(&self, world: &mut World, stage: u8, journal: Journal) {
        match stage {
            // A vote cannot be taken back; the verdict is awaited.
            0 if journal.vote => world.source.doing = None,
            0 => self.saves(world, Journal { aborted: true, ..journal }),
            // Before it is said.
            1..=3 => self.thaw_locally(world, journal, stage - 1),
            _ => self.source_attests(world, "abort", |said| {
                said.abort.get_or_insert(Remark { at: objects::now(), message: "given up".into() });
            }),
        }
    }

    /// freeze.rs `thaw_locally`: resume, then unfence, then the archives.
    fn thaw_locally(&self, world: &mut World, journal: Journal, part: u8) {
        let source = &mut world.source;
        let ours = source.fence != Fence::Other || self.off(Rule::ThawNeedsOwnFence);
        match part {
            0 if ours && source.task == SourceTask::Paused && (source.fence != Fence::None || journal.fresh == source.fresh) => {
                source.task = SourceTask::Running;
                source.executes(&mut world.past);
                if source.fence == Fence::Other {
                    world.past.wrongs.add(Wrongs::FOREIGN_THAW);
                }
                let voted = world.source_says.is_some_and(|id| WORDS.get(id).vote.is_some());
                let rolled_back = world.migration.is_none_or(|mig| mig.status().verdict == Some(Verdict::Rollback));
                if voted && !rolled_back {
                    world.past.wrongs.add(Wrongs::THAWED_AFTER_VOTE);
                }
            }
            1 if source.fence == Fence::Ours => source.fence = Fence::None,
            // It stays where the memory lives in no container any more (R18).
            2 => {
                let lives = source.task != SourceTask::Dead && journal.fresh == source.fresh;
                source.archive &= !lives && journal.dumped && !self.off(Rule::Kept);
            }
            _ => {}
        }
        self.source_goes_on(world);
    }

    fn kill(&self, world: &mut World) {
        if world.source.task != SourceTask::Dead {
            let committed = world.status().is_some_and(|status| status.verdict == Some(Verdict::Commit));
            let confirmed = world.destination_says.is_some_and(|id| WORDS.get(id).confirmed.is_some());
            // Past the point of no return the archive stands for it (R13, R14).
            let first = world.status().is_some_and(|status| status.is_source_first() && status.phase >= Phase::SourceDeleting);
            let archived = world.source.archive && world.source.journal.is_some_and(|journal| journal.vote);
            if !(committed && confirmed || first && archived) {
                world.past.wrongs.add(Wrongs::KILLED_EARLY);
            }
        }
        world.source.task = SourceTask::Dead;
    }

    fn forget(&self, world: &mut World, stage: u8) {
        match stage {
            0 if world.source.task != SourceTask::Dead => {
                self.kill(world);
                world.source.doing = None;
            }
            0 => self.thaw_locally(world, world.source.journal.unwrap_or(NEW), 1),
            // R15: no copy has the memory; the checkpoint stays for a person.
            1 => {
                let cold = world.status().is_some_and(|status| status.resolved.is_some());
                world.source.archive &= cold && !self.off(Rule::Kept);
                self.source_goes_on(world);
            }
            2 => {
                let kept = kept(world);
                self.source_attests(world, if kept.is_some() { "ended and kept" } else { "ended" }, |said| {
                    said.ended = Some(At { at: objects::now() });
                    said.kept = kept;
                });
            }
            _ => self.forgets(world),
        }
    }

    fn source_goes_on(&self, world: &mut World) {
        if let Some((_, stage)) = &mut world.source.doing {
            *stage += 1;
        }
    }

    fn gives_up(&self, world: &mut World) {
        world.source.doing = Some((SourceStep::Abort, 0));
    }

    fn saves(&self, world: &mut World, journal: Journal) {
        world.source.journal = Some(journal);
        self.source_goes_on(world);
    }

    fn forgets(&self, world: &mut World) {
        world.source.journal = None;
        world.source.doing = None;
    }

    /// The last word of most steps; the thaw and the end go on to forget the journal. Without the API server it is said again later.
    fn source_attests(&self, world: &mut World, word: &str, change: impl FnOnce(&mut AttestationStatus)) {
        let on = matches!(world.source.doing, Some((SourceStep::Thaw | SourceStep::Forget | SourceStep::Collect | SourceStep::Keep, _)));
        let (Some(id), Some(())) = (world.source_says, reachable(world)) else {
            world.source.doing = None;
            return;
        };
        let new = with_word(id, (word, self.n), change);
        if self.off(Rule::Cel) || attestation_allows(id, new) {
            world.source_says = Some(new);
        }
        if on { self.source_goes_on(world) } else { world.source.doing = None }
    }
}

/// What the last word names, where the archives were kept.
fn kept(world: &World) -> Option<Kept> {
    world.source.archive.then(|| Kept { at: objects::now(), archives: vec![objects::ARCHIVE.to_owned()] })
}

/// Whether the source's agent reaches the API server.
fn reachable(world: &World) -> Option<()> {
    (world.source.up && !world.source.cut).then_some(())
}
