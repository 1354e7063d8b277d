//! The restart hazard: a restored container that dies later must not be restored again from its checkpoint.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use drover::api::Outcome;

use crate::support::{
    SYSTEM,
    agents::{Part, ready},
    counter::{assert_contiguous, lines},
    eventually, lab,
    migrations::{assert_outcome, replacement, status},
    moving::PoweredOff,
    pods::{container, counter},
    with_namespace,
};

#[test]
fn a_crash_after_the_move_starts_cold() {
    with_namespace("crash", |namespace| async move {
        namespace.run(&counter("counter", "n1", 0, 50)).await;
        let before = namespace.follow("counter", "c").await;
        before.beyond(20).await;
        let migration = namespace.migrate("counter", "n2").await;
        assert_outcome(&migration, Outcome::Migrated);
        let copy = replacement(&migration);
        let base = status(&migration).source.unwrap().containers[0].image.clone();
        let id = status(&migration).replacement.unwrap().containers[0].container_id.clone();

        let killed = Timestamp::now().as_millisecond();
        lab::on_node("n2", &format!("kill -9 $(ctr -n k8s.io task ls 2>/dev/null | awk '$1 == \"{id}\" {{print $2}}')"));
        let restarted = namespace
            .until_pod(&copy, "is restarted", |pod| pod.is_some_and(|pod| container(pod, "c").restart_count == 1 && container(pod, "c").ready));
        let restarted = restarted.await;
        let image = &container(&restarted, "c").image_id;
        assert!(image.ends_with(base.split_once('@').unwrap().1), "the image is {image}, not {base}");
        let after = namespace.follow(&copy, "c").await;
        after.beyond(3).await;
        let after = lines(&namespace.logs(&copy, "c").await);
        assert_eq!(after[0].number, 1, "it began anew");
        assert!(after[0].at >= killed, "the first line is an old one: {:?}", after[0]);
        assert_contiguous(&after);
        // The tag under which the pod pulls names the base image.
        let tag = format!("{}:c", status(&migration).destination.unwrap().repository);
        eventually(Duration::from_secs(5), || {
            let images = lab::on_node("n2", "ctr -n k8s.io images ls 2>/dev/null");
            let digest = base.split_once('@').unwrap().1;
            let wrong: Vec<_> = images.lines().filter(|line| line.contains(&tag) && !line.contains(digest)).map(str::to_owned).collect();
            (!wrong.is_empty()).then(|| format!("the runtime knows the checkpoint's name as {wrong:?}"))
        });
    });
}

/// Runs Drover's agents on n1 alone, until this is dropped.
struct AwayFromN2;

impl AwayFromN2 {
    fn begin() -> Self {
        Self::select(r#"{"kubernetes.io/hostname":"n1"}"#);
        eventually(Duration::from_mins(1), || (!Part::Agent("n2").pids().is_empty()).then(|| "no agent runs on n2".to_owned()));
        Self
    }

    fn select(nodes: &str) {
        let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{nodes}}}}}}}}}"#);
        drop(lab::try_lab(&["kubectl", "-n", SYSTEM, "patch", "daemonset", "drover-agent", "--patch", &patch]));
    }
}

impl Drop for AwayFromN2 {
    fn drop(&mut self) {
        Self::select(r#"{"kubernetes.io/hostname":null}"#);
        ready();
    }
}

/// Its image is a tag of the node's own registry, which comes up with the agent, perhaps later than the pod is wanted.
#[test]
fn a_moved_pod_starts_after_a_boot_of_its_node_once_drover_is_there() {
    with_namespace("boot", |namespace| async move {
        namespace.run(&counter("c", "n1", 4, 50)).await;
        namespace.follow("c", "c").await.beyond(5).await;
        let migration = namespace.migrate("c", "n2").await;
        assert_outcome(&migration, Outcome::Migrated);
        let copy = replacement(&migration);
        let away = AwayFromN2::begin();
        PoweredOff::node("n2").on();
        let is_refused =
            |pod: &Pod| container(pod, "c").state.as_ref().and_then(|state| state.waiting.as_ref()?.reason.as_deref()) == Some("ImagePullBackOff");
        namespace.until_pod(&copy, "cannot pull yet", |pod| pod.is_some_and(is_refused)).await;
        drop(away);
        // The kubelet's waits between two pulls grow to minutes.
        eventually(Duration::from_mins(3), || {
            let state = namespace.kubectl(&["get", "pod", &copy, "-o", "jsonpath={.status.containerStatuses[0].ready}"]).unwrap();
            (state.trim() != "true").then(|| "the copy starts".to_owned())
        });
        let after = namespace.follow(&copy, "c").await;
        after.beyond(5).await;
        assert_eq!(after.lines()[0].number, 1, "it began anew, from its image");
        assert_contiguous(&after.lines());
    });
}
