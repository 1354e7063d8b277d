//! Streams that a thread reads: what is written to disk, or hashed, has no place among tasks.

use std::io::{self, Read};

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::ports::BlobStream;

/// Bytes that are handed to the thread at once: to wake it for each record of TLS takes longer than all else.
const GATHERED: usize = 512 << 10;
/// So often this much waits for it.
const AHEAD: usize = 4;

/// What a stream has brought so far.
pub struct Received {
    gathered: mpsc::Receiver<io::Result<Vec<Bytes>>>,
    at_hand: std::vec::IntoIter<Bytes>,
    rest: Bytes,
}

impl Received {
    /// The next chunk, as it came; none at the end.
    ///
    /// # Errors
    /// What the stream says.
    pub fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        if !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        loop {
            if let Some(chunk) = self.at_hand.next() {
                return Ok(Some(chunk));
            }
            match self.gathered.blocking_recv() {
                Some(more) => self.at_hand = more?.into_iter(),
                None => return Ok(None),
            }
        }
    }

    /// The same, no more than so many bytes of it.
    ///
    /// # Errors
    /// What the stream says.
    pub fn up_to(&mut self, most: usize) -> io::Result<Option<Bytes>> {
        let Some(mut chunk) = self.chunk()? else { return Ok(None) };
        let taken = chunk.split_to(most.min(chunk.len()));
        self.rest = chunk;
        Ok(Some(taken))
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunk()? {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// Has a thread read what a stream brings.
///
/// # Errors
/// What the thread says; an error of the stream is read by it.
pub async fn feed<T: Send + 'static>(stream: BlobStream, read: impl FnOnce(Received) -> io::Result<T> + Send + 'static) -> io::Result<T> {
    feed_by(GATHERED, stream, read).await
}

/// The same as soon as something has come: little that says much.
///
/// # Errors
/// As [`feed`].
pub async fn feed_at_once<T: Send + 'static>(stream: BlobStream, read: impl FnOnce(Received) -> io::Result<T> + Send + 'static) -> io::Result<T> {
    feed_by(1, stream, read).await
}

async fn feed_by<T: Send + 'static>(
    least: usize,
    stream: BlobStream,
    read: impl FnOnce(Received) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, gathered) = mpsc::channel(AHEAD);
    let reader = Received { gathered, at_hand: vec![].into_iter(), rest: Bytes::new() };
    let done = tokio::task::spawn_blocking(move || read(reader));
    let (mut stream, mut chunks, mut bytes) = (stream.fuse(), vec![], 0);
    loop {
        let more = match stream.next().await {
            Some(Ok(chunk)) => {
                bytes += chunk.len();
                chunks.push(chunk);
                if bytes < least {
                    continue;
                }
                Ok(std::mem::take(&mut chunks))
            }
            Some(Err(error)) => Err(error),
            None if chunks.is_empty() => break,
            None => Ok(std::mem::take(&mut chunks)),
        };
        bytes = 0;
        let is_last = more.is_err();
        // It has failed, and says why.
        if sender.send(more).await.is_err() || is_last {
            break;
        }
    }
    drop(sender);
    done.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_is_read_to_its_end_and_no_further() {
        for size in [0, 1, GATHERED - 1, GATHERED, 3 * GATHERED + 5] {
            // It panics where it is asked once more.
            let stream = futures::stream::unfold(size, |left: usize| async move {
                let chunk = left.min(1000);
                (chunk > 0).then(|| (Ok(Bytes::from(vec![7; chunk])), left - chunk))
            });
            let read = |mut come: Received| {
                let mut bytes = vec![];
                come.read_to_end(&mut bytes).map(|_| bytes)
            };
            assert_eq!(feed(stream.boxed(), read).await.unwrap(), vec![7; size]);
        }
    }

    #[tokio::test]
    async fn what_was_not_read_yet_is_the_next_chunk() {
        let stream = futures::stream::iter([Ok(Bytes::from_static(b"some")), Ok(Bytes::from_static(b"more")), Err(io::ErrorKind::TimedOut.into())]);
        let read = |mut come: Received| {
            let mut begin = [0; 3];
            come.read_exact(&mut begin)?;
            assert_eq!((&begin, come.chunk()?.unwrap()), (b"som", Bytes::from_static(b"e")));
            assert_eq!(come.chunk()?.unwrap(), Bytes::from_static(b"more"));
            come.chunk().map(drop)
        };
        assert_eq!(feed(stream.boxed(), read).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
