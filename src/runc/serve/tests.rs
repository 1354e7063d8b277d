//! A server of pages whose runc is a script that says what it is told to, in CRIU's place, to whoever asks.

use std::{os::unix::fs::PermissionsExt as _, thread::JoinHandle};

use super::*;
use crate::runc::{
    pages::{Serving, end, request, state},
    transfer::tests::question,
    wire::tests::alone,
};

const ID: &str = "id-1";
/// Thaws, says that pages can be asked for, and gives two questions back as their pages.
const RUNC: &str = r#"#!/bin/bash
here=$(dirname "$0")
printf '%s\n' "$@" >"$here/asked"
echo THAWED >"$here/../cgroup/freezer.state"
if [ -e "$here/fails" ]; then
  echo '(00.1) Error (x.c:1): no such page' >"$here/../work/dump.log"
  exit 7
fi
while [ $# -gt 0 ]; do [ "$1" = --status-fd ] && status=$2; shift; done
read -r _ socket <"$CRIU_CONFIG_FILE"
printf '\0' >&"$status"
for _ in 1 2; do head -c 32 <&"$socket" >&"$socket"; done
exit 0
"#;

struct Node {
    folder: tempfile::TempDir,
    places: Places,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["bin", "work", "cgroup", "root/id-1"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("bin/runc"), RUNC).unwrap();
        fs::set_permissions(at("bin/runc"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(at("cgroup/freezer.state"), "FROZEN\n").unwrap();
        fs::write(at("root/id-1/state.json"), serde_json::json!({"cgroup_paths": {"freezer": at("cgroup")}}).to_string()).unwrap();
        let path = format!("{}:/bin:/usr/bin", at("bin").display()).into();
        let node = Self { places: Places { pages: at("pages"), path, ..Places::of_node() }, folder };
        request(&node.places.pages, ID).unwrap();
        node
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arguments(&self) -> Vec<OsString> {
        let words = ["--root", "ROOT", "checkpoint", "--work-path", "WORK", "--leave-running", ID].map(OsString::from);
        let put = |word: OsString| {
            if word == "ROOT" {
                self.at("root").into()
            } else if word == "WORK" {
                self.at("work").into()
            } else {
                word
            }
        };
        words.into_iter().map(put).collect()
    }

    /// A server until it has ended, or why it cannot be.
    fn begin(&self) -> Result<JoinHandle<()>, Problem> {
        let (places, folder, arguments) = (self.places.clone(), self.at("pages/id-1"), self.arguments());
        let (sender, receiver) = channel();
        let server = thread::spawn(move || {
            let call = Call::of(&arguments).unwrap();
            let alone = alone();
            let server = Server { places: &places, folder: &folder, call, options: &arguments[3..6] };
            let mut told = vec![];
            let begun = server.begin();
            drop(alone);
            let begun = begun.and_then(|mut dump| match server.listen(&mut dump, &mut told) {
                Ok(listener) => Ok((dump, listener)),
                Err(problem) => Err(server.give_up(dump, problem)),
            });
            match begun {
                Ok((dump, listener)) => {
                    assert_eq!(told, b"ready\n");
                    sender.send(None).unwrap();
                    server.serve(dump, listener);
                }
                Err(problem) => sender.send(Some(problem)).unwrap(),
            }
        });
        receiver.recv().unwrap().map_or(Ok(server), Err)
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.at("pages/id-1/pages.sock")).unwrap()
    }

    fn state(&self) -> Option<Serving> {
        state(&self.places.pages, ID).unwrap()
    }

    fn is_frozen(&self) -> bool {
        fs::read_to_string(self.at("cgroup/freezer.state")).unwrap().starts_with("FROZEN")
    }
}

#[test]
fn whoever_asks_first_gets_every_page() {
    let node = Node::new();
    let server = node.begin().unwrap();
    assert!(node.is_frozen(), "before anybody hears of it");
    assert_eq!(fs::metadata(node.at("pages/id-1/pages.sock")).unwrap().permissions().mode() & 0o777, 0o600);
    let call = fs::read_to_string(node.at("bin/asked")).unwrap();
    let wanted = format!(
        "--root\n{}\ncheckpoint\n--work-path\n{}\n--leave-running\n--lazy-pages\n--status-fd\n",
        node.at("root").display(),
        node.at("work").display()
    );
    assert!(call.starts_with(&wanted) && call.ends_with("\nid-1\n"), "{call}");
    drop(node.connect());
    let mut asker = node.connect();
    assert_eq!(node.state(), Some(Serving::Serving));
    for command in [7, 0x1024] {
        asker.write_all(&question(command)).unwrap();
        let mut page = vec![0; 32];
        asker.read_exact(&mut page).unwrap();
        assert_eq!(page, question(command));
    }
    server.join().unwrap();
    assert_eq!((node.state(), node.is_frozen(), node.at("pages/id-1/pages.sock").exists()), (Some(Serving::Complete), true, false));
}

#[test]
fn a_connection_that_ends_early_is_a_failure_though_criu_ends_well() {
    let node = Node::new();
    let server = node.begin().unwrap();
    node.connect().write_all(&question(7)).unwrap();
    server.join().unwrap();
    assert!(matches!(node.state(), Some(Serving::Failed(reason)) if reason.contains("before every page was fetched")));
}

#[test]
fn it_can_be_cancelled() {
    for asks in [false, true] {
        let node = Node::new();
        let server = node.begin().unwrap();
        let mut asker = node.connect();
        if asks {
            asker.write_all(&question(7)).unwrap();
            asker.read_exact(&mut [0; 32]).unwrap();
        }
        assert!(end(&node.places.pages, ID, Duration::from_secs(20)).unwrap());
        server.join().unwrap();
        assert_eq!((node.state(), node.is_frozen(), node.at("pages/id-1").exists()), (None, true, false));
    }
}

#[test]
fn a_dump_that_fails_leaves_the_container_frozen() {
    let node = Node::new();
    fs::write(node.at("bin/fails"), "").unwrap();
    let (code, problem) = node.begin().unwrap_err();
    assert_eq!((code, problem.as_str()), (7, "checkpoint of id-1 failed: CRIU says: (00.1) Error (x.c:1): no such page"));
    assert!(node.is_frozen());
}

#[test]
fn what_is_not_paused_is_left_alone() {
    let node = Node::new();
    fs::write(node.at("cgroup/freezer.state"), "THAWED\n").unwrap();
    assert_eq!(node.begin().unwrap_err(), (1, "id-1 is not paused".to_owned()));
    assert!(!node.at("bin/asked").exists());
}
