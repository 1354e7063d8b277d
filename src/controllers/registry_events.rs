//! What the readiness bus tells, brought to the look at its migration.
//!
//! # Guarantees
//! An event is settled at the bus only after a status notes it, or after it was judged to be worth nothing; so whoever leads next hears of what was not
//! noted. One that nobody notes within [`PATIENCE`] is given up: it is a hint, and the others wait behind it.

use std::{sync::Arc, time::Duration};

use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Migration,
    domain::{
        migration::Told,
        registry_event::{Judgement, RegistryEvent, judge},
    },
    metrics::Metrics,
    ports::{
        PortResult,
        bus::{Inbox, Migrations, Subscription},
    },
};

/// How long an event may wait for a status that notes it, while the API server is away, for example.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often such an event is judged again meanwhile: its migration may have gone on without it.
const JUDGED_AGAIN: Duration = Duration::from_secs(1);
/// So many looks wait at most for the controller of migrations.
pub const ROOM: usize = 64;

/// What the consumer needs.
pub struct Parts {
    /// The bus.
    pub bus: Arc<dyn Subscription>,
    /// The migrations. Not what the controller of migrations knows of them: kube's `Store::wait_until_ready` wakes one waiter only, and that is the controller.
    pub migrations: Arc<dyn Migrations>,
    /// From where its looks take the events.
    pub inbox: Arc<Inbox>,
    /// Asks for a look.
    pub looks: mpsc::Sender<ObjectRef<Migration>>,
    /// Where it is counted.
    pub metrics: Metrics,
}

/// Takes events until cancelled.
///
/// # Errors
/// Where the bus has shut this subscriber out: another one leads.
pub async fn run(parts: Parts, stop: CancellationToken) -> PortResult<()> {
    while let Some(delivery) = stop.run_until_cancelled(parts.bus.receive()).await {
        let delivery = delivery?;
        match stop.run_until_cancelled(parts.take(&delivery.event)).await {
            Some(result) => {
                parts.metrics.registry_event(result);
                parts.bus.settle(&delivery);
            }
            None => break,
        }
    }
    Ok(())
}

impl Parts {
    async fn judge(&self, event: &RegistryEvent) -> PortResult<Judgement> {
        let of = &event.migration;
        let migration = self.migrations.migration(&of.namespace, &of.name).await?;
        Ok(migration.map_or(Judgement::UnknownMigration, |migration| judge(&migration, event)))
    }

    /// What became of an event.
    async fn take(&self, event: &RegistryEvent) -> &'static str {
        let until = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < until {
            let judgement = match self.judge(event).await {
                Ok(judgement) => judgement,
                Err(error) => {
                    tracing::debug!(%error, "an event waits for the API server");
                    tokio::time::sleep(JUDGED_AGAIN).await;
                    continue;
                }
            };
            if judgement != Judgement::News {
                note(event, judgement);
                return judgement.label();
            }
            let told = Told { bus: self.bus.name(), event: event.clone() };
            let of = ObjectRef::new(&event.migration.name).within(&event.migration.namespace);
            if self.inbox.deliver(told, JUDGED_AGAIN, self.looks.send(of)).await {
                return Judgement::News.label();
            }
        }
        tracing::warn!(migration = event.migration.name, namespace = event.migration.namespace, "word of an image is given up: no status notes it");
        "given_up"
    }
}

fn note(event: &RegistryEvent, judgement: Judgement) {
    let (migration, namespace) = (&event.migration.name, &event.migration.namespace);
    let (container, digest, node, result) = (&event.container, &event.digest, &event.node, judgement.label());
    if judgement.is_suspect() {
        tracing::warn!(migration, namespace, container, digest, node, result, "word of an image is ignored: nobody who is what they say sends it");
    } else {
        tracing::info!(migration, namespace, container, digest, node, result, "word of an image is passed over");
    }
}

#[cfg(test)]
mod tests;
