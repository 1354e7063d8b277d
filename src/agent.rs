//! The agent: what runs on each node.

pub mod controller;
pub mod destination;
pub mod journal;
pub mod notified;
pub mod profile;
pub mod registry_proxy;
pub mod source;
