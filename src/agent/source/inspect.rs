//! The look at the running processes, before anything is touched.

use super::{Look, SourceAgent};
use crate::{
    api::attestation::{Finding, Inspected},
    domain::{preflight::Blocker, processes},
    ports::{Failure, PortResult},
};

impl SourceAgent {
    /// Says what of the pod's processes is in the way. Where they cannot be read, that is.
    pub(super) async fn inspect(&self, look: &Look) -> PortResult<()> {
        let source = look.migration.status.as_ref().and_then(|status| status.source.clone()).unwrap_or_default();
        let containers: Vec<_> = source.containers.iter().map(crate::api::migration::RunningContainer::id).collect();
        let found = match self.parts.inside.look(&source.uid, &containers, &source.pod_ips).await {
            Ok(facts) => processes::judge(&facts),
            Err(error) if error.kind == Failure::Permanent => {
                let remedy = "see the log of this node's drover-agent";
                processes::Findings { blockers: vec![Blocker::new("processes", error.message, remedy)], ..processes::Findings::default() }
            }
            Err(error) => return Err(error),
        };
        let told = |findings: Vec<Blocker>| findings.into_iter().map(Finding::from).collect();
        let (bytes, volume_bytes) = (Some(found.bytes), Some(found.volume_bytes));
        let inspected = Inspected { at: self.now(), blockers: told(found.blockers), warnings: told(found.warnings), bytes, volume_bytes };
        self.attest(look, |status| status.inspected = Some(inspected)).await
    }
}
