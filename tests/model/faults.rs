//! What breaks, what is mended again, what people do, and time.

use std::fmt;

use drover::{
    api::{MigrationStatus, Phase, Verdict, migration::Side},
    domain::resolution::FALLBACK_FAILED,
};

use crate::{
    decide::{Clock, aged},
    intern::WORDS,
    kubelets::{end, gone},
    model::Drover,
    properties::{is_held, is_held_for},
    rules::Rule,
    state::{
        Age, Container, Decision, DestinationStep, Doing, Eff, Fence, Img, Journal, Log, MOST, Mig, Object, Resolve, SourceStep, SourceTask, View,
        World,
    },
};

/// A node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Node {
    Source,
    Destination,
}

impl Node {
    pub const BOTH: [Self; 2] = [Self::Source, Self::Destination];
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source node",
            Self::Destination => "destination node",
        })
    }
}

/// What a node without power keeps of the copy on it.
fn copies_lose_power(world: &mut World) {
    let destination = &mut world.destination;
    (destination.up, destination.doing, destination.view, destination.sandbox) = (false, None, View::Unsynced, false);
    let ran = destination.containers.iter().any(Container::runs);
    for container in &mut destination.containers {
        end(&mut container.task);
        container.orphan = None;
        container.booted = container.log != Log::None;
        // What CRIU wrote last was not on the disk yet.
        container.log = match container.log {
            Log::Resumed { error: true } => Log::Error,
            Log::Resumed { error: false } => Log::Begun,
            log => log,
        };
    }
    world.past.excused |= ran && gone(world);
}

fn is_decided_for_source(world: &World) -> bool {
    let asked = world.migration.and_then(|mig| mig.resolve).is_some_and(|resolve| !matches!(resolve, Resolve::Destination | Resolve::GiveUp));
    asked || world.status().and_then(|status| status.resolved.as_ref()).is_some_and(|resolved| resolved.prefer == Side::Source)
}

/// A person has deleted the copy, or has decided against it.
fn is_ended_by_hand(world: &World) -> bool {
    let deleted = world.replacement.is_none_or(|pod| pod.deleting) && !world.past.deleted_in_doubt;
    deleted || is_decided_for_source(world)
}

impl Drover {
    pub fn power_fails(&self, world: &mut World, node: Node) -> Option<()> {
        match node {
            Node::Source => {
                let goes_on = self.is_filled(world) && !is_ended_by_hand(world);
                let source = &mut world.source;
                source.up.then_some(())?;
                // A running pod dies with its node, also one that a person has paused since, and a frozen one of which there is no complete checkpoint yet.
                let kept = source.archive && source.journal.is_some_and(|journal| journal.dumped);
                // Who has asked for post-copy has agreed that this is so until the last page.
                let held = if self.leaves_memory() { goes_on } else { kept || world.destination.blobs };
                let ordinary = source.task == SourceTask::Running || world.past.ran_on || !held;
                (source.up, source.doing, source.view, source.made) = (false, None, View::Unsynced, false);
                if source.task != SourceTask::Dead {
                    source.task = SourceTask::Dead;
                    world.past.excused |= ordinary;
                }
                world.fall_back(|world| {
                    copies_lose_power(world);
                    Some(())
                });
            }
            Node::Destination => {
                world.destination.up.then_some(())?;
                copies_lose_power(world);
            }
        }
        Some(())
    }

    /// What a node whose disk is lost keeps of the copy on it: nothing.
    fn copies_are_lost(&self, world: &mut World) {
        let destination = &mut world.destination;
        (destination.lost, destination.cut, destination.blobs) = (true, false, false);
        destination.containers = [Container::EMPTY; MOST];
        world.past.excused |= gone(world) && !self.survives(world);
    }

    /// Where it was on both nodes and both have lost it, no protocol can mend that: there is no third one to keep it on. A copy that executes is no survivor
    /// where a person has decided for the source, whose loss looks like a node that does not answer, or has deleted its pod. What is kept for a person after a
    /// decision against the memory lies on one disk, until that person fetches it.
    fn loses_the_memory(&self, world: &mut World, node: Node) {
        world.past.disks_lost[usize::from(node == Node::Destination)] = true;
        let was_kept = world.source_says.is_some_and(|id| WORDS.get(id).kept.is_some());
        let is_cold = |status: &MigrationStatus| status.given_up.is_some() || (status.verdict == Some(Verdict::Commit) && status.resolved.is_some());
        world.past.excused |= node == Node::Source && was_kept && world.status().is_some_and(is_cold);
        world.past.excused |= world.past.disks_lost == [true; 2] && (is_ended_by_hand(world) || !self.survives(world));
    }

