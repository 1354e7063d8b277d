//! Asks of each connection to the pull door, once, who has made it: only the node's own processes get past.
//!
//! A pod with `hostNetwork` reaches the node's loopback, and a repository's name stands in the spec of the pod that has moved: without this, whoever reads the one
//! could read the other's memory.

use std::{io, sync::Arc};

use axum::{
    Extension,
    http::{
        HeaderValue, StatusCode,
        header::{CONNECTION, RETRY_AFTER},
    },
    middleware::AddExtension,
    response::Response,
};
use axum_server::accept::Accept;
use futures::future::BoxFuture;
use tokio::net::TcpStream;
use tower::Layer as _;

use super::refuse;
use crate::{domain::caller::Caller, metrics::Metrics, ports::callers::Callers};

/// Stands at the pull door.
#[derive(Clone)]
pub struct Doorkeeper {
    /// Who knows who connects.
    pub callers: Arc<dyn Callers>,
    /// Where connections are counted.
    pub metrics: Metrics,
}

impl Doorkeeper {
    async fn ask(&self, stream: &TcpStream) -> io::Result<Caller> {
        let (theirs, ours) = (stream.peer_addr()?, stream.local_addr()?);
        let caller = self.callers.who(theirs, ours).await;
        self.metrics.pull_connection(caller.label());
        // Never what is asked for: the name of a repository opens it.
        match &caller {
            Caller::Node => {}
            Caller::Contained { cgroup } => tracing::warn!(%theirs, cgroup, "a pod or container has connected to the door for pulls, and is refused"),
            Caller::Unknown(why) => tracing::warn!(%theirs, "a connection to the door for pulls is refused, since nobody knows whose it is: {why}"),
        }
        Ok(caller)
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Doorkeeper {
    type Stream = TcpStream;
    type Service = AddExtension<S, Caller>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let keeper = self.clone();
        Box::pin(async move {
            let caller = keeper.ask(&stream).await?;
            Ok((stream, Extension(caller).layer(service)))
        })
    }
}

/// What a request hears whose connection is not the node's own; none: it may pass.
pub(super) fn refusal(caller: Option<&Caller>) -> Option<Response> {
    let mut response = match caller {
        Some(Caller::Node) => return None,
        Some(Caller::Contained { .. }) => {
            refuse(StatusCode::FORBIDDEN, "this door is for the node's own processes, not for those of pods and containers")
        }
        Some(Caller::Unknown(_)) | None => {
            let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, "nobody knows which process asks; the log of this node's agent says why");
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            response
        }
    };
    // Whoever tries again is asked again.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Some(response)
}
