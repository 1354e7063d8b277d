//! Whether the API server has made a pod as it was asked for: admission plugins and other people's webhooks may add a sidecar, a mount or a user ID, and a
//! checkpoint is restored only where all of that is as it was (MEASURED.md 8).

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};
use serde::Serialize;

use super::{containers, quantity::bytes};

/// What of a pod that was made is not as it was asked for, as far as a restore depends on it: a line for each field.
#[must_use]
pub fn differences(asked: &PodSpec, made: &PodSpec) -> Vec<String> {
    let mut found = vec![];
    let names = |spec| containers::all(spec).map(|container| container.name.as_str()).collect::<Vec<_>>();
    let (before, now) = (names(asked), names(made));
    found.extend(now.iter().filter(|name| !before.contains(name)).map(|name| format!("spec.containers: {name} was added")));
    found.extend(before.iter().filter(|name| !now.contains(name)).map(|name| format!("spec.containers: {name} was taken away")));
    for container in containers::all(asked) {
        if let Some(other) = containers::all(made).find(|other| other.name == container.name) {
            found.extend(in_container(container, other).map(|field| format!("spec.containers[{}].{field}: was changed", container.name)));
        }
    }
    let pod = [
        ("securityContext", differs(asked.security_context.as_ref(), made.security_context.as_ref())),
        ("volumes", differs(asked.volumes.as_ref(), made.volumes.as_ref())),
        ("shareProcessNamespace", asked.share_process_namespace != made.share_process_namespace),
        ("hostNetwork", asked.host_network != made.host_network),
        ("hostUsers", asked.host_users != made.host_users),
        ("runtimeClassName", asked.runtime_class_name != made.runtime_class_name),
        ("serviceAccountName", asked.service_account_name != made.service_account_name),
    ];
    found.extend(pod.into_iter().filter(|(_, differs)| *differs).map(|(field, _)| format!("spec.{field}: was changed")));
    found
}

fn in_container<'a>(asked: &'a Container, made: &'a Container) -> impl Iterator<Item = &'static str> {
    [
        ("securityContext", differs(asked.security_context.as_ref(), made.security_context.as_ref())),
        ("volumeMounts", differs(asked.volume_mounts.as_ref(), made.volume_mounts.as_ref())),
        ("volumeDevices", differs(asked.volume_devices.as_ref(), made.volume_devices.as_ref())),
        ("resources.limits.memory", is_tighter(memory_limit(asked), memory_limit(made))),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
}

fn memory_limit(container: &Container) -> Option<&Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get("memory")
}

/// Whether less memory is allowed than was asked for (a LimitRange's default, a VerticalPodAutoscaler): the restore brings all of the memory back, and would be
/// killed in its midst. One that cannot be read is as good as none.
fn is_tighter(asked: Option<&Quantity>, made: Option<&Quantity>) -> bool {
    let bytes = |limit: Option<&Quantity>| limit.and_then(bytes).unwrap_or(u64::MAX);
    bytes(made) < bytes(asked)
}

/// An empty object or list is as good as none: the API server fills in `{}` where nothing was asked for.
fn differs<T: Serialize>(asked: Option<&T>, made: Option<&T>) -> bool {
    let value = |it: Option<&T>| {
        let value = it.and_then(|it| serde_json::to_value(it).ok()).unwrap_or_default();
        let is_empty = value.as_object().is_some_and(serde_json::Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
        if is_empty { serde_json::Value::Null } else { value }
    };
    value(asked) != value(made)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(change: impl FnOnce(&mut Value)) -> PodSpec {
        let mut spec = json!({
            "containers": [{"name": "db", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]
        });
        change(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    fn found(change: impl FnOnce(&mut Value)) -> Vec<String> {
        differences(&spec(|_| ()), &spec(change))
    }

    #[test]
    fn what_a_restore_does_not_depend_on_may_change() {
        assert_eq!(found(|_| ()), [""; 0]);
        assert_eq!(found(|spec| spec["securityContext"] = json!({})), [""; 0]);
        assert_eq!(found(|spec| spec["tolerations"] = json!([{"operator": "Exists"}])), [""; 0]);
        assert_eq!(found(|spec| spec["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}})), [""; 0]);
    }

    #[test]
    fn a_memory_limit_may_be_raised_and_not_lowered() {
        let limited = |memory: &str| {
            let limits = json!({"limits": {"memory": memory}});
            move |spec: &mut Value| spec["containers"][0]["resources"] = limits
        };
        let between = |asked: &str, made: &str| differences(&spec(limited(asked)), &spec(limited(made)));
        let lowered = ["spec.containers[db].resources.limits.memory: was changed"];
        assert_eq!(found(limited("64Mi")), lowered, "there was none");
        assert_eq!(between("1Gi", "512Mi"), lowered);
        assert_eq!(between("1Gi", "1024Mi"), [""; 0]);
        assert_eq!(between("64Mi", "1G"), [""; 0]);
    }

    #[test]
    fn a_mesh_that_adds_a_sidecar_is_named() {
        let changed = found(|spec| {
            spec["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(json!({"name": "certs", "mountPath": "/certs"}));
            spec["initContainers"] = json!([{"name": "mesh", "image": "m"}]);
            spec["volumes"].as_array_mut().unwrap().push(json!({"name": "certs", "emptyDir": {}}));
        });
        assert_eq!(changed, ["spec.containers: mesh was added", "spec.containers[db].volumeMounts: was changed", "spec.volumes: was changed"]);
    }

    #[test]
    fn users_and_namespaces_are_compared() {
        let changed = found(|spec| {
            spec["containers"] = json!([{"name": "other", "image": "i"}]);
            spec["securityContext"] = json!({"runAsUser": 7});
            spec["hostNetwork"] = json!(true);
        });
        let expected = [
            "spec.containers: other was added",
            "spec.containers: db was taken away",
            "spec.securityContext: was changed",
            "spec.hostNetwork: was changed",
        ];
        assert_eq!(changed, expected);
    }
}
