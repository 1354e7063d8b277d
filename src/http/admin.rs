//! `/livez`, `/readyz` and `/metrics`: plain HTTP, for the kubelet and Prometheus.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{metrics::Metrics, readiness::Readiness};

#[derive(Clone)]
struct Admin {
    readiness: Readiness,
    metrics: Metrics,
}

/// The routes.
///
/// `/livez` answers as long as the process can answer; whether a task has died is not asked here, since that ends the process.
pub fn router(readiness: Readiness, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
        .with_state(Admin { readiness, metrics })
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let missing = admin.readiness.missing();
    if missing.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", "))).into_response()
}

async fn text(State(admin): State<Admin>) -> Response {
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("failed to write the metrics: {error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        http::Request,
    };
    use tower::ServiceExt as _;

    use super::*;

    async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn every_route_answers() {
        let readiness = Readiness::default();
        let (webhook, lease) = (readiness.register("webhook"), readiness.register("caches"));
        let router = router(readiness, Metrics::default());
        assert_eq!(get(&router, "/livez").await, (StatusCode::OK, "ok\n".to_owned()));
        assert_eq!(get(&router, "/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "not ready: webhook, caches\n".to_owned()));
        webhook.set(true);
        lease.set(true);
        assert_eq!(get(&router, "/readyz").await.0, StatusCode::OK);
        let (status, metrics) = get(&router, "/metrics").await;
        assert!(status == StatusCode::OK && metrics.ends_with("# EOF\n"), "{metrics}");
    }
}
