//! The outside as it really is: containerd, kubelet, registry, API server. Only `app` names these types.

pub mod agent_api;
pub mod agent_certificate;
pub mod archive;
pub mod ca;
pub mod callers;
pub mod certificate_dir;
pub mod certificates;
pub mod cluster;
pub mod containerd;
mod crio;
pub mod direct;
pub mod docker_config;
pub mod dump;
pub mod inside;
pub mod kafka;
pub mod kube_error;
pub mod kubelet;
pub mod layout;
pub mod lease;
mod memory_room;
pub mod node_probe;
pub mod node_setup;
mod pre_copy;
mod processes;
mod received;
pub mod registry;
pub mod support;
mod volumes;
mod ways;
pub mod webhook_configuration;
pub mod world;

/// An error with its causes: reqwest keeps what matters (a refused connection, an unknown issuer) in its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Does what blocks where that holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
