//! Half of a cluster empties itself: the manager as built, the API server, controller manager and scheduler as released, nodes by kwok, and agents that say
//! what real ones say and do nothing (issue 7).
//!
//! `cargo test --features e2e --test scale` for the small one, `-- slow::` for 100 nodes and 2,000 pods; `DROVER_SCALE_NODES` and
//! `DROVER_SCALE_PODS` for other sizes. It needs what `e2e/lab build` has built, and nothing of a running lab.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod agents;
mod cluster;
mod load;
mod pki;
mod process;
mod report;
mod witness;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Preconditions},
    runtime::{WatchStreamExt as _, watcher},
};

use agents::Agents;
use cluster::Cluster;
use drover::{api::Migration, domain::keys};
use load::Size;
use report::Usage;
use witness::Witness;

/// The least that a run may take, and what each pod may add to it.
const LIMIT: (Duration, Duration) = (Duration::from_mins(3), Duration::from_secs(6));

/// So many times more must move than be refused.
const REFUSED: usize = 10;

#[test]
fn half_of_a_small_cluster_empties_itself() {
    empty_half(Size::or(10, 60));
}

mod slow {
    use super::{Size, empty_half};

    #[test]
    fn half_of_a_large_cluster_empties_itself() {
        empty_half(Size::or(100, 2000));
    }
}

fn empty_half(size: Size) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster::start().await;
        load::make_nodes(&cluster.client, size).await;
        cluster.start_manager().await;
        let agents = Agents::start(&cluster.admin, &size.nodes()).await;
        load::make_workloads(&cluster.client, size).await;
        evacuate(&mut cluster, &agents, size).await;
    });
}

async fn evacuate(cluster: &mut Cluster, agents: &Agents, size: Size) {
    let (before, nodes) = (load::list(&cluster.client).await, size.leaving());
    let is_leaving = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some_and(|node| nodes.contains(node));
    let leaving: BTreeSet<_> = before.iter().filter(is_leaving).map(|pod| pod.uid().unwrap()).collect();
    assert!(leaving.len() > size.pods / 4, "the scheduler has put {} pods on the nodes that are emptied", leaving.len());
    let witness = Arc::new(Mutex::new(Witness::new(size.limits(), load::members(&before))));
    watch(&cluster.client, &witness).await;
    let used = Usage::of(cluster.manager(), &cluster.audit_log());
    let begun = Instant::now();
    load::cordon(&cluster.client, &nodes).await;
    let mut tried_again = BTreeSet::new();
    let limit = LIMIT.0 + LIMIT.1 * u32::try_from(leaving.len()).unwrap();
    while witness.lock().unwrap().ended.len() < leaving.len() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.assert_runs();
        assert_eq!(agents.surprises(), [] as [String; 0]);
        let (ended, faults, refused) = {
            let seen = witness.lock().unwrap();
            (seen.ended.len(), seen.faults.join("\n"), seen.refused.difference(&tried_again).cloned().collect::<Vec<_>>())
        };
        for (namespace, name, uid, why) in refused {
            eprintln!("{namespace}/{name} was refused, and is tried again at once: {why}");
            let api: Api<Migration> = Api::namespaced(cluster.client.clone(), &namespace);
            api.delete(&name, &DeleteParams::default().preconditions(Preconditions { uid: Some(uid.clone()), resource_version: None }))
                .await
                .unwrap();
            tried_again.insert((namespace, name, uid, why));
        }
        assert!(tried_again.len() <= leaving.len() / REFUSED, "{} migrations were refused", tried_again.len());
        assert_eq!(faults, "");
        assert!(begun.elapsed() < limit, "{ended} of {} pods have left after {} s", leaving.len(), limit.as_secs());
    }
    let wall = begun.elapsed();
    let after = Usage::of(cluster.manager(), &cluster.audit_log());
    assert_nothing_is_lost(&cluster.client, size, &before, &leaving).await;
    let seen = witness.lock().unwrap();
    seen.assert_all_moved(&leaving);
    let title = format!("{} pods on {} nodes, of which {} were cordoned", size.pods, size.nodes, nodes.len());
    after.print(&used, &title, leaving.len(), wall);
    let [all, node, workload, budget] = seen.most;
    let limits = size.limits();
    eprintln!("refused before anything was touched, and tried again: {}", tried_again.len());
    eprintln!(
        "at most at once: {all} in the cluster (limit {}), {node} of a node ({}), {workload} of a workload ({}), {budget} frozen of a budget ({})\n",
        limits.concurrent, limits.per_node, limits.per_workload, limits.per_budget
    );
    // A limit that was never met would have been tested by nothing.
    assert_eq!([all, node, budget], [limits.concurrent, limits.per_node, limits.per_budget]);
}

