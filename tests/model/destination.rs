//! The destination's agent, as `agent/destination/*.rs` does it, write by write.

use drover::{
    api::{
        AttestationStatus, Verdict,
        attestation::{At, ClosedClaim, Died, NeverStarted, Prepared, Remark, Restored},
    },
    markers::Claim,
};

use crate::{
    cel::attestation_allows,
    decide::{self, Found},
    intern::{WORDS, with_word},
    model::Drover,
    objects::{self, NAMES},
    rules::Rule,
    state::{Container, DestinationStep, Doing, Img, Log, Mig, View, World},
};

/// What is done with each container, one after the other, before the next stage.
#[derive(Clone, Copy)]
enum Each {
    Arm,
    Repoint,
    Remove,
    Close,
    Open,
}

impl Drover {
    /// destination.rs `reconcile`: look, and decide; what is only read is read here.
    pub fn destination_looks(&self, world: &mut World) -> Option<()> {
        reachable(world).filter(|()| world.destination.doing.is_none())?;
        let mig = world.migration?;
        let (what, of) = match self.destination_next(world)? {
            DestinationStep::Revoke => match self.looks_for_revocation(world, mig) {
                Ok(step) => step,
                Err(done) => return done,
            },
            DestinationStep::Restore => match self.looks_for_the_restore(world, mig) {
                Ok(step) => (step, 0),
                Err(done) => return done,
            },
            DestinationStep::Confirm if world.destination.view == View::Unsynced => return None,
            DestinationStep::Confirm => match self.unconfirmed(world, mig) {
                Some(message) => return self.attests_failure(world, message),
                None => (DestinationStep::Confirm, 0),
            },
            DestinationStep::StartCold if self.is_out_of_reach(world) && !self.is_disarmed(world) && !self.none_awaits_its_restore(world, mig) => {
                return None;
            }
            DestinationStep::StartCold if self.is_disarmed(world) && !self.all_run(world, mig) => return None,
            // A rollback is cleaned again and again until the kubelet has forgotten the pod: only where something is left to do.
            DestinationStep::CleanAfterRollback if !self.nothing_left(world) && self.is_clean(world) => return None,
            DestinationStep::Verify if !self.holds_what_was_voted(world) => return None,
            what => (what, 0),
        };
        world.destination.doing = Some(Doing { what, stage: 0, of });
        Some(())
    }

    /// restore.rs `restore`, up to the first write: what is to be done, or that it was done or nothing is to be.
    fn looks_for_the_restore(&self, world: &mut World, mig: Mig) -> Result<DestinationStep, Option<()>> {
        let message = match self.judge(world, mig) {
            Found::NotYet => return Err(None),
            Found::Cold(message) => return Err(self.attests_cold(world, message)),
            Found::Wrong(message) => message.as_str(),
            Found::Restored(_) if !self.all_taken(world) => "a container runs without having been let through by the gate",
            Found::Restored(_) => return Ok(DestinationStep::Restore),
        };
        Err(self.attests_failure(world, message))
    }

    /// revoke.rs `revoke`, up to the first write: a claim that was taken needs its proof; without one the restore is looked for, and then its end.
    fn looks_for_revocation(&self, world: &mut World, mig: Mig) -> Result<(DestinationStep, u8), Option<()>> {
        let taken: Vec<usize> = (0..self.n).filter(|c| world.destination.containers[*c].claim == Some(Claim::Taken)).collect();
        if !taken.is_empty() && world.destination.view == View::Unsynced {
            return Err(None);
        }
        let (refused, unproved): (Vec<usize>, Vec<usize>) = taken.into_iter().partition(|c| self.refused(world, mig, *c));
        let bits = |of: &[usize]| of.iter().fold(0, |bits, c| bits | 1 << c);
        if unproved.is_empty() {
            return Ok((DestinationStep::Revoke, bits(&refused)));
        }
        let own = world.destination_says.map(|id| WORDS.get(id)).ok_or(None)?;
        if own.restored.is_none() && own.cold_started.is_none() {
            match self.looks_for_the_restore(world, mig) {
                Err(None) => {}
                restore => return restore.map(|step| (step, 0)),
            }
        }
        let over = unproved.iter().all(|c| self.is_over(world, *c));
        if over { Ok((DestinationStep::End, bits(&refused) | bits(&unproved))) } else { Err(None) }
    }

    /// A base image that cannot be pulled, a registry that does not answer: before the release that ends the migration.
    pub fn destination_fails(&self, world: &mut World) -> Option<()> {
        let doing = world.destination.doing.filter(|_| reachable(world).is_some())?;
        if !matches!(doing.what, DestinationStep::Prepare | DestinationStep::Verify) {
            return None;
        }
        world.destination.doing = None;
        self.attests_failure(world, "cannot be prepared")
    }

