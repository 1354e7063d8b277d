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
    /// Bytes that one migration may store in its registry, where that is known.
    pub most: Option<u64>,
}

/// The nodes that have too little room for a pod that carries so many bytes. A node that is not among `rooms` is not judged, nor is a destination that has no
/// name yet.
#[must_use]
pub fn missing(bytes: u64, rooms: &BTreeMap<String, Room>, source: &str, destination: &str) -> Vec<Blocker> {
    let of = |node: &str, copies: u64| {
        let (free, needed) = (rooms.get(node)?.free, bytes.saturating_mul(copies));
        (free < needed).then(|| {
            let message = format!("has {} free for checkpoints, and the move needs about {} there", mebibytes(free), mebibytes(needed));
            Blocker::new(format!("node {node}"), message, "free space under /var/lib there, or move the pod when it holds less")
        })
    };
    let allowed = || {
        let most = rooms.get(destination)?.most.filter(|most| *most < bytes)?;
        let message = format!("lets one migration store {}, and the pod carries {}", mebibytes(most), mebibytes(bytes));
        Some(Blocker::new(format!("node {destination}"), message, RAISE))
    };
    [of(source, AT_SOURCE), of(destination, AT_DESTINATION), allowed()].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_disks_are_judged_where_they_are_known() {
        let room = Room { free: 2 << 30, most: None };
        let free = BTreeMap::from([("n1".to_owned(), room), ("n2".to_owned(), room)]);
        assert_eq!(missing(500 << 20, &free, "n1", "n2"), []);
        let told: Vec<_> = missing(600 << 20, &free, "n1", "n2").iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "node n2: has 2048 MiB free for checkpoints, and the move needs about 2400 MiB there (free space under /var/lib there, or move the pod when it holds less)"
            ]
        );
        assert_eq!(missing(u64::MAX, &free, "n1", "n2").len(), 2);
        assert_eq!(missing(u64::MAX, &free, "n3", ""), []);
    }

    #[test]
    fn the_destination_takes_no_more_than_it_allows() {
        let room = Room { free: 64 << 30, most: Some(1 << 30) };
        let rooms = BTreeMap::from([("n1".to_owned(), room), ("n2".to_owned(), room)]);
        assert_eq!(missing(1 << 30, &rooms, "n1", "n2"), []);
        let told: Vec<_> = missing(2 << 30, &rooms, "n1", "n2").iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "node n2: lets one migration store 1024 MiB, and the pod carries 2048 MiB (raise registry.maxBytesPerMigration of Drover's chart, or move the pod when \
                 it holds less)"
            ]
        );
    }
}
