//! The gate costs next to nothing for a container that is not Drover's, and a node from which Drover was removed is an ordinary node.

use std::time::Duration;

use serde_json::json;

use crate::support::{agents::ready, eventually, lab, pods::counter, with_namespace};

/// Where `drover node setup` puts it.
const GATE: &str = "/usr/local/lib/drover/drover-gate";
/// Runs of each program; they take turns, so that whatever else the machine does hits all of them.
const RUNS: usize = 300;
const TURNS: usize = 10;
/// What the gate may take, in microseconds, beyond a hook that does nothing. Such a hook takes about 1 ms, the issue allows 3 ms in all.
const ADDED: u64 = 2_000;
const STRANGER: &str = "0f1c22aa-0000-4000-8000-000000000001";
const FENCED: &str = "0f1c22aa-0000-4000-8000-000000000002";

/// Microseconds of some runs, sorted.
struct Times(Vec<u64>);

impl Times {
    fn share(&self, percent: usize) -> u64 {
        self.0[self.0.len() * percent / 100]
    }

    fn print(&self, what: &str, nothing: &Self) {
        let percent = |share| self.share(share) * 100 / nothing.share(share);
        println!(
            "{what}: median {} µs ({} % of a hook that does nothing), 95 % of the runs within {} µs ({} %)",
            self.share(50),
            percent(50),
            self.share(95),
            percent(95)
        );
    }
}

/// The OCI state of a container of another pod, with the annotations that containerd writes.
fn state() -> String {
    json!({
        "ociVersion": "1.2.1", "id": "6a3e7d3c5c1e4f0b", "status": "creating", "pid": 1, "bundle": "/run/containerd/none",
        "annotations": {
            "io.kubernetes.cri.container-name": "web", "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.image-name": "web:1",
            "io.kubernetes.cri.sandbox-id": "4f0b", "io.kubernetes.cri.sandbox-name": "web", "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.sandbox-uid": STRANGER
        }
    })
    .to_string()
}

#[test]
fn the_gate_takes_next_to_nothing_from_containers_that_are_not_ours() {
    with_namespace("gate", |_namespace| async move {
        let _cleans = lab::Restore(|| drop(lab::try_lab(&["exec", "n1", "rm", "-rf", "/tmp/hook", &format!("/var/lib/drover/gate/{FENCED}")])));
        lab::put("n1", &std::path::PathBuf::from(lab::lab(&["cached", "hook"]).trim()), "/tmp/hook/hook");
        lab::on_node("n1", &format!("echo '{}' >/tmp/hook/state", state()));
        assert_eq!(lab::on_node("n1", "ls /var/lib/drover/gate 2>/dev/null || true"), "", "no pod of n1 has markers");
        let (nothing, empty) = take_turns();
        // What makes the gate read its input: somewhere on this node a pod is frozen.
        lab::on_node("n1", &format!("mkdir -p /var/lib/drover/gate/{FENCED} && echo none >/var/lib/drover/gate/{FENCED}/fence"));
        let (_, fenced) = take_turns();
        nothing.print("a hook that does nothing", &nothing);
        empty.print("the gate, no pod is frozen", &nothing);
        fenced.print("the gate, another pod is frozen", &nothing);
        for gate in [empty, fenced] {
            assert!(gate.share(50) <= nothing.share(50) + ADDED, "{} µs, a hook that does nothing takes {} µs", gate.share(50), nothing.share(50));
        }
    });
}

/// The times of a hook that does nothing, and of the gate.
fn take_turns() -> (Times, Times) {
    let each = RUNS / TURNS;
    let one = |program: &str| format!("/tmp/hook/hook {program} /tmp/hook/state {each} | sed 's|^|{program} |';");
    let turn = one("/tmp/hook/hook") + &one(GATE);
    let out = lab::on_node("n1", &turn.repeat(TURNS));
    let times = |program: &str| {
        let mut times: Vec<u64> = out.lines().filter_map(|line| line.strip_prefix(program)?.trim().parse().ok()).collect();
        assert_eq!(times.len(), RUNS, "{out}");
        times.sort_unstable();
        Times(times)
    };
    (times("/tmp/hook/hook"), times(GATE))
}

fn profile_ready() -> bool {
    let ready = ["kubectl", "get", "nodeprofile", "n2", "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"];
    lab::try_lab(&ready).is_ok_and(|status| status == "True")
}

#[test]
fn a_node_without_drover_starts_containers_as_before() {
    with_namespace("removed", |namespace| async move {
        let sets_up = lab::Restore(|| {
            drop(lab::try_lab(&["exec", "n2", "drover", "node", "setup", "--apply"]));
            drop(lab::try_lab(&["restart", "n2", "containerd"]));
        });
        lab::on_node("n2", "drover node remove --apply");
        // The settings are gone, containerd still runs with them: the gate's program must be there.
        namespace.run(&counter("between", "n2", 0, 100)).await;
        lab::lab(&["restart", "n2", "containerd"]);
        lab::on_node("n2", "drover node remove --apply");
        assert_eq!(lab::on_node("n2", &format!("ls {GATE} 2>/dev/null || true")), "", "the gate is gone");
        namespace.run(&counter("after", "n2", 0, 100)).await;
        drop(sets_up);
        ready();
        eventually(Duration::from_mins(1), || (!profile_ready()).then(|| "the profile of n2 is Ready again".to_owned()));
    });
}
