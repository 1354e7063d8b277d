//! Pods that leave their node by themselves.

use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use drover::api::MigrationPolicy;

use super::{Namespace, lab};

/// A policy that has the pods of one namespace leave, until this is dropped.
pub struct Leaving(String);

impl Leaving {
    /// On these of an evacuation's triggers.
    pub async fn on(triggers: &[&str], namespace: &Namespace) -> Self {
        Self::by(&json!({"evacuation": {"triggers": triggers}}), namespace).await
    }

    /// As the rest of a policy's spec says.
    pub async fn by(spec: &Value, namespace: &Namespace) -> Self {
        namespace.kubectl(&["label", "namespace", &namespace.name, "drover.dev/evacuate=enabled"]).unwrap();
        let mut spec = spec.clone();
        spec["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace.name}});
        let policy: MigrationPolicy = serde_json::from_value(json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": namespace.name}, "spec": spec
        }))
        .unwrap();
        Api::<MigrationPolicy>::all(namespace.client.clone()).create(&PostParams::default(), &policy).await.unwrap();
        Self(namespace.name.clone())
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        drop(lab::try_lab(&["kubectl", "delete", "migrationpolicy", &self.0]));
        drop(lab::try_lab(&["kubectl", "uncordon", "n1"]));
    }
}
