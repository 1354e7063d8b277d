//! The managers: `engine::reconcile` step by step, and what the API server makes of their writes.
//!
//! One manager at a time acts in one breath: it reads, decides, and does the first thing. Every other interleaving of two managers is a nap:
//! a manager that has read, or read and decided, sleeps while the other goes on, and then does what it had in mind.

use drover::api::{AttestationStatus, Phase, Verdict, migration::InDoubt};

use crate::{
    cel,
    faults::Node,
    intern::{Id, STATUSES, WORDS},
    model::Drover,
    objects::{FALLBACK, Made, PLACEHOLDER},
    rules::Rule,
    state::{Decision, Destination, Eff, Fallback, Mig, Named, Object, Placeholder, Replacement, Sleeper, View, World, Wrongs},
};

impl Drover {
    /// The leader looks, and does what it says.
    pub fn manage(&self, world: &mut World) -> Option<()> {
        let mig = world.migration?;
        let decision = self.advance(world, mig)?;
        self.obey(world, mig, false, decision);
        Some(())
    }

    /// It dies between two effects of one step.
    pub fn manager_dies(&self, world: &mut World) -> Option<()> {
        let mig = world.migration?;
        let Some(Decision::Effects([Some(first), Some(_)])) = self.advance(world, mig) else { return None };
        self.perform(world, mig, false, first);
        world.owned.iter_mut().for_each(|owned| owned.interrupted |= first == Eff::ReleaseSource);
        Some(())
    }

    /// A manager has read the Migration, and perhaps decided, and is stopped.
    pub fn nap(&self, world: &mut World, decided: bool) -> Option<()> {
        let migration = world.migration.filter(|_| world.naps > 0 && world.sleeper.is_none())?;
        let decision = self.advance(world, migration)?;
        world.naps -= 1;
        world.sleeper = Some(Sleeper { migration, outdated: false, decision: decided.then_some(decision) });
        Some(())
    }

    /// It goes on where it was: first it decides on the Migration that it read, then it does it.
    pub fn wake(&self, world: &mut World) -> Option<()> {
        let sleeper = world.sleeper?;
        if let Some(decision) = sleeper.decision {
            world.sleeper = None;
            self.obey(world, sleeper.migration, sleeper.outdated, decision);
        } else {
            let decision = self.advance(world, sleeper.migration);
            world.sleeper = decision.map(|decision| Sleeper { decision: Some(decision), ..sleeper });
        }
        Some(())
    }

    fn obey(&self, world: &mut World, mig: Mig, outdated: bool, decision: Decision) {
        match decision {
            Decision::Write(status) => self.write(world, mig, outdated, status),
            Decision::Effects(effects) => {
                for effect in effects.into_iter().flatten() {
                    match self.perform(world, mig, outdated, effect) {
                        Done::Ok => {}
                        Done::Conflict => return,
                        // engine.rs: a permanent failure is decided about at once.
                        Done::Permanent => {
                            if let Some(Decision::Write(status)) = self.effect_failed(world, mig) {
                                self.write(world, mig, outdated, status);
                            }
                            return;
                        }
                    }
                }
            }
        }
    }

    /// A decision that a compare-and-swap will refuse anyway needs nobody to wake for it.
    pub fn is_void(&self, world: &World) -> bool {
        let void = |sleeper: Sleeper| sleeper.outdated && matches!(sleeper.decision, Some(Decision::Write(_)));
        !self.off(Rule::CompareAndSwap) && world.sleeper.is_some_and(void)
    }

