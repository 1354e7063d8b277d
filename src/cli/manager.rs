//! `drover manager`.

use std::{path::PathBuf, time::Duration};

use crate::{
    api::migration::Lane,
    app::manager::{self, Settings},
    domain::rebalance::{self, Mode},
};

/// Flags of the manager; the chart sets them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Drover's own namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = "drover-system")]
    namespace: String,
    /// Name of this pod: who holds the lease
    #[arg(long, env = "POD_NAME")]
    pod_name: String,
    /// Service through which the API server calls the webhooks
    #[arg(long, default_value = "drover-webhook")]
    webhook_service: String,
    /// Port of the webhooks (TLS)
    #[arg(long, default_value_t = 9443)]
    webhook_port: u16,
    /// Port of the scheduler extender (TLS, with the webhooks' certificate); without it there is none
    #[arg(long)]
    extender_port: Option<u16>,
    /// Port of /livez, /readyz and /metrics (plain HTTP)
    #[arg(long, default_value_t = 8080)]
    admin_port: u16,
    /// Name of the webhook configurations whose caBundle is kept
    #[arg(long, default_value = "drover")]
    webhook_configuration: String,
    /// Service account of the agents, in Drover's namespace
    #[arg(long, default_value = "drover-agent")]
    agent_service_account: String,
    /// Service account of the manager, in Drover's namespace
    #[arg(long, default_value = "drover-manager")]
    manager_service_account: String,
    /// Folder with tls.crt, tls.key and ca.crt for the webhooks, where somebody else makes certificates
    #[arg(long)]
    webhook_cert_dir: Option<PathBuf>,
    /// Answer evictions of the API lifecycle.k8s.io (alpha) that name drover.dev/migration as a responder
    #[arg(long)]
    eviction_requests: bool,
    /// Key of a taint that empties a node as a cordon does; may be given several times
    #[arg(long = "evacuation-taint", value_name = "KEY")]
    evacuation_taints: Vec<String>,
    /// How memory travels where neither the Migration says so nor the pod: auto takes the runtime lane where that takes no node away from the scheduler
    #[arg(long, default_value = "auto", value_parser = lane)]
    lane: Lane,
    /// How many pods are on their way to a node at the same time, from their freeze to their end; 0: no limit
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    arrivals_per_node: u32,
    /// What is done about nodes that have too much to do
    #[arg(long, value_enum, default_value_t = Rebalance::Off)]
    rebalance: Rebalance,
    /// Percent of a node's CPU above which it has too much to do
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=100))]
    rebalance_cpu_percent: u32,
    /// Percent of a node's memory above which it has too much to do
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u32).range(1..=100))]
    rebalance_memory_percent: u32,
    /// Seconds for which it must have been so
    #[arg(long, default_value_t = 300)]
    rebalance_window_seconds: u64,
    /// How many pods leave such a node at once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rebalance_most_pods: u32,
    #[command(flatten)]
    kafka: super::kafka::KafkaArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rebalance {
    /// Nothing
    Off,
    /// It is said what would be done
    DryRun,
    /// Pods whose MigrationPolicy has the trigger Load are moved
    On,
}

impl Rebalance {
    const fn mode(self) -> Option<Mode> {
        match self {
            Self::Off => None,
            Self::DryRun => Some(Mode::DryRun),
            Self::On => Some(Mode::On),
        }
    }
}

impl Args {
    /// Runs the manager until it is told to stop.
    ///
    /// # Errors
    /// Where a part of it fails; Kubernetes starts it anew.
    pub fn run(self) -> anyhow::Result<()> {
        super::serve(manager::run(Settings {
            namespace: self.namespace,
            pod_name: self.pod_name,
            webhook_service: self.webhook_service,
            webhook_port: self.webhook_port,
            extender_port: self.extender_port,
            admin_port: self.admin_port,
            webhook_configuration: self.webhook_configuration,
            agent_service_account: self.agent_service_account,
            manager_service_account: self.manager_service_account,
            webhook_cert_dir: self.webhook_cert_dir,
            kafka: self.kafka.settings(),
            eviction_requests: self.eviction_requests,
            evacuation_taints: self.evacuation_taints,
            lane: self.lane,
            arrivals_per_node: self.arrivals_per_node,
            rebalancer: self.rebalance.mode().map(|mode| {
                let thresholds = rebalance::Settings {
                    cpu_percent: self.rebalance_cpu_percent,
                    memory_percent: self.rebalance_memory_percent,
                    window: Duration::from_secs(self.rebalance_window_seconds),
                    most_pods: self.rebalance_most_pods as usize,
                };
                (mode, thresholds)
            }),
        }))
    }
}

/// A lane by its name in the API.
fn lane(text: &str) -> Result<Lane, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("{text:?} is none of auto, image, runtime"))
}