/// As many pods as before run, none of them on a cordoned node; those that have moved are the copies of those that were there.
async fn assert_nothing_is_lost(client: &Client, size: Size, before: &[Pod], leaving: &BTreeSet<String>) {
    cluster::eventually("as many pods run as before", async || load::all_run(&load::list(client).await, size)).await;
    let (after, nodes) = (load::list(client).await, size.leaving());
    let kept = before.iter().map(|pod| pod.uid().unwrap()).filter(|uid| !leaving.contains(uid)).collect::<BTreeSet<_>>();
    let (stayed, moved): (Vec<_>, Vec<_>) = after.iter().partition(|pod| kept.contains(&pod.uid().unwrap()));
    assert_eq!((stayed.len(), moved.len()), (kept.len(), leaving.len()));
    for pod in &after {
        assert!(!nodes.contains(pod.spec.as_ref().unwrap().node_name.as_ref().unwrap()), "{} is on a cordoned node", pod.name_any());
    }
    assert!(moved.iter().all(|pod| pod.annotations().contains_key(keys::CLAIM)), "a pod was made anew");
    // Of each workload as many as before: the ReplicaSets have adopted the copies, and let nothing be made in their place.
    let count = |pods: &[Pod]| {
        let mut counts = std::collections::BTreeMap::<_, usize>::new();
        for member in load::members(pods).into_values() {
            *counts.entry(member.workload).or_default() += 1;
        }
        counts
    };
    assert_eq!(count(&after), count(before));
}

/// Has the witness see every change from here on; returns once it does.
async fn watch(client: &Client, witness: &Arc<Mutex<Witness>>) {
    let (ready, mut begun) = tokio::sync::mpsc::channel(2);
    let (seen, has_begun) = (Arc::clone(witness), ready.clone());
    follow::<Migration>(client, watcher::Config::default(), has_begun, move |change| match change {
        Change::Is(migration) => seen.lock().unwrap().sees(&migration),
        Change::Was(migration) => seen.lock().unwrap().misses(&migration),
        Change::Gap => seen.lock().unwrap().faults.push("the watch of Migrations has a gap".to_owned()),
    });
    let seen = Arc::clone(witness);
    follow::<Pod>(client, watcher::Config::default().labels("scale=true"), ready, move |change| match change {
        Change::Is(pod) => seen.lock().unwrap().sees_pod(&pod),
        Change::Was(pod) => seen.lock().unwrap().misses_pod(&pod),
        Change::Gap => seen.lock().unwrap().faults.push("the watch of pods has a gap".to_owned()),
    });
    for _ in 0..2 {
        begun.recv().await.unwrap();
    }
}

enum Change<K> {
    Is(K),
    Was(K),
    /// Changes may have been missed.
    Gap,
}

fn follow<K>(client: &Client, config: watcher::Config, begun: tokio::sync::mpsc::Sender<()>, mut sees: impl FnMut(Change<K>) + Send + 'static)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let changes = watcher(Api::<K>::all(client.clone()), config).default_backoff();
    tokio::spawn(async move {
        let (mut changes, mut has_begun) = (std::pin::pin!(changes), false);
        while let Some(change) = changes.next().await {
            match change {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => sees(Change::Is(object)),
                Ok(watcher::Event::Delete(object)) => sees(Change::Was(object)),
                Ok(watcher::Event::Init) if has_begun => sees(Change::Gap),
                Ok(watcher::Event::InitDone) => {
                    has_begun = true;
                    let _ = begun.send(()).await;
                }
                Ok(watcher::Event::Init) | Err(_) => {}
            }
        }
    });
}
