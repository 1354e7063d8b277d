//! Setting a node up, and undoing it: the difference is shown, and made when told to.

use std::{io::Write, path::Path};

use anyhow::{Context as _, ensure};

use crate::adapters::node_setup::{Change, concern_crio, concern_programs, install, uninstall};
pub use crate::adapters::node_setup::{ContainerRuntime, ContainerdOptions, SetupOptions};

/// What the user must do; Drover restarts nothing.
const RESTART: &str = "Restart containerd to make it effective (systemctl restart containerd); running pods go on meanwhile.";
/// The same for CRI-O. A reload is not enough: a handler that is added so is shown, and pods do not find it (cri-o issue 10202).
const RESTART_CRIO: &str = "Restart CRI-O to make it effective (systemctl restart crio); running pods go on meanwhile. CRI-O is experimental: this was \
                            never run on one, and Drover cannot freeze pods through it yet.";

/// Whether CRI-O runs the containers of the node below `root`, and not containerd.
///
/// # Errors
/// Where that cannot be told.
pub fn runs_crio(root: &Path) -> anyhow::Result<bool> {
    Ok(crate::adapters::node_setup::runs_crio(root)?)
}

/// Output of `ctr oci spec` on this node.
///
/// # Errors
/// Where `command` cannot be run or fails.
pub fn oci_spec(command: &[String]) -> anyhow::Result<Vec<u8>> {
    let (program, arguments) = command.split_first().context("no command for the OCI spec")?;
    let output = std::process::Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("failed to run {program}; name containerd's own ctr, or give its `ctr oci spec` output as a file"))?;
    ensure!(output.status.success(), "{} failed: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// Shows what a node below `root` lacks for Drover, and with `apply` puts it there. Returns whether anything differed.
///
/// # Errors
/// Where a file cannot be read or written, or another setting stands in the way.
pub fn setup(root: &Path, options: &SetupOptions, apply: bool, out: &mut impl Write) -> anyhow::Result<bool> {
    let restart = match options.container_runtime {
        ContainerRuntime::Containerd(_) => RESTART,
        ContainerRuntime::Crio => RESTART_CRIO,
    };
    carry_out(&install(root, options)?, apply, "the node is set up", restart, out)
}

/// Shows what Drover has put below `root`, and with `apply` takes it away. Returns whether there was anything. The programs go in a second
/// round, after the container runtime's restart (see [`uninstall`]).
///
/// # Errors
/// Where a file cannot be read or written.
pub fn remove(root: &Path, apply: bool, out: &mut impl Write) -> anyhow::Result<bool> {
    let changes = uninstall(root)?;
    let of_crio = concern_crio(&changes);
    if of_crio {
        // A CRI-O that has started without a handler fails whatever it is asked of its pods (cri-o issue 9521).
        writeln!(
            out,
            "Before CRI-O is restarted the node must have no pod left that runs by the handler drover: CRI-O ends no pod of a handler that it does not know."
        )?;
    }
    let restart = match (of_crio, concern_programs(&changes)) {
        (true, _) => RESTART_CRIO,
        (false, false) => RESTART,
        // The round after the restart.
        (false, true) => "",
    };
    let found = carry_out(&changes, apply, "nothing of Drover's is left on the node", restart, out)?;
    if found && apply && !uninstall(root)?.is_empty() {
        writeln!(
            out,
            "The programs are still there, since the container runtime runs with them until its restart. Run this again after the restart, once the node has no pod \
             left that runs by the handler drover: without drover-runc it could not be ended."
        )?;
    }
    Ok(found)
}

fn carry_out(changes: &[Change], apply: bool, done: &str, restart: &str, out: &mut impl Write) -> anyhow::Result<bool> {
    if changes.is_empty() {
        writeln!(out, "Nothing to do: {done}.")?;
        return Ok(false);
    }
    for change in changes {
        write!(out, "{change}")?;
        if apply {
            change.apply()?;
        }
    }
    if apply {
        writeln!(out, "{}", format!("Done. {restart}").trim_end())?;
    } else {
        writeln!(out, "Nothing was changed. Run it again with --apply to do this.")?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_without_apply() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("gate"), "program").unwrap();
        std::fs::write(root.path().join("runtime"), "program").unwrap();
        let options = SetupOptions {
            gate: root.path().join("gate"),
            runtime: Some(root.path().join("runtime")),
            container_runtime: ContainerRuntime::Containerd(ContainerdOptions {
                oci_spec: br#"{"process":{},"linux":{}}"#.to_vec(),
                runtimes: vec!["runc".to_owned()],
                image_lane: false,
            }),
        };
        let mut out = Vec::new();
        assert!(setup(root.path(), &options, false, &mut out).unwrap());
        assert!(!root.path().join("etc").exists());
        assert!(String::from_utf8(out).unwrap().contains("--apply"));
        let mut out = Vec::new();
        setup(root.path(), &options, true, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("Restart containerd"));
        assert!(!setup(root.path(), &options, true, &mut Vec::new()).unwrap());
        let mut out = Vec::new();
        assert!(remove(root.path(), true, &mut out).unwrap());
        assert!(String::from_utf8(out).unwrap().contains("again after the restart"));
        assert!(remove(root.path(), true, &mut Vec::new()).unwrap());
        assert!(!remove(root.path(), true, &mut Vec::new()).unwrap());
    }

    #[test]
    fn a_node_of_crio_is_told_what_it_must_know() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("gate"), "program").unwrap();
        let options = SetupOptions { gate: root.path().join("gate"), runtime: None, container_runtime: ContainerRuntime::Crio };
        let said = |work: &dyn Fn(&mut Vec<u8>) -> anyhow::Result<bool>| {
            let mut out = Vec::new();
            work(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let done = said(&|out| setup(root.path(), &options, true, out));
        assert!(done.contains("systemctl restart crio") && done.contains("experimental") && !done.contains("containerd"), "{done}");
        let removed = said(&|out| remove(root.path(), true, out));
        assert!(removed.starts_with("Before CRI-O is restarted the node must have no pod left"), "{removed}");
        assert!(removed.contains("systemctl restart crio") && removed.contains("again after the restart"), "{removed}");
        let last = said(&|out| remove(root.path(), true, out));
        assert!(last.ends_with("Done.\n") && !last.contains("estart"), "{last}");
        assert!(said(&|out| remove(root.path(), true, out)).contains("Nothing to do"));
    }

    #[test]
    fn a_missing_ctr_is_named() {
        let error = oci_spec(&["/nonexistent/ctr".to_owned(), "oci".to_owned(), "spec".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ctr"));
    }
}
