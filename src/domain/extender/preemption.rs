//! Which victims kube-scheduler may take.

use std::collections::BTreeSet;

use super::protocol::{ExtenderPreemptionArgs, ExtenderPreemptionResult, MetaVictims};
use crate::api::Migration;

/// The nodes on which no pod of a running migration would have to go.
///
/// A waiting replacement is the reservation of its place, and the frozen source may be the only copy there is: preempting either undoes a migration, or
/// worse. `migrations` are those of every namespace, ended ones too.
#[must_use]
pub fn preempt(args: ExtenderPreemptionArgs, migrations: &[Migration]) -> ExtenderPreemptionResult {
    let protected = protected(migrations);
    let proposed = args.node_name_to_meta_victims.unwrap_or_else(|| {
        let victims = args.node_name_to_victims.unwrap_or_default();
        victims.into_iter().map(|(node, victims)| (node, MetaVictims::from(victims))).collect()
    });
    let spares = |victims: &MetaVictims| !victims.pods.iter().flatten().any(|pod| protected.contains(pod.uid.as_str()));
    ExtenderPreemptionResult { node_name_to_meta_victims: proposed.into_iter().filter(|(_, victims)| spares(victims)).collect() }
}

/// UIDs of every pod of a migration that has not ended.
fn protected(migrations: &[Migration]) -> BTreeSet<&str> {
    let active = migrations.iter().filter(|migration| !migration.is_done() && !migration.spec.check_only);
    let statuses = active.filter_map(|migration| migration.status.as_ref());
    let pods = statuses.flat_map(|status| {
        let made = [&status.replacement, &status.placeholder, &status.fallback].into_iter().flatten().map(|pod| pod.uid.as_str());
        status.source.iter().map(|pod| pod.uid.as_str()).chain(made)
    });
    pods.filter(|uid| !uid.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn migration(phase: &str) -> Migration {
        let migration = json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "m", "namespace": "d"}, "spec": {"podName": "p"},
            "status": {"phase": phase, "source": {"name": "p", "uid": "source", "nodeName": "n1"}, "replacement": {"name": "p-1", "uid": "waiting"},
                "placeholder": {"name": "p-1", "uid": ""}}
        });
        serde_json::from_value(migration).unwrap()
    }

    fn nodes_left(args: &serde_json::Value, phase: &str) -> Vec<String> {
        let args = ExtenderPreemptionArgs::read(args.to_string().as_bytes()).unwrap();
        preempt(args, &[migration(phase)]).node_name_to_meta_victims.into_keys().collect()
    }

    #[test]
    fn pods_of_a_running_migration_are_no_victims() {
        let of = |uids: [&str; 2]| json!({"Pods": uids.map(|uid| json!({"UID": uid})), "NumPDBViolations": 1});
        let args = json!({"Pod": {}, "NodeNameToVictims": null, "NodeNameToMetaVictims": {
            "n1": of(["other", "source"]), "n2": of(["waiting", "other"]), "n3": of(["other", "another"])
        }});
        assert_eq!(nodes_left(&args, "Transferring"), ["n3"]);
        assert_eq!(nodes_left(&args, "Done"), ["n1", "n2", "n3"], "what has ended protects nobody");
    }

    #[test]
    fn victims_in_full_are_answered_by_uid() {
        let args = json!({"Pod": {}, "NodeNameToVictims": {
            "n1": {"Pods": [{"metadata": {"uid": "source"}}]}, "n2": {"Pods": [{"metadata": {"uid": "other"}}], "NumPDBViolations": 2}, "n3": {"Pods": null}
        }});
        let args = ExtenderPreemptionArgs::read(args.to_string().as_bytes()).unwrap();
        let left = serde_json::to_value(preempt(args, &[migration("Restoring")])).unwrap();
        let wanted = json!({"NodeNameToMetaVictims": {
            "n2": {"Pods": [{"UID": "other"}], "NumPDBViolations": 2}, "n3": {"Pods": null, "NumPDBViolations": 0}
        }});
        assert_eq!(left, wanted);
    }

    #[test]
    fn a_request_that_proposes_nothing_is_refused() {
        let problem = ExtenderPreemptionArgs::read(br#"{"Pod": {}}"#).unwrap_err();
        assert!(problem.contains("neither NodeNameToVictims nor NodeNameToMetaVictims"), "{problem}");
    }
}
