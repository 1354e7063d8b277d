//! The gate's decision: may this container start?
//!
//! The gate is an OCI createRuntime hook. runc runs it before a container's first process, also before a restore reads any memory, and gives up
//! if it fails (MEASURED.md 11). It works without the agent and across a reboot, since all that it knows is a file of [`Markers`].
//!
//! It fails open or closed on purpose, case by case, because it runs for every container of the node:
//!
//! | what it finds | what it does |
//! | --- | --- |
//! | no folder of markers, or an empty one | allows at once, before it reads anything: no fence can stand |
//! | the pod's fence | refuses, and says for which migration |
//! | a claim `waiting` | takes it by one rename, keeps CRIU's log, and allows: this is the one restore (R20); an ordinary create is refused where only `drover-runc` restores it |
//! | a claim `taken`, `failed` or `revoked`, or none where the pod has others that are not `open` | refuses: a second start would rewind or double the pod |
//! | a claim `open` | allows, but for a restore: CRIU's log is there |
//! | no claims | allows |
//! | a fence file that cannot be read, or markers that cannot be listed | refuses: a fence may stand, and a second copy of a pod is worse than a late one |
//! | a state without a pod UID, or one that cannot be parsed | allows with a line on stderr: runc's state names every pod's container, so this is none |

pub mod caller;

use std::{fs, io, io::Read, path::Path};

use caller::Caller;

use crate::markers::{Claim, Markers, evidence};

/// What the gate does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The container may start.
    Allow,
    /// It may start, but the gate could not tell whose it is.
    AllowUnknown(String),
    /// It must not start.
    Refuse(String),
}

/// Decides for the container whose OCI state `state` holds, by the markers below `root`.
#[must_use]
pub fn decide(root: &Path, state: impl Read) -> Decision {
    if is_bare(root) {
        return Decision::Allow;
    }
    match Caller::of_state(state) {
        Ok(Some(caller)) => match by_fence(root, &caller.pod_uid) {
            Decision::Allow => by_claim(root, &caller),
            refusal => refusal,
        },
        Ok(None) => Decision::AllowUnknown("drover: the container names no pod; it is let through".to_owned()),
        Err(problem) => Decision::AllowUnknown(format!("drover: {problem}; the container is let through")),
    }
}

/// Whether there is no marker of any pod: no such folder, or an empty one. One that cannot be listed is not bare.
#[must_use]
pub fn is_bare(root: &Path) -> bool {
    match fs::read_dir(root) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn by_fence(root: &Path, uid: &str) -> Decision {
    match Markers::new(root).fenced_by(uid) {
        Ok(None) => Decision::Allow,
        Ok(Some(migration)) => Decision::Refuse(format!(
            "drover: pod {uid} is frozen for migration {migration}; no new container may start (see kubectl get migrations -A)"
        )),
        // A UID that can be no file's name can have no marker either: static pods have such UIDs in some setups.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Decision::Allow,
        Err(error) => unreadable(root, uid, &error),
    }
}

fn by_claim(root: &Path, caller: &Caller) -> Decision {
    let markers = Markers::new(root);
    let uid = &caller.pod_uid;
    let claims = match markers.claims(uid) {
        Ok(claims) => claims,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Decision::Allow,
        Err(error) => return unreadable(root, uid, &error),
    };
    // The sandbox executes nothing of the pod's.
    if caller.is_sandbox() || claims.is_empty() {
        return Decision::Allow;
    }
    if claims.iter().all(|(_, claim)| *claim == Claim::Open) {
        return pass(caller);
    }
    let Some(container) = &caller.container_name() else {
        return Decision::Refuse(format!("drover: pod {uid} is being restored, and this container of it has no name"));
    };
    match rule(&claims, container) {
        Rule::Pass => pass(caller),
        Rule::Take => take(&markers, caller, container),
        Rule::Over(claim) => Decision::Refuse(format!(
            "drover: container {container} of pod {uid} is {}: its one restore is over, and the migration has not ended (see kubectl get migrations -A)",
            claim.as_str()
        )),
        Rule::NotYet => {
            Decision::Refuse(format!("drover: pod {uid} is being restored; container {container} may start when the migration has ended"))
        }
    }
}

/// I8: an ordinary create. A runtime may have begun to make a container from the checkpoint before that went out of reach, and ask only now.
fn pass(caller: &Caller) -> Decision {
    if caller.bundle.as_deref().is_some_and(evidence::is_restore) {
        let uid = &caller.pod_uid;
        return Decision::Refuse(format!(
            "drover: pod {uid} goes on without its checkpoint; a restore would rewind it, and a new container is made instead"
        ));
    }
    Decision::Allow
}

/// What the claims of a pod say to a container of it that is about to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// It may start.
    Pass,
    /// It may start where it takes its claim, by one rename.
    Take,
    /// It has had its one restore, or never will.
    Over(Claim),
    /// The pod's other containers are claimed, this one is not.
    NotYet,
}

