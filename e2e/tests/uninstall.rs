//! The chart is not removed while something on the cluster still needs Drover.

use crate::support::{SYSTEM, lab, pods::counter, with_namespace};

fn uninstall() -> Result<String, String> {
    lab::try_lab(&["helm", "uninstall", "drover", "--namespace", SYSTEM, "--timeout", "60s"])
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

        let refused = uninstall().expect_err("it is refused");
        assert!(refused.contains("pre-delete"), "{refused}");
        let job = lab::lab(&["kubectl", "-n", SYSTEM, "logs", "job/drover-before-uninstall"]);
        assert!(job.contains(&named), "{job}");
        // Neither what runs nor the release is touched: it can be upgraded as before.
        lab::set_values("uninstall.check=true");
        lab::lab(&["kubectl", "-n", SYSTEM, "rollout", "status", "deployment/drover-manager", "--timeout=60s"]);

        lab::lab(&["kubectl", "-n", &namespace.name, "delete", "pod", "c", "--grace-period=1", "--timeout=60s"]);
        let (code, said) = lab::drover(&["needed"]);
        assert!(code == Some(0) || !said.contains(&namespace.name), "{code:?} {said}");
    });
}
