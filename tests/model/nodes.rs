//! Kubelets, runtimes, CRIU, the gate, users, time, and what breaks.

use drover::{
    api::{Phase, Verdict},
    gate,
    markers::Claim,
};

use crate::{
    decide::{Clock, aged},
    intern::WORDS,
    model::Drover,
    rules::Rule,
    state::{Age, Fence, Img, Journal, Log, Mig, Object, SourceTask, Task, View, World, Wrongs},
};

/// A node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Node {
    Source,
    Destination,
}

impl Drover {
    /// The source's kubelet reads its pods from the API server.
    pub fn source_syncs(&self, world: &mut World) -> Option<()> {
        (world.source.up && !world.source.cut).then_some(())?;
        let view = match world.source_pod {
            Object::Live => View::Listed,
            Object::Deleting => View::Terminating,
            Object::Gone => View::Unlisted,
        };
        (world.source.view != view).then(|| world.source.view = view)
    }

    /// It ends what is being deleted, when the grace period is over, and what it does not know.
    pub fn source_kubelet_kills(&self, world: &mut World) -> Option<()> {
        let source = &mut world.source;
        let doomed = source.up && matches!(source.view, View::Terminating | View::Unlisted) && source.task != SourceTask::Dead;
        doomed.then(|| source.task = SourceTask::Dead)
    }

    /// It tells the API server that nothing of the pod is left.
    pub fn source_kubelet_removes(&self, world: &mut World) -> Option<()> {
        let source = &mut world.source;
        let over = source.up && !source.cut && source.view == View::Terminating && source.task == SourceTask::Dead;
        (over && world.source_pod == Object::Deleting).then_some(())?;
        world.source_pod = Object::Gone;
        source.view = View::Unlisted;
        Some(())
    }

    /// It restarts a dead container in place; the gate has its word (gate.rs `by_fence`).
    pub fn source_kubelet_restarts(&self, world: &mut World) -> Option<()> {
        let source = &mut world.source;
        let dead = source.up && source.view == View::Listed && source.task == SourceTask::Dead;
        (dead && (source.fence == Fence::None || self.off(Rule::Fence))).then_some(())?;
        source.task = SourceTask::Running;
        source.fresh = true;
        source.executes(&mut world.past);
        Some(())
    }

    /// The destination's kubelet reads its pods, and tells of the sandbox.
    pub fn destination_syncs(&self, world: &mut World) -> Option<()> {
        (world.destination.up && !world.destination.cut).then_some(())?;
        let before = (world.destination.view, world.replacement);
        world.destination.view = match &mut world.replacement {
            Some(pod) if pod.uid == 1 && pod.deleting => View::Terminating,
            Some(pod) if pod.uid == 1 => {
                pod.sandbox = true;
                if pod.images { View::Released } else { View::Listed }
            }
            _ => View::Unlisted,
        };
        ((world.destination.view, world.replacement) != before).then_some(())
    }

    pub fn destination_kubelet_kills(&self, world: &mut World) -> Option<()> {
        let destination = &mut world.destination;
        (destination.up && matches!(destination.view, View::Terminating | View::Unlisted)).then_some(())?;
        let before = destination.containers;
        for container in &mut destination.containers {
            end(&mut container.task);
        }
        (before != destination.containers).then_some(())
    }

    pub fn destination_kubelet_removes(&self, world: &mut World) -> Option<()> {
        let destination = &mut world.destination;
        let idle = |task: Task| !matches!(task, Task::Running { .. } | Task::Restoring);
        let over = destination.up && !destination.cut && destination.view == View::Terminating && destination.containers.iter().all(|c| idle(c.task));
        (over && world.replacement.is_some_and(|pod| pod.uid == 1 && pod.deleting)).then_some(())?;
        world.replacement = None;
        destination.view = View::Unlisted;
        destination.containers.iter_mut().for_each(|c| (c.task, c.earlier) = (Task::None, false));
        Some(())
    }

