//! The chart is not removed while something on the cluster still needs Drover.

use crate::support::{SYSTEM, lab, pods::counter, with_namespace};

/// Helm's last revision of the release, with its status.
fn last_revision() -> (String, String) {
    let history = lab::lab(&["helm", "history", "drover", "--namespace", SYSTEM, "--output", "json"]);
    let history: Vec<serde_json::Value> = serde_json::from_str(&history).unwrap();
    let last = history.last().unwrap();
    (last["revision"].to_string(), last["status"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn helm_refuses_as_long_as_a_pod_needs_drover_and_nothing_is_harmed() {
    with_namespace("uninstall", |namespace| async move {
        let mut pod = counter("c", "n1", 0, 50);
        pod.spec.as_mut().unwrap().runtime_class_name = Some("drover".into());
        namespace.run(&pod).await;
        let (code, said) = lab::drover(&["needed"]);
        let named = format!("Pod {}/c runs under the RuntimeClass drover", namespace.name);
        assert!(code == Some(2) && said.contains(&named), "{code:?} {said}");

        let (revision, _) = last_revision();
        let mended = lab::Restore(|| drop(lab::try_lab(&["helm", "rollback", "drover", &revision, "--namespace", SYSTEM])));
        let refused = lab::try_lab(&["helm", "uninstall", "drover", "--namespace", SYSTEM, "--timeout", "60s"]).expect_err("it is refused");
        assert!(refused.contains("drover-before-uninstall"), "{refused}");
        let told = lab::lab(&["kubectl", "-n", SYSTEM, "logs", "job/drover-before-uninstall"]);
        assert!(told.contains(&named) && told.contains("helm rollback drover REVISION"), "{told}");
        // What runs is not touched, and after what was told the release can be upgraded again.
        lab::lab(&["kubectl", "-n", SYSTEM, "get", "deployment/drover-manager", "daemonset/drover-agent", "service/drover-webhook"]);
        assert_eq!(last_revision(), (revision.clone(), "uninstalling".to_owned()));
        drop(mended);
        assert_eq!(last_revision().1, "deployed");
        lab::set_values("uninstall.check=true");

        lab::lab(&["kubectl", "-n", &namespace.name, "delete", "pod", "c", "--grace-period=1", "--timeout=60s"]);
        let (_, said) = lab::drover(&["needed"]);
        assert!(!said.contains(&namespace.name), "{said}");
    });
}
