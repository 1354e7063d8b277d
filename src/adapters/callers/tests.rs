//! Connections as they really are, and processes in a `/proc` that is made up.

use std::{
    fs::{create_dir_all, write},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
};

use super::*;

const POD: &str = "0::/kubepods/podc1efeaaa-3a1e-4180-8d55-f40b9567e4ac/c\n";
const NODE: &str = "0::/system.slice/containerd.service\n";

const THEIRS: &str = "127.0.0.1:40000";
const OURS: &str = "127.0.0.1:5785";

/// A `/proc` in which one socket, 77, is connected from `THEIRS` to `OURS`, and these processes, with their cgroups, have it open or have not.
fn made_up(processes: &[(u32, &str, bool)]) -> (tempfile::TempDir, NodeCallers) {
    let folder = tempfile::tempdir().unwrap();
    let net = folder.path().join("self/net");
    create_dir_all(&net).unwrap();
    let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
    let row = |slot: u8, local: &str, remote: &str, state: &str, inode: u32| {
        format!(
            "   {slot}: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0000000000000000 20 4 30 10 -1\n"
        )
    };
    let (client, door) = ("0100007F:9C40", "0100007F:1699");
    let rows = [row(0, door, "00000000:0000", "0A", 70), row(1, door, client, "01", 71), row(2, client, door, "01", 77)];
    write(net.join("tcp"), head.to_owned() + &rows.concat()).unwrap();
    for (pid, cgroup, has_it) in processes.iter().chain(&[(1, "0::/init.scope\n", false)]) {
        let process = folder.path().join(pid.to_string());
        create_dir_all(process.join("fd")).unwrap();
        write(process.join("cgroup"), cgroup).unwrap();
        symlink("socket:[71]", process.join("fd/3")).unwrap();
        if *has_it {
            symlink("socket:[77]", process.join("fd/4")).unwrap();
        }
    }
    let callers = NodeCallers::at(folder.path().to_owned());
    (folder, callers)
}

async fn asked(callers: &NodeCallers) -> &'static str {
    callers.who(THEIRS.parse().unwrap(), OURS.parse().unwrap()).await.label()
}

#[tokio::test]
async fn who_holds_the_other_end_is_told() {
    for (processes, wanted) in [
        (vec![(7, NODE, true), (8, POD, false)], "node"),
        (vec![(7, NODE, false), (8, POD, true)], "contained"),
        (vec![(7, NODE, true), (8, POD, true)], "contained"),
        (vec![(7, NODE, false), (8, POD, false)], "unknown"),
        (vec![(7, "", true)], "unknown"),
        (vec![], "unknown"),
    ] {
        let (_folder, callers) = made_up(&processes);
        assert_eq!(asked(&callers).await, wanted, "{processes:?}");
    }
}

#[tokio::test]
async fn the_process_of_last_time_is_judged_anew() {
    let (folder, callers) = made_up(&[(7, NODE, true)]);
    assert_eq!(asked(&callers).await, "node");
    assert_eq!(callers.reader.last.load(Ordering::Relaxed), 7);
    // Its number is a pod's now.
    write(folder.path().join("7/cgroup"), POD).unwrap();
    assert_eq!(asked(&callers).await, "contained");
    // Or nobody's.
    fs::remove_dir_all(folder.path().join("7")).unwrap();
    assert_eq!(asked(&callers).await, "unknown");
}

#[tokio::test]
async fn what_cannot_be_looked_up_is_unknown() {
    let (folder, callers) = made_up(&[(7, NODE, true)]);
    let elsewhere = callers.who("10.0.0.7:40000".parse().unwrap(), OURS.parse().unwrap()).await;
    assert_eq!(elsewhere.label(), "unknown");
    fs::remove_dir_all(folder.path().join("7/fd")).unwrap();
    write(folder.path().join("7/fd"), "").unwrap();
    let Caller::Unknown(why) = callers.who(THEIRS.parse().unwrap(), OURS.parse().unwrap()).await else { panic!("it was known") };
    assert!(why.contains("could not be read"), "{why}");
}

/// Both families: a client may use an IPv6 socket for an IPv4 address.
#[tokio::test]
async fn a_real_connection_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let reader = NodeCallers::default().reader;
    for to in [format!("127.0.0.1:{port}"), format!("[::ffff:127.0.0.1]:{port}")] {
        let Ok(client) = TcpStream::connect(&to) else {
            assert!(to.starts_with('['), "{to} does not answer");
            continue;
        };
        let (accepted, theirs) = listener.accept().unwrap();
        let ours = accepted.local_addr().unwrap();
        let socket = reader.socket(theirs, ours).unwrap().expect("the socket is found");
        assert!(has_open(&reader.proc.join(std::process::id().to_string()), &socket).unwrap());
        drop(client);
        assert_eq!(reader.socket(theirs, ours).unwrap(), None, "a closed connection has no holder");
    }
}
