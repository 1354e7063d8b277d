//! What of a pod is refused, and in which words.

use serde_json::{Value, json};

use super::*;

fn image(digit: char) -> String {
    format!("reg/i@sha256:{}", digit.to_string().repeat(64))
}

/// A container of this image ID that runs.
fn running(image_id: &str) -> Value {
    json!({"status": {"containerStatuses": [{"name": "c", "image": "i", "ready": true, "restartCount": 0, "imageID": image_id,
        "containerID": "containerd://abc", "state": {"running": {}}}]}})
}

fn pod(patch: &Value) -> Pod {
    let mut value = json!({
        "metadata": {"name": "p", "namespace": "d", "uid": "0f1c22aa-0000"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "c", "image": "i", "ready": true, "restartCount": 0,
            "imageID": image('a'), "containerID": "containerd://abc", "state": {"running": {}}}]}
    });
    json_patch::merge(&mut value, patch);
    serde_json::from_value(value).unwrap()
}

#[test]
fn an_ordinary_pod_has_no_blocker() {
    assert_eq!(blockers(&pod(&json!({}))), vec![]);
    let volumes = json!([{"name": "disk", "emptyDir": {}}, {"name": "ram", "emptyDir": {"medium": "Memory"}}]);
    assert_eq!(blockers(&pod(&json!({"spec": {"volumes": volumes}}))), vec![]);
}

/// What a person reads, for everything in a pod that is refused: one at a time, whole.
fn assert_each(cases: &[(Value, &str)]) {
    for (patch, text) in cases {
        assert_eq!(Blocker::join(&blockers(&pod(patch))), *text, "{patch}");
    }
}

#[test]
fn each_refusal_of_a_pod_says_where_why_and_what_to_do() {
    let owner = |api: &str, kind: &str| json!({"metadata": {"ownerReferences": [{"apiVersion": api, "kind": kind, "name": "o", "uid": "u", "controller": true}]}});
    let of = |name: &str, value: Value| json!({"spec": {name: value}});
    assert_each(&[
        (
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            "metadata.deletionTimestamp: the pod is being deleted (there is nothing left to move)",
        ),
        (
            json!({"metadata": {"annotations": {MIRROR: "x"}}}),
            "metadata.annotations[kubernetes.io/config.mirror]: static pods belong to their node (move the manifest file instead)",
        ),
        (
            owner("apps/v1", "DaemonSet"),
            "metadata.ownerReferences: a pod of DaemonSet o has its pods on every node by design (change which nodes the DaemonSet selects)",
        ),
        (
            owner("apps.kruise.io/v1", "CloneSet"),
            "metadata.ownerReferences: a pod of CloneSet o cannot be moved yet: Drover knows Jobs, ReplicaSets, Deployments, StatefulSets and bare pods (delete the pod and let its owner make another one elsewhere)",
        ),
        (json!({"status": {"phase": "Pending"}}), "status.phase: is Pending (only running pods have a memory to move)"),
        (of("hostPID", json!(true)), "spec.hostPID: process IDs of a node exist there only (give the pod a PID namespace of its own)"),
        (of("hostIPC", json!(true)), "spec.hostIPC: shared memory of a node exists there only (give the pod an IPC namespace of its own)"),
        (of("shareProcessNamespace", json!(true)), "spec.shareProcessNamespace: process IDs may be taken on the destination (set it to false)"),
        (
            of("ephemeralContainers", json!([{"name": "debug"}])),
            "spec.ephemeralContainers: cannot be made again on the destination (make a pod without them)",
        ),
        (
            of("runtimeClassName", json!("gvisor")),
            "spec.runtimeClassName: only the default runtime and Drover's are supported yet (use the default runtime)",
        ),
        (of("activeDeadlineSeconds", json!(60)), "spec.activeDeadlineSeconds: would begin again on the destination (remove it)"),
        (of("resourceClaims", json!([{"name": "gpu"}])), "spec.resourceClaims: devices stay on their node (a pod with devices cannot be moved)"),
        (of("os", json!({"name": "windows"})), "spec.os: only Linux pods can be checkpointed (a pod of another system cannot be moved)"),
        (of("hostUsers", json!(false)), "spec.hostUsers: CRIU does not restore nested user namespaces (set it to true)"),
    ]);
}

