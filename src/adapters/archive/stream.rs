//! The layer's bytes with their hash, read by a thread of its own.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::Stream;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::plan::Piece;
use crate::domain::ids::Digest;

/// Bytes read at once. Large enough that a call costs nothing beside its data, small enough that a few of them fit a cache.
const CHUNK: usize = 512 << 10;

/// Chunks that wait to be sent; with [`CHUNK`] it bounds the memory of one push.
const AHEAD: usize = 8;

/// The hash of a layer's beginning.
#[derive(Debug, Clone, Default)]
pub struct Hashed {
    hash: Sha256,
    bytes: u64,
}

impl Hashed {
    /// The digest, where these are all of the layer's bytes.
    #[must_use]
    pub fn of_all(self, size: u64) -> Option<Digest> {
        (self.bytes == size).then(|| Digest::from_sha256(&self.hash.finalize().into()))
    }

    /// Takes up a chunk that begins at byte `at`, except for what it knows already.
    fn update(&mut self, at: u64, chunk: &[u8]) {
        let known = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        if let Some(new) = chunk.get(known..) {
            self.hash.update(new);
            self.bytes += new.len() as u64;
        }
    }
}

/// A stream of the layer, and its hash once it has ended.
pub struct HashedStream {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    hashed: Option<oneshot::Receiver<Hashed>>,
}

impl HashedStream {
    /// The hash of what has been read when the stream ends or is dropped. The receiver fails where the archive could not be read, and at a second call.
    pub fn hashed(&mut self) -> oneshot::Receiver<Hashed> {
        self.hashed.take().unwrap_or_else(|| oneshot::channel().1)
    }
}

impl Stream for HashedStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(context)
    }
}

pub(super) fn start(path: PathBuf, pieces: Vec<Piece>, from: u64, hashed: Hashed) -> HashedStream {
    let (sender, chunks) = mpsc::channel(AHEAD);
    let (done, receiver) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let mut reading = Reading { hashed, from, at: 0, sender };
        match reading.read(&path, &pieces) {
            // Whether all was read or nobody listens any more, since the push was cut: the hash says how far it came.
            Ok(()) => drop(done.send(reading.hashed)),
            Err(error) => drop(reading.sender.blocking_send(Err(error))),
        }
    });
    HashedStream { chunks, hashed: Some(receiver) }
}

struct Reading {
    hashed: Hashed,
    /// Where sending begins.
    from: u64,
    /// Where reading is.
    at: u64,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Reading {
    /// Reads what is to be hashed or sent; ends early where the receiver went away.
    fn read(&mut self, path: &Path, pieces: &[Piece]) -> io::Result<()> {
        let mut file = File::open(path)?;
        for piece in pieces {
            // What has been hashed and is not sent again is not even read.
            let skipped = self.from.min(self.hashed.bytes).saturating_sub(self.at).min(piece.len());
            self.at += skipped;
            match piece {
                Piece::New(bytes) => {
                    if !self.took(bytes.slice(usize::try_from(skipped).unwrap_or(bytes.len())..)) {
                        return Ok(());
                    }
                }
                Piece::Copy { offset, length } => {
                    file.seek(SeekFrom::Start(offset + skipped))?;
                    let mut left = length - skipped;
                    while left > 0 {
                        let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
                        file.read_exact(&mut chunk)?;
                        left -= chunk.len() as u64;
                        if !self.took(chunk.into()) {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Hashes and sends; false where nobody takes it.
    fn took(&mut self, mut chunk: Bytes) -> bool {
        self.hashed.update(self.at, &chunk);
        let held = self.from.saturating_sub(self.at);
        self.at += chunk.len() as u64;
        let held = usize::try_from(held).unwrap_or(usize::MAX).min(chunk.len());
        let rest = chunk.split_off(held);
        rest.is_empty() || self.sender.blocking_send(Ok(rest)).is_ok()
    }
}
