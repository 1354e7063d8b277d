//! Claims of a replacement on this node's disk: armed before the release, closed in doubt, opened after the confirmation.
//!
//! R3: doubt is resolved by revocation, not by looking. What has been taken counts as never started only with proof that its restore was refused
//! before the resume point; R5: anything missing means unknown.

use std::{fs, io, path::PathBuf};

use super::{DestinationAgent, Look};
use crate::{
    api::attestation::{ClosedClaim, NeverStarted},
    domain::tasks::refused,
    markers::{Claim, evidence},
    ports::{PortError, PortResult},
};

impl DestinationAgent {
    /// Lets each container be restored once, by the gate.
    pub(super) fn arm(&self, look: &Look) -> PortResult<()> {
        for (container, _) in look.bases() {
            self.parts.markers.arm(&look.own.spec.pod_uid, container, look.uid()).map_err(|e| disk("write a claim", &e))?;
        }
        Ok(())
    }

    /// Whether the gate has let every one of these restores through: one that runs without having been taken was not gated.
    pub(super) fn all_taken(&self, look: &Look) -> PortResult<bool> {
        let claims = self.claims(look)?;
        Ok(look.course.containers.iter().all(|c| claims.contains(&(c.name.clone(), Claim::Taken))))
    }

    fn claims(&self, look: &Look) -> PortResult<Vec<(String, Claim)>> {
        self.parts.markers.claims(&look.own.spec.pod_uid).map_err(|e| disk("read the claims", &e))
    }

    /// Closes every claim, or goes on looking for the restore where one was taken and nothing proves that it failed.
    pub(super) async fn revoke(&self, look: &Look) -> PortResult<bool> {
        let mut failed = vec![];
        for (container, claim) in self.claims(look)?.into_iter().filter(|(_, claim)| *claim == Claim::Taken) {
            let Some(proof) = self.proof_of_failure(look, &container).await? else {
                tracing::debug!(container, ?claim, "taken, and nothing proves that its restore failed");
                return self.restore(look).await;
            };
            failed.push((container, proof));
        }
        // Only now that no container can be running: half a pod would be worse than a late one.
        let pod = look.own.spec.pod_uid.as_str();
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

    /// CRIU's error, where all signs agree that the one restore of a container was refused before its resume point: the runtime has no living
    /// task of it, the kubelet has runc's error, and CRIU's log was kept, has an error, and lacks the line of the resume point.
    async fn proof_of_failure(&self, look: &Look, container: &str) -> PortResult<Option<String>> {
        let pod = look.own.spec.pod_uid.as_str();
        let tasks = self.parts.runtime.tasks(pod).await?;
        let path = self.parts.markers.evidence_path(pod, container).map_err(|e| disk("name the evidence", &e))?;
        let Some(log) = evidence::read(&path).map_err(|e| disk("read the evidence", &e))?.and_then(|evidence| evidence.log) else { return Ok(None) };
        let Some(text) = self.read_on_host(&log)? else { return Ok(None) };
        let found = self.parts.kubelet.pod(pod).await?;
        Ok(refused(container, &tasks, &text, found.as_ref()))
    }

    fn read_on_host(&self, path: &std::path::Path) -> PortResult<Option<String>> {
        // Below the markers the agent has the folder itself; everything else is seen through the node's root.
        let seen: PathBuf = if path.exists() { path.to_owned() } else { self.parts.host_root.join(path.strip_prefix("/").unwrap_or(path)) };
        match fs::read(&seen) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk("read CRIU's log", &error)),
        }
    }

    /// The proof is on the disk before the claim says `failed`, so that a restarted agent can name it.
    fn keep_proof(&self, look: &Look, container: &str, proof: &str) -> PortResult<()> {
        let path = self.parts.markers.evidence_path(&look.own.spec.pod_uid, container).map_err(|e| disk("name the evidence", &e))?;
        crate::markers::write_durably(&path.with_extension("proof"), proof.as_bytes()).map_err(|e| disk("write the proof", &e))
    }

    fn kept_proof(&self, look: &Look, container: &str) -> PortResult<String> {
        let path = self.parts.markers.evidence_path(&look.own.spec.pod_uid, container).map_err(|e| disk("name the evidence", &e))?;
        fs::read_to_string(path.with_extension("proof")).map_err(|e| disk("read the proof", &e))
    }

    /// R17 holds: ordinary creates of the pod pass again (I8), and nothing is left of its claims.
    pub(super) fn open(&self, look: &Look) -> PortResult<()> {
        let pod = look.own.spec.pod_uid.as_str();
        for checkpoint in &look.course.containers {
            self.parts.markers.advance(pod, &checkpoint.name, Claim::Taken, Claim::Open).map_err(|e| disk("open a claim", &e))?;
        }
        self.forget(look)
    }

    /// Closes what still waits, for good: the migration is rolled back.
    pub(super) fn close(&self, look: &Look) -> PortResult<()> {
        let pod = look.own.spec.pod_uid.as_str();
        for (container, _) in look.bases() {
            self.parts.markers.advance(pod, container, Claim::Waiting, Claim::Revoked).map_err(|e| disk("close a claim", &e))?;
        }
        Ok(())
    }

    /// Removes claims and evidence of a pod.
    pub(super) fn forget(&self, look: &Look) -> PortResult<()> {
        let pod = look.own.spec.pod_uid.as_str();
        for (container, _) in look.bases() {
            let path = self.parts.markers.evidence_path(pod, container).map_err(|e| disk("name the evidence", &e))?;
            if let Ok(Some(log)) = evidence::read(&path).map(|found| found.and_then(|evidence| evidence.log)) {
                let _ = fs::remove_file(&log).or_else(|_| fs::remove_file(self.parts.host_root.join(log.strip_prefix("/").unwrap_or(&log))));
            }
        }
        self.parts.markers.disarm(pod).map_err(|e| disk("remove the claims", &e))
    }
}

fn disk(doing: &str, error: &io::Error) -> PortError {
    PortError::transient(format!("failed to {doing}: {error}"))
}
