//! What the manager and the agents serve.

pub mod admin;
pub mod admission;
pub mod extender;
pub mod tls;
