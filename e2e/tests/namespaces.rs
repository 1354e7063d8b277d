//! Pods that move into another namespace.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Namespace as KubeNamespace, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::wait::{await_condition, conditions::is_deleted},
};
use serde_json::json;

use drover::{
    api::{GrantedOrigin, MigrationGrant, MigrationGrantSpec, MigrationSpec, Outcome, Phase, migration::Destination},
    domain::keys,
};

use crate::support::{
    Namespace,
    counter::{assert_contiguous, assert_went_on},
    lab,
    migrations::{assert_outcome, replacement, status, to},
    pods::{counter, counting, pod},
    with_namespace,
};

impl Namespace {
    /// Lets the pods of another namespace in.
    async fn let_in(&self, namespace: &str) {
        let spec = MigrationGrantSpec { from: vec![GrantedOrigin { namespace: namespace.to_owned(), pod_selector: None }] };
        let grants: Api<MigrationGrant> = Api::namespaced(self.client.clone(), &self.name);
        grants.create(&PostParams::default(), &MigrationGrant::new("in", spec)).await.unwrap();
    }
}

fn into(other: &Namespace, spec: MigrationSpec) -> MigrationSpec {
    MigrationSpec { destination_namespace: Some(other.name.clone()), ..spec }
}

/// The scheduler chooses the node, so that the extender has to find the Migration of a pod of another namespace too.
#[test]
fn a_pod_moves_into_a_namespace_that_lets_it_in() {
    with_namespace("leaves", |namespace| async move {
        let other = namespace.beside("enters").await;
        namespace.run(&counter("c", "n1", 1, 50)).await;
        let before = namespace.follow("c", "c").await;
        before.beyond(5).await;
        let refused = namespace.make(into(&other, to("c", "n2"))).await;
        let refused = namespace.until_done(&refused.name_any()).await;
        assert_outcome(&refused, Outcome::Failed);
        let wanted = format!("no MigrationGrant in namespace {} lets this pod of namespace {} in", other.name, namespace.name);
        assert!(status(&refused).message.contains(&wanted), "{}", status(&refused).message);

        other.let_in(&namespace.name).await;
        let migration = namespace.make(into(&other, MigrationSpec { destination: Destination::default(), ..to("c", "n2") })).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        let copy = replacement(&migration);
        let after = other.follow(&copy, "c").await;
        after.beyond(before.last() + 5).await;
        assert_went_on(&before.lines(), &after.lines(), &migration);
        assert!(namespace.pods().list(&ListParams::default()).await.unwrap().items.is_empty(), "nothing is left here");
        namespace.assert_no_leftovers(&migration).await;

        // Its next move is an ordinary one of its new namespace.
        let back = other.ask(&copy, keys::MIGRATE_TO, "n1").await;
        let back = other.until_done(&back.name_any()).await;
        assert_outcome(&back, Outcome::Migrated);
        let again = other.pods().get(&replacement(&back)).await.unwrap();
        assert_eq!(again.annotations().get(keys::REPLACES_IN), None);
    });
}

#[test]
fn several_pods_move_into_another_namespace() {
    with_namespace("several", |namespace| async move {
        let other = namespace.beside("all").await;
        other.let_in(&namespace.name).await;
        let labels = [("app".to_owned(), "several".to_owned())];
        for name in ["a", "b"] {
            let mut one = counter(name, "n1", 1, 50);
            one.metadata.labels = Some(labels.clone().into());
            namespace.run(&one).await;
        }
        let selector = Some(LabelSelector { match_labels: Some(labels.into()), ..LabelSelector::default() });
        let parent = namespace.make(into(&other, MigrationSpec { pod_name: None, selector, ..to("", "n2") })).await;
        let parent = namespace.until_done(&parent.name_any()).await;
        assert_outcome(&parent, Outcome::Migrated);
        assert_eq!(other.pods().list(&ListParams::default()).await.unwrap().items.len(), 2);
        assert!(namespace.pods().list(&ListParams::default()).await.unwrap().items.is_empty(), "nothing is left here");
    });
}

