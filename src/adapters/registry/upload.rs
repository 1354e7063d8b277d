//! One blob on its way into a registry, which goes on where it was cut.
//!
//! ```text
//! POST ─▶ place ─▶ PATCH, all in one stream ─▶ PUT ?digest
//!                    │ cut
//!                    └▶ GET place: so much has arrived ─▶ PATCH the rest ─▶ …
//! ```
//!
//! What the registry says of an upload is believed only as far as it can be true; whether the whole is right, its digest decides, which the registry
//! compares and the destination's agent once more.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use reqwest::{Body, Url};

use super::client::Distribution;
use crate::{
    domain::{ids::Digest, image::Layer},
    metrics::Metrics,
    ports::{Failure, PortError, PortResult},
};

/// Bytes that can be read again from any of them on.
#[async_trait]
pub(super) trait Content: Send {
    /// How many there are.
    fn size(&self) -> u64;
    /// Those from this one on.
    async fn from(&mut self, byte: u64) -> PortResult<BoxStream<'static, std::io::Result<Bytes>>>;
    /// Their digest, where it is known: at the latest once all have been read.
    async fn digest(&mut self) -> Option<Digest>;
}

/// An upload, over as many attempts as it takes.
pub(super) struct Upload<'a, C> {
    registry: &'a Distribution,
    repository: &'a str,
    content: C,
    metrics: &'a Metrics,
    /// Where it goes on, once it has begun.
    place: Option<Url>,
    /// Bytes, from the first on, that have been given to the network.
    sent: Arc<AtomicU64>,
}

impl<'a, C: Content> Upload<'a, C> {
    pub(super) fn new(registry: &'a Distribution, repository: &'a str, content: C, metrics: &'a Metrics) -> Self {
        Self { registry, repository, content, metrics, place: None, sent: Arc::default() }
    }

    /// Goes on until the registry has the blob, or something fails. After a transient failure another attempt goes on from there.
    pub(super) async fn attempt(&mut self) -> PortResult<Layer> {
        let size = self.content.size();
        if let Some(digest) = self.content.digest().await
            && self.registry.blob_size(self.repository, &digest).await? == Some(size)
        {
            return Ok(Layer { digest, size });
        }
        let (place, from) = self.begin_or_resume().await?;
        self.place = Some(place.clone());
        let place = self.send(place, from).await?;
        self.place = Some(place.clone());
        let unread = || PortError::transient("what is pushed could not be read to its end");
        let digest = self.content.digest().await.ok_or_else(unread)?;
        match self.registry.end_upload(place, &digest).await {
            Err(error) if error.kind == Failure::Permanent && from > 0 => {
                // It has dropped the upload, in which something was not as it had said.
                self.place = None;
                Err(PortError::transient(format!("{error}; the upload had been resumed at byte {from}, and is sent anew")))
            }
            ended => ended.map(|()| Layer { digest, size }),
        }
    }

    /// Where the upload goes on, and from which byte.
    async fn begin_or_resume(&mut self) -> PortResult<(Url, u64)> {
        let held = match &self.place {
            Some(place) => self.registry.upload_held(place).await?,
            None => None,
        };
        let Some((place, held)) = held else {
            self.sent.store(0, Ordering::Relaxed);
            return Ok((self.registry.begin(self.repository).await?, 0));
        };
        let sent = self.sent.load(Ordering::Relaxed);
        if held > sent {
            return Err(PortError::permanent(format!("the registry says that it holds {held} bytes of a layer of which {sent} were sent")));
        }
        tracing::info!(held, size = self.content.size(), "the push goes on where it was cut");
        self.metrics.push_resumed();
        Ok((place, held))
    }

    async fn send(&mut self, place: Url, from: u64) -> PortResult<Url> {
        let size = self.content.size();
        let stream = self.content.from(from).await?;
        let (sent, mut at) = (Arc::clone(&self.sent), from);
        let counted = stream.inspect(move |chunk| {
            at += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            sent.fetch_max(at, Ordering::Relaxed);
        });
        if from < size {
            return self.registry.send_upload(place, from, size, Body::wrap_stream(counted)).await;
        }
        // All of it has arrived; only the hash may still be wanted.
        counted.for_each(|_| std::future::ready(())).await;
        Ok(place)
    }
}
