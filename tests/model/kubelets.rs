//! Kubelets, runtimes, CRIU and the gate.

use drover::{
    api::{MigrationStatus, Verdict},
    gate,
    markers::Claim,
};

use crate::{
    faults::Node,
    intern::WORDS,
    model::Drover,
    rules::Rule,
    state::{Container, DestinationStep, Doing, Fence, Img, Log, Object, Orphan, SourceTask, Task, View, World, Wrongs},
};

impl Drover {
    /// The source's kubelet reads its pods from the API server.
    pub fn source_syncs(&self, world: &mut World) -> Option<()> {
        (world.source.up && !world.source.cut).then_some(())?;
        let view = match world.source_pod {
            Object::Live => View::Listed,
            Object::Deleting => View::Terminating,
            Object::Gone => View::Unlisted,
        };
        let seen = (world.source.view != view).then(|| world.source.view = view);
        // What a kubelet reads comes in one order for all of its pods.
        seen.or(world.fall_back(|world| self.destination_syncs(world)))
    }

    /// It ends what is being deleted, when the grace period is over, and what it does not know; then it removes what is left.
    pub fn source_kubelet_kills(&self, world: &mut World) -> Option<()> {
        let source = &mut world.source;
        if source.up && source.made && matches!(source.view, View::Terminating | View::Unlisted) {
            source.made = false;
            return Some(());
        }
        // With the gate it makes no difference before.
        let matters = self.goes_first() && (!self.is_gated(Node::Source) || world.migration.is_none_or(|mig| mig.status().verdict.is_some()));
        if matters && source.up && source.view == View::Unlisted && source.task == SourceTask::Dead {
            return (!source.removed).then(|| source.removed = true);
        }
        let doomed = source.up && matches!(source.view, View::Terminating | View::Unlisted) && source.task != SourceTask::Dead;
        doomed.then(|| source.task = SourceTask::Dead)
    }

    /// It tells the API server that nothing of the pod is left.
    pub fn source_kubelet_removes(&self, world: &mut World) -> Option<()> {
        let source = &mut world.source;
        let over = source.up && !source.cut && source.view == View::Terminating && source.task == SourceTask::Dead && !source.made;
        (over && world.source_pod == Object::Deleting).then_some(())?;
        world.source_pod = Object::Gone;
        source.view = View::Unlisted;
        Some(())
    }

    /// It restarts a dead container in place; the gate has its word (gate.rs `by_fence`). Without one what was made is started, also where the pod was
    /// forgotten meanwhile.
    pub fn source_kubelet_restarts(&self, world: &mut World) -> Option<()> {
        let gated = self.is_gated(Node::Source);
        let source = &mut world.source;
        let dead = source.up && source.task == SourceTask::Dead;
        let passes = !gated || source.fence == Fence::None || self.off(Rule::Fence);
        (dead && passes && (source.made || source.view == View::Listed)).then_some(())?;
        if !gated && !source.made {
            source.made = true;
            return Some(());
        }
        (source.task, source.fresh, source.made) = (SourceTask::Running, true, false);
        source.executes(&mut world.past);
        Some(())
    }

    /// The destination's kubelet reads its pods, and tells of the sandbox.
    pub fn destination_syncs(&self, world: &mut World) -> Option<()> {
        (world.destination.up && !world.destination.cut).then_some(())?;
        let before = (world.destination.view, world.destination.sandbox, world.replacement, world.first.placeholder, world.first.placeholder_listed);
        if !world.first.turned {
            world.first.placeholder_listed = world.first.placeholder.is_some();
            if let Some(placeholder) = &mut world.first.placeholder {
                placeholder.sandbox = true;
            }
        }
        let follows = !self.gated(world);
        world.destination.view = match &mut world.replacement {
            Some(pod) if pod.uid == 1 && pod.deleting => View::Terminating,
            Some(pod) if pod.uid == 1 => {
                pod.sandbox = true;
                world.destination.sandbox = follows;
                if pod.images { View::Released } else { View::Listed }
            }
            _ => View::Unlisted,
        };
        let after = (world.destination.view, world.destination.sandbox, world.replacement, world.first.placeholder, world.first.placeholder_listed);
        (after != before).then_some(())
    }

