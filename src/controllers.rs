//! The manager's controllers.

pub mod annotation;
pub mod certificates;
pub mod evacuation;
mod eviction_requests;
mod leaving;
pub mod migration;
pub mod rebalancer;
pub mod registry_events;
