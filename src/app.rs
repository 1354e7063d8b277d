//! Composition roots: settings → adapters → ports → tasks. Only here are adapters named.

pub mod agent;
pub mod bus;
pub mod manager;
pub mod node;
pub mod support;

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::Router;
use tokio_util::sync::CancellationToken;

/// How long requests in flight and running looks may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// How long the API server may take to begin an answer.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Serves plain HTTP until the token is cancelled.
async fn serve_plain(address: SocketAddr, router: Router, token: CancellationToken) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("failed to listen on {address}"))?;
    axum::serve(listener, router).with_graceful_shutdown(token.cancelled_owned()).await.context("failed to serve HTTP")
}

/// A listener that is bound before anything is said to be ready.
fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    std::net::TcpListener::bind(address).with_context(|| format!("failed to listen on {address}; is the port taken?"))
}

/// The two clients of the API server, from the pod's service account or the kubeconfig.
#[derive(Clone)]
struct ApiClients {
    /// For watches, which may be silent for minutes.
    watching: kube::Client,
    /// For calls: one that is not answered ends, so that an API server that hangs holds no step, and no lock, for ever.
    calling: kube::Client,
}

impl ApiClients {
    async fn new() -> anyhow::Result<Self> {
        let watching = kube::Config::infer().await.context("failed to find the API server: neither a service account nor a kubeconfig")?;
        let mut calling = watching.clone();
        calling.read_timeout = Some(CALL_LIMIT);
        calling.reset_reader_on_write = true;
        Ok(Self { watching: watching.try_into()?, calling: calling.try_into()? })
    }
}