    /// The destination's kubelet confirms that nothing of the placeholder is left; none of its containers ever could start.
    pub fn placeholder_goes(&self, world: &mut World) -> Option<()> {
        let destination = &world.destination;
        let reads = destination.up && !destination.cut && destination.view != View::Unsynced;
        (reads && world.first.placeholder.is_some_and(|pod| pod.deleting)).then_some(())?;
        (world.first.placeholder, world.first.placeholder_listed) = (None, false);
        Some(())
    }

    /// It ends what is being deleted or is not its own; what has ended of a pod that it does not know it removes.
    pub fn destination_kubelet_kills(&self, world: &mut World) -> Option<()> {
        let destination = &mut world.destination;
        (destination.up && matches!(destination.view, View::Terminating | View::Unlisted)).then_some(())?;
        let (before, had_sandbox) = (destination.containers, destination.sandbox);
        // What the runtime has given up it does not know, and nobody ends it with the pod.
        for container in &mut destination.containers {
            end(&mut container.task);
        }
        let ran = before.iter().any(|c| matches!(c.task, Task::Filling | Task::Running { restored: true }));
        if ran && world.past.deleted_in_doubt && !world.first.turned {
            world.past.wrongs.add(Wrongs::COPY_ENDED);
        }
        let destination = &mut world.destination;
        if before == destination.containers && destination.view == View::Unlisted {
            destination.containers.iter_mut().for_each(removed);
            destination.sandbox = false;
        }
        (before != destination.containers || had_sandbox != destination.sandbox).then_some(())
    }

    pub fn destination_kubelet_removes(&self, world: &mut World) -> Option<()> {
        let destination = &mut world.destination;
        let idle = |task: Task| !(task.executes() || matches!(task, Task::Restoring | Task::Pulling));
        let over = destination.up && !destination.cut && destination.view == View::Terminating && destination.containers.iter().all(|c| idle(c.task));
        (over && world.replacement.is_some_and(|pod| pod.uid == 1 && pod.deleting)).then_some(())?;
        world.replacement = None;
        (destination.view, destination.sandbox) = (View::Unlisted, false);
        destination.containers.iter_mut().for_each(removed);
        Some(())
    }

    /// It pulls a released image, unless the store has it, and makes the container; what it has begun it may end though the pod was forgotten meanwhile.
    pub fn makes(&self, world: &mut World, c: usize) -> Option<()> {
        let released = world.destination.view == View::Released;
        world.destination.up.then_some(())?;
        let (gated, rule) = (self.gated(world), self.gate(world, c));
        let destination = &mut world.destination;
        let blobs = destination.blobs;
        let container = &mut destination.containers[c];
        match container.task {
            Task::Pulling => {}
            Task::None | Task::Dead | Task::Spoilt if released => {}
            // It is tried again and again; that shows only once the gate says something else.
            Task::Refused if released && matches!(rule, gate::Rule::Pass | gate::Rule::Take) => {}
            _ => return None,
        }
        container.earlier |= container.task.is_over();
        if !gated && container.task != Task::Pulling {
            container.task = Task::Pulling;
            return Some(());
        }
        let image = match container.tag {
            _ if container.store => Img::Checkpoint,
            Some(Img::Checkpoint | Img::Forged) if !blobs => return None,
            Some(Img::Forged) => {
                world.past.wrongs.add(Wrongs::FORGED);
                Img::Checkpoint
            }
            image => image?,
        };
        container.store |= image == Img::Checkpoint;
        container.task = Task::Made(image);
        Some(())
    }

    /// It starts the container: runc, and in it the gate.
    pub fn starts(&self, world: &mut World, c: usize) -> Option<()> {
        let Task::Made(image) = world.destination.containers[c].task else { return None };
        world.destination.up.then_some(())?;
        let rule = if self.opens_early(world) { gate::Rule::Pass } else { self.gate(world, c) };
        let container = &mut world.destination.containers[c];
        let passes = matches!(rule, gate::Rule::Pass | gate::Rule::Take);
        if rule == gate::Rule::Take {
            (container.log, container.booted) = (Log::Begun, false);
            if !self.off(Rule::GateTakes) {
                container.claim = Some(Claim::Taken);
            }
        }
        // gate.rs `pass`: an open claim lets everything through but a restore.
        let rewinds = rule == gate::Rule::Pass && container.claim == Some(Claim::Open) && image != Img::Base && !self.off(Rule::OpenIsNoRestore);
        container.task = match image {
            _ if !passes || rewinds => Task::Refused,
            Img::Checkpoint | Img::Forged => Task::Restoring,
            Img::Base => Task::Running { restored: false },
        };
        if container.task == (Task::Running { restored: false }) {
            world.past.cold |= !is_confirmed(world);
        }
        Some(())
    }

