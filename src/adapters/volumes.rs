//! What of a pod lies outside of its containers' archives, as one tar: a folder for each volume, with numeric owners, modes, links and holes.
//!
//! Packed while the pod is frozen, so that nothing changes in between; unpacked into the folders of a waiting replacement, in which nothing runs. The
//! content is the pod's own and may be hostile: packing follows no link, unpacking makes files only in folders that it has made itself.

mod pack;
#[cfg(test)]
mod tests;
mod unpack;

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

pub use unpack::unpack;

use crate::domain::{ids::Digest, image::Layer};

/// Bytes read and sent at once.
const CHUNK: usize = 512 << 10;

/// Chunks that wait to be sent; with [`CHUNK`] it bounds the memory of one push.
const AHEAD: usize = 4;

/// A volume's folder, as the agent sees it, and its name in the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// First part of its paths in the tar.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
}

/// Bytes that the files at and below these paths claim to have; where there are more than `most_files`, those of as many. What cannot be read counts for
/// nothing, and no link is followed.
#[must_use]
pub fn bytes(mut paths: Vec<PathBuf>, most_files: usize) -> u64 {
    let (mut bytes, mut seen) = (0_u64, 0);
    while let Some(path) = paths.pop().filter(|_| seen < most_files) {
        seen += 1;
        let Ok(file) = fs::symlink_metadata(&path) else { continue };
        if file.is_dir() {
            paths.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if file.is_file() {
            bytes = bytes.saturating_add(file.len());
        }
    }
    bytes
}

/// Length and hash of the tar of these volumes. Blocks: reads everything once.
///
/// # Errors
/// What the file system says, or where something in them is larger than its kind allows.
pub fn measure(volumes: &[Volume]) -> io::Result<Layer> {
    let mut counted = Counted { hash: Sha256::new(), size: 0 };
    pack::pack(volumes, &mut counted)?;
    Ok(Layer { digest: Digest::from_sha256(&counted.hash.finalize().into()), size: counted.size })
}

/// Writes the same tar to a file, in the place of one that is there. Blocks.
///
/// # Errors
/// As [`measure`].
pub fn archive(volumes: &[Volume], to: &Path) -> io::Result<()> {
    let file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    let mut out = io::BufWriter::with_capacity(CHUNK, file);
    pack::pack(volumes, &mut out)?;
    out.flush()
}

/// Writes the tar of what an overlay has changed, as a layer of an image has it. Blocks.
///
/// # Errors
/// As [`measure`].
pub fn archive_changes(upper: &Path, to: &Path) -> io::Result<()> {
    let file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    let mut out = io::BufWriter::with_capacity(CHUNK, file);
    pack::pack_changes(upper, &mut out)?;
    out.flush()
}

/// Length and hash of a tar that was written before. Blocks.
///
/// # Errors
/// What the file system says.
pub fn measure_archive(archive: &Path) -> io::Result<Layer> {
    let file = fs::File::open(archive)?;
    let size = file.metadata()?.len();
    Ok(Layer { digest: Hashed::new(io::BufReader::with_capacity(CHUNK, file)).finish()?, size })
}

/// The same tar as a stream, from this byte on; a thread reads while the last chunks are being sent.
pub fn stream(volumes: Vec<Volume>, from: u64) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, chunks) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(CHUNK, Sent { sender: &sender, skipped: from });
        let packed = pack::pack(&volumes, &mut out).and_then(|()| out.flush());
        if let Err(error) = packed {
            // Nobody listens any more where the push was given up.
            let _ = sender.blocking_send(Err(error));
        }
    });
    chunks
}

struct Counted {
    hash: Sha256,
    size: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Sent<'a> {
    sender: &'a mpsc::Sender<io::Result<Bytes>>,
    /// Bytes that are still to be left out.
    skipped: u64,
}

impl Write for Sent<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = usize::try_from(self.skipped).unwrap_or(usize::MAX).min(bytes.len());
        self.skipped -= skipped as u64;
        if skipped < bytes.len() {
            self.sender.blocking_send(Ok(Bytes::copy_from_slice(&bytes[skipped..]))).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that hashes what passes.
pub struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashed<R> {
    /// Hashes what is read from this one.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Reads to the end; the digest of all that has passed.
    ///
    /// # Errors
    /// What the reader says.
    pub fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from_sha256(&self.hash.finalize().into()))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
