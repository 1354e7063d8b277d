//! What the webhook answers: pure functions of the review and of what was looked up for it.
//!
//! Three questions about a pod, in the order in which they are asked:
//! 1. Who may write Drover's own annotations? Only the manager (`guard`).
//! 2. Does a claim appear? Then the replacement is released: its images become the checkpoint images (`claim`, R1).
//! 3. Does a destination appear? Then every reason against the move is named at once (`destination`).
//!
//! A CREATE is never refused: owners back off for minutes after an error (MEASURED.md 2). It is stripped of what it must not carry.
//! The manager repeats every validation, since the webhook may have been down.

use jiff::Timestamp;
use json_patch::Patch;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{
    keys,
    preflight::{Blocker, Facts},
};
use crate::api::{Migration, MigrationPolicy};

mod claim;
mod destination;
mod guard;
mod migration;
mod patch;

pub(in crate::domain) use destination::active_migration;
pub use migration::validate_migration;

/// What happens to the pod.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// The pod is made.
    Create(&'a Pod),
    /// The pod is changed.
    Update {
        /// As it is stored.
        old: &'a Pod,
        /// As it is to be stored.
        new: &'a Pod,
    },
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requester {
    /// User name as the API server authenticated it.
    pub username: String,
    /// Whether that is the manager's service account.
    pub is_manager: bool,
}

/// What has to be looked up before [`decide`] can answer. Nothing for most reviews.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// A destination appears: nodes, profiles, policies, and the namespace's Migrations are needed.
    pub destination: bool,
    /// A claim appears: the namespace's Migrations are needed.
    pub claim: bool,
    /// The pod's Migration is in this namespace, not in the pod's own: the Migrations there are needed too.
    pub elsewhere: Option<String>,
}

impl Needs {
    /// Whether nothing is needed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.destination && !self.claim
    }
}

/// What was looked up.
#[derive(Debug, Clone)]
pub struct World {
    /// All nodes, and now. Who is active is read from `migrations`, which names them.
    pub facts: Facts,
    /// All Migrations of the pod's namespace, and of the one that it was moved from, ended ones too.
    pub migrations: Vec<Migration>,
    /// All policies.
    pub policies: Vec<MigrationPolicy>,
    /// Labels of the pod's namespace.
    pub namespace_labels: std::collections::BTreeMap<String, String>,
}

impl World {
    /// A world in which nothing was looked up.
    #[must_use]
    pub fn unseen(now: Timestamp) -> Self {
        Self {
            facts: Facts { now, ..Facts::default() },
            migrations: Vec::new(),
            policies: Vec::new(),
            namespace_labels: std::collections::BTreeMap::new(),
        }
    }
}

/// The answer to a review.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Let it through, changed by the patch (which may be empty).
    Allow {
        /// Minimal; empty where the object already is as it should be, so that a second invocation changes nothing.
        patch: Patch,
        /// Shown by kubectl.
        warnings: Vec<String>,
    },
    /// Refuse it, for all of these reasons.
    Deny {
        /// What was refused, in words.
        what: String,
        /// Every reason.
        reasons: Vec<Blocker>,
    },
    /// Refuse it in words and with a code that its requester knows.
    Answer {
        /// The HTTP code.
        code: u16,
        /// The reason, as Kubernetes names it.
        reason: &'static str,
        /// The message.
        message: String,
    },
}

impl Decision {
    /// Lets it through as it is.
    #[must_use]
    pub fn allow() -> Self {
        Self::Allow { patch: Patch::default(), warnings: Vec::new() }
    }
}

/// The text that a person reads: what was refused, then one line for each reason.
#[must_use]
pub fn denial(what: &str, reasons: &[Blocker]) -> String {
    let mut text = format!("drover: {what}:");
    for reason in reasons {
        text.push_str("\n- ");
        text.push_str(&reason.to_string());
    }
    text
}

/// What [`decide`] will need to know. Where the requester is not allowed to ask at all, nothing is looked up.
#[must_use]
pub fn needs(change: Change<'_>, requester: &Requester) -> Needs {
    match change {
        Change::Create(_) => Needs::default(),
        Change::Update { old, new } => {
            if !guard::forbidden_changes(old, new, requester).is_empty() {
                return Needs::default();
            }
            Needs {
                destination: destination::request(old, new).is_some_and(|r| r.is_new),
                claim: claim::appearing(old, new).is_some(),
                elsewhere: new.annotations().get(keys::REPLACES_IN).cloned(),
            }
        }
    }
}

/// Decides on a pod. Depends on nothing but its arguments.
#[must_use]
pub fn decide(change: Change<'_>, requester: &Requester, world: &World) -> Decision {
    match change {
        Change::Create(pod) => guard::strip(pod, requester),
        Change::Update { old, new } => update(old, new, requester, world),
    }
}

fn update(old: &Pod, new: &Pod, requester: &Requester, world: &World) -> Decision {
    let name = format!("{}/{}", new.namespace().unwrap_or_default(), new.name_any());
    let forbidden = guard::forbidden_changes(old, new, requester);
    if !forbidden.is_empty() {
        return Decision::Deny { what: format!("pod {name} cannot be changed like this"), reasons: forbidden };
    }
    let mut patched = patch::Patched::new(new);
    if let Some(uid) = claim::appearing(old, new) {
        match claim::release(new, uid, &world.migrations) {
            Ok(images) => patched.set_images(&images),
            Err(reasons) => return Decision::Deny { what: format!("pod {name} cannot be claimed"), reasons },
        }
    }
    if let Some(request) = destination::request(old, new) {
        if request.is_new {
            let reasons = destination::reasons(new, &request, world);
            if !reasons.is_empty() {
                return Decision::Deny { what: format!("pod {name} cannot be migrated to {:?}", request.value), reasons };
            }
        }
        patched.set_annotation(keys::MIGRATE_TO, &request.value);
        patched.remove_annotation(keys::MIGRATE_TO_BARE);
    }
    Decision::Allow { patch: patched.diff(), warnings: Vec::new() }
}

#[cfg(test)]
mod tests;
