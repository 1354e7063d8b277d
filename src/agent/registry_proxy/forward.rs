//! One request on to the registry's socket, streamed both ways.

use std::path::Path;

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderName, Method, StatusCode,
        header::{ACCEPT, ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, RANGE},
    },
    response::Response,
};

use super::refuse;

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

    /// Sends a request on, which a route has let through, and streams the answer back.
    pub(super) async fn forward(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        // A POST begins an upload. Its query could mount a blob of another repository into this one, so none is passed on.
        let query = parts.uri.query().filter(|_| parts.method != Method::POST).map(|query| format!("?{query}")).unwrap_or_default();
        let url = format!("http://registry{}{query}", parts.uri.path());
        let mut onward = self.client.request(parts.method.clone(), url).headers(only(&TO_REGISTRY, &parts.headers));
        if parts.method == Method::PATCH || parts.method == Method::PUT {
            onward = onward.body(reqwest::Body::wrap_stream(body.into_data_stream()));
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
