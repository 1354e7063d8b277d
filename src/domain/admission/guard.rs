//! Who may write Drover's own annotations and labels.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{Decision, Requester, patch::Patched};
use crate::domain::{keys, preflight::Blocker};

/// Annotations that only the manager writes: a claim rewrites images, the lock decides who may freeze, the rest steers the next hop.
const GUARDED: [&str; 9] =
    [keys::CLAIM, keys::LOCK, keys::REPLACES, keys::REPLACES_IN, keys::FALLBACK, keys::ORIGINAL_IMAGES, keys::BASE_NAME, keys::HOPS, keys::REQUESTS];
/// Labels that only the manager writes.
const GUARDED_LABELS: [&str; 2] = [keys::REPLACES, keys::MIGRATION_UID];

/// What the requester changes without being allowed to.
pub fn forbidden_changes(old: &Pod, new: &Pod, requester: &Requester) -> Vec<Blocker> {
    if requester.is_manager {
        return Vec::new();
    }
    let annotations = GUARDED.iter().filter(|key| old.annotations().get(**key) != new.annotations().get(**key));
    let labels = GUARDED_LABELS.iter().filter(|key| old.labels().get(**key) != new.labels().get(**key));
    annotations
        .map(|key| ("annotations", key))
        .chain(labels.map(|key| ("labels", key)))
        .map(|(map, key)| {
            Blocker::new(
                format!("metadata.{map}[{key}]"),
                format!("only Drover's manager may add, change or remove it, not {:?}", requester.username),
                "leave it as it is; to move the pod, annotate it with drover.dev/migrate-to",
            )
        })
        .collect()
}

/// A new pod without what it must not bring along.
///
/// A destination in a pod template would move every pod that the owner ever makes, for ever; a claim, or the record of another pod's hops
/// (also in a manifest copied from a migrated pod), would be a lie.
pub fn strip(pod: &Pod, requester: &Requester) -> Decision {
    let mut patched = Patched::new(pod);
    let mut warnings = Vec::new();
    for key in [keys::MIGRATE_TO, keys::MIGRATE_TO_BARE] {
        if patched.remove_annotation(key) {
            warnings.push(format!(
                "drover: annotation {key} was removed: it moves a running pod and has no meaning at its creation; annotate the pod once it runs"
            ));
        }
    }
    if !requester.is_manager {
        for key in GUARDED {
            if patched.remove_annotation(key) {
                warnings.push(format!("drover: annotation {key} was removed: only Drover's manager may set it"));
            }
        }
        for key in GUARDED_LABELS {
            if patched.remove_label(key) {
                warnings.push(format!("drover: label {key} was removed: only Drover's manager may set it"));
            }
        }
    }
    Decision::Allow { patch: patched.diff(), warnings }
}
