//! Memory that comes after its container runs (R19): from images on the copy's own node, or from the frozen processes of the source (post-copy).
//!
//! Such a container executes and waits where a page is missing. Whoever holds what it waits for (`runc/keeper.rs`) ends it before it can read anything else
//! than what was there: a filling that fails never leaves a wrong page, only an end.

use drover::api::{
    MigrationStatus,
    migration::{Decider, Side},
};

use crate::{
    faults::Node,
    model::Drover,
    state::{SourceTask, Task, World, Wrongs},
};

/// When a copy gets its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// With its restore.
    AtOnce,
    /// After it, from what lies on its node.
    Lazily,
    /// After it, from the frozen source, which alone has it: the checkpoint is without it, on both nodes.
    FromTheSource,
}

impl Drover {
    /// What a restore leaves behind when CRIU resumes it.
    pub fn as_resumed(&self) -> Task {
        if self.memory == Memory::AtOnce { Task::Running { restored: true } } else { Task::Filling }
    }

    /// Whether nothing but the frozen source has the memory until its copy has got all of it.
    pub fn leaves_memory(&self) -> bool {
        self.memory == Memory::FromTheSource
    }

    /// The last page of a container has come.
    pub fn memory_comes(&self, world: &mut World, c: usize) -> Option<()> {
        (world.destination.up && self.can_be_filled(world)).then_some(())?;
        let task = &mut world.destination.containers[c].task;
        (*task == Task::Filling).then(|| *task = Task::Running { restored: true })
    }

    /// The pages' daemon, or the way to them, fails.
    pub fn filling_fails(&self, world: &mut World, c: usize) -> Option<()> {
        let task = &mut world.destination.containers[c].task;
        (world.destination.up && *task == Task::Filling).then(|| *task = Task::Spoilt)?;
        world.past.spoilt = true;
        Some(())
    }

    /// It must fail: what it waits for is nowhere any more.
    pub fn filling_starves(&self, world: &mut World, c: usize) -> Option<()> {
        (!self.can_be_filled(world)).then_some(())?;
        self.filling_fails(world, c)
    }

    fn can_be_filled(&self, world: &World) -> bool {
        let source = &world.source;
        let gives = source.up && source.task == SourceTask::Paused && !source.fresh && !world.past.ran_on;
        gives || !self.leaves_memory()
    }

    /// Whether every container of the copy runs with all of its memory.
    pub fn is_filled(&self, world: &World) -> bool {
        world.destination.containers[..self.n].iter().all(|c| c.task == Task::Running { restored: true })
    }

    /// The copy, frozen copy, or complete checkpoint that is left (I2).
    pub fn survives(&self, world: &World) -> bool {
        Node::BOTH.into_iter().any(|node| self.has_the_memory(world, node))
    }

    /// Whether it lies, runs or is frozen on this node.
    pub fn has_the_memory(&self, world: &World, node: Node) -> bool {
        let source = world.source.task != SourceTask::Dead && !world.source.fresh;
        let fallback = || world.first.fallback.as_ref().is_some_and(|it| it.node.has_the_memory());
        match node {
            Node::Source => source || world.source.archive || fallback(),
            Node::Destination if self.leaves_memory() => self.is_filled(world),
            Node::Destination => world.destination.has_the_memory(),
        }
    }

    /// Whether each node has the memory otherwise than in what runs there for a while.
    pub fn memories(&self, world: &World) -> [bool; 2] {
        let lies = if self.leaves_memory() { self.is_filled(world) } else { world.destination.blobs };
        [self.has_the_memory(world, Node::Source), lies]
    }

    /// A person has let the copy go on without the memory, which is kept nowhere then: the frozen source goes.
    pub fn is_let_go(&self, status: &MigrationStatus) -> bool {
        self.leaves_memory() && status.resolved.as_ref().is_some_and(|it| it.prefer == Side::Destination && it.by == Decider::Person)
    }

    /// R19: said to be restored.
    pub fn says_restored(&self, world: &mut World) {
        let is_outstanding = |task| matches!(task, Task::Filling | Task::Spoilt);
        if world.destination.containers[..self.n].iter().any(|c| is_outstanding(c.task)) {
            world.past.wrongs.add(Wrongs::OUTSTANDING);
        }
    }
}
