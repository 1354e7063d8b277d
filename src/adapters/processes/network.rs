//! Where the pod's sockets are bound.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use procfs::{ProcError, ProcResult, net::TcpState};

use crate::domain::processes::{Listener, PodFacts};

/// Reads the sockets of the network namespace of the process below `/proc/PID`. The node's own, which a hostNetwork pod has, says nothing about the pod.
pub(super) fn read(proc: &Path, process: &Path, addresses: &[IpAddr], facts: &mut PodFacts) -> io::Result<()> {
    if fs::read_link(process.join("ns/net"))? == fs::read_link(proc.join("self/ns/net"))? {
        return Ok(());
    }
    let is_own = |socket: &SocketAddr| addresses.contains(&plain(socket.ip()));
    let tables = procfs::process::Process::new_with_root(process.to_owned()).map_err(io::Error::other)?;
    let mut ends = 0;
    for table in [tables.tcp(), tables.tcp6()] {
        for socket in rows(table)? {
            if socket.state == TcpState::Listen && is_own(&socket.local_address) {
                facts.listeners.push(listener("tcp", &socket.local_address));
            }
            let is_inside = is_own(&socket.remote_address) || plain(socket.remote_address.ip()).is_loopback();
            ends += usize::from(socket.state == TcpState::Established && is_inside);
        }
    }
    // Both ends are listed.
    facts.loopback_connections = ends.div_ceil(2);
    for table in [tables.udp(), tables.udp6()] {
        let sockets = rows(table)?;
        let waiting = sockets.iter().filter(|socket| is_own(&socket.local_address) && socket.remote_address.ip().is_unspecified());
        facts.listeners.extend(waiting.map(|socket| listener("udp", &socket.local_address)));
    }
    Ok(())
}

/// A table's rows; none where the kernel does not have it, as without IPv6.
fn rows<T>(table: ProcResult<Vec<T>>) -> io::Result<Vec<T>> {
    match table {
        Err(ProcError::NotFound(_)) => Ok(vec![]),
        other => other.map_err(io::Error::other),
    }
}

fn listener(protocol: &'static str, socket: &SocketAddr) -> Listener {
    Listener { protocol, address: plain(socket.ip()).to_string(), port: socket.port() }
}

/// An IPv4 address that an IPv6 socket uses is that IPv4 address.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
