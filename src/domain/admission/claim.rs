//! The claim: the one write that lets a waiting replacement go (R1).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::{
    api::{Migration, MigrationStatus, Phase, Verdict},
    domain::{containers, keys, preflight::Blocker},
};

/// The claim that the update adds or changes: a Migration's UID. Removing one asks nothing.
pub fn appearing<'a>(old: &Pod, new: &'a Pod) -> Option<&'a str> {
    let claim = new.annotations().get(keys::CLAIM)?;
    (old.annotations().get(keys::CLAIM) != Some(claim)).then_some(claim.as_str())
}

/// The images that the claimed pod gets, by container name.
///
/// # Errors
/// Every reason why this claim does not hold.
pub fn release(pod: &Pod, uid: &str, migrations: &[Migration]) -> Result<BTreeMap<String, String>, Vec<Blocker>> {
    let field = format!("metadata.annotations[{}]", keys::CLAIM);
    let refuse = |message: String| Blocker::new(field.clone(), message, "");
    let namespace = pod.namespace().unwrap_or_default();
    let Some(migration) = migrations.iter().find(|m| m.uid().as_deref() == Some(uid) && m.is_in(Some(&namespace))) else {
        return Err(vec![refuse(format!("no Migration with UID {uid:?} has pods in namespace {namespace}"))]);
    };
    let name = migration.name_any();
    let mut reasons = Vec::new();
    let status = migration.status.clone().unwrap_or_default();
    let own = pod.uid().unwrap_or_default();
    if !is_fallback(&status, &own) {
        if migration.phase() != Phase::Restoring {
            reasons.push(refuse(format!("Migration {name} is in phase {}, and only Restoring releases a replacement", migration.phase())));
        }
        if let Some(verdict) = migration.verdict() {
            reasons.push(refuse(format!("Migration {name} has its verdict already ({verdict:?})")));
        }
        let claimed = status.replacement.as_ref().map(|r| r.uid.as_str()).unwrap_or_default();
        if claimed.is_empty() || claimed != own {
            reasons.push(refuse(format!("Migration {name} has the replacement {claimed:?}, and this pod is {own:?}")));
        }
    }
    if pod.metadata.deletion_timestamp.is_some() {
        reasons.push(refuse("the pod is being deleted".to_owned()));
    }
    if status.containers.is_empty() {
        reasons.push(refuse(format!("Migration {name} names no checkpoint image")));
    }
    for container in &status.containers {
        if !container_names(pod).any(|n| n == container.name) {
            reasons.push(refuse(format!("Migration {name} restores container {:?}, which this pod does not have", container.name)));
        }
        if !keys::is_checkpoint_image(&container.image) {
            reasons.push(refuse(format!(
                "Migration {name} names {:?} for container {:?}, which is no checkpoint image of Drover's",
                container.image, container.name
            )));
        }
    }
    if reasons.is_empty() { Ok(status.containers.into_iter().map(|c| (c.name, c.image)).collect()) } else { Err(reasons) }
}

/// Whether a pod is the one that goes on from the kept archive, by a verdict that stands (R13).
fn is_fallback(status: &MigrationStatus, uid: &str) -> bool {
    let named = status.fallback.as_ref().is_some_and(|fallback| !uid.is_empty() && fallback.uid == uid);
    named && status.phase == Phase::Finishing && status.verdict == Some(Verdict::Rollback)
}

fn container_names(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.spec.iter().flat_map(containers::all).map(|c| c.name.as_str())
}