#[test]
fn each_refusal_of_a_container_says_where_why_and_what_to_do() {
    let container = |more: Value| {
        let mut container = json!({"name": "c", "image": "i"});
        json_patch::merge(&mut container, &more);
        json!({"spec": {"containers": [container]}})
    };
    assert_each(&[
        (container(json!({"tty": true})), "spec.containers[c].tty: a terminal cannot be restored (set tty to false)"),
        (
            container(json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]})),
            "spec.containers[c].volumeDevices: block devices are not moved (use a volume with a file system)",
        ),
        (
            container(json!({"lifecycle": {"postStart": {"exec": {"command": ["x"]}}}})),
            "spec.containers[c].lifecycle.postStart: would run again after the restore (remove the hook)",
        ),
        (
            container(json!({"resources": {"limits": {"nvidia.com/gpu": "1"}}})),
            "spec.containers[c].resources.limits: devices stay on their node: nvidia.com/gpu (a pod with devices cannot be moved)",
        ),
        (json!({"status": {"containerStatuses": []}}), "spec.containers[c]: is not running (wait until every container runs)"),
        (
            running("sha256:0"),
            "spec.containers[c].image: its digest is not known (imageID in the pod's status) (use an image that was pulled from a registry)",
        ),
    ]);
}

#[test]
fn each_refusal_of_a_volume_or_init_container_says_where_why_and_what_to_do() {
    let volume = |source: Value| {
        let mut volume = json!({"name": "v"});
        json_patch::merge(&mut volume, &source);
        json!({"spec": {"volumes": [volume]}})
    };
    let init = |containers: Value| {
        let status =
            |name: &str| json!({"name": name, "image": "i", "ready": true, "restartCount": 0, "imageID": image('c'), "state": {"running": {}}});
        json!({"spec": {"initContainers": containers}, "status": {"initContainerStatuses": [status("one"), status("two")]}})
    };
    assert_each(&[
        (
            volume(json!({"emptyDir": {"medium": "HugePages"}})),
            "spec.volumes[v]: emptyDir: only those on the node's disk or in its memory are moved (leave its medium out, or set it to Memory)",
        ),
        (
            volume(json!({"hostPath": {"path": "/"}})),
            "spec.volumes[v]: hostPath: its content stays on the node (use a volume that the destination has too)",
        ),
        (volume(json!({"ephemeral": {}})), "spec.volumes[v]: ephemeral: its claim is deleted with the pod (use a persistentVolumeClaim)"),
        (
            volume(json!({"csi": {"driver": "d"}})),
            "spec.volumes[v]: this kind of volume is not supported (use emptyDir, ConfigMap, Secret, projected, downwardAPI or claims' volumes)",
        ),
        (
            init(json!([{"name": "three"}])),
            "spec.initContainers[three].image: its digest is not known (imageID in the pod's status) (use an image that was pulled from a registry)",
        ),
        (
            init(json!([{"name": "one", "restartPolicy": "Always", "tty": true}])),
            "spec.initContainers[one].tty: a terminal cannot be restored (set tty to false)",
        ),
        (
            init(json!([{"name": "one", "restartPolicy": "Always"}, {"name": "two"}])),
            "spec.initContainers[two]: begins its work after sidecar one, so that it could be passed only within the freeze (name it before the sidecars)",
        ),
        (
            init(json!([{"name": "one", "command": ["/v/run"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}])),
            "spec.initContainers[one].command: its program /v/run lies in the volume that is mounted at /v (call it by a program of the image, as in [sh, /scripts/init.sh])",
        ),
        (
            init(json!([{"name": "one", "command": ["$(RUN)"]}])),
            "spec.initContainers[one].command: its program's name is made of variables (write the program's name out)",
        ),
    ]);
}

#[test]
fn all_blockers_come_at_once() {
    let found = blockers(&pod(&json!({"spec": {"hostPID": true, "hostIPC": true, "volumes": [{"name": "h", "hostPath": {"path": "/"}}]}})));
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn the_base_image_of_a_moved_pod_is_the_one_of_its_first_node() {
    let canonical = format!("reg/i@sha256:{}", "b".repeat(64));
    let annotated = |image: &str| json!({"metadata": {"annotations": {keys::ORIGINAL_IMAGES: format!("{{\"c\":\"{image}\"}}")}}});
    assert_eq!(base_image(&pod(&annotated(&canonical)), "c"), Some(canonical));
    let checkpoint = format!("{}/drover/00@sha256:{}", keys::PULL_ADDRESS, "c".repeat(64));
    assert_eq!(base_image(&pod(&annotated(&checkpoint)), "c"), None);
}

#[test]
fn a_hook_that_will_not_run_is_warned_of() {
    assert_eq!(warnings(&pod(&json!({}))), []);
    let hooked = json!({"spec": {"containers": [{"name": "c", "image": "i", "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}}}]}});
    assert_eq!(
        Blocker::join(&warnings(&pod(&hooked))),
        "spec.containers[c].lifecycle.preStop: does not run where the pod leaves: its process goes on elsewhere"
    );
    assert_eq!(blockers(&pod(&hooked)), []);
}
