//! `MigrationPolicy`: which pods may move. Thin for now: triggers and limits come with cordon, drain and load.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Which pods may be moved by annotation. Where no policy exists, every supported pod may.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "MigrationPolicy",
    plural = "migrationpolicies",
    category = "drover",
    derive = "PartialEq",
    doc = "Which pods may be migrated, and within which limits.",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPolicySpec {
    /// Namespaces that the policy speaks of. Empty: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods that the policy speaks of. Empty: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}
