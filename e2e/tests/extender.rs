//! The scheduler extender, asked by the lab's real kube-scheduler: `e2e/lab install` gives it the chart's configuration.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Pod, scheduling::v1::PriorityClass};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use drover::{
    api::{NodeProfile, Outcome, Phase},
    domain::keys,
};

use crate::support::{
    agents::{self, Part, signal_all},
    eventually,
    kafka::counted_by_managers,
    lab::{self, Restore},
    migrations::{assert_outcome, replacement, to},
    moving::{Moment, Moving},
    pods::{container, counter},
    with_namespace,
};

/// Has a node's profile say when its agent looked last, as that agent would write it.
async fn last_seen(node: &str, ago: Duration) {
    let profiles: Api<NodeProfile> = Api::all(agents::client(node).await);
    let status = Patch::Merge(json!({"status": {"observedAt": (Timestamp::now() - ago).to_string()}}));
    profiles.patch_status(node, &PatchParams::default(), &status).await.unwrap();
}

/// What the condition PodScheduled says while it is false.
fn unscheduled(pod: Option<&Pod>) -> String {
    let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
    let condition = conditions.into_iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    condition.and_then(|c| c.message.clone()).unwrap_or_default()
}

/// How often all managers have answered so.
fn answered(verb: &str, answer: &str) -> u64 {
    counted_by_managers(&format!("drover_extender_answers_total{{verb=\"{verb}\",answer=\"{answer}\"}}"))
}

#[test]
fn a_replacement_that_its_node_cannot_take_says_why_and_goes_on() {
    with_namespace("extender", |namespace| async move {
        let (placed, refused) = (answered("filter", "placed"), answered("filter", "refused"));
        // A cordon would be a matter of the preflight.
        let tainted = lab::taint("n2", "NoSchedule");
        let mut moving = Moving::begin(&namespace, 1, to("c", "n2")).await;
        moving.migration = namespace.until_phase(&moving.name(), Phase::Preparing).await;
        let copy = replacement(&moving.migration);
        namespace.until_pod(&copy, "waits for the taint", |pod| unscheduled(pod).contains("untolerated taint")).await;

        let agent = Part::Agent("n2").pids();
        signal_all(&agent, "STOP");
        let wakes = Restore(move || signal_all(&agent, "CONT"));
        last_seen("n2", Duration::from_mins(10)).await;
        drop(tainted);
        namespace.until_pod(&copy, "is refused by the extender", |pod| unscheduled(pod).contains("drover: ")).await;
        let mut described = String::new();
        eventually(Duration::from_secs(10), || {
            described = namespace.kubectl(&["describe", "pod", &copy]).unwrap();
            let explained = described.lines().any(|line| {
                line.contains("FailedScheduling")
                    && line.contains("drover: node n2 has a silent agent, last seen 6")
                    && line.contains("look at its drover-agent")
            });
            (!explained).then(|| format!("kubectl describe pod explains itself:\n{described}"))
        });
        assert!(described.contains("Preemption is not helpful"), "nothing is to be preempted there:\n{described}");

        drop(wakes);
        last_seen("n2", Duration::ZERO).await;
        // kube-scheduler tries a refused pod again when the pod or the cluster changes.
        namespace.annotate(&copy, "e2e.example/again", "please").await.unwrap();
        moving.migrates().await;
        assert!(answered("filter", "placed") > placed && answered("filter", "refused") > refused, "the manager counts what it answers");
        agents::ready();
    });
}

#[test]
fn pods_are_scheduled_while_no_manager_answers() {
    with_namespace("no-extender", |namespace| async move {
        let skipped = || lab::lab(&["logs", "scheduler", "-n", "100000"]).matches("Skipping extender as it returned error").count();
        let before = skipped();
        let managers = Part::Managers.pids();
        signal_all(&managers, "STOP");
        let wake = Restore(move || signal_all(&managers, "CONT"));
        let mut pod = counter("c", "", 0, 100);
        pod.spec.as_mut().unwrap().node_name = None;
        let pod = namespace.pods().create(&PostParams::default(), &pod).await.unwrap();
        let running = |pod: Option<&Pod>| pod.is_some_and(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()));
        namespace.until_pod(&pod.name_any(), "is placed", running).await;
        drop(wake);
        assert!(skipped() > before, "kube-scheduler has tried to ask");
        let ready = |pod: Option<&Pod>| {
            pod.is_some_and(|pod| pod.status.as_ref().is_some_and(|s| s.container_statuses.is_some()) && container(pod, "c").ready)
        };
        namespace.until_pod(&pod.name_any(), "runs", ready).await;
        assert!(!pod.annotations().contains_key(keys::REPLACES));
        agents::ready();
    });
}

/// Of two pods that could make room for one of a higher priority, kube-scheduler takes the younger; here it is on its way to another node.
#[test]
fn a_pod_that_moves_is_no_victim_of_a_preemption() {
    with_namespace("preemption", |namespace| async move {
        let requesting = |name: &str, node: &str| {
            let mut pod = counter(name, node, 4, 50);
            pod.spec.as_mut().unwrap().containers[0].resources = serde_json::from_value(json!({"requests": {"cpu": "700m"}})).unwrap();
            pod
        };
        let class = json!({"metadata": {"name": namespace.name}, "value": 1000, "globalDefault": false, "description": "e2e"});
        let classes = Api::<PriorityClass>::all(namespace.client.clone());
        classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
        let name = namespace.name.clone();
        let _class = Restore(move || drop(lab::try_lab(&["kubectl", "delete", "priorityclass", &name])));
        for (pod, node) in [("old", "n1"), ("c", "n1")] {
            namespace.run(&requesting(pod, node)).await;
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let source = namespace.follow("c", "c").await;
        source.beyond(5).await;
        let mut moving = Moving::of(&namespace, source, namespace.make(to("c", "n2")).await);
        moving.hold(Moment::BeforeVote).await;
        let kept = answered("preempt", "refused");
        let mut important = requesting("important", "");
        let spec = important.spec.as_mut().unwrap();
        (spec.node_name, spec.priority_class_name) = (None, Some(namespace.name.clone()));
        spec.node_selector = Some([("kubernetes.io/hostname".to_owned(), "n1".to_owned())].into());
        namespace.pods().create(&PostParams::default(), &important).await.unwrap();
        namespace.until_pod("important", "finds no room", |pod| unscheduled(pod).contains("Insufficient cpu")).await;
        moving.go_on();
        moving.migration = namespace.until_done(&moving.name()).await;
        assert_outcome(&moving.migration, Outcome::Migrated);
        // The source has made the room.
        namespace.until_pod("important", "runs", |pod| pod.is_some_and(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()))).await;
        assert!(namespace.pods().get("old").await.unwrap().metadata.deletion_timestamp.is_none());
        assert!(answered("preempt", "refused") > kept, "kube-scheduler has asked whom it may take");
    });
}
