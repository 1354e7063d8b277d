//! Each rule with the fact that breaks it, and with the nearest fact that does not.

use super::*;

fn with_file(file: OpenFile) -> PodFacts {
    PodFacts {
        processes: vec![Process { pid: 7, name: "app".into(), files: vec![OpenFile { fd: 3, ..file }], ..Process::default() }],
        ..PodFacts::default()
    }
}

fn with_process(process: Process) -> PodFacts {
    PodFacts { processes: vec![Process { pid: 7, name: "app".into(), ..process }], ..PodFacts::default() }
}

fn target(target: &str) -> OpenFile {
    OpenFile { target: target.into(), ..OpenFile::default() }
}

fn deleted(name: &str, links: u64, bytes: u64) -> OpenFile {
    OpenFile { deleted: Some(Deleted { links, bytes }), ..target(&format!("{name} (deleted)")) }
}

fn socket(protocol: &str) -> OpenFile {
    OpenFile { protocol: Some(protocol.into()), ..target("socket:[1]") }
}

fn device(block: bool, major: u32, minor: u32) -> OpenFile {
    OpenFile { device: Some(Device { major, minor, block }), ..target("/dev/x") }
}

#[test]
fn what_criu_cannot_dump_is_refused_with_its_field_and_a_remedy() {
    let cases = [
        (target("anon_inode:[io_uring]"), "io_uring"),
        (target("anon_inode:[userfaultfd]"), "userfaultfd"),
        (target("anon_inode:[perf_event]"), "perf_event"),
        (socket("MPTCP"), "protocol MPTCP"),
        (socket("MPTCPv6"), "protocol MPTCPv6"),
        (socket("SCTP"), "protocol SCTP"),
        (device(false, 226, 0), "character device 226:0"),
        (device(true, 8, 0), "block device 8:0"),
        (OpenFile { message_queue: true, outside: true, ..target("/jobs") }, "POSIX message queue"),
        (OpenFile { outside: true, ..target("/srv/x") }, "outside of the container's mounts"),
        (OpenFile { image_volume: Some("/data".into()), ..target("/data/f") }, "VOLUME /data"),
        (OpenFile { unseen_watches: 2, ..target("anon_inode:inotify") }, "inotify watches 2 files"),
        (deleted("/tmp/a", 1, 0), "has 1 more names"),
        (deleted("/tmp/a", 0, GHOST_LIMIT + 1), "was deleted and has"),
    ];
    for (file, message) in cases {
        let found = judge(&with_file(file.clone())).blockers;
        assert_eq!(found.len(), 1, "{file:?}: {found:?}");
        assert_eq!(found[0].field, "process[7 app].fd[3]");
        assert!(found[0].message.contains(message), "{message:?} is not in {:?}", found[0].message);
        assert!(!found[0].remedy.is_empty(), "{file:?}");
    }
}

#[test]
fn what_criu_dumps_is_let_through() {
    let cases = [
        target("anon_inode:[eventpoll]"),
        target("anon_inode:inotify"),
        target("anon_inode:[timerfd]"),
        target("pipe:[7]"),
        target("/memfd:x (deleted)"),
        socket("TCPv6"),
        socket("UNIX-STREAM"),
        device(false, 1, 3),
        device(false, 136, 0),
        device(false, 10, 200),
        deleted("/tmp/a", 0, GHOST_LIMIT),
    ];
    for file in cases {
        assert_eq!(judge(&with_file(file.clone())), Findings::default(), "{file:?}");
    }
}

#[test]
fn a_process_that_is_traced_or_nested_is_refused() {
    let traced = judge(&with_process(Process { tracer: Some(9), ..Process::default() })).blockers;
    assert_eq!((traced.len(), traced[0].field.as_str()), (1, "process[7 app].TracerPid"));
    let nested = judge(&with_process(Process { nested_namespaces: vec!["user"], ..Process::default() })).blockers;
    assert_eq!((nested.len(), nested[0].field.as_str()), (1, "process[7 app].ns/user"));
}

