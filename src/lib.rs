//! Drover moves a running Kubernetes pod to another node with its memory.
//!
//! ```text
//! annotate ─▶ http/admission ─▶ controllers/annotation ─▶ Migration
//!                                                            │
//!                      controllers/migration: read ─▶ domain/migration::advance ─▶ write, perform
//!                                                            │ status (the only shared truth)
//!          ┌─────────────────────────────────────────────────┴───────────────┐
//!   agent/source: freeze, checkpoint, push, vote            agent/destination: base images, verify, attest
//!          │                                                                  │
//!   adapters/{containerd,kubelet,archive,registry}          adapters/{containerd,registry}, agent/registry_proxy
//! ```
//!
//! Reading order: [`api`], [`domain::migration`], [`domain::attest`], [`ports`], then the parts. Imports go one way only:
//! `domain ← ports ← engine ← {adapters, controllers, http, agent} ← app ← cli ← main`; `tests/architecture.rs` guards it.
//! Without the feature `full` only [`gate`], [`markers`] and [`runc`] are left: the small programs on nodes, and what they and the agent agree on.

pub mod gate;
pub mod markers;
pub mod runc;

// Suites that integration tests run too (tests/contract) name this crate from outside.
#[cfg(test)]
extern crate self as drover;

#[cfg(feature = "full")]
pub mod adapters;
#[cfg(feature = "full")]
pub mod agent;
#[cfg(feature = "full")]
pub mod api;
#[cfg(feature = "full")]
pub mod app;
#[cfg(feature = "full")]
pub mod cli;
#[cfg(feature = "full")]
pub mod controllers;
#[cfg(feature = "full")]
pub mod domain;
#[cfg(feature = "full")]
pub mod engine;
#[cfg(feature = "full")]
pub mod http;
#[cfg(feature = "full")]
pub mod metrics;
#[cfg(feature = "full")]
pub mod ports;
#[cfg(feature = "full")]
pub mod readiness;
#[cfg(feature = "full")]
pub mod shutdown;
#[cfg(feature = "full")]
pub mod telemetry;
#[cfg(test)]
#[cfg(feature = "full")]
mod testing;
#[cfg(feature = "full")]
pub mod watching;
