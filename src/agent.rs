//! The agent: what runs on each node.

pub mod destination;
pub mod journal;
pub mod source;
