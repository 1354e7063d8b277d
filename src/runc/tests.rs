//! Calls as containerd makes them, with a runc that writes down what it was asked.

mod delete;
mod lazy;

use std::{fs, os::unix::fs::MetadataExt as _};

use super::*;
use crate::markers::Claim;

const POD: &str = "0f1c22aa-0000-4000-8000-000000000000";
/// Writes its arguments down, makes what CRIU makes, and ends as it is told.
const RUNC: &str = r#"#!/bin/sh
here=$(dirname "$0")
printf '%s\n' "$@" >>"$here/asked"
work=; log=; after=
for word; do
  case $after in --work-path) work=$word ;; --log) log=$word ;; esac
  after=$word
done
[ -e "$here/fails" ] || exit 0
echo '{"level":"error","msg":"criu failed: type NOTIFY errno 0"}' >>"$log"
printf '(00.1) Error (x.c:1): first\n(00.2) Error (x.c:2): no such file\n(00.3) done\n' >"$work/restore.log"
exit 7
"#;

struct Node {
    folder: tempfile::TempDir,
    places: Places,
    markers: Markers,
    bundle: PathBuf,
}

fn program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        program(&at("bin/runc"), RUNC);
        program(&at("self"), "#!/bin/sh\n[ $# = 2 ] && [ $1 = apply-rootfs-diff ] && cat >\"$2/applied\"\n");
        let bundle = at("bundle");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let places = Places {
            gate_root: at("gate"),
            restore_root: at("restore"),
            records: at("run/records"),
            pages: at("pages"),
            logs: at("logs"),
            path: format!("/nonexistent:{}:/bin", at("bin").display()).into(),
            program: at("self"),
            criu_cache: at("criu.kdat"),
            patience: Duration::from_millis(60),
        };
        let node = Self { markers: Markers::new(&places.gate_root), places, bundle, folder };
        node.configure("container", false);
        node
    }

    fn configure(&self, kind: &str, terminal: bool) {
        let config = serde_json::json!({"ociVersion": "1.2.0", "process": {"terminal": terminal, "cwd": "/"}, "root": {"path": "rootfs"},
            "annotations": {"io.kubernetes.cri.sandbox-uid": POD, "io.kubernetes.cri.container-name": "c", "io.kubernetes.cri.container-type": kind}});
        fs::write(self.bundle.join("config.json"), config.to_string()).unwrap();
    }

    fn images(&self) -> PathBuf {
        let images = self.places.restore_root.join(POD).join("c");
        fs::create_dir_all(images.join(CHECKPOINT)).unwrap();
        images
    }

    fn ready(&self) -> PathBuf {
        let images = self.images();
        fs::write(images.join(READY), "127.0.0.1:5785/drover/00:c").unwrap();
        images
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log.json")
    }

    fn call(&self, words: &[&str]) -> Outcome {
        let log = self.log();
        let globals = ["--root", "/r", "--log", log.to_str().unwrap(), "--log-format", "json"];
        look_at(&self.places, &globals.iter().chain(words).map(OsString::from).collect::<Vec<_>>())
    }

    fn create(&self, id: &str) -> Outcome {
        self.call(&["create", "--bundle", self.bundle.to_str().unwrap(), "--pid-file", "/p/init.pid", id])
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.folder.path().join("bin/asked")).unwrap_or_default()
    }

    fn said(&self) -> Vec<String> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["level"] == "error").map(|line| line["msg"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn what_has_no_waiting_claim_is_runcs() {
    let node = Node::new();
    fs::remove_file(node.bundle.join("config.json")).unwrap();
    assert_eq!(node.create("id"), Outcome::Pass, "without markers the bundle is not read");
    node.configure("container", false);
    node.markers.arm("0f1c22aa-0000-4000-8000-000000000001", "c", "one").unwrap();
    assert_eq!(node.create("id"), Outcome::Pass, "another pod's claim");
    node.markers.arm(POD, "other", "one").unwrap();
    assert_eq!(node.create("id"), Outcome::Pass, "another container's claim: the gate refuses it");
    node.markers.arm(POD, "c", "one").unwrap();
    node.markers.advance(POD, "c", Claim::Waiting, Claim::Taken).unwrap();
    assert_eq!(node.create("id"), Outcome::Pass, "its restore is over: the gate refuses it");
    for words in [&["state", "id"][..], &["start", "id"], &["kill", "id", "9"], &["list"], &["restore", "id"], &["delete", "--force", "id"]] {
        assert_eq!(node.call(words), Outcome::Pass, "{words:?}");
    }
    assert_eq!((node.asked().as_str(), node.said()), ("", vec![]));
}

#[test]
fn the_sandbox_of_a_claimed_pod_is_runcs() {
    let node = Node::new();
    node.configure("sandbox", false);
    node.markers.arm(POD, "c", "one").unwrap();
    assert_eq!(node.create("id"), Outcome::Pass);
}

#[test]
fn a_claimed_container_is_restored_and_its_start_does_nothing_until_it_is_deleted() {
    let node = Node::new();
    node.markers.arm(POD, "c", "one").unwrap();
    let images = node.ready();
    fs::write(images.join(ROOTFS_DIFF), "a tar").unwrap();
    let logs = node.bundle.join("logs");
    fs::create_dir(&logs).unwrap();
    fs::write(logs.join("0.log"), "of a try before\n").unwrap();
    fs::write(logs.join("10.log"), "").unwrap();
    fs::write(logs.join("9.log.gz"), "").unwrap();
    fs::write(images.join(LOG), "so far\n").unwrap();
    fs::write(images.join(LOG_FOLDER), logs.as_os_str().as_encoded_bytes()).unwrap();
    assert_eq!(node.create("id-1.x"), Outcome::Done);
    assert_eq!(fs::read_to_string(logs.join("10.log")).unwrap(), "so far\n");
    assert_eq!(fs::read_to_string(logs.join("0.log")).unwrap(), "of a try before\n");
    let (bundle, log) = (node.bundle.display().to_string(), node.log().display().to_string());
    let checkpoint = images.join(CHECKPOINT).display().to_string();
    let asked = ["--root", "/r", "--log", &log, "--log-format", "json", "restore", "--detach", "--no-subreaper", "--image-path", &checkpoint];
    let asked = asked.into_iter().chain(["--work-path", &bundle, "--bundle", &bundle, "--pid-file", "/p/init.pid", "id-1.x"]);
    assert_eq!(node.asked().lines().collect::<Vec<_>>(), asked.collect::<Vec<_>>());
    assert_eq!(fs::read_to_string(node.bundle.join("rootfs/applied")).unwrap(), "a tar");

    let record = node.places.records.join("id-1.x");
    let known: Record = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert!(known.resumed.is_some_and(|millis| millis > 1_600_000_000_000), "{known:?}");
    let checkpoint = "127.0.0.1:5785/drover/00:c".into();
    assert_eq!(known, Record { pod: POD.into(), container: "c".into(), checkpoint, pages: Pages::Complete, resumed: known.resumed });
    assert_eq!(fs::read_dir(&node.places.records).unwrap().count(), 1, "nothing is left beside it");
    assert!(!node.places.logs.exists(), "the create does nothing that can wait");
    assert_eq!(node.places.records.metadata().unwrap().mode() & 0o777, 0o700);
    assert_eq!(node.call(&["start", "id-1.x"]), Outcome::Done);
    assert_eq!(node.call(&["start", "id-2"]), Outcome::Pass);
    assert_eq!(node.call(&["delete", "--force", "id-1.x"]), Outcome::Pass);
    assert!(!record.exists());
    assert_eq!(node.call(&["start", "id-1.x"]), Outcome::Pass);
    assert_eq!(fs::read_dir(&node.places.records).unwrap().count(), 0);
}

#[test]
fn criu_works_where_the_gate_looks_for_its_log() {
    let node = Node::new();
    node.markers.arm(POD, "c", "one").unwrap();
    node.ready();
    let work = node.folder.path().join("work");
    fs::create_dir(&work).unwrap();
    std::os::unix::fs::symlink(&work, node.bundle.join("work")).unwrap();
    let bundle = format!("--bundle={}", node.bundle.display());
    assert_eq!(node.call(&["create", &bundle, "--console-socket", "/s", "id"]), Outcome::Done);
    let work = fs::canonicalize(work).unwrap();
    assert!(node.asked().contains(&format!("--work-path\n{}\n", work.display())), "{}", node.asked());
    assert!(node.asked().ends_with("--console-socket\n/s\nid\n"), "{}", node.asked());
}

#[test]
fn of_a_restore_that_fails_criu_has_the_last_word() {
    let node = Node::new();
    node.markers.arm(POD, "c", "one").unwrap();
    node.ready();
    fs::write(node.folder.path().join("bin/fails"), "").unwrap();
    assert_eq!(node.create("id"), Outcome::Failed(7));
    let said = node.said();
    assert_eq!(said[0], "criu failed: type NOTIFY errno 0");
    assert_eq!(said[1], format!("drover: container c of pod {POD}: restore failed: CRIU says: (00.2) Error (x.c:2): no such file"));
    assert_eq!((said.len(), fs::read_dir(&node.places.records).unwrap().count()), (2, 0));
    let time = fs::read_to_string(node.log()).unwrap().lines().last().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert!(humantime::parse_rfc3339(time.unwrap()["time"].as_str().unwrap()).is_ok());
    let kept = fs::read_to_string(node.places.logs.join(POD).join("c.restore.log")).unwrap();
    assert!(kept.ends_with("no such file\n(00.3) done\n"), "what containerd removes is kept: {kept}");
}

#[test]
fn a_checkpoint_that_does_not_come_is_an_error_and_never_an_ordinary_create() {
    let node = Node::new();
    node.markers.arm(POD, "c", "one").unwrap();
    let images = node.images();
    assert_eq!(node.create("id"), Outcome::Failed(1));
    assert!(node.said()[0].contains(images.to_str().unwrap()) && node.said()[0].contains("kubectl get migrations"), "{:?}", node.said());
    assert_eq!(node.asked(), "");
}

#[test]
fn images_that_come_and_claims_that_go_end_the_wait() {
    for revoked in [false, true] {
        let mut node = Node::new();
        node.places.patience = Duration::from_mins(1);
        node.markers.arm(POD, "c", "one").unwrap();
        let outcome = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| node.create("id"));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!waiting.is_finished());
            if revoked {
                node.markers.advance(POD, "c", Claim::Waiting, Claim::Revoked).unwrap();
            } else {
                node.ready();
            }
            waiting.join().unwrap()
        });
        assert_eq!(outcome, if revoked { Outcome::Pass } else { Outcome::Done });
        assert_eq!((node.asked().is_empty(), node.said().len()), (revoked, 0));
    }
}

