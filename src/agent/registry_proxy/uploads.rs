//! What the push door keeps in mind of uploads, so that a cut one can go on, and none is larger than it may be.
//!
//! Distribution loses what it has not written when a request breaks off, and may still be writing when it is asked how far it has come. So a broken body
//! is ended in due form, and whoever asks for an upload is kept waiting until the request before has ended.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::domain::{quantity::mebibytes, room::RAISE};

/// How long a body may bring nothing before it counts as broken. Whoever comes back asks much earlier; this is for those who never do, since the registry would keep
/// what they have sent open, and on its disk.
const IDLE: Duration = Duration::from_mins(1);

/// How long the registry may take to end a request whose body has ended: it writes what it has to the disk. Less than a pusher waits for an answer.
const SETTLE: Duration = Duration::from_secs(20);

/// Repositories whose bytes are counted. Each is one migration's; only those that are under way push.
const REMEMBERED: usize = 256;

/// The uploads of one node's registry.
pub(super) struct Uploads {
    running: Mutex<HashMap<String, Running>>,
    counted: Mutex<VecDeque<(String, Quota)>>,
    most: u64,
}

#[derive(Clone)]
struct Running {
    stop: CancellationToken,
    ended: CancellationToken,
}

/// A request of an upload; the next one waits until this is dropped. The default is one that nobody waits for.
#[derive(Default)]
pub(super) struct InFlight {
    pub(super) stop: CancellationToken,
    _ended: Option<DropGuard>,
}

impl Uploads {
    /// `most`: bytes that one migration may store.
    pub(super) fn new(most: u64) -> Self {
        Self { running: Mutex::default(), counted: Mutex::default(), most: most.min(EXCEEDED - 1) }
    }

    /// Ends the request before to this upload, whose sender is gone where there is one still, and begins another; none where it does not end.
    pub(super) async fn begin(&self, path: &str) -> Option<InFlight> {
        loop {
            let before = {
                let mut running = locked(&self.running);
                running.retain(|_, one| !one.ended.is_cancelled());
                let Some(before) = running.get(path).cloned() else {
                    let one = Running { stop: CancellationToken::new(), ended: CancellationToken::new() };
                    running.insert(path.to_owned(), one.clone());
                    return Some(InFlight { stop: one.stop, _ended: Some(one.ended.drop_guard()) });
                };
                before
            };
            before.stop.cancel();
            tokio::time::timeout(SETTLE, before.ended.cancelled()).await.ok()?;
        }
    }

    /// Bytes that one migration may store.
    pub(super) fn most(&self) -> u64 {
        self.most
    }

    /// What this repository may still take.
    pub(super) fn quota(&self, repository: &str) -> Quota {
        let mut counted = locked(&self.counted);
        if let Some((_, quota)) = counted.iter().find(|(name, _)| name == repository) {
            return quota.clone();
        }
        let quota = Quota { left: Arc::new(AtomicU64::new(self.most)), most: self.most };
        counted.push_back((repository.to_owned(), quota.clone()));
        if counted.len() > REMEMBERED {
            counted.pop_front();
        }
        quota
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that a repository may still take. Once it was asked to take more it takes nothing: a pusher whose connection broke before it heard so hears it
/// when it comes back.
#[derive(Clone)]
pub(super) struct Quota {
    left: Arc<AtomicU64>,
    most: u64,
}

/// In place of the bytes that are left: more was wanted.
const EXCEEDED: u64 = u64::MAX;

impl Quota {
    pub(super) fn is_exceeded(&self) -> bool {
        self.left.load(Ordering::Relaxed) == EXCEEDED
    }

    /// Whether so many bytes may come; they are not taken yet.
    pub(super) fn announce(&self, bytes: u64) -> bool {
        let enough = |left| (left == EXCEEDED || left < bytes).then_some(EXCEEDED);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough).is_err()
    }

    fn take(&self, bytes: u64) -> bool {
        let taken = |left: u64| Some(if left == EXCEEDED { EXCEEDED } else { left.checked_sub(bytes).unwrap_or(EXCEEDED) });
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).unwrap_or(EXCEEDED);
        before != EXCEEDED && before >= bytes
    }

    /// What is said of it.
    pub(super) fn message(&self) -> String {
        let most = mebibytes(self.most);
        format!("one migration may store {most} in this node's registry, and this one needs more: {RAISE}")
    }
}

/// A body as far as it comes: where it breaks, is stopped, brings nothing for long, or more than its repository may take, it ends. `passed` counts its bytes.
pub(super) fn as_far_as_it_comes(
    body: Body,
    stop: CancellationToken,
    quota: Quota,
    passed: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    whole_or_broken(body, stop, quota).take_while(|chunk| std::future::ready(chunk.is_ok())).inspect_ok(move |chunk| {
        passed.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    })
}

/// A body that says so where it is not whole, for the same reasons.
pub(super) fn whole_or_broken(body: Body, stop: CancellationToken, quota: Quota) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures::stream::unfold(Some(body.into_data_stream()), move |body| {
        let (stop, quota) = (stop.clone(), quota.clone());
        async move {
            let mut body = body?;
            let next = stop.run_until_cancelled(tokio::time::timeout(IDLE, body.next())).await;
            let chunk = match next {
                None => Err(io::Error::other("its sender begins anew")),
                Some(Err(_)) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came for a minute")),
                Some(Ok(None)) => return None,
                Some(Ok(Some(Ok(chunk)))) if quota.take(chunk.len() as u64) => Ok(chunk),
                Some(Ok(Some(Ok(_)))) => Err(io::Error::new(io::ErrorKind::QuotaExceeded, quota.message())),
                Some(Ok(Some(Err(error)))) => Err(io::Error::other(error)),
            };
            let rest = chunk.is_ok().then_some(body);
            Some((chunk, rest))
        }
    })
}

#[cfg(test)]
mod tests;
