//! What is there only where the source goes first: the placeholder, the template, and the fallback onto the source node.

use std::mem;

use super::{Destination, Log, Object, Replacement, World};
use crate::{
    intern::{Id, WORDS},
    objects::FALLBACK,
};
use drover::api::Phase;

/// Nothing of it is there in the other order.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct First {
    pub placeholder: Option<Placeholder>,
    /// The destination's kubelet lists the placeholder.
    pub placeholder_listed: bool,
    /// What other pods are made from is kept in the API.
    pub template: bool,
    /// The source has ended, or its archives are collected, and the destination has not done its part since ([`World::awaits_destination`]).
    pub ended_long_ago: bool,
    /// None until its pod is made.
    pub fallback: Option<Fallback>,
    /// The fallback and the destination have changed places ([`World::fall_back`]); never between two steps.
    pub turned: bool,
}

/// The placeholder's object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Placeholder {
    pub uid: u8,
    pub deleting: bool,
    pub sandbox: bool,
}

/// The pod that goes on from the kept archive, and its node, which is the source's.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Fallback {
    /// Its object; UID 1 is the one that was made first.
    pub pod: Option<Replacement>,
    pub says: Option<Id>,
    /// What lies and runs there of it. Power and network are the source's own.
    pub node: Destination,
    /// Containers whose memory was resumed there, by bit.
    pub restores: u8,
    pub cold: bool,
}

/// Who has the source's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Named {
    Source,
    Replacement(Replacement),
    Fallback(Replacement),
}

impl First {
    pub fn settle(&mut self) {
        if let Some(fallback) = &mut self.fallback {
            // Nobody there is asked whether it ever started.
            fallback.node.containers.iter_mut().for_each(|c| (c.log, c.booted) = (Log::None, false));
        }
    }
}

impl World {
    /// The fallback is a restore like any other, so whoever acts for it acts as if the source node were the destination.
    pub fn fall_back(&mut self, act: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        self.turn()?;
        (self.destination.up, self.destination.lost, self.destination.cut) = (self.source.up, self.source.lost, self.source.cut);
        let done = act(self);
        (self.destination.up, self.destination.lost, self.destination.cut) = (true, false, false);
        self.turn()?;
        done
    }

    fn turn(&mut self) -> Option<()> {
        let mut fallback = self.first.fallback.take()?;
        mem::swap(&mut self.destination, &mut fallback.node);
        mem::swap(&mut self.destination_says, &mut fallback.says);
        mem::swap(&mut self.replacement, &mut fallback.pod);
        mem::swap(&mut self.past.restores, &mut fallback.restores);
        mem::swap(&mut self.past.cold, &mut fallback.cold);
        self.first.fallback = Some(fallback);
        self.first.turned = !self.first.turned;
        Some(())
    }

    /// Whether the manager's patience with the destination counts from what the source has said last.
    pub fn awaits_destination(&self) -> bool {
        let (Some(status), Some(said)) = (self.status(), self.source_says.map(|id| WORDS.get(id))) else { return false };
        match status.phase {
            Phase::SourceDeleting => said.ended.is_some(),
            Phase::Finishing => status.fallback.is_some() && said.cleaned.is_some(),
            _ => false,
        }
    }

    /// Two pods cannot have one name.
    pub fn named(&self, keep_name: bool) -> Option<Named> {
        if self.source_pod != Object::Gone {
            return Some(Named::Source);
        }
        let replacement = self.replacement.filter(|_| keep_name).map(Named::Replacement);
        replacement.or_else(|| self.first.fallback.as_ref().and_then(|it| it.pod).map(Named::Fallback))
    }

    /// The pod of this number that may be released.
    pub fn claimed_mut(&mut self, number: u8) -> Option<&mut Replacement> {
        let (pod, uid) = match number.checked_sub(FALLBACK) {
            Some(uid) => (self.first.fallback.as_mut()?.pod.as_mut()?, uid),
            None => (self.replacement.as_mut()?, number),
        };
        (pod.uid == uid).then_some(pod)
    }

    pub fn fallback_runs(&self) -> bool {
        self.source.up && self.first.fallback.as_ref().is_some_and(|it| it.node.runs())
    }
}
