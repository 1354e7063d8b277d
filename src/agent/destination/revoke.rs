//! Claims of a replacement on this node's disk: armed before the release, closed in doubt, opened after the confirmation.
//!
//! R3: doubt is resolved by revocation, not by looking. What has been taken counts as never started only with proof that its restore was refused
//! before the resume point; R5: anything missing means unknown.

use std::{fs, io, path::PathBuf, time::Duration};

use super::{DestinationAgent, Look};
use crate::{
    api::attestation::{ClosedClaim, Died, NeverStarted},
    domain::tasks::{is_over, is_untold, nothing_left, refused},
    markers::{Claim, evidence},
    ports::{PortError, PortResult},
    runc::kept::Logs,
};

/// A kubelet says within some seconds that a start has failed; one that is busy, or being restarted, takes longer.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

impl DestinationAgent {
    /// Lets each container be restored once, by the gate. Where there is none, nobody would take the claims.
    pub(super) fn arm(&self, look: &Look, pod_uid: &str) -> PortResult<()> {
        for (container, _) in look.bases().filter(|_| look.gated()) {
            let armed = if look.course.is_by_runtime() {
                self.parts.markers.arm_for_runtime(pod_uid, container, look.uid())
            } else {
                self.parts.markers.arm(pod_uid, container, look.uid())
            };
            armed.map_err(|e| disk("write a claim", &e))?;
        }
        for container in look.init_containers().filter(|_| look.gated()) {
            self.parts.markers.admit(pod_uid, &container.name, look.uid()).map_err(|e| disk("write a claim", &e))?;
        }
        Ok(())
    }

    /// Whether the gate has let every one of these restores through: one that runs without having been taken was not gated.
    pub(super) fn all_taken(&self, look: &Look) -> PortResult<bool> {
        let claims = self.claims(look)?;
        Ok(look.course.containers.iter().all(|c| claims.contains(&(c.name.clone(), Claim::Taken))))
    }

    /// The claims of what is to be restored.
    pub(super) fn claims(&self, look: &Look) -> PortResult<Vec<(String, Claim)>> {
        let all = self.parts.markers.claims(look.pod_uid()).map_err(|e| disk("read the claims", &e))?;
        Ok(all.into_iter().filter(|(container, _)| !look.init_containers().any(|init| init.name == *container)).collect())
    }

    /// Closes every claim, or goes on looking for the restore where one was taken and nothing proves that it failed.
    ///
    /// Without the gate there are no claims, and what can be seen (R6) proves at best that nothing runs any more: a late restore is still looked for.
    pub(super) async fn revoke(&self, look: &Look) -> PortResult<bool> {
        if !look.gated() {
            return if self.restored_after_all(look).await? { Ok(true) } else { self.look_for_absence(look).await };
        }
        let ended = self.remove_ended(self.taken_ids(look)?).await?;
        let (mut failed, mut unproved) = (vec![], vec![]);
        for (container, _) in self.claims(look)?.into_iter().filter(|(_, claim)| *claim == Claim::Taken) {
            match self.proof_of_failure(look, &container, &ended).await? {
                Some(proof) => failed.push((container, proof)),
                None => unproved.push(container),
            }
        }
        if !unproved.is_empty() {
            return if self.restored_after_all(look).await? { Ok(true) } else { self.look_for_the_end(look, &unproved, &failed, &ended).await };
        }
        // Only now that no container can be running: half a pod would be worse than a late one.
        let pod = look.pod_uid();
        let mut closed = vec![];
        for checkpoint in &look.course.containers {
            let name = checkpoint.name.clone();
            let step = |from, to| self.parts.markers.advance(pod, &name, from, to).map_err(|e| disk("close a claim", &e));
            let proof = failed.iter().find(|(container, _)| *container == name).map(|(_, proof)| proof.clone());
            if let Some(proof) = &proof {
                self.keep_proof(look, &name, proof)?;
                step(Claim::Taken, Claim::Failed)?;
            } else {
                step(Claim::Waiting, Claim::Revoked)?;
            }
            match self.parts.markers.claim(pod, &name).map_err(|e| disk("read a claim", &e))? {
                Some(Claim::Revoked) => closed.push(ClosedClaim { name, state: Claim::Revoked.as_str().into(), proof: String::new() }),
                Some(Claim::Failed) => {
                    let proof = self.kept_proof(look, &name)?;
                    closed.push(ClosedClaim { name, state: Claim::Failed.as_str().into(), proof });
                }
                // Taken at this very moment, or not armed: unknown.
                _ => return Ok(false),
            }
        }
        for checkpoint in &look.course.containers {
            self.parts.images.remove(&checkpoint.image).await?;
        }
        let at = self.now();
        self.attest(look, |status| status.never_started = Some(NeverStarted { at, containers: closed })).await?;
        Ok(true)
    }

    /// What was taken, or may run without asking anybody, may have been restored after all.
    async fn restored_after_all(&self, look: &Look) -> PortResult<bool> {
        Ok(look.status.restored.is_none() && look.status.cold_started.is_none() && self.restore(look).await?)
    }

