//! The manager's controllers.

pub mod migration;
