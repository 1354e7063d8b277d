//! The destination's agent in doubt: claims are closed, what is over is looked for, and a replacement is let start cold. `agent/destination/revoke.rs` and
//! `start_cold` of `restore.rs`, write by write.

use drover::{
    api::attestation::{At, ClosedClaim, Died, NeverStarted, Remark},
    markers::Claim,
};

use super::{Each, advance};
use crate::{
    intern::WORDS,
    model::Drover,
    objects::{self, NAMES},
    rules::Rule,
    state::{DestinationStep, Doing, Img, Mig, View, World},
};

impl Drover {
    /// revoke.rs `revoke`, up to the first write: a claim that was taken needs its proof; without one the restore is looked for, and then its end.
    pub(super) fn looks_for_revocation(&self, world: &mut World, mig: Mig) -> Result<(DestinationStep, u8), Option<()>> {
        if !self.gated(world) {
            return match self.looks_for_a_late_restore(world, mig) {
                Err(None) if self.is_absent(world) => Ok((DestinationStep::End, 0)),
                looked => looked,
            };
        }
        if self.ends_orphans(world) {
            return Err(Some(()));
        }
        let taken: Vec<usize> = (0..self.n).filter(|c| world.destination.containers[*c].claim == Some(Claim::Taken)).collect();
        if !taken.is_empty() && world.destination.view == View::Unsynced {
            return Err(None);
        }
        let (refused, unproved): (Vec<usize>, Vec<usize>) = taken.into_iter().partition(|c| self.refused(world, mig, *c));
        let bits = |of: &[usize]| of.iter().fold(0, |bits, c| bits | 1 << c);
        if unproved.is_empty() {
            return Ok((DestinationStep::Revoke, bits(&refused)));
        }
        match self.looks_for_a_late_restore(world, mig) {
            Err(None) => {}
            looked => return looked,
        }
        let over = unproved.iter().all(|c| self.is_over(world, *c));
        if over { Ok((DestinationStep::End, bits(&refused) | bits(&unproved))) } else { Err(None) }
    }

    /// revoke.rs `remove_ended` and `end_taken`: what goes on of a taken restore that its runtime has given up is killed, and counts as over only when the
    /// next look finds nothing of it. Whether there was anything.
    pub(super) fn ends_orphans(&self, world: &mut World) -> bool {
        let mut found = false;
        for container in world.destination.containers[..self.n].iter_mut().filter(|_| !self.off(Rule::EndNeedsNoProcess)) {
            found |= container.orphan.take().is_some();
        }
        found
    }

    /// revoke.rs `restored_after_all`.
    fn looks_for_a_late_restore(&self, world: &mut World, mig: Mig) -> Result<(DestinationStep, u8), Option<()>> {
        let own = world.destination_says.map(|id| WORDS.get(id)).ok_or(None)?;
        if own.restored.is_some() || own.cold_started.is_some() {
            return Err(None);
        }
        self.looks_for_the_restore(world, mig).map(|step| (step, 0))
    }

    /// revoke.rs `look_for_absence` (R6).
    fn is_absent(&self, world: &World) -> bool {
        let sandbox = world.destination.sandbox && !self.off(Rule::SandboxIsGone);
        self.off(Rule::AbsenceIsProved) || self.nothing_left(world) && !sandbox
    }

    /// revoke.rs `revoke`: for each container the proof, then the rename; then the names of the image; then the word.
    pub(super) fn revoke(&self, world: &mut World, doing: Doing, n: u8) {
        let stage = doing.stage;
        if stage < 2 * n {
            let c = usize::from(stage / 2);
            let proved = doing.of & (1 << c) != 0;
            let container = &mut world.destination.containers[c];
            if stage.is_multiple_of(2) {
                container.proof |= proved;
            } else if !self.off(Rule::RevocationIsWritten) {
                let (from, to) = if proved { (Claim::Taken, Claim::Failed) } else { (Claim::Waiting, Claim::Revoked) };
                advance(container, from, to);
                let closed =
                    matches!(container.claim, Some(Claim::Revoked | Claim::Failed)) && (container.claim == Some(Claim::Revoked) || container.proof);
                let missing = container.claim.is_none() && self.off(Rule::MissingIsUnknown);
                if !closed && !missing {
                    return world.destination.doing = None;
                }
            }
            self.goes_on(world);
        } else if stage < 3 * n {
            self.each(world, Each::Remove, stage - 2 * n);
        } else {
            let claims = world.destination.containers;
            let closed = NAMES[..self.n].iter().zip(claims).map(|(name, container)| {
                let failed = container.claim == Some(Claim::Failed);
                ClosedClaim {
                    name: (*name).into(),
                    state: if failed { "failed" } else { "revoked" }.into(),
                    proof: if failed { "Error (criu/mount.c:1): mnt: No mapping for 7".into() } else { String::new() },
                }
            });
            let containers = closed.collect();
            self.attests(world, &format!("never started {containers:?}"), |said| {
                said.never_started = Some(NeverStarted { at: objects::now(), containers });
            });
        }
    }

