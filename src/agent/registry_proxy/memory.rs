//! Images with pages, which go past the registry into the node's memory, and ways to pages that their source has kept.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, StatusCode,
        header::{CONNECTION, CONTENT_LENGTH, UPGRADE},
    },
    response::{IntoResponse as _, Response},
};
use futures::StreamExt as _;
use hyper_util::rt::TokioIo;

use super::{
    refuse,
    uploads::{Uploads, whole_or_broken},
};
use crate::{
    domain::memory::PRE_COPY,
    ports::{
        Failure, PortError,
        layout::{ESTIMATED_LENGTH, Incoming, Layout, OVER, Size, WAY},
    },
};

fn size(headers: &HeaderMap) -> Option<Size> {
    let announced = |name: &str| headers.get(name).and_then(|length| length.to_str().ok()?.parse().ok());
    announced(CONTENT_LENGTH.as_str()).map(Size::Exact).or_else(|| announced(ESTIMATED_LENGTH).map(Size::Estimated))
}

/// Takes one, which a route has let through, and tells the digest of what has come.
pub(super) async fn receive(layout: Arc<dyn Layout>, uploads: &Uploads, place: (String, String, String), request: Request) -> Response {
    let (repository, container, file) = place;
    let is_over_pre_copy = match request.headers().get(OVER) {
        None => false,
        Some(named) if named == PRE_COPY => true,
        Some(_) => {
            return refuse(StatusCode::BAD_REQUEST, &format!("{OVER}: must be {PRE_COPY}, the only file that an image can be told as pieces of"));
        }
    };
    // It comes besides what the checkpoint is allowed, so that a pod which may move without it may with it.
    let quota = if file == PRE_COPY { uploads.quota(&format!("{repository}/{container}/{file}")) } else { uploads.quota(&repository) };
    let Some(size) = size(request.headers()) else {
        let needed = format!("Content-Length or {ESTIMATED_LENGTH}: must be there, since the place for it is chosen by its size");
        return refuse(StatusCode::LENGTH_REQUIRED, &needed);
    };
    // What is only thought to come is counted when it comes.
    if let Size::Exact(bytes) = size
        && !quota.announce(bytes)
    {
        tracing::warn!(bytes, "memory is refused: {}", quota.message());
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, &quota.message());
    }
    // Pieces become more than the bytes that bring them.
    if is_over_pre_copy && size.bytes() > uploads.most() {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, &quota.message());
    }
    // One at a time at each place: the request before, whose sender is gone, ends first.
    let Some(in_flight) = uploads.begin(request.uri().path()).await else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the request before to this place does not end");
    };
    let content = whole_or_broken(request.into_body(), in_flight.stop.clone(), quota);
    let memory = Incoming { repository, container, file, size, is_over_pre_copy };
    let (container, file) = (memory.container.clone(), memory.file.clone());
    // Not by the door's own task, which ends with its connection: the one that comes next must find that this one writes no more.
    let taken = tokio::spawn(async move {
        let _in_flight = in_flight;
        layout.receive(&memory, content.boxed()).await
    });
    match taken.await.unwrap_or_else(|_| Err(PortError::transient(format!("{file} was not taken")))) {
        Ok(digest) => (StatusCode::CREATED, [("docker-content-digest", digest.to_string())], Body::empty()).into_response(),
        Err(error) => {
            tracing::warn!(%error, container, "memory was not taken");
            let status = if error.kind == Failure::Permanent { StatusCode::BAD_REQUEST } else { StatusCode::SERVICE_UNAVAILABLE };
            refuse(status, &error.message)
        }
    }
}

/// Takes a way, which a route has let through: from its answer on the connection is the page server's.
pub(super) fn connect(layout: Arc<dyn Layout>, place: (String, String), mut request: Request) -> Response {
    if request.headers().get(UPGRADE).is_none_or(|protocol| protocol != WAY) {
        return refuse(StatusCode::UPGRADE_REQUIRED, &format!("Upgrade: must be {WAY}"));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let (repository, container) = place;
    tokio::spawn(async move {
        let connected = match upgrade.await {
            Ok(way) => layout.connect(&repository, &container, Box::new(TokioIo::new(way))).await,
            Err(error) => Err(PortError::transient(error.to_string())),
        };
        if let Err(error) = connected {
            tracing::warn!(%error, container, "a way to memory was not opened");
        }
    });
    (StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "upgrade"), (UPGRADE, WAY)], Body::empty()).into_response()
}