/// The waiting pod lacks a Secret in its new namespace: it never has a sandbox, nothing is frozen, and whoever calls the move off finds all as it was.
#[test]
fn what_the_other_namespace_lacks_is_found_out_before_the_freeze() {
    with_namespace("stays", |namespace| async move {
        let other = namespace.beside("lacks").await;
        other.let_in(&namespace.name).await;
        namespace.kubectl(&["create", "secret", "generic", "s", "--from-literal=k=v"]).unwrap();
        let mut container = counting("c", 1, 50);
        container["volumeMounts"] = json!([{"name": "s", "mountPath": "/s"}]);
        let mut source = pod("c", "n1", &[container]);
        source.spec.as_mut().unwrap().volumes = serde_json::from_value(json!([{"name": "s", "secret": {"secretName": "s"}}])).unwrap();
        namespace.run(&source).await;
        let migration = namespace.make(into(&other, to("c", "n2"))).await;
        let (name, uid) = (migration.name_any(), migration.uid().unwrap());
        let waiting =
            namespace.first("waits for the sandbox", |migration| migration.name_any() == name && status(migration).message.contains("sandbox")).await;
        namespace.migrations().delete(&name, &DeleteParams::default()).await.unwrap();
        let gone = await_condition(namespace.migrations(), &name, is_deleted(&uid));
        tokio::time::timeout(Duration::from_mins(1), gone).await.expect("the Migration goes").unwrap();
        assert!(status(&waiting).phases.iter().all(|timing| timing.phase != Phase::Freezing));
        assert_eq!(namespace.pods().get("c").await.unwrap().annotations().get(keys::LOCK), None);
        assert!(other.pods().list(&ListParams::default()).await.unwrap().items.is_empty(), "nothing is left there");
        namespace.assert_no_leftovers(&waiting).await;
    });
}

/// Its attestations go first, so that nobody could ever say any more what has become of the copy; it stays as it is, and the namespace does not wait for it.
#[test]
fn a_namespace_that_is_deleted_after_the_release_does_not_wait_for_the_copy() {
    with_namespace("ends", |namespace| async move {
        let other = namespace.beside("outlives").await;
        other.let_in(&namespace.name).await;
        // The copy must outlive it here.
        let api: Api<KubeNamespace> = Api::all(namespace.client.clone());
        let orphan = Patch::Merge(json!({"metadata": {"ownerReferences": null}}));
        api.patch_metadata(&other.name, &PatchParams::default(), &orphan).await.unwrap();
        let _removed = lab::Restore(|| drop(lab::try_lab(&["kubectl", "delete", "namespace", &other.name, "--wait=false"])));
        namespace.run(&counter("c", "n1", 64, 50)).await;
        let migration = namespace.make(into(&other, to("c", "n2"))).await;
        let released = namespace.until_phase(&migration.name_any(), Phase::Restoring).await;
        let uid = api.get(&namespace.name).await.unwrap().uid().unwrap();
        api.delete(&namespace.name, &DeleteParams::default()).await.unwrap();
        let gone = await_condition(api, &namespace.name, is_deleted(&uid));
        tokio::time::timeout(Duration::from_mins(2), gone).await.expect("the namespace goes").unwrap();
        let copy = other.follow(&replacement(&released), "c").await;
        copy.beyond(5).await;
        copy.more(5).await;
        assert_contiguous(&copy.lines());
    });
}

#[test]
fn only_who_could_read_the_memory_moves_it_out_of_its_namespace() {
    with_namespace("whose", |namespace| async move {
        let other = namespace.beside("theirs").await;
        namespace.run(&counter("c", "n1", 1, 50)).await;
        let user = format!("--as=system:serviceaccount:{}:default", namespace.name);
        let allow = |namespace: &Namespace, role: &str, verb: &str, what: &str| {
            let account = format!("--serviceaccount={}:default", user.split(':').nth(2).unwrap());
            namespace.kubectl(&["create", "role", role, &format!("--verb={verb}"), &format!("--resource={what}")]).unwrap();
            namespace.kubectl(&["create", "rolebinding", role, &format!("--role={role}"), &account]).unwrap();
        };
        let file = format!("/tmp/{}.json", namespace.name);
        let made = json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "m", "namespace": namespace.name},
            "spec": {"podName": "c", "destinationNamespace": other.name, "checkOnly": true}
        });
        std::fs::write(&file, made.to_string()).unwrap();
        let attempt = || namespace.kubectl(&["create", "-f", &file, &user]);
        allow(&namespace, "migrations", "create", "migrations.drover.dev");
        let refused = attempt().unwrap_err();
        assert!(refused.contains(&format!("may not create pods in namespace {}", other.name)), "{refused}");
        allow(&other, "pods", "create", "pods");
        let refused = attempt().unwrap_err();
        assert!(refused.contains(&format!("may not create pods/exec in namespace {}", namespace.name)), "{refused}");
        allow(&namespace, "exec", "create", "pods/exec");
        // What a role allows is known a moment later.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while let Err(refused) = attempt() {
            assert!(std::time::Instant::now() < end, "{refused}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        std::fs::remove_file(&file).unwrap();
        let migration = namespace.until_done("m").await;
        assert!(status(&migration).message.contains("no MigrationGrant"), "{}", status(&migration).message);
    });
}
