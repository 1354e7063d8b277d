//! The agent: what runs on each node.

pub mod registry_proxy;
