//! The agent: what runs on each node.

pub mod profile;
pub mod registry_proxy;
