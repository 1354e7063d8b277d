//! Both doors of the registry: who gets through, and to what.

mod memory;

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use axum::http::{HeaderMap, Method};
use futures::StreamExt as _;
use reqwest::{Certificate, Client, Identity};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use super::*;
use crate::{
    domain::ids::node_server_name,
    metrics::Metrics,
    ports::callers::Callers,
    testing::{Ca, FakeNode, Leaf},
};

const GRANTED: &str = "/v2/drover/0123456789abcdef0123456789abcdef";
const OTHER: &str = "/v2/drover/ffffffffffffffffffffffffffffffff";

const MOST: u64 = 1 << 20;

/// What takes whatever comes.
fn nobody() -> FakeNode {
    FakeNode::new(crate::api::Migration::new("m", crate::api::MigrationSpec::default()))
}

/// One repository is granted to n1.
fn grant(most_bytes: u64, layout: FakeNode) -> Grant {
    Grant { may_push: Arc::new(|repository, node| repository == &GRANTED[4..] && node == "n1"), most_bytes, layout: Arc::new(layout) }
}

/// A registry that says what it was asked.
fn upstream(folder: &std::path::Path) -> (Upstream, Arc<Mutex<Vec<String>>>) {
    let socket = folder.join("registry.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let router = Router::new().fallback(move |request: Request| {
        let log = Arc::clone(&log);
        async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            log.lock().unwrap().push(format!("{} {}", parts.method, parts.uri));
            let mut headers = HeaderMap::new();
            headers.insert("docker-content-digest", "sha256:00".parse().unwrap());
            headers.insert("location", format!("{GRANTED}/blobs/uploads/1?_state=x").parse().unwrap());
            headers.insert("server", "secret-version".parse().unwrap());
            (StatusCode::ACCEPTED, headers, body)
        }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    (Upstream::at(&socket).unwrap(), seen)
}

fn bound() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

struct PushDoor {
    ca: Ca,
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    tls: RustlsConfig,
    /// Takes memory.
    node: FakeNode,
    _folder: tempfile::TempDir,
}

/// The push door of n2, which grants one repository to n1.
fn push_scene() -> PushDoor {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let (upstream, seen) = upstream(folder.path());
    let (listener, port) = bound();
    let leaf = ca.leaf(&node_server_name("n2"));
    let tls = RustlsConfig::from_config(ca.server(&leaf));
    let node = nobody();
    tokio::spawn(serve_pushes(listener, upstream, tls.clone(), grant(MOST, node.clone()), Handle::new()).unwrap());
    PushDoor { ca, port, seen, tls, node, _folder: folder }
}

