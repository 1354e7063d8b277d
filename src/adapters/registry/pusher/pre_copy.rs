//! Pre-copy: sending the pages of a container that still runs.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{AgentPusher, dump::sent};
use crate::{
    adapters::pre_copy::reader::Reader,
    api::attestation::ContainerId,
    domain::{memory::PRE_COPY, pages::PageIndex},
    ports::{
        PortResult, PushTarget,
        layout::{Incoming, Size},
    },
};

/// How long the pages of a container are sent. What has come by then counts: who writes faster than that gains nothing by more.
const LONGEST: Duration = Duration::from_secs(30);

impl AgentPusher {
    /// Sends pages as they are now; which these are.
    pub(super) async fn send_pages(&self, container: &ContainerId, bytes: u64, target: &PushTarget) -> PortResult<PageIndex> {
        let registry = self.registry_of(target).await?;
        let image = Incoming {
            repository: target.repository.clone(),
            container: container.name.clone(),
            file: PRE_COPY.to_owned(),
            size: Size::Estimated(bytes),
            is_over_pre_copy: false,
        };
        let (begun, id) = (Instant::now(), container.container_id.clone());
        let (index, _) = sent(&registry, &image, move |chunks| {
            let mut give = |chunk: Vec<u8>| chunks.blocking_send(Ok(Bytes::from(chunk))).is_ok();
            let mut reader = Reader::new(bytes, begun + LONGEST, &mut give);
            reader.container(&id)?;
            reader.flush();
            Ok((reader.index, reader.digest.finish()))
        })
        .await?;
        self.metrics.pushed(index.bytes(), begun.elapsed());
        tracing::info!(container = container.name, bytes = index.bytes(), took = ?begun.elapsed(), "pages were sent before the freeze");
        Ok(index)
    }
}
