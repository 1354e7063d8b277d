//! The manager's controllers.