    /// It has one process for both of its sides.
    pub fn source_agent_dies(&self, world: &mut World) -> Option<()> {
        let fallback = world.first.fallback.as_mut().and_then(|it| it.node.doing.take()).map(drop);
        world.source.doing.take().map(drop).or(fallback)
    }

    pub fn boots(&self, world: &mut World, node: Node) -> Option<()> {
        let (up, lost) = match node {
            Node::Source => (&mut world.source.up, world.source.lost),
            Node::Destination => (&mut world.destination.up, world.destination.lost),
        };
        (!*up && !lost).then(|| *up = true)
    }

    /// The node never comes back, nor does its disk: a person takes it out of the cluster.
    pub fn is_lost(&self, world: &mut World, node: Node) -> Option<()> {
        let up = match node {
            Node::Source => world.source.up,
            Node::Destination => world.destination.up,
        };
        let held = self.has_the_memory(world, node);
        if up {
            self.power_fails(world, node)?;
        }
        match node {
            Node::Source => {
                let source = &mut world.source;
                // With the vote a complete checkpoint is at the destination, until the source is seen running again or its copy is (R18).
                let unvoted = !source.journal.is_some_and(|journal| journal.vote);
                (source.lost, source.cut, source.archive, source.journal, source.fence) = (true, false, false, None, Fence::None);
                // Since its word that it was thawed the destination's is being collected, and what the source has, running or kept, is all there is.
                let thawed = world.source_says.is_some_and(|id| WORDS.get(id).thawed.is_some());
                world.past.excused |= thawed || unvoted && !self.survives(world);
                world.fall_back(|world| {
                    self.copies_are_lost(world);
                    Some(())
                });
            }
            Node::Destination => self.copies_are_lost(world),
        }
        if held {
            self.loses_the_memory(world, node);
        }
        Some(())
    }

    /// The destination comes back under its name with an empty disk.
    pub fn is_reinstalled(&self, world: &mut World) -> Option<()> {
        world.destination.up.then_some(())?;
        self.is_lost(world, Node::Destination)?;
        world.destination.lost = false;
        Some(())
    }

    /// The pod collector removes the pods of a node that is no more.
    pub fn pods_are_collected(&self, world: &mut World, node: Node) -> Option<()> {
        match node {
            Node::Source if world.source.lost && world.source_pod != Object::Gone => {
                world.source_pod = Object::Gone;
                Some(())
            }
            Node::Source => {
                let pod = &mut world.first.fallback.as_mut().filter(|_| world.source.lost)?.pod;
                pod.take().map(drop)
            }
            Node::Destination if world.destination.lost && world.first.placeholder.is_some() => world.first.placeholder.take().map(drop),
            Node::Destination => (world.destination.lost && world.replacement.is_some()).then(|| world.replacement = None),
        }
    }

    /// A probe that the frozen program does not answer: with the patience that preflight demands (R9) that cannot come before the vote.
    pub fn probe_kills(&self, world: &mut World) -> Option<()> {
        let goes_on = self.is_filled(world) && !is_ended_by_hand(world);
        let source = &mut world.source;
        let voted = source.journal.is_some_and(|journal| journal.vote);
        let frozen = source.up && source.view == View::Listed && source.task == SourceTask::Paused && source.fence == Fence::Ours;
        (frozen && (voted || self.impatient)).then(|| source.task = SourceTask::Dead)?;
        // No probe does that to a pod whose memory stays behind (R9); that anybody else does is what its user has agreed to.
        world.past.excused |= self.leaves_memory() && !goes_on;
        Some(())
    }

    /// The registry's blobs are lost: a full disk, a person.
    pub fn blobs_vanish(&self, world: &mut World) -> Option<()> {
        let blobs = &mut world.destination.blobs;
        (world.destination.up && *blobs).then(|| *blobs = false)?;
        world.past.excused |= gone(world) && !self.survives(world);
        if !self.leaves_memory() {
            self.loses_the_memory(world, Node::Destination);
        }
        Some(())
    }

