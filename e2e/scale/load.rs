//! What the cluster carries: nodes, Deployments, budgets, bare pods, and the policy by which pods leave.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use drover::{
    api::MigrationPolicy,
    domain::{evacuation::can_leave, owner},
};

use crate::{
    cluster::eventually,
    witness::{Limits, budget_of},
};

/// Replicas of each Deployment.
const REPLICAS: usize = 10;
/// The pods are in as many namespaces.
const NAMESPACES: usize = 4;
/// Every third Deployment has a budget.
const BUDGETED: usize = 3;
/// One pod in twenty is bare.
const BARE: usize = 20;
/// Requests under way at once.
const AT_ONCE: usize = 16;

/// How large the simulation is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub nodes: usize,
    pub pods: usize,
}

impl Size {
    /// As the environment says, else this size.
    pub fn or(nodes: usize, pods: usize) -> Self {
        let said = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text:?}: {e}")));
        Self { nodes: said("DROVER_SCALE_NODES", nodes), pods: said("DROVER_SCALE_PODS", pods) }
    }

    /// Two of five nodes' worth of evacuations at once, so that each of the limits is met.
    pub fn limits(self) -> Limits {
        let concurrent = u32::try_from((self.nodes * 2 / 5).max(2)).unwrap();
        Limits { concurrent, per_node: 2, per_workload: 2, per_budget: 1 }
    }

    pub fn nodes(self) -> Vec<String> {
        (0..self.nodes).map(|i| format!("node-{i:03}")).collect()
    }

    /// Every other node.
    pub fn leaving(self) -> BTreeSet<String> {
        self.nodes().into_iter().step_by(2).collect()
    }

    fn bare(self) -> usize {
        self.pods / BARE + (self.pods - self.pods / BARE) % REPLICAS
    }

    fn deployments(self) -> usize {
        (self.pods - self.bare()) / REPLICAS
    }
}

/// A pod before anything moves.
#[derive(Debug, Clone, Default)]
pub struct Member {
    /// UID of its ReplicaSet; empty for a bare pod.
    pub workload: String,
    /// Name of its budget, with the namespace.
    pub budget: Option<String>,
}

/// Makes the nodes, and waits until each is Ready.
pub async fn make_nodes(client: &Client, size: Size) {
    let node = |name: String| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
    create::<Node>(&Api::all(client.clone()), size.nodes().into_iter().map(node)).await;
    let nodes: Api<Node> = Api::all(client.clone());
    eventually("every node is Ready", async || {
        let listed = nodes.list(&ListParams::default()).await.unwrap();
        listed.iter().filter(|node| is_ready(node)).count() == size.nodes
    })
    .await;
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let tainted = node.spec.as_ref().is_some_and(|spec| spec.taints.as_ref().is_some_and(|taints| !taints.is_empty()));
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True") && !tainted
}

/// Makes policy, workloads and budgets, and waits until every pod runs and every budget allows a disruption.
pub async fn make_workloads(client: &Client, size: Size) {
    let limits = size.limits();
    let policy = json!({"apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": "scale"}, "spec": {"evacuation": {
        "triggers": ["Cordon"], "concurrent": limits.concurrent, "concurrentPerNode": limits.per_node, "concurrentPerWorkload": limits.per_workload
    }}});
    create::<MigrationPolicy>(&Api::all(client.clone()), [policy]).await;
    let namespaces = (0..NAMESPACES).map(|i| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(i)}}));
    create::<Namespace>(&Api::all(client.clone()), namespaces).await;
    for i in 0..NAMESPACES {
        let of_this = |count: usize| (0..count).filter(move |n| n % NAMESPACES == i);
        let (namespace, client) = (namespace(i), client.clone());
        let budgeted = of_this(size.deployments()).filter(|n| n % BUDGETED == 0);
        create::<PodDisruptionBudget>(&Api::namespaced(client.clone(), &namespace), budgeted.map(budget)).await;
        create::<Deployment>(&Api::namespaced(client.clone(), &namespace), of_this(size.deployments()).map(deployment)).await;
        // A pod needs its namespace's service account.
        eventually("the namespaces' service accounts", async || {
            let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), &namespace);
            accounts.get("default").await.is_ok()
        })
        .await;
        create::<Pod>(&Api::namespaced(client.clone(), &namespace), of_this(size.bare()).map(bare)).await;
    }
    eventually("every pod runs", async || all_run(&list(client).await, size)).await;
    let budgets: Api<PodDisruptionBudget> = Api::all(client.clone());
    eventually("every budget allows a disruption", async || {
        let listed = budgets.list(&ListParams::default()).await.unwrap().items;
        listed.iter().all(|budget| budget.status.as_ref().and_then(|status| status.disruptions_allowed) == Some(1))
    })
    .await;
}

/// Whether all pods run, as many as there should be.
pub fn all_run(pods: &[Pod], size: Size) -> bool {
    pods.len() == size.pods && pods.iter().all(can_leave)
}

/// The pods of the workloads.
pub async fn list(client: &Client) -> Vec<Pod> {
    Api::<Pod>::all(client.clone()).list(&ListParams::default().labels("scale=true")).await.unwrap().items
}

/// UID → what is known of each pod.
pub fn members(pods: &[Pod]) -> BTreeMap<String, Member> {
    let member =
        |pod: &Pod| Member { workload: owner::controller(&pod.metadata).map(|owner| owner.uid.clone()).unwrap_or_default(), budget: budget_of(pod) };
    pods.iter().map(|pod| (pod.uid().unwrap(), member(pod))).collect()
}

/// Cordons these nodes all at once.
pub async fn cordon(client: &Client, nodes: &BTreeSet<String>) {
    let (api, params) = (Api::<Node>::all(client.clone()), PatchParams::default());
    let patch = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    futures::future::try_join_all(nodes.iter().map(|node| api.patch(node, &params, &patch))).await.unwrap();
}

async fn create<K>(api: &Api<K>, objects: impl IntoIterator<Item = Value>)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let params = PostParams::default();
    let creates = objects.into_iter().map(|object| {
        let (object, params): (K, _) = (serde_json::from_value(object).unwrap(), &params);
        async move { api.create(params, &object).await.map(drop) }
    });
    stream::iter(creates.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).try_collect::<()>().await.unwrap();
}

fn namespace(i: usize) -> String {
    format!("team-{i}")
}

fn name(n: usize) -> String {
    format!("app-{n:03}")
}

fn labels(n: usize) -> Value {
    let mut labels = json!({"app": name(n), "scale": "true"});
    if n.is_multiple_of(BUDGETED) {
        labels["budget"] = name(n).into();
    }
    labels
}

fn pod_spec() -> Value {
    json!({"containers": [{"name": "main", "image": "docker.io/library/main:1", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]})
}

fn deployment(n: usize) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name(n)}, "spec": {
        "replicas": REPLICAS, "selector": {"matchLabels": {"app": name(n)}},
        "template": {"metadata": {"labels": labels(n)}, "spec": pod_spec()}
    }})
}

fn budget(n: usize) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name(n)}, "spec": {
        "maxUnavailable": 1, "selector": {"matchLabels": {"app": name(n)}}
    }})
}

fn bare(n: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("bare-{n:03}"), "labels": {"scale": "true"}}, "spec": pod_spec()})
}