    /// R6, R7: without the gate only the absence of everything says that nothing of the replacement executes or will: its kubelet, which had it before the
    /// release, does not list it any more (so that it was deleted), its sandbox is gone, and the runtime has no container of it. Whether it ever ran nobody knows.
    async fn look_for_absence(&self, look: &Look) -> PortResult<bool> {
        let listed = self.parts.kubelet.pod(look.pod_uid()).await?;
        // A pod that was removed by force is forgotten at once, also while a container of it is being made that the runtime does not know yet. Its kubelet ends
        // the sandbox once it is done with that.
        if self.parts.inside.has_sandbox(look.pod_uid()).await? {
            return Ok(false);
        }
        if !nothing_left(listed.as_ref(), &self.parts.runtime.tasks(look.pod_uid()).await?) {
            return Ok(false);
        }
        let unknown = |name: &String| ClosedClaim { name: name.clone(), state: "unknown".into(), proof: String::new() };
        let containers = look.course.containers.iter().map(|c| unknown(&c.name)).collect();
        let at = self.now();
        self.attest(look, |status| status.died = Some(Died { at, containers })).await?;
        Ok(true)
    }

    /// Ends taken restores that their runtime has lost; the IDs of those that are over.
    ///
    /// A containerd that ends in mid-restore takes `runc restore` with it; CRIU may still finish, and nobody knows of the process then: not the shim, so that
    /// its end is never told, and not the kubelet, which tries in vain to stop a container in state "unknown", or removes the container and leaves the process
    /// (both seen with 2.3.4 on the lab). runc puts CRIU into the container's cgroup before the gate is asked, and what CRIU restores as well: once that is
    /// empty, nothing of it executes.
    pub(super) async fn remove_ended(&self, ids: Vec<String>) -> PortResult<Vec<String>> {
        let mut ended = vec![];
        for id in ids {
            if self.parts.runtime.remove_ended(&id).await? {
                ended.push(id);
            }
        }
        Ok(ended)
    }

    /// Ends what a runtime has lost of the restores of a pod that is gone; whether there was nothing.
    pub(super) async fn end_taken(&self, pod_uid: &str) -> PortResult<bool> {
        let mut over = true;
        for (container, _) in self.parts.markers.claims(pod_uid).map_err(|e| disk("read the claims", &e))? {
            if let Some(evidence) = self.evidence(pod_uid, &container)? {
                over &= self.booted_since(&evidence) || self.parts.runtime.remove_ended(&evidence.id).await?;
            }
        }
        Ok(over)
    }

    /// R7: attests that the replacement may have run and is over, once nothing of it can execute any more: its taken restores are over, everything else
    /// is revoked. False as long as that is not so.
    async fn look_for_the_end(&self, look: &Look, taken: &[String], failed: &[(String, String)], ended: &[String]) -> PortResult<bool> {
        let pod = look.pod_uid();
        for container in taken {
            let Some(evidence) = self.evidence(pod, container)? else { return Ok(false) };
            let booted = self.booted_since(&evidence);
            if !is_over(booted || ended.contains(&evidence.id), &self.parts.runtime.tasks(pod).await?) {
                return Ok(false);
            }
            if !booted && self.may_yet_be_told(look, container, &evidence).await? {
                return Ok(false);
            }
        }
        self.close(look)?;
        let claims = self.claims(look)?;
        // One may have been taken between the look and the closing.
        let known = |container: &String| taken.contains(container) || failed.iter().any(|(name, _)| name == container);
        if claims.iter().any(|(container, claim)| *claim == Claim::Taken && !known(container)) {
            return Ok(false);
        }
        let containers = claims.into_iter().map(|(name, claim)| ClosedClaim { name, state: claim.as_str().into(), proof: String::new() }).collect();
        let at = self.now();
        self.attest(look, |status| status.died = Some(Died { at, containers })).await?;
        Ok(true)
    }

    /// Whether the proof that a restore was refused lacks only the kubelet's word, which is to come. Once it is said to have died nobody looks for a proof any
    /// more; and where the word does not come within [`TOLD_WITHIN`], it is not waited for.
    async fn may_yet_be_told(&self, look: &Look, container: &str, evidence: &evidence::Evidence) -> PortResult<bool> {
        let asked = look.course.revocation.as_ref().map(|revocation| revocation.at.0);
        let waited = asked.and_then(|asked| Duration::try_from(self.parts.clock.now().duration_since(asked)).ok()).unwrap_or_default();
        let Some(log) = evidence.log.as_ref().filter(|_| waited < TOLD_WITHIN) else { return Ok(false) };
        let Some(text) = self.read_on_host(log)? else { return Ok(false) };
        Ok(is_untold(container, &text, self.parts.kubelet.pod(look.pod_uid()).await?.as_ref()))
    }

    /// The runtime's IDs of the containers that the gate has let through, as their evidence names them.
    pub(super) fn taken_ids(&self, look: &Look) -> PortResult<Vec<String>> {
        let mut ids = vec![];
        for checkpoint in &look.course.containers {
            ids.extend(self.evidence(look.pod_uid(), &checkpoint.name)?.map(|evidence| evidence.id));
        }
        Ok(ids)
    }