    /// Before the release the registry comes to hold another image than the one that was pushed.
    pub fn blob_is_another(&self, world: &mut World) -> Option<()> {
        let early = world.status().is_some_and(|status| status.phase < Phase::Restoring && status.verdict.is_none());
        let destination = &mut world.destination;
        (destination.up && early && destination.blobs && destination.containers[0].tag == Some(Img::Checkpoint)).then_some(())?;
        // What is exchanged after it was verified is the work of the source's own credentials: nobody else may push.
        let verifies = matches!(destination.doing, Some(Doing { what: DestinationStep::Verify, .. }));
        let ready = world.destination_says.is_some_and(|id| WORDS.get(id).ready.is_some());
        (!ready && !verifies).then(|| destination.containers[0].tag = Some(Img::Forged))
    }

    pub fn is_cut(&self, world: &mut World, node: Node, cut: bool) -> Option<()> {
        let now = match node {
            Node::Source => &mut world.source.cut,
            Node::Destination => &mut world.destination.cut,
        };
        (*now != cut).then(|| *now = cut)
    }

    /// A restarted kubelet lists nothing until it has read the API server.
    pub fn kubelet_restarts(&self, world: &mut World, node: Node) -> Option<()> {
        let (up, view) = match node {
            Node::Source => (world.source.up, &mut world.source.view),
            Node::Destination => (world.destination.up, &mut world.destination.view),
        };
        (up && *view != View::Unsynced).then(|| *view = View::Unsynced)?;
        if node == Node::Source
            && let Some(fallback) = &mut world.first.fallback
        {
            fallback.node.view = View::Unsynced;
        }
        Some(())
    }

    /// The node controller writes down whether the destination answers.
    pub fn node_status_follows(&self, world: &mut World) -> Option<()> {
        let ready = world.destination.up && !world.destination.cut;
        (world.node_ready != ready).then(|| world.node_ready = ready)
    }

    pub fn time_passes(&self, world: &mut World, clock: Option<Clock>) -> Option<()> {
        let mig = world.migration?;
        let Some(clock) = clock else {
            // The deadline counts until the release.
            let counts = |phase| phase < Phase::SourceDeleting || self.off(Rule::PointOfNoReturn) && phase == Phase::SourceDeleting;
            (!world.overdue && counts(mig.status().phase)).then_some(())?;
            world.overdue = true;
            return Some(());
        };
        let counts = match clock {
            Clock::Phase => matches!(mig.status().phase, Phase::SourceDeleting | Phase::Restoring | Phase::Finishing),
            Clock::Revocation => mig.status().phase == Phase::Restoring,
            Clock::Ended => {
                return (!world.first.ended_long_ago && world.awaits_destination()).then(|| world.first.ended_long_ago = true);
            }
        };
        let status = aged(mig.status, clock).filter(|_| counts)?;
        // Nobody has written: a sleeping manager is not outdated by it.
        world.migration = Some(Mig { status, ..mig });
        Some(())
    }

    /// The freeze budget is over.
    pub fn budget_ends(&self, world: &mut World) -> Option<()> {
        let journal = world.source.journal.filter(|it| it.frozen == Some(Age::Fresh) && (!it.vote || self.off(Rule::VoterWaits)))?;
        world.source.journal = Some(Journal { frozen: Some(Age::Old), ..journal });
        Some(())
    }

    /// A person decides a migration that is held, truthfully: who says that the destination is down keeps it down.
    pub fn person_resolves(&self, world: &mut World, resolve: Resolve) -> Option<()> {
        // Who has decided for the source may find that it cannot be restored there.
        let is_open =
            |mig: &Mig| if resolve == Resolve::GiveUp { is_held_for(world, FALLBACK_FAILED) } else { mig.resolve.is_none() && is_held(world) };
        let mig = world.migration.filter(|mig| is_open(mig) && !mig.deleting && mig.resolve != Some(resolve))?;
        if resolve == Resolve::SourceSinceDestinationIsDown {
            (!world.destination.up).then(|| world.destination.lost = true)?;
        }
        world.write_migration(Some(Mig { resolve: Some(resolve), ..mig }));
        // Of a source that lives no more and has left its memory nobody else has it than the copy that is to end.
        let alone = world.past.disks_lost == [true; 2] || self.leaves_memory() && world.source.task == SourceTask::Dead;
        world.past.excused |= alone && is_decided_for_source(world);
        Some(())
    }

