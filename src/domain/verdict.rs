//! What may be done to the two copies. Each function is one of the questions that must never be answered wrongly.

use std::collections::BTreeMap;

use crate::api::{
    AttestationStatus, MigrationStatus, Outcome, Phase, Verdict,
    attestation::{ContainerId, PushedImage},
};

/// May the source be thawed?
///
/// I1: not while the replacement may run. Without a verdict that is so only before the source agent has voted, and then only after it has
/// recorded that it never will (R2). After the vote, Rollback alone allows it; the manager writes Rollback only while nothing was released, or with
/// proof that the replacement never started (I4). R13: a rollback that names a fallback thaws nothing, its source was deleted.
#[must_use]
pub fn may_thaw(status: &MigrationStatus, voted: bool, aborted: bool) -> bool {
    match status.verdict {
        Some(Verdict::Rollback) => status.fallback.is_none(),
        Some(Verdict::Commit) => false,
        None => aborted && !voted,
    }
}

/// May the source agent vote, its containers being paused?
///
/// R2: `before` and `now` are CPU nanoseconds by container ID. Nothing has executed since the first were taken, after the last dump, and the fence that keeps others from starting still stands.
///
/// # Errors
/// Why not.
pub fn may_vote(containers: &[ContainerId], before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>, fenced: bool) -> Result<(), String> {
    let unchanged = |c: &&ContainerId| now.contains_key(&c.container_id) && before.get(&c.container_id) == now.get(&c.container_id);
    if let Some(container) = containers.iter().find(|c| !unchanged(c)) {
        return Err(format!("container {} has used CPU time since its checkpoint: somebody thawed it", container.name));
    }
    if fenced { Ok(()) } else { Err("the pod's fence is gone: somebody removed it".to_owned()) }
}

/// May the source be ended?
///
/// I2: only when the verdict is Commit, the destination has confirmed once more that the copy runs (R17), and the source's own kubelet shows its
/// deletion: a kill before that would have the kubelet start a second copy in place (R10, MEASURED.md 1).
#[must_use]
pub fn may_end(status: &MigrationStatus, destination: &AttestationStatus, deletion_shown: bool) -> bool {
    status.verdict == Some(Verdict::Commit) && destination.confirmed.is_some() && deletion_shown
}

/// May the source be ended before the release?
///
/// R13: only past the recorded point of no return, once this agent has voted (its archives are complete and synced by then, R14), and when the
/// source's own kubelet shows its deletion (R10).
#[must_use]
pub fn may_end_first(status: &MigrationStatus, voted: bool, deletion_shown: bool) -> bool {
    status.is_source_first() && status.phase == Phase::SourceDeleting && status.verdict.is_none() && voted && deletion_shown
}

/// May the source's archives be collected, where it went first?
///
/// R14, R18: only when a copy with the memory is confirmed: `copy` is what the node of that copy attests, the destination's or the fallback's. What was
/// let start without the memory, by a decision, is no such copy: see [`must_keep`].
#[must_use]
pub fn may_collect(status: &MigrationStatus, copy: &AttestationStatus) -> bool {
    let cold = status.verdict == Some(Verdict::Commit) && status.resolved.is_some();
    status.verdict.is_some() && !cold && status.given_up.is_none() && copy.restored.is_some() && copy.confirmed.is_some()
}

/// May the destination's checkpoint be collected after the Commit?
///
/// R15, R18: what was let start without the memory is no copy of it. Where the source's node is lost before it has said what it keeps, this is the last one.
#[must_use]
pub fn may_collect_copy(status: &MigrationStatus, source: &AttestationStatus) -> bool {
    status.resolved.is_none() || source.frozen.is_none() || source.ended.is_some()
}

/// Must the archives of a source that went first be kept for a person? R15: the replacement was let start without the memory, and runs; or the pod was given
/// up, and nothing of it does.
#[must_use]
pub fn must_keep(status: &MigrationStatus, copy: &AttestationStatus) -> bool {
    status.given_up.is_some() || (status.verdict == Some(Verdict::Commit) && status.resolved.is_some() && copy.confirmed.is_some())
}

/// Is the source over, so that something else may run in its place (R8)? `gone`: the API server has no pod of its UID. Absence there is no proof (R6): the
/// source's own node must have said that nothing of it is left.
#[must_use]
pub fn is_over(source: &AttestationStatus, gone: bool) -> bool {
    gone && source.ended.is_some() && source.archived.is_some()
}

/// Is the checkpoint of a source that went first the last that it has executed (R8)? Where no gate obeys the fence, its kubelet may have started a container
/// again after the vote and before it saw the deletion; only the node's own agent can say that it has not.
#[must_use]
pub fn is_last(source: &AttestationStatus) -> bool {
    source.archived.as_ref().is_some_and(|archived| archived.last)
}

