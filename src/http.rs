//! What the manager and the agents serve.

pub mod admin;
pub mod admission;
pub mod extender;
pub mod notifications;
pub mod tls;
