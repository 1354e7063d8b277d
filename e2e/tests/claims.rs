//! Persistent volumes: one that a single node may use goes along with a pod that keeps its name, one that many may use with any pod.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use drover::api::{MigrationSpec, Outcome};

use crate::support::{
    Namespace,
    counter::assert_went_on,
    lab,
    migrations::{assert_outcome, replacement, status, to},
    pods::{REDIS, counting, pod},
    with_namespace,
};

/// A volume that both nodes of the lab see at one path, as a network file system would be, bound to the claim `data`; usable on these nodes.
struct Volume(String);

impl Volume {
    async fn bound(namespace: &Namespace, mode: &str, nodes: &[&str]) -> Self {
        let name = namespace.name.clone();
        let path = format!("/lab/shared/{name}");
        lab::on_node("n1", &format!("mkdir -p {path}"));
        let size = json!({"storage": "64Mi"});
        let on = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": nodes});
        let volume: Value = json!({"metadata": {"name": name}, "spec": {
            "capacity": size, "accessModes": [mode], "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain", "local": {"path": path},
            "claimRef": {"namespace": namespace.name, "name": "data"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on]}]}}}});
        let claim: Value = json!({"metadata": {"name": "data"}, "spec": {
            "accessModes": [mode], "storageClassName": "", "volumeName": name, "resources": {"requests": size}}});
        let volumes: Api<PersistentVolume> = Api::all(namespace.client.clone());
        volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(namespace.client.clone(), &namespace.name);
        claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
        Self(name)
    }

    async fn remove(self, namespace: &Namespace) {
        let volumes: Api<PersistentVolume> = Api::all(namespace.client.clone());
        volumes.delete(&self.0, &DeleteParams::default()).await.unwrap();
        lab::on_node("n1", &format!("rm -r /lab/shared/{}", self.0));
    }
}

/// Redis with its append-only file in the volume, and a counter.
fn database() -> Pod {
    let redis = json!({
        "name": "redis", "image": REDIS,
        "command": ["redis-server", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", "/data"],
        "readinessProbe": {"exec": {"command": ["redis-cli", "ping"]}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}]
    });
    let mut pod = pod("db", "n1", &[redis, counting("c", 4, 50)]);
    pod.spec.as_mut().unwrap().volumes = serde_json::from_value(json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}])).unwrap();
    pod
}

fn redis(namespace: &Namespace, pod: &str, command: &[&str]) -> String {
    let all = [&["exec", pod, "-c", "redis", "--", "redis-cli"], command].concat();
    namespace.kubectl(&all).unwrap_or_else(|error| panic!("{command:?}: {error}")).trim().to_owned()
}

/// Memory and file go on together, and the file is the one that is open.
async fn moves(namespace: &Namespace, spec: MigrationSpec) {
    namespace.run(&database()).await;
    for number in 0..20 {
        assert_eq!(redis(namespace, "db", &["set", &format!("key:{number}"), "before"]), "OK");
    }
    let before = namespace.follow("db", "c").await;
    before.beyond(5).await;
    let migration = namespace.make(spec).await;
    let migration = namespace.until_done(&migration.name_any()).await;
    assert_outcome(&migration, Outcome::Migrated);
    eprintln!("a Redis with a persistent volume: frozen {:?} ms", status(&migration).frozen_millis);
    let name = replacement(&migration);
    let copy = namespace.follow(&name, "c").await;
    copy.beyond(before.last() + 5).await;
    assert_went_on(&before.lines(), &copy.lines(), &migration);
    assert_eq!(redis(namespace, &name, &["dbsize"]), "20");
    assert_eq!(redis(namespace, &name, &["set", "after", "the-move"]), "OK");
    let file = lab::on_node("n2", &format!("cat /lab/shared/{}/appendonlydir/*.incr.aof", namespace.name));
    assert_eq!((file.matches("before").count(), file.matches("the-move").count()), (20, 1), "each write is in the file once");
    namespace.assert_no_leftovers(&migration).await;
}

#[test]
fn a_volume_of_one_node_goes_along_with_a_pod_that_keeps_its_name() {
    with_namespace("claim-once", |namespace| async move {
        let volume = Volume::bound(&namespace, "ReadWriteOnce", &["n1", "n2"]).await;
        moves(&namespace, MigrationSpec { keep_name: true, ..to("db", "n2") }).await;
        volume.remove(&namespace).await;
    });
}

#[test]
fn a_volume_of_many_nodes_goes_along_with_any_pod() {
    with_namespace("claim-many", |namespace| async move {
        let volume = Volume::bound(&namespace, "ReadWriteMany", &["n1", "n2"]).await;
        moves(&namespace, to("db", "n2")).await;
        volume.remove(&namespace).await;
    });
}

#[test]
fn a_volume_that_cannot_be_there_is_refused_before_anything_is_touched() {
    with_namespace("claim-refused", |namespace| async move {
        let volume = Volume::bound(&namespace, "ReadWriteOnce", &["n1"]).await;
        namespace.run(&database()).await;
        let migration = namespace.make(to("db", "n2")).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Failed);
        let message = status(&migration).message;
        for part in ["spec.volumes[data].persistentVolumeClaim", "can be on one node at a time", "keepName: true", "node n2 cannot use volume"] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        volume.remove(&namespace).await;
    });
}