    /// cluster.rs `write_status`: compare-and-swap, then the CRD's CEL rules.
    fn write(&self, world: &mut World, mig: Mig, outdated: bool, status: Id) {
        let Some(stored) = world.migration else { return };
        if outdated && !self.off(Rule::CompareAndSwap) {
            return;
        }
        debug_assert!(outdated || mig.status == stored.status || self.off(Rule::CompareAndSwap));
        let (old, new) = (stored.status(), STATUSES.get(status));
        if !self.off(Rule::Cel) && !cel::migration_allows(stored.status, status) {
            return;
        }
        if old.verdict.is_some() && old.verdict != new.verdict {
            world.past.wrongs.add(Wrongs::VERDICT_REWRITTEN);
        }
        // Without the gate a restored container that has ended is started again, cold, before anybody can say so: then it is R17's.
        let cold = world.past.cold && self.is_gated(Node::Destination);
        if new.verdict == Some(Verdict::Commit) && old.verdict.is_none() && new.resolved.is_none() && (!self.all_restored(world) || cold) {
            world.past.wrongs.add(Wrongs::FALSE_COMMIT);
        }
        world.past.excused |= self.is_let_go(new);
        world.write_migration(Some(Mig { status, ..stored }));
    }

    /// cluster.rs `perform`: every write names its object by UID or resource version.
    fn perform(&self, world: &mut World, mig: Mig, outdated: bool, effect: Eff) -> Done {
        match effect {
            Eff::AddFinalizer | Eff::RemoveFinalizer => {
                let Some(stored) = world.migration.filter(|_| !outdated) else { return Done::Conflict };
                let finalizer = effect == Eff::AddFinalizer;
                // The API server refuses new finalizers on what is being deleted, and removes what has none left.
                let next = Mig { finalizer: finalizer && !stored.deleting, ..stored };
                world.write_migration(Some(next).filter(|it| it.finalizer || !it.deleting));
            }
            Eff::Lock if world.source_pod == Object::Gone => {
                return if world.named(self.keeps_name()).is_some() { Done::Conflict } else { Done::Permanent };
            }
            Eff::Lock => world.locked = true,
            Eff::Unlock(uid) => world.locked &= world.named(self.keeps_name()).is_none_or(|named| number(named) != uid),
            // With an owner that is gone the garbage collector takes it away again.
            Eff::AttestationOfSource => made(&mut world.source_says, world.migration.is_some()),
            Eff::AttestationOfDestination => made(&mut world.destination_says, world.migration.is_some()),
            Eff::AttestationOfFallback => {
                let owned = world.migration.is_some();
                if let Some(fallback) = &mut world.first.fallback {
                    made(&mut fallback.says, owned);
                }
            }
            Eff::LayOutCredentials => world.credentials = true,
            Eff::RemoveCredentials => world.credentials = false,
            // Whoever refuses it refuses it before anything is touched.
            Eff::RehearseReplacement => {}
            Eff::CreateReplacement | Eff::CreateSameName | Eff::CreateFallback => return self.create(world, mig, effect),
            Eff::KeepTemplate => world.first.template |= world.migration.is_some(),
            Eff::RemoveTemplate => world.first.template = false,
            Eff::DeletePlaceholder(uid, force) => {
                let pod = &mut world.first.placeholder;
                if pod.is_some_and(|pod| pod.uid == uid) {
                    *pod = pod.filter(|_| !force).map(|pod| Placeholder { deleting: true, ..pod });
                }
            }
            Eff::Claim(uid) => return self.claim(world, uid),
            Eff::RewriteImages(uid) => match world.claimed_mut(uid) {
                Some(pod) => pod.images = !mig.status().containers.is_empty() || self.off(Rule::ReleaseIsAnIntent),
                None => return Done::Conflict,
            },
            Eff::DeleteReplacement(uid, force) => self.delete_replacement(world, mig, uid, force),
            Eff::DeleteSource => {
                if world.source_pod == Object::Live {
                    world.source_pod = Object::Deleting;
                    self.owner_loses_source(world);
                }
            }
            // One of the second UID no kubelet of the model runs.
            Eff::DeleteFallback(uid) => {
                if let Some(fallback) = &mut world.first.fallback {
                    let pod = fallback.pod.filter(|pod| pod.uid + FALLBACK != uid || pod.uid == 1);
                    fallback.pod = pod.map(|pod| Replacement { deleting: pod.deleting || pod.uid + FALLBACK == uid, ..pod });
                }
            }
            Eff::ReleaseSource => return done(self.releases_source(world)),
            Eff::MarkSurplus => return done(self.marks_surplus(world)),
            Eff::HandOver(uid, ready) => return done(self.hands_over(world, uid, ready)),
        }
        Done::Ok
    }

