//! What others have set up in a cluster, and what a migration makes of it before it freezes anything.

use std::time::Duration;

use k8s_openapi::api::{
    admissionregistration::v1::{MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding},
    core::v1::{LimitRange, PodSpec},
};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use drover::api::{Outcome, Phase};

use crate::support::{
    Namespace,
    counter::{Follower, assert_contiguous},
    lab,
    migrations::{assert_outcome, status},
    pods::counter,
    with_namespace,
};

async fn make<K>(namespace: &Namespace, object: Value)
where
    K: kube::Resource<Scope = kube::core::ClusterResourceScope> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
    K::DynamicType: Default,
{
    Api::<K>::all(namespace.client.clone()).create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

/// The API server takes a policy or a LimitRange up some time after it was made.
async fn until_pods_are_changed(namespace: &Namespace, what: &str, is_changed: impl Fn(&PodSpec) -> bool) {
    let rehearsal = PostParams { dry_run: true, ..PostParams::default() };
    for _ in 0..150 {
        let made = namespace.pods().create(&rehearsal, &counter("probe", "n1", 4, 50)).await.unwrap();
        if is_changed(&made.spec.unwrap()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("not within half a minute: {what}");
}

async fn counting(namespace: &Namespace) -> Follower {
    namespace.run(&counter("c", "n1", 4, 50)).await;
    let follower = namespace.follow("c", "c").await;
    follower.beyond(5).await;
    follower
}

/// Moves the counter, which is refused by others: it was never frozen, and nothing is left.
async fn is_given_up(namespace: &Namespace, source: &Follower, because: &[&str]) {
    let migration = namespace.migrate("c", "n2").await;
    assert_outcome(&migration, Outcome::RolledBack);
    let status = status(&migration);
    for words in because {
        assert!(status.message.contains(words), "{words:?} is not in {:?}", status.message);
    }
    assert!(!status.phases.iter().any(|timing| timing.phase == Phase::Freezing), "{:?}", status.phases);
    source.more(5).await;
    assert_contiguous(&source.lines());
    namespace.assert_no_leftovers(&migration).await;
}

#[test]
fn a_quota_for_one_pod_keeps_the_copy_out_before_anything_is_frozen() {
    with_namespace("quota", |namespace| async move {
        let source = counting(&namespace).await;
        namespace.kubectl(&["create", "quota", "one", "--hard=pods=1"]).unwrap();
        namespace.kubectl(&["wait", "quota/one", "--for=jsonpath={.status.used.pods}=1", "--timeout=20s"]).unwrap();
        is_given_up(&namespace, &source, &["exceeded quota: one"]).await;
    });
}

/// A LimitRange gives the copy a limit that its source never had: the memory that comes back at once may not fit.
#[test]
fn a_memory_limit_that_others_set_is_named_before_anything_is_frozen() {
    with_namespace("limits", |namespace| async move {
        let source = counting(&namespace).await;
        let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "tight"},
            "spec": {"limits": [{"type": "Container", "default": {"memory": "6Mi"}, "defaultRequest": {"memory": "6Mi"}}]}});
        let ranges: Api<LimitRange> = Api::namespaced(namespace.client.clone(), &namespace.name);
        ranges.create(&PostParams::default(), &serde_json::from_value(range).unwrap()).await.unwrap();
        let limited = |spec: &PodSpec| spec.containers[0].resources.as_ref().is_some_and(|resources| resources.limits.is_some());
        until_pods_are_changed(&namespace, "the LimitRange limits pods", limited).await;
        is_given_up(&namespace, &source, &["has changed the waiting pod", "spec.containers[c].resources.limits.memory: was changed"]).await;
    });
}

/// As a service mesh does it: its webhook adds a container to every pod that is made.
#[test]
fn a_sidecar_that_others_add_to_the_copy_is_named_before_anything_is_frozen() {
    with_namespace("mesh", |namespace| async move {
        let source = counting(&namespace).await;
        let name = &namespace.name;
        let add =
            r#"[JSONPatch{op: "add", path: "/spec/containers/-", value: Object.spec.containers{name: "mesh", image: "10.88.0.1:5000/counter:1"}}]"#;
        let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
        let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": name}, "spec": {
            "matchConstraints": {"resourceRules": [rule]}, "reinvocationPolicy": "Never", "failurePolicy": "Fail",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": add}}]}});
        let here = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}});
        let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name},
            "spec": {"policyName": name, "matchResources": here}});
        let remove = name.clone();
        let _removed = lab::Restore(move || {
            let both = ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"];
            for kind in both {
                drop(lab::try_lab(&["kubectl", "delete", kind, &remove]));
            }
        });
        make::<MutatingAdmissionPolicy>(&namespace, policy).await;
        make::<MutatingAdmissionPolicyBinding>(&namespace, binding).await;
        until_pods_are_changed(&namespace, "the policy changes pods", |spec| spec.containers.len() == 2).await;
        is_given_up(&namespace, &source, &["has changed the waiting pod", "spec.containers: mesh was added"]).await;
    });
}
