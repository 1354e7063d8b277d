//! Looks at processes as they really are: this one, with what a pod might hold.

use std::{fs::File, io::Write as _, net::UdpSocket};

use super::*;
use crate::domain::processes::OpenFile;

/// This process, as if it were a container's.
fn look_at_this_process() -> Process {
    let folder = PathBuf::from(format!("/proc/{}", std::process::id()));
    let container = ContainerId { name: "c".into(), container_id: "none".into() };
    let inspector = ProcInspector::new(Path::new("/nonexistent"));
    let mounts = Mounts::read(&folder, &container, &inspector.criu_settings).unwrap();
    inspector.process(std::process::id().try_into().unwrap(), &folder, &mounts).unwrap()
}

fn file_of<'p>(process: &'p Process, file: &impl std::os::fd::AsRawFd) -> &'p OpenFile {
    process.files.iter().find(|found| found.fd == file.as_raw_fd()).expect("the file is open")
}

#[test]
fn files_without_their_name_are_told_from_those_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str| File::create(folder.path().join(name)).unwrap();
    let (plain, gone, linked, odd) = (make("plain"), make("gone"), make("linked"), make("odd (deleted)"));
    (&gone).write_all(b"12345").unwrap();
    std::fs::hard_link(folder.path().join("linked"), folder.path().join("other")).unwrap();
    for name in ["gone", "linked"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    let process = look_at_this_process();
    let deleted = |file| file_of(&process, file).deleted.map(|deleted| (deleted.links, deleted.bytes));
    assert_eq!((deleted(&plain), deleted(&odd)), (None, None));
    assert_eq!((deleted(&gone), deleted(&linked)), (Some((0, 5)), Some((1, 0))));
    assert!(!file_of(&process, &plain).outside);
}

#[test]
fn an_sqlite_header_tells_the_kind_of_journal() {
    let folder = tempfile::tempdir().unwrap();
    let database = |name: &str, version: u8| {
        let mut head = b"SQLite format 3\0\x10\0".to_vec();
        head.extend([version, version]);
        head.resize(100, 0);
        std::fs::write(folder.path().join(name), head).unwrap();
        File::options().read(true).write(true).open(folder.path().join(name)).unwrap()
    };
    let (journal, wal) = (database("journal", 1), database("wal", 2));
    let process = look_at_this_process();
    assert!(file_of(&process, &journal).rollback_journal);
    assert!(!file_of(&process, &wal).rollback_journal);
}

#[test]
fn sockets_devices_and_names_are_told() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let null = File::open("/dev/null").unwrap();
    let process = look_at_this_process();
    assert_eq!(file_of(&process, &socket).protocol.as_deref(), Some("UDP"));
    assert_eq!(file_of(&process, &null).device.map(|device| (device.major, device.minor, device.block)), Some((1, 3, false)));
    assert!(!process.name.is_empty() && process.tracer.is_none());
    assert!(!process.nested_namespaces.contains(&"user"));
}

#[test]
fn only_the_containers_own_processes_are_looked_at() {
    let proc = tempfile::tempdir().unwrap();
    for (pid, cgroup) in
        [("12", "0::/kubepods/pod1/abcdef\n"), ("7", "4:memory:/kubepods.slice/cri-containerd-abcdef.scope\n"), ("9", "0::/system\n")]
    {
        std::fs::create_dir(proc.path().join(pid)).unwrap();
        std::fs::write(proc.path().join(pid).join("cgroup"), cgroup).unwrap();
    }
    let inspector = ProcInspector { proc: proc.path().to_owned(), ..ProcInspector::new(Path::new("/")) };
    let containers =
        [ContainerId { name: "c".into(), container_id: "abcdef".into() }, ContainerId { name: "unknown".into(), container_id: String::new() }];
    let pids: Vec<i32> = inspector.processes(&containers).unwrap().into_iter().map(|(pid, _)| pid).collect();
    assert_eq!(pids, [7, 12]);
}
