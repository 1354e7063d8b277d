//! The agent: what runs on each node.
