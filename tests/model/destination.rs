//! The destination's agent, as `agent/destination/*.rs` does it, write by write.

use drover::{
    api::{
        AttestationStatus, Verdict,
        attestation::{At, ClosedClaim, NeverStarted, Prepared, Remark, Restored},
    },
    markers::Claim,
};

use crate::{
    decide::{self, Found},
    intern::WORDS,
    manager::attestation_allows,
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
        let mut what = self.destination_next(world)?;
        let mut refused = 0;
        if what == DestinationStep::Revoke {
            // revoke.rs: a claim that was taken needs its proof; without one the restore is looked for.
            for c in (0..self.n).filter(|c| world.destination.containers[*c].claim == Some(Claim::Taken)) {
                match self.refused(world, mig, c) {
                    Some(_) => refused |= 1 << c,
                    None => what = DestinationStep::Restore,
                }
            }
        }
        let message = match what {
            DestinationStep::Restore => match self.judge(world, mig) {
                Found::NotYet => return None,
                Found::Wrong(message) => Some(message),
                Found::Restored(_) if !self.all_taken(world) => Some("a container runs without having been let through by the gate".to_owned()),
                Found::Restored(_) => None,
            },
            DestinationStep::Confirm => self.unconfirmed(world, mig),
            // A rollback is cleaned again and again until the kubelet has forgotten the pod: only where something is left to do.
            DestinationStep::CleanAfterRollback if listed(world) && self.is_clean(world) => return None,
            _ => None,
        };
        if let Some(message) = message {
            return self.attests_failure(world, message);
        }
        if what == DestinationStep::Verify && !self.holds_what_was_voted(world) {
            return None;
        }
        world.destination.doing = Some(Doing { what, stage: 0, refused });
        Some(())
    }

    /// A base image that cannot be pulled, a registry that does not answer: before the release that ends the migration.
    pub fn destination_fails(&self, world: &mut World) -> Option<()> {
        let doing = world.destination.doing.filter(|_| reachable(world).is_some())?;
        if !matches!(doing.what, DestinationStep::Prepare | DestinationStep::Verify) {
            return None;
        }
        world.destination.doing = None;
        self.attests_failure(world, "cannot be prepared".to_owned())
    }

    /// The next write of the step that is being taken.
    pub fn destination_steps(&self, world: &mut World) -> Option<()> {
        let doing = world.destination.doing.filter(|_| world.destination.up)?;
        let n = u8::try_from(self.n).expect("few containers");
        let stage = doing.stage;
        match doing.what {
            DestinationStep::Prepare if stage < n => self.each(world, Each::Arm, stage),
            DestinationStep::Prepare => self.attests(world, |said| {
                said.prepared = Some(Prepared { at: objects::now(), push_address: "n2:1".into(), pull_address: String::new() });
            }),
            DestinationStep::Verify => self.attests(world, |said| said.ready = Some(decide::pushed(self.n))),
            DestinationStep::Restore => self.restore(world, stage, n),
            DestinationStep::Revoke => self.revoke(world, doing, n),
            DestinationStep::Confirm => self.attests(world, |said| {
                said.confirmed = Some(At { at: objects::now() });
                said.failure = None;
            }),
            DestinationStep::CleanAfterCommit => match stage {
                _ if stage < n => self.each(world, Each::Open, stage),
                _ if stage == n => self.disarms(world),
                _ if stage == n + 1 => self.purges(world, false),
                _ => self.attests(world, |said| said.cleaned = Some(At { at: objects::now() })),
            },
            DestinationStep::CleanAfterRollback => match stage {
                _ if stage < n => self.each(world, Each::Close, stage),
                _ if stage < 2 * n => self.each(world, Each::Remove, stage - n),
                _ if stage == 2 * n => self.purges(world, true),
                _ if stage == 2 * n + 1 && listed(world) => world.destination.doing = None,
                _ if stage == 2 * n + 1 => self.disarms(world),
                _ => self.attests(world, |said| said.cleaned = Some(At { at: objects::now() })),
            },
        }
        Some(())
    }

    /// restore.rs `take_out_of_reach`, the second look, and the word.
    fn restore(&self, world: &mut World, stage: u8, n: u8) {
        let last = if self.off(Rule::OutOfReachFirst) { 0 } else { 2 * n };
        if stage < last {
            return self.each(world, if stage % 2 == 0 { Each::Repoint } else { Each::Remove }, stage / 2);
        }
        let Some(mig) = world.migration else { return world.destination.doing = None };
        match self.judge(world, mig) {
            Found::Restored(_) if stage == last => self.goes_on(world),
            // Between the look and the word anything may happen.
            Found::Restored(containers) => self.attests(world, |said| {
                said.restored = Some(Restored { at: objects::now(), containers });
                said.failure = None;
            }),
            _ if stage == last => world.destination.doing = None,
            _ => self.attests(world, |said| {
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
            let proved = doing.refused & (1 << c) != 0;
            let container = &mut world.destination.containers[c];
            if stage % 2 == 0 {
                container.proof |= proved;
            } else if !self.off(Rule::RevocationIsWritten) {
                let (from, to) = if proved { (Claim::Taken, Claim::Failed) } else { (Claim::Waiting, Claim::Revoked) };
                advance(container, from, to);
                let closed =
                    matches!(container.claim, Some(Claim::Revoked | Claim::Failed)) && (container.claim == Some(Claim::Revoked) || container.proof);
                if !closed {
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
            self.attests(world, |said| said.never_started = Some(NeverStarted { at: objects::now(), containers }));
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
            (container.claim, container.log, container.proof) = (None, Log::None, false);
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
        reachable(world).filter(|()| world.destination.doing.is_none())?;
        let arrives = world.status().is_some_and(|status| status.outcome.is_none() && status.replacement.as_ref().is_some_and(|r| !r.uid.is_empty()));
        (!listed(world) && !arrives).then_some(())?;
        let before = world.clone();
        self.disarms(world);
        self.purges(world, true);
        (*world != before).then_some(())
    }

    fn goes_on(&self, world: &mut World) {
        if let Some(doing) = &mut world.destination.doing {
            doing.stage += 1;
        }
    }

    fn attests_failure(&self, world: &mut World, message: String) -> Option<()> {
        let before = world.destination_says;
        self.attests(world, |said| {
            if said.failure.as_ref().is_none_or(|failure| failure.message != message) {
                said.failure = Some(Remark { at: objects::now(), message });
            }
        });
        (world.destination_says != before).then_some(())
    }

    fn attests(&self, world: &mut World, change: impl FnOnce(&mut AttestationStatus)) {
        world.destination.doing = None;
        let (Some(id), Some(())) = (world.destination_says, reachable(world)) else { return };
        let old = WORDS.get(id);
        let mut new = (*old).clone();
        change(&mut new);
        if attestation_allows(&old, &new) || self.off(Rule::Cel) {
            world.destination_says = Some(WORDS.put(new));
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
