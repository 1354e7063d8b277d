//! A node that has too much to do.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, api::ListParams};
use serde_json::json;

use drover::{
    api::{Migration, Outcome},
    domain::keys,
};

use crate::support::{
    Namespace,
    agents::ready,
    eventually, lab,
    leaving::Leaving,
    migrations::{assert_outcome, replacement},
    pods::{TOOLBOX, counter, pod},
    with_namespace,
};

/// Two reports, the window, and a look.
const SOON: Duration = Duration::from_mins(2);
/// Counts as fast as it may, and prints every so many.
const BUSY: &str = "i=0; while :; do i=$((i+1)); [ $((i % 50000)) -ne 0 ] || echo $i; done";

/// The rebalancer in this mode: over 35 % of a node's CPU for 20 s.
fn rebalancer(mode: &str) {
    lab::set_values(&format!("rebalancer.mode={mode},rebalancer.cpuPercent=35,rebalancer.windowSeconds=20"));
    ready();
}

fn busy(name: &str, cpu: &str) -> Pod {
    let container =
        json!({"name": "c", "image": TOOLBOX, "command": ["sh", "-c", BUSY], "resources": {"limits": {"cpu": cpu}, "requests": {"cpu": "1m"}}});
    pod(name, "n1", &[container])
}

impl Namespace {
    async fn counted(&self, pod: &str) -> Vec<u64> {
        self.logs(pod, "c").await.lines().map(|line| line.parse().unwrap()).collect()
    }
}

/// The busiest, a busy one and an idle one, and what is undone in the end.
async fn three_pods(namespace: &Namespace) -> (Leaving, lab::Restore<fn()>) {
    let made = (Leaving::on(&["Load"], namespace).await, lab::Restore::<fn()>(|| rebalancer("Off")));
    for pod in [busy("busiest", "450m"), busy("busy", "400m"), counter("idle", "n1", 4, 50)] {
        namespace.run(&pod).await;
    }
    made
}

#[test]
fn the_busiest_pod_leaves_an_overloaded_node_and_only_it() {
    with_namespace("load", |namespace| async move {
        let _off = three_pods(&namespace).await;
        let before = namespace.counted("busiest").await;
        rebalancer("On");
        let by_load = |m: &Migration| m.labels().get(keys::TRIGGER).map(String::as_str) == Some("load");
        let migration = namespace.first("the rebalancer moves a pod", |m| by_load(m) && m.is_done()).await;
        assert_outcome(&migration, Outcome::Migrated);
        assert_eq!(migration.spec.pod_name.as_deref(), Some("busiest"));
        let copy = replacement(&migration);
        // Its log has what the source has printed as well (containerd carries it): a program that began anew would break the row, or be far behind.
        let after = namespace.counted(&copy).await;
        let breaks: Vec<_> = after.windows(2).filter(|two| two[1] != two[0] + 50_000).collect();
        assert!(breaks.is_empty() && after.last() > before.last(), "it goes on: {breaks:?}, {:?} after {:?}", after.last(), before.last());
        // A window, a report and a look: neither the other pods nor the copy, which its node has room for.
        tokio::time::sleep(Duration::from_secs(40)).await;
        let names: Vec<_> =
            namespace.migrations().list(&ListParams::default()).await.unwrap().items.iter().map(|m| m.spec.pod_name.clone()).collect();
        assert_eq!(names, [Some("busiest".to_owned())]);
    });
}

mod slow {
    use super::*;

    #[test]
    fn a_dry_run_says_what_would_be_done_and_does_nothing() {
        with_namespace("load-dry", |namespace| async move {
            let _off = three_pods(&namespace).await;
            rebalancer("DryRun");
            let events = [
                "kubectl",
                "get",
                "events",
                "-A",
                "--field-selector",
                "reason=RebalanceProposed",
                "-o",
                "jsonpath={.items[*].note}{.items[*].message}",
            ];
            let wanted = format!("pod {}/busiest uses", namespace.name);
            eventually(SOON, || {
                let said = lab::lab(&events);
                (!said.contains(&wanted)).then(|| format!("an Event says {wanted:?}; there is {said:?}"))
            });
            assert!(namespace.migrations().list(&ListParams::default()).await.unwrap().items.is_empty());
        });
    }
}