impl PushDoor {
    fn client(&self, leaf: Option<&Leaf>) -> Client {
        let name = node_server_name("n2");
        let mut builder = Client::builder()
            .no_proxy()
            .tls_certs_only([Certificate::from_pem(self.ca.pem.as_bytes()).unwrap()])
            .resolve(&name, SocketAddr::from(([127, 0, 0, 1], self.port)));
        if let Some(leaf) = leaf {
            builder = builder.identity(Identity::from_pem(format!("{}{}", leaf.certificate, leaf.key).as_bytes()).unwrap());
        }
        builder.build().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}:{}{path}", node_server_name("n2"), self.port)
    }

    async fn status(&self, client: &Client, method: Method, path: &str) -> u16 {
        client.request(method, self.url(path)).send().await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn the_source_of_the_migration_pushes_and_nobody_else() {
    let door = push_scene();
    let source = door.client(Some(&door.ca.leaf(&node_server_name("n1"))));
    let answer = source.patch(door.url(&format!("{GRANTED}/blobs/uploads/1?_state=x"))).body("memory").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert_eq!(answer.headers()["location"], format!("{GRANTED}/blobs/uploads/1?_state=x"));
    assert!(!answer.headers().contains_key("server"));
    assert_eq!(answer.text().await.unwrap(), "memory");
    assert_eq!(*door.seen.lock().unwrap(), [format!("PATCH {GRANTED}/blobs/uploads/1?_state=x")]);

    assert_eq!(door.status(&source, Method::PUT, &format!("{OTHER}/manifests/redis")).await, 403);
    assert_eq!(door.status(&source, Method::DELETE, &format!("{GRANTED}/manifests/redis")).await, 405);
    assert_eq!(door.status(&source, Method::GET, "/v2/_catalog").await, 403);
    for name in [node_server_name("n3"), "n1.example.org".to_owned()] {
        let stranger = door.client(Some(&door.ca.leaf(&name)));
        assert_eq!(door.status(&stranger, Method::PUT, &format!("{GRANTED}/manifests/redis")).await, 403, "{name}");
    }
    assert!(door.client(None).get(door.url("/v2/")).send().await.is_err(), "a client without a certificate was let in");
    assert!(door.client(Some(&Ca::new().leaf(&node_server_name("n1")))).get(door.url("/v2/")).send().await.is_err(), "a foreign CA was let in");
    assert_eq!(door.seen.lock().unwrap().len(), 1, "a refused request reached the registry");
}

#[tokio::test]
async fn no_blob_of_another_repository_is_mounted() {
    let door = push_scene();
    let source = door.client(Some(&door.ca.leaf(&node_server_name("n1"))));
    let mount = format!("{GRANTED}/blobs/uploads/?mount=sha256:00&from={}", &OTHER[4..]);
    assert_eq!(door.status(&source, Method::POST, &mount).await, 202);
    assert_eq!(*door.seen.lock().unwrap(), [format!("POST {GRANTED}/blobs/uploads/")]);
}

#[tokio::test]
async fn certificates_rotate_while_it_serves() {
    let door = push_scene();
    let next = Ca::new();
    let leaf = next.leaf(&node_server_name("n2"));
    door.tls.reload_from_config(next.server(&leaf));
    assert!(door.client(Some(&door.ca.leaf(&node_server_name("n1")))).get(door.url("/v2/")).send().await.is_err());
    let renewed = PushDoor { ca: next, ..door };
    let source = renewed.client(Some(&renewed.ca.leaf(&node_server_name("n1"))));
    assert_eq!(renewed.status(&source, Method::PUT, &format!("{GRANTED}/manifests/redis")).await, 202);
}

/// Answers what it was told to, in turn, and counts how often it was asked.
struct Known {
    answers: Mutex<VecDeque<Caller>>,
    asked: AtomicUsize,
}

#[async_trait]
impl Callers for Known {
    async fn who(&self, theirs: SocketAddr, ours: SocketAddr) -> Caller {
        assert!(theirs.ip().is_loopback() && ours.ip().is_loopback() && theirs != ours);
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.answers.lock().unwrap().pop_front().expect("it was not to be asked")
    }
}

struct PullDoor {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    known: Arc<Known>,
    metrics: Metrics,
    handle: Handle<SocketAddr>,
    serving: JoinHandle<io::Result<()>>,
    _folder: tempfile::TempDir,
}

/// The pull door, to which these connect, one after the other.
fn pull_scene(callers: impl IntoIterator<Item = Caller>) -> PullDoor {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (upstream, seen) = upstream(folder.path());
    let (listener, port) = bound();
    let known = Arc::new(Known { answers: Mutex::new(callers.into_iter().collect()), asked: AtomicUsize::new(0) });
    let (metrics, handle) = (Metrics::default(), Handle::new());
    let keeper = Doorkeeper { callers: known.clone(), metrics: metrics.clone() };
    let serving = tokio::spawn(serve_pulls(listener, upstream, keeper, handle.clone()).unwrap());
    PullDoor { port, seen, known, metrics, handle, serving, _folder: folder }
}

impl PullDoor {
    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

#[tokio::test]
async fn the_runtime_pulls_and_lists_nothing() {
    let door = pull_scene([Caller::Node]);
    let client = Client::builder().no_proxy().build().unwrap();
    let head = client.head(door.url(&format!("{GRANTED}/manifests/redis"))).send().await.unwrap();
    assert_eq!(head.headers()["docker-content-digest"], "sha256:00");
    let catalog = client.get(door.url("/v2/_catalog")).send().await.unwrap();
    assert_eq!(catalog.status(), StatusCode::FORBIDDEN);
    assert_eq!(catalog.json::<serde_json::Value>().await.unwrap()["errors"][0]["code"], "DENIED");
    assert_eq!(client.put(door.url(&format!("{GRANTED}/manifests/redis"))).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(door.seen.lock().unwrap().len(), 1);
    assert_eq!(door.known.asked.load(Ordering::Relaxed), 1, "a connection that is kept is asked for once");
    door.handle.shutdown();
    door.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn only_the_nodes_own_processes_pull() {
    let pod = Caller::Contained { cgroup: "/kubepods/pod1".into() };
    let unknown = || Caller::Unknown("gone".into());
    let door = pull_scene([pod, unknown(), unknown(), Caller::Node]);
    let client = Client::builder().no_proxy().build().unwrap();
    let ask = async || client.get(door.url(&format!("{GRANTED}/manifests/redis"))).send().await.unwrap();
    for (status, code) in [(403, "DENIED"), (503, "UNAVAILABLE"), (503, "UNAVAILABLE")] {
        let answer = ask().await;
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers()["connection"], "close", "whoever tries again is to be asked again");
        assert_eq!(answer.headers().contains_key("retry-after"), status == 503);
        let body = answer.json::<serde_json::Value>().await.unwrap();
        assert_eq!(body["errors"][0]["code"], code);
        assert!(!body.to_string().contains(&GRANTED[4..]), "the name of a repository opens it: {body}");
    }
    assert!(door.seen.lock().unwrap().is_empty(), "a refused request reached the registry");
    assert_eq!(ask().await.status(), StatusCode::ACCEPTED);
    assert_eq!(door.seen.lock().unwrap().len(), 1);
    let text = door.metrics.text().unwrap();
    for (label, count) in [("node", 1), ("contained", 1), ("unknown", 2)] {
        assert!(text.contains(&format!(r#"drover_pull_connections_total{{result="{label}"}} {count}"#)), "{label} is not {count} in\n{text}");
    }
}

#[tokio::test]
async fn a_layer_passes_through_while_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("registry.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let arrived = Arc::new(Notify::new());
    let first = Arc::clone(&arrived);
    let router = Router::new().fallback(move |request: Request| {
        let first = Arc::clone(&first);
        async move {
            let mut body = request.into_body().into_data_stream();
            let mut length = 0;
            while let Some(part) = body.next().await {
                length += part.unwrap().len();
                first.notify_one();
            }
            length.to_string()
        }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    let ca = Ca::new();
    let leaf = ca.leaf(&node_server_name("n2"));
    let tls = RustlsConfig::from_config(ca.server(&leaf));
    let (listener, port) = bound();
    tokio::spawn(serve_pushes(listener, Upstream::at(&socket).unwrap(), tls.clone(), grant(MOST, nobody()), Handle::new()).unwrap());
    let door = PushDoor { ca, port, seen: Arc::default(), tls, node: nobody(), _folder: folder };
    let client = door.client(Some(&door.ca.leaf(&node_server_name("n1"))));

    // The second half is sent only once the registry has the first: a proxy that kept the body would wait for ever.
    let (sender, receiver) = mpsc::channel::<io::Result<bytes::Bytes>>(1);
    let body = reqwest::Body::wrap_stream(futures::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) }));
    let sending = tokio::spawn(client.patch(door.url(&format!("{GRANTED}/blobs/uploads/1"))).header("content-length", 8).body(body).send());
    sender.send(Ok("half".into())).await.unwrap();
    arrived.notified().await;
    sender.send(Ok("half".into())).await.unwrap();
    drop(sender);
    assert_eq!(sending.await.unwrap().unwrap().text().await.unwrap(), "8");
}
