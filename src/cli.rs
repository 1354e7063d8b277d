//! The command line; one file a subcommand.

pub mod agent;
pub mod check;
pub mod crds;
pub mod evacuate;
pub mod kafka;
pub mod manager;
pub mod needed;
pub mod node;
pub mod registry_config;
pub mod resolve;
pub mod status;
pub mod support;

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kube::Client;

/// Moves running Kubernetes pods to another node with their memory.
#[derive(Debug, Parser)]
#[command(name = "drover", version, about, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the webhook and the controllers (in the Deployment drover-manager)
    Manager(manager::Args),
    /// Run a node's agent (in the DaemonSet drover-agent)
    Agent(agent::Args),
    /// Say everything that is in the way of a pod's move, and touch nothing
    Check(check::Args),
    /// Cordon a node and move its pods away with their memory
    Evacuate(evacuate::Args),
    /// Show a migration's phases, its frozen time and its outcome
    Status(status::Args),
    /// Decide a migration that is held because nothing can be proved
    Resolve(resolve::Args),
    /// Set up a node's container runtime, or undo it; shows the difference first
    #[command(subcommand)]
    Node(node::Command),
    /// Say which pods and Migrations still need Drover, before it is uninstalled
    Needed(needed::Args),
    /// Put what tells how migrations went into one file: objects, events, logs, CRIU's logs; no secrets and nothing of a process's memory
    Support(support::Args),
    /// Write the configuration of a node's registry, with where its agent listens (in the agents' init container)
    RegistryConfig(registry_config::Args),
    /// Print the custom resource definitions
    Crds,
    /// Print the version
    Version,
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What a person should read; `main` prints it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Manager(args) => args.run().map(|()| ExitCode::SUCCESS),
            Command::Agent(args) => args.run().map(|()| ExitCode::SUCCESS),
            Command::Check(args) => args.run(),
            Command::Evacuate(args) => args.run(),
            Command::Status(args) => args.run(),
            Command::Resolve(args) => args.run(),
            Command::Node(command) => command.run(),
            Command::Needed(args) => args.run(),
            Command::Support(args) => args.run(),
            Command::RegistryConfig(args) => args.run().map(|()| ExitCode::SUCCESS),
            Command::Crds => {
                std::io::stdout().write_all(crds::render()?.as_bytes())?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Version => {
                println!("drover {}", env!("CARGO_PKG_VERSION"));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Runs a person's command against the API server of the current kubeconfig.
///
/// # Errors
/// Where there is no kubeconfig, and what `work` says.
fn ask_cluster<F: Future<Output = anyhow::Result<ExitCode>>>(work: impl FnOnce(Client) -> F) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { work(Client::try_default().await.context("failed to find the API server; is KUBECONFIG set?")?).await })
}

/// Starts logging and an async runtime, and runs a server of Drover's to its end.
///
/// # Errors
/// Where logging or the runtime cannot be set up, and what `work` says.
fn serve(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let filter = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty()).unwrap_or_else(|| "info".to_owned());
    let format = match std::env::var("DROVER_LOG_FORMAT").as_deref() {
        Ok("json") => crate::telemetry::LogFormat::Json,
        _ => crate::telemetry::LogFormat::Text,
    };
    crate::telemetry::init(&filter, format)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
