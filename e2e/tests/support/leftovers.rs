//! What a migration must not leave behind, on either node and in the API. Asked by what the migration itself is called, so that other tests' objects
//! do not matter.

use std::time::Duration;

use kube::ResourceExt as _;

use drover::{
    adapters::cluster::PULL_SECRET,
    api::{Migration, Outcome, Role, attestation::attestation_name},
    domain::keys,
};

use super::{NODES, Namespace, SYSTEM, eventually, lab, migrations::status};

/// The agents may still write down that they are done.
const PATIENCE: Duration = Duration::from_secs(10);
/// A node that was away sweeps up twice a minute.
pub const AFTER_SWEEP: Duration = Duration::from_secs(75);

impl Namespace {
    /// Fails if an ended migration has left anything.
    pub async fn assert_no_leftovers(&self, migration: &Migration) {
        self.assert_no_leftovers_within(PATIENCE, migration).await;
    }

    /// The same with another patience.
    pub async fn assert_no_leftovers_within(&self, patience: Duration, migration: &Migration) {
        let sizes = self.checkpoint_sizes(migration).await;
        eventually(patience, || {
            let left = self.on_nodes(migration, &sizes);
            (!left.is_empty()).then(|| format!("leftovers of {}:\n{left}", migration.name_any()))
        });
        let credentials = lab::try_lab(&["kubectl", "-n", SYSTEM, "get", "secret", PULL_SECRET, "-o", "jsonpath={.data}"]).unwrap_or_default();
        assert!(!credentials.contains(&migration.uid().unwrap()), "the pull credentials are left");
        let templates = self.kubectl(&["get", "podtemplates", "-o", "name"]).unwrap_or_default();
        assert!(!templates.contains(&migration.name_any()), "the kept template is left: {templates}");
        if status(migration).outcome == Some(Outcome::Migrated) {
            return;
        }
        let made = status(migration);
        for pod in [made.replacement, made.placeholder].into_iter().flatten() {
            let found = self.pods().get_opt(&pod.name).await.unwrap();
            // A same-name replacement has the name of the source, or of the pod that it fell back to.
            let left = found.filter(|found| found.annotations().contains_key(keys::REPLACES) && found.uid().as_ref() == Some(&pod.uid));
            assert!(left.is_none(), "the waiting replacement {} is left", pod.name);
        }
        if let Some(source) = status(migration).source {
            let pod = self.pods().get(&source.name).await.unwrap();
            assert_eq!(pod.annotations().get(keys::LOCK), None, "the source is still locked");
        }
    }

    /// What of a migration is on the nodes, a line for each thing.
    pub fn on_nodes(&self, migration: &Migration, sizes: &[u64]) -> String {
        let lines = |node: &str| {
            lab::on_node(node, &node_script(migration, &self.name, sizes, node)).lines().map(|line| format!("{node}: {line}\n")).collect::<String>()
        };
        NODES.iter().map(|node| lines(node)).collect()
    }

    /// Bytes of each checkpoint that was pushed: a blob of just that size is one.
    async fn checkpoint_sizes(&self, migration: &Migration) -> Vec<u64> {
        let mut sizes: Vec<u64> = status(migration).containers.iter().map(|c| c.bytes).collect();
        let name = attestation_name(&migration.name_any(), Role::Source);
        let source = self.attestations().get_opt(&name).await.unwrap().and_then(|a| a.status);
        sizes.extend(source.and_then(|s| s.pushed).into_iter().flat_map(|pushed| pushed.images).map(|image| image.bytes));
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }
}

/// Prints a line for each thing left on a node.
fn node_script(migration: &Migration, namespace: &str, sizes: &[u64], node: &str) -> String {
    let status = status(migration);
    let uid = migration.uid().unwrap();
    let by_runtime = status.is_by_runtime() && (status.outcome == Some(Outcome::Migrated) || status.fallback.is_some());
    let made = [&status.replacement, &status.placeholder, &status.fallback].into_iter().flatten().map(|pod| pod.uid.clone());
    let pods = status.source.iter().map(|source| source.uid.clone()).chain(made).filter(|uid| !uid.is_empty());
    let pod = status.source.as_ref().map(|s| s.name.clone()).unwrap_or_default();
    let mut script = String::from("cd /var/lib/drover; ");
    for pod in pods {
        script += &format!("find gate/{pod} /run/drover/restore/{pod} restore/{pod} 2>/dev/null; ");
    }
    script += &format!("find /run/drover/dump/{uid} dump/{uid} 2>/dev/null; ");
    script += &format!("find journals -name '{uid}*' 2>/dev/null; ");
    script += &format!("find /var/lib/kubelet/checkpoints -name 'checkpoint-{pod}_{namespace}-*' -o -name 'volumes-{uid}.tar' 2>/dev/null; ");
    // What lay there before is no checkpoint of this migration: a layer of a base image may be of the same size.
    let begun = migration.metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_second());
    for size in sizes {
        script += &format!("find registry/docker/registry/v2/blobs -type f -size {size}c -newermt @{begun} 2>/dev/null; ");
    }
    if let Some(destination) = status.destination.filter(|d| !d.repository.is_empty()) {
        let repository = destination.repository;
        script += &format!("find /run/{repository} 2>/dev/null; ").replace("/run/drover/", "/run/drover/incoming/");
        // In the runtime lane the name is the base image's, and the pod's own.
        if !by_runtime {
            script += &format!("ctr -n k8s.io images ls -q 2>/dev/null | grep -F '{repository}'; ");
        }
        let folder = format!("registry/docker/registry/v2/repositories/{repository}");
        // Where the pod was restored the tags stay, naming the base images, so that a restart can pull.
        let restored_here = status.fallback.is_some() && status.source.is_some_and(|source| source.node_name == node);
        let left = if status.outcome == Some(Outcome::Migrated) || restored_here { "/_uploads -mindepth 1" } else { " -maxdepth 0" };
        script += &format!("find {folder}{left} 2>/dev/null; ");
    }
    script + "true"
}
