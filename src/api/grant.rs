//! `MigrationGrant`: which other namespaces' pods may move into this one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Lets pods of other namespaces move into the grant's own, by a Migration with `spec.destinationNamespace`. Made by whom the destination belongs to, as
/// Gateway API's ReferenceGrant is. It is looked at before anything is touched; to remove it ends no move that is under way.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "MigrationGrant",
    plural = "migrationgrants",
    category = "drover",
    namespaced,
    derive = "PartialEq",
    doc = "Lets pods of other namespaces move into this one.",
    printcolumn(name = "From", type_ = "string", json_path = ".spec.from[*].namespace"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationGrantSpec {
    /// Where the pods may come from.
    #[schemars(length(min = 1, max = 64))]
    pub from: Vec<GrantedOrigin>,
}

/// Pods of one namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GrantedOrigin {
    /// The namespace's name.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Which of its pods. Empty: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}