/// R3, R20: one restore for each claim, and nothing else of the pod until the migration has ended.
#[must_use]
pub fn rule(claims: &[(String, Claim)], container: &str) -> Rule {
    if claims.iter().all(|(_, claim)| *claim == Claim::Open) {
        return Rule::Pass;
    }
    match claims.iter().filter(|(name, _)| name == container).map(|(_, claim)| *claim).max() {
        Some(Claim::Open) => Rule::Pass,
        Some(Claim::Waiting) => Rule::Take,
        Some(claim) => Rule::Over(claim),
        None => Rule::NotYet,
    }
}

fn take(markers: &Markers, caller: &Caller, container: &str) -> Decision {
    let uid = &caller.pod_uid;
    let restores = caller.bundle.as_deref().is_some_and(evidence::is_restore);
    match markers.is_for_runtime(uid, container) {
        Ok(true) if !restores => {
            return Decision::Refuse(format!(
                "drover: container {container} of pod {uid} is to be restored by drover-runc, and this is an ordinary create: has its node the runtime handler \
                 drover (drover node setup)?"
            ));
        }
        Ok(_) => {}
        Err(error) => return Decision::Refuse(format!("drover: the claim of container {container} of pod {uid} cannot be read: {error}")),
    }
    // Before the claim is taken: what is taken has its evidence.
    let noted = markers.evidence_path(uid, container).and_then(|path| evidence::note(&path, &caller.id, caller.bundle.as_deref()));
    if let Err(error) = noted {
        return Decision::Refuse(format!("drover: what proves the restore of container {container} of pod {uid} cannot be written: {error}"));
    }
    match markers.advance(uid, container, Claim::Waiting, Claim::Taken) {
        Ok(true) => Decision::Allow,
        Ok(false) => Decision::Refuse(format!("drover: the restore of container {container} of pod {uid} was taken or revoked at this moment")),
        Err(error) => Decision::Refuse(format!("drover: the claim of container {container} of pod {uid} cannot be taken: {error}")),
    }
}

