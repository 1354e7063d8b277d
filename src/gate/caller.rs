//! Whose container it is: its pod's UID and its name in the pod's spec, as containerd and CRI-O write them into the bundle.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// containerd writes the pod's UID here, on the sandbox and on every container of it.
pub(super) const CONTAINERD_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// containerd's name of the container in the pod's spec, and whether it is the sandbox.
pub(super) const CONTAINERD_NAME: &str = "io.kubernetes.cri.container-name";
pub(super) const CONTAINERD_TYPE: &str = "io.kubernetes.cri.container-type";
/// The kubelet's label with the container's name.
const KUBERNETES_NAME: &str = "io.kubernetes.container.name";
/// What CRI-O has for the sandbox's `sandbox` (`internal/annotations`): it runs one where the pod's processes share a namespace.
pub(super) const CRIO_TYPE: &str = "io.kubernetes.cri-o.ContainerType";
/// CRI-O writes the container's labels here, as a JSON object.
pub(super) const CRIO_LABELS: &str = "io.kubernetes.cri-o.Labels";
/// The kubelet's label with the pod's UID; CRI-O keeps it among its annotations too.
pub(super) const KUBERNETES_UID: &str = "io.kubernetes.pod.uid";

/// Largest state or config that is read, in bytes. A real one has some ten thousand.
const LARGEST_DOCUMENT: u64 = 16 << 20;

/// The OCI state that a runtime gives to a hook; also the part of config.json that matters.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    id: String,
    #[serde(default)]
    bundle: Option<PathBuf>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    mounts: Vec<Mount>,
}

#[derive(Deserialize)]
struct Mount {
    #[serde(default)]
    source: String,
}

/// A pod's container that is about to start.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The runtime's ID.
    pub id: String,
    /// Its bundle, none where the runtime did not name it.
    pub bundle: Option<PathBuf>,
    /// UID of its pod.
    pub pod_uid: String,
    annotations: BTreeMap<String, String>,
}

impl Caller {
    /// The container of the OCI state that a runtime gives to a hook; none where it is no pod's.
    ///
    /// # Errors
    /// What of state or config.json cannot be read or parsed.
    pub fn of_state(state: impl Read) -> Result<Option<Self>, String> {
        let state = parse(state).map_err(|problem| format!("the OCI state on stdin {problem}"))?;
        // runc repeats the annotations in the state; the specification does not demand it.
        let annotations = state.annotations.unwrap_or_default();
        if let Some(pod_uid) = pod_uid(&annotations) {
            return Ok(Some(Self { id: state.id, bundle: state.bundle, pod_uid, annotations }));
        }
        let Some(bundle) = state.bundle else { return Ok(None) };
        Self::of_bundle(state.id, bundle)
    }

    /// The container that a bundle's config.json describes; none where it is no pod's.
    ///
    /// # Errors
    /// Why config.json cannot be read or parsed.
    pub fn of_bundle(id: String, bundle: PathBuf) -> Result<Option<Self>, String> {
        let annotations = config(&bundle)?.annotations.unwrap_or_default();
        Ok(pod_uid(&annotations).map(|pod_uid| Self { id, bundle: Some(bundle), pod_uid, annotations }))
    }

    /// Whether it is the pod's sandbox, which executes nothing of the pod's.
    #[must_use]
    pub fn is_sandbox(&self) -> bool {
        [CONTAINERD_TYPE, CRIO_TYPE].iter().any(|key| self.annotations.get(*key).is_some_and(|kind| kind == "sandbox"))
    }

    /// Name of the container in the pod's spec.
    ///
    /// The kubelet's mount of the termination log names it: `…/pods/<UID>/containers/<name>/…`. The annotation comes second, since containerd
    /// 2.3.4 writes `containerd` into it for every container that it restores (seen on the lab).
    #[must_use]
    pub fn container_name(&self) -> Option<String> {
        let config = self.bundle.as_deref().and_then(|bundle| config(bundle).ok());
        let folder = format!("/pods/{}/containers/", self.pod_uid);
        let mounted = config.iter().flat_map(|config| &config.mounts).find_map(|mount| {
            let (_, below) = mount.source.split_once(&folder)?;
            below.split('/').next().filter(|name| !name.is_empty()).map(str::to_owned)
        });
        let annotated = || [CONTAINERD_NAME, KUBERNETES_NAME].iter().find_map(|key| self.annotations.get(*key).cloned());
        mounted.or_else(annotated).or_else(|| crio_label(&self.annotations, KUBERNETES_NAME))
    }
}

fn config(bundle: &Path) -> Result<Document, String> {
    let path = bundle.join("config.json");
    let file = fs::File::open(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    parse(file).map_err(|problem| format!("{} {problem}", path.display()))
}

fn parse(from: impl Read) -> Result<Document, String> {
    let mut bytes = Vec::new();
    from.take(LARGEST_DOCUMENT).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("cannot be parsed: {error}"))
}

fn pod_uid(annotations: &BTreeMap<String, String>) -> Option<String> {
    let direct = [CONTAINERD_UID, KUBERNETES_UID].iter().find_map(|key| annotations.get(*key).cloned());
    direct.or_else(|| crio_label(annotations, KUBERNETES_UID))
}

fn crio_label(annotations: &BTreeMap<String, String>, key: &str) -> Option<String> {
    let labels: BTreeMap<String, String> = serde_json::from_str(annotations.get(CRIO_LABELS)?).ok()?;
    labels.get(key).cloned()
}
