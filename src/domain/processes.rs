//! What a pod's running processes hold that the way to another node would not survive: judged before any freeze, from what their node's agent has read.
//!
//! Each rule has its case in WORKLOADS.md 2 and 3; where CRIU would refuse, its own words for it stand beside the rule.

mod facts;
#[cfg(test)]
mod tests;

pub use facts::{Deleted, Device, ImageVolume, Listener, Mapping, OpenFile, PodFacts, Process};

use super::preflight::Blocker;

/// Largest deleted file, in bytes, that a checkpoint carries: `ghost-limit` in the node's CRIU settings.
pub const GHOST_LIMIT: u64 = 1 << 30;

/// Most bytes that /dev/shm may show. A sandbox has 64 MiB of it, but a file may claim more than it has; its holes are sent as zeros.
pub const SHARED_MEMORY_LIMIT: u64 = 1 << 30;

/// Most bytes that a pod's emptyDir volumes may have: they are read and sent while it is frozen.
pub const EMPTY_DIR_LIMIT: u64 = 1 << 30;

/// Most findings of a kind that are told; the API server's objects are no place for a list of ten thousand files.
const MOST: usize = 24;

/// Longest name of a file or program that is repeated, in characters: the pod's own processes choose it.
const LONGEST_NAME: usize = 96;

/// Kinds of anonymous inodes that CRIU dumps (`criu/files.c`); of another it says `Unknown shit 600 (anon_inode:…)`.
const DUMPED: [&str; 8] = ["eventfd", "eventpoll", "inotify", "fanotify", "signalfd", "timerfd", "pidfd", "bpf-map"];

/// Beginnings of the names of socket protocols that CRIU does not dump, as the kernel names them; of MPTCP it says `inet: Unsupported proto 262`.
const NOT_DUMPED: [&str; 8] = ["MPTCP", "SCTP", "SMC", "TIPC", "XDP", "AF_VSOCK", "ALG", "DCCP"];

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What keeps the pod where it is.
    pub blockers: Vec<Blocker>,
    /// What will be different after the move.
    pub warnings: Vec<Blocker>,
    /// Bytes that are read and sent while the pod is frozen: its memory, and its volumes in the node's keeping. Pages that processes share are counted for each.
    pub bytes: u64,
    /// Of these, what is in the volumes and in /dev/shm.
    pub volume_bytes: u64,
}

/// Judges what was read.
#[must_use]
pub fn judge(pod: &PodFacts) -> Findings {
    let mut blockers: Vec<Blocker> = pod.processes.iter().flat_map(process_blockers).collect();
    blockers.extend(pod.image_volumes.iter().filter(|volume| !volume.is_empty).map(volume_blocker));
    if pod.shared_memory > SHARED_MEMORY_LIMIT {
        blockers.push(Blocker::new(
            "/dev/shm",
            format!("its files claim {} bytes, and at most {SHARED_MEMORY_LIMIT} are carried", pod.shared_memory),
            "make them smaller",
        ));
    }
    if pod.empty_dirs > EMPTY_DIR_LIMIT {
        blockers.push(Blocker::new(
            "spec.volumes",
            format!("its emptyDir volumes have {} bytes, and at most {EMPTY_DIR_LIMIT} are carried, since the pod is frozen as long", pod.empty_dirs),
            "keep less in them",
        ));
    }
    let mut warnings: Vec<Blocker> = pod.processes.iter().flat_map(journal_warnings).collect();
    warnings.extend(pod.listeners.iter().map(listener_warning));
    if pod.loopback_connections > 0 {
        warnings.push(Blocker::new(
            "/proc/net/tcp",
            format!("{} connections inside of the pod end with the move", pod.loopback_connections),
            "they must be made again by those who use them; unix sockets go on",
        ));
    }
    let memory: u64 = pod.processes.iter().map(|process| process.memory).sum();
    let volume_bytes = pod.shared_memory.saturating_add(pod.empty_dirs);
    let bytes = memory.saturating_add(volume_bytes);
    Findings { blockers: bounded(blockers), warnings: bounded(warnings), bytes, volume_bytes }
}

/// Each message once: a file that was inherited is in many processes.
fn bounded(found: Vec<Blocker>) -> Vec<Blocker> {
    let mut kept: Vec<Blocker> = vec![];
    let mut more = 0;
    for finding in found {
        if kept.iter().any(|other| other.message == finding.message) {
            continue;
        }
        if kept.len() < MOST { kept.push(finding) } else { more += 1 }
    }
    if more > 0 {
        kept.push(Blocker::new("processes", format!("and {more} findings more"), ""));
    }
    kept
}

fn process_blockers(process: &Process) -> Vec<Blocker> {
    let of = field_of(process);
    let mut found = vec![];
    if let Some(tracer) = process.tracer {
        found.push(Blocker::new(format!("{of}.TracerPid"), format!("is traced by process {tracer}"), "end the debugger"));
    }
    for kind in &process.nested_namespaces {
        found.push(Blocker::new(
            format!("{of}.ns/{kind}"),
            format!("is in a {kind} namespace of its own, which CRIU does not restore"),
            "a program that makes namespaces (a sandbox, a nested container) cannot be moved",
        ));
    }
    for file in &process.files {
        found.extend(file_blocker(file).map(|(message, remedy)| Blocker::new(format!("{of}.fd[{}]", file.fd), message, remedy)));
    }
    for mapping in &process.mappings {
        let finding = anonymous(&mapping.target).or_else(|| mapping.deleted.and_then(|deleted| deleted_file(&mapping.target, deleted)));
        found.extend(finding.map(|(message, remedy)| Blocker::new(format!("{of}.maps[{}]", mapping.start), message, remedy)));
    }
    found
}

