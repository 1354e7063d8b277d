//! Faults of the world around a migration, each before and after the release: nodes that lose power or their network, an API server, kubelet or
//! containerd that is away, a manager that sleeps, kubelets that end a pod by themselves, users who delete what they should not.
//!
//! Each ends with exactly one copy that counts on without a gap or a repetition, or is held with a reason and the command to type; nothing is
//! left behind. What takes a minute is in a module `slow` and runs with `make test-all`.

mod control_plane;
mod daemons;
mod deadline;
mod network;
mod power;

mod taints;
mod users;