    /// revoke.rs `look_for_the_end`, from the closing on; without the gate there is nothing to close.
    pub(super) fn end(&self, world: &mut World, doing: Doing, n: u8) {
        if !self.gated(world) {
            let unknown = |name: &&str| ClosedClaim { name: (*name).into(), state: "unknown".into(), proof: String::new() };
            let containers = NAMES[..self.n].iter().map(unknown).collect();
            return self.attests(world, "died, who knows", |said| said.died = Some(Died { at: objects::now(), containers }));
        }
        if doing.stage < n {
            return self.each(world, Each::Close, doing.stage);
        }
        let claims = world.destination.containers;
        let taken = |c: usize| claims[c].claim == Some(Claim::Taken);
        // One may have been taken between the look and the closing.
        if (0..self.n).any(|c| taken(c) && doing.of & (1 << c) == 0) {
            return world.destination.doing = None;
        }
        let containers = NAMES[..self.n].iter().zip(claims).filter_map(|(name, container)| {
            Some(ClosedClaim { name: (*name).into(), state: container.claim?.as_str().into(), proof: String::new() })
        });
        let containers = containers.collect();
        self.attests(world, &format!("died {containers:?}"), |said| said.died = Some(Died { at: objects::now(), containers }));
    }

    pub(super) fn is_disarmed(&self, world: &World) -> bool {
        world.destination.containers[..self.n].iter().all(|c| c.claim.is_none())
    }

    /// restore.rs `attest_cold`.
    pub(super) fn attests_cold(&self, world: &mut World, message: &str) -> Option<()> {
        let before = world.destination_says;
        self.attests(world, &format!("cold {message}"), |said| {
            let remark = Remark { at: objects::now(), message: message.to_owned() };
            if said.cold_started.is_none() {
                said.failure = Some(remark.clone());
                said.cold_started = Some(remark);
            }
        });
        (world.destination_says != before).then_some(())
    }

    /// Whether a step that lets the replacement start cold has anything to do or to say.
    pub(super) fn may_start_cold(&self, world: &World, mig: Mig) -> bool {
        let gated = self.gated(world);
        let containers = &world.destination.containers[..self.n];
        let is_out_of_reach = containers.iter().all(|c| c.tag == Some(Img::Base) && !c.store);
        let is_let_start = !gated || containers.iter().all(|c| c.claim == Some(Claim::Open));
        match () {
            () if gated && self.is_disarmed(world) || is_out_of_reach && is_let_start => self.all_run(world, mig),
            () => !is_out_of_reach || containers.iter().any(|c| c.orphan.is_some()) || self.none_awaits_its_restore(world, mig),
        }
    }

    /// restore.rs `start_cold`: the checkpoint goes out of reach, then the claims let everything start but a restore, and they go once all of it runs.
    pub(super) fn start_cold(&self, world: &mut World, stage: u8, n: u8) {
        let Some(mig) = world.migration else { return world.destination.doing = None };
        let last = 3 * n + 1;
        match stage {
            0 if self.gated(world) && self.is_disarmed(world) => {
                world.destination.doing = Some(Doing { what: DestinationStep::StartCold, stage: last, of: 0 });
            }
            _ if stage < 2 * n => self.each(world, if stage.is_multiple_of(2) { Each::Repoint } else { Each::Remove }, stage / 2),
            _ if stage == 2 * n && self.gated(world) && (self.ends_orphans(world) || !self.none_awaits_its_restore(world, mig)) => {
                world.destination.doing = None;
            }
            _ if stage == 2 * n => self.goes_on(world),
            _ if stage < last => self.each(world, Each::LetStart, stage - 2 * n - 1),
            _ if stage == last && !self.all_run(world, mig) => world.destination.doing = None,
            _ if stage == last => self.disarms(world),
            _ => self.attests(world, "let start cold", |said| {
                said.confirmed = Some(At { at: objects::now() });
                if said.restored.is_none() && said.died.is_none() {
                    said.cold_started.get_or_insert_with(|| Remark { at: objects::now(), message: "let start from its image".to_owned() });
                }
            }),
        }
    }
}
