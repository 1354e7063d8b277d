//! A keeper between a CRIU that is this test, and a daemon that is a script; this test also listens in the daemon's place.

use std::{
    io::{PipeReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    thread::JoinHandle,
};

use super::*;
use crate::runc::{
    Record,
    wire::tests::{send_finished, send_process},
};

const ID: &str = "id-1";
/// Writes its arguments down, and ends with the code that it finds.
const CRIU: &str = r#"#!/bin/sh
here=$(dirname "$0")
[ ! -e "$here/cache" ] || exit 1
printf '%s\n' "$@" >"$here/wanted"
while [ ! -s "$here/end" ]; do sleep 0.01; done
echo '(00.1) Error (criu/uffd.c:1): no such page' >"$here/../work/lazy-pages/lazy-pages.log"
exit "$(cat "$here/end")"
"#;
const RUNC: &str = "#!/bin/sh\necho \"$@\" >>\"$(dirname \"$0\")/asked\"\n";

struct Node {
    folder: tempfile::TempDir,
    places: Places,
}

/// A keeper that keeps.
struct Course {
    keeper: JoinHandle<()>,
    /// Closed where the create ends.
    create: UnixStream,
    daemon: UnixListener,
}

fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(ASK);
    }
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["bin", "work", "records"] {
            fs::create_dir(at(name)).unwrap();
        }
        script(&at("bin/criu"), CRIU);
        script(&at("bin/runc"), RUNC);
        let (path, records) = (format!("{}:/bin:/usr/bin", at("bin").display()).into(), at("records"));
        let node = Self { places: Places { records, path, logs: at("logs"), criu_cache: at("bin/cache"), ..Places::of_node() }, folder };
        let record = Record { pod: "u".into(), container: "c".into(), checkpoint: "i".into(), pages: Pages::Outstanding, resumed: None };
        record::write(&node.record(), &record).unwrap();
        node
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn record(&self) -> PathBuf {
        self.places.records.join(ID)
    }

    fn pages(&self) -> Option<Pages> {
        let bytes = fs::read(self.record()).ok()?;
        Some(serde_json::from_slice::<Record>(&bytes).unwrap().pages)
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.at("bin/asked")).unwrap_or_default()
    }

    /// The daemon ends.
    fn end(&self, code: u8) {
        fs::write(self.at("bin/end"), code.to_string()).unwrap();
    }

    fn begin(&self) -> Course {
        let (places, record, work) = (self.places.clone(), self.record(), self.at("work"));
        let (create, caller) = UnixStream::pair().unwrap();
        let keeper = thread::spawn(move || {
            let globals = ["--root", "/r", "--log", "/b/log.json"].map(Into::into);
            let keeper = Keeper { places: &places, work, images: "/images/u/c/checkpoint".into(), source: None, record, globals: &globals };
            keeper.keep(keeper.begin().unwrap(), caller);
        });
        eventually("the daemon begins", || self.at("bin/wanted").exists());
        let daemon = UnixListener::bind(self.at("work/lazy-pages/lazy-pages.socket")).unwrap();
        Course { keeper, create, daemon }
    }

    /// CRIU restores a process of whose userfaultfd the other end is returned: it is closed when nobody holds it any more.
    fn restore(&self, course: &Course, finish: bool) -> PipeReader {
        let (reader, writer) = std::io::pipe().unwrap();
        let (mut daemon, _) = course.daemon.accept().unwrap();
        let criu = UnixStream::connect(self.at("work/lazy-pages.socket")).unwrap();
        send_process(&criu, 1, &writer.into());
        if finish {
            send_finished(&criu);
            let mut heard = [0; 9];
            daemon.read_exact(&mut heard).unwrap();
        }
        reader
    }
}

#[test]
fn when_all_pages_have_come_the_record_says_so() {
    let node = Node::new();
    let course = node.begin();
    let mut reader = node.restore(&course, true);
    // The create takes its time to say that there is a record.
    fs::rename(node.record(), record::pending(&node.record())).unwrap();
    node.end(0);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "what all pages have come of is let go of");
    assert!(!course.keeper.is_finished());
    fs::rename(record::pending(&node.record()), node.record()).unwrap();
    course.keeper.join().unwrap();
    assert_eq!((node.pages(), node.asked()), (Some(Pages::Complete), String::new()));
    let wanted = fs::read_to_string(node.at("bin/wanted")).unwrap();
    let folder = node.at("work/lazy-pages");
    assert_eq!(
        wanted,
        format!("lazy-pages\n-v1\n--log-file\nlazy-pages.log\n--images-dir\n/images/u/c/checkpoint\n--work-dir\n{}\n", folder.display())
    );
}

