//! Pushes over mTLS to a fake registry.

use std::{net::TcpListener, sync::Arc};

use axum_server::tls_rustls::{RustlsConfig, from_tcp_rustls};

use super::{super::fake::Fake, *};
use crate::testing::{Ca, Leaf};

const REPOSITORY: &str = "drover/00000000000000000000000000000001";

struct Scene {
    folder: tempfile::TempDir,
    fake: Arc<Fake>,
    pusher: AgentPusher,
    target: PushTarget,
}

/// A destination `n2` with a certificate for `certified`, and a source whose certificate `client` made.
fn scene(certified: &str, client: impl Fn(&Ca) -> Leaf) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let fake = Fake::new(&folder.path().join("data"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = from_tcp_rustls(listener, RustlsConfig::from_config(ca.server(&ca.leaf(&node_server_name(certified))))).unwrap();
    tokio::spawn(server.serve(fake.router().into_make_service()));
    let pusher = AgentPusher::new(client(&ca).identity(&ca), Metrics::default()).with_pause(Duration::ZERO);
    let target = PushTarget { address, node: "n2".to_owned(), repository: REPOSITORY.to_owned() };
    Scene { folder, fake, pusher, target }
}

impl Scene {
    async fn push(&self) -> PortResult<PushedImage> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in [("config.dump", "{}"), ("spec.dump", "{}"), ("status.dump", "{}"), ("checkpoint/inventory.img", "x")] {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        let archive = self.folder.path().join("archive.tar");
        std::fs::write(&archive, builder.into_inner().unwrap()).unwrap();
        self.pusher.push(&archive, "redis", &Mending { base_image: "docker.io/library/redis@sha256:00".to_owned() }, &self.target).await
    }
}

fn of_n1(ca: &Ca) -> Leaf {
    ca.leaf(&node_server_name("n1"))
}

#[tokio::test]
async fn a_layer_is_sent_again_after_a_passing_failure() {
    let scene = scene("n2", of_n1);
    *scene.fake.failures.lock().unwrap() = 2;
    let pushed = scene.push().await.unwrap();
    assert_eq!(pushed.container, "redis");
    assert_eq!(pushed.bytes % 512, 0);
    let seen = scene.fake.seen.lock().unwrap().clone();
    assert_eq!(seen.iter().filter(|line| line.starts_with("PATCH")).count(), 3);
    assert_eq!(seen.last().map(String::as_str), Some(format!("PUT /v2/{REPOSITORY}/manifests/redis").as_str()), "the manifest comes last");
}

#[tokio::test]
async fn volumes_are_pushed_as_an_artifact_of_their_own() {
    let scene = scene("n2", of_n1);
    let shm = scene.folder.path().join("shm");
    std::fs::create_dir(&shm).unwrap();
    std::fs::write(shm.join("segment"), b"shared").unwrap();
    let pushed = scene.pusher.push_volumes(&[("shm".to_owned(), shm)], &scene.target).await.unwrap();
    assert_eq!((pushed.container.as_str(), pushed.bytes % 512), (crate::domain::keys::VOLUMES_TAG, 0));
    let last = scene.fake.seen.lock().unwrap().last().cloned();
    assert_eq!(last, Some(format!("PUT /v2/{REPOSITORY}/manifests/_volumes")));

    let kept = scene.folder.path().join("kept.tar");
    volumes::archive(&[Volume { name: "shm".to_owned(), folder: scene.folder.path().join("shm") }], &kept).unwrap();
    assert_eq!(scene.pusher.push_volumes_archive(&kept, &scene.target).await.unwrap(), pushed, "one that was kept is the same artifact");
}

#[tokio::test]
async fn three_attempts_are_enough() {
    let scene = scene("n2", of_n1);
    *scene.fake.failures.lock().unwrap() = 9;
    assert_eq!(scene.push().await.unwrap_err().kind, Failure::Transient);
    assert_eq!(*scene.fake.failures.lock().unwrap(), 6);
}

#[tokio::test]
async fn memory_goes_to_no_other_node() {
    let scene = scene("n3", of_n1);
    let error = scene.push().await.unwrap_err();
    assert!(error.message.contains("node n2"), "{error}");
    assert!(scene.fake.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_stranger_cannot_push() {
    let scene = scene("n2", |_| Ca::new().leaf(&node_server_name("n1")));
    assert!(scene.push().await.is_err());
    assert!(scene.fake.seen.lock().unwrap().is_empty());
}

/// The agent's first certificate comes `after` so long; a push waits a second for it.
async fn pushed_by_a_restarted_agent(after: Duration) -> PortResult<PushedImage> {
    let mut scene = scene("n2", of_n1);
    let signed = scene.pusher.identity.borrow().clone();
    let (identified, identity) = watch::channel(Arc::new(front::Identity::absent()));
    scene.pusher = AgentPusher { identity, certificate: Duration::from_secs(1), ..scene.pusher };
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        identified.send_replace(signed);
        identified.closed().await;
    });
    scene.push().await
}

#[tokio::test]
async fn a_restarted_agent_waits_for_its_certificate() {
    pushed_by_a_restarted_agent(Duration::from_millis(50)).await.unwrap();
}

#[tokio::test]
async fn a_push_does_not_wait_for_ever_for_a_certificate() {
    let error = pushed_by_a_restarted_agent(Duration::from_mins(1)).await.unwrap_err();
    assert!(error.message.contains("no certificate yet"), "{error}");
}
