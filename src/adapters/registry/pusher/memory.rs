//! Memory that stays with a frozen source: a way from its page server on this node to the destination's agent (post-copy).

use std::time::Duration;

use tokio::{io::copy_bidirectional_with_sizes, net::UnixStream};

use super::AgentPusher;
use crate::{
    adapters::blocking,
    api::attestation::ContainerId,
    ports::{PortError, PortResult, PushTarget},
    runc::pages::{self, SOCKET, Serving},
};

/// Bytes that are passed on at once.
const CHUNK: usize = 1 << 18;
/// How long what was sent may stay unacknowledged. While the network is away the copy waits for its pages, and whoever ends the way ends the copy; what the
/// destination's agent allows ends it sooner.
const SILENCE: Duration = Duration::from_mins(10);
/// How long the page server has to say what it came to.
const LAST_WORD: Duration = Duration::from_secs(5);
/// How often it is asked.
const ASK: Duration = Duration::from_millis(20);

impl AgentPusher {
    /// Gives the memory of one container away until its copy has all of it.
    pub(super) async fn give(&self, container: &ContainerId, target: &PushTarget) -> PortResult<()> {
        if let Some(said) = self.said(container).await? {
            return said;
        }
        let registry = self.client_of(target, SILENCE).await?;
        let mut far = registry.open_way(&target.repository, &container.name).await?;
        let socket = self.pages.join(&container.container_id).join(SOCKET);
        let mut near = UnixStream::connect(&socket).await.map_err(|error| {
            PortError::transient(format!("the page server of container {} cannot be reached at {}: {error}", container.name, socket.display()))
        })?;
        tracing::info!(container = container.name, node = target.node, "the memory can be fetched");
        let passed = copy_bidirectional_with_sizes(&mut near, &mut far, CHUNK, CHUNK).await;
        drop((near, far));
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < LAST_WORD {
            if let Some(said) = self.said(container).await? {
                return said;
            }
            tokio::time::sleep(ASK).await;
        }
        // Nobody had asked for anything yet.
        let why = passed.err().map(|error| format!(": {error}")).unwrap_or_default();
        Err(PortError::transient(format!("the way to the memory of container {} was closed{why}", container.name)))
    }

    /// What the page server came to; none while it serves.
    async fn said(&self, container: &ContainerId) -> PortResult<Option<PortResult<()>>> {
        let (root, id) = (self.pages.clone(), container.container_id.clone());
        let state = blocking(move || pages::state(&root, &id)).await;
        let state =
            state.map_err(|error| PortError::transient(format!("the page server of container {} cannot be asked: {error}", container.name)))?;
        let never = |why: &str| Err(PortError::permanent(format!("the memory of container {} cannot be fetched any more: {why}", container.name)));
        Ok(match state {
            Some(Serving::Serving) => None,
            Some(Serving::Complete) => Some(Ok(())),
            Some(Serving::Failed(why)) => Some(never(&why)),
            None => Some(never("nobody serves it")),
        })
    }
}
