//! What the webhook refuses at once, with every reason.

use std::time::Duration;

use kube::api::ListParams;
use serde_json::json;

use drover::domain::keys;

use crate::support::{
    Namespace, eventually, lab,
    pods::{COUNTER, counter, counting, pod},
    with_namespace,
};

/// The annotation is refused for all of these reasons, and leaves no Migration.
async fn assert_refused(namespace: &Namespace, pod: &str, value: &str, reasons: &[&str]) {
    let answer = namespace.annotate(pod, keys::MIGRATE_TO, value).await.expect_err("the annotation is refused");
    for reason in reasons {
        assert!(answer.contains(reason), "{reason:?} is not among the reasons:\n{answer}");
    }
    assert!(namespace.migrations().list(&ListParams::default()).await.unwrap().items.is_empty(), "a refused request makes no Migration");
}

#[test]
fn an_unknown_node_is_refused() {
    with_namespace("unknown-node", |namespace| async move {
        namespace.run(&counter("c", "n1", 0, 100)).await;
        assert_refused(&namespace, "c", "nowhere", &["node nowhere does not exist", "n2"]).await;
        assert_refused(&namespace, "c", "not a name", &["is no node's name"]).await;
    });
}

#[test]
fn the_node_it_runs_on_is_refused() {
    with_namespace("same-node", |namespace| async move {
        namespace.run(&counter("c", "n1", 0, 100)).await;
        assert_refused(&namespace, "c", "n1", &["runs on node n1 already"]).await;
    });
}

#[test]
fn a_cordoned_node_is_refused() {
    with_namespace("cordoned", |namespace| async move {
        namespace.run(&counter("c", "n1", 0, 100)).await;
        let _uncordon = lab::Restore(|| drop(lab::try_lab(&["kubectl", "uncordon", "n2"])));
        lab::lab(&["kubectl", "cordon", "n2"]);
        // The managers hear of it by watch.
        let annotation = format!("{}=n2", keys::MIGRATE_TO);
        eventually(Duration::from_secs(5), || {
            let answer = namespace.kubectl(&["annotate", "pod", "c", "--dry-run=server", &annotation]);
            answer.is_ok().then(|| "the cordon is seen".to_owned())
        });
        assert_refused(&namespace, "c", "n2", &["node n2 is cordoned"]).await;
        assert_refused(&namespace, "c", "auto", &["no other node can take the pod", "node n2 is cordoned"]).await;
    });
}

#[test]
fn every_reason_is_named_at_once() {
    with_namespace("reasons", |namespace| async move {
        let mut terminal = counting("c", 0, 100);
        terminal["tty"] = json!(true);
        terminal["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
        let mut unfit = pod("unfit", "n1", &[terminal]);
        unfit.spec.as_mut().unwrap().volumes = serde_json::from_value(json!([{"name": "scratch", "hostPath": {"path": "/tmp"}}])).unwrap();
        namespace.run(&unfit).await;
        assert_refused(
            &namespace,
            "unfit",
            "nowhere",
            &["node nowhere does not exist", "spec.volumes[scratch]", "hostPath", "spec.containers[c].tty"],
        )
        .await;
    });
}

#[test]
fn an_annotation_at_creation_is_taken_off_with_a_warning() {
    with_namespace("create", |namespace| async move {
        let overrides = format!(r#"{{"metadata":{{"annotations":{{"{}":"n2"}}}}}}"#, keys::MIGRATE_TO);
        let said = namespace.kubectl(&["run", "c", "--image", COUNTER, "--overrides", &overrides]).unwrap();
        assert!(said.contains("Warning: drover: annotation drover.dev/migrate-to was removed"), "{said}");
        let pod = namespace.pods().get("c").await.unwrap();
        assert!(keys::requested_destination(&pod.metadata.annotations.unwrap_or_default()).is_none());
    });
}

#[test]
fn only_the_manager_names_a_claim() {
    with_namespace("claim", |namespace| async move {
        namespace.run(&counter("c", "n1", 0, 100)).await;
        for key in [keys::CLAIM, keys::LOCK, keys::ORIGINAL_IMAGES] {
            let answer = namespace.annotate("c", key, "0f1c22aa-0001").await.expect_err("a user may not write it");
            assert!(answer.contains(key) && answer.contains("only Drover's manager"), "{answer}");
        }
    });
}
