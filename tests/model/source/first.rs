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
        let fenced = self.is_gated(Node::Source) && world.source.fence == Fence::Ours;
        if fenced { world.source.task == SourceTask::Dead } else { world.source.removed }
    }

    /// first.rs `end`.
    pub(super) fn end_first(&self, world: &mut World, journal: Journal) {
        if !self.nothing_can_start(world) {
            self.kill(world);
            return world.source.doing = None;
        }
        let paths = if journal.dumped { vec![objects::ARCHIVE.to_owned()] } else { vec![] };
        self.source_attests(world, &format!("over, kept: {}", paths.len()), |said| {
            said.archived = Some(Archived { at: objects::now(), paths });
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
