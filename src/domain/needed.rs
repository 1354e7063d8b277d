//! What on a cluster still needs Drover, which must be seen to before it is uninstalled.

use k8s_openapi::api::core::v1::Pod;

use super::{keys, lanes};
use crate::api::Migration;

/// A sentence for each pod and each Migration that would be harmed, with what to do.
#[must_use]
pub fn needed(pods: &[Pod], migrations: &[Migration]) -> Vec<String> {
    let open = migrations.iter().filter(|migration| !migration.is_done()).map(|migration| {
        let (name, phase) = (named(migration), migration.phase());
        format!("Migration {name} is in {phase}: let it end, or delete it before it has reached Restoring")
    });
    open.chain(pods.iter().filter(|pod| lives(pod)).filter_map(of_pod)).collect()
}

fn of_pod(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let name = named(pod);
    let mut images = spec.containers.iter().chain(spec.init_containers.iter().flatten()).filter_map(|container| container.image.as_deref());
    if spec.runtime_class_name.as_deref() == Some(lanes::RUNTIME_CLASS) {
        let class = lanes::RUNTIME_CLASS;
        Some(format!(
            "Pod {name} runs under the RuntimeClass {class}, and could not be ended without drover-runc on its node: delete it, so that its owner makes another"
        ))
    } else if images.any(keys::is_checkpoint_image) {
        Some(format!(
            "Pod {name} was moved, and a restart of its container pulls from its node's Drover registry: delete it, so that its owner makes another"
        ))
    } else {
        None
    }
}

/// What has ended starts nothing any more.
fn lives(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

fn named(object: &impl kube::ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{MigrationSpec, MigrationStatus, Phase};

    fn pod(spec: &Value, phase: &str) -> Pod {
        let mut whole = json!({"containers": [{"name": "c", "image": "redis"}]});
        json_patch::merge(&mut whole, spec);
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": whole, "status": {"phase": phase}})).unwrap()
    }

    #[test]
    fn only_what_would_be_harmed_is_named() {
        let moved = json!({"containers": [{"name": "c", "image": keys::checkpoint_image("drover/0123456789abcdef0123456789abcdef", "c")}]});
        let init = json!({"initContainers": moved["containers"]});
        let class = json!({"runtimeClassName": "drover"});
        for (spec, phase, word) in [
            (json!({}), "Running", ""),
            (json!({"runtimeClassName": "gvisor"}), "Running", ""),
            (moved.clone(), "Running", "pulls from its node's Drover registry"),
            (moved, "Succeeded", ""),
            (init, "Pending", "pulls from its node's Drover registry"),
            (class.clone(), "Running", "could not be ended without drover-runc"),
            (class, "Failed", ""),
        ] {
            let found = needed(&[pod(&spec, phase)], &[]);
            assert_eq!(found.len(), usize::from(!word.is_empty()), "{spec} {phase}: {found:?}");
            assert!(found.iter().all(|sentence| sentence.starts_with("Pod shop/web ") && sentence.contains(word)), "{found:?}");
        }
    }

    #[test]
    fn a_migration_is_needed_until_it_has_ended() {
        let migration = |phase| {
            let mut migration = Migration::new("m", MigrationSpec::default());
            migration.metadata.namespace = Some("shop".into());
            migration.status = Some(MigrationStatus { phase, ..MigrationStatus::default() });
            migration
        };
        assert_eq!(needed(&[], &[migration(Phase::Done)]), [""; 0]);
        let found = needed(&[], &[migration(Phase::Restoring)]);
        assert!(found[0].starts_with("Migration shop/m is in Restoring"), "{found:?}");
    }
}
