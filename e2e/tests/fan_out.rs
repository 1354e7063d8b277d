//! Migrations of several pods: a child for each, one after the other.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{ResourceExt as _, api::DeleteParams};
use serde_json::json;

use drover::api::{Migration, MigrationSpec, Outcome, migration::Child};

use crate::{
    owners::{assert_has_moved, made},
    support::{
        Namespace, eventually,
        migrations::{assert_outcome, status, to},
        pods::{counting, pod},
        with_namespace,
    },
};

/// A Migration of what `ask` says to n2, instead of one pod.
fn several(ask: &serde_json::Value) -> MigrationSpec {
    let mut spec = serde_json::to_value(to("", "n2")).unwrap();
    spec["podName"].take();
    spec.as_object_mut().unwrap().extend(ask.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

async fn child(namespace: &Namespace, child: &Child) -> Migration {
    namespace.migrations().get(&child.migration).await.unwrap()
}

#[test]
fn every_pod_of_a_deployment_moves_one_after_the_other() {
    with_namespace("fan-out", |namespace| async move {
        let pods = made::<Deployment>(&namespace, "Deployment", 2).await;
        let mut followed = vec![];
        for pod in &pods {
            assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("n1"), "both start on n1");
            followed.push((pod.name_any(), namespace.counts(pod).await));
        }
        let parent = namespace.make(several(&json!({"deployment": "web"}))).await;
        let parent = namespace.until_done(&parent.name_any()).await;
        assert_outcome(&parent, Outcome::Migrated);
        let children = status(&parent).children;
        assert_eq!(children.len(), 2);
        let mut ended = None;
        for planned in &children {
            let migration = child(&namespace, planned).await;
            let (_, before) = followed.iter().find(|(name, _)| *name == planned.pod).unwrap();
            assert_has_moved(&namespace, before, &migration, "ReplicaSet").await;
            let phases = status(&migration).phases;
            assert!(ended <= Some(phases[0].started_at.0), "they do not overlap");
            ended = phases.last().map(|done| done.started_at.0);
        }
        namespace.until_ready(2).await;
        eprintln!("{}: {:?}", status(&parent).message, children);

        // The children are the parent's.
        namespace.migrations().delete(&parent.name_any(), &DeleteParams::default()).await.unwrap();
        eventually(std::time::Duration::from_secs(30), || {
            let left = namespace.kubectl(&["get", "migrations", "-o", "name"]).unwrap();
            (!left.trim().is_empty()).then(|| format!("no Migration is left; there are {left}"))
        });
    });
}

#[test]
fn a_pod_that_cannot_be_moved_stops_those_after_it_and_is_named() {
    with_namespace("fan-out-stops", |namespace| async move {
        for name in ["a", "b", "c"] {
            let mut container = counting("c", 4, 50);
            container["tty"] = json!(name == "b");
            let mut one = pod(name, "n1", &[container]);
            one.metadata.labels = Some([("app".to_owned(), "several".to_owned())].into());
            namespace.run(&one).await;
        }
        let parent = namespace.make(several(&json!({"selector": {"matchLabels": {"app": "several"}}}))).await;
        let parent = namespace.until_done(&parent.name_any()).await;
        assert_outcome(&parent, Outcome::Partial);
        let status = status(&parent);
        for words in ["1 of 3 pods are moved", "spec.containers[c].tty", "1 not begun"] {
            assert!(status.message.contains(words), "{words:?} is not in {:?}", status.message);
        }
        let outcomes: Vec<_> = status.children.iter().map(|child| (child.pod.as_str(), child.outcome)).collect();
        assert_eq!(outcomes, [("a", Some(Outcome::Migrated)), ("b", Some(Outcome::Failed)), ("c", None)]);
        for (pod, there) in [("a", false), ("b", true), ("c", true)] {
            assert_eq!(namespace.pods().get_opt(pod).await.unwrap().is_some(), there, "pod {pod}");
        }
        namespace.assert_no_leftovers(&child(&namespace, &status.children[0]).await).await;
    });
}
