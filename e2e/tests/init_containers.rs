//! Init containers have done their work on the source: a copy passes them without doing it again, and a later start anew does it again.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;

use drover::api::{MigrationSpec, Outcome};

use crate::support::{
    Namespace,
    counter::assert_went_on,
    eventually, lab,
    migrations::{assert_outcome, replacement, status, to},
    pods::{REDIS, counting, pod},
    with_namespace,
};

/// A pod whose init containers each append a line to a file, and whose programs never do.
fn initialized(name: &str) -> Pod {
    let data = json!([{"name": "data", "mountPath": "/data"}]);
    let init = |name: &str, shell: &str, script: &str| json!({"name": name, "image": REDIS, "command": [shell, "-c", script], "volumeMounts": data});
    let files = json!({"name": "files", "image": REDIS, "command": ["sleep", "infinity"], "volumeMounts": data});
    let mut pod = pod(name, "n1", &[counting("c", 4, 50), files]);
    let spec = pod.spec.as_mut().unwrap();
    spec.volumes = serde_json::from_value(json!([{"name": "data", "emptyDir": {}}])).unwrap();
    let both = json!([init("work", "sh", "echo work >>/data/log"), init("check", "/bin/sh", "test -s /data/log && echo check >>/data/log")]);
    spec.init_containers = serde_json::from_value(both).unwrap();
    pod
}

fn log(namespace: &Namespace, pod: &str) -> String {
    let read = namespace.kubectl(&["exec", pod, "-c", "files", "--", "cat", "/data/log"]).unwrap();
    read.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Moves the pod, whose counters go on and whose init containers do nothing; the copy's name.
async fn moves(namespace: &Namespace, spec: MigrationSpec, counters: &[&str]) -> String {
    let mut before = vec![];
    for container in counters {
        before.push(namespace.follow(spec.pod_name.as_deref().unwrap(), container).await);
        before.last().unwrap().beyond(5).await;
    }
    let migration = namespace.make(spec).await;
    let migration = namespace.until_done(&migration.name_any()).await;
    assert_outcome(&migration, Outcome::Migrated);
    eprintln!("two init containers: frozen {:?} ms", status(&migration).frozen_millis);
    let name = replacement(&migration);
    for (container, before) in counters.iter().zip(before) {
        let copy = namespace.follow(&name, container).await;
        copy.beyond(before.last() + 5).await;
        assert_went_on(&before.lines(), &copy.lines(), &migration);
    }
    assert_eq!(log(namespace, &name), "work check", "their work was done once");
    namespace.assert_no_leftovers(&migration).await;
    name
}

#[test]
fn init_containers_do_their_work_once_over_two_moves_and_again_in_a_new_sandbox() {
    with_namespace("init", |namespace| async move {
        namespace.run(&initialized("p")).await;
        let once = moves(&namespace, to("p", "n2"), &["c"]).await;
        let twice = moves(&namespace, to(&once, "n1"), &["c"]).await;
        // As after a boot of the node: everything of the pod starts anew, from its own images. The sandbox of the pod that it was at first may not be removed yet.
        let sandbox = format!("labels.\"io.kubernetes.pod.namespace\"=={},labels.\"io.cri-containerd.kind\"==sandbox", namespace.name);
        lab::on_node(
            "n1",
            &format!("for id in $(ctr -n k8s.io containers ls -q '{sandbox}'); do ctr -n k8s.io tasks kill -s KILL $id || true; done"),
        );
        eventually(Duration::from_mins(1), || {
            let read = namespace.kubectl(&["exec", &twice, "-c", "files", "--", "cat", "/data/log"]).unwrap_or_else(|error| error);
            let words: Vec<&str> = read.split_whitespace().collect();
            (words != ["work", "check", "work", "check"]).then(|| format!("the init containers work again; the log has {words:?}"))
        });
    });
}

#[test]
fn init_containers_of_a_pod_that_keeps_its_name_do_their_work_once() {
    with_namespace("init-keep", |namespace| async move {
        namespace.run(&initialized("p")).await;
        moves(&namespace, MigrationSpec { keep_name: true, ..to("p", "n2") }, &["c"]).await;
    });
}

#[test]
fn a_native_sidecar_goes_on_with_its_pod() {
    with_namespace("sidecar", |namespace| async move {
        let mut pod = initialized("p");
        let mut side = counting("side", 4, 50);
        side["restartPolicy"] = json!("Always");
        pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap().push(serde_json::from_value(side).unwrap());
        namespace.run(&pod).await;
        moves(&namespace, to("p", "n2"), &["c", "side"]).await;
    });
}
