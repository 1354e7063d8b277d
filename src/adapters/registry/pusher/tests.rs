//! Pushes over mTLS to a fake registry.

mod dump;

use std::{
    net::TcpListener,
    sync::{Arc, atomic::Ordering},
};

use axum_server::tls_rustls::{RustlsConfig, from_tcp_rustls};
use tokio::io::AsyncReadExt as _;

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
        self.push_pages(&[7]).await
    }

    async fn push_pages(&self, pages: &[u8]) -> PortResult<PushedImage> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in [("config.dump", &b"{}"[..]), ("spec.dump", b"{}"), ("status.dump", b"{}"), ("checkpoint/pages-1.img", pages)] {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
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

/// A way to the destination that breaks once so many bytes have gone through: the destination hears nothing more, the source is told.
fn breaks_after(target: &mut PushTarget, cuts: Vec<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let to = std::mem::replace(&mut target.address, listener.local_addr().unwrap().to_string());
    let mut cuts = cuts.into_iter();
    tokio::spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        // Kept open at the far end, as by a node whose packets are lost.
        let mut kept = Vec::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = tokio::net::TcpStream::connect(&to).await.unwrap();
            let Some(cut) = cuts.next() else {
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
                continue;
            };
            let (from, mut back) = near.split();
            let (mut answers, mut onward) = far.split();
            let mut from = from.take(cut);
            tokio::select! {
                _ = tokio::io::copy(&mut from, &mut onward) => {}
                _ = tokio::io::copy(&mut answers, &mut back) => {}
            }
            kept.push(far);
        }
    });
}

const PAGES: usize = 8 << 20;

fn pages() -> Vec<u8> {
    (0..u32::try_from(PAGES / 4).unwrap()).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

/// Requests of a kind that the registry has seen.
fn requests(scene: &Scene, method: &str) -> usize {
    scene.fake.seen.lock().unwrap().iter().filter(|line| line.starts_with(method) && line.contains("/uploads/")).count()
}

#[tokio::test]
async fn a_cut_push_goes_on_where_it_stopped() {
    let mut scene = scene("n2", of_n1);
    breaks_after(&mut scene.target, vec![4 << 20, 2 << 20]);
    let pushed = scene.push_pages(&pages()).await.unwrap();
    let sent = scene.fake.received.load(Ordering::Relaxed);
    assert_eq!(sent, pushed.bytes, "nothing was sent twice");
    assert_eq!((requests(&scene, "POST"), requests(&scene, "PATCH")), (2, 3), "one upload in three parts, and that of the config");
    assert!(scene.fake.verified(REPOSITORY, &pushed.digest), "the layer is what its manifest says");
    assert!(scene.pusher.metrics.text().unwrap().contains("drover_push_resumed_total 2"));
}

/// As where the registry's disk is full, and its answer is lost with the connection.
#[tokio::test]
async fn a_push_that_is_cut_again_and_again_says_what_it_may_be_and_not_where() {
    let mut scene = scene("n2", of_n1);
    breaks_after(&mut scene.target, vec![1 << 20; 20]);
    let error = scene.push_pages(&pages()).await.unwrap_err();
    assert_eq!(error.kind, Failure::Transient);
    assert!(error.message.contains("a full disk shows like this too"), "{error}");
    assert!(!error.message.contains(REPOSITORY), "the name is a capability: {error}");
}

#[tokio::test]
async fn volumes_go_on_too_and_are_not_sent_where_they_are_already() {
    let mut scene = scene("n2", of_n1);
    breaks_after(&mut scene.target, vec![3 << 20]);
    let folder = scene.folder.path().join("volume");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("file"), pages()).unwrap();
    let volume = ("data".to_owned(), folder);
    let pushed = scene.pusher.push_volumes(std::slice::from_ref(&volume), &scene.target).await.unwrap();
    assert_eq!(scene.fake.received.load(Ordering::Relaxed), pushed.bytes, "nothing was sent twice");
    assert_eq!(scene.pusher.push_volumes(&[volume], &scene.target).await.unwrap(), pushed);
    assert_eq!(scene.fake.received.load(Ordering::Relaxed), pushed.bytes, "what is there is not sent again");
}

/// The first attempt is cut; then the registry tells this of it.
async fn pushed_where_it_claims(range: &str) -> (PortResult<PushedImage>, Scene) {
    let mut scene = scene("n2", of_n1);
    breaks_after(&mut scene.target, vec![4 << 20]);
    *scene.fake.claim.lock().unwrap() = Some(range.to_owned());
    (scene.push_pages(&pages()).await, scene)
}

#[tokio::test]
async fn a_registry_that_claims_what_cannot_be_ends_the_push() {
    let (pushed, scene) = pushed_where_it_claims(&format!("0-{}", 1_u64 << 40)).await;
    let error = pushed.unwrap_err();
    assert!(error.kind == Failure::Permanent && error.message.contains("holds 1099511627777 bytes of a layer of which"), "{error}");
    assert!(error.message.contains("container redis") && error.message.contains("node n2"), "{error}");
    for nonsense in ["", "5-9", "0-x", "bytes 0-5"] {
        let error = pushed_where_it_claims(nonsense).await.0.unwrap_err();
        assert!(error.kind == Failure::Permanent && error.message.contains(&format!("{nonsense:?}")), "{error}");
    }
    assert!(!scene.fake.seen.lock().unwrap().iter().any(|line| line.contains("/manifests/")), "no image came of it");
}

#[tokio::test]
async fn a_registry_that_claims_less_than_it_has_gets_it_all_anew() {
    let (pushed, scene) = pushed_where_it_claims("0-1048575").await;
    let pushed = pushed.unwrap();
    assert!(scene.fake.verified(REPOSITORY, &pushed.digest), "no corrupt blob");
    assert_eq!(requests(&scene, "POST"), 3, "the upload that was wrong, its second, and that of the config");
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
async fn six_attempts_are_enough() {
    let scene = scene("n2", of_n1);
    *scene.fake.failures.lock().unwrap() = 9;
    assert_eq!(scene.push().await.unwrap_err().kind, Failure::Transient);
    assert_eq!(*scene.fake.failures.lock().unwrap(), 3);
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
