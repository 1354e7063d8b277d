//! The readiness bus: word of an image in a destination's registry, from that node's agent to the manager, and what the manager tells the world.
//!
//! What it carries are hints (I7): delivered at least once, in no order across migrations, and not at all where the bus is away for longer than its
//! senders keep them. A migration ends without them, by what the destination's agent attests.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::PortResult;
use crate::{
    api::Migration,
    domain::{
        migration::Told,
        migration_event::MigrationEvent,
        registry_event::{Judgement, RegistryEvent, judge},
    },
};

/// How a bus is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusState {
    /// Whether what is told arrives.
    pub connected: bool,
    /// Why not, and what to do about it; or what should be changed although it does.
    pub message: String,
}

/// The agent's end.
#[async_trait]
pub trait Announcer: Send + Sync {
    /// `Kafka` or `Direct`.
    fn name(&self) -> &'static str;
    /// Tells of an image; returns when the bus has taken it. It may be told again.
    async fn announce(&self, event: &RegistryEvent) -> PortResult<()>;
    /// How the bus is doing, as far as is known now.
    fn state(&self) -> BusState;
}

/// One event that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// What was told.
    pub event: RegistryEvent,
    /// Where the bus has it.
    pub position: Position,
}

/// A place in a bus: what Kafka calls partition and offset; a bus that needs none to settle an event has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Partition.
    pub partition: i32,
    /// Offset in it.
    pub offset: i64,
}

/// The manager's end. One subscriber at a time: the leader.
#[async_trait]
pub trait Subscription: Send + Sync {
    /// `Kafka` or `Direct`.
    fn name(&self) -> &'static str;
    /// The next event. What cannot be read as one never comes: the bus puts it aside with the reason.
    ///
    /// # Errors
    /// Where there will be no further event from this subscription: it was fenced, or its certificates were renewed. Another one may be made.
    async fn receive(&self) -> PortResult<Delivery>;
    /// The event needs no second delivery; what was received before it and is not settled may be lost to a later subscriber, so settle in order.
    fn settle(&self, delivery: &Delivery);
    /// How the bus is doing, as far as is known now.
    fn state(&self) -> BusState;
}

/// What an event is judged by.
#[async_trait]
pub trait Migrations: Send + Sync {
    /// A Migration as it is now, or none.
    async fn migration(&self, namespace: &str, name: &str) -> PortResult<Option<Migration>>;
}

/// Where the manager tells other systems of each phase.
#[async_trait]
pub trait Audit: Send + Sync {
    /// Hands a message over; it is delivered later, and again after a restart where that is not sure.
    fn tell(&self, event: &MigrationEvent);
}

/// The event that is on its way from the subscription to the next look at its migration: one at a time, since they are settled in order.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<Option<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    told: Told,
    persisted: oneshot::Sender<()>,
}

impl Inbox {
    /// Lays an event out, `asks` for a look at its migration, and waits until the status notes it or `patience` is over. True where it is noted.
    pub async fn deliver<T>(&self, told: Told, patience: Duration, asks: impl Future<Output = T>) -> bool {
        let (persisted, noted) = oneshot::channel();
        *self.lock() = Some(Waiting { told, persisted });
        let noted = async {
            asks.await;
            noted.await
        };
        let noted = tokio::time::timeout(patience, noted).await.is_ok_and(|answer| answer.is_ok());
        *self.lock() = None;
        noted
    }

    /// What waits for a migration.
    pub fn of(&self, migration_uid: &str) -> Option<Told> {
        self.lock().as_ref().map(|waiting| waiting.told.clone()).filter(|told| told.event.migration.uid == migration_uid)
    }

    /// A status was written: what it notes waits no longer.
    pub fn written(&self, after: &Migration) {
        if let Some(noted) = self.lock().take_if(|waiting| judge(after, &waiting.told.event) == Judgement::Repeated) {
            // Nobody waits any more where the patience was over.
            let _ = noted.persisted.send(());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
