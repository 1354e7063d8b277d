//! `drover agent`.

use std::{net::IpAddr, path::PathBuf};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{
    app::agent::{self, KubeletAccess, Settings},
    domain::quantity::bytes,
};

/// Flags of a node's agent; the chart sets them.
#[derive(Debug, clap::Args)]
// Switches of a command line.
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    /// Name of this node
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Address of this node, at which other agents and its kubelet are reached
    #[arg(long, env = "HOST_IP")]
    host_ip: IpAddr,
    /// Drover's own namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = "drover-system")]
    namespace: String,
    /// Port at which other agents push (mTLS)
    #[arg(long, default_value_t = 5786)]
    push_port: u16,
    /// Port of /livez, /readyz and /metrics (plain HTTP)
    #[arg(long, default_value_t = 5787)]
    admin_port: u16,
    /// Port of this node alone at which its registry tells of pushes (plain HTTP, with a token)
    #[arg(long, default_value_t = 5788)]
    notification_port: u16,
    /// File with that token, as `drover registry-config` writes it
    #[arg(long, default_value = "/run/drover/notification-token")]
    notification_token_file: PathBuf,
    /// Unix socket of the node's registry
    #[arg(long, default_value = "/run/drover/registry.sock")]
    registry_socket: PathBuf,
    /// Folder in which the node's registry keeps its data
    #[arg(long, default_value = "/var/lib/drover/registry")]
    registry_data: PathBuf,
    /// What one migration to this node may store in its registry, as a quantity (64Gi); what is sent again counts too
    #[arg(long, default_value = "64Gi", value_parser = quantity)]
    max_bytes_per_migration: u64,
    /// Folder of journals and markers, on the node's disk
    #[arg(long, default_value = "/var/lib/drover")]
    state: PathBuf,
    /// Socket of containerd
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    containerd_socket: PathBuf,
    /// Port of the kubelet
    #[arg(long, default_value_t = 10250)]
    kubelet_port: u16,
    /// Where the kubelet puts checkpoints
    #[arg(long, default_value = "/var/lib/kubelet/checkpoints")]
    checkpoint_dir: PathBuf,
    /// The node's root file system, read only
    #[arg(long, default_value = "/host")]
    host_root: PathBuf,
    /// CA of the kubelet's certificate. Default: the cluster's
    #[arg(long, default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")]
    kubelet_ca: PathBuf,
    /// Do not verify the kubelet's certificate: where it is self-signed
    #[arg(long)]
    kubelet_insecure_tls: bool,
    /// Folder with tls.crt and tls.key to show to the kubelet. Default: the service account's token
    #[arg(long)]
    kubelet_client_certs: Option<PathBuf>,
    /// Report what the node's pods use, for the rebalancer
    #[arg(long)]
    report_usage: bool,
    /// Have a container's whole memory in its place before it runs, where it could run while its pages come from this node's memory
    #[arg(long)]
    eager_restore: bool,
    /// Send no memory before a pod is frozen (pre-copy)
    #[arg(long)]
    without_pre_copy: bool,
    #[command(flatten)]
    kafka: super::kafka::KafkaArgs,
}

impl Args {
    /// Runs the agent until it is told to stop.
    ///
    /// # Errors
    /// Where a part of it fails; the kubelet starts it anew.
    pub fn run(self) -> anyhow::Result<()> {
        super::serve(agent::run(Settings {
            node: self.node_name,
            host_ip: self.host_ip,
            namespace: self.namespace,
            push_port: self.push_port,
            admin_port: self.admin_port,
            notification_port: self.notification_port,
            notification_token_file: self.notification_token_file,
            kafka: self.kafka.settings(),
            reports_usage: self.report_usage,
            restores_lazily: !self.eager_restore,
            pre_copies: !self.without_pre_copy,
            registry_socket: self.registry_socket,
            registry_data: self.registry_data,
            max_bytes_per_migration: self.max_bytes_per_migration,
            state: self.state,
            containerd_socket: self.containerd_socket,
            host_root: self.host_root,
            kubelet: KubeletAccess {
                port: self.kubelet_port,
                checkpoints: self.checkpoint_dir,
                ca: (!self.kubelet_insecure_tls).then_some(self.kubelet_ca),
                client_certs: self.kubelet_client_certs,
            },
        }))
    }
}

/// At least a byte: zero would have every pod frozen in vain.
fn quantity(text: &str) -> Result<u64, String> {
    bytes(&Quantity(text.to_owned())).filter(|bytes| *bytes > 0).ok_or_else(|| format!("{text:?} is no quantity of bytes such as 64Gi"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_read_or_refused() {
        assert_eq!(quantity("64Gi"), Ok(64 << 30));
        assert_eq!(quantity("1000"), Ok(1000));
        for wrong in ["", "much", "0", "-1Gi", "64 Gi"] {
            assert!(quantity(wrong).is_err_and(|message| message.contains(wrong)), "{wrong}");
        }
    }
}