    /// Makes one of the pods of the migration, where nobody has its name yet.
    fn create(&self, world: &mut World, mig: Mig, effect: Eff) -> Done {
        let new = |uid| Replacement { uid, deleting: false, sandbox: false, claimed: false, images: false };
        match effect {
            Eff::CreateReplacement if world.source_pod == Object::Gone => return Done::Permanent,
            Eff::CreateReplacement if self.keeps_name() => {
                let recorded = world.status().and_then(|status| status.placeholder.as_ref()).is_some_and(|it| !it.uid.is_empty());
                let uid = PLACEHOLDER + u8::from(recorded);
                world.first.placeholder.get_or_insert(Placeholder { uid, deleting: false, sandbox: false });
            }
            Eff::CreateReplacement => {
                let uid = if world.destination_says.is_none() && world.destination.view == View::Unlisted { 1 } else { 2 };
                if world.replacement.is_none() {
                    world.replacement = Some(new(uid));
                    self.owner_gets_replacement(world, mig);
                }
            }
            _ if !world.first.template => return Done::Permanent,
            _ if world.named(self.keeps_name()).is_some() => {}
            Eff::CreateSameName => {
                let recorded = world.status().and_then(|status| status.replacement.as_ref()).is_some_and(|it| !it.uid.is_empty());
                let is_first = !recorded && world.destination.view == View::Unlisted && world.destination.containers[0].claim.is_none();
                world.replacement = Some(new(if is_first { 1 } else { 2 }));
                world.locked = true;
            }
            _ => {
                let nothing = || Fallback { pod: None, says: None, node: Destination::EMPTY, restores: 0, cold: false };
                let recorded = world.status().and_then(|status| status.fallback.as_ref()).is_some_and(|it| !it.uid.is_empty());
                let fallback = world.first.fallback.get_or_insert_with(nothing);
                let is_first = !recorded && fallback.says.is_none() && fallback.node.view == View::Unlisted;
                fallback.pod = Some(new(if is_first { 1 } else { 2 }));
                world.locked = true;
            }
        }
        Done::Ok
    }

    fn delete_replacement(&self, world: &mut World, mig: Mig, uid: u8, force: bool) {
        let undecided = mig.resolve.is_none() && self.in_doubt == InDoubt::HoldFrozen;
        world.past.deleted_in_doubt |= undecided && mig.status().phase == Phase::Restoring && mig.status().verdict.is_none();
        if let Some(pod) = &mut world.replacement
            && pod.uid == uid
        {
            pod.deleting = true;
            // One that no kubelet has seen goes at once, and so does one of the second UID, which the model's kubelet does not run.
            if force || uid != 1 {
                world.replacement = None;
            }
        }
    }

    fn claim(&self, world: &mut World, uid: u8) -> Done {
        let kind = if uid < FALLBACK { Made::Replacement } else { Made::Fallback };
        let stored = world.migration;
        let Some(pod) = world.claimed_mut(uid) else { return Done::Conflict };
        // The webhook reads the Migration as it is stored now (world.rs, R1).
        let Some(images) = stored.and_then(|stored| self.webhook(stored, kind, *pod)) else { return Done::Permanent };
        (pod.claimed, pod.images) = (true, images || pod.images);
        Done::Ok
    }
}

/// The number of its UID.
fn number(named: Named) -> u8 {
    match named {
        Named::Source => 0,
        Named::Replacement(pod) => pod.uid,
        Named::Fallback(pod) => pod.uid + FALLBACK,
    }
}

enum Done {
    Ok,
    Conflict,
    Permanent,
}

/// The patch of a pod names what it expects of it.
fn done(applied: bool) -> Done {
    if applied { Done::Ok } else { Done::Conflict }
}

fn made(says: &mut Option<Id>, owned: bool) {
    if owned {
        says.get_or_insert_with(|| WORDS.put(AttestationStatus::default()));
    }
}
