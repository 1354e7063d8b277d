//! The lab's Kafka, and what Drover's processes count.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{
    NODES, SYSTEM,
    lab::{self, program},
};

/// Topic of the word of images.
pub const REGISTRY: &str = "drover.registry.v1";
/// Topic of what cannot be read as such.
pub const DEAD_LETTERS: &str = "drover.registry.v1.dlq";
/// Topic of the phases.
pub const MIGRATIONS: &str = "drover.migrations.v1";

/// Whether Drover is installed with Kafka; without it these tests have nothing to say.
#[track_caller]
pub fn assert_installed() {
    let arguments =
        lab::lab(&["kubectl", "-n", SYSTEM, "get", "deployment", "drover-manager", "-o", "jsonpath={.spec.template.spec.containers[0].args}"]);
    assert!(arguments.contains("--kafka-brokers"), "run: e2e/lab up --with kafka && e2e/lab install --with kafka");
    if !lab::lab(&["status"]).lines().any(|line| line.starts_with("kafka") && line.ends_with("ready")) {
        lab::lab(&["start-part", "kafka"]);
    }
}

/// Every record of a topic with this key, or with any.
#[track_caller]
pub fn records(topic: &str, key: Option<&str>) -> Vec<Value> {
    let dump = lab::lab(&["kafka-dump", topic]);
    let records = dump.lines().filter_map(|line| line.split_once('\t')).filter(|(its, _)| key.is_none_or(|key| key == *its));
    records.map(|(_, value)| serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()))).collect()
}

/// Sends a record, as the administrator or as a user; what was said where it was refused.
pub fn send(topic: &str, key: &str, value: &str, more: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program());
    command.args(["kafka-send", topic, key]).args(more).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("e2e/lab runs");
    child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

/// Records that the managers have not settled.
#[track_caller]
pub fn unsettled() -> i64 {
    let offsets = lab::lab(&["kafka-offsets"]);
    let left = offsets.lines().map(|line| {
        let fields: Vec<_> = line.split('\t').collect();
        let [_, _, committed, end] = fields[..] else { panic!("{line}") };
        end.parse::<i64>().unwrap() - committed.parse().unwrap_or(0)
    });
    left.sum()
}

/// The value of a counter, summed over all managers.
pub fn counted_by_managers(line: &str) -> u64 {
    let addresses =
        lab::lab(&["kubectl", "-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=manager", "-o", "jsonpath={.items[*].status.podIP}"]);
    addresses.split_whitespace().map(|ip| counted(&format!("http://{ip}:8080/metrics"), line)).sum()
}

/// The same of the agent of a node.
pub fn counted_by_agent(node: &str, line: &str) -> u64 {
    assert!(NODES.contains(&node));
    counted(&format!("http://10.88.0.1{}:5787/metrics", node.trim_start_matches('n')), line)
}

fn counted(url: &str, line: &str) -> u64 {
    let out = Command::new("curl").args(["-s", "--max-time", "5", url]).output().expect("curl runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().find_map(|found| found.strip_prefix(line)).and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}
