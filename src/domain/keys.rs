//! Every label and annotation key of Drover, and their codecs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// Annotation that asks for a migration: a node's name or [`AUTO`].
pub const MIGRATE_TO: &str = "drover.dev/migrate-to";
/// The bare form of [`MIGRATE_TO`], normalised by the webhook.
pub const MIGRATE_TO_BARE: &str = "migrate-to";
/// Value of [`MIGRATE_TO`] that leaves the choice of the node to the scheduler.
pub const AUTO: &str = "auto";
/// Annotation of a pod, `true`: what [`MIGRATE_TO`] asks for is a post-copy; anything else: no policy makes one of it. It stays, also with the copy.
pub const POST_COPY: &str = "drover.dev/post-copy";
/// Annotation on a Migration that Drover made: the policy that asks for post-copy, and why it is none where it is none.
pub const POST_COPY_BY: &str = "drover.dev/post-copy-by";
/// Annotation on a pod: UID of the one active Migration that owns it (R11); written by compare-and-swap.
pub const LOCK: &str = "drover.dev/migration";
/// Annotation on a replacement: UID of the Migration that claims it. The webhook checks it and rewrites the images.
pub const CLAIM: &str = "drover.dev/claim";
/// Annotation and label on a replacement: UID of the Migration that made it.
pub const REPLACES: &str = "drover.dev/replaces";

/// Annotation of a replacement in another namespace than its Migration's: the Migration's.
pub const REPLACES_IN: &str = "drover.dev/replaces-in";
/// Annotation on a pod that goes on from the kept archive on the source node: UID of the Migration that made it (R13).
pub const FALLBACK: &str = "drover.dev/fallback";
/// Annotation: the pod's name before its first migration; replacements are named after it.
pub const BASE_NAME: &str = "drover.dev/base-name";
/// Annotation: JSON object, container name → base image as `name@digest`. Input of every next hop.
pub const ORIGINAL_IMAGES: &str = "drover.dev/original-images";
/// Annotation: how often the pod has moved.
pub const HOPS: &str = "drover.dev/hops";
/// Annotation: how many requests for a move of this pod have been taken up. It makes each request's Migration a name of its own.
pub const REQUESTS: &str = "drover.dev/requests";
/// Annotation on a Migration that was made for an annotated pod: that pod's UID, since another pod may have its name by now.
pub const POD_UID: &str = "drover.dev/pod-uid";
/// Annotation on a Migration: the node that it was made to empty.
pub const EVACUATES: &str = "drover.dev/evacuates";
/// Annotation on a node: the time (RFC 3339) at which it goes, whoever has written it.
pub const EVACUATE_BY: &str = "drover.dev/evacuate-by";
/// Label on such a Migration: why (`cordon`, `drain`).
pub const TRIGGER: &str = "drover.dev/trigger";
/// Label on a pod: when its eviction was last asked for, in seconds since 1970. A label, so that such pods can be listed; it is not carried over.
pub const EVICTION_REQUESTED: &str = "drover.dev/eviction-requested";
/// Annotation on a Migration in doubt: a person's decision, as `drover resolve` writes it (domain/resolution.rs).
pub const RESOLVE: &str = "drover.dev/resolve";
/// Taint of a cordoned node (well-known labels and taints of Kubernetes).
pub const CORDONED: &str = "node.kubernetes.io/unschedulable";
/// Annotation by which a ReplicaSet that has pods too many chooses (core/v1 `PodDeletionCost`): the lowest goes first among those equally ready.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// The lowest [`DELETION_COST`], an i32.
pub const CHEAPEST: &str = "-2147483648";
/// Finalizer of a Migration until it has ended (R12).
pub const FINALIZER: &str = "drover.dev/migration";
/// Label on the child of a Migration of several pods: the parent's UID.
pub const PARENT_UID: &str = "drover.dev/parent-uid";
/// Label on what Drover makes for a migration (attestations, secrets): the Migration's UID.
pub const MIGRATION_UID: &str = "drover.dev/migration-uid";
/// Longest note of an Event, in characters: the API server takes 1 KiB (`NoteLengthLimit` of events.k8s.io).
pub const LONGEST_NOTE: usize = 1000;
/// Field manager of every write of the manager.
pub const MANAGER: &str = "drover-manager";
/// Field manager of every write of an agent.
pub const AGENT: &str = "drover-agent";

