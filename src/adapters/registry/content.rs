//! What is pushed: archives, whose digest shows while they are read, and tars of volumes, which were hashed before.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use tokio::{
    io::{AsyncSeekExt as _, SeekFrom},
    sync::oneshot,
};
use tokio_util::io::ReaderStream;

use super::upload::Content;
use crate::{
    adapters::{
        archive::{Archive, Hashed},
        volumes::{self, Volume},
    },
    domain::{ids::Digest, image::Layer},
    ports::{PortError, PortResult},
};

/// Bytes of a kept tar that are read at once.
const CHUNK: usize = 512 << 10;

/// The layer that an archive becomes.
pub(super) struct Layers<'a> {
    archive: &'a Archive,
    hashed: Hashed,
    /// The hash of the stream that was begun last.
    reading: Option<oneshot::Receiver<Hashed>>,
}

impl<'a> Layers<'a> {
    pub(super) fn of(archive: &'a Archive) -> Self {
        Self { archive, hashed: Hashed::default(), reading: None }
    }

    /// Waits for the stream that was begun last, which ends once nobody takes its chunks. Where it could not read, what it has hashed is lost.
    async fn read(&mut self) {
        if let Some(reading) = self.reading.take() {
            self.hashed = reading.await.unwrap_or_default();
        }
    }
}

#[async_trait]
impl Content for Layers<'_> {
    fn size(&self) -> u64 {
        self.archive.size()
    }

    async fn from(&mut self, byte: u64) -> PortResult<BoxStream<'static, std::io::Result<Bytes>>> {
        self.read().await;
        let mut stream = self.archive.stream(byte, self.hashed.clone());
        self.reading = Some(stream.hashed());
        Ok(stream.boxed())
    }

    async fn digest(&mut self) -> Option<Digest> {
        self.read().await;
        self.hashed.clone().of_all(self.archive.size())
    }
}

/// Where the tar of a pod's volumes comes from.
pub(super) enum Tar {
    /// Made anew for each attempt.
    Folders(Vec<Volume>),
    /// Kept on the disk.
    File(PathBuf),
}

/// The tar of a pod's volumes.
pub(super) struct VolumesTar {
    pub(super) tar: Tar,
    pub(super) layer: Layer,
}

#[async_trait]
impl Content for VolumesTar {
    fn size(&self) -> u64 {
        self.layer.size
    }

    async fn from(&mut self, byte: u64) -> PortResult<BoxStream<'static, std::io::Result<Bytes>>> {
        match &self.tar {
            Tar::Folders(folders) => {
                let chunks = volumes::stream(folders.clone(), byte);
                Ok(futures::stream::unfold(chunks, |mut chunks| async move { Some((chunks.recv().await?, chunks)) }).boxed())
            }
            Tar::File(path) => {
                let mut file = tokio::fs::File::open(path).await.map_err(|error| unreadable(&error))?;
                file.seek(SeekFrom::Start(byte)).await.map_err(|error| unreadable(&error))?;
                Ok(ReaderStream::with_capacity(file, CHUNK).boxed())
            }
        }
    }

    async fn digest(&mut self) -> Option<Digest> {
        Some(self.layer.digest.clone())
    }
}

pub(super) fn unreadable(error: &std::io::Error) -> PortError {
    PortError::transient(format!("the pod's volumes could not be read: {error}"))
}