    pub fn user_deletes_migration(&self, world: &mut World) -> Option<()> {
        let mig = world.migration.filter(|mig| !mig.deleting)?;
        let kept = mig.finalizer && !self.off(Rule::Finalizer);
        world.write_migration(kept.then_some(Mig { deleting: true, ..mig }));
        Some(())
    }

    pub fn user_deletes_source(&self, world: &mut World, force: bool) -> Option<()> {
        let to = if force { Object::Gone } else { Object::Deleting };
        (world.source_pod != Object::Gone && world.source_pod != to).then_some(())?;
        world.source_pod = to;
        // Where it goes first it is deleted anyway, and the archive stands for it.
        let gone_first =
            world.status().is_some_and(|status| status.is_source_first() && status.phase >= Phase::SourceDeleting && status.verdict.is_none());
        world.past.excused |= !gone_first;
        Some(())
    }

    /// Somebody deletes the pod that goes on from the archive; where there is none, the placeholder.
    pub fn user_deletes_fallback(&self, world: &mut World, force: bool) -> Option<()> {
        if world.first.fallback.is_some() {
            return world.fall_back(|world| self.user_deletes_replacement(world, force));
        }
        let pod = world.first.placeholder.as_mut().filter(|pod| force || !pod.deleting)?;
        pod.deleting = true;
        if force {
            world.first.placeholder = None;
        }
        Some(())
    }

    pub fn user_deletes_replacement(&self, world: &mut World, force: bool) -> Option<()> {
        let pod = world.replacement.as_mut().filter(|pod| force || !pod.deleting)?;
        pod.deleting = true;
        if force {
            world.replacement = None;
        }
        // A copy that is the only one, or is about to be: the user's own hand.
        let committed = world.status().is_some_and(|status| match &status.fallback {
            Some(fallback) => !fallback.containers.is_empty(),
            None => status.verdict == Some(Verdict::Commit),
        });
        world.past.excused |= committed || gone(world);
        Some(())
    }

    /// Somebody resumes the frozen containers by hand, or pauses them again, before the vote. Not between the end of the dump and the reading of
    /// its CPU times: those few milliseconds are R2's limit.
    pub fn hand_on_source(&self, world: &mut World) -> Option<()> {
        let source = &mut world.source;
        let frozen = source.journal.is_some_and(|it| it.frozen.is_some() && !it.vote) && source.fence == Fence::Ours;
        let reading = matches!(source.doing, Some((SourceStep::Checkpoint, 1)));
        (source.up && frozen && !reading).then_some(())?;
        match source.task {
            SourceTask::Paused => {
                source.task = SourceTask::Running;
                source.executes(&mut world.past);
            }
            SourceTask::Running => source.task = SourceTask::Paused,
            SourceTask::Dead => return None,
        }
        Some(())
    }

    /// Another migration of the same pod freezes it: after the end of this one, which is ordinary; or before its freeze, where the lock does not
    /// keep it away (R11).
    pub fn another_migration(&self, world: &mut World) -> Option<()> {
        let ended = world.status().is_none_or(|status| status.outcome.is_some());
        let admitted = ended && !world.locked || self.off(Rule::Lock);
        let source = &mut world.source;
        let free = world.source_pod == Object::Live && source.fence == Fence::None && source.task == SourceTask::Running;
        (source.up && admitted && free).then_some(())?;
        (source.fence, source.task) = (Fence::Other, SourceTask::Paused);
        world.locked |= ended;
        Some(())
    }

    /// The webhook is away when the claim is written: the manager writes the images itself.
    pub fn claim_misses_the_webhook(&self, world: &mut World) -> Option<()> {
        let mig = world.migration?;
        let Some(Decision::Effects([Some(Eff::Claim(uid)), None])) = self.advance(world, mig) else { return None };
        let pod = world.claimed_mut(uid)?;
        pod.claimed = true;
        Some(())
    }
}
