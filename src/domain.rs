//! The pure core: every decision, no input or output.
//!
//! Nothing here knows tokio, a client, a file system, a clock or randomness; `now` is an argument. What the model checker drives
//! is what runs.

pub mod admission;
pub mod attest;
pub mod ids;
pub mod image;
pub mod keys;
pub mod lanes;
pub mod migration;
pub mod placement;
pub mod preflight;
pub mod replacement;
pub mod verdict;
