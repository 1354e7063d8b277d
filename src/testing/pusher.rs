//! What the fake node pushes.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{FakeNode, node::State};
use crate::{
    api::attestation::{ContainerId, PushedImage},
    domain::keys,
    ports::{Mending, PortResult, PushTarget, Pusher},
};

/// The artifact that the fake pushes.
fn push_volumes(state: &mut State, what: &str, target: &PushTarget) -> PushedImage {
    state.trace.push(format!("push {what}"));
    let image = PushedImage { container: keys::VOLUMES_TAG.into(), digest: format!("sha256:{}", "c".repeat(64)), bytes: 9, memory_bytes: None };
    state.registry.insert(format!("{}:{}", target.repository, keys::VOLUMES_TAG), image.clone());
    image
}

#[async_trait]
impl Pusher for FakeNode {
    async fn push(&self, _archive: &Path, container: &str, _mending: &Mending, target: &PushTarget) -> PortResult<PushedImage> {
        self.call("push", |state| {
            state.trace.push(format!("push {container}"));
            let image = PushedImage { container: container.into(), digest: format!("sha256:{}", "a".repeat(64)), bytes: 7, memory_bytes: None };
            state.registry.insert(format!("{}:{container}", target.repository), image.clone());
            Ok(image)
        })
        .await
    }

    async fn send_ahead(&self, _folder: &Path, container: &str, _bytes: u64, _target: &PushTarget, written: CancellationToken) -> PortResult<()> {
        written.cancelled().await;
        self.call("send_ahead", |state| {
            state.trace.push(format!("send ahead {container}"));
            Ok(())
        })
        .await
    }

    async fn give_memory(&self, container: &ContainerId, _target: &PushTarget) -> PortResult<()> {
        self.call("give_memory", |state| {
            state.trace.push(format!("give memory of {}", container.name));
            Ok(())
        })
        .await
    }

    async fn push_volumes(&self, volumes: &[(String, PathBuf)], target: &PushTarget) -> PortResult<PushedImage> {
        self.call("push_volumes", |state| Ok(push_volumes(state, &format!("{} volumes", volumes.len()), target))).await
    }

    async fn push_volumes_archive(&self, _archive: &Path, target: &PushTarget) -> PortResult<PushedImage> {
        self.call("push_volumes_archive", |state| Ok(push_volumes(state, "kept volumes", target))).await
    }
}