#[test]
fn what_cannot_be_restored_is_refused_with_a_reason() {
    let node = Node::new();
    node.markers.arm(POD, "c", "one").unwrap();
    let images = node.ready();
    node.configure("container", true);
    assert_eq!(node.create("id"), Outcome::Failed(1));
    node.configure("container", false);
    fs::write(images.join(ROOTFS_DIFF), "a tar").unwrap();
    program(&node.places.program, "#!/bin/sh\necho 'the entry \"x\": it is odd' >&2\nexit 1\n");
    assert_eq!(node.create("id"), Outcome::Failed(1));
    fs::remove_file(images.join(ROOTFS_DIFF)).unwrap();
    fs::remove_file(node.folder.path().join("bin/runc")).unwrap();
    assert_eq!(node.create("id"), Outcome::Failed(1));
    for (said, words) in node.said().iter().zip(["tty: true", "the entry \"x\": it is odd", "there is no program runc"]) {
        assert!(said.starts_with("drover: ") && said.contains(words), "{said}");
    }
    assert_eq!((node.said().len(), node.asked().as_str()), (3, ""));
}

#[test]
fn markers_that_cannot_be_read_stop_everything_of_their_pod() {
    let node = Node::new();
    fs::create_dir_all(&node.places.gate_root).unwrap();
    fs::write(node.places.gate_root.join(POD), "no folder").unwrap();
    assert_eq!(node.create("id"), Outcome::Failed(1));
    assert!(node.said()[0].contains("cannot be read"), "{:?}", node.said());
}

#[test]
fn an_id_that_leads_elsewhere_names_no_file() {
    let node = Node::new();
    fs::create_dir_all(&node.places.records).unwrap();
    fs::write(node.folder.path().join("run/victim"), "").unwrap();
    for id in ["../victim", ".", "..", "", "a/b", "a~", "a b"] {
        assert_eq!(node.places.record(id.as_ref()), None, "{id}");
        assert_eq!((node.call(&["delete", id]), node.call(&["start", id])), (Outcome::Pass, Outcome::Pass));
    }
    assert!(node.folder.path().join("run/victim").exists());
    assert_eq!(node.places.record("x".repeat(1025).as_ref()), None);
}

#[test]
fn runc_is_the_first_that_can_be_run() {
    let node = Node::new();
    let found = super::program("runc", &node.places.path).unwrap();
    assert_eq!(found, node.folder.path().join("bin/runc"));
    fs::set_permissions(&found, fs::Permissions::from_mode(0o644)).unwrap();
    let found_in = |path: &OsStr| super::program("runc", path);
    assert_eq!((found_in(found.parent().unwrap().as_os_str()), found_in(OsStr::new("")), found_in(OsStr::new("bin"))), (None, None, None));
}
