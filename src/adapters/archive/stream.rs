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

/// A stream of the layer, and its digest once it has ended.
pub struct HashedStream {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    digest: Option<oneshot::Receiver<Digest>>,
}

impl HashedStream {
    /// The digest, which comes when the last byte has been read. The receiver fails where the stream failed or was dropped before, and at a second call.
    pub fn digest(&mut self) -> oneshot::Receiver<Digest> {
        self.digest.take().unwrap_or_else(|| oneshot::channel().1)
    }
}

impl Stream for HashedStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(context)
    }
}

pub(super) fn start(path: PathBuf, pieces: Vec<Piece>) -> HashedStream {
    let (sender, chunks) = mpsc::channel(AHEAD);
    let (done, digest) = oneshot::channel();
    tokio::task::spawn_blocking(move || match read(&path, &pieces, &sender) {
        Ok(Some(digest)) => {
            let _ = done.send(digest);
        }
        // Nobody listens any more: the push was given up.
        Ok(None) => {}
        Err(error) => {
            let _ = sender.blocking_send(Err(error));
        }
    });
    HashedStream { chunks, digest: Some(digest) }
}

/// None where the receiver went away.
fn read(path: &Path, pieces: &[Piece], sender: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<Option<Digest>> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    for piece in pieces {
        match piece {
            Piece::New(bytes) => {
                hash.update(bytes);
                if sender.blocking_send(Ok(bytes.clone())).is_err() {
                    return Ok(None);
                }
            }
            Piece::Copy { offset, length } => {
                file.seek(SeekFrom::Start(*offset))?;
                let mut left = *length;
                while left > 0 {
                    let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
                    file.read_exact(&mut chunk)?;
                    left -= chunk.len() as u64;
                    hash.update(&chunk);
                    if sender.blocking_send(Ok(chunk.into())).is_err() {
                        return Ok(None);
                    }
                }
            }
        }
    }
    Ok(Some(Digest::from_sha256(&hash.finalize().into())))
}
