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
//! | a fence file that cannot be read, or markers that cannot be listed | refuses: a fence may stand, and a second copy of a pod is worse than a late one |
//! | a state without a pod UID, or one that cannot be parsed | allows with a line on stderr: runc's state names every pod's container, so this is none |

use std::{
    collections::BTreeMap,
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::markers::Markers;

/// containerd writes the pod's UID here, on the sandbox and on every container of it.
const CONTAINERD_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// CRI-O writes the container's labels here, as a JSON object.
const CRIO_LABELS: &str = "io.kubernetes.cri-o.Labels";
/// The kubelet's label with the pod's UID; CRI-O keeps it among its annotations too.
const KUBERNETES_UID: &str = "io.kubernetes.pod.uid";

/// Largest state or config that is read, in bytes. A real one has some ten thousand.
const LARGEST_DOCUMENT: u64 = 16 << 20;

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

/// The OCI state that a runtime gives to a hook; also the part of config.json that matters.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    bundle: Option<PathBuf>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Decides for the container whose OCI state `state` holds, by the markers below `root`.
#[must_use]
pub fn decide(root: &Path, state: impl Read) -> Decision {
    match fs::read_dir(root).map(|mut entries| entries.next().is_none()) {
        Ok(true) => return Decision::Allow,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Decision::Allow,
        // Not empty, or not to be listed: the fence itself is looked at.
        Ok(false) | Err(_) => {}
    }
    match pod_uid(state) {
        Ok(Some(uid)) => by_fence(root, &uid),
        Ok(None) => Decision::AllowUnknown("drover: the container names no pod; it is let through".to_owned()),
        Err(problem) => Decision::AllowUnknown(format!("drover: {problem}; the container is let through")),
    }
}

fn by_fence(root: &Path, uid: &str) -> Decision {
    match Markers::new(root).fenced_by(uid) {
        Ok(None) => Decision::Allow,
        Ok(Some(migration)) => Decision::Refuse(format!(
            "drover: pod {uid} is frozen for migration {migration}; no new container may start (see kubectl get migrations -A)"
        )),
        // A UID that can be no file's name can have no fence either: static pods have such UIDs in some setups.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Decision::Allow,
        Err(error) => Decision::Refuse(format!(
            "drover: the fence of pod {uid} below {} cannot be read ({error}); no container of it may start until it can, or until the file is removed by hand",
            root.display()
        )),
    }
}

fn pod_uid(state: impl Read) -> Result<Option<String>, String> {
    let state = parse(state).map_err(|problem| format!("the OCI state on stdin {problem}"))?;
    // runc repeats the annotations in the state; the specification does not demand it.
    if let Some(uid) = state.annotations.as_ref().and_then(uid_in) {
        return Ok(Some(uid));
    }
    let Some(bundle) = state.bundle else { return Ok(None) };
    let path = bundle.join("config.json");
    let file = fs::File::open(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    let config = parse(file).map_err(|problem| format!("{} {problem}", path.display()))?;
    Ok(config.annotations.as_ref().and_then(uid_in))
}

fn parse(from: impl Read) -> Result<Document, String> {
    let mut bytes = Vec::new();
    from.take(LARGEST_DOCUMENT).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("cannot be parsed: {error}"))
}

fn uid_in(annotations: &BTreeMap<String, String>) -> Option<String> {
    let direct = [CONTAINERD_UID, KUBERNETES_UID].iter().find_map(|key| annotations.get(*key).cloned());
    direct.or_else(|| {
        let labels: BTreeMap<String, String> = serde_json::from_str(annotations.get(CRIO_LABELS)?).ok()?;
        labels.get(KUBERNETES_UID).cloned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_fence_that_cannot_be_read_stands() {
        let root = fenced();
        let fence = root.path().join(OTHER).join("fence");
        std::fs::create_dir_all(&fence).unwrap();
        assert!(matches!(decide(root.path(), state_of(OTHER).as_bytes()), Decision::Refuse(_)));
    }
}
