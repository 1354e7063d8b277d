//! The request for a move: every reason against it, at once.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::World;
use crate::{
    api::Migration,
    domain::{
        keys, owner,
        policy::selects,
        preflight::{self, Blocker},
        request::migration_to,
    },
};

/// A destination that an update asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The value: a node's name or `auto`.
    pub value: String,
    /// The key that the user wrote.
    pub key: &'static str,
    /// Whether the value differs from the one in force; otherwise only the key is normalised.
    pub is_new: bool,
    /// The value under the other key where both were written and differ.
    contradicting: Option<String>,
}

/// What the update asks for, if it asks for anything: only an added or changed value does; a removed one never.
pub fn request(old: &Pod, new: &Pod) -> Option<Request> {
    let written = |key: &'static str| {
        let value = new.annotations().get(key)?;
        (old.annotations().get(key) != Some(value)).then(|| (key, value.clone()))
    };
    let (full, bare) = (written(keys::MIGRATE_TO), written(keys::MIGRATE_TO_BARE));
    let contradicting = match (&full, &bare) {
        (Some((_, full)), Some((_, bare))) if full != bare => Some(bare.clone()),
        _ => None,
    };
    let (key, value) = full.or(bare)?;
    let is_new = old.annotations().get(keys::MIGRATE_TO) != Some(&value);
    Some(Request { value, key, is_new, contradicting })
}

/// Every reason against moving the pod to where the request says.
pub fn reasons(pod: &Pod, request: &Request, world: &World) -> Vec<Blocker> {
    let field = format!("metadata.annotations[{}]", request.key);
    let mut reasons = Vec::new();
    if let Some(other) = &request.contradicting {
        let message = format!("says {:?}, and {} says {other:?}", request.value, keys::MIGRATE_TO_BARE);
        reasons.push(Blocker::new(&field, message, "set one of the two keys"));
    }
    reasons.extend(active_migration(pod, &world.migrations).map(|m| {
        let message = format!("Migration {} of this pod is in phase {}", m.name_any(), m.phase());
        Blocker::new(&field, message, format!("wait until it has ended, or cancel it: kubectl delete migration {}", m.name_any()))
    }));
    if !world.policies.is_empty() && !world.policies.iter().any(|p| selects(p, &world.namespace_labels, pod)) {
        let names: Vec<_> = world.policies.iter().map(kube::ResourceExt::name_any).collect();
        reasons.push(Blocker::new(
            &field,
            format!("no MigrationPolicy permits this pod to move (there are: {})", names.join(", ")),
            "ask the cluster's administrator to select this pod or namespace in one",
        ));
    }
    match migration_to(&request.value, "", &pod.name_any(), owner::keeps_its_name(&pod.metadata)) {
        // What the user wrote is an annotation, not the Migration that comes of it.
        Ok(migration) => reasons.extend(
            preflight::examine(&migration, pod, &world.facts)
                .into_iter()
                .map(|blocker| if blocker.field.starts_with("spec.destination") { Blocker { field: field.clone(), ..blocker } } else { blocker }),
        ),
        Err(problem) => {
            reasons.push(Blocker::new(&field, problem, ""));
            reasons.extend(preflight::blockers(pod));
        }
    }
    reasons
}

/// The Migration that has not ended and owns this pod, as source or as one that it has made. One that only checks touches nothing.
pub(in crate::domain) fn active_migration<'a>(pod: &Pod, migrations: &'a [Migration]) -> Option<&'a Migration> {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    migrations.iter().filter(|m| !m.is_done() && !m.spec.check_only).find(|m| {
        let source = m.status.as_ref().and_then(|s| s.source.as_ref());
        let is_source = m.namespace() == pod.namespace() && source.map_or(m.spec.pod_name.as_ref() == Some(&name), |s| s.uid == uid);
        let made = m.status.iter().flat_map(|s| [&s.replacement, &s.placeholder, &s.fallback]).flatten();
        is_source || made.into_iter().any(|pod| pod.uid == uid && !uid.is_empty())
    })
}
