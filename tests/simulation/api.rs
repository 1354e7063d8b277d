//! The API server: objects with resource versions, compare-and-swap, preconditions, finalizers, deletion, the CRDs' rules, the webhook.

use std::collections::BTreeMap;

use drover::{
    api::{Attestation, AttestationStatus, Migration, MigrationStatus, Verdict},
    domain::admission::{self, Change, Decision, Requester, World as Seen},
    ports::{Failure, PortError, PortResult},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use crate::{rules, world::NAMESPACE};

/// Everything that is stored.
#[derive(Default)]
pub struct Api {
    /// Grows with every write.
    pub version: u64,
    pub is_up: bool,
    /// Nobody answers the webhook's calls: `failurePolicy: Ignore` lets everything through as it is.
    pub webhook_is_down: bool,
    /// Writes are not checked against resource versions (a mutation).
    pub no_compare_and_swap: bool,
    pub pods: BTreeMap<String, Pod>,
    pub migrations: BTreeMap<String, Migration>,
    pub attestations: BTreeMap<String, Attestation>,
    /// UID of a migration → what is kept of its source.
    pub templates: BTreeMap<String, Pod>,
    /// UIDs of migrations with laid-out pull credentials.
    pub pull_credentials: Vec<String>,
    made: u64,
}

/// What the manager is called.
const MANAGER: &str = "system:serviceaccount:drover-system:drover-manager";

pub fn conflict(what: &str) -> PortError {
    PortError::new(Failure::Conflict, what)
}

pub fn name_of(meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

impl Api {
    pub fn new(no_compare_and_swap: bool) -> Self {
        Self { is_up: true, no_compare_and_swap, ..Self::default() }
    }

    /// A UID; the first digits differ, as those of real ones do.
    pub fn fresh_uid(&mut self) -> String {
        self.made += 1;
        let mixed = self.made.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{:08x}-{:04x}-4000-8000-{:012x}", mixed >> 32, (mixed >> 16) & 0xffff, self.made)
    }

    fn stamp(&mut self, meta: &mut ObjectMeta) {
        self.version += 1;
        meta.resource_version = Some(self.version.to_string());
    }

    fn stamp_new(&mut self, meta: &mut ObjectMeta, now: Timestamp) {
        meta.namespace = Some(NAMESPACE.to_owned());
        meta.uid = Some(self.fresh_uid());
        meta.creation_timestamp = Some(Time(now));
        self.stamp(meta);
    }

    fn is_stale(&self, stored: &ObjectMeta, given: &ObjectMeta) -> bool {
        !self.no_compare_and_swap && stored.resource_version != given.resource_version
    }

    // === pods ===

    /// Makes a pod, which passes the webhook.
    pub fn create_pod(&mut self, pod: &Pod, now: Timestamp) -> PortResult<()> {
        let name = name_of(&pod.metadata);
        if self.pods.contains_key(&name) {
            return Err(conflict("a pod of this name exists"));
        }
        let mut pod = self.admit(Change::Create(pod), now)?;
        self.stamp_new(&mut pod.metadata, now);
        self.pods.insert(name, pod);
        Ok(())
    }

    /// Changes a pod of this UID; `version` is the resource version that must still stand.
    pub fn change_pod(
        &mut self,
        name: &str,
        uid: &str,
        version: Option<&str>,
        now: Timestamp,
        change: impl FnOnce(&mut Pod) -> PortResult<()>,
    ) -> PortResult<()> {
        let old = self.pods.get(name).ok_or_else(|| PortError::new(Failure::NotFound, "no such pod"))?.clone();
        let other_version = version.is_some() && old.metadata.resource_version.as_deref() != version;
        if old.metadata.uid.as_deref() != Some(uid) || (other_version && !self.no_compare_and_swap) {
            return Err(conflict("the pod has changed"));
        }
        let mut new = old.clone();
        change(&mut new)?;
        let mut new = self.admit(Change::Update { old: &old, new: &new }, now)?;
        self.stamp(&mut new.metadata);
        self.pods.insert(name.to_owned(), new);
        Ok(())
    }

    /// The kubelet's, the scheduler's and the control plane's writes, which the webhook has no say in.
    pub fn touch_pod(&mut self, name: &str, uid: &str, change: impl FnOnce(&mut Pod)) {
        let Some(mut pod) = self.pods.get(name).filter(|pod| pod.metadata.uid.as_deref() == Some(uid)).cloned() else { return };
        let before = pod.clone();
        change(&mut pod);
        if pod != before {
            self.stamp(&mut pod.metadata);
            self.pods.insert(name.to_owned(), pod);
        }
    }

    /// Deletes a pod of this UID: at once where it was never bound or is forced, else when its kubelet has ended it. Whether there was one.
    pub fn delete_pod(&mut self, name: &str, uid: &str, force: bool, now: Timestamp) -> bool {
        let Some(pod) = self.pods.get(name).filter(|pod| pod.metadata.uid.as_deref() == Some(uid)) else { return false };
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        if force || !bound {
            self.version += 1;
            self.pods.remove(name);
        } else if pod.metadata.deletion_timestamp.is_none() {
            self.touch_pod(name, uid, |pod| pod.metadata.deletion_timestamp = Some(Time(now)));
        }
        true
    }

    fn admit(&self, change: Change<'_>, now: Timestamp) -> PortResult<Pod> {
        let (Change::Create(pod) | Change::Update { new: pod, .. }) = change;
        if self.webhook_is_down {
            return Ok(pod.clone());
        }
        let requester = Requester { username: MANAGER.to_owned(), is_manager: true };
        let mut seen = Seen::unseen(now);
        if admission::needs(change, &requester).claim {
            seen.migrations = self.migrations.values().cloned().collect();
        }
        match admission::decide(change, &requester, &seen) {
            Decision::Deny { what, reasons } => Err(PortError::permanent(admission::denial(&what, &reasons))),
            Decision::Answer { message, .. } => Err(PortError::permanent(message)),
            Decision::Allow { patch, .. } if patch.0.is_empty() => Ok(pod.clone()),
            Decision::Allow { patch, .. } => {
                let mut value = serde_json::to_value(pod).map_err(|e| PortError::permanent(e.to_string()))?;
                json_patch::patch(&mut value, &patch).map_err(|e| PortError::permanent(e.to_string()))?;
                serde_json::from_value(value).map_err(|e| PortError::permanent(e.to_string()))
            }
        }
    }

    // === migrations ===

    pub fn create_migration(&mut self, mut migration: Migration, now: Timestamp) -> bool {
        let name = name_of(&migration.metadata);
        if self.migrations.contains_key(&name) {
            return false;
        }
        self.stamp_new(&mut migration.metadata, now);
        migration.metadata.generation = Some(1);
        self.migrations.insert(name, migration);
        true
    }

    /// Writes a status by compare-and-swap.
    pub fn write_migration_status(&mut self, given: &Migration, status: &MigrationStatus) -> PortResult<Migration> {
        let name = name_of(&given.metadata);
        let stored = self.migrations.get(&name).ok_or_else(|| PortError::new(Failure::NotFound, "no such Migration"))?;
        if stored.metadata.uid != given.metadata.uid || self.is_stale(&stored.metadata, &given.metadata) {
            return Err(conflict("the Migration has changed"));
        }
        if let Some(message) = rules::broken(rules::MIGRATION, stored.status.as_ref(), status).filter(|_| !self.no_compare_and_swap) {
            return Err(PortError::permanent(message));
        }
        let mut next = Migration { status: Some(status.clone()), ..stored.clone() };
        self.stamp(&mut next.metadata);
        self.migrations.insert(name, next.clone());
        Ok(next)
    }

    /// Writes the finalizers by compare-and-swap; what is being deleted goes with the last.
    pub fn write_finalizers(&mut self, given: &Migration, finalizers: Vec<String>) -> PortResult<()> {
        let name = name_of(&given.metadata);
        let stored = self.migrations.get(&name).ok_or_else(|| PortError::new(Failure::NotFound, "no such Migration"))?;
        if stored.metadata.uid != given.metadata.uid || self.is_stale(&stored.metadata, &given.metadata) {
            return Err(conflict("the Migration has changed"));
        }
        let mut next = stored.clone();
        if next.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|f| !stored.metadata.finalizers.iter().flatten().any(|have| have == f))
        {
            return Err(PortError::permanent("no new finalizers can be added while the object is being deleted"));
        }
        if finalizers.is_empty() && next.metadata.deletion_timestamp.is_some() {
            self.version += 1;
            self.migrations.remove(&name);
            return Ok(());
        }
        next.metadata.finalizers = Some(finalizers);
        self.stamp(&mut next.metadata);
        self.migrations.insert(name, next);
        Ok(())
    }

    /// A user annotates a Migration.
    pub fn annotate_migration(&mut self, name: &str, key: &str, value: &str) {
        let Some(mut migration) = self.migrations.get(name).cloned() else { return };
        migration.metadata.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self.stamp(&mut migration.metadata);
        self.migrations.insert(name.to_owned(), migration);
    }

    pub fn delete_migration(&mut self, name: &str, now: Timestamp) {
        let Some(mut migration) = self.migrations.get(name).cloned() else { return };
        if migration.metadata.finalizers.iter().flatten().next().is_none() {
            self.version += 1;
            self.migrations.remove(name);
        } else if migration.metadata.deletion_timestamp.is_none() {
            migration.metadata.deletion_timestamp = Some(Time(now));
            self.stamp(&mut migration.metadata);
            self.migrations.insert(name.to_owned(), migration);
        }
    }

    // === attestations ===

    /// Makes one; `AlreadyExists` is a conflict.
    pub fn create_attestation(&mut self, mut attestation: Attestation, now: Timestamp) -> PortResult<()> {
        let name = name_of(&attestation.metadata);
        if self.attestations.contains_key(&name) {
            return Err(conflict("an attestation of this name exists"));
        }
        self.stamp_new(&mut attestation.metadata, now);
        self.attestations.insert(name, attestation);
        Ok(())
    }

    pub fn write_attestation(&mut self, given: &Attestation, status: &AttestationStatus) -> PortResult<Attestation> {
        let name = name_of(&given.metadata);
        let stored = self.attestations.get(&name).ok_or_else(|| PortError::new(Failure::NotFound, "no such attestation"))?;
        if stored.metadata.uid != given.metadata.uid || self.is_stale(&stored.metadata, &given.metadata) {
            return Err(conflict("the attestation has changed"));
        }
        if let Some(message) = rules::broken(rules::ATTESTATION, stored.status.as_ref(), status).filter(|_| !self.no_compare_and_swap) {
            return Err(PortError::permanent(message));
        }
        let mut next = Attestation { status: Some(status.clone()), ..stored.clone() };
        self.stamp(&mut next.metadata);
        self.attestations.insert(name, next.clone());
        Ok(next)
    }

    pub fn remove_attestation(&mut self, name: &str) {
        if self.attestations.remove(name).is_some() {
            self.version += 1;
        }
    }

    /// Whether the push door of a node lets another one's agent in: `agent::controller::may_push`.
    pub fn may_push(&self, to: &str, from: &str, repository: &str) -> bool {
        let expects = |status: &MigrationStatus| {
            let destination = status.destination.as_ref().filter(|d| d.repository == repository);
            let from_source = destination.is_some() && status.source.as_ref().is_some_and(|s| s.node_name == from);
            match (status.verdict, &status.fallback) {
                (None, _) => from_source && destination.is_some_and(|d| d.node_name == to),
                (Some(Verdict::Rollback), Some(_)) => from_source && to == from,
                _ => false,
            }
        };
        self.migrations.values().filter(|m| !m.is_done()).filter_map(|m| m.status.as_ref()).any(expects)
    }

    /// Garbage collection: attestations and templates of migrations that are gone.
    pub fn collect_garbage(&mut self) {
        let there: Vec<&String> = self.migrations.values().filter_map(|m| m.metadata.uid.as_ref()).collect();
        self.templates.retain(|uid, _| there.contains(&uid));
        let gone = |a: &Attestation| !self.migrations.values().any(|m| m.metadata.uid.as_ref() == Some(&a.spec.migration_uid));
        let names: Vec<String> = self.attestations.iter().filter(|(_, a)| gone(a)).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.remove_attestation(&name);
        }
    }
}
