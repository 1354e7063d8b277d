//! `drover manager`.

use std::path::PathBuf;

use crate::app::manager::{self, Settings};

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
    #[command(flatten)]
    kafka: super::kafka::KafkaArgs,
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
        }))
    }
}