#[test]
fn a_daemon_that_ends_badly_is_the_end_of_the_container() {
    let node = Node::new();
    let course = node.begin();
    let mut reader = node.restore(&course, true);
    assert_eq!(node.pages(), Some(Pages::Outstanding));
    drop(course.create);
    node.end(3);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    assert_eq!(node.asked(), "--root /r --log /b/log.json --log /dev/null kill --all id-1 KILL\n", "before the processes could go on");
    course.keeper.join().unwrap();
    let Some(Pages::Failed(reason)) = node.pages() else { panic!("{:?}", node.pages()) };
    assert!(reason.contains("exit status: 3") && reason.ends_with("CRIU says: (00.1) Error (criu/uffd.c:1): no such page"), "{reason}");
    let kept = fs::read_to_string(node.at("logs/u/c.lazy-pages.log")).unwrap();
    assert!(kept.contains("no such page"), "{kept}");
}

#[test]
fn the_record_of_a_container_that_was_deleted_meanwhile_stays_away() {
    for code in [0, 1] {
        let node = Node::new();
        let course = node.begin();
        let _reader = node.restore(&course, true);
        drop(course.create);
        fs::remove_file(node.record()).unwrap();
        node.end(code);
        course.keeper.join().unwrap();
        assert_eq!(fs::read_dir(&node.places.records).unwrap().count(), 0, "{code}");
    }
}

#[test]
fn a_restore_that_criu_gives_up_ends_the_daemon_and_what_is_left_of_it() {
    let node = Node::new();
    fs::rename(node.record(), record::pending(&node.record())).unwrap();
    let course = node.begin();
    let mut reader = node.restore(&course, false);
    thread::sleep(10 * ASK);
    assert_eq!(node.asked(), "", "CRIU is not killed, but ends by itself, and with it the create");
    drop(course.create);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    assert_eq!(node.asked(), "--root /r --log /b/log.json --log /dev/null kill --all id-1 KILL\n");
    fs::remove_file(record::pending(&node.record())).unwrap();
    course.keeper.join().unwrap();
    assert_eq!(node.pages(), None);
}

#[test]
fn a_create_that_never_asks_for_pages_ends_the_daemon() {
    let node = Node::new();
    fs::remove_file(node.record()).unwrap();
    let course = node.begin();
    drop(course.create);
    course.keeper.join().unwrap();
    assert_eq!((node.pages(), node.asked(), node.at("work/lazy-pages.socket").exists()), (None, String::new(), false));
}

#[test]
fn what_cannot_begin_says_why_and_leaves_nothing() {
    let node = Node::new();
    let keeper = Keeper { places: &node.places, work: node.at("work"), images: "/i".into(), source: None, record: node.record(), globals: &[] };
    node.end(1);
    let problem = keeper.begin().unwrap_err();
    assert!(problem.contains("it has ended (exit status: 1): CRIU says: (00.1) Error"), "{problem}");
    assert!(!node.at("work/lazy-pages.socket").exists());
    let without = Places { path: "/nonexistent".into(), ..node.places.clone() };
    let problem = Keeper { places: &without, ..keeper }.begin().unwrap_err();
    assert!(problem.contains("there is no program criu in /nonexistent"), "{problem}");
}

#[test]
fn what_criu_remembers_wrongly_is_found_out_anew() {
    let node = Node::new();
    fs::write(node.at("bin/cache"), "no userfaultfd").unwrap();
    let course = node.begin();
    assert!(!node.at("bin/cache").exists());
    drop(course.create);
    course.keeper.join().unwrap();
}

#[test]
fn versions_of_linux_are_told_apart() {
    for (release, wanted) in [("6.18.44-fc-v657", Some((6, 18))), ("5.4", Some((5, 4))), ("5.12-rc1+", Some((5, 12))), ("odd", None), ("6", None)] {
        assert_eq!(version(release), wanted, "{release}");
    }
    assert!(LINUX > (5, 4) && LINUX < (6, 1));
}