/// Image of a waiting replacement: no valid reference, so that the kubelet brings up the sandbox and asks no registry (MEASURED.md 3).
pub const WAITING_IMAGE: &str = "Waiting_For_Checkpoint";

/// Address at which a node's own runtime pulls checkpoint images. A constant, since it stays in pod specs.
pub const PULL_ADDRESS: &str = "127.0.0.1:5785";
/// Prefix of every repository with checkpoints.
pub const REPOSITORY_PREFIX: &str = "drover/";

/// Tag of the artifact with what is carried beside the containers (emptyDir volumes, /dev/shm). No container has such a name: theirs are DNS labels.
pub const VOLUMES_TAG: &str = "_volumes";

/// File name of an archive that is kept for a person; `tag` is its container, or [`VOLUMES_TAG`].
#[must_use]
pub fn kept_archive(migration_uid: &str, tag: &str) -> String {
    format!("kept-{migration_uid}-{tag}.tar")
}

/// The annotation value that asks for a migration, under either key; the full key wins.
#[must_use]
pub fn requested_destination(annotations: &BTreeMap<String, String>) -> Option<&str> {
    annotations.get(MIGRATE_TO).or_else(|| annotations.get(MIGRATE_TO_BARE)).map(String::as_str)
}

/// Base images recorded by an earlier hop; a malformed value counts as none, since users can write annotations.
#[must_use]
pub fn original_images(pod: &Pod) -> BTreeMap<String, String> {
    pod.annotations().get(ORIGINAL_IMAGES).and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default()
}

/// The pod's name before its first migration.
#[must_use]
pub fn base_name(pod: &Pod) -> String {
    pod.annotations().get(BASE_NAME).filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| pod.name_any())
}

/// How often the pod has moved.
#[must_use]
pub fn hops(pod: &Pod) -> u32 {
    pod.annotations().get(HOPS).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The replacement's name: base name, `-`, six hex digits of the Migration's UID; cut so that it stays a valid pod name.
#[must_use]
pub fn replacement_name(base_name: &str, migration_uid: &str) -> String {
    const LONGEST: usize = 63 - 7;
    let digits: String = migration_uid.chars().filter(char::is_ascii_hexdigit).take(6).collect();
    let stem: String = base_name.chars().take(LONGEST).collect();
    format!("{}-{digits}", stem.trim_end_matches(['-', '.']))
}

/// The checkpoint image of a container as a pod on the destination names it: by tag, never by digest (MEASURED.md 4).
#[must_use]
pub fn checkpoint_image(repository: &str, container: &str) -> String {
    format!("{PULL_ADDRESS}/{repository}:{container}")
}

/// The repository of an image reference that names a checkpoint of Drover's, by tag or digest.
#[must_use]
pub fn checkpoint_repository(image: &str) -> Option<&str> {
    let path = image.strip_prefix(PULL_ADDRESS)?.strip_prefix('/')?;
    path.split([':', '@']).next().filter(|repository| repository.starts_with(REPOSITORY_PREFIX))
}

/// Whether an image reference names a checkpoint of Drover's.
#[must_use]
pub fn is_checkpoint_image(image: &str) -> bool {
    checkpoint_repository(image).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacement_names_do_not_grow_over_hops() {
        let first = replacement_name("redis", "5f1c22aa-0000-4000-8000-000000000000");
        assert_eq!(first, "redis-5f1c22");
        assert_eq!(replacement_name(&"a".repeat(80), "5f1c22aa").len(), 63);
        assert_eq!(replacement_name("web-.", "abcdef00"), "web-abcdef");
    }

    #[test]
    fn the_full_key_wins_over_the_bare_one() {
        let annotations = BTreeMap::from([(MIGRATE_TO.to_owned(), "n2".to_owned()), (MIGRATE_TO_BARE.to_owned(), "n1".to_owned())]);
        assert_eq!(requested_destination(&annotations), Some("n2"));
    }

    #[test]
    fn only_drovers_own_repositories_are_checkpoints() {
        assert_eq!(checkpoint_repository(&checkpoint_image("drover/00ff", "c")), Some("drover/00ff"));
        assert_eq!(checkpoint_repository("127.0.0.1:5785/drover/00ff@sha256:aa"), Some("drover/00ff"));
        assert!(is_checkpoint_image(&checkpoint_image("drover/00ff", "c")));
        assert!(!is_checkpoint_image("127.0.0.1:5785/library/redis:7"));
        assert!(!is_checkpoint_image("127.0.0.1:57850/drover/x:c"));
    }
}
