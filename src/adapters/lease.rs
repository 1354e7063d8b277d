//! Leader election on a `coordination.k8s.io` Lease; [`crate::domain::election`] decides, this file reads and writes.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    adapters::kube_error::port_error,
    domain::{
        election::{Action, Election, LeaseView, Moment, Timing},
        keys,
    },
    ports::{Failure, PortResult},
};

/// One candidate.
pub struct LeaderElection {
    leases: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    started: Instant,
    leading: watch::Sender<bool>,
}

impl LeaderElection {
    /// A candidate for the Lease `name` in Drover's namespace. `identity` is the pod's name: unique, and the same after the container restarts.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: String, identity: String, timing: Timing) -> Self {
        let leases = Api::namespaced(client, namespace);
        Self { leases, name, identity, timing, started: Instant::now(), leading: watch::Sender::new(false) }
    }

    /// Whether this process leads, as it changes.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    /// Stands for election until the token is cancelled, then releases the Lease so that another manager need not wait for it to run out.
    ///
    /// Cancel this token after the leader's tasks have ended.
    ///
    /// # Errors
    /// None; the signature is that of a supervised task.
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        let mut election = Election::new(self.identity.clone(), self.timing);
        loop {
            let left = election.leads_for(self.now());
            // A request that hangs must not outlast the leadership; without it there is a limit too, so that a dead connection is left.
            let limit = if left.is_zero() { self.timing.renew } else { left.min(self.timing.renew) };
            tokio::select! {
                () = token.cancelled() => break,
                result = tokio::time::timeout(limit, self.step(&mut election)) => match result {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) if e.kind == Failure::Conflict => debug!("somebody else wrote the Lease first: {e}"),
                    Ok(Err(e)) => warn!("{e}"),
                    Err(_) => warn!(?limit, "the API server did not answer in time about the Lease"),
                }
            }
            self.tell(&election);
            tokio::select! {
                () = token.cancelled() => break,
                () = tokio::time::sleep(self.pause(&election)) => {}
            }
            self.tell(&election);
        }
        let led = election.leads(self.now());
        self.leading.send_replace(false);
        if led && let Err(e) = self.release().await {
            warn!("{e}");
        }
        Ok(())
    }

    fn now(&self) -> Moment {
        Moment { monotonic: self.started.elapsed(), wall: Timestamp::now() }
    }

    /// Until the next renewal, but not past the moment at which leading ends.
    fn pause(&self, election: &Election) -> Duration {
        let left = election.leads_for(self.now());
        if left.is_zero() { self.timing.retry } else { left.min(self.timing.renew) }
    }

    fn tell(&self, election: &Election) {
        let leads = election.leads(self.now());
        self.leading.send_if_modified(|leading| {
            let changed = *leading != leads;
            if changed {
                info!(lease = self.name, identity = self.identity, "{}", if leads { "this manager leads" } else { "this manager leads no longer" });
            }
            *leading = leads;
            changed
        });
    }

    async fn step(&self, election: &mut Election) -> PortResult<()> {
        let found = self.leases.get_opt(&self.name).await.map_err(|e| port_error("get the Lease", &e))?;
        let action = election.decide(self.now(), found.as_ref().map(view).as_ref());
        let sent = self.now();
        match (action, found) {
            (Action::Wait, _) => return Ok(()),
            (Action::Create, _) | (_, None) => self.create().await?,
            (Action::Renew, Some(lease)) => self.write(lease, false).await?,
            (Action::Take, Some(lease)) => self.write(lease, true).await?,
        }
        election.written(sent);
        Ok(())
    }

    fn params() -> PostParams {
        PostParams { field_manager: Some(keys::MANAGER.to_owned()), ..PostParams::default() }
    }

    async fn create(&self) -> PortResult<()> {
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        };
        let lease = Lease { metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() }, spec: Some(spec) };
        self.leases.create(&Self::params(), &lease).await.map_err(|e| port_error("create the Lease", &e))?;
        Ok(())
    }

    /// The Lease as read, with its resource version: a compare-and-swap.
    async fn write(&self, mut lease: Lease, take: bool) -> PortResult<()> {
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        if take {
            spec.holder_identity = Some(self.identity.clone());
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.lease_duration_seconds = i32::try_from(self.timing.lease.as_secs()).ok();
        spec.renew_time = Some(now);
        self.leases.replace(&self.name, &Self::params(), &lease).await.map_err(|e| port_error("write the Lease", &e))?;
        Ok(())
    }

    async fn release(&self) -> PortResult<()> {
        let found = self.leases.get_opt(&self.name).await.map_err(|e| port_error("get the Lease", &e))?;
        let Some(mut lease) = found.filter(|l| view(l).holder == self.identity) else { return Ok(()) };
        lease.spec.get_or_insert_default().holder_identity = Some(String::new());
        self.leases.replace(&self.name, &Self::params(), &lease).await.map_err(|e| port_error("release the Lease", &e))?;
        info!(lease = self.name, "released");
        Ok(())
    }
}

fn view(lease: &Lease) -> LeaseView {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
    LeaseView {
        holder: spec.holder_identity.unwrap_or_default(),
        renewed: spec.renew_time.map(|t| t.0.to_string()).unwrap_or_default(),
        duration: seconds.map(Duration::from_secs),
    }
}
