//! Disruption budgets: what they allow, and what is taken from them.

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::Pod,
    policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};

use super::{KubeCluster, found, keys, port_error, source_of};
use crate::{
    api::Migration,
    domain::disruption::{give_back, take},
    ports::{Clock as _, Failure, PortError, PortResult, SystemClock},
};

impl KubeCluster {
    pub(super) async fn budgets_of(&self, pod: &Pod) -> PortResult<Vec<PodDisruptionBudget>> {
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        // As the API server's cache has them, since each look at a migration asks: a list that must be the newest waits there for etcd's word, which comes every
        // 100 ms (apiserver/pkg/storage/cacher/progress, progressRequestPeriod). What is taken from one is taken by compare-and-swap of what a read of its own finds.
        let list = budgets.list(&ListParams::default().match_any()).await.map_err(|e| port_error("list the disruption budgets", &e))?;
        Ok(list.items)
    }

    pub(super) async fn take_disruption(&self, migration: &Migration, budget: &str) -> PortResult<()> {
        let pod = &source_of(migration)?.name;
        self.write_disruption(migration, budget, |budget, now| take(budget, pod, now).map(Some).map_err(|why| PortError::new(Failure::Conflict, why)))
            .await
    }

    pub(super) async fn give_back_disruption(&self, migration: &Migration, budget: &str) -> PortResult<()> {
        let pod = &source_of(migration)?.name;
        self.write_disruption(migration, budget, |budget, _| Ok(give_back(budget, pod))).await
    }

    /// By compare-and-swap: evictions and other migrations take from the same budget.
    async fn write_disruption(
        &self,
        migration: &Migration,
        name: &str,
        next: impl FnOnce(&PodDisruptionBudget, Timestamp) -> PortResult<Option<PodDisruptionBudgetStatus>>,
    ) -> PortResult<()> {
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &migration.namespace().unwrap_or_default());
        let Some(mut budget) = found(budgets.get(name).await, "read the disruption budget")? else { return Ok(()) };
        let Some(status) = next(&budget, SystemClock.now())? else { return Ok(()) };
        budget.status = Some(status);
        budget.metadata.managed_fields = None;
        let params = PostParams { field_manager: Some(keys::MANAGER.into()), ..PostParams::default() };
        budgets.replace_status(name, &params, &budget).await.map(drop).map_err(|e| port_error("write the disruption budget", &e))
    }
}
