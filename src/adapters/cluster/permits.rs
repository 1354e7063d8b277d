//! Permits for a destination: Leases in Drover's own namespace.

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};

use super::{KubeCluster, found, keys, port_error};
use crate::{
    api::Migration,
    domain::permits::{ARRIVALS, Holder, Permit, Slot, free, label, slots},
    ports::{Clock as _, Failure, PortError, PortResult, SystemClock},
};

impl KubeCluster {
    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn slots_at(&self, node: &str) -> PortResult<Vec<Slot>> {
        let of_node = ListParams::default().labels(&format!("{ARRIVALS}={}", label(node)));
        let leases = self.leases().list(&of_node).await.map_err(|e| port_error("list the slots at the destination", &e))?;
        Ok(slots(node, self.arrivals_per_node, &leases.items))
    }

    /// Whether the migration's pod may come to the node, and the slot that it would take.
    pub(super) async fn permit_at(&self, migration: &Migration, node: &str) -> PortResult<(Permit, Option<Slot>)> {
        if self.arrivals_per_node == 0 {
            return Ok((Permit::Held, None));
        }
        let slots = self.slots_at(node).await?;
        let uid = migration.uid().unwrap_or_default();
        let (permit, slot) = free(&slots, &uid, |_| false);
        if !matches!(permit, Permit::Refused { .. }) {
            return Ok((permit, slot.cloned()));
        }
        // In this order: whoever has a slot was there before it was read, so what is gone now has ended.
        let mut ended = vec![];
        for holder in slots.iter().flat_map(|slot| &slot.holder) {
            if self.has_ended(holder).await? {
                ended.push(holder.uid.clone());
            }
        }
        let (permit, slot) = free(&slots, &uid, |holder| ended.contains(&holder.uid));
        Ok((permit, slot.cloned()))
    }

    async fn has_ended(&self, holder: &Holder) -> PortResult<bool> {
        let api: Api<Migration> = Api::namespaced(self.client.clone(), &holder.namespace);
        let migration = found(api.get(&holder.name).await, "read the Migration that has a slot at the destination")?;
        Ok(migration.is_none_or(|migration| migration.metadata.uid.as_ref() != Some(&holder.uid) || migration.is_done()))
    }

    /// By compare-and-swap: a conflict where somebody else has taken it meanwhile.
    pub(super) async fn take_permit(&self, migration: &Migration, node: &str) -> PortResult<()> {
        let slot = match self.permit_at(migration, node).await? {
            (Permit::Held, _) => return Ok(()),
            (Permit::Available, Some(slot)) => slot,
            (Permit::Refused { .. } | Permit::Available, _) => {
                return Err(PortError::new(Failure::Conflict, format!("the last slot at node {node} was taken meanwhile")));
            }
        };
        let holder =
            Holder { namespace: migration.namespace().unwrap_or_default(), name: migration.name_any(), uid: migration.uid().unwrap_or_default() };
        self.write_slot(&slot, node, Some(holder.to_string())).await
    }

    /// Nothing happens where it has none.
    pub(super) async fn return_permit(&self, migration: &Migration) -> PortResult<()> {
        let destination = migration.status.as_ref().and_then(|status| status.destination.as_ref()).map(|destination| destination.node_name.as_str());
        let Some(node) = destination.filter(|node| !node.is_empty() && self.arrivals_per_node > 0) else { return Ok(()) };
        let slots = self.slots_at(node).await?;
        let own = slots.iter().find(|slot| slot.holder.as_ref().is_some_and(|holder| Some(&holder.uid) == migration.metadata.uid.as_ref()));
        match own {
            Some(slot) => self.write_slot(slot, node, None).await,
            None => Ok(()),
        }
    }

    async fn write_slot(&self, slot: &Slot, node: &str, holder: Option<String>) -> PortResult<()> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(slot.name.clone()),
                resource_version: slot.version.clone(),
                labels: Some([(ARRIVALS.to_owned(), label(node))].into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                acquire_time: holder.as_ref().map(|_| MicroTime(SystemClock.now())),
                holder_identity: holder,
                ..LeaseSpec::default()
            }),
        };
        let params = PostParams { field_manager: Some(keys::MANAGER.into()), ..PostParams::default() };
        let written = if slot.version.is_some() {
            self.leases().replace(&slot.name, &params, &lease).await
        } else {
            self.leases().create(&params, &lease).await
        };
        match written {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() || status.code == 404 => {
                Err(PortError::new(Failure::Conflict, format!("slot {} was written meanwhile", slot.name)))
            }
            Err(error) => Err(port_error("write a slot at the destination", &error)),
        }
    }
}
