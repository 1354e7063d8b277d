//! What a plain restore on another node would break, proved by one program that holds all of it (`e2e/images/mends.c`).

use std::{collections::BTreeMap, fs};

use drover::api::Outcome;

use crate::support::{
    Namespace,
    agents::node_of,
    migrations::{assert_outcome, replacement, to},
    pods::{MENDS, pod},
    with_namespace,
};
use kube::ResourceExt as _;

/// One line: its number, and what it says by name.
struct Line {
    number: u64,
    said: BTreeMap<String, String>,
}

impl Line {
    fn timer(&self) -> u64 {
        self.said["timer"].parse().unwrap()
    }
}

async fn lines(namespace: &Namespace, pod: &str) -> Vec<Line> {
    let parse = |line: &str| {
        let (number, rest) = line.split_once(' ').expect(line);
        let said = rest.split(' ').map(|part| part.split_once('=').expect(line)).map(|(name, value)| (name.to_owned(), value.to_owned()));
        Line { number: number.parse().expect(line), said: said.collect() }
    };
    namespace.logs(pod, "c").await.lines().map(parse).collect()
}

/// Lines until there are some more.
async fn more(namespace: &Namespace, pod: &str, count: usize) -> Vec<Line> {
    let before = lines(namespace, pod).await.len();
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = lines(namespace, pod).await;
        if now.len() >= before + count {
            return now;
        }
    }
}

/// Whether an address is one of a node's restored pod's own, in any of its networks' tables.
fn has_address(node: &str, address: &str) -> bool {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let programs: Vec<u32> = pids.filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"/mends\0"))).collect();
    let here: Vec<u32> = programs.into_iter().filter(|pid| in_node(*pid) == Some(node)).collect();
    assert_eq!(here.len(), 1, "one copy runs on {node}");
    let table = fs::read_to_string(format!("/proc/{}/net/fib_trie", here[0])).unwrap();
    table.lines().any(|line| line.trim_start_matches([' ', '|', '-', '+']).split('/').next() == Some(address))
}

/// The node whose process started this one.
fn in_node(pid: u32) -> Option<&'static str> {
    let mut pid = pid;
    while pid > 1 {
        if let Some(node) = node_of(pid) {
            return Some(node);
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        pid = status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|parent| parent.trim().parse().ok())?;
    }
    None
}

#[test]
fn timer_pipes_address_and_shared_memory_survive_the_move() {
    with_namespace("mends", |namespace| async move {
        let container = serde_json::json!({
            "name": "c", "image": MENDS, "args": ["$(ADDRESS)"],
            "env": [{"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true}
        });
        let source = namespace.run(&pod("c", "n1", &[container])).await;
        let address = source.status.unwrap().pod_ip.unwrap();
        more(&namespace, "c", 20).await;
        assert!(has_address("n1", &address));

        let migration = namespace.make(to("c", "n2")).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        let copy = replacement(&migration);
        let first = more(&namespace, &copy, 1).await;
        let last = more(&namespace, &copy, 100).await;
        assert_eq!(last.iter().map(|line| line.number).collect::<Vec<_>>(), (1..=last.len() as u64).collect::<Vec<_>>());
        for line in &last {
            let number = line.number.to_string();
            // The pipes get their owner right after the processes run again.
            if line.number > first.last().unwrap().number {
                assert_eq!(line.said["stderr"], "0", "line {number}: /dev/stderr is the program's own");
            }
            assert_eq!(line.said["udp"], format!("{address}:5353"), "line {number}: the socket is bound as it was");
            assert_eq!(line.said["shm"], format!("{number}/{number}"), "line {number}: mapping and file are one");
        }
        // A hundred lines are two seconds; the timer expires ten times a second.
        let expired = last.last().unwrap().timer() - first.last().unwrap().timer();
        assert!(expired >= 10, "the timer goes on: {expired} times");
        assert!(!has_address("n2", &address), "the old address belongs to others now");
        namespace.assert_no_leftovers(&migration).await;
    });
}
