//! What the fake node pushes.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{FakeNode, node::State};
use crate::{
    api::attestation::{ContainerId, PushedImage},
    domain::{
        keys,
        pages::{PageIndex, hash_of},
    },
    ports::{Growing, Mending, PortResult, PushTarget, Pusher},
};

/// The artifact that the fake pushes.
fn push_volumes(state: &mut State, what: &str, target: &PushTarget) -> PushedImage {
    state.trace.push(format!("push {what}"));
    let image = PushedImage {
        container: keys::VOLUMES_TAG.into(),
        digest: format!("sha256:{}", "c".repeat(64)),
        bytes: 9,
        memory_bytes: None,
        pre_copied_bytes: None,
    };
    state.registry.insert(format!("{}:{}", target.repository, keys::VOLUMES_TAG), image.clone());
    image
}

#[async_trait]
impl Pusher for FakeNode {
    async fn push(&self, _archive: &Path, container: &str, _mending: &Mending, target: &PushTarget) -> PortResult<PushedImage> {
        self.call("push", |state| {
            state.trace.push(format!("push {container}"));
            let image = PushedImage {
                container: container.into(),
                digest: format!("sha256:{}", "a".repeat(64)),
                bytes: 7,
                memory_bytes: None,
                pre_copied_bytes: None,
            };
            state.registry.insert(format!("{}:{container}", target.repository), image.clone());
            Ok(image)
        })
        .await
    }

    async fn pre_copy(&self, container: &ContainerId, _bytes: u64, _target: &PushTarget) -> PortResult<PageIndex> {
        self.call("pre_copy", |state| {
            state.trace.push(format!("pre-copy {}", container.name));
            let mut known = PageIndex::default();
            known.add(hash_of(b"a page"));
            Ok(known)
        })
        .await
    }

    async fn send_ahead(&self, dump: &Growing, _target: &PushTarget, written: CancellationToken) -> PortResult<()> {
        written.cancelled().await;
        self.call("send_ahead", |state| {
            let known = if dump.known.bytes() > 0 { ", but for what is known" } else { "" };
            state.trace.push(format!("send ahead {}{known}", dump.container));
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
