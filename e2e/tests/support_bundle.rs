//! `drover support`: CRIU's logs outlast what they lie in, and one file has them with all else that tells how a migration went.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use flate2::read::GzDecoder;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use drover::api::{Migration, MigrationSpec, Outcome, migration::Lane};

use crate::support::{
    Namespace, lab,
    migrations::{assert_outcome, status, to},
    moving::{Moment, Moving},
    pods::counter,
    with_namespace,
};

/// The value of a variable of each pod here.
const SECRET: &str = "hunter2-of-the-support-bundle";

fn by_runtime() -> MigrationSpec {
    MigrationSpec { lane: Lane::Runtime, ..to("c", "n2") }
}

/// Runs a counter on n1 that has been told a secret; it counts when this returns.
async fn counts_with_a_secret(namespace: &Namespace, spec: MigrationSpec) -> Moving {
    let mut pod = counter("c", "n1", 8, 50);
    pod.spec.as_mut().unwrap().containers[0].env = serde_json::from_value(json!([{"name": "PASSWORD", "value": SECRET}])).unwrap();
    namespace.run(&pod).await;
    let source = namespace.follow("c", "c").await;
    source.beyond(5).await;
    let migration = namespace.make(spec).await;
    Moving::of(namespace, source, migration)
}

/// What `drover support` writes of a migration: each file's path in the bundle and its content.
#[track_caller]
fn bundle_of(migration: &Migration) -> Vec<(String, String)> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bundle.tar.gz");
    let (name, namespace) = (migration.name_any(), migration.namespace().unwrap());
    let (code, said) = lab::drover(&["support", "--migration", &name, "-n", &namespace, "--output", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let mut files = vec![];
    for entry in tar::Archive::new(GzDecoder::new(File::open(&file).unwrap())).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut content = vec![];
        entry.read_to_end(&mut content).unwrap();
        let (folder, inside) = path.split_once('/').unwrap();
        assert!(folder.starts_with("drover-support-"), "{path}");
        files.push((inside.to_owned(), String::from_utf8_lossy(&content).into_owned()));
    }
    files
}

#[track_caller]
fn file<'a>(files: &'a [(String, String)], wanted: &str) -> &'a str {
    let found = files.iter().find(|(path, _)| path == wanted);
    found.map_or_else(|| panic!("{wanted} is not among {:?}", files.iter().map(|(path, _)| path).collect::<Vec<_>>()), |(_, content)| content)
}

/// What a bundle of a migration has in any case.
#[track_caller]
fn assert_has_the_cluster(files: &[(String, String)], migration: &Migration) {
    let migrations: Value = serde_json::from_str(file(files, "objects/migrations.json")).unwrap();
    assert_eq!(migrations["items"].as_array().unwrap().len(), 1);
    assert_eq!(migrations["items"][0]["metadata"]["uid"].as_str(), migration.uid().as_deref());
    let is_manager = |path: &str| path.starts_with("logs/drover-manager-") && path.ends_with("/manager.log");
    let manager: String = files.iter().filter(|(path, _)| is_manager(path)).map(|(_, log)| log.as_str()).collect();
    assert!(manager.contains(&migration.name_any()), "a manager's log names the migration");
    assert!(files.iter().any(|(path, _)| path.starts_with("logs/drover-agent-") && path.ends_with("/agent.log")));
    let pods: Value = serde_json::from_str(file(files, "objects/pods.json")).unwrap();
    assert!(!pods["items"].as_array().unwrap().is_empty(), "there is none of its pods");
    // What a container has said before a node's boot its kubelet may have forgotten.
    let problems: Vec<_> = file(files, "problems.txt").lines().filter(|problem| !problem.contains("before its last restart")).collect();
    assert_eq!(problems, [""; 0]);
    for (path, content) in files {
        assert!(!content.contains(SECRET), "{path} has the value of the pod's variable");
    }
}

#[test]
fn a_bundle_says_why_criu_refused_a_restore_and_not_what_the_pod_was_told() {
    with_namespace("support-refused", |namespace| async move {
        let mut moving = counts_with_a_secret(&namespace, by_runtime()).await;
        moving.hold(Moment::Released).await;
        lab::on_node("n2", "for core in /run/drover/restore/*/c/checkpoint/core-*.img; do echo spoilt >$core; done");
        moving.go_on();
        moving.rolls_back("CRIU says", Duration::from_secs(90)).await;

        let files = bundle_of(&moving.migration);
        assert_has_the_cluster(&files, &moving.migration);
        let replacement = status(&moving.migration).replacement.unwrap().uid;
        let log = file(&files, &format!("node-logs/n2/{replacement}/c.restore.log"));
        assert!(log.contains("Error ("), "CRIU's error is not in its log:\n{log}");
        let dump = file(&files, &format!("node-logs/n1/{}/c.dump.log", moving.migration.uid().unwrap()));
        assert!(dump.contains("Dumping finished successfully"), "{dump}");
    });
}

#[test]
fn the_logs_of_a_move_outlast_it() {
    with_namespace("support-moved", |namespace| async move {
        let moving = counts_with_a_secret(&namespace, by_runtime()).await;
        let migration = namespace.until_done(&moving.name()).await;
        assert_outcome(&migration, Outcome::Migrated);
        namespace.assert_no_leftovers(&migration).await;

        let files = bundle_of(&migration);
        assert_has_the_cluster(&files, &migration);
        let replacement = status(&migration).replacement.unwrap().uid;
        let log = file(&files, &format!("node-logs/n2/{replacement}/c.restore.log"));
        assert!(log.contains("Restore finished successfully"), "{log}");
        let dump = file(&files, &format!("node-logs/n1/{}/c.dump.log", migration.uid().unwrap()));
        assert!(dump.contains("Dumping finished successfully"), "{dump}");
        let modes = "find /var/lib/drover/logs ! -perm 700 -type d; find /var/lib/drover/logs ! -perm 600 -type f";
        for node in ["n1", "n2"] {
            assert_eq!(lab::on_node(node, modes), "", "{node}: whatever lies there is root's alone");
        }
    });
}
