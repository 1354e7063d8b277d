//! `drover node setup` and `drover node remove`: show what would change on a node, change it when told to.

use std::{path::PathBuf, process::ExitCode};

use crate::app::node::{SetupOptions, oci_spec, remove, setup};

/// What to do with a node; run it on the node as root.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Install the gate, the runtime, containerd's drop-in and CRIU's settings
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
    /// The gate's program
    #[arg(long, default_value = "/usr/local/bin/drover-gate")]
    gate: PathBuf,
    /// The runtime's program, for the handler `drover`
    #[arg(long, default_value = "/usr/local/bin/drover-runc", conflicts_with = "without_runtime")]
    runtime: PathBuf,
    /// Leave out the handler `drover`; the node then has no runtime lane
    #[arg(long)]
    without_runtime: bool,
    /// Prints the node's default OCI spec
    #[arg(long, default_value = "ctr oci spec")]
    oci_spec_command: String,
    /// Runtimes of containerd that get the gate
    #[arg(long, default_values_t = ["runc".to_owned()], value_delimiter = ',')]
    runtimes: Vec<String>,
    /// Switch on containerd's restore of checkpoint images (2.2.7, 2.3.4 and later 2.3)
    #[arg(long)]
    image_lane: bool,
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
                let command: Vec<String> = args.oci_spec_command.split_whitespace().map(str::to_owned).collect();
                let options = SetupOptions {
                    gate: args.gate,
                    runtime: (!args.without_runtime).then_some(args.runtime),
                    oci_spec: oci_spec(&command)?,
                    runtimes: args.runtimes,
                    image_lane: args.image_lane,
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
