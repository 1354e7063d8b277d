//! Addresses on the loopback device of a pod's network.
//!
//! CRIU binds sockets where they were bound; those that were bound to the old pod's address, among them every DNS look-up in flight, fail in a pod that
//! has another one (WORKLOADS.md 3.3). While it restores, the old address is on `lo`.
//!
//! Two messages of rtnetlink(7) need no library.

use std::{fs, io, net::IpAddr, os::fd::AsFd as _, path::Path, thread};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::ports::{PortError, PortResult};

/// Index of `lo`: the first device of every network namespace.
const LOOPBACK: u32 = 1;

// Of linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h, linux/socket.h.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RT_SCOPE_HOST: u8 = 254;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What is done with the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Remove,
}

/// Changes the addresses on `lo` in the network of the process below `/proc/PID`. Nothing happens where that is the node's own network: there the address of
/// the old node would make that node unreachable.
pub(super) async fn change(process: &Path, addresses: &[String], change: Change) -> PortResult<()> {
    let addresses: Vec<IpAddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
    let network = process.join("ns/net");
    let work = move || {
        if addresses.is_empty() || fs::read_link(&network)? == fs::read_link("/proc/self/ns/net")? {
            return Ok(());
        }
        let network = fs::File::open(network)?;
        // A thread of its own, since it stays in the network that it enters.
        let entered = thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            addresses.into_iter().try_for_each(|address| change_one(address, change))
        });
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread that entered it ended early")))
    };
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|error| {
        PortError::transient(format!(
            "the old address on lo in the replacement's network: {error} (the agent needs the capabilities SYS_ADMIN and NET_ADMIN)"
        ))
    })
}

fn change_one(address: IpAddr, change: Change) -> io::Result<()> {
    // No protocol is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &request(address, change), SendFlags::empty())?;
    let mut buffer = [0; 4096];
    let (filled, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
    match answer(&buffer[..filled])? {
        None => Ok(()),
        Some(Errno::EXIST) if change == Change::Add => Ok(()),
        Some(Errno::ADDRNOTAVAIL) if change == Change::Remove => Ok(()),
        // A node without IPv6: sockets of that family cannot be restored there either, and others need no such address.
        Some(Errno::ACCESS | Errno::OPNOTSUPP | Errno::AFNOSUPPORT) if address.is_ipv6() => Ok(()),
        Some(error) => Err(error.into()),
    }
}

/// The message: a header of 16 bytes, `ifaddrmsg`, the address.
fn request(address: IpAddr, change: Change) -> Vec<u8> {
    let (family, bytes, kinds) = match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec(), &[IFA_LOCAL, IFA_ADDRESS][..]),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec(), &[IFA_ADDRESS][..]),
    };
    // RTM_NEWADDR, RTM_DELADDR.
    let (kind, flags) = match change {
        Change::Add => (20_u16, NLM_F_CREATE_EXCL),
        Change::Remove => (21, 0),
    };
    let prefix: u8 = if family == AF_INET { 32 } else { 128 };
    let mut body = vec![family, prefix, 0, RT_SCOPE_HOST];
    body.extend(LOOPBACK.to_ne_bytes());
    for attribute in kinds {
        // An address's length needs no filling up to four bytes.
        body.extend([4 + u16::from(prefix) / 8, *attribute].into_iter().flat_map(u16::to_ne_bytes));
        body.extend(&bytes);
    }
    let length = u32::try_from(16 + body.len()).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([kind, NLM_F_REQUEST | NLM_F_ACK | flags].into_iter().flat_map(u16::to_ne_bytes));
    // Sequence and port: there is one message on this socket.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// What the kernel says: none where it has done it.
fn answer(message: &[u8]) -> io::Result<Option<Errno>> {
    let unknown = || io::Error::other("the kernel's answer is none to the message");
    let kind = message.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(unknown)?;
    let code = message.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes).ok_or_else(unknown)?;
    match (kind, code) {
        (NLMSG_ERROR, 0) => Ok(None),
        (NLMSG_ERROR, code) => Ok(Some(Errno::from_raw_os_error(code.wrapping_neg()))),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_iproute_sends_them() {
        // As `strace ip addr add 10.0.0.7/32 dev lo` shows it, little-endian, without its broadcast address.
        let wanted: &[u8] =
            &[40, 0, 0, 0, 20, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 2, 32, 0, 254, 1, 0, 0, 0, 8, 0, 2, 0, 10, 0, 0, 7, 8, 0, 1, 0, 10, 0, 0, 7];
        if cfg!(target_endian = "little") {
            assert_eq!(request("10.0.0.7".parse().unwrap(), Change::Add), wanted);
        }
        let six = request("fd00::7".parse().unwrap(), Change::Remove);
        assert_eq!((six.len(), six[16], six[17]), (44, AF_INET6, 128));
    }

    #[test]
    fn the_kernels_answer_is_read() {
        let error = |code: i32| {
            let mut message = [0_u8; 36];
            message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            message[16..20].copy_from_slice(&code.to_ne_bytes());
            message
        };
        assert_eq!(answer(&error(0)).unwrap(), None);
        assert_eq!(answer(&error(-17)).unwrap(), Some(Errno::EXIST));
        assert!(answer(&error(0)[..10]).is_err());
        assert!(answer(&[0; 36]).is_err());
    }

    #[tokio::test]
    async fn the_nodes_own_network_is_left_alone() {
        let own = format!("/proc/{}", std::process::id());
        change(Path::new(&own), &["192.0.2.7".to_owned()], Change::Add).await.unwrap();
        let addresses = fs::read_to_string("/proc/self/net/fib_trie").unwrap();
        assert!(!addresses.contains("192.0.2.7"));
    }
}
