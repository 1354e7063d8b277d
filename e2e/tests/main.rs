//! The end-to-end tests: Drover as its chart installs it, on the lab's two real nodes.
//!
//! ```sh
//! e2e/lab up && e2e/lab install
//! cargo test --features e2e --test e2e -- --test-threads=1            # or: make test-e2e TEST=name
//! ```
//!
//! The tests share one lab and hurt it on purpose, so only one runs at a time. Each has a namespace of its own; when it fails, the Migrations,
//! Events, Attestations and logs since its start are printed.
#![allow(
    clippy::format_push_string,
    clippy::format_collect,
    clippy::large_futures,
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    missing_docs
)]

#[path = "../../tests/contract/bus.rs"]
mod contract;
mod support;

mod claims;
mod containerd_2_4;
mod crash;
mod crd_rules;
mod disruptions;
mod evacuation;
mod eviction_requests;
mod extender;
mod fan_out;
mod faults;
mod front;
mod gate;
mod init_containers;
mod jobs;
mod kafka;
mod kills;
mod kubelet_auth;
mod lazy;
mod meddling;
mod mends;
mod moves;
mod namespaces;
mod no_gate;
mod notifications;
mod owners;
mod policies;
mod post_copy;
mod pre_copy;
mod preflight;
mod private_image;
mod pushes;
mod rebalance;
mod redis;
mod refusals;
mod registry_doors;
mod rollbacks;
mod runtime_lane;
mod same_name;
mod samples;
mod services;
mod support_bundle;
mod uninstall;
mod volumes;
