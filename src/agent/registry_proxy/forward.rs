//! One request on to the registry's socket, streamed both ways.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderName, Method, StatusCode,
        header::{ACCEPT, ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, RANGE},
        request::Parts,
    },
    response::Response,
};

use super::{
    refuse,
    route::Part,
    uploads::{InFlight, Uploads, as_far_as_it_comes},
};

/// What of a request the registry needs. Anything else (above all `Forwarded` and its kin, by which it would build its Locations) stays here.
const TO_REGISTRY: [HeaderName; 6] = [ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_NONE_MATCH, RANGE];

/// What of an answer a client needs.
const TO_CLIENT: [HeaderName; 10] = [
    ACCEPT_RANGES,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    ETAG,
    LOCATION,
    RANGE,
    HeaderName::from_static("docker-content-digest"),
    HeaderName::from_static("docker-distribution-api-version"),
    HeaderName::from_static("docker-upload-uuid"),
];

/// The registry behind its unix socket.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: reqwest::Client,
}

impl Upstream {
    /// The registry that listens on this socket; it is connected to for each request.
    ///
    /// # Errors
    /// Where no HTTP client can be made.
    pub fn at(socket: &Path) -> Result<Self, reqwest::Error> {
        let path: std::path::PathBuf = socket.to_owned();
        let client = reqwest::Client::builder().unix_socket(path).http1_only().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { client })
    }

    /// Sends a reading request on, which a route has let through, and streams the answer back.
    pub(super) async fn read(&self, request: Request) -> Response {
        self.send(&request.into_parts().0, None).await
    }

    /// Sends a pusher's request on, which a route has let through.
    pub(super) async fn push(&self, uploads: &Uploads, (repository, part): (&str, Part), request: Request) -> Response {
        let quota = uploads.quota(repository);
        let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0);
        if !quota.announce(announced) {
            tracing::warn!(announced, "a push is refused: {}", quota.message());
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, &quota.message());
        }
        let (parts, body) = request.into_parts();
        let in_flight = if part == Part::Upload { uploads.begin(parts.uri.path()).await } else { Some(InFlight::default()) };
        let Some(in_flight) = in_flight else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "this node's registry does not end the request before to this place");
        };
        if parts.method != Method::PATCH && parts.method != Method::PUT {
            return self.send(&parts, None).await;
        }
        let (upstream, passed) = (self.clone(), Arc::new(AtomicU64::new(0)));
        let body = as_far_as_it_comes(body, in_flight.stop.clone(), quota.clone(), Arc::clone(&passed));
        // Not by the door's own task, which ends with its connection: the registry is to end a broken request in due form.
        let sent = tokio::spawn(async move {
            let _in_flight = in_flight;
            upstream.send(&parts, Some(reqwest::Body::wrap_stream(body))).await
        });
        let answer = sent.await.unwrap_or_else(|_| refuse(StatusCode::BAD_GATEWAY, "the request was not sent on"));
        if quota.is_exceeded() {
            tracing::warn!("a push is ended: {}", quota.message());
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, &quota.message());
        }
        if passed.load(Ordering::Relaxed) < announced && answer.status().is_success() {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "not all of the body has come; ask the upload how far it is");
        }
        answer
    }

    async fn send(&self, parts: &Parts, body: Option<reqwest::Body>) -> Response {
        // A POST begins an upload. Its query could mount a blob of another repository into this one, so none is passed on.
        let query = parts.uri.query().filter(|_| parts.method != Method::POST).map(|query| format!("?{query}")).unwrap_or_default();
        let url = format!("http://registry{}{query}", parts.uri.path());
        let mut headers = only(&TO_REGISTRY, &parts.headers);
        if parts.method == Method::PATCH {
            // Its length is what comes of it. All else must come whole.
            headers.remove(CONTENT_LENGTH);
        }
        let mut onward = self.client.request(parts.method.clone(), url).headers(headers);
        if let Some(body) = body {
            onward = onward.body(body);
        }
        match onward.send().await {
            Ok(answer) => passed_back(answer),
            Err(error) => {
                tracing::warn!(%error, method = %parts.method, "the registry did not answer");
                refuse(StatusCode::BAD_GATEWAY, "this node's registry does not answer; see the registry container of its agent pod")
            }
        }
    }
}

fn passed_back(answer: reqwest::Response) -> Response {
    let (status, headers) = (answer.status(), only(&TO_CLIENT, answer.headers()));
    let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn only(names: &[HeaderName], from: &HeaderMap) -> HeaderMap {
    names.iter().filter_map(|name| Some((name.clone(), from.get(name)?.clone()))).collect()
}
