//! Memory through the push door, past the registry.

use super::*;
use crate::{
    domain::memory::MemoryDigest,
    ports::layout::{ESTIMATED_LENGTH, WAY},
};

fn place(repository: &str) -> String {
    format!("/memory/{}/app/pages-1.img", &repository[4..])
}

impl PushDoor {
    fn source(&self) -> Client {
        self.client(Some(&self.ca.leaf(&node_server_name("n1"))))
    }

    async fn put(&self, client: &Client, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        client.put(self.url(path)).body(body).send().await.unwrap()
    }

    fn trace(&self) -> Vec<String> {
        self.node.state().trace.clone()
    }
}

/// A body whose length nobody knows before its end.
fn endless(receiver: mpsc::Receiver<io::Result<bytes::Bytes>>) -> reqwest::Body {
    reqwest::Body::wrap_stream(futures::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) }))
}

#[tokio::test]
async fn memory_of_the_granted_node_is_taken_and_its_digest_told() {
    let door = push_scene();
    let answer = door.put(&door.source(), &place(GRANTED), "memory").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["docker-content-digest"], MemoryDigest::of(b"memory").to_string().as_str());
    assert_eq!(door.trace(), ["receive app/pages-1.img", "6 of 6 bytes of app/pages-1.img"]);
    assert!(door.seen.lock().unwrap().is_empty(), "the registry has nothing to do with it");
}

#[tokio::test]
async fn memory_of_anybody_else_or_for_another_place_is_refused() {
    let door = push_scene();
    assert_eq!(door.put(&door.source(), &place(OTHER), "memory").await.status(), StatusCode::FORBIDDEN);
    for name in [node_server_name("n3"), "n1.example.org".to_owned()] {
        let stranger = door.client(Some(&door.ca.leaf(&name)));
        assert_eq!(door.put(&stranger, &place(GRANTED), "memory").await.status(), StatusCode::FORBIDDEN, "{name}");
    }
    for path in [place(GRANTED).replace("pages-1", "core-1"), place(GRANTED).replace("app", "%2e%2e")] {
        assert_eq!(door.put(&door.source(), &path, "memory").await.status(), StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(door.status(&door.source(), Method::GET, &place(GRANTED)).await, 403, "what has come is told to nobody");
    assert!(door.trace().is_empty() && door.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn memory_says_how_much_it_is() {
    let door = push_scene();
    let (sender, receiver) = mpsc::channel(1);
    sender.send(Ok("memory".into())).await.unwrap();
    drop(sender);
    assert_eq!(door.put(&door.source(), &place(GRANTED), endless(receiver)).await.status(), StatusCode::LENGTH_REQUIRED);
    assert!(door.trace().is_empty());
}

#[tokio::test]
async fn memory_that_is_still_being_written_says_what_it_is_thought_to_become() {
    let door = push_scene();
    let (sender, receiver) = mpsc::channel(1);
    let estimated = |body| door.source().put(door.url(&place(GRANTED))).header(ESTIMATED_LENGTH, 4).body(body).send();
    let sending = tokio::spawn(estimated(endless(receiver)));
    for part in ["mem", "ory"] {
        sender.send(Ok(part.into())).await.unwrap();
    }
    drop(sender);
    let answer = sending.await.unwrap().unwrap();
    assert_eq!(answer.headers()["docker-content-digest"], MemoryDigest::of(b"memory").to_string().as_str());

    let (sender, receiver) = mpsc::channel(1);
    let sending = tokio::spawn(estimated(endless(receiver)));
    sender.send(Ok("mem".into())).await.unwrap();
    sender.send(Err(io::Error::other("it cannot be read on"))).await.unwrap();
    assert!(sending.await.unwrap().is_err());
    while door.trace().len() < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        door.trace(),
        ["receive app/pages-1.img", "6 of 4 bytes of app/pages-1.img", "receive app/pages-1.img"],
        "what breaks off is not whole"
    );

    let more = vec![7; usize::try_from(MOST).unwrap() + 1];
    assert!(!estimated(more.into()).await.is_ok_and(|answer| answer.status().is_success()), "what comes is counted though nobody has announced it");
}

#[tokio::test]
async fn memory_and_layers_share_what_a_migration_may_store() {
    let door = push_scene();
    let source = door.source();
    let half = vec![7; usize::try_from(MOST / 2).unwrap()];
    assert_eq!(door.put(&source, &place(GRANTED), half.clone()).await.status(), StatusCode::CREATED);
    assert_eq!(door.put(&source, &format!("{GRANTED}/blobs/uploads/1"), half).await.status(), StatusCode::ACCEPTED);
    let answer = door.put(&source, &place(GRANTED), "x").await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.text().await.unwrap().contains("1 MiB"), "it says how much may be stored");
    assert_eq!(door.trace().len(), 2, "it was never begun");
}

#[tokio::test]
async fn what_the_node_cannot_take_is_told_with_its_reason() {
    for (kind, status) in
        [(crate::ports::Failure::Transient, StatusCode::SERVICE_UNAVAILABLE), (crate::ports::Failure::Permanent, StatusCode::BAD_REQUEST)]
    {
        let door = push_scene();
        door.node.fail("receive", kind);
        let answer = door.put(&door.source(), &place(GRANTED), "memory").await;
        assert_eq!(answer.status(), status);
        assert!(answer.text().await.unwrap().contains("receive was made to fail"));
    }
}

#[tokio::test]
async fn a_second_try_waits_until_the_first_has_ended() {
    let door = push_scene();
    let (sender, receiver) = mpsc::channel(1);
    let first = tokio::spawn(door.source().put(door.url(&place(GRANTED))).header("content-length", 8).body(endless(receiver)).send());
    sender.send(Ok("half".into())).await.unwrap();
    while door.trace().is_empty() {
        tokio::task::yield_now().await;
    }
    // The line is cut: the door's own task of the first ends.
    first.abort();
    drop(sender);
    let answer = door.put(&door.source(), &place(GRANTED), "whole").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let trace = ["receive app/pages-1.img", "app/pages-1.img breaks off", "receive app/pages-1.img", "5 of 5 bytes of app/pages-1.img"];
    assert_eq!(door.trace(), trace);
}

fn way(repository: &str) -> String {
    format!("/way/{}/app", &repository[4..])
}

impl PushDoor {
    async fn open(&self, client: &Client, path: &str) -> reqwest::Response {
        client.post(self.url(path)).header("connection", "upgrade").header("upgrade", WAY).send().await.unwrap()
    }
}

#[tokio::test]
async fn a_way_of_the_granted_node_goes_through_both_ways_without_an_end() {
    let door = push_scene();
    let answer = door.open(&door.source(), &way(GRANTED)).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut way = answer.upgrade().await.unwrap();
    for word in [b"page 7", b"page 8"] {
        way.write_all(word).await.unwrap();
        let mut back = [0; 6];
        way.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, word);
    }
    assert_eq!(door.trace(), [format!("connect {}/app", &GRANTED[4..])]);
}

#[tokio::test]
async fn a_way_of_anybody_else_or_without_its_protocol_is_refused() {
    let door = push_scene();
    assert_eq!(door.open(&door.source(), &way(OTHER)).await.status(), StatusCode::FORBIDDEN);
    let stranger = door.client(Some(&door.ca.leaf(&node_server_name("n3"))));
    assert_eq!(door.open(&stranger, &way(GRANTED)).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(door.source().post(door.url(&way(GRANTED))).send().await.unwrap().status(), StatusCode::UPGRADE_REQUIRED);
    assert!(door.trace().is_empty());
}
