//! The end of a source that goes before the release: `agent/source/first.rs`, write by write.

use drover::api::attestation::{Archived, At};

use super::kept;
use crate::{
    faults::Node,
    model::Drover,
    objects,
    state::{Fence, Journal, SourceStep, SourceTask, World},
};

impl Drover {
    /// A step that waits for the kubelet is taken again and again; that shows only once there is something to do.
    pub(super) fn is_worth_it(&self, world: &World, step: SourceStep) -> bool {
        match step {
            SourceStep::End => self.nothing_can_start(world) || world.source.task != SourceTask::Dead,
            SourceStep::Kill => world.source.task != SourceTask::Dead,
            SourceStep::Collect => world.source.archive || self.source_left(world),
            SourceStep::Keep => self.source_left(world),
            _ => true,
        }
    }

    /// Without the fence, or a gate that obeys it, a kubelet that has forgotten the pod may still start a container that it has made for it.
    fn nothing_can_start(&self, world: &World) -> bool {
        if self.is_fenced(world) { world.source.task == SourceTask::Dead } else { world.source.removed }
    }

    fn is_fenced(&self, world: &World) -> bool {
        self.is_gated(Node::Source) && world.source.fence == Fence::Ours
    }

    /// first.rs `kill_first`.
    pub(super) fn kill_first(&self, world: &mut World, stage: u8, journal: Journal) {
        let looks = stage == 0 && !self.is_gated(Node::Source) && !journal.unmoved;
        if looks && self.all_paused(world, journal) && self.may_vote(world, journal) {
            world.source.doing = Some((SourceStep::Kill, 0));
            return self.saves(world, Journal { unmoved: true, ..journal });
        }
        self.kill(world);
        world.source.doing = None;
    }

    /// first.rs `end`.
    pub(super) fn end_first(&self, world: &mut World, journal: Journal) {
        if !self.nothing_can_start(world) {
            return self.kill_first(world, 0, journal);
        }
        let paths = if journal.dumped { vec![objects::ARCHIVE.to_owned()] } else { vec![] };
        let last = self.is_fenced(world) || journal.unmoved;
        self.source_attests(world, &format!("over, kept: {}, last: {last}", paths.len()), |said| {
            said.archived = Some(Archived { at: objects::now(), paths, last });
            said.ended = Some(At { at: objects::now() });
        });
    }

    /// first.rs `collect`.
    pub(super) fn collect(&self, world: &mut World, stage: u8, keep: bool) {
        match stage {
            0 => {
                world.source.archive &= keep;
                self.source_goes_on(world);
            }
            1 if !self.source_left(world) => world.source.doing = None,
            1 => {
                if world.source.fence == Fence::Ours {
                    world.source.fence = Fence::None;
                }
                self.source_goes_on(world);
            }
            2 => {
                let kept = kept(world);
                self.source_attests(world, if kept.is_some() { "collected and kept" } else { "collected" }, |said| {
                    said.cleaned = Some(At { at: objects::now() });
                    said.kept = kept;
                });
            }
            _ => self.forgets(world),
        }
    }
}
