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
//! On a node of CRI-O (experimental: written by its documentation and source, never run on one) these come in the place of containerd's files:
//!
//! | file | why |
//! | --- | --- |
//! | `/etc/crio/crio.conf.d/90-drover.conf` | the handler `drover` |
//! | `drover-gate.json` in a folder of hooks, `/usr/share/containers/oci/hooks.d` where the node says nothing else | the gate as createRuntime hook |
//!
//! The handler `drover` runs drover-runc, which for a pod without claims is runc. Pods reach it by a RuntimeClass, so no other pod of the node does.

mod containerd;
mod crio;
mod files;

use std::path::{Path, PathBuf};

use super::crio::{self as crio_node, CONF_D, OVERRIDE_HOOKS};
use crate::runc::DEFAULT_PATH;

pub use containerd::{BASE_SPEC, ContainerdOptions};
pub use files::Change;
use files::{Lines, read_optional};

/// Where the gate lies on a node.
pub const GATE: &str = "/usr/local/lib/drover/drover-gate";
/// Where the runtime lies on a node.
pub const RUNTIME: &str = "/usr/local/lib/drover/drover-runc";
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
    /// What runs the node's containers.
    pub container_runtime: ContainerRuntime,
}

/// What runs a node's containers, and what is to be set up for it.
#[derive(Debug, Clone)]
pub enum ContainerRuntime {
    /// containerd.
    Containerd(ContainerdOptions),
    /// CRI-O: experimental.
    Crio,
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
    /// A handler of this name that is not Drover's.
    #[error("{0} has a runtime handler drover that is not Drover's: take it out there, then run this again")]
    Handler(PathBuf),
    /// CRI-O reads hooks nowhere that a boot leaves.
    #[error("CRI-O reads hooks in no folder that outlasts a boot: add {OVERRIDE_HOOKS} to hooks_dir in a file below {CONF_D}, then run this again")]
    Hooks,
    /// drover-runc stands in front of runc.
    #[error("drover-runc runs runc, and the node has none in {DEFAULT_PATH}: {0}. CRI-O's default, crun, does not do. Or use --without-runtime")]
    Runc(String),
    /// CRI-O would not start with a handler without a monitor.
    #[error(
        "conmon is not found on the node, neither where CRI-O's configuration has monitor_path nor in {DEFAULT_PATH}: install it, since a handler without it keeps CRI-O from starting; or use --without-runtime"
    )]
    Conmon,
    /// Nobody can tell what runs the node's containers.
    #[error("the node has {0}: say by --container-runtime containerd or --container-runtime cri-o what runs its containers")]
    Undecided(&'static str),
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
    changes.extend(match &options.container_runtime {
        ContainerRuntime::Containerd(containerd) => containerd::install(root, containerd, options.runtime.is_some())?,
        ContainerRuntime::Crio => crio::install(root, options.runtime.is_some())?,
    });
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
/// CRI-O watches its folders of hooks and forgets the gate at once, but for a container that it has just written down with it. Its handlers it reads at
/// its start, as containerd does, and runs their program to end a container: the second round is for that.
///
/// # Errors
/// Where a file cannot be read.
pub fn uninstall(root: &Path) -> Result<Vec<Change>, SetupError> {
    let mut changes = vec![Change::away(root, containerd::DROP_IN)?, Change::away(root, BASE_SPEC)?];
    changes.extend(crio::uninstall(root)?);
    if !changes.iter().any(Change::is_one) {
        changes.extend([Change::away(root, GATE)?, Change::away(root, RUNTIME)?]);
    }
    for path in [containerd::CONFIG, RUNC_CONF] {
        let rest = Lines::of(&text(root, path)?).without_ours();
        changes.push(if rest.trim().is_empty() { Change::away(root, path)? } else { Change::to(root, path, rest.into_bytes(), 0o644)? });
    }
    Ok(changes.into_iter().filter(Change::is_one).collect())
}

/// Whether CRI-O's own configuration is among the changes: it must be restarted for them.
#[must_use]
pub fn concern_crio(changes: &[Change]) -> bool {
    changes.iter().any(|change| change.path().ends_with(crio::DROP_IN_NAME) || change.path().ends_with(crio::HOOK))
}

/// Whether the programs are among the changes: where they are taken away nothing names them any more.
#[must_use]
pub fn concern_programs(changes: &[Change]) -> bool {
    changes.iter().any(|change| [GATE, RUNTIME].iter().any(|program| change.path().ends_with(program.trim_start_matches('/'))))
}

/// Which of the two runs the containers of the node below `root`, as far as configuration and programs tell.
///
/// # Errors
/// Where there is neither or both: Docker brings a containerd along, which no kubelet uses.
pub fn runs_crio(root: &Path) -> Result<bool, SetupError> {
    let has = |folder: &str, program: &str| root.join(folder.trim_start_matches('/')).is_dir() || crio_node::in_path(root, program).is_some();
    match (has(containerd::FOLDER, "containerd"), has(crio_node::FOLDER, "crio")) {
        (true, false) => Ok(false),
        (false, true) => Ok(true),
        (true, true) => Err(SetupError::Undecided("containerd and CRI-O")),
        (false, false) => Err(SetupError::Undecided("neither containerd nor CRI-O where they usually are")),
    }
}

fn text(root: &Path, path: &str) -> Result<String, SetupError> {
    Ok(read_optional(&root.join(path.trim_start_matches('/')))?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default())
}

#[cfg(test)]
mod tests;
