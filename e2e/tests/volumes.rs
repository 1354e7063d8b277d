//! What a pod keeps in its emptyDir volumes goes with it.

use kube::ResourceExt as _;
use serde_json::json;

use drover::api::Outcome;

use crate::support::{
    Namespace,
    counter::assert_went_on,
    migrations::{assert_outcome, replacement, status, to},
    pods::{REDIS, counting, pod},
    with_namespace,
};

/// Writes its lines into a file that it keeps open, from memory only.
const WRITER: &str = "exec 3>>/ram/lines; n=0; while :; do n=$((n + 1)); echo $n >&3; sleep 0.1; done";
/// Owners, modes, times and content of everything in the volume on the disk.
const FINGERPRINT: &str = "cd /data && find . -type f -exec stat -c '%n %u:%g %a %Y' {} + | sort && find . -type d -exec stat -c '%n %u:%g %a' {} + \
                           | sort && find . -type f -exec sha256sum {} + | sort && readlink link";

fn exec(namespace: &Namespace, pod: &str, command: &[&str]) -> String {
    match namespace.kubectl(&[&["exec", pod, "-c", "redis", "--"], command].concat()) {
        Ok(text) => text.trim().to_owned(),
        Err(text) => panic!("{command:?} failed:\n{text}"),
    }
}

fn shell(namespace: &Namespace, pod: &str, script: &str) -> String {
    exec(namespace, pod, &["sh", "-c", script])
}

/// One container with an append-only file on the disk, one that writes into memory, one without volumes; all of them go on.
#[test]
fn three_containers_and_their_files_go_on_together() {
    with_namespace("volumes", |namespace| async move {
        let redis = json!({
            "name": "redis", "image": REDIS,
            "command": ["redis-server", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", "/data"],
            "readinessProbe": {"exec": {"command": ["redis-cli", "ping"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "ram", "mountPath": "/ram", "readOnly": true}]
        });
        let writer =
            json!({"name": "writer", "image": REDIS, "command": ["sh", "-c", WRITER], "volumeMounts": [{"name": "ram", "mountPath": "/ram"}]});
        let mut three = pod("three", "n1", &[redis, writer, counting("c", 16, 50)]);
        let volumes = json!([{"name": "data", "emptyDir": {}}, {"name": "ram", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}]);
        three.spec.as_mut().unwrap().volumes = serde_json::from_value(volumes).unwrap();
        namespace.run(&three).await;
        for number in 0..50 {
            assert_eq!(exec(&namespace, "three", &["redis-cli", "set", &format!("key:{number}"), "before"]), "OK");
        }
        // What an image's start script does to the volume itself, and what an application leaves in it.
        let left = "mkdir -p /data/deep && echo text >/data/deep/file && chown 1000:2000 /data/deep/file && chmod 640 /data/deep/file \
                    && ln -s deep/file /data/link && chown 1000:2000 /data && chmod 2750 /data";
        shell(&namespace, "three", left);
        let before = shell(&namespace, "three", FINGERPRINT);
        let source = namespace.follow("three", "c").await;
        source.beyond(5).await;

        let migration = namespace.make(to("three", "n2")).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        eprintln!("three containers with two volumes: frozen {:?} ms", status(&migration).frozen_millis);
        let name = replacement(&migration);
        assert_eq!(shell(&namespace, &name, FINGERPRINT), before, "the volume on the disk is as it was");

        let copy = namespace.follow(&name, "c").await;
        copy.beyond(source.last() + 5).await;
        assert_went_on(&source.lines(), &copy.lines(), &migration);
        // Both files are the ones that are open: what is written now is there.
        assert_eq!(exec(&namespace, &name, &["redis-cli", "set", "after", "the move"]), "OK");
        assert!(shell(&namespace, &name, "cat /data/appendonlydir/*.incr.aof").contains("the move"));
        let lines = shell(&namespace, &name, "sleep 1; cat /ram/lines");
        let numbers: Vec<usize> = lines.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>(), "each line was written once, and none is missing");
        namespace.assert_no_leftovers(&migration).await;
    });
}
