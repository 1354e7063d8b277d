//! A real program with real clients.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use drover::api::Outcome;

use crate::support::{
    Namespace,
    migrations::{assert_outcome, replacement},
    pods::{REDIS, pod},
    with_namespace,
};

const KEYS: usize = 20_000;
const FILL: &str = "for i = 0, ARGV[1] - 1 do redis.call('SET', 'key:' .. i, redis.sha1hex(i)) end return redis.call('DBSIZE')";
const CHECKSUM: &str = "local s = '' for i = 0, ARGV[1] - 1 do s = redis.sha1hex(s .. redis.call('GET', 'key:' .. i)) end return s";

/// A connection that speaks Redis' inline commands and reads one-line replies.
struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn to(namespace: &Namespace, pod: &str) -> Self {
        let address = namespace.pods().get(pod).await.unwrap().status.unwrap().pod_ip.unwrap();
        let stream = tokio::time::timeout(Duration::from_secs(10), TcpStream::connect((address, 6379))).await;
        Self(BufReader::new(stream.expect("Redis answers").unwrap()))
    }

    async fn ask(&mut self, command: &str) -> std::io::Result<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut reply = String::new();
        match self.0.read_line(&mut reply).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(reply.trim().to_owned()),
        }
    }
}

fn cli(namespace: &Namespace, pod: &str, command: &[&str]) -> String {
    namespace.exec(pod, &[&["redis-cli"], command].concat())
}

fn info(namespace: &Namespace, pod: &str, field: &str) -> String {
    let info = cli(namespace, pod, &["info", "server"]);
    info.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap_or_else(|| panic!("no {field} in {info}")).trim().to_owned()
}

#[test]
fn redis_keeps_its_keys_its_run_and_what_a_client_was_told() {
    with_namespace("redis", |namespace| async move {
        let command = ["redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no"];
        namespace
            .run(&pod(
                "redis",
                "n1",
                &[json!({"name": "redis", "image": REDIS, "command": command, "workingDir": "/tmp",
            "readinessProbe": {"exec": {"command": ["redis-cli", "ping"]}, "periodSeconds": 1}})],
            ))
            .await;
        let count = KEYS.to_string();
        assert_eq!(cli(&namespace, "redis", &["eval", FILL, "0", &count]), count);
        let checksum = cli(&namespace, "redis", &["eval", CHECKSUM, "0", &count]);
        let (run_id, uptime) = (info(&namespace, "redis", "run_id"), info(&namespace, "redis", "uptime_in_seconds").parse::<u64>().unwrap());

        let mut client = Connection::to(&namespace, "redis").await;
        let writing = tokio::spawn(async move {
            let mut told = 0_u64;
            let mut asked = 0_u64;
            loop {
                asked += 1;
                // A connection whose server is frozen or gone answers nothing.
                match tokio::time::timeout(Duration::from_secs(20), client.ask("INCR told")).await {
                    Ok(Ok(reply)) => told = reply.trim_start_matches(':').parse().unwrap(),
                    _ => return (told, asked),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let migration = namespace.migrate("redis", "n2").await;
        assert_outcome(&migration, Outcome::Migrated);
        let copy = replacement(&migration);
        let (told, asked) = writing.await.unwrap();
        assert!(told > 0, "the client was connected");

        assert_eq!(info(&namespace, &copy, "run_id"), run_id, "it is the same process");
        assert!(info(&namespace, &copy, "uptime_in_seconds").parse::<u64>().unwrap() >= uptime, "its uptime goes on");
        assert_eq!(cli(&namespace, &copy, &["eval", CHECKSUM, "0", &count]), checksum);
        assert_eq!(cli(&namespace, &copy, &["dbsize"]), (KEYS + 1).to_string());
        // A request without an answer may have been carried out or not; every answer was kept.
        let kept: u64 = Connection::to(&namespace, &copy).await.ask("GET told").await.unwrap().trim_start_matches('$').parse().unwrap_or_default();
        assert!(kept > 0);
        let kept: u64 = cli(&namespace, &copy, &["get", "told"]).parse().unwrap();
        assert!(kept == told || kept == asked, "the client was told {told} and asked {asked} times; Redis has {kept}");
        namespace.assert_no_leftovers(&migration).await;
    });
}
