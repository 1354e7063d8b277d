//! The destination's agent, as `agent/destination/*.rs` does it, write by write.

mod doubt;
mod first;

use drover::{
    api::{
        AttestationStatus, MigrationStatus, Verdict,
        attestation::{At, ContainerId, Remark, Restored},
    },
    markers::Claim,
};

use crate::{
    cel::attestation_allows,
    decide::{self, Found},
    intern::with_word,
    model::Drover,
    objects,
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
    /// revoke.rs `let_start`.
    LetStart,
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
            DestinationStep::Confirm if self.unconfirmed(world, mig) => return self.attests_failure(world),
            DestinationStep::StartCold if !self.may_start_cold(world, mig) => return None,
            // A rollback is cleaned again and again until the kubelet has forgotten the pod: only where something is left to do.
            DestinationStep::CleanAfterRollback if !self.nothing_left_of_any(world) && self.is_clean(world) => return None,
            DestinationStep::Arm if !self.is_worth_arming(world, mig) => return None,
            DestinationStep::PrepareFallback if !self.is_worth_preparing(world) => return None,
            DestinationStep::Verify if !self.holds_what_was_voted(world) => return None,
            what => (what, 0),
        };
        world.destination.doing = Some(Doing { what, stage: 0, of });
        Some(())
    }

    /// restore.rs `restore`, up to the first write: what is to be done, or that it was done or nothing is to be.
    fn looks_for_the_restore(&self, world: &mut World, mig: Mig) -> Result<DestinationStep, Option<()>> {
        match self.judge(world, mig) {
            Found::NotYet => Err(None),
            Found::Cold(message) => Err(self.attests_cold(world, message)),
            Found::Restored(_) if !self.gated(world) || self.all_taken(world) => Ok(DestinationStep::Restore),
            // Wrong, or it runs without having been let through by the gate.
            Found::Wrong | Found::Restored(_) => Err(self.attests_failure(world)),
        }
    }

    /// A base image that cannot be pulled, a registry that does not answer: before the release that ends the migration.
    pub fn destination_fails(&self, world: &mut World) -> Option<()> {
        let doing = world.destination.doing.filter(|_| reachable(world).is_some())?;
        if !matches!(doing.what, DestinationStep::Prepare | DestinationStep::Verify | DestinationStep::Arm | DestinationStep::PrepareFallback) {
            return None;
        }
        world.destination.doing = None;
        self.attests_failure(world)
    }

    /// The next write of the step that is being taken.
    pub fn destination_steps(&self, world: &mut World) -> Option<()> {
        let doing = world.destination.doing.filter(|_| world.destination.up)?;
        let n = u8::try_from(self.n).expect("few containers");
        let stage = doing.stage;
        match doing.what {
            // A same-name replacement does not exist yet; its placeholder needs no claims.
            DestinationStep::Prepare | DestinationStep::Verify if stage < n && !self.keeps_name() => self.each(world, Each::Arm, stage),
            DestinationStep::Prepare => self.attests_prepared(world),
            DestinationStep::Arm => self.arm(world, stage, n),
            DestinationStep::PrepareFallback => self.prepare_fallback(world, stage, n),
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
                _ if stage < n && self.knows_its_pod(world) => self.each(world, Each::Close, stage),
                _ if stage < n => self.goes_on(world),
                _ if stage < 2 * n => self.each(world, Each::Remove, stage - n),
                _ if stage == 2 * n => self.purges(world, true),
                _ if stage == 2 * n + 1 && (!self.nothing_left_of_any(world) || self.ends_orphans(world)) => world.destination.doing = None,
                _ if stage == 2 * n + 1 && self.knows_its_pod(world) => self.disarms(world),
                _ if stage == 2 * n + 1 => self.goes_on(world),
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
            Found::Restored(containers) => self.attests_restored(world, containers.clone()),
            _ if stage == last => world.destination.doing = None,
            _ => {
                let containers = objects::source_ids(false, self.n).into_iter();
                let containers = containers.map(|c| ContainerId { container_id: format!("{}-new", c.name), ..c });
                self.attests_restored(world, containers.collect());
            }
        }
    }

    fn attests_restored(&self, world: &mut World, containers: Vec<ContainerId>) {
        let before = world.destination_says;
        self.attests(world, &format!("restored {containers:?}"), |said| {
            said.restored = Some(Restored { at: objects::now(), containers });
            said.failure = None;
        });
        if world.destination_says != before {
            self.says_restored(world);
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
        let (destination, known) = (&world.destination, self.knows_its_pod(world));
        let is_closed = |claim| !known || claim != Some(Claim::Waiting);
        !destination.blobs && destination.containers[..self.n].iter().all(|c| !c.store && c.tag.is_none() && is_closed(c.claim))
    }

    fn each(&self, world: &mut World, each: Each, c: u8) {
        let gated = self.gated(world);
        let container = &mut world.destination.containers[usize::from(c)];
        match each {
            // Nobody would take it.
            Each::Arm if !gated => {}
            Each::Arm => container.claim = container.claim.or(Some(Claim::Waiting)),
            Each::Repoint => container.tag = Some(Img::Base),
            Each::Remove => container.store = false,
            Each::Close => advance(container, Claim::Waiting, Claim::Revoked),
            Each::Open => advance(container, Claim::Taken, Claim::Open),
            Each::LetStart => container.claim = container.claim.and(Some(Claim::Open)),
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
        let needs = |status: &MigrationStatus| {
            let expected = status.placeholder.is_some() || status.replacement.as_ref().is_some_and(|r| !r.uid.is_empty());
            if world.first.turned { status.fallback.is_some() } else { expected }
        };
        let arrives = world.status().is_some_and(|status| status.outcome.is_none() && needs(status));
        (!listed(world) && !arrives).then_some(())?;
        let before = world.clone();
        if self.nothing_left(world) && !self.ends_orphans(world) {
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

    /// Whatever the message says, it leads to the same.
    fn attests_failure(&self, world: &mut World) -> Option<()> {
        let before = world.destination_says;
        self.attests(world, "failure", |said| {
            said.failure.get_or_insert_with(|| Remark { at: objects::now(), message: "it failed".to_owned() });
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
