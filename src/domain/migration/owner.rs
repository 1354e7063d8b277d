//! The end of a ReplicaSet's pod: the copy takes the source's place there.
//!
//! A ReplicaSet that has one pod too many deletes one that is not ready before one that is, then by the pods' deletion cost (`ActivePodsWithRanks` of
//! kube-controller-manager). So the copy is handed over only when it is ready or the source is not, and the source is made the cheapest pod first: then the
//! ReplicaSet, if it is faster than the manager, deletes the source, which is deleted right after anyway. The other order, the source first, would make it
//! start a third pod. Sources of one ReplicaSet go through this one after the other ([`Effect::MarkSurplus`] waits for its turn): it could not tell them apart.
//!
//! A Job has no such choice: its source is released from it first ([`crate::domain::owner`]).

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{
    Effect, Step,
    course::Course,
    observed::{self, pod_is_gone},
    released::END_PATIENCE,
    status::StatusExt as _,
};
use crate::{
    api::{
        MigrationStatus, Phase,
        migration::{OwnerStatus, SourceStatus},
    },
    domain::{keys, owner::Kind, preflight::Blocker, services::is_taken_out},
};

impl Course<'_> {
    /// What is to be done before the source may go, so that its ReplicaSet has the copy; none where that is done, or where there is none.
    pub(super) fn hand_over(&self, status: &MigrationStatus) -> Option<Step> {
        let source = status.source.as_ref()?;
        let owner = source.owner.as_ref().filter(|owner| !owner.tied_by.is_empty())?;
        let replacement = status.replacement.as_ref()?;
        let copy = self.observed.replacement.as_ref().filter(|pod| pod.metadata.uid.as_ref() == Some(&replacement.uid))?;
        if copy.metadata.deletion_timestamp.is_some() || has_labels(copy, owner) {
            return None;
        }
        let hand_over = |ready| Effect::HandOver { uid: replacement.uid.clone(), ready };
        let Some(there) = self.source_that_stays(source) else { return Some(Step::perform(vec![hand_over(false)])) };
        if Kind::named(&owner.kind) == Some(Kind::Job) {
            let release = has_labels(there, owner).then(|| Effect::ReleaseSource { uid: source.uid.clone() });
            return Some(Step::perform(release.into_iter().chain([hand_over(false)]).collect()));
        }
        // Its kubelet may say at any moment that a frozen pod is Ready.
        let matters = observed::is_ready(there) || is_taken_out(there);
        if observed::is_ready(copy) || !matters {
            // Only now: as long as it is marked, no other source of its ReplicaSet is.
            let marked = there.annotations().get(keys::DELETION_COST).map(String::as_str) == Some(keys::CHEAPEST);
            return Some(Step::perform(vec![if marked { hand_over(matters) } else { Effect::MarkSurplus { uid: source.uid.clone() } }]));
        }
        let text = format!("the copy is confirmed; waiting until {} is Ready, so that {} {} keeps it", copy.name_any(), owner.kind, owner.name);
        Some(if status.time_in(Phase::Finishing, self.now) <= END_PATIENCE {
            Step::told(status.clone(), &text)
        } else {
            let what_to_do = "The copy goes on meanwhile, and the source stays frozen. It ends by itself: see what keeps the copy from being ready (kubectl describe pod)";
            self.held(status.clone(), "NotReady", format!("{text}. {what_to_do}"))
        })
    }

    fn source_that_stays(&self, source: &SourceStatus) -> Option<&Pod> {
        let there = self.observed.source.as_ref().filter(|_| !pod_is_gone(self.observed.source.as_ref(), &source.uid))?;
        there.metadata.deletion_timestamp.is_none().then_some(there)
    }
}

/// What the owner has against the move, once it is known how it selects its pods.
pub(super) fn owner_blocker(status: &MigrationStatus) -> Option<Blocker> {
    let owner = status.source.as_ref()?.owner.as_ref().filter(|owner| owner.tied_by.is_empty())?;
    Kind::named(&owner.kind).filter(|kind| kind.ties_by_label())?;
    let message =
        format!("{} {} selects by none of the pod's labels, so that nothing would keep the replacement out of its count", owner.kind, owner.name);
    Some(Blocker::new("metadata.ownerReferences", message, "give its selector a matchLabels entry"))
}

fn has_labels(pod: &Pod, owner: &OwnerStatus) -> bool {
    owner.tied_by.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
}
