//! What the destination's agent does for a same-name replacement, and the source node's for the fallback: `expect` of `agent/destination.rs` and
//! `agent/destination/fallback.rs`, write by write.

use drover::api::attestation::{Armed, Prepared};

use super::Each;
use crate::{
    intern::WORDS,
    model::Drover,
    objects,
    state::{Img, Mig, View, World},
};

impl Drover {
    /// destination.rs `Look::pod_uid`: until a same-name replacement is expected the attestation speaks of its placeholder.
    pub(super) fn knows_its_pod(&self, world: &World) -> bool {
        !self.keeps_name() || world.destination_says.is_some_and(|id| WORDS.get(id).armed.is_some())
    }

    /// Whether nothing is left of the pods that the attestation speaks of.
    pub(super) fn nothing_left_of_any(&self, world: &World) -> bool {
        let placeholder = world.first.placeholder_listed || world.destination.view == View::Unsynced;
        !(self.keeps_name() && placeholder) && (!self.knows_its_pod(world) || self.nothing_left(world))
    }

    pub(super) fn attests_prepared(&self, world: &mut World) {
        self.attests(world, "prepared", |said| {
            said.prepared = Some(Prepared { at: objects::now(), push_address: "n2:1".into(), pull_address: String::new() });
            said.failure = None;
        });
    }

    /// Its sandbox is awaited. One of another UID than the first is not the model's kubelet's.
    pub(super) fn is_worth_arming(&self, world: &World, mig: Mig) -> bool {
        let first = mig.status().replacement.as_ref().is_some_and(|it| objects::replacement_number(&it.uid) == 1);
        first && (has_a_sandbox(world) || self.lacks_a_claim(world))
    }

    pub(super) fn arm(&self, world: &mut World, stage: u8, n: u8) {
        match stage {
            _ if stage < n => self.each(world, Each::Arm, stage),
            _ if !has_a_sandbox(world) => world.destination.doing = None,
            _ => self.attests(world, "armed", |said| said.armed = Some(Armed { at: objects::now(), pod_uid: objects::replacement_uid(1) })),
        }
    }

    pub(super) fn is_worth_preparing(&self, world: &World) -> bool {
        has_a_sandbox(world) || !world.destination.blobs || self.lacks_a_claim(world)
    }

    fn lacks_a_claim(&self, world: &World) -> bool {
        self.gated(world) && world.destination.containers[..self.n].iter().any(|c| c.claim.is_none())
    }

    pub(super) fn prepare_fallback(&self, world: &mut World, stage: u8, n: u8) {
        match stage {
            0 if !world.source.archive || world.source.journal.is_none() => {
                world.destination.doing = None;
                self.attests_failure(world);
            }
            0 => {
                world.destination.blobs = true;
                world.destination.containers[..self.n].iter_mut().for_each(|c| c.tag = Some(Img::Checkpoint));
                self.goes_on(world);
            }
            _ if stage <= n => self.each(world, Each::Arm, stage - 1),
            _ if !has_a_sandbox(world) => world.destination.doing = None,
            _ => self.attests_prepared(world),
        }
    }
}

/// `ready_the_sandbox`: the kubelet has made it.
fn has_a_sandbox(world: &World) -> bool {
    matches!(world.destination.view, View::Listed | View::Released)
}
