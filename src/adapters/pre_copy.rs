//! Pre-copy: what of a container's memory its destination has before the container is frozen, and images that are told as pieces of it.

pub(super) mod pieces;
pub(super) mod reader;
