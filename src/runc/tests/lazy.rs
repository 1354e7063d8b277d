//! Creates whose images may be read while the container runs already, with a keeper that is a script.

use super::*;

/// A keeper that is ready, or says why it is not.
const KEEPER: &str = r#"#!/bin/sh
here=$(dirname "$0")
[ "$1" = keep-lazy-pages ] || exit 9
printf '%s\n' "$@" >"$here/kept"
pwd >>"$here/kept"
[ -e "$here/hindered" ] && { echo 'there is no program criu'; exit 1; }
echo ready
cat >/dev/null
"#;

fn lazy() -> (Node, PathBuf) {
    let node = Node::new();
    node.markers.arm(POD, "c", "one").unwrap();
    let images = node.ready();
    fs::write(images.join(LAZY), "").unwrap();
    program(&node.places.program, KEEPER);
    (node, images)
}

fn pages_of(node: &Node) -> Pages {
    let record: Record = serde_json::from_slice(&fs::read(node.places.records.join("id")).unwrap()).unwrap();
    record.pages
}

#[test]
fn it_is_restored_lazily_once_its_keeper_is_ready() {
    let (node, images) = lazy();
    assert_eq!(node.create("id"), Outcome::Done);
    assert!(node.asked().ends_with("--lazy-pages\nid\n"), "{}", node.asked());
    assert_eq!(pages_of(&node), Pages::Outstanding);
    let kept = fs::read_to_string(node.folder.path().join("kept")).unwrap();
    let path = |path: PathBuf| fs::canonicalize(path).unwrap().display().to_string();
    let records = path(node.places.records.clone());
    let wanted = ["keep-lazy-pages", &format!("{records}/id"), &path(images.join(CHECKPOINT)), "--root", "/r", "--log"];
    assert_eq!(kept.lines().take(6).collect::<Vec<_>>(), wanted);
    assert_eq!(kept.lines().last(), Some(path(node.bundle.clone()).as_str()), "where CRIU looks for its socket");
    assert_eq!(node.call(&["delete", "id"]), Outcome::Done);
    assert_eq!(fs::read_dir(&node.places.records).unwrap().count(), 0);
}

#[test]
fn without_a_keeper_all_memory_comes_at_once() {
    let (node, images) = lazy();
    fs::write(node.folder.path().join("hindered"), "").unwrap();
    assert_eq!(node.create("id"), Outcome::Done);
    assert!(!node.asked().contains("--lazy-pages"), "{}", node.asked());
    assert_eq!(pages_of(&node), Pages::Complete);
    // Neither is there one where nobody has said that the images may be read later.
    fs::remove_file(images.join(LAZY)).unwrap();
    fs::remove_file(node.folder.path().join("kept")).unwrap();
    assert_eq!(node.create("id"), Outcome::Done);
    assert!(!node.folder.path().join("kept").exists());
}

#[test]
fn the_record_says_that_pages_are_outstanding_before_anything_can_run() {
    let (node, _) = lazy();
    program(&node.folder.path().join("bin/runc"), "#!/bin/sh\ncat \"$(dirname \"$0\")/../run/records/id~\" >\"$(dirname \"$0\")/seen\"\n");
    assert_eq!(node.create("id"), Outcome::Done);
    let seen = fs::read_to_string(node.folder.path().join("bin/seen")).unwrap();
    assert!(seen.contains(r#""pages":"outstanding""#), "{seen}");
}

#[test]
fn a_lazy_restore_that_fails_leaves_no_record() {
    let (node, _) = lazy();
    fs::write(node.folder.path().join("bin/fails"), "").unwrap();
    assert_eq!(node.create("id"), Outcome::Failed(7));
    assert_eq!(fs::read_dir(&node.places.records).unwrap().count(), 0);
}

#[test]
fn memory_that_is_still_at_its_source_comes_through_a_keeper_or_not_at_all() {
    let (node, images) = lazy();
    fs::remove_file(images.join(LAZY)).unwrap();
    fs::write(images.join(POST_COPY), "/run/a b.sock\n").unwrap();
    assert_eq!(node.create("id"), Outcome::Done);
    assert!(node.asked().ends_with("--lazy-pages\nid\n"), "{}", node.asked());
    assert_eq!(pages_of(&node), Pages::Outstanding);
    let kept = fs::read_to_string(node.folder.path().join("kept")).unwrap();
    assert_eq!(kept.lines().skip(3).take(2).collect::<Vec<_>>(), ["/run/a b.sock", "--root"]);

    fs::remove_file(node.folder.path().join("bin/asked")).unwrap();
    fs::write(node.folder.path().join("hindered"), "").unwrap();
    assert_eq!(node.create("id-2"), Outcome::Failed(1));
    fs::write(images.join(POST_COPY), "relative").unwrap();
    assert_eq!(node.create("id-2"), Outcome::Failed(1));
    for (said, words) in node.said().iter().zip(["there is no program criu", "no absolute path"]) {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!((node.said().len(), node.asked().as_str(), node.places.records.join("id-2").exists()), (2, "", false));
}

#[test]
fn a_checkpoint_is_runcs_until_its_pages_are_asked_for() {
    let node = Node::new();
    let words = ["checkpoint", "--image-path", "/i", "--leave-running", "id"];
    assert_eq!(node.call(&words), Outcome::Pass);
    let script = "#!/bin/sh\nprintf '%s\\n' \"$@\" >\"$(dirname \"$0\")/served\"\ncat \"$(dirname \"$0\")/says\"\nexit 7\n";
    program(&node.places.program, script);
    pages::request(&node.places.pages, "id").unwrap();
    fs::write(node.folder.path().join("says"), "ready\n").unwrap();
    assert_eq!(node.call(&words), Outcome::Done);
    let served = fs::read_to_string(node.folder.path().join("served")).unwrap();
    let folder = node.places.pages.join("id");
    assert!(served.starts_with(&format!("serve-pages\n{}\n--root\n/r\n", folder.display())), "{served}");
    assert!(served.ends_with("checkpoint\n--image-path\n/i\n--leave-running\nid\n"), "{served}");
    fs::write(node.folder.path().join("says"), "it does not work\n").unwrap();
    assert_eq!(node.call(&words), Outcome::Failed(7));
    assert_eq!((node.said(), folder.exists()), (vec!["drover: it does not work".to_owned()], false));
}
