//! What is in the way of a move into another namespace (`spec.destinationNamespace`).

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;

use super::{Blocker, claims};
use crate::{
    api::{Migration, grant::MigrationGrant},
    domain::{containers, owner, policy},
};

const FIELD: &str = "spec.destinationNamespace";

/// Every blocker, given the grants of the destination's namespace; none where the pod stays in its own.
pub(super) fn blockers(migration: &Migration, pod: &Pod, grants: &[MigrationGrant]) -> Vec<Blocker> {
    let Some(namespace) = migration.elsewhere() else { return vec![] };
    let mut found: Vec<Blocker> = grant_blocker(namespace, pod, grants).into_iter().collect();
    if let Some(owner) = owner::controller(&pod.metadata) {
        let message = format!("the pod belongs to {} {}, which has pods in its own namespace only", owner.kind, owner.name);
        found.push(Blocker::new(
            FIELD,
            message,
            format!("make the {} in namespace {namespace}; only a pod that nobody owns can be moved there", owner.kind),
        ));
    }
    for (volume, claim) in claims::of_pod(pod) {
        let message = format!("claim {claim} belongs to the pod's own namespace, and so does its volume");
        found.push(Blocker::new(
            format!("spec.volumes[{volume}].persistentVolumeClaim"),
            message,
            "a pod with a PersistentVolumeClaim can be moved within its namespace only",
        ));
    }
    for container in pod.spec.iter().flat_map(containers::all) {
        found.extend(environment_blocker(pod, container, namespace));
    }
    found
}

/// What the Migration alone shows to be in the way.
pub(super) fn name_blocker(migration: &Migration) -> Option<Blocker> {
    migration.elsewhere().filter(|_| migration.spec.keep_name)?;
    let why = "a pod keeps its name within its own namespace only (its source has to go before the restore, and it falls back to where it was)";
    Some(Blocker::new("spec.keepName", why, format!("leave it out, or {FIELD}")))
}

fn grant_blocker(namespace: &str, pod: &Pod, grants: &[MigrationGrant]) -> Option<Blocker> {
    let own = pod.namespace().unwrap_or_default();
    let origins = grants.iter().flat_map(|grant| &grant.spec.from).filter(|origin| origin.namespace == own);
    let mut selectors = origins.map(|origin| origin.pod_selector.as_ref());
    (!selectors.any(|selector| policy::matches(selector, pod.labels()))).then(|| {
        let message = format!("no MigrationGrant in namespace {namespace} lets this pod of namespace {own} in");
        Blocker::new(FIELD, message, format!("whoever owns {namespace} makes one there: spec.from: [{{namespace: {own}}}]"))
    })
}

/// What a container's environment is taken from is looked for when the container is made: after the release, where its absence could only be undone.
/// A volume's absence keeps the waiting pod from having a sandbox, before anything is frozen.
fn environment_blocker(pod: &Pod, container: &Container, namespace: &str) -> Option<Blocker> {
    let whole = container.env_from.iter().flatten().filter_map(|from| {
        let map = from.config_map_ref.as_ref().map(|it| ("ConfigMap", it.name.as_str(), it.optional));
        map.or_else(|| from.secret_ref.as_ref().map(|it| ("Secret", it.name.as_str(), it.optional)))
    });
    let single = container.env.iter().flatten().filter_map(|variable| {
        let from = variable.value_from.as_ref()?;
        let map = from.config_map_key_ref.as_ref().map(|it| ("ConfigMap", it.name.as_str(), it.optional));
        map.or_else(|| from.secret_key_ref.as_ref().map(|it| ("Secret", it.name.as_str(), it.optional)))
    });
    let (kind, name, _) = whole.chain(single).find(|(_, _, optional)| *optional != Some(true))?;
    let message = format!(
        "the environment comes from {kind} {name}, which may be missing in namespace {namespace}, and that would be found out after the release"
    );
    let remedy = "mark it as optional (the process keeps the environment that it has), or mount it as a volume";
    Some(Blocker::new(format!("{}.env", containers::field(pod, &container.name)), message, remedy))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn migration(spec: &Value) -> Migration {
        let mut spec = spec.clone();
        json_patch::merge(&mut spec, &json!({"podName": "web"}));
        let metadata = json!({"name": "m", "namespace": "shop"});
        serde_json::from_value(json!({"apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": metadata, "spec": spec})).unwrap()
    }

    fn grant(from: &Value) -> MigrationGrant {
        let metadata = json!({"name": "g", "namespace": "vault"});
        serde_json::from_value(json!({"apiVersion": "drover.dev/v1alpha1", "kind": "MigrationGrant", "metadata": metadata, "spec": {"from": from}}))
            .unwrap()
    }

    fn fields(migration: &Migration, pod: &Value, grants: &[MigrationGrant]) -> Vec<String> {
        blockers(migration, &serde_json::from_value(pod.clone()).unwrap(), grants).into_iter().map(|blocker| blocker.field).collect()
    }

    fn pod(container: &Value) -> Value {
        let mut whole = json!({"name": "c", "image": "i"});
        json_patch::merge(&mut whole, container);
        json!({"metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}}, "spec": {"containers": [whole]}})
    }

    #[test]
    fn a_grant_names_the_namespace_and_may_select_pods() {
        let away = migration(&json!({"destinationNamespace": "vault"}));
        let plain = pod(&json!({}));
        let none: Vec<String> = vec![];
        assert_eq!(fields(&migration(&json!({})), &plain, &[]), none);
        assert_eq!(fields(&migration(&json!({"destinationNamespace": "shop"})), &plain, &[]), none, "its own");
        assert_eq!(fields(&away, &plain, &[]), ["spec.destinationNamespace"]);
        let open = grant(&json!([{"namespace": "other"}, {"namespace": "shop"}]));
        assert_eq!(fields(&away, &plain, &[open]), none);
        let selects = |app: &str| grant(&json!([{"namespace": "shop", "podSelector": {"matchLabels": {"app": app}}}]));
        assert_eq!(fields(&away, &plain, &[selects("web")]), none);
        assert_eq!(fields(&away, &plain, &[selects("db")]), ["spec.destinationNamespace"]);
        let unreadable =
            grant(&json!([{"namespace": "shop", "podSelector": {"matchExpressions": [{"key": "app", "operator": "Like", "values": ["web"]}]}}]));
        assert_eq!(fields(&away, &plain, &[unreadable]), ["spec.destinationNamespace"]);
    }

    #[test]
    fn what_belongs_to_a_namespace_stays_in_it() {
        let away = migration(&json!({"destinationNamespace": "vault", "keepName": true}));
        let grants = [grant(&json!([{"namespace": "shop"}]))];
        let mut owned = pod(&json!({"envFrom": [{"secretRef": {"name": "s"}}]}));
        owned["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]);
        owned["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
        let expected = ["spec.destinationNamespace", "spec.volumes[v].persistentVolumeClaim", "spec.containers[c].env"];
        assert_eq!(fields(&away, &owned, &grants), expected);
        assert_eq!(name_blocker(&away).unwrap().field, "spec.keepName");
        let optional = pod(&json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": true}}}]}));
        assert_eq!(fields(&migration(&json!({"destinationNamespace": "vault"})), &optional, &grants), Vec::<String>::new());
    }
}
