//! Pods that the tests move.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{
    ResourceExt as _,
    api::{LogParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::{Value, json};

use super::Namespace;

/// A program that prints a growing number, kept in memory only; CRIU can carry it.
pub const COUNTER: &str = "10.88.0.1:5000/counter:1";
/// A counter each of whose pages carries its own checksum.
pub const CHECKS: &str = "10.88.0.1:5000/checks:1";
/// A counter with an io_uring, which CRIU refuses.
pub const IO_URING: &str = "10.88.0.1:5000/iouring:2";
/// A program with everything that is mended on the way.
pub const MENDS: &str = "10.88.0.1:5000/mends:1";
/// Debian's Redis with its shell, which sleeps.
pub const TOOLBOX: &str = "10.88.0.1:5000/toolbox:1";
/// Debian's Redis.
pub const REDIS: &str = "10.88.0.1:5000/redis:1";

/// A container that counts every so many milliseconds and holds so many MiB.
pub fn counting(name: &str, mib: u32, millis: u32) -> Value {
    json!({"name": name, "image": COUNTER, "args": [mib.to_string(), millis.to_string()]})
}

/// A pod on a node.
pub fn pod(name: &str, node: &str, containers: &[Value]) -> Pod {
    let pod = json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false, "containers": containers}
    });
    serde_json::from_value(pod).unwrap()
}

/// A pod on a node with one container `c` that counts.
pub fn counter(name: &str, node: &str, mib: u32, millis: u32) -> Pod {
    pod(name, node, &[counting("c", mib, millis)])
}

/// A pod on a node with one container `c` that counts every 20 ms and checks as many of its pages each time, of which it has so many MiB; it prints what is no
/// counter's line where one is wrong.
pub fn checking(name: &str, node: &str, mib: u32, pages: u32) -> Pod {
    pod(name, node, &[json!({"name": "c", "image": CHECKS, "args": [mib.to_string(), "20", pages.to_string()]})])
}

/// The status of a pod's container.
pub fn container<'a>(pod: &'a Pod, name: &str) -> &'a ContainerStatus {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("pod {} has no status of container {name}", pod.name_any()))
}

/// Whether all containers of a pod run and are ready.
fn is_running(pod: Option<&Pod>) -> bool {
    let statuses = pod.and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref());
    statuses.is_some_and(|all| !all.is_empty() && all.iter().all(|s| s.ready))
}

impl Namespace {
    /// Creates a pod and waits until it runs.
    pub async fn run(&self, pod: &Pod) -> Pod {
        self.pods().create(&PostParams::default(), pod).await.unwrap();
        self.until_pod(&pod.name_any(), "runs", is_running).await
    }

    /// Waits until a pod is as the condition wants it.
    pub async fn until_pod(&self, name: &str, what: &str, condition: impl Fn(Option<&Pod>) -> bool) -> Pod {
        let seen = await_condition(self.pods(), name, |pod: Option<&Pod>| condition(pod));
        let seen = tokio::time::timeout(Duration::from_mins(1), seen).await;
        seen.unwrap_or_else(|_| panic!("pod {name}: not within a minute: {what}")).unwrap().expect("the pod is there")
    }

    /// What a container has printed since its last start.
    pub async fn logs(&self, pod: &str, container: &str) -> String {
        let params = LogParams { container: Some(container.to_owned()), ..Default::default() };
        self.pods().logs(pod, &params).await.unwrap()
    }

    /// What a container that has ended has printed; nothing where its kubelet has removed it by now, which says so in place of its log.
    pub async fn last_words(&self, pod: &str, container: &str) -> String {
        let text = self.logs(pod, container).await;
        if text.starts_with("unable to retrieve container logs") { String::new() } else { text }
    }

    /// A command in a pod's container; what it printed.
    #[track_caller]
    pub fn exec(&self, pod: &str, command: &[&str]) -> String {
        match self.kubectl(&[&["exec", pod, "--"], command].concat()) {
            Ok(text) => text.trim().to_owned(),
            Err(text) => panic!("{command:?} in pod {pod} failed:\n{text}"),
        }
    }
}