    /// It pulls a released image, unless the store has it, and makes the container.
    pub fn makes(&self, world: &mut World, c: usize) -> Option<()> {
        let rule = self.gate(&world.destination.containers, c);
        let destination = &mut world.destination;
        (destination.up && destination.view == View::Released).then_some(())?;
        let blobs = destination.blobs;
        let container = &mut destination.containers[c];
        match container.task {
            Task::None | Task::Dead => {}
            // It is tried again and again; that shows only once the gate says something else.
            Task::Refused if matches!(rule, gate::Rule::Pass | gate::Rule::Take) => {}
            _ => return None,
        }
        let image = match container.tag {
            _ if container.store => Img::Checkpoint,
            Some(Img::Checkpoint) if !blobs => return None,
            image => image?,
        };
        container.store |= image == Img::Checkpoint;
        container.earlier |= matches!(container.task, Task::Dead | Task::Refused);
        container.task = Task::Made(image);
        Some(())
    }

    /// It starts the container: runc, and in it the gate.
    pub fn starts(&self, world: &mut World, c: usize) -> Option<()> {
        let Task::Made(image) = world.destination.containers[c].task else { return None };
        world.destination.up.then_some(())?;
        let rule = if self.opens_early(world) { gate::Rule::Pass } else { self.gate(&world.destination.containers, c) };
        let container = &mut world.destination.containers[c];
        let passes = matches!(rule, gate::Rule::Pass | gate::Rule::Take);
        if rule == gate::Rule::Take {
            container.log = Log::Begun;
            container.claim = Some(Claim::Taken);
        }
        container.task = match image {
            _ if !passes => Task::Refused,
            Img::Checkpoint => Task::Restoring,
            Img::Base => Task::Running { restored: false },
        };
        if container.task == (Task::Running { restored: false }) {
            let confirmed = world.destination_says.is_some_and(|id| WORDS.get(id).confirmed.is_some());
            world.past.cold |= !confirmed;
        }
        Some(())
    }

    /// CRIU logs an error that ends nothing.
    pub fn criu_complains(&self, world: &mut World, c: usize) -> Option<()> {
        let container = &mut world.destination.containers[c];
        (world.destination.up && container.task == Task::Restoring && container.log == Log::Begun).then(|| container.log = Log::Error)
    }

    /// CRIU resumes the processes.
    pub fn criu_resumes(&self, world: &mut World, c: usize) -> Option<()> {
        let container = &mut world.destination.containers[c];
        (world.destination.up && container.task == Task::Restoring).then_some(())?;
        container.task = Task::Running { restored: true };
        if container.log != Log::None {
            container.log = Log::Resumed { error: container.log == Log::Error };
        }
        if c == 0 {
            if world.past.restores > 0 {
                world.past.wrongs.add(Wrongs::REWOUND);
            }
            world.past.restores = (world.past.restores + 1).min(2);
        }
        if world.past.ran_on {
            world.past.wrongs.add(Wrongs::STALE_RESTORE);
        }
        Some(())
    }

    /// CRIU refuses before the resume point: the commonest failure of all.
    pub fn criu_refuses(&self, world: &mut World, c: usize) -> Option<()> {
        let container = &mut world.destination.containers[c];
        (world.destination.up && container.task == Task::Restoring).then_some(())?;
        container.task = Task::Refused;
        if container.log == Log::Begun {
            container.log = Log::Error;
        }
        Some(())
    }

    /// The restore is killed from outside, and its log breaks off.
    pub fn restore_is_killed(&self, world: &mut World, c: usize) -> Option<()> {
        let container = &mut world.destination.containers[c];
        (container.task == Task::Restoring).then(|| container.task = Task::Refused)
    }

    /// The program ends by itself on the destination.
    pub fn program_ends(&self, world: &mut World, c: usize) -> Option<()> {
        let container = &mut world.destination.containers[c];
        matches!(container.task, Task::Running { .. }).then_some(())?;
        container.task = Task::Dead;
        // What a program loses when it ends by itself is its own affair, once it is the only copy.
        world.past.excused |= world.status().is_some_and(|status| status.verdict == Some(Verdict::Commit)) && gone(world);
        Some(())
    }

