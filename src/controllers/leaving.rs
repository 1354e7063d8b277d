//! What the controllers share that have pods leave nodes: they look again and again, read the same things, and make Migrations.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Pod};
use kube::{
    Api, Client, Resource as _, ResourceExt,
    api::{ListParams, PostParams},
    runtime::events::{Event, EventType, Recorder},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    api::{Migration, MigrationPolicy, NodeProfile},
    domain::{evacuation::Seen, keys, post_copy, preflight::NodeView},
};

/// Reason of the Event of a move that is no post-copy though a policy asks for one.
pub(super) const NO_POST_COPY: &str = "PostCopyNotPossible";

/// So many nodes' pods are asked for at once: one after the other, 50 nodes at an API server that is slow take longer than a look may.
const AT_ONCE: usize = 8;
/// A look's limit.
const LIMIT: Duration = Duration::from_secs(30);

/// A controller that looks again and again.
pub(super) trait Looks: Send {
    /// How often.
    const EVERY: Duration;
    /// What it looks at, in the words of a log.
    const AT: &'static str;
    /// One look.
    fn look(&mut self) -> impl Future<Output = Result<(), kube::Error>> + Send;
}

/// Looks until the token is cancelled; what a look meets is logged, and the next one tries again.
pub(super) async fn keep_looking<L: Looks>(mut controller: L, token: CancellationToken) {
    let mut looks = tokio::time::interval(L::EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while token.run_until_cancelled(looks.tick()).await.is_some() {
        match tokio::time::timeout(LIMIT, controller.look()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "{} could not be looked at", L::AT),
            Err(_) => warn!("the API server did not answer within {} s", LIMIT.as_secs()),
        }
    }
}

/// Every policy.
pub(super) async fn policies(client: &Client) -> Result<Vec<MigrationPolicy>, kube::Error> {
    Ok(Api::<MigrationPolicy>::all(client.clone()).list(&ListParams::default()).await?.items)
}

/// The pods of these nodes.
pub(super) async fn pods_on(client: &Client, nodes: &BTreeSet<String>) -> Result<Vec<Pod>, kube::Error> {
    let lists: Vec<_> = nodes.iter().map(|node| pods_of(client.clone(), format!("spec.nodeName={node}"))).collect();
    let found: Vec<_> = futures::stream::iter(lists).buffered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

async fn pods_of(client: Client, fields: String) -> Result<Vec<Pod>, kube::Error> {
    Ok(Api::<Pod>::all(client).list(&ListParams::default().fields(&fields)).await?.items)
}

/// These pods, each once and without those of Drover's own namespace, which do the work; with what it takes to judge them.
pub(super) async fn seen(client: &Client, own_namespace: &str, mut pods: Vec<Pod>, policies: Vec<MigrationPolicy>) -> Result<Seen, kube::Error> {
    let mut uids = BTreeSet::new();
    pods.retain(|pod| pod.namespace().as_deref() != Some(own_namespace) && uids.insert(pod.uid()));
    let mut namespaces = BTreeMap::new();
    for namespace in pods.iter().filter_map(ResourceExt::namespace).collect::<BTreeSet<_>>() {
        let labels = labels_of(client, &namespace).await?;
        namespaces.insert(namespace, labels);
    }
    let migrations = Api::<Migration>::all(client.clone()).list(&ListParams::default()).await?.items;
    let nodes = if post_copy::is_asked_for(&policies) { node_views(client).await? } else { vec![] };
    Ok(Seen { pods, migrations, policies, namespaces, nodes, ..Seen::default() })
}

/// The labels of a namespace.
pub(super) async fn labels_of(client: &Client, namespace: &str) -> Result<BTreeMap<String, String>, kube::Error> {
    let found = Api::<Namespace>::all(client.clone()).get_metadata_opt(namespace).await?;
    Ok(found.and_then(|found| found.metadata.labels).unwrap_or_default())
}

/// Every node, and with it what its agent says of it.
pub(super) async fn nodes(client: &Client) -> Result<Vec<(Node, NodeView)>, kube::Error> {
    let every = ListParams::default();
    let profiles = Api::<NodeProfile>::all(client.clone()).list(&every).await?;
    let nodes = Api::<Node>::all(client.clone()).list(&every).await?;
    let profiles: HashMap<String, &NodeProfile> = profiles.iter().map(|profile| (profile.name_any(), profile)).collect();
    let with_view = |node: Node| {
        let view = NodeView::new(&node, profiles.get(&node.name_any()).copied());
        (node, view)
    };
    Ok(nodes.items.into_iter().map(with_view).collect())
}

/// The same without the nodes themselves.
pub(super) async fn node_views(client: &Client) -> Result<Vec<NodeView>, kube::Error> {
    Ok(nodes(client).await?.into_iter().map(|(_, view)| view).collect())
}

/// Says on a node that a pod leaves it without the post-copy that its policy asks for, where that is so.
pub(super) async fn tell_fallen_back(recorder: &Recorder, node: &str, migration: &Migration) {
    let Some(told) = post_copy::fallen_back(migration) else { return };
    let event = Event {
        type_: EventType::Normal,
        reason: NO_POST_COPY.to_owned(),
        note: Some(told),
        action: "Migrate".to_owned(),
        secondary: Some(migration.object_ref(&())),
    };
    tell_node(recorder, node, event).await;
}

/// Makes a Migration; whether it was made now. It may be there already, or be refused, which is logged.
pub(super) async fn make(client: &Client, migration: &Migration) -> Result<bool, kube::Error> {
    let (name, namespace) = (migration.name_any(), migration.namespace().unwrap_or_default());
    let api: Api<Migration> = Api::namespaced(client.clone(), &namespace);
    let params = PostParams { field_manager: Some(keys::MANAGER.to_owned()), ..PostParams::default() };
    match api.create(&params, migration).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
        // Not our webhook's word, which lets an evacuation be made that cannot succeed, so that its reasons stand somewhere.
        Err(kube::Error::Api(status)) if status.is_forbidden() || status.is_invalid() => {
            warn!(migration = name, namespace, "an evacuation was refused: {}", status.message);
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Writes an Event of a node; the note is cut to what an Event may have.
pub(super) async fn tell_node(recorder: &Recorder, node: &str, mut event: Event) {
    event.note = event.note.map(|note| note.chars().take(keys::LONGEST_NOTE).collect());
    // Events of a node are found by its name as their UID (kubelet and kubectl describe node).
    let about = ObjectReference { kind: Some("Node".into()), name: Some(node.to_owned()), uid: Some(node.to_owned()), ..ObjectReference::default() };
    if let Err(error) = recorder.publish(&event, &about).await {
        warn!(%error, node, "the Event was not written");
    }
}