#[test]
fn a_mapping_counts_like_an_open_file() {
    let ring = Mapping { start: "7f00".into(), target: "anon_inode:[io_uring]".into(), deleted: None };
    let semaphore = Mapping { start: "7f01".into(), target: "/dev/shm/sem.x (deleted)".into(), deleted: Some(Deleted { links: 1, bytes: 32 }) };
    let library = Mapping { start: "7f02".into(), target: "/lib/x.so (deleted)".into(), deleted: Some(Deleted { links: 0, bytes: 32 }) };
    let found = judge(&with_process(Process { mappings: vec![ring, semaphore, library], ..Process::default() })).blockers;
    let fields: Vec<_> = found.iter().map(|finding| finding.field.as_str()).collect();
    assert_eq!(fields, ["process[7 app].maps[7f00]", "process[7 app].maps[7f01]"]);
    assert!(found[1].remedy.contains("sem_open"), "{:?}", found[1]);
}

#[test]
fn a_volume_of_the_image_is_refused_only_when_something_is_in_it() {
    let volume = |is_empty| ImageVolume { container: "c".into(), path: "/data".into(), is_empty };
    assert_eq!(judge(&PodFacts { image_volumes: vec![volume(true)], ..PodFacts::default() }), Findings::default());
    let found = judge(&PodFacts { image_volumes: vec![volume(false)], ..PodFacts::default() }).blockers;
    assert_eq!(found[0].field, "spec.containers[c].volumeMounts");
}

#[test]
fn shared_memory_is_carried_up_to_a_limit() {
    assert_eq!(judge(&PodFacts { shared_memory: SHARED_MEMORY_LIMIT, ..PodFacts::default() }).blockers, vec![]);
    assert_eq!(judge(&PodFacts { shared_memory: SHARED_MEMORY_LIMIT + 1, ..PodFacts::default() }).blockers[0].field, "/dev/shm");
}

#[test]
fn what_only_changes_is_a_warning() {
    let mut pod = with_file(OpenFile { rollback_journal: true, ..target("/srv/a.db") });
    pod.listeners = vec![Listener { protocol: "udp", address: "10.0.0.7".into(), port: 53 }];
    pod.loopback_connections = 2;
    let found = judge(&pod);
    assert_eq!(found.blockers, vec![]);
    let said: Vec<_> = found.warnings.iter().map(ToString::to_string).collect();
    assert!(said[0].contains("SQLite") && said[1].contains("10.0.0.7 port 53") && said[2].contains("2 connections"), "{said:?}");
}

#[test]
fn what_many_processes_share_is_told_once_and_a_flood_is_cut() {
    let fork = |pid| Process { pid, name: "app".into(), files: vec![target("anon_inode:[io_uring]")], ..Process::default() };
    let forked = PodFacts { processes: vec![fork(1), fork(2)], ..PodFacts::default() };
    assert_eq!(judge(&forked).blockers.len(), 1);
    let files = (0..100).map(|n| deleted(&format!("/tmp/{n}"), 1, 0)).collect();
    let found = judge(&with_process(Process { files, ..Process::default() })).blockers;
    assert_eq!(found.len(), MOST + 1);
    assert!(found[MOST].message.contains("76 findings more"), "{:?}", found[MOST]);
}

#[test]
fn a_name_that_the_pod_has_chosen_cannot_break_a_message() {
    let found = judge(&with_process(Process { tracer: Some(1), name: format!("a\n{}", "b".repeat(200)), ..Process::default() })).blockers;
    let field = &found[0].field;
    assert!(!field.contains('\n') && field.chars().count() < 120, "{field:?}");
}

#[test]
fn what_is_carried_while_the_pod_is_frozen_is_counted() {
    let mut pod = with_process(Process { memory: 1 << 20, ..Process::default() });
    pod.processes.push(Process { memory: 2 << 20, ..Process::default() });
    (pod.shared_memory, pod.empty_dirs) = (3 << 20, 4 << 20);
    assert_eq!(judge(&pod).bytes, 10 << 20);
}