    pub fn power_fails(&self, world: &mut World, node: Node) -> Option<()> {
        match node {
            Node::Source => {
                let source = &mut world.source;
                source.up.then_some(())?;
                // A running pod dies with its node, and a frozen one whose checkpoint is nowhere else.
                let ordinary = source.task == SourceTask::Running || !(source.archive || world.destination.blobs);
                (source.up, source.doing, source.view) = (false, None, View::Unsynced);
                if source.task != SourceTask::Dead {
                    source.task = SourceTask::Dead;
                    world.past.excused |= ordinary && world.past.restores == 0;
                }
            }
            Node::Destination => {
                let destination = &mut world.destination;
                destination.up.then_some(())?;
                (destination.up, destination.doing, destination.view) = (false, None, View::Unsynced);
                let ran = destination.containers.iter().any(|c| matches!(c.task, Task::Running { .. }));
                for container in &mut destination.containers {
                    end(&mut container.task);
                    // What CRIU wrote last was not on the disk yet.
                    container.log = match container.log {
                        Log::Resumed { error: true } => Log::Error,
                        Log::Resumed { error: false } => Log::Begun,
                        log => log,
                    };
                }
                world.past.excused |= ran && gone(world);
            }
        }
        Some(())
    }

    pub fn boots(&self, world: &mut World, node: Node) -> Option<()> {
        let up = match node {
            Node::Source => &mut world.source.up,
            Node::Destination => &mut world.destination.up,
        };
        (!*up).then(|| *up = true)
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
        (up && *view != View::Unsynced).then(|| *view = View::Unsynced)
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
            (!world.overdue && mig.status().phase < Phase::Restoring).then_some(())?;
            world.overdue = true;
            return Some(());
        };
        let counts = match clock {
            Clock::Phase => matches!(mig.status().phase, Phase::Restoring | Phase::Finishing),
            Clock::Revocation => mig.status().phase == Phase::Restoring,
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
        world.past.excused = true;
        Some(())
    }

    pub fn user_deletes_replacement(&self, world: &mut World, force: bool) -> Option<()> {
        let pod = world.replacement.as_mut().filter(|pod| force || !pod.deleting)?;
        pod.deleting = true;
        if force {
            world.replacement = None;
        }
        // A running copy that is the only one: the user's own hand.
        world.past.excused |= gone(world);
        Some(())
    }

    /// Somebody resumes the frozen containers by hand, or pauses them again, before the vote. Not between the end of the dump and the reading of
    /// its CPU times: those few milliseconds are R2's limit.
    pub fn hand_on_source(&self, world: &mut World) -> Option<()> {
        let source = &mut world.source;
        let frozen = source.journal.is_some_and(|it| it.frozen.is_some() && !it.vote) && source.fence == Fence::Ours;
        let reading = matches!(source.doing, Some((crate::state::SourceStep::Checkpoint, 1)));
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

    /// After the end another migration freezes the same pod.
    pub fn another_migration(&self, world: &mut World) -> Option<()> {
        let ended = world.status().is_none_or(|status| status.outcome.is_some());
        let source = &mut world.source;
        let free = !world.locked && world.source_pod == Object::Live && source.fence == Fence::None && source.task == SourceTask::Running;
        (source.up && ended && free).then_some(())?;
        (source.fence, source.task) = (Fence::Other, SourceTask::Paused);
        world.locked = true;
        Some(())
    }

    /// The webhook is away when the claim is written: the manager writes the images itself.
    pub fn claim_misses_the_webhook(&self, world: &mut World) -> Option<()> {
        let mig = world.migration?;
        let claim = self.advance(world, mig)?;
        let Some(pod) = world.replacement.filter(|pod| claim == crate::state::Decision::Effects([Some(crate::state::Eff::Claim(pod.uid)), None]))
        else {
            return None;
        };
        world.replacement = Some(crate::state::Replacement { claimed: true, ..pod });
        Some(())
    }
}

fn end(task: &mut Task) {
    *task = match *task {
        Task::Running { .. } => Task::Dead,
        Task::Restoring => Task::Refused,
        task => task,
    };
}

/// Whether the source is past saving anyhow.
fn gone(world: &World) -> bool {
    world.source.task == SourceTask::Dead
}