fn unreadable(root: &Path, uid: &str, error: &io::Error) -> Decision {
    Decision::Refuse(format!(
        "drover: the markers of pod {uid} below {} cannot be read ({error}); no container of it may start until they can, or until they are removed by hand",
        root.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::{
        caller::{CONTAINERD_NAME, CONTAINERD_TYPE, CONTAINERD_UID, CRIO_LABELS, CRIO_TYPE, KUBERNETES_UID},
        *,
    };

    const POD: &str = "0f1c22aa-0000-4000-8000-000000000000";
    const OTHER: &str = "0f1c22aa-0000-4000-8000-000000000001";

    fn fenced() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        Markers::new(folder.path()).fence(POD, "one").unwrap();
        folder
    }

    fn state_of(uid: &str) -> String {
        serde_json::json!({"ociVersion": "1.2.0", "id": "c", "status": "creating", "pid": 7, "annotations": {CONTAINERD_UID: uid}}).to_string()
    }

    #[test]
    fn without_fences_nothing_is_read() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(decide(empty.path(), &b"rubbish"[..]), Decision::Allow);
        assert_eq!(decide(Path::new("/nonexistent"), &b"rubbish"[..]), Decision::Allow);
    }

    #[test]
    fn only_the_fenced_pod_is_refused() {
        let root = fenced();
        assert_eq!(decide(root.path(), state_of(OTHER).as_bytes()), Decision::Allow);
        let refusal = format!("drover: pod {POD} is frozen for migration one; no new container may start (see kubectl get migrations -A)");
        assert_eq!(decide(root.path(), state_of(POD).as_bytes()), Decision::Refuse(refusal));
    }

    #[test]
    fn the_uid_is_found_in_the_bundle_and_as_crio_writes_it() {
        let root = fenced();
        let bundle = tempfile::tempdir().unwrap();
        for annotations in [
            serde_json::json!({CONTAINERD_UID: POD}),
            serde_json::json!({KUBERNETES_UID: POD}),
            serde_json::json!({CRIO_LABELS: format!(r#"{{"{KUBERNETES_UID}":"{POD}"}}"#)}),
        ] {
            std::fs::write(bundle.path().join("config.json"), serde_json::json!({"process": {}, "annotations": annotations}).to_string()).unwrap();
            let state = serde_json::json!({"id": "c", "bundle": bundle.path()}).to_string();
            assert!(matches!(decide(root.path(), state.as_bytes()), Decision::Refuse(_)), "{annotations}");
        }
    }

    #[test]
    fn what_is_no_pods_container_is_let_through() {
        let root = fenced();
        for state in ["rubbish", "{}", r#"{"bundle":"/nonexistent"}"#] {
            assert!(matches!(decide(root.path(), state.as_bytes()), Decision::AllowUnknown(_)), "{state}");
        }
        assert_eq!(decide(root.path(), state_of("../../etc").as_bytes()), Decision::Allow);
    }

    fn create(root: &Path, container: &str) -> Decision {
        let annotations = serde_json::json!({CONTAINERD_UID: POD, CONTAINERD_NAME: container, CONTAINERD_TYPE: "container"});
        decide(root, serde_json::json!({"id": "id", "annotations": annotations}).to_string().as_bytes())
    }

    #[test]
    fn a_claimed_container_is_restored_once_and_others_wait_for_the_end() {
        let root = tempfile::tempdir().unwrap();
        let markers = Markers::new(root.path());
        markers.arm(POD, "c", "one").unwrap();
        assert!(matches!(create(root.path(), "debugger"), Decision::Refuse(_)), "a container without a claim");
        assert_eq!(create(root.path(), "c"), Decision::Allow);
        assert_eq!(markers.claim(POD, "c").unwrap(), Some(Claim::Taken));
        assert!(matches!(create(root.path(), "c"), Decision::Refuse(_)), "a second restore");
        markers.advance(POD, "c", Claim::Taken, Claim::Open).unwrap();
        assert_eq!((create(root.path(), "c"), create(root.path(), "debugger")), (Decision::Allow, Decision::Allow));
    }

    #[test]
    fn what_only_drover_runc_restores_is_no_ordinary_create() {
        let (root, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let markers = Markers::new(root.path());
        markers.arm_for_runtime(POD, "c", "one").unwrap();
        let annotations = serde_json::json!({CONTAINERD_UID: POD, CONTAINERD_NAME: "c", CONTAINERD_TYPE: "container"});
        let state = serde_json::json!({"id": "id", "bundle": bundle.path(), "annotations": annotations}).to_string();
        assert!(matches!(decide(root.path(), state.as_bytes()), Decision::Refuse(reason) if reason.contains("drover node setup")));
        assert_eq!(markers.claim(POD, "c").unwrap(), Some(Claim::Waiting), "it may still be restored");
        std::fs::write(bundle.path().join("restore.log"), "").unwrap();
        assert_eq!(decide(root.path(), state.as_bytes()), Decision::Allow);
        assert_eq!(markers.claim(POD, "c").unwrap(), Some(Claim::Taken));
    }

    #[test]
    fn a_restore_that_comes_after_the_claims_were_opened_would_rewind() {
        let (root, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let markers = Markers::new(root.path());
        markers.arm(POD, "c", "one").unwrap();
        markers.advance(POD, "c", Claim::Waiting, Claim::Open).unwrap();
        let annotations = serde_json::json!({CONTAINERD_UID: POD, CONTAINERD_NAME: "c", CONTAINERD_TYPE: "container"});
        let state = serde_json::json!({"id": "id", "bundle": bundle.path(), "annotations": annotations}).to_string();
        assert_eq!(decide(root.path(), state.as_bytes()), Decision::Allow);
        std::fs::create_dir(bundle.path().join("work")).unwrap();
        std::fs::write(bundle.path().join("work/restore.log"), "").unwrap();
        assert!(matches!(decide(root.path(), state.as_bytes()), Decision::Refuse(_)));
    }

    #[test]
    fn a_restored_container_is_named_by_its_mounts_since_containerd_names_it_wrongly() {
        let root = tempfile::tempdir().unwrap();
        let bundle = tempfile::tempdir().unwrap();
        let markers = Markers::new(root.path());
        markers.arm(POD, "c", "one").unwrap();
        let mounts = serde_json::json!([{"destination": "/proc", "source": "proc"},
            {"destination": "/dev/termination-log", "source": format!("/var/lib/kubelet/pods/{POD}/containers/c/0badcafe")}]);
        std::fs::write(bundle.path().join("config.json"), serde_json::json!({"mounts": mounts}).to_string()).unwrap();
        let annotations = serde_json::json!({CONTAINERD_UID: POD, CONTAINERD_NAME: "containerd", CONTAINERD_TYPE: "container"});
        let state = serde_json::json!({"id": "id", "bundle": bundle.path(), "annotations": annotations}).to_string();
        assert_eq!(decide(root.path(), state.as_bytes()), Decision::Allow);
        assert_eq!(markers.claim(POD, "c").unwrap(), Some(Claim::Taken));
    }

    #[test]
    fn a_revoked_container_never_starts_but_its_sandbox_may() {
        let root = tempfile::tempdir().unwrap();
        let markers = Markers::new(root.path());
        markers.arm(POD, "c", "one").unwrap();
        markers.advance(POD, "c", Claim::Waiting, Claim::Revoked).unwrap();
        assert!(matches!(create(root.path(), "c"), Decision::Refuse(_)));
        let sandbox = serde_json::json!({"id": "id", "annotations": {CONTAINERD_UID: POD, CONTAINERD_TYPE: "sandbox"}}).to_string();
        assert_eq!(decide(root.path(), sandbox.as_bytes()), Decision::Allow);
    }

    #[test]
    fn crios_containers_have_their_claims_and_its_sandbox_none() {
        let root = tempfile::tempdir().unwrap();
        let markers = Markers::new(root.path());
        markers.arm(POD, "c", "one").unwrap();
        let start = |kind: &str, name: &str| {
            let labels = serde_json::json!({KUBERNETES_UID: POD, "io.kubernetes.container.name": name}).to_string();
            let annotations = serde_json::json!({CRIO_TYPE: kind, CRIO_LABELS: labels});
            decide(root.path(), serde_json::json!({"id": "id", "annotations": annotations}).to_string().as_bytes())
        };
        assert_eq!(start("sandbox", "POD"), Decision::Allow);
        assert!(matches!(start("container", "debugger"), Decision::Refuse(_)), "a container without a claim");
        assert_eq!(start("container", "c"), Decision::Allow);
        assert_eq!(markers.claim(POD, "c").unwrap(), Some(Claim::Taken));
        assert!(matches!(start("container", "c"), Decision::Refuse(_)), "a second restore");
    }

    #[test]
    fn a_fence_that_cannot_be_read_stands() {
        let root = fenced();
        let fence = root.path().join(OTHER).join("fence");
        std::fs::create_dir_all(&fence).unwrap();
        assert!(matches!(decide(root.path(), state_of(OTHER).as_bytes()), Decision::Refuse(_)));
    }
}