/// May the replacement of a source that goes first be released? R8: the source is over, and its checkpoint was not outrun. A same-name replacement was made only then, so that its node
/// must have said that it expects this very pod.
#[must_use]
pub fn may_release_after_source(status: &MigrationStatus, source: &AttestationStatus, gone: bool, destination: &AttestationStatus) -> bool {
    let replacement = status.replacement.as_ref().map(|r| r.uid.as_str()).filter(|uid| !uid.is_empty());
    let armed = destination.armed.as_ref().map(|armed| armed.pod_uid.as_str());
    status.phase == Phase::SourceDeleting
        && may_release(status, source, destination)
        && is_over(source, gone)
        && is_last(source)
        && replacement.is_some()
        && (status.placeholder.is_none() || armed == replacement)
}

/// May the migration fall back onto the source node, without proof about the replacement? Only before the release (R1), and when the source is over: until
/// then it may still be running out, frozen (R13). A checkpoint that may be outrun is restored by a decision alone (R8).
#[must_use]
pub fn may_fall_back(status: &MigrationStatus, source: &AttestationStatus, gone: bool) -> bool {
    let last = is_last(source) || status.resolved.is_some();
    status.verdict.is_none() && status.is_source_first() && status.phase == Phase::SourceDeleting && is_over(source, gone) && last
}

/// May the replacement be released?
///
/// R1, R2: the source agent has voted and never aborted, and the destination's registry holds exactly the images that were voted for (I7).
#[must_use]
pub fn may_release(status: &MigrationStatus, source: &AttestationStatus, destination: &AttestationStatus) -> bool {
    let (Some(vote), Some(ready)) = (&source.vote, &destination.ready) else { return false };
    status.verdict.is_none()
        && source.abort.is_none()
        && source.thawed.is_none()
        && destination.failure.is_none()
        && same_images(&vote.images, &ready.images)
}

/// May the migration be rolled back without proof? Only while nothing was released (R1).
#[must_use]
pub fn may_roll_back(status: &MigrationStatus) -> bool {
    status.verdict.is_none() && status.phase < Phase::SourceDeleting
}

/// May the migration be rolled back after the release? Only with the destination's proof that no container of the replacement ever started and
/// none ever will (I4, R5). Anything missing means unknown, and unknown means no.
#[must_use]
pub fn may_roll_back_released(status: &MigrationStatus, destination: &AttestationStatus) -> bool {
    let Some(proof) = &destination.never_started else { return false };
    status.verdict.is_none()
        && status.phase == Phase::Restoring
        && destination.restored.is_none()
        && !status.containers.is_empty()
        && status.containers.iter().all(|c| proof.containers.iter().any(|p| p.name == c.name && matches!(p.state.as_str(), "revoked" | "failed")))
}

/// The outcome of a migration whose verdict has been carried out.
///
/// I5, R7: a commit that was decided in doubt is never `Migrated`, since nobody attests that the running container was restored.
#[must_use]
pub fn outcome(verdict: Verdict, resolved: bool) -> Outcome {
    match verdict {
        Verdict::Commit if resolved => Outcome::ColdStarted,
        Verdict::Commit => Outcome::Migrated,
        Verdict::Rollback => Outcome::RolledBack,
    }
}