    /// The next write of the step that is being taken.
    pub fn destination_steps(&self, world: &mut World) -> Option<()> {
        let doing = world.destination.doing.filter(|_| world.destination.up)?;
        let n = u8::try_from(self.n).expect("few containers");
        let stage = doing.stage;
        match doing.what {
            DestinationStep::Prepare if stage < n => self.each(world, Each::Arm, stage),
            DestinationStep::Prepare => self.attests(world, "prepared", |said| {
                said.prepared = Some(Prepared { at: objects::now(), push_address: "n2:1".into(), pull_address: String::new() });
            }),
            DestinationStep::Verify => self.attests(world, "ready", |said| said.ready = Some(decide::pushed(self.n))),
            DestinationStep::Restore => self.restore(world, stage, n),
            DestinationStep::Revoke => self.revoke(world, doing, n),
            DestinationStep::End => self.end(world, doing, n),
            DestinationStep::StartCold => self.start_cold(world, stage, n),
            DestinationStep::Confirm => self.attests(world, "confirmed", |said| {
                said.confirmed = Some(At { at: objects::now() });
                said.failure = None;
            }),
            DestinationStep::CleanAfterCommit => match stage {
                _ if stage < n => self.each(world, Each::Open, stage),
                _ if stage == n => self.disarms(world),
                _ if stage == n + 1 => self.purges(world, false),
                _ => self.attests(world, "cleaned", |said| said.cleaned = Some(At { at: objects::now() })),
            },
            DestinationStep::CleanAfterRollback => match stage {
                _ if stage < n => self.each(world, Each::Close, stage),
                _ if stage < 2 * n => self.each(world, Each::Remove, stage - n),
                _ if stage == 2 * n => self.purges(world, true),
                _ if stage == 2 * n + 1 && !self.nothing_left(world) => world.destination.doing = None,
                _ if stage == 2 * n + 1 => self.disarms(world),
                _ => self.attests(world, "cleaned", |said| said.cleaned = Some(At { at: objects::now() })),
            },
        }
        Some(())
    }

    /// restore.rs `take_out_of_reach`, the second look, and the word.
    fn restore(&self, world: &mut World, stage: u8, n: u8) {
        let last = if self.off(Rule::OutOfReachFirst) { 0 } else { 2 * n };
        if stage < last {
            return self.each(world, if stage.is_multiple_of(2) { Each::Repoint } else { Each::Remove }, stage / 2);
        }
        let Some(mig) = world.migration else { return world.destination.doing = None };
        match self.judge(world, mig) {
            Found::Restored(_) if stage == last => self.goes_on(world),
            // Between the look and the word anything may happen.
            Found::Restored(containers) => self.attests(world, &format!("restored {containers:?}"), |said| {
                said.restored = Some(Restored { at: objects::now(), containers: containers.clone() });
                said.failure = None;
            }),
            _ if stage == last => world.destination.doing = None,
            _ => self.attests(world, "restored", |said| {
                let containers = objects::source_ids(false, self.n)
                    .into_iter()
                    .map(|c| drover::api::attestation::ContainerId { container_id: format!("{}-new", c.name), ..c });
                said.restored = Some(Restored { at: objects::now(), containers: containers.collect() });
                said.failure = None;
            }),
        }
    }

