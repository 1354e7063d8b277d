//! `drover node setup` and `drover node remove`: show what would change on a node, change it when told to.

use std::{path::PathBuf, process::ExitCode};

use anyhow::ensure;

use crate::app::node::{ContainerRuntime, ContainerdOptions, SetupOptions, oci_spec, remove, runs_crio, setup};

/// What to do with a node; run it on the node as root.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Install the gate, the runtime, the container runtime's drop-in and CRIU's settings
    Setup(Setup),
    /// Take them away again
    Remove(Remove),
}

/// How to set a node up.
#[derive(Debug, clap::Args)]
pub struct Setup {
    /// Change the node; without it the difference is only shown
    #[arg(long)]
    apply: bool,
    /// The node's root file system
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// What runs the node's containers; found out where it is not said. CRI-O is experimental: set-up only, never run on one
    #[arg(long)]
    container_runtime: Option<Runtime>,
    /// The gate's program
    #[arg(long, default_value = "/usr/local/bin/drover-gate")]
    gate: PathBuf,
    /// The runtime's program, for the handler `drover`
    #[arg(long, default_value = "/usr/local/bin/drover-runc", conflicts_with = "without_runtime")]
    runtime: PathBuf,
    /// Leave out the handler `drover`; the node then has no runtime lane
    #[arg(long)]
    without_runtime: bool,
    /// containerd: prints the node's default OCI spec [default: ctr oci spec]
    #[arg(long)]
    oci_spec_command: Option<String>,
    /// containerd: its runtimes that get the gate [default: runc]
    #[arg(long, value_delimiter = ',')]
    runtimes: Option<Vec<String>>,
    /// containerd: switch on its restore of checkpoint images (2.2.7, 2.3.4 and later 2.3)
    #[arg(long)]
    image_lane: bool,
}

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Runtime {
    Containerd,
    CriO,
}

/// How to undo it.
#[derive(Debug, clap::Args)]
pub struct Remove {
    /// Change the node; without it the difference is only shown
    #[arg(long)]
    apply: bool,
    /// The node's root file system
    #[arg(long, default_value = "/")]
    root: PathBuf,
}

impl Command {
    /// Shows the difference, and with `--apply` makes it.
    ///
    /// # Errors
    /// Where a file cannot be read or written, or another setting stands in the way.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut out = std::io::stdout();
        match self {
            Self::Setup(args) => {
                let options = SetupOptions {
                    container_runtime: args.container_runtime()?,
                    gate: args.gate,
                    runtime: (!args.without_runtime).then_some(args.runtime),
                };
                setup(&args.root, &options, args.apply, &mut out)?;
            }
            Self::Remove(args) => {
                remove(&args.root, args.apply, &mut out)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Setup {
    fn container_runtime(&self) -> anyhow::Result<ContainerRuntime> {
        let is_crio = match self.container_runtime {
            Some(runtime) => runtime == Runtime::CriO,
            None => runs_crio(&self.root)?,
        };
        if is_crio {
            let given =
                [("--oci-spec-command", self.oci_spec_command.is_some()), ("--runtimes", self.runtimes.is_some()), ("--image-lane", self.image_lane)];
            let given: Vec<&str> = given.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name).collect();
            ensure!(
                given.is_empty(),
                "the node runs CRI-O, for which {} cannot be said: its hooks are all its runtimes', it takes no base spec, and it has no image lane of Drover's",
                given.join(", ")
            );
            return Ok(ContainerRuntime::Crio);
        }
        let command = self.oci_spec_command.as_deref().unwrap_or("ctr oci spec").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        Ok(ContainerRuntime::Containerd(ContainerdOptions {
            oci_spec: oci_spec(&command)?,
            runtimes: self.runtimes.clone().unwrap_or_else(|| vec!["runc".to_owned()]),
            image_lane: self.image_lane,
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn parsed(root: &std::path::Path, words: &[&str]) -> anyhow::Result<ContainerRuntime> {
        let line = ["node", "setup", "--root", root.to_str().unwrap(), "--oci-spec-command", "echo spec"];
        let from = if words.contains(&"cri-o") || root.join("etc/crio").exists() { &line[..4] } else { &line[..] };
        let Command::Setup(setup) = Line::parse_from(from.iter().chain(words)).command else { panic!("no setup") };
        setup.container_runtime()
    }

    #[test]
    fn the_flag_says_what_the_node_runs_or_the_node_itself() {
        let root = tempfile::tempdir().unwrap();
        let unknown = parsed(root.path(), &[]).unwrap_err().to_string();
        assert!(unknown.contains("--container-runtime containerd or --container-runtime cri-o"), "{unknown}");
        let Ok(ContainerRuntime::Containerd(options)) = parsed(root.path(), &["--container-runtime", "containerd"]) else { panic!("containerd") };
        assert_eq!((options.oci_spec.as_slice(), options.runtimes, options.image_lane), (&b"spec\n"[..], vec!["runc".to_owned()], false));
        assert!(matches!(parsed(root.path(), &["--container-runtime", "cri-o"]), Ok(ContainerRuntime::Crio)));
        std::fs::create_dir_all(root.path().join("etc/crio")).unwrap();
        assert!(matches!(parsed(root.path(), &[]), Ok(ContainerRuntime::Crio)));
    }

    #[test]
    fn what_is_containerds_is_refused_for_crio() {
        let root = tempfile::tempdir().unwrap();
        let refused = |words: &[&str]| parsed(root.path(), &[&["--container-runtime", "cri-o"], words].concat()).unwrap_err().to_string();
        assert!(refused(&["--image-lane"]).starts_with("the node runs CRI-O, for which --image-lane cannot be said"));
        assert!(refused(&["--runtimes", "runc,kata", "--oci-spec-command", "ctr oci spec"]).contains("--oci-spec-command, --runtimes cannot"));
    }
}
