//! What a node needs for Drover, as a list of file changes: nothing is written before it has been shown.
//!
//! | file | why |
//! | --- | --- |
//! | `/usr/local/lib/drover/drover-gate` | the gate, on the host, since the hook runs there |
//! | `/usr/local/lib/drover/drover-runc` | the runtime of the runtime lane, which stands in front of runc (MEASURED.md 10) |
//! | `/etc/containerd/drover-base.json` | the OCI spec that every container starts from, with the gate as createRuntime hook (MEASURED.md 11) |
//! | `/etc/containerd/conf.d/drover.toml` | names that spec for the runtimes; the handler `drover`; the image lane's switch where it is asked for |
//! | `/etc/containerd/config.toml` | only where it does not import `conf.d` |
//! | `/etc/criu/runc.conf` | what CRIU must do with sockets, locks and deleted files; on dump and restore alike |
//!
//! `base_runtime_spec` replaces what containerd would generate (`internal/cri/server/container_create.go`), and containerd then no longer takes the
//! default security settings and limits out of it: `ctr oci spec` as it is would limit every container of the node to 1024 open files. So they
//! are taken out here, as containerd does itself.
//!
//! The handler `drover` runs drover-runc, which for a pod without claims is runc. Pods reach it by a RuntimeClass, so no other pod of the node does.

mod files;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use crate::domain::lanes::RUNTIME_CLASS;

pub use files::Change;
use files::{Lines, read_optional};

/// Where the gate lies on a node.
pub const GATE: &str = "/usr/local/lib/drover/drover-gate";
/// Where the base spec lies on a node.
pub const BASE_SPEC: &str = "/etc/containerd/drover-base.json";
/// Where the runtime lies on a node.
pub const RUNTIME: &str = "/usr/local/lib/drover/drover-runc";
const CONF_D: &str = "/etc/containerd/conf.d";
const DROP_IN: &str = "/etc/containerd/conf.d/drover.toml";
const CONFIG: &str = "/etc/containerd/config.toml";
const IMPORT: &str = "imports = [\"/etc/containerd/conf.d/*.toml\"]";
const RUNC_CONF: &str = "/etc/criu/runc.conf";

/// CRIU's settings for runc, and what each is for.
const CRIU_LINES: [&str; 4] = [
    // Connections end on the other node; without it a dump with an open one fails.
    "tcp-close",
    // A connection that is being made counts for nothing.
    "skip-in-flight",
    // Databases lock their files.
    "file-locks",
    // Deleted files that are still open go along, up to this many bytes.
    "ghost-limit 1073741824",
];

/// What to install.
#[derive(Debug, Clone)]
pub struct SetupOptions {
    /// The gate's program, to be copied onto the node.
    pub gate: PathBuf,
    /// The runtime's program, to be copied onto the node; none where the node is to have no runtime lane.
    pub runtime: Option<PathBuf>,
    /// Output of `ctr oci spec` of the node's own containerd.
    pub oci_spec: Vec<u8>,
    /// containerd's runtimes that get the gate (`runc`).
    pub runtimes: Vec<String>,
    /// Whether to switch the image lane on (`enable_experimental_restore_via_create`, containerd 2.2.7 and 2.3.4 on).
    pub image_lane: bool,
}

/// Why a node cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read or written.
    #[error("failed to access {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The spec is not what `ctr oci spec` prints.
    #[error("failed to read the output of `ctr oci spec`: {0}")]
    Spec(String),
    /// Somebody else has set what Drover would set.
    #[error("{path} already sets {key}: add the createRuntime hook {GATE} to the spec that it names, then run this again")]
    Taken {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// `imports` is there, but without `conf.d`.
    #[error("{0} has an `imports` line without /etc/containerd/conf.d/*.toml: add it there")]
    Imports(PathBuf),
    /// A runtime's name that would break the configuration.
    #[error("{0:?} is no name of a runtime")]
    Runtime(String),
}

/// Everything that differs from what a node with Drover has; empty where nothing is to be done.
///
/// # Errors
/// Where a file cannot be read, or somebody else's setting stands in the way.
pub fn install(root: &Path, options: &SetupOptions) -> Result<Vec<Change>, SetupError> {
    let program = |path: &PathBuf| std::fs::read(path).map_err(|source| SetupError::File { path: path.clone(), source });
    // What a setting names is there before the setting.
    let mut changes = vec![Change::to(root, GATE, program(&options.gate)?, 0o755)?];
    if let Some(runtime) = &options.runtime {
        changes.push(Change::to(root, RUNTIME, program(runtime)?, 0o755)?);
    }
    changes.extend([
        Change::to(root, BASE_SPEC, base_spec(&options.oci_spec)?, 0o644)?,
        Change::to(root, DROP_IN, drop_in(options, has_systemd_cgroups(root)?)?.into_bytes(), 0o644)?,
        Change::to(root, CONFIG, imported(root)?.into_bytes(), 0o644)?,
    ]);
    let criu = Lines::of(&text(root, RUNC_CONF)?).with(&CRIU_LINES);
    changes.push(Change::to(root, RUNC_CONF, criu.into_bytes(), 0o644)?);
    Ok(changes.into_iter().filter(Change::is_one).collect())
}

/// What takes Drover off a node again: its files, and the lines that it added to others'.
///
/// The programs stay in the first round: containerd has read its base spec at its start, and while it runs with that, a missing hook would fail
/// every container of the node. Once nothing configures them, and containerd was restarted, a second round removes them. Pods that run by the handler
/// `drover` must be gone by then: without its runtime no container of theirs can be ended.
///
/// # Errors
/// Where a file cannot be read.
pub fn uninstall(root: &Path) -> Result<Vec<Change>, SetupError> {
    let mut changes = vec![Change::away(root, DROP_IN)?, Change::away(root, BASE_SPEC)?];
    if !changes.iter().any(Change::is_one) {
        changes.extend([Change::away(root, GATE)?, Change::away(root, RUNTIME)?]);
    }
    for path in [CONFIG, RUNC_CONF] {
        let rest = Lines::of(&text(root, path)?).without_ours();
        changes.push(if rest.trim().is_empty() { Change::away(root, path)? } else { Change::to(root, path, rest.into_bytes(), 0o644)? });
    }
    Ok(changes.into_iter().filter(Change::is_one).collect())
}

/// The generated spec without what containerd takes out of it (`WithoutDefaultSecuritySettings`), and with the gate.
fn base_spec(generated: &[u8]) -> Result<Vec<u8>, SetupError> {
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

fn drop_in(options: &SetupOptions, systemd_cgroups: bool) -> Result<String, SetupError> {
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
    if options.runtime.is_some() {
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

fn text(root: &Path, path: &str) -> Result<String, SetupError> {
    Ok(read_optional(&root.join(path.trim_start_matches('/')))?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default())
}

#[cfg(test)]
mod tests;
