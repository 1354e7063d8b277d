//! Where the way to a source's memory meets the keeper that asks for it (post-copy): the one comes by the push door, the other by a unix socket of this node.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::Notify,
};
use tokio_util::task::AbortOnDropHandle;

use super::memory_room::{make_private, remove, seen};
use crate::{
    domain::keys::REPOSITORY_PREFIX,
    ports::layout::{Copy, Way},
};

/// On the node. No socket's path may be long, and a pod's folder would make it so.
const WAYS: &str = "/run/drover/ways";
/// Bytes that are passed on at once.
const CHUNK: usize = 1 << 18;
/// For so long nothing may come from a source that was asked, as KubeVirt has it (`progressTimeout`). While the network is away the copy waits.
const PROGRESS: Duration = Duration::from_secs(150);

/// Repository and container.
type Of = (String, String);

/// The ways to this node.
#[derive(Debug, Clone)]
pub(super) struct Ways {
    node: PathBuf,
    progress: Duration,
    places: Arc<Mutex<HashMap<Of, Place>>>,
}

/// Where two meet.
#[derive(Debug, Default)]
struct Place {
    meeting: Arc<Meeting>,
    offered: Option<Offered>,
}

/// A socket, and who listens at it.
#[derive(Debug)]
struct Offered {
    socket: PathBuf,
    listens: AbortOnDropHandle<()>,
}

impl Drop for Offered {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.socket) {
            tracing::warn!(%error, socket = %self.socket.display(), "a socket is left behind");
        }
    }
}

#[derive(Default)]
struct Meeting {
    way: Mutex<Option<Box<dyn Way>>>,
    has_come: Notify,
}

impl std::fmt::Debug for Meeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meeting")
    }
}

impl Ways {
    /// To the node whose root is at `node`.
    pub(super) fn new(node: &Path) -> Self {
        Self { node: node.to_owned(), progress: PROGRESS, places: Arc::default() }
    }

    /// The socket of a container, by its path on the node.
    pub(super) fn socket(copy: &Copy) -> PathBuf {
        let hash = blake3::hash(format!("{}\n{}", copy.pod_uid, copy.container).as_bytes()).to_hex();
        Path::new(WAYS).join(format!("{}-{}", hex_of(&copy.repository), &hash.as_str()[..8]))
    }

    /// Takes a way.
    pub(super) fn connect(&self, repository: &str, container: &str, way: Box<dyn Way>) {
        let meeting = self.meeting(repository, container);
        *meeting.way.lock().unwrap_or_else(PoisonError::into_inner) = Some(way);
        meeting.has_come.notify_one();
    }

    fn meeting(&self, repository: &str, container: &str) -> Arc<Meeting> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&places.entry((repository.to_owned(), container.to_owned())).or_default().meeting)
    }

    /// Listens for a container's keeper, unless it does already.
    pub(super) fn offer(&self, copy: &Copy) -> io::Result<()> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry((copy.repository.clone(), copy.container.clone())).or_default();
        if place.offered.as_ref().is_some_and(|offered| !offered.listens.is_finished()) {
            return Ok(());
        }
        // One that has ended removes its socket, which must not be the next one's.
        place.offered = None;
        let socket = seen(&self.node, &Self::socket(copy));
        make_private(&seen(&self.node, Path::new(WAYS)))?;
        remove(&socket)?;
        let listener = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        let listens = listen(listener, Arc::clone(&place.meeting), copy.container.clone(), self.progress);
        place.offered = Some(Offered { socket, listens: AbortOnDropHandle::new(tokio::spawn(listens)) });
        Ok(())
    }

    /// Closes all ways of a repository, and removes its sockets, also those that a process before this one has made.
    pub(super) fn forget(&self, repository: &str) -> io::Result<()> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| of != repository);
        let of = |socket: &PathBuf| socket.file_name().is_some_and(|name| hex_in(&name.to_string_lossy()) == Some(hex_of(repository)));
        self.sockets()?.iter().filter(|socket| of(socket)).try_for_each(|socket| remove(socket))
    }

    /// The hexadecimal digits of the repositories that have sockets here.
    pub(super) fn repositories(&self) -> io::Result<Vec<String>> {
        let hex = |socket: PathBuf| hex_in(&socket.file_name()?.to_string_lossy()).map(str::to_owned);
        Ok(self.sockets()?.into_iter().filter_map(hex).collect())
    }

    fn sockets(&self) -> io::Result<Vec<PathBuf>> {
        match std::fs::read_dir(seen(&self.node, Path::new(WAYS))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            entries => entries?.map(|entry| entry.map(|entry| entry.path())).collect(),
        }
    }
}

fn hex_of(repository: &str) -> &str {
    repository.strip_prefix(REPOSITORY_PREFIX).unwrap_or(repository)
}

/// The part of a socket's name that names its repository.
fn hex_in(name: &str) -> Option<&str> {
    name.split_once('-').map(|(hex, _)| hex)
}

/// One keeper at a time: of two restores of one container the gate lets one through.
async fn listen(listener: UnixListener, meeting: Arc<Meeting>, container: String, progress: Duration) {
    loop {
        let keeper = match listener.accept().await {
            Ok((keeper, _)) => keeper,
            Err(error) => {
                tracing::warn!(%error, container, "no keeper can ask for memory");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let way = meeting.alive().await;
        tracing::info!(container, "the copy fetches its memory");
        match pass(keeper, way, progress).await {
            Ok(bytes) => tracing::info!(container, bytes, "the copy's way to its memory was closed"),
            Err(error) => tracing::warn!(%error, container, "the copy's way to its memory is cut"),
        }
    }
}

impl Meeting {
    /// A way that nobody has closed.
    async fn alive(&self) -> Box<dyn Way> {
        loop {
            let has_come = self.has_come.notified();
            let taken = self.way.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mut way) = taken {
                // A source says nothing before it is asked; what can be read is the end.
                if way.read_u8().now_or_never().is_none() {
                    return way;
                }
            } else {
                has_come.await;
            }
        }
    }
}

/// Passes on what the keeper asks and what comes back, until one of both is closed; how many bytes came.
async fn pass(keeper: UnixStream, way: Box<dyn Way>, progress: Duration) -> io::Result<u64> {
    let (mut from_keeper, mut to_keeper) = keeper.into_split();
    let (mut from_source, mut to_source) = tokio::io::split(way);
    let asks = async {
        tokio::io::copy(&mut from_keeper, &mut to_source).await?;
        to_source.shutdown().await
    };
    let mut bytes = 0;
    let gives = async {
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            chunk.clear();
            let read = tokio::time::timeout(progress, from_source.read_buf(&mut chunk)).await;
            match read.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("nothing has come for {} s", progress.as_secs())))? {
                Ok(0) => return io::Result::Ok(()),
                Ok(read) => bytes += read as u64,
                Err(error) => return Err(error),
            }
            to_keeper.write_all(&chunk).await?;
        }
    };
    tokio::select! {
        ended = asks => ended,
        ended = gives => ended,
    }?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
