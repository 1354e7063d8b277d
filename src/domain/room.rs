//! Whether the disks of both nodes have room for what a move copies, before anything is frozen.
//!
//! A disk that fills up in the middle costs the freeze: the move is rolled back, and whatever else lives on that disk is in trouble by then.

use std::collections::BTreeMap;

use super::{preflight::Blocker, quantity::mebibytes};

/// How often the bytes that are carried lie on the source's disk at once: CRIU's images and the kubelet's archive of them. Seen with 256 MiB: 2.5 times.
const AT_SOURCE: u64 = 3;
/// And on the destination's: in the registry, in containerd's content store, and unpacked for the restore. Seen with 256 MiB: 4.0 times.
const AT_DESTINATION: u64 = 4;

/// What to do about a pod that carries more than one migration may store.
pub const RAISE: &str = "raise registry.maxBytesPerMigration of Drover's chart, or move the pod when it holds less";

/// What a node has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Free bytes where its checkpoints lie.
    pub free: u64,
    /// Bytes of a checkpoint for which its memory has room; 0 where that is not known.
    pub memory: u64,
    /// Bytes that one migration may store in its registry, where that is known.
    pub most: Option<u64>,
}

/// What a pod carries, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// What goes through archives and the registry.
    pub stored: u64,
    /// Memory that goes past them, in the runtime lane: it lies once on either node, in its memory or else on its disk.
    pub memory: u64,
}

/// The nodes that have too little room for what a pod carries. A node that is not among `rooms` is not judged, nor is a destination that has no name yet.
#[must_use]
pub fn missing(carried: Carried, rooms: &BTreeMap<String, Room>, source: &str, destination: &str) -> Vec<Blocker> {
    let of = |node: &str, copies: u64| {
        let room = rooms.get(node)?;
        let beside = if room.memory > carried.memory { 0 } else { carried.memory };
        let (free, needed) = (room.free, carried.stored.saturating_mul(copies).saturating_add(beside));
        (free < needed).then(|| {
            let mut message = format!("has {} free for checkpoints, and the move needs about {} there", mebibytes(free), mebibytes(needed));
            if beside > 0 {
                message = format!("{message}, since its memory has room for {} of a checkpoint", mebibytes(room.memory));
            }
            Blocker::new(format!("node {node}"), message, "free space under /var/lib there, or move the pod when it holds less")
        })
    };
    let allowed = || {
        let bytes = carried.stored.saturating_add(carried.memory);
        let most = rooms.get(destination)?.most.filter(|most| *most < bytes)?;
        let message = format!("lets one migration store {}, and the pod carries {}", mebibytes(most), mebibytes(bytes));
        Some(Blocker::new(format!("node {destination}"), message, RAISE))
    };
    [of(source, AT_SOURCE), of(destination, AT_DESTINATION), allowed()].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(bytes: u64) -> Carried {
        Carried { stored: bytes, memory: 0 }
    }

    #[test]
    fn both_disks_are_judged_where_they_are_known() {
        let room = Room { free: 2 << 30, memory: 0, most: None };
        let free = BTreeMap::from([("n1".to_owned(), room), ("n2".to_owned(), room)]);
        assert_eq!(missing(stored(500 << 20), &free, "n1", "n2"), []);
        let told: Vec<_> = missing(stored(600 << 20), &free, "n1", "n2").iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "node n2: has 2048 MiB free for checkpoints, and the move needs about 2400 MiB there (free space under /var/lib there, or move the pod when it holds less)"
            ]
        );
        assert_eq!(missing(stored(u64::MAX), &free, "n1", "n2").len(), 2);
        assert_eq!(missing(stored(u64::MAX), &free, "n3", ""), []);
    }

    #[test]
    fn the_destination_takes_no_more_than_it_allows() {
        let room = Room { free: 64 << 30, memory: 0, most: Some(1 << 30) };
        let rooms = BTreeMap::from([("n1".to_owned(), room), ("n2".to_owned(), room)]);
        assert_eq!(missing(stored(1 << 30), &rooms, "n1", "n2"), []);
        let told: Vec<_> = missing(stored(2 << 30), &rooms, "n1", "n2").iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "node n2: lets one migration store 1024 MiB, and the pod carries 2048 MiB (raise registry.maxBytesPerMigration of Drover's chart, or move the pod when \
                 it holds less)"
            ]
        );
    }

    #[test]
    fn memory_of_the_runtime_lane_needs_the_disk_once_and_only_where_it_does_not_fit_into_the_nodes() {
        let carried = |stored: u64, memory: u64| Carried { stored: stored << 20, memory: memory << 20 };
        let rooms = |memory: u64| {
            let room = Room { free: 2 << 30, memory: memory << 20, most: Some(8 << 30) };
            BTreeMap::from([("n1".to_owned(), room), ("n2".to_owned(), room)])
        };
        let refused = |carried, memory| missing(carried, &rooms(memory), "n1", "n2").len();
        assert_eq!(refused(carried(0, 4096), 4097), 0, "it does not touch the disk");
        assert_eq!(refused(carried(0, 2048), 512), 0, "it lies there once");
        assert_eq!(refused(carried(0, 2049), 512), 2);
        assert_eq!((refused(carried(512, 100), 512), refused(carried(513, 100), 512)), (0, 1), "volumes are stored as ever");
        assert_eq!(refused(carried(0, 9000), 1 << 20), 1, "what one migration may send counts all the same");
        let told = missing(carried(0, 2049), &rooms(512), "n1", "")[0].to_string();
        assert!(told.contains("needs about 2049 MiB there, since its memory has room for 512 MiB of a checkpoint"), "{told}");
    }
}
