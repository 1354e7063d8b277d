//! The custom resources of the group `drover.dev/v1alpha1`.
//!
//! [`Migration`] is the only truth that the parts share; [`Attestation`] carries what one agent knows from its own node's runtime;
//! [`NodeProfile`] says what a node can do; [`MigrationPolicy`] says what may move and how fast, [`MigrationGrant`] into which namespaces. The CRDs in `charts/` and `manifests/`
//! are generated from these types (`drover crds`), never edited.

pub mod attestation;
pub mod grant;
pub mod migration;
pub mod node_profile;
pub mod policy;

pub use attestation::{Attestation, AttestationSpec, AttestationStatus, Role};
pub use grant::{GrantedOrigin, MigrationGrant, MigrationGrantSpec};
pub use migration::{Migration, MigrationSpec, MigrationStatus, Outcome, Phase, Verdict};
pub use node_profile::{NodeProfile, NodeProfileSpec, NodeProfileStatus};
pub use policy::{MigrationPolicy, MigrationPolicySpec};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// API group of all of Drover's resources.
pub const GROUP: &str = "drover.dev";
/// `apiVersion` of all of Drover's resources.
pub const API_VERSION: &str = "drover.dev/v1alpha1";

/// The five CRDs, in the order in which they are printed and installed.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![Migration::crd(), Attestation::crd(), MigrationPolicy::crd(), MigrationGrant::crd(), NodeProfile::crd()]
}
