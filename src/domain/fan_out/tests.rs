//! A parent's course, look by look.

use serde_json::json;

use super::*;
use crate::testing::second;

fn parent(spec: &serde_json::Value) -> Migration {
    let mut value = json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "m", "namespace": "d", "uid": "parent-uid"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "destination": {"nodeName": "n2"}, "ttlSecondsAfterFinished": 60}
    });
    json_patch::merge(&mut value["spec"], spec);
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str, node: &str, phase: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "d", "uid": format!("uid-{name}")}, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}
    }))
    .unwrap()
}

/// A parent and the cluster around it.
struct Scene {
    parent: Migration,
    seen: Seen,
}

impl Scene {
    fn new(spec: &serde_json::Value) -> Self {
        let pods = vec![pod("b", "n1", "Running"), pod("a", "n1", "Running"), pod("there", "n2", "Running"), pod("over", "n1", "Succeeded")];
        Self { parent: parent(spec), seen: Seen { pods: Some(pods), children: BTreeMap::new() } }
    }

    /// Looks until it waits; makes what it says.
    fn look(&mut self) {
        for _ in 0..10 {
            match advance(&self.parent, &self.seen, second(100)) {
                Step::Wait => return,
                Step::Write(status) => self.parent.status = Some(*status),
                Step::Make(child) => {
                    assert!(self.seen.children.insert(child.name_any(), *child).is_none(), "it is made once");
                }
            }
            if self.parent.is_done() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn ends(&mut self, pod: &str, outcome: Option<Outcome>) {
        let child = self.seen.children.values_mut().find(|child| child.spec.pod_name.as_deref() == Some(pod)).unwrap();
        let status = MigrationStatus { phase: Phase::Done, outcome, message: "because".into(), ..MigrationStatus::default() };
        child.status = Some(status);
    }

    fn begun(&self) -> Vec<&str> {
        self.seen.children.values().filter_map(|child| child.spec.pod_name.as_deref()).collect()
    }

    fn status(&self) -> &MigrationStatus {
        self.parent.status.as_ref().unwrap()
    }

    fn assert_ended(&self, outcome: Option<Outcome>, message: &str) {
        assert_eq!((self.status().phase, self.status().outcome), (Phase::Done, outcome), "{}", self.status().message);
        assert!(self.status().message.contains(message), "{}", self.status().message);
    }
}

#[test]
fn one_pod_after_the_other_is_moved() {
    let mut scene = Scene::new(&json!({}));
    scene.look();
    assert_eq!(scene.begun(), ["a"], "not those that are there, or over");
    assert_eq!((scene.status().phase, scene.status().children.len()), (Phase::Transferring, 2));
    let child = scene.seen.children.values().next().unwrap().clone();
    assert!(is_child_of(&child, &scene.parent) && child.metadata.name.unwrap().len() <= 52);
    assert_eq!((child.spec.selector, child.spec.ttl_seconds_after_finished), (None, None), "it goes with its parent");
    assert_eq!(child.spec.destination, scene.parent.spec.destination);
    assert_eq!(child.metadata.annotations.unwrap()[keys::POD_UID], "uid-a", "another pod of this name is another");

    scene.ends("a", Some(Outcome::Migrated));
    scene.look();
    assert_eq!(scene.begun().len(), 2);
    assert!(scene.status().message.starts_with("1 of 2 pods are moved"), "{}", scene.status().message);
    scene.ends("b", Some(Outcome::Migrated));
    scene.look();
    scene.assert_ended(Some(Outcome::Migrated), "2 of 2 pods are moved");
}

#[test]
fn what_stops_one_pod_stops_those_after_it() {
    let mut scene = Scene::new(&json!({}));
    scene.look();
    scene.ends("a", Some(Outcome::RolledBack));
    scene.look();
    assert_eq!(scene.begun(), ["a"]);
    scene.assert_ended(Some(Outcome::RolledBack), "RolledBack: because; 1 not begun");

    let mut scene = Scene::new(&json!({}));
    scene.look();
    scene.ends("a", Some(Outcome::Migrated));
    scene.look();
    scene.ends("b", Some(Outcome::Failed));
    scene.look();
    scene.assert_ended(Some(Outcome::Partial), "1 of 2 pods are moved; b (");
}

#[test]
fn a_check_looks_at_every_pod() {
    let mut scene = Scene::new(&json!({"checkOnly": true}));
    scene.look();
    scene.ends("a", Some(Outcome::Failed));
    scene.look();
    assert_eq!(scene.begun().len(), 2);
    scene.ends("b", None);
    scene.look();
    scene.assert_ended(Some(Outcome::Failed), "because");

    let mut scene = Scene::new(&json!({"checkOnly": true}));
    scene.look();
    scene.ends("a", None);
    scene.look();
    scene.ends("b", None);
    scene.look();
    scene.assert_ended(None, "");
}

#[test]
fn a_pod_or_a_child_that_goes_away_is_not_moved() {
    let mut scene = Scene::new(&json!({}));
    scene.look();
    scene.ends("a", Some(Outcome::Migrated));
    scene.seen.pods.as_mut().unwrap().retain(|pod| pod.name_any() != "b");
    // A later pod of this name is another one.
    scene.seen.pods.as_mut().unwrap().push(Pod {
        metadata: kube::core::ObjectMeta { uid: Some("later".into()), ..pod("b", "n1", "Running").metadata },
        ..pod("b", "n1", "Running")
    });
    scene.look();
    assert_eq!(scene.begun(), ["a"]);
    scene.assert_ended(Some(Outcome::Partial), "the pod has ended before its turn");

    let mut scene = Scene::new(&json!({}));
    scene.look();
    scene.look();
    assert_eq!(scene.status().children[0].phase, Some(Phase::Pending));
    scene.seen.children.clear();
    scene.look();
    scene.assert_ended(Some(Outcome::Failed), "its Migration was deleted");
}

#[test]
fn a_child_that_is_refused_ends_it() {
    let mut scene = Scene::new(&json!({}));
    let Step::Write(planned) = advance(&scene.parent, &scene.seen, second(1)) else { panic!("it plans first") };
    scene.parent.status = Some(*planned);
    let Step::Make(child) = advance(&scene.parent, &scene.seen, second(1)) else { panic!("then it begins") };
    let Step::Write(status) = child_refused(&scene.parent, &child, "exceeded quota", second(2)) else { panic!("it is told") };
    scene.parent.status = Some(*status);
    scene.assert_ended(Some(Outcome::Failed), "exceeded quota; 1 not begun");
}

#[test]
fn a_parent_without_pods_is_refused() {
    let refused = |spec: &serde_json::Value, pods: Option<Vec<Pod>>, message: &str| {
        let mut scene = Scene::new(spec);
        scene.seen.pods = pods;
        scene.look();
        scene.assert_ended(Some(Outcome::Failed), message);
    };
    let deployment = json!({"selector": null, "deployment": "web"});
    refused(&deployment, None, "spec.deployment: there is no Deployment \"web\"");
    refused(&deployment, Some(vec![]), "spec.deployment: no running pod of it");
    refused(&json!({}), Some(vec![pod("there", "n2", "Running")]), "spec.selector: no running pod of it is on another node");
    refused(&json!({"containers": ["main"]}), Some(vec![]), "spec.containers");
}

#[test]
fn a_parent_that_is_deleted_makes_no_more_children() {
    let mut scene = Scene::new(&json!({}));
    scene.parent.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(second(1)));
    scene.look();
    assert_eq!(scene.begun(), [] as [&str; 0]);
}
