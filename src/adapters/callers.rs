//! Who is at the other end of a connection on this node, by its `/proc`: address → socket → the processes that have it open → their cgroups.
//!
//! Nothing is passed that was not found: a socket that is closed, on its way between two processes, or in a thread's own table of files is nobody's. Drover's own
//! agent may be taken for the node's (its cgroup is `/` in its own cgroup namespace); it needs no door to get at the registry.

use std::{
    ffi::OsString,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use procfs::{
    FromReadSI as _, ProcError,
    net::{TcpNetEntries, TcpState},
};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::processes::{is_gone, pids, remedy};
use crate::{domain::caller::Caller, ports::callers::Callers};

/// How long an answer may take; whoever waits for it has not sent anything yet, or waits as for a slow registry.
const LIMIT: Duration = Duration::from_secs(5);

/// Reads `/proc`.
#[derive(Debug)]
pub struct NodeCallers {
    reader: Reader,
    /// All processes are gone through one after the other: whoever connects often must not keep the node busy, nor the runtime waiting, which is found at once.
    turn: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
struct Reader {
    proc: PathBuf,
    /// The node's process that connected last, which is the runtime as a rule; 0: none yet. It is looked at first, and judged anew.
    last: Arc<AtomicI32>,
}

impl Default for NodeCallers {
    fn default() -> Self {
        Self::at(PathBuf::from("/proc"))
    }
}

impl NodeCallers {
    fn at(proc: PathBuf) -> Self {
        Self { reader: Reader { proc, last: Arc::default() }, turn: Arc::new(Semaphore::new(1)) }
    }

    async fn look(&self, theirs: SocketAddr, ours: SocketAddr) -> io::Result<Caller> {
        let reader = self.reader.clone();
        let looked = spawn_blocking(move || {
            let Some(socket) = reader.socket(theirs, ours)? else { return Ok((None, None)) };
            let at_once = reader.as_last_time(&socket)?;
            io::Result::Ok((Some(socket), at_once))
        });
        let socket = match looked.await?? {
            (_, Some(caller)) => return Ok(caller),
            (None, _) => return Ok(Caller::Unknown("the connection's other end is not in this node's network".to_owned())),
            (Some(socket), None) => socket,
        };
        let (reader, turn) = (self.reader.clone(), Arc::clone(&self.turn).acquire_owned().await.map_err(io::Error::other)?);
        let looked = spawn_blocking(move || {
            let _turn = turn;
            reader.among_all(&socket)
        });
        looked.await?
    }
}

#[async_trait]
impl Callers for NodeCallers {
    async fn who(&self, theirs: SocketAddr, ours: SocketAddr) -> Caller {
        match tokio::time::timeout(LIMIT, self.look(theirs, ours)).await {
            Ok(Ok(caller)) => caller,
            Ok(Err(error)) => Caller::Unknown(format!("the node's processes could not be read: {error}{}", remedy(&error))),
            Err(_) => Caller::Unknown(format!("the node's processes were not read within {} s", LIMIT.as_secs())),
        }
    }
}

impl Reader {
    /// The connected socket with these ends, as `/proc/PID/fd` names it.
    fn socket(&self, own: SocketAddr, other: SocketAddr) -> io::Result<Option<OsString>> {
        for table in ["tcp", "tcp6"] {
            let rows = match TcpNetEntries::from_file(self.proc.join("self/net").join(table), procfs::current_system_info()) {
                // As without IPv6.
                Err(ProcError::NotFound(_)) => continue,
                rows => rows.map_err(io::Error::other)?.0,
            };
            let found = rows
                .iter()
                .find(|row| row.state == TcpState::Established && same(row.local_address, own) && same(row.remote_address, other) && row.inode != 0);
            if let Some(row) = found {
                return Ok(Some(format!("socket:[{}]", row.inode).into()));
            }
        }
        Ok(None)
    }

    /// Where the process that was found last time has it open, and is still the node's. Then nobody else is looked for: neither runtime nor kubelet hands its
    /// sockets on.
    fn as_last_time(&self, socket: &OsString) -> io::Result<Option<Caller>> {
        let last = self.last.load(Ordering::Relaxed);
        if last == 0 {
            return Ok(None);
        }
        let found = gone_is_none(self.holder(last, socket, &self.first()))?;
        Ok(found.filter(|caller| *caller == Caller::Node))
    }

    fn among_all(&self, socket: &OsString) -> io::Result<Caller> {
        let (first, mut holders) = (self.first(), vec![]);
        for pid in pids(&self.proc)? {
            if let Some(caller) = gone_is_none(self.holder(pid, socket, &first))? {
                holders.push((pid, caller));
            }
        }
        let pid = holders.first().map(|(pid, _)| *pid);
        let caller = Caller::of_holders(holders.into_iter().map(|(_, caller)| caller));
        if let (Caller::Node, Some(pid)) = (&caller, pid) {
            self.last.store(pid, Ordering::Relaxed);
        }
        Ok(caller)
    }

    /// What a process is that has it open; none where it has not.
    fn holder(&self, pid: i32, socket: &OsString, first: &str) -> io::Result<Option<Caller>> {
        let folder = self.proc.join(pid.to_string());
        if !has_open(&folder, socket)? {
            return Ok(None);
        }
        let cgroups = fs::read(folder.join("cgroup"))?;
        Ok(Some(Caller::of_process(&String::from_utf8_lossy(&cgroups), first)))
    }

    /// The cgroups of the node's first process. Without them nothing counts as the node's own place, which is the stricter way.
    fn first(&self) -> String {
        fs::read_to_string(self.proc.join("1/cgroup")).unwrap_or_default()
    }
}

fn has_open(process: &Path, socket: &OsString) -> io::Result<bool> {
    for file in fs::read_dir(process.join("fd"))? {
        match gone_is_none(fs::read_link(file?.path()).map(Some))? {
            Some(target) if target.as_os_str() == socket => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

/// Processes end and files are closed while they are looked at: what is gone is not there.
fn gone_is_none<T>(looked: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if is_gone(&error) => Ok(None),
        other => other,
    }
}

/// An IPv4 address that an IPv6 socket uses is that IPv4 address.
fn same(one: SocketAddr, other: SocketAddr) -> bool {
    let plain = |address: SocketAddr| -> (IpAddr, u16) { (address.ip().to_canonical(), address.port()) };
    plain(one) == plain(other)
}

#[cfg(test)]
mod tests;
