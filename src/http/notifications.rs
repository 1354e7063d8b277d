//! Where this node's registry tells what was pushed to it.
//!
//! Distribution sends each event in a request of its own and in order, waits for the answer as long as its `timeout` says, and tries for ever what was
//! not answered with 2xx (KAFKA-REGISTRY.md B): so whatever is authentic is answered with 202 before anybody looks at it, and what cannot be used is
//! counted and forgotten.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    routing::post,
};
use subtle::ConstantTimeEq as _;
use tokio::sync::mpsc;

use crate::{
    domain::notification::{Pushed, pushes},
    metrics::Metrics,
};

/// Path of the handler.
pub const PATH: &str = "/notifications";
/// Longest envelope that is read, in bytes: one event with the references of a manifest has less than two thousand.
const LONGEST: usize = 1 << 20;

/// What the handler needs.
#[derive(Clone)]
struct Handler {
    token: Arc<str>,
    pushed: mpsc::Sender<Pushed>,
    metrics: Metrics,
}

/// The routes. `token` is what the registry was given at its start; pushes of checkpoints go to `pushed`, and are dropped where it is full: whoever waits for
/// one asks the registry itself.
pub fn router(token: &str, pushed: mpsc::Sender<Pushed>, metrics: Metrics) -> Router {
    let handler = Handler { token: token.into(), pushed, metrics };
    Router::new().route(PATH, post(take)).layer(DefaultBodyLimit::max(LONGEST)).with_state(handler)
}

async fn take(State(handler): State<Handler>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Bearer "));
    if !shown.is_some_and(|shown| shown.as_bytes().ct_eq(handler.token.as_bytes()).into()) {
        handler.metrics.notification("unauthorized");
        tracing::warn!("somebody who is not this node's registry has sent a notification; it is ignored");
        return StatusCode::UNAUTHORIZED;
    }
    match pushes(&body) {
        Ok(pushes) => {
            for push in pushes {
                let result = handler.pushed.try_send(push);
                handler.metrics.notification(if result.is_ok() { "taken" } else { "overflow" });
            }
        }
        Err(error) => {
            handler.metrics.notification("malformed");
            tracing::warn!(%error, "the registry has sent a notification that cannot be read");
        }
    }
    StatusCode::ACCEPTED
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;

    const ENVELOPE: &str = include_str!("../../tests/golden/registry-notification.json");

    struct Door {
        router: Router,
        taken: mpsc::Receiver<Pushed>,
        metrics: Metrics,
    }

    fn door(room: usize) -> Door {
        let (sender, taken) = mpsc::channel(room);
        let metrics = Metrics::default();
        Door { router: router("secret", sender, metrics.clone()), taken, metrics }
    }

    impl Door {
        async fn tell(&self, authorization: &str, body: impl Into<Body>) -> StatusCode {
            let request = Request::post(PATH).header(AUTHORIZATION, authorization).body(body.into()).expect("a request");
            self.router.clone().oneshot(request).await.expect("an answer").status()
        }

        fn counted(&self, result: &str) -> bool {
            self.metrics.text().expect("text").contains(&format!("drover_registry_notifications_total{{result=\"{result}\"}} 1"))
        }
    }

    #[tokio::test]
    async fn a_push_of_a_checkpoint_is_taken() {
        let mut door = door(1);
        assert_eq!(door.tell("Bearer secret", ENVELOPE).await, StatusCode::ACCEPTED);
        assert_eq!(door.taken.try_recv().expect("a push").tag, "counter");
        assert!(door.counted("taken"));
    }

    #[tokio::test]
    async fn who_has_not_the_token_is_refused_and_counted() {
        let mut door = door(1);
        for shown in ["Bearer wrong!", "Bearer ", "secret", "Basic secret"] {
            assert_eq!(door.tell(shown, ENVELOPE).await, StatusCode::UNAUTHORIZED, "{shown}");
        }
        assert!(door.taken.try_recv().is_err());
        assert!(door.metrics.text().expect("text").contains("drover_registry_notifications_total{result=\"unauthorized\"} 4"));
    }

    #[tokio::test]
    async fn the_registry_is_never_made_to_repeat_what_cannot_be_used() {
        let door = door(1);
        assert_eq!(door.tell("Bearer secret", "{").await, StatusCode::ACCEPTED);
        assert!(door.counted("malformed"));
        assert_eq!(door.tell("Bearer secret", ENVELOPE).await, StatusCode::ACCEPTED);
        assert_eq!(door.tell("Bearer secret", ENVELOPE).await, StatusCode::ACCEPTED);
        assert!(door.counted("overflow"));
        assert_eq!(door.tell("Bearer secret", vec![b' '; LONGEST + 1]).await, StatusCode::PAYLOAD_TOO_LARGE);
    }
}
