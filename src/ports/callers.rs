//! Who is at the other end of a connection on this node.

use std::net::SocketAddr;

use async_trait::async_trait;

use crate::domain::caller::Caller;

/// The processes that connect to this one.
#[async_trait]
pub trait Callers: Send + Sync {
    /// Who holds the socket that is bound to `theirs` and connected to `ours`, in this process's network. It is bounded in time, and whatever fails is unknown.
    async fn who(&self, theirs: SocketAddr, ours: SocketAddr) -> Caller;
}