    /// revoke.rs `revoke`: for each container the proof, then the rename; then the names of the image; then the word.
    fn revoke(&self, world: &mut World, doing: Doing, n: u8) {
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

    fn is_disarmed(&self, world: &World) -> bool {
        world.destination.containers[..self.n].iter().all(|c| c.claim.is_none())
    }

    fn is_out_of_reach(&self, world: &World) -> bool {
        world.destination.containers[..self.n].iter().all(|c| c.tag == Some(Img::Base) && !c.store)
    }

    /// restore.rs `attest_cold`.
    fn attests_cold(&self, world: &mut World, message: &str) -> Option<()> {
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

    /// revoke.rs `look_for_the_end`, from the closing on.
    fn end(&self, world: &mut World, doing: Doing, n: u8) {
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

    /// restore.rs `start_cold`: the checkpoint goes out of reach, then the claims.
    fn start_cold(&self, world: &mut World, stage: u8, n: u8) {
        let Some(mig) = world.migration else { return world.destination.doing = None };
        match stage {
            0 if self.is_disarmed(world) => world.destination.doing = Some(Doing { what: DestinationStep::StartCold, stage: 2 * n + 1, of: 0 }),
            _ if stage < 2 * n => self.each(world, if stage.is_multiple_of(2) { Each::Repoint } else { Each::Remove }, stage / 2),
            _ if stage == 2 * n && !self.none_awaits_its_restore(world, mig) => world.destination.doing = None,
            _ if stage == 2 * n => self.disarms(world),
            _ if !self.all_run(world, mig) => world.destination.doing = None,
            _ => self.attests(world, "let start cold", |said| {
                said.confirmed = Some(At { at: objects::now() });
                if said.restored.is_none() && said.died.is_none() {
                    said.cold_started.get_or_insert_with(|| Remark { at: objects::now(), message: "let start from its image".to_owned() });
                }
            }),
        }
    }

    fn all_taken(&self, world: &World) -> bool {
        self.off(Rule::OnlyTakenCounts) || world.destination.containers[..self.n].iter().all(|c| c.claim == Some(Claim::Taken))
    }

    fn holds_what_was_voted(&self, world: &World) -> bool {
        let destination = &world.destination;
        let here = destination.blobs && destination.containers[..self.n].iter().all(|c| c.tag == Some(Img::Checkpoint));
        here || self.off(Rule::VerifiedImages)
    }

    fn is_clean(&self, world: &World) -> bool {
        let destination = &world.destination;
        !destination.blobs && destination.containers[..self.n].iter().all(|c| !c.store && c.tag.is_none() && c.claim != Some(Claim::Waiting))
    }

    fn each(&self, world: &mut World, each: Each, c: u8) {
        let container = &mut world.destination.containers[usize::from(c)];
        match each {
            Each::Arm => container.claim = container.claim.or(Some(Claim::Waiting)),
            Each::Repoint => container.tag = Some(Img::Base),
            Each::Remove => container.store = false,
            Each::Close => advance(container, Claim::Waiting, Claim::Revoked),
            Each::Open => advance(container, Claim::Taken, Claim::Open),
        }
        self.goes_on(world);
    }

    fn disarms(&self, world: &mut World) {
        for container in &mut world.destination.containers {
            (container.claim, container.log, container.proof, container.booted) = (None, Log::None, false, false);
        }
        self.goes_on(world);
    }

    fn purges(&self, world: &mut World, tags: bool) {
        world.destination.blobs = false;
        if tags {
            world.destination.containers.iter_mut().for_each(|c| c.tag = None);
        }
        self.goes_on(world);
    }

    /// destination.rs `sweep`: what no migration and no pod of the node needs.
    pub fn destination_sweeps(&self, world: &mut World) -> Option<()> {
        reachable(world).filter(|()| world.destination.doing.is_none() && world.destination.view != View::Unsynced)?;
        let arrives = world.status().is_some_and(|status| status.outcome.is_none() && status.replacement.as_ref().is_some_and(|r| !r.uid.is_empty()));
        (!listed(world) && !arrives).then_some(())?;
        let before = world.clone();
        if self.nothing_left(world) {
            self.disarms(world);
        }
        self.purges(world, true);
        (*world != before).then_some(())
    }

    fn goes_on(&self, world: &mut World) {
        if let Some(doing) = &mut world.destination.doing {
            doing.stage += 1;
        }
    }

    fn attests_failure(&self, world: &mut World, message: &str) -> Option<()> {
        let before = world.destination_says;
        self.attests(world, &format!("failure {message}"), |said| {
            if said.failure.as_ref().is_none_or(|failure| failure.message != message) {
                said.failure = Some(Remark { at: objects::now(), message: message.to_owned() });
            }
        });
        (world.destination_says != before).then_some(())
    }

    fn attests(&self, world: &mut World, word: &str, change: impl FnOnce(&mut AttestationStatus)) {
        world.destination.doing = None;
        let (Some(id), Some(())) = (world.destination_says, reachable(world)) else { return };
        let new = with_word(id, (word, self.n), change);
        if self.off(Rule::Cel) || attestation_allows(id, new) {
            world.destination_says = Some(new);
        }
    }

    /// Whether ordinary creates may pass already (rule R20 switched off).
    pub fn opens_early(&self, world: &World) -> bool {
        let committed = |mig: Mig| mig.status().verdict == Some(Verdict::Commit);
        self.off(Rule::OpenAfterConfirmation) && world.migration.is_some_and(committed)
    }
}

fn advance(container: &mut Container, from: Claim, to: Claim) {
    if container.claim == Some(from) {
        container.claim = Some(to);
    }
}

fn listed(world: &World) -> bool {
    matches!(world.destination.view, View::Listed | View::Released | View::Terminating)
}

/// Whether the destination's agent reaches the API server.
fn reachable(world: &World) -> Option<()> {
    (world.destination.up && !world.destination.cut).then_some(())
}
