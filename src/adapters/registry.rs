//! The registries: pushing to another node's, and keeping this node's own.
//!
//! A small client of the distribution API stands here instead of a library: `oci-client` speaks neither client certificates nor unix sockets, and the
//! push must send a layer whose digest is known only when its last byte has been read.
//!
//! ```text
//! pusher: archive ─▶ POST upload ─▶ PATCH (streamed, hashed) ─▶ PUT ?digest ─▶ config ─▶ manifest by tag     (mTLS, another node's agent)
//!                         after a cut: GET upload, and PATCH the rest
//! local:  image, adopt_base, repoint, purge                                                                   (unix socket + data folder)
//! ```

mod client;
mod content;
mod disk;
#[cfg(test)]
mod fake;
mod local;
mod pusher;
mod upload;

pub use local::LocalDistribution;
pub use pusher::AgentPusher;
