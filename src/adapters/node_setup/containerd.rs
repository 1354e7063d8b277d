//! containerd's part of a node's set-up: the base spec with the gate, and the drop-in that names it.
//!
//! `base_runtime_spec` replaces what containerd would generate (`internal/cri/server/container_create.go`), and containerd then no longer takes the
//! default security settings and limits out of it: `ctr oci spec` as it is would limit every container of the node to 1024 open files. So they
//! are taken out here, as containerd does itself.

use std::{fmt::Write as _, path::Path};

use super::{
    GATE, RUNTIME, SetupError,
    files::{Change, Lines, read_optional},
    text,
};
use crate::domain::lanes::RUNTIME_CLASS;

/// Where the base spec lies on a node.
pub const BASE_SPEC: &str = "/etc/containerd/drover-base.json";
/// The folder of containerd's configuration.
pub(super) const FOLDER: &str = "/etc/containerd";
const CONF_D: &str = "/etc/containerd/conf.d";
pub(super) const DROP_IN: &str = "/etc/containerd/conf.d/drover.toml";
pub(super) const CONFIG: &str = "/etc/containerd/config.toml";
const IMPORT: &str = "imports = [\"/etc/containerd/conf.d/*.toml\"]";

/// What to install for containerd.
#[derive(Debug, Clone)]
pub struct ContainerdOptions {
    /// Output of `ctr oci spec` of the node's own containerd.
    pub oci_spec: Vec<u8>,
    /// containerd's runtimes that get the gate (`runc`).
    pub runtimes: Vec<String>,
    /// Whether to switch the image lane on (`enable_experimental_restore_via_create`, containerd 2.2.7 and 2.3.4 on).
    pub image_lane: bool,
}

/// The files that differ from what a node with Drover has.
pub(super) fn install(root: &Path, options: &ContainerdOptions, with_runtime: bool) -> Result<Vec<Change>, SetupError> {
    Ok(vec![
        Change::to(root, BASE_SPEC, base_spec(&options.oci_spec)?, 0o644)?,
        Change::to(root, DROP_IN, drop_in(options, with_runtime, has_systemd_cgroups(root)?)?.into_bytes(), 0o644)?,
        Change::to(root, CONFIG, imported(root)?.into_bytes(), 0o644)?,
    ])
}

/// The generated spec without what containerd takes out of it (`WithoutDefaultSecuritySettings`), and with the gate.
pub(super) fn base_spec(generated: &[u8]) -> Result<Vec<u8>, SetupError> {
    let wrong = |problem: &str| SetupError::Spec(problem.to_owned());
    let mut spec: serde_json::Value = serde_json::from_slice(generated).map_err(|error| SetupError::Spec(error.to_string()))?;
    let process = spec.get_mut("process").and_then(serde_json::Value::as_object_mut).ok_or_else(|| wrong("it has no process"))?;
    process.remove("rlimits");
    process.remove("apparmorProfile");
    let linux = spec.get_mut("linux").and_then(serde_json::Value::as_object_mut).ok_or_else(|| wrong("it has no linux part"))?;
    linux.remove("seccomp");
    // Made anew for each container.
    linux.remove("cgroupsPath");
    spec["hooks"] = serde_json::json!({"createRuntime": [{"path": GATE}]});
    let mut bytes = serde_json::to_vec_pretty(&spec).map_err(|error| SetupError::Spec(error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn drop_in(options: &ContainerdOptions, with_runtime: bool, systemd_cgroups: bool) -> Result<String, SetupError> {
    const PLUGIN: &str = "plugins.'io.containerd.cri.v1.runtime'";
    let mut text = "# Made by drover node setup; drover node remove takes it away.\nversion = 3\n".to_owned();
    if options.image_lane {
        let _ = write!(text, "\n[{PLUGIN}]\nenable_criu = true\nenable_experimental_restore_via_create = true\n");
    }
    for runtime in &options.runtimes {
        if runtime.is_empty() || runtime == RUNTIME_CLASS || !runtime.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(SetupError::Runtime(runtime.clone()));
        }
        let _ = write!(text, "\n[{PLUGIN}.containerd.runtimes.{runtime}]\nbase_runtime_spec = '{BASE_SPEC}'\n");
    }
    if with_runtime {
        let handler = format!("{PLUGIN}.containerd.runtimes.{RUNTIME_CLASS}");
        let _ = write!(text, "\n[{handler}]\nruntime_type = 'io.containerd.runc.v2'\nbase_runtime_spec = '{BASE_SPEC}'\n");
        let _ = write!(text, "\n[{handler}.options]\nBinaryName = '{RUNTIME}'\n");
        if systemd_cgroups {
            text.push_str("SystemdCgroup = true\n");
        }
    }
    Ok(text)
}

/// Whether the node's runtimes make their cgroups through systemd: the kubelet has one way for all pods, so the handler must go it too.
fn has_systemd_cgroups(root: &Path) -> Result<bool, SetupError> {
    let ours = root.join(DROP_IN.trim_start_matches('/'));
    let others = std::fs::read_dir(root.join(CONF_D.trim_start_matches('/')));
    let others = others.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let others = others.filter(|path| *path != ours && path.extension().is_some_and(|extension| extension == "toml"));
    for path in [root.join(CONFIG.trim_start_matches('/'))].into_iter().chain(others) {
        let text = read_optional(&path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let set = |line: &str| line.split_once('=').is_some_and(|(key, value)| key.trim() == "SystemdCgroup" && value.trim().starts_with("true"));
        if text.lines().any(set) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The main configuration, importing `conf.d`. Where there is none, one that does nothing else.
fn imported(root: &Path) -> Result<String, SetupError> {
    let path = root.join(CONFIG.trim_start_matches('/'));
    let config = text(root, CONFIG)?;
    let active = || config.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let set =
        |line: &str| line.split_once('=').is_some_and(|(key, value)| key.trim() == "base_runtime_spec" && !matches!(value.trim(), "''" | "\"\""));
    if active().any(set) {
        return Err(SetupError::Taken { path, key: "base_runtime_spec" });
    }
    if config.trim().is_empty() {
        return Ok(Lines::of("").with(&["version = 3", IMPORT]));
    }
    let imports = active().find(|line| line.split('=').next().is_some_and(|key| key.trim() == "imports"));
    match imports {
        // A list over several lines is the reader's to judge: the whole file is searched for the folder.
        Some(_) if config.contains("/etc/containerd/conf.d/") => Ok(config),
        Some(_) => Err(SetupError::Imports(path)),
        // A key of the root table must stand before the first section.
        None => Ok(Lines::of(&config).with_first(IMPORT)),
    }
}
