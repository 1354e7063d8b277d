//! A command in a pod, as the API server passes on what it says.

use std::sync::{Arc, Mutex};

use futures::SinkExt as _;
use tokio::net::TcpListener;
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
    },
};

use super::*;

/// An agent's pod in which a command says this on its channels (1: stdout, 2: stderr, 3: how it ended), and what was asked of the API server.
async fn pod_that_says(said: Vec<Vec<u8>>) -> (Sources, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        #[allow(clippy::result_large_err)] // the callback's own type
        let answer = |request: &Request, mut response: Response| {
            *noted.lock().unwrap() = request.uri().to_string();
            response.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
            Ok(response)
        };
        let mut socket = accept_hdr_async(stream, answer).await.unwrap();
        for message in said {
            socket.send(Message::binary(message)).await.unwrap();
        }
    });
    (Sources::new(Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap(), "drover-system"), asked)
}

fn on(channel: u8, said: &[u8]) -> Vec<u8> {
    [&[channel], said].concat()
}

#[tokio::test]
async fn a_nodes_logs_come_as_its_agents_pod_writes_them() {
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    let mut said: Vec<_> = bytes.chunks(32 << 10).map(|chunk| on(1, chunk)).collect();
    said.push(on(3, br#"{"metadata": {}, "status": "Success"}"#));
    let (sources, asked) = pod_that_says(said).await;
    assert!(sources.kept_logs("drover-agent-x", Duration::from_mins(1)).await.unwrap() == bytes, "every byte, to the end");
    let wanted = "/api/v1/namespaces/drover-system/pods/drover-agent-x/exec?";
    let asked = asked.lock().unwrap().clone();
    assert!(asked.starts_with(wanted) && asked.contains("container=agent") && asked.contains("command=--since%3D60s"), "{asked}");
}

#[tokio::test]
async fn an_agent_that_does_not_know_the_command_is_named_with_what_it_said() {
    let failed = br#"{"metadata": {}, "status": "Failure", "message": "command terminated with non-zero exit code"}"#;
    let (sources, _) = pod_that_says(vec![on(2, b"error: unrecognized subcommand 'support'\n"), on(3, failed)]).await;
    let error = sources.kept_logs("drover-agent-x", Duration::from_mins(1)).await.unwrap_err();
    assert!(error.message.contains("in pod drover-agent-x: command terminated with non-zero exit code: error: unrecognized subcommand"), "{error}");
}

#[test]
fn a_command_that_fails_says_why_in_its_own_words_too() {
    let status = |status: &str, message: &str| Status { status: Some(status.into()), message: Some(message.into()), ..Status::default() };
    assert_eq!(failure_of(Some(&status("Success", "")), b"a warning"), None);
    let failed = status("Failure", "command terminated with exit code 2");
    let said = b"\nerror: unrecognized subcommand 'support'\n\nUsage: drover\n";
    let why = failure_of(Some(&failed), said).unwrap();
    assert_eq!(why, "command terminated with exit code 2: error: unrecognized subcommand 'support'");
    assert_eq!(failure_of(None, b"").unwrap(), "the connection has ended before it");
}

#[tokio::test]
async fn what_is_too_much_is_read_and_dropped() {
    assert_eq!(all_of(Some(&[7_u8; 10][..]), 4).await.unwrap(), [7; 4]);
    assert_eq!(all_of(None::<&[u8]>, 4).await.unwrap(), [0; 0]);
}
