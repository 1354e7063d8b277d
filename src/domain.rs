//! The pure core: every decision, no input or output.
//!
//! Nothing here knows tokio, a client, a file system, a clock or randomness; `now` is an argument. What the model checker drives
//! is what runs.

pub mod admission;
pub mod agent_certificate;
pub mod attest;
pub mod caller;
pub mod comparison;
pub mod containers;
pub mod criu;
pub mod disruption;
pub mod election;
pub mod estimate;
pub mod evacuation;
pub mod extender;
pub mod fan_out;
pub mod ids;
pub mod image;
pub mod init_container;
pub mod keys;
pub mod lanes;
pub mod load;
pub mod memory;
pub mod migration;
pub mod migration_event;
pub mod needed;
pub mod notification;
pub mod owner;
pub mod pages;
pub mod permits;
pub mod policy;
pub mod post_copy;
pub mod preflight;
pub mod processes;
pub mod quantity;
pub mod rebalance;
pub mod registry_event;
pub mod replacement;
pub mod request;
pub mod resolution;
pub mod room;
pub mod services;
pub mod support;
pub mod tasks;
pub mod unknown_fields;
pub mod verdict;