    /// What the gate has noted of a restore that it let through; none where it has noted nothing.
    fn evidence(&self, pod_uid: &str, container: &str) -> PortResult<Option<evidence::Evidence>> {
        let path = self.parts.markers.evidence_path(pod_uid, container).map_err(|e| disk("name the evidence", &e))?;
        evidence::read(&path).map_err(|e| disk("read the evidence", &e))
    }

    /// Whether the node has booted since a restore was let through; where a boot cannot be told, it has not.
    fn booted_since(&self, evidence: &evidence::Evidence) -> bool {
        evidence.boot.is_some() && self.parts.boot.is_some() && evidence.boot != self.parts.boot
    }

    /// CRIU's error, where all signs agree that the one restore of a container was refused before its resume point: the runtime has no living
    /// task of it and no process is left, the kubelet has runc's error, and CRIU's log was kept, has an error, and lacks the line of the resume point.
    async fn proof_of_failure(&self, look: &Look, container: &str, ended: &[String]) -> PortResult<Option<String>> {
        let pod = look.pod_uid();
        let tasks = self.parts.runtime.tasks(pod).await?;
        // A log that a power failure has cut proves nothing, although it may have an error line.
        let evidence = self.evidence(pod, container)?.filter(|evidence| !self.booted_since(evidence) && ended.contains(&evidence.id));
        let Some(log) = evidence.and_then(|evidence| evidence.log) else { return Ok(None) };
        let Some(text) = self.read_on_host(&log)? else { return Ok(None) };
        let found = self.parts.kubelet.pod(pod).await?;
        Ok(refused(container, &tasks, &text, found.as_ref()))
    }

    /// Below the markers the agent has the folder itself; everything else is seen through the node's root.
    fn on_host(&self, path: &std::path::Path) -> PathBuf {
        if path.exists() { path.to_owned() } else { self.parts.host_root.join(path.strip_prefix("/").unwrap_or(path)) }
    }

    fn read_on_host(&self, path: &std::path::Path) -> PortResult<Option<String>> {
        match fs::read(self.on_host(path)) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk("read CRIU's log", &error)),
        }
    }

    /// The proof is on the disk before the claim says `failed`, so that a restarted agent can name it.
    fn keep_proof(&self, look: &Look, container: &str, proof: &str) -> PortResult<()> {
        let path = self.parts.markers.evidence_path(look.pod_uid(), container).map_err(|e| disk("name the evidence", &e))?;
        crate::markers::write_durably(&path.with_extension("proof"), proof.as_bytes()).map_err(|e| disk("write the proof", &e))
    }

    fn kept_proof(&self, look: &Look, container: &str) -> PortResult<String> {
        let path = self.parts.markers.evidence_path(look.pod_uid(), container).map_err(|e| disk("name the evidence", &e))?;
        fs::read_to_string(path.with_extension("proof")).map_err(|e| disk("read the proof", &e))
    }

    /// R17 holds: ordinary creates of the pod pass again (I8), and nothing is left of its claims.
    pub(super) fn open(&self, look: &Look) -> PortResult<()> {
        let pod = look.pod_uid();
        for checkpoint in &look.course.containers {
            self.parts.markers.advance(pod, &checkpoint.name, Claim::Taken, Claim::Open).map_err(|e| disk("open a claim", &e))?;
        }
        self.forget(look)
    }

    /// Ordinary creates of the pod pass, whatever its claims were: it goes on without the checkpoint (R15).
    pub(super) fn let_start(&self, look: &Look) -> PortResult<()> {
        for (container, claim) in self.claims(look)? {
            self.parts.markers.advance(look.pod_uid(), &container, claim, Claim::Open).map_err(|e| disk("open a claim", &e))?;
        }
        Ok(())
    }

    /// Closes what still waits, for good: the migration is rolled back.
    pub(super) fn close(&self, look: &Look) -> PortResult<()> {
        let pod = look.pod_uid();
        for (container, _) in look.bases() {
            self.parts.markers.advance(pod, container, Claim::Waiting, Claim::Revoked).map_err(|e| disk("close a claim", &e))?;
        }
        Ok(())
    }

    /// Removes claims and evidence of a pod; what CRIU has said of its restore is kept for a person.
    pub(super) fn forget(&self, look: &Look) -> PortResult<()> {
        let pod = look.pod_uid();
        for (container, _) in look.bases() {
            let path = self.parts.markers.evidence_path(pod, container).map_err(|e| disk("name the evidence", &e))?;
            if let Ok(Some(log)) = evidence::read(&path).map(|found| found.and_then(|evidence| evidence.log)) {
                let seen = self.on_host(&log);
                Logs::one(evidence::LOG, &seen).keep(&self.parts.logs, pod, container);
                let _ = fs::remove_file(seen);
            }
        }
        self.parts.markers.disarm(pod).map_err(|e| disk("remove the claims", &e))
    }
}

fn disk(doing: &str, error: &io::Error) -> PortError {
    PortError::transient(format!("failed to {doing}: {error}"))
}
