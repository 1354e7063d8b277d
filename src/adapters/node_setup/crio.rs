//! CRI-O's part of a node's set-up: the handler in a drop-in, the gate in a file of hooks. Experimental: never run on a real CRI-O.
//!
//! A handler inherits nothing of the default one that matters here (`pkg/config/config.go`, `ValidateRuntimes`): neither its monitor, without which
//! CRI-O does not even start, nor the monitor's environment, nor the annotations that pods may use. The first two are written out. The last is left
//! out, with `container_min_memory`, whose default is made for runtimes like runc. `inherit_default_runtime` would take drover-runc's
//! path away.

use std::path::Path;

use super::{Change, GATE, RUNTIME, SetupError};
use crate::{
    adapters::crio::{CONF_D, Configuration, in_path, is_program},
    domain::lanes::RUNTIME_CLASS,
    runc::DEFAULT_PATH,
};

pub(super) const DROP_IN_NAME: &str = "90-drover.conf";
/// The name of the hook's file. CRI-O adds hooks in the order of these names, and has no two of the same.
pub(super) const HOOK: &str = "drover-gate.json";
/// Where runc keeps its state where nobody says otherwise, also for CRI-O's own handler of it.
const RUNTIME_ROOT: &str = "/run/runc";

fn drop_in_path() -> String {
    format!("{CONF_D}/{DROP_IN_NAME}")
}

/// The files that differ from what a node with Drover has.
pub(super) fn install(root: &Path, with_runtime: bool) -> Result<Vec<Change>, SetupError> {
    let configuration = configuration(root)?;
    let folders = configuration.hooks();
    // CRI-O takes the later folder first, and /run is another one after a boot.
    let lasting = |folder: &&String| folder.starts_with('/') && !folder.starts_with("/run/") && !folder.starts_with("/var/run/");
    let chosen = folders.iter().rev().find(lasting).ok_or(SetupError::Hooks)?;
    let mut changes = vec![Change::to(root, &format!("{chosen}/{HOOK}"), hook().into_bytes(), 0o644)?];
    for folder in configuration.possible_hooks().iter().filter(|folder| *folder != chosen) {
        changes.push(Change::away(root, &format!("{folder}/{HOOK}"))?);
    }
    changes.push(if with_runtime {
        Change::to(root, &drop_in_path(), handler(root, &configuration)?.into_bytes(), 0o644)?
    } else {
        Change::away(root, &drop_in_path())?
    });
    Ok(changes)
}

/// What of it is to go.
pub(super) fn uninstall(root: &Path) -> Result<Vec<Change>, SetupError> {
    let folders = configuration(root)?.possible_hooks();
    let hooks = folders.iter().map(|folder| Change::away(root, &format!("{folder}/{HOOK}")));
    // Hooks first: what names a program goes before what must be restarted for.
    hooks.chain([Change::away(root, &drop_in_path())]).collect()
}

fn configuration(root: &Path) -> Result<Configuration, SetupError> {
    Configuration::read(root, &drop_in_path()).map_err(|(path, source)| SetupError::File { path, source })
}

fn hook() -> String {
    format!(
        "{{\n  \"version\": \"1.0.0\",\n  \"hook\": {{\"path\": \"{GATE}\"}},\n  \"when\": {{\"always\": true}},\n  \"stages\": [\"createRuntime\"]\n}}\n"
    )
}

/// The drop-in's text, once it is sure that CRI-O would start with it and that drover-runc has what it stands in front of.
fn handler(root: &Path, configuration: &Configuration) -> Result<String, SetupError> {
    if let Some(file) = configuration.names_handler(RUNTIME_CLASS) {
        return Err(SetupError::Handler(root.join(file.trim_start_matches('/'))));
    }
    if in_path(root, "runc").is_none() {
        let elsewhere = configuration.other_runc().into_iter().find(|path| is_program(root, path));
        let remedy = elsewhere.map_or_else(|| "install it".to_owned(), |path| format!("link it by ln -s {path} /usr/local/bin/runc"));
        return Err(SetupError::Runc(remedy));
    }
    let is_plain = |path: &String| !path.contains(['"', '\\']) && !path.contains(char::is_control);
    let monitor = configuration.monitors().into_iter().filter(is_plain).find(|path| is_program(root, path)).ok_or(SetupError::Conmon)?;
    Ok(format!(
        "# Made by drover node setup; drover node remove takes it away.\n[crio.runtime.runtimes.{RUNTIME_CLASS}]\nruntime_path = \"{RUNTIME}\"\n\
         runtime_type = \"oci\"\nruntime_root = \"{RUNTIME_ROOT}\"\nmonitor_path = \"{monitor}\"\nmonitor_env = [\"PATH={DEFAULT_PATH}\"]\n"
    ))
}
