//! What a node's agent reads of a pod's processes.

/// Everything that was read of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its processes, of all containers.
    pub processes: Vec<Process>,
    /// Bytes that the files in its /dev/shm claim to have.
    pub shared_memory: u64,
    /// Bytes that the files in its emptyDir volumes claim to have.
    pub empty_dirs: u64,
    /// Sockets that are bound to the pod's own address and wait for others there.
    pub listeners: Vec<Listener>,
    /// Established TCP connections with both ends in the pod.
    pub loopback_connections: usize,
    /// The folders that a runtime made for `VOLUME` lines of images.
    pub image_volumes: Vec<ImageVolume>,
}

/// One process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// Its ID, as the node counts.
    pub pid: i32,
    /// Its name (`comm`), chosen by itself.
    pub name: String,
    /// Bytes of its memory that a checkpoint holds: what is its own, shared with others, or swapped out, but no files that can be read again.
    pub memory: u64,
    /// Who traces it.
    pub tracer: Option<i32>,
    /// Kinds of namespaces (`user`, `pid`) in which it is not where its container began.
    pub nested_namespaces: Vec<&'static str>,
    /// What it has open.
    pub files: Vec<OpenFile>,
    /// Those of its mappings that may be in the way.
    pub mappings: Vec<Mapping>,
}

/// One file descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenFile {
    /// Its number.
    pub fd: i32,
    /// Where `/proc/PID/fd/N` points.
    pub target: String,
    /// Protocol of a socket, as the kernel names it (`TCPv6`, `MPTCP`).
    pub protocol: Option<String>,
    /// It is a file without its name.
    pub deleted: Option<Deleted>,
    /// It is a device.
    pub device: Option<Device>,
    /// It is a POSIX message queue.
    pub message_queue: bool,
    /// It lies on no mount that the process sees.
    pub outside: bool,
    /// Inotify: how many of its watches are on the container's root file system, where CRIU does not look for them.
    pub unseen_watches: usize,
    /// It lies in an image's `VOLUME`: the mount point.
    pub image_volume: Option<String>,
    /// It is an SQLite database with a rollback journal.
    pub rollback_journal: bool,
}

/// A file that has lost its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Names that it still has.
    pub links: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// A block device, else a character device.
    pub block: bool,
}

impl Device {
    /// Whether CRIU dumps an open one (`dump_chrdev` in `criu/files.c`): memory devices (null, zero, random), terminals, tun, autofs.
    #[must_use]
    pub const fn is_dumped(self) -> bool {
        !self.block && matches!((self.major, self.minor), (1 | 4 | 5 | 128..=143, _) | (10, 200 | 235))
    }
}

/// A part of a process's memory that is backed by a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address, in hex.
    pub start: String,
    /// The file, as `/proc/PID/maps` names it.
    pub target: String,
    /// It is a file without its name.
    pub deleted: Option<Deleted>,
}

/// A socket that waits for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Address that it is bound to.
    pub address: String,
    /// Its port.
    pub port: u16,
}

/// A folder that the runtime made for a `VOLUME` line of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageVolume {
    /// Container.
    pub container: String,
    /// Where it is mounted.
    pub path: String,
    /// Nothing is in it.
    pub is_empty: bool,
}
