//! Uploads through the push door that are cut, or larger than they may be.

use std::sync::atomic::AtomicUsize;

use axum::{
    Router,
    extract::Request,
    http::{Method, StatusCode, header::CONTENT_LENGTH},
    response::IntoResponse as _,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{Upstream, route::Part},
    *,
};

const REPOSITORY: &str = "drover/0123456789abcdef0123456789abcdef";
const UPLOAD: &str = "/v2/drover/0123456789abcdef0123456789abcdef/blobs/uploads/1";

/// A registry that holds what has come, and writes down when a request of its has ended.
struct Registry {
    upstream: Upstream,
    held: Arc<AtomicUsize>,
    log: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

fn registry() -> Registry {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("registry.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let (held, log) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(vec![])));
    let (has, writes) = (Arc::clone(&held), Arc::clone(&log));
    let router = Router::new().fallback(move |request: Request| {
        let (has, writes) = (Arc::clone(&has), Arc::clone(&writes));
        async move {
            let method = request.method().clone();
            let mut body = request.into_body().into_data_stream();
            let mut end = "whole";
            while let Some(chunk) = body.next().await {
                match chunk {
                    Ok(chunk) => drop(has.fetch_add(chunk.len(), Ordering::Relaxed)),
                    Err(_) => end = "broken",
                }
            }
            // It takes its time to write.
            tokio::time::sleep(Duration::from_millis(50)).await;
            writes.lock().unwrap().push(format!("{method} {end} {}", has.load(Ordering::Relaxed)));
            if method == Method::GET { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED }.into_response()
        }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Registry { upstream: Upstream::at(&socket).unwrap(), held, log, _folder: folder }
}

impl Registry {
    async fn ask(&self, uploads: &Uploads, method: Method, announced: u64, body: Body) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(UPLOAD).header(CONTENT_LENGTH, announced).body(body).unwrap();
        let answer = self.upstream.push(uploads, (REPOSITORY, Part::Upload), request).await;
        let status = answer.status();
        (status, String::from_utf8(axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap())
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

/// A body of which so many bytes come, and then no more, nor an end.
fn stuck(bytes: usize) -> (Body, mpsc::Sender<io::Result<Bytes>>) {
    let (sender, receiver) = mpsc::channel(2);
    sender.try_send(Ok(vec![7; bytes].into())).unwrap();
    let chunks = futures::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    (Body::from_stream(chunks), sender)
}

#[tokio::test]
async fn who_asks_for_a_cut_upload_hears_of_all_that_has_come() {
    let (registry, uploads) = (Arc::new(registry()), Arc::new(Uploads::new(1 << 20)));
    let (body, sender) = stuck(1000);
    let (told, first) = oneshot::channel();
    let (its_registry, its_uploads) = (Arc::clone(&registry), Arc::clone(&uploads));
    tokio::spawn(async move { told.send(its_registry.ask(&its_uploads, Method::PATCH, 5000, body).await) });
    while registry.held.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The source's end is gone; this end does not know it.
    assert_eq!(registry.ask(&uploads, Method::GET, 0, Body::empty()).await.0, StatusCode::NO_CONTENT);
    assert_eq!(registry.log(), ["PATCH whole 1000", "GET whole 1000"], "the registry had ended the first in due form");
    assert_eq!(first.await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE, "nobody takes a part for the whole");
    drop(sender);

    assert_eq!(registry.ask(&uploads, Method::PATCH, 4000, vec![7; 4000].into()).await.0, StatusCode::ACCEPTED);
    assert_eq!(registry.held.load(Ordering::Relaxed), 5000);
}

#[tokio::test]
async fn a_broken_body_is_kept_as_far_as_it_came_though_its_sender_is_gone() {
    let (registry, uploads) = (registry(), Uploads::new(1 << 20));
    let (body, sender) = stuck(1000);
    sender.send(Err(io::ErrorKind::ConnectionReset.into())).await.unwrap();
    {
        let asked = registry.ask(&uploads, Method::PATCH, 5000, body);
        // The door's task ends with its connection.
        assert!(tokio::time::timeout(Duration::from_millis(20), asked).await.is_err());
    }
    assert_eq!(registry.ask(&uploads, Method::GET, 0, Body::empty()).await.0, StatusCode::NO_CONTENT);
    assert_eq!(registry.log(), ["PATCH whole 1000", "GET whole 1000"]);
}

#[tokio::test]
async fn a_blob_that_ends_early_is_never_whole_to_the_registry() {
    let (registry, uploads) = (registry(), Uploads::new(1 << 20));
    let (body, sender) = stuck(1000);
    drop(sender);
    assert!(!registry.ask(&uploads, Method::PUT, 5000, body).await.0.is_success());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!registry.log().iter().any(|line| line.contains("whole")), "{:?}", registry.log());
}

#[tokio::test]
async fn no_migration_stores_more_than_it_may() {
    let (registry, uploads) = (registry(), Uploads::new(3 << 20));
    let megabyte = || Body::from(vec![7; 1 << 20]);
    for _ in 0..2 {
        assert_eq!(registry.ask(&uploads, Method::PATCH, 1 << 20, megabyte()).await.0, StatusCode::ACCEPTED);
    }
    // It announces less than it sends.
    let (status, told) = registry.ask(&uploads, Method::PATCH, 0, vec![7; 2 << 20].into()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(told.contains("one migration may store 3 MiB") && told.contains("registry.maxBytesPerMigration"), "{told}");
    assert_eq!(registry.held.load(Ordering::Relaxed), 2 << 20, "not a byte of it has gone to the registry");
    for method in [Method::GET, Method::POST, Method::PUT] {
        assert_eq!(registry.ask(&uploads, method, 0, Body::empty()).await.0, StatusCode::PAYLOAD_TOO_LARGE, "whoever did not hear it hears it now");
    }
}

#[tokio::test]
async fn what_is_announced_to_be_too_much_is_not_even_begun() {
    let (registry, uploads) = (registry(), Uploads::new(3 << 20));
    let (body, _sender) = stuck(1);
    assert_eq!(registry.ask(&uploads, Method::PATCH, (3 << 20) + 1, body).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(registry.log(), [""; 0]);
    assert!(!uploads.quota("drover/ffffffffffffffffffffffffffffffff").is_exceeded(), "others may");
    assert!(uploads.quota("drover/ffffffffffffffffffffffffffffffff").announce(3 << 20));
}
