//! The agent's two doors to the registry, which itself listens on a unix socket only (DESIGN.md 7).
//!
//! ```text
//! this node's runtime ── http, 127.0.0.1:5785 ──▶ pull door: GET and HEAD of one repository's manifests and blobs ─┐
//!                                                                                                                  ├─▶ unix socket ─▶ registry
//! another node's agent ── mTLS, HOST_IP:5786 ───▶ push door: only what `may_push` grants to that node, now ────────┘
//! ```
//!
//! Checkpoint images hold the memory of processes. Neither door lists anything: who wants a checkpoint must know its repository's 128 random bits, and be a
//! process of the node itself, or, for the push door, hold a certificate of the node that the migration leaves. Bodies are streamed both ways, never kept; a push
//! that was cut goes on where it stopped, and no migration stores more than it may.

mod doorkeeper;
mod forward;
mod memory;
mod peer;
mod route;
mod uploads;

use std::{
    future::{Future, Ready, ready},
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use axum_server::{
    Handle,
    accept::Accept,
    tls::TlsInfo,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};

pub use doorkeeper::Doorkeeper;
pub use forward::Upstream;
use tokio::{io::BufReader, net::TcpStream};
use uploads::Uploads;

use crate::{domain::caller::Caller, ports::layout::Layout};

/// How long a new connection may take until its first request: neither runtime nor agent waits, a port scanner does.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Bytes that are taken from a connection at once: rustls asks for no more than 4 KiB (`DeframerVecBuffer::prepare_read`), a system call for each.
const READ_AHEAD: usize = 256 << 10;

/// Whether a node's agent may push to a repository at this moment: `(repository, node)`.
pub type MayPush = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// Who may push, and how much.
#[derive(Clone)]
pub struct Grant {
    /// Whether a node's agent may push to a repository at this moment.
    pub may_push: MayPush,
    /// Bytes that one migration may store, what is sent again included.
    pub most_bytes: u64,
    /// Where images with pages, and ways to pages, go past the registry.
    pub layout: Arc<dyn Layout>,
}

/// Serves the pull door until `handle` ends it. `listener` is bound to loopback.
///
/// # Errors
/// Where the listener cannot be used.
pub fn serve_pulls(
    listener: TcpListener,
    upstream: Upstream,
    keeper: Doorkeeper,
    handle: Handle<SocketAddr>,
) -> io::Result<impl Future<Output = io::Result<()>>> {
    listener.set_nonblocking(true)?;
    let server = axum_server::from_tcp(listener)?.acceptor(keeper).handle(handle).first_request_timeout(FIRST_REQUEST);
    Ok(server.serve(pull_door(upstream).into_make_service()))
}

/// Serves the push door until `handle` ends it. `tls` demands a client certificate of Drover's CA; it may be reloaded
/// while it serves.
///
/// # Errors
/// Where the listener cannot be used.
pub fn serve_pushes(
    listener: TcpListener,
    upstream: Upstream,
    tls: RustlsConfig,
    grant: Grant,
    handle: Handle<SocketAddr>,
) -> io::Result<impl Future<Output = io::Result<()>>> {
    listener.set_nonblocking(true)?;
    let acceptor = RustlsAcceptor::new(tls).acceptor(ReadAhead);
    let server = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle).first_request_timeout(FIRST_REQUEST);
    Ok(server.serve(push_door(upstream, grant).into_make_service()))
}

/// Reads what has arrived at a connection all at once.
#[derive(Clone, Copy)]
struct ReadAhead;

impl<S: Send + 'static> Accept<TcpStream, S> for ReadAhead {
    type Stream = BufReader<TcpStream>;
    type Service = S;
    type Future = Ready<io::Result<(Self::Stream, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(Ok((BufReader::with_capacity(READ_AHEAD, stream), service)))
    }
}

fn pull_door(upstream: Upstream) -> Router {
    Router::new().fallback(move |caller: Option<Extension<Caller>>, request: Request| {
        let upstream = upstream.clone();
        async move {
            if let Some(refusal) = doorkeeper::refusal(caller.as_deref()) {
                return refusal;
            }
            match route::pull(request.method(), request.uri().path()) {
                Ok(()) => upstream.read(request).await,
                Err(refusal) => refuse(refusal, "this door is for pulls of checkpoints by this node's runtime"),
            }
        }
    })
}

fn push_door(upstream: Upstream, grant: Grant) -> Router {
    let uploads = Arc::new(Uploads::new(grant.most_bytes));
    Router::new().fallback(move |peer: Option<Extension<Arc<TlsInfo>>>, request: Request| {
        let (upstream, may_push, uploads, layout) = (upstream.clone(), Arc::clone(&grant.may_push), Arc::clone(&uploads), Arc::clone(&grant.layout));
        async move {
            let Some(node) = peer.and_then(|Extension(info)| peer::node_of(&info.peer_certificates)) else {
                return refuse(StatusCode::FORBIDDEN, "the client certificate names no node's agent");
            };
            if let Some(place) = route::memory(request.method(), request.uri().path()) {
                return if may_push(&place.0, &node) { memory::receive(layout, &uploads, place, request).await } else { unexpected() };
            }
            if let Some(place) = route::way(request.method(), request.uri().path()) {
                return if may_push(&place.0, &node) { memory::connect(layout, place, request) } else { unexpected() };
            }
            match route::push(request.method(), request.uri().path()).map(|(repository, part)| (repository.to_owned(), part)) {
                Ok((repository, part)) if may_push(&repository, &node) => upstream.push(&uploads, (&repository, part), request).await,
                Ok(_) => unexpected(),
                Err(refusal) => refuse(refusal, "this door is for pushes of checkpoints by other nodes' agents"),
            }
        }
    })
}

fn unexpected() -> Response {
    refuse(StatusCode::FORBIDDEN, "no migration from that node expects a push to this repository now")
}

/// An error as the distribution specification wants it. It repeats nothing of the request.
fn refuse(status: StatusCode, message: &str) -> Response {
    let code = match status {
        StatusCode::METHOD_NOT_ALLOWED => "UNSUPPORTED",
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => "UNAVAILABLE",
        StatusCode::PAYLOAD_TOO_LARGE => "SIZE_INVALID",
        _ => "DENIED",
    };
    let body = serde_json::json!({"errors": [{"code": code, "message": format!("drover: {message}")}]}).to_string();
    (status, [(CONTENT_TYPE, "application/json")], Body::from(body)).into_response()
}

#[cfg(test)]
mod tests;