fn same_images(left: &[PushedImage], right: &[PushedImage]) -> bool {
    // Not what was sent past the registry, which the digest covers: an agent of before takes no notice of that number.
    let is_one =
        |image: &PushedImage, other: &PushedImage| (&image.container, &image.digest, image.bytes) == (&other.container, &other.digest, other.bytes);
    !left.is_empty() && left.len() == right.len() && left.iter().all(|image| right.iter().any(|other| is_one(image, other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::attestation::{Archived, Armed, At, ClosedClaim, Frozen, NeverStarted, Pushed, Remark, Vote};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn at() -> MicroTime {
        MicroTime(jiff::Timestamp::UNIX_EPOCH)
    }

    fn images(digest: &str) -> Vec<PushedImage> {
        vec![PushedImage { container: "c".into(), digest: digest.into(), bytes: 1, memory_bytes: None, pre_copied_bytes: None }]
    }

    fn voted(digest: &str) -> AttestationStatus {
        AttestationStatus { vote: Some(Vote { at: at(), containers: vec![], images: images(digest) }), ..Default::default() }
    }

    fn ready(digest: &str) -> AttestationStatus {
        AttestationStatus { ready: Some(Pushed { at: at(), images: images(digest) }), ..Default::default() }
    }

    #[test]
    fn a_vote_needs_the_cpu_times_of_the_dump_and_the_fence() {
        let containers = [ContainerId { name: "c".into(), container_id: "one".into() }];
        let nanos = |n| BTreeMap::from([("one".to_owned(), n)]);
        assert!(may_vote(&containers, &nanos(1), &nanos(1), true).is_ok());
        assert!(may_vote(&containers, &nanos(1), &nanos(1), false).is_err());
        assert!(may_vote(&containers, &nanos(1), &nanos(2), true).is_err_and(|why| why.contains("container c ")));
        assert!(may_vote(&containers, &BTreeMap::new(), &BTreeMap::new(), true).is_err(), "nothing known is not unchanged");
    }

    #[test]
    fn a_destination_that_does_not_count_memory_is_believed_what_it_holds() {
        let voted: Vec<_> =
            images("a").into_iter().map(|image| PushedImage { memory_bytes: Some(1 << 30), pre_copied_bytes: Some(1 << 20), ..image }).collect();
        assert!(same_images(&voted, &images("a")) && !same_images(&voted, &images("b")));
    }

    #[test]
    fn a_source_thaws_only_on_rollback_or_on_an_abort_before_its_vote() {
        let mut status = MigrationStatus::default();
        assert!(!may_thaw(&status, false, false));
        assert!(may_thaw(&status, false, true));
        assert!(!may_thaw(&status, true, true), "who has voted waits for the verdict");
        status.verdict = Some(Verdict::Commit);
        assert!(!may_thaw(&status, false, true));
        status.verdict = Some(Verdict::Rollback);
        assert!(may_thaw(&status, true, false));
    }

    #[test]
    fn a_source_ends_only_when_confirmed_and_deleted() {
        let status = MigrationStatus { verdict: Some(Verdict::Commit), ..Default::default() };
        let confirmed = AttestationStatus { confirmed: Some(At { at: at() }), ..Default::default() };
        assert!(may_end(&status, &confirmed, true));
        assert!(!may_end(&status, &confirmed, false));
        assert!(!may_end(&status, &AttestationStatus::default(), true));
        assert!(!may_end(&MigrationStatus::default(), &confirmed, true));
    }

    #[test]
    fn a_release_needs_the_vote_for_the_very_images() {
        let status = MigrationStatus::default();
        assert!(may_release(&status, &voted("sha256:a"), &ready("sha256:a")));
        assert!(!may_release(&status, &voted("sha256:a"), &ready("sha256:b")));
        assert!(!may_release(&status, &AttestationStatus::default(), &ready("sha256:a")));
        let mut aborted = voted("sha256:a");
        aborted.abort = Some(Remark { at: at(), message: "late".into() });
        assert!(!may_release(&status, &aborted, &ready("sha256:a")));
    }

    #[test]
    fn a_released_migration_is_rolled_back_only_where_every_container_is_proved_never_to_have_started() {
        let checkpoint = |name: &str| crate::api::migration::ContainerCheckpoint { name: name.into(), ..Default::default() };
        let status = MigrationStatus { phase: Phase::Restoring, containers: vec![checkpoint("a"), checkpoint("b")], ..Default::default() };
        let closed = |name: &str, state: &str| ClosedClaim { name: name.into(), state: state.into(), proof: String::new() };
        let proved = |containers| AttestationStatus { never_started: Some(NeverStarted { at: at(), containers }), ..Default::default() };
        assert!(may_roll_back_released(&status, &proved(vec![closed("a", "revoked"), closed("b", "failed")])));
        assert!(!may_roll_back_released(&status, &proved(vec![closed("a", "revoked")])));
        assert!(!may_roll_back_released(&status, &proved(vec![closed("a", "revoked"), closed("b", "taken")])));
        assert!(!may_roll_back_released(&status, &AttestationStatus::default()));
        let finishing = MigrationStatus { phase: Phase::Finishing, ..status };
        assert!(!may_roll_back_released(&finishing, &proved(vec![closed("a", "revoked"), closed("b", "failed")])));
    }

    #[test]
    fn no_rollback_without_proof_after_the_release() {
        for (phase, allowed) in
            [(Phase::Preparing, true), (Phase::AwaitingReadiness, true), (Phase::SourceDeleting, false), (Phase::Restoring, false)]
        {
            assert_eq!(may_roll_back(&MigrationStatus { phase, ..Default::default() }), allowed, "{phase}");
        }
    }

    fn deleting() -> MigrationStatus {
        let replacement = Some(crate::api::migration::ReplacementStatus { name: "p".into(), uid: "new".into(), ..Default::default() });
        MigrationStatus {
            phase: Phase::SourceDeleting,
            source_first: Some(true),
            placeholder: replacement.clone(),
            replacement,
            ..Default::default()
        }
    }

    fn ended() -> AttestationStatus {
        AttestationStatus { ended: Some(At { at: at() }), archived: Some(Archived { at: at(), paths: vec![], last: true }), ..voted("sha256:a") }
    }

    fn decided(prefer: crate::api::migration::Side) -> crate::api::migration::Resolved {
        crate::api::migration::Resolved { at: at(), prefer, by: crate::api::migration::Decider::Person, message: String::new() }
    }

    fn outrun() -> AttestationStatus {
        AttestationStatus { archived: Some(Archived { at: at(), paths: vec![], last: false }), ..ended() }
    }

    #[test]
    fn the_checkpoint_of_what_was_let_start_cold_waits_for_the_source_to_say_what_it_keeps() {
        let committed = MigrationStatus { verdict: Some(Verdict::Commit), phase: Phase::Finishing, ..Default::default() };
        let cold = MigrationStatus { resolved: Some(decided(crate::api::migration::Side::Destination)), ..committed.clone() };
        let frozen = AttestationStatus { frozen: Some(Frozen { at: at(), containers: vec![] }), ..Default::default() };
        assert!(may_collect_copy(&committed, &frozen));
        assert!(!may_collect_copy(&cold, &frozen), "its node may be lost");
        assert!(may_collect_copy(&cold, &AttestationStatus { ended: Some(At { at: at() }), ..frozen }));
    }

    #[test]
    fn a_source_that_goes_first_is_ended_only_past_the_point_of_no_return() {
        assert!(may_end_first(&deleting(), true, true));
        assert!(!may_end_first(&deleting(), false, true), "no vote, no archive");
        assert!(!may_end_first(&deleting(), true, false), "a kill before the deletion restarts it in place");
        assert!(!may_end_first(&MigrationStatus { phase: Phase::AwaitingReadiness, ..deleting() }, true, true));
        assert!(!may_end_first(&MigrationStatus { source_first: None, ..deleting() }, true, true));
    }

    #[test]
    fn a_same_name_release_needs_the_source_over_and_its_own_replacement_expected() {
        let armed = |uid: &str| AttestationStatus { armed: Some(Armed { at: at(), pod_uid: uid.into() }), ..ready("sha256:a") };
        assert!(may_release_after_source(&deleting(), &ended(), true, &armed("new")));
        assert!(!may_release_after_source(&deleting(), &ended(), false, &armed("new")), "the object is there");
        assert!(!may_release_after_source(&deleting(), &voted("sha256:a"), true, &armed("new")), "its node has not said so");
        assert!(!may_release_after_source(&deleting(), &ended(), true, &armed("placeholder")));
        assert!(!may_release_after_source(&deleting(), &ended(), true, &ready("sha256:a")));
        assert!(!may_release_after_source(&deleting(), &outrun(), true, &armed("new")), "who knows what it has executed since");
        let new_name = MigrationStatus { placeholder: None, ..deleting() };
        assert!(may_release_after_source(&new_name, &ended(), true, &ready("sha256:a")), "armed in Preparing");
    }

    #[test]
    fn a_fallback_needs_the_source_over_and_thaws_nothing() {
        assert!(may_fall_back(&deleting(), &ended(), true));
        assert!(!may_fall_back(&deleting(), &ended(), false));
        assert!(!may_fall_back(&deleting(), &voted("sha256:a"), true));
        assert!(!may_fall_back(&deleting(), &outrun(), true), "a decision is needed");
        assert!(may_fall_back(&MigrationStatus { resolved: Some(decided(crate::api::migration::Side::Source)), ..deleting() }, &outrun(), true));
        assert!(!may_fall_back(&MigrationStatus { phase: Phase::Restoring, ..deleting() }, &ended(), true), "after the release it needs proof");
        let fallen =
            MigrationStatus { verdict: Some(Verdict::Rollback), fallback: Some(crate::api::migration::ReplacementStatus::default()), ..deleting() };
        assert!(!may_thaw(&fallen, true, true));
        let restored = AttestationStatus {
            restored: Some(crate::api::attestation::Restored { at: at(), containers: vec![] }),
            confirmed: Some(At { at: at() }),
            ..Default::default()
        };
        assert!(may_collect(&fallen, &restored));
        assert!(!may_collect(&fallen, &AttestationStatus { restored: None, ..restored.clone() }), "started without the memory");
        assert!(!may_collect(&deleting(), &restored), "no verdict");
        let by_hand = decided(crate::api::migration::Side::Destination);
        let cold = MigrationStatus { verdict: Some(Verdict::Commit), resolved: Some(by_hand), fallback: None, ..fallen };
        assert!(!may_collect(&cold, &restored) && must_keep(&cold, &restored), "its memory is in the archive alone");
    }
}