type Finding = (String, &'static str);

fn file_blocker(file: &OpenFile) -> Option<Finding> {
    let name = shown(&file.target);
    if let Some(protocol) = file.protocol.as_deref().filter(|protocol| NOT_DUMPED.iter().any(|prefix| protocol.starts_with(prefix))) {
        let remedy = if protocol.starts_with("MPTCP") {
            "for Go set GODEBUG=multipathtcp=0; else listen with plain TCP"
        } else {
            "a program that needs it cannot be moved"
        };
        return Some((format!("is a socket of protocol {}, which CRIU does not checkpoint", shown(protocol)), remedy));
    }
    if let Some(device) = file.device.filter(|device| !device.is_dumped()) {
        let kind = if device.block { "block" } else { "character" };
        return Some((format!("{name} is {kind} device {}:{}, which stays on its node", device.major, device.minor), "close it before the move"));
    }
    if file.message_queue {
        return Some((format!("{name} is a POSIX message queue, which CRIU does not checkpoint"), "use a socket, a pipe or System V messages"));
    }
    if file.outside {
        return Some((format!("{name} lies outside of the container's mounts"), "a file of the node cannot be moved: close it"));
    }
    if let Some(path) = &file.image_volume {
        let message = format!("{name} lies in the image's VOLUME {}, which is not moved", shown(path));
        return Some((message, "mount a volume of the pod at that path"));
    }
    if file.unseen_watches > 0 {
        let message = format!("inotify watches {} files of the container's root file system that CRIU cannot find again", file.unseen_watches);
        return Some((
            message,
            "watch files of a volume or of /etc, or name their top folder in an `irmap-scan-path` line of the nodes' /etc/criu/runc.conf",
        ));
    }
    anonymous(&file.target).or_else(|| file.deleted.and_then(|deleted| deleted_file(&file.target, deleted)))
}

fn anonymous(target: &str) -> Option<Finding> {
    let kind = target.strip_prefix("anon_inode:")?.trim_matches(['[', ']']);
    if DUMPED.contains(&kind) {
        return None;
    }
    let remedy = match kind {
        "io_uring" => "set seccompProfile RuntimeDefault, which refuses io_uring, or switch it off in the program",
        "userfaultfd" => "switch off what uses userfaultfd in the program",
        _ => "a program that uses it cannot be moved",
    };
    Some((format!("uses {}, which CRIU does not checkpoint", shown(kind)), remedy))
}

fn deleted_file(target: &str, deleted: Deleted) -> Option<Finding> {
    let name = shown(target.strip_suffix(" (deleted)").unwrap_or(target));
    if deleted.links > 0 {
        let remedy = if name.starts_with("/dev/shm/") {
            "named semaphores (sem_open) are such files: use unnamed ones in shared memory, or System V semaphores"
        } else {
            "close it, or remove its other names too"
        };
        return Some((format!("{name} was deleted but has {} more names, which CRIU cannot put back", deleted.links), remedy));
    }
    (deleted.bytes > GHOST_LIMIT).then(|| {
        let message = format!("{name} was deleted and has {} bytes; a checkpoint carries at most {GHOST_LIMIT} of such a file", deleted.bytes);
        (message, "close it, or do not delete it")
    })
}

fn volume_blocker(volume: &ImageVolume) -> Blocker {
    let message = format!("the image's VOLUME {} holds files, which are not moved", shown(&volume.path));
    Blocker::new(format!("spec.containers[{}].volumeMounts", volume.container), message, "mount a volume of the pod at that path")
}

/// WORKLOADS.md 3.5: SQLite sees that its file is another one, and turns an open connection read-only for good.
fn journal_warnings(process: &Process) -> Vec<Blocker> {
    let of = field_of(process);
    let databases = process.files.iter().filter(|file| file.rollback_journal);
    databases
        .map(|file| {
            let message =
                format!("{} is an SQLite database with a rollback journal: this connection is read-only after the move", shown(&file.target));
            Blocker::new(format!("{of}.fd[{}]", file.fd), message, "switch it to WAL (PRAGMA journal_mode=WAL), or open it again after the move")
        })
        .collect()
}

fn listener_warning(listener: &Listener) -> Blocker {
    let Listener { protocol, address, port } = listener;
    let message =
        format!("{protocol} {address} port {port} is bound to the pod's own address, which it leaves behind: nothing reaches it after the move");
    Blocker::new(format!("/proc/net/{protocol}"), message, "bind to all addresses, or bind again after the move")
}

fn field_of(process: &Process) -> String {
    format!("process[{} {}]", process.pid, shown(&process.name))
}

/// A name that the pod has chosen, fit for a message.
fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(LONGEST_NAME).map(|c| if c.is_control() { '?' } else { c }).collect();
    if name.chars().count() > LONGEST_NAME {
        text.push('…');
    }
    text
}