    /// CRIU logs an error that ends nothing.
    pub fn criu_complains(&self, world: &mut World, c: usize) -> Option<()> {
        let container = &mut world.destination.containers[c];
        (world.destination.up && container.is_restoring() && container.log == Log::Begun).then(|| container.log = Log::Error)
    }

    /// CRIU resumes the processes.
    pub fn criu_resumes(&self, world: &mut World, c: usize) -> Option<()> {
        let gated = self.gated(world);
        let container = &mut world.destination.containers[c];
        (world.destination.up && container.is_restoring()).then_some(())?;
        match &mut container.orphan {
            Some(orphan) => orphan.runs = true,
            None => container.task = self.as_resumed(),
        }
        if container.log != Log::None {
            container.log = Log::Resumed { error: container.log == Log::Error };
        }
        if world.past.restores & (1 << c) != 0 {
            // Without the gate nothing prevents that before the checkpoint is out of reach: it must be seen, and is no success.
            let said = world.destination_says.is_some_and(|id| WORDS.get(id).restored.is_some());
            world.past.wrongs.add(if gated || said { Wrongs::REWOUND } else { Wrongs::REPEATED });
        }
        world.past.restores |= 1 << c;
        // What a person has decided, who was told that the checkpoint may be outrun.
        let decided = world.first.turned && world.status().is_some_and(|status| status.resolved.is_some());
        if world.past.ran_on && !decided {
            world.past.wrongs.add(Wrongs::STALE_RESTORE);
        }
        Some(())
    }

    /// CRIU refuses before the resume point: the commonest failure of all.
    pub fn criu_refuses(&self, world: &mut World, c: usize) -> Option<()> {
        let container = &mut world.destination.containers[c];
        (world.destination.up && container.is_restoring()).then_some(())?;
        if container.orphan.take().is_none() {
            container.task = Task::Refused;
        }
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

    /// The runtime is restarted in mid-restore: the kubelet is told that the start has failed, and CRIU goes on.
    pub fn restore_is_given_up(&self, world: &mut World, c: usize, removed: bool) -> Option<()> {
        let gated = self.gated(world);
        let container = &mut world.destination.containers[c];
        (gated && container.task == Task::Restoring).then_some(())?;
        container.orphan = Some(Orphan { runs: false, listed: !removed });
        container.task = if removed { Task::None } else { Task::Refused };
        Some(())
    }

    /// The program ends by itself on the destination.
    pub fn program_ends(&self, world: &mut World, c: usize) -> Option<()> {
        let container = &mut world.destination.containers[c];
        container.runs().then_some(())?;
        match container.orphan {
            Some(_) => container.orphan = None,
            None => container.task = Task::Dead,
        }
        // What a program loses when it ends by itself is its own affair, once it is the only copy, also where faults have made it that.
        let committed = world.status().is_none_or(|status| status.verdict == Some(Verdict::Commit));
        let alone = world.past.disks_lost == [true; 2] || self.leaves_memory();
        world.past.excused |= (committed || world.first.turned || alone) && gone(world);
        Some(())
    }
}

pub fn end(task: &mut Task) {
    *task = match *task {
        Task::Filling | Task::Running { .. } => Task::Dead,
        Task::Restoring => Task::Refused,
        Task::Pulling => Task::None,
        task => task,
    };
}

/// The runtime has forgotten it.
fn removed(container: &mut Container) {
    (container.task, container.earlier) = (Task::None, false);
    container.orphan = container.orphan.map(|orphan| Orphan { listed: false, ..orphan });
}

/// It was seen running after the commit (R17), though perhaps that is not written yet.
fn is_confirmed(world: &World) -> bool {
    let confirmed = world.destination_says.is_some_and(|id| WORDS.get(id).confirmed.is_some());
    confirmed || matches!(world.destination.doing, Some(Doing { what: DestinationStep::Confirm, .. }))
}

/// Whether the copy is an ordinary pod by now, which ends as any pod does: it was seen running after the commit, or the source is past saving anyhow.
pub fn gone(world: &World) -> bool {
    // Where it went first, the archive stands for it.
    let first = world.first.turned || world.status().is_some_and(MigrationStatus::is_source_first);
    let past_saving = if first { world.source.lost && !world.first.turned } else { world.source.task == SourceTask::Dead };
    is_confirmed(world) || past_saving
}
