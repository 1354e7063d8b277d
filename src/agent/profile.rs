//! The node's profile: looked at through the probe, judged in the domain, completed with what only the agent knows.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use tokio_util::sync::CancellationToken;

use crate::{
    api::node_profile::{NodeProfileStatus, StayingPod},
    domain::{keys::PULL_ADDRESS, lanes, load},
    ports::{AgentApi, Clock, Kubelet, NodeProbe, bus::Announcer},
};

/// How often the profile is written; preflight takes one of four times this age for a dead agent's.
const EVERY: Duration = Duration::from_secs(30);
/// How soon a profile that could not be written, or that speaks against the node, is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// So many profiles in a row may speak against the node before it is taken to stay so: a runtime that is being restarted is back within seconds, and
/// nothing should be refused for half a minute because of it.
const DOUBTED: u32 = 5;

/// How often the gate is looked at in between.
const GATE_LOOK: Duration = Duration::from_secs(5);

/// How often, where it says what the pods use: a kubelet counts every ten seconds.
const EVERY_WITH_USAGE: Duration = Duration::from_secs(15);

/// What a profile is made of.
pub struct Parts<'a> {
    /// What the node is.
    pub probe: &'a dyn NodeProbe,
    /// Where it is written.
    pub api: &'a dyn AgentApi,
    /// Whose state it tells.
    pub bus: &'a dyn Announcer,
    /// The clock.
    pub clock: &'a dyn Clock,
    /// Who counts what the pods use; none: nobody asks.
    pub meter: Option<&'a dyn Kubelet>,
    /// What it says of pushes.
    pub pushes: &'a Pushes,
    /// The pods that were to leave the node and stay, as far as is known.
    pub staying: &'a (dyn Fn() -> Vec<StayingPod> + Sync),
}

/// Keeps this node's profile until cancelled.
pub async fn keep(parts: Parts<'_>, stop: CancellationToken) {
    let Parts { probe, api, bus, clock, meter, pushes, staying } = parts;
    let (mut against, mut counted) = (0, vec![]);
    let every = if meter.is_some() { EVERY_WITH_USAGE } else { EVERY };
    loop {
        let mut status = observe(probe, clock, pushes).await;
        if let Some(meter) = meter {
            match meter.counters().await {
                Ok(now) => {
                    status.usage = load::usage(&counted, &now);
                    counted = now;
                }
                Err(error) => tracing::warn!(%error, "what the node's pods use is not known"),
            }
        }
        status.staying = staying();
        let condition = |kind: &str, holds: bool, reason: &str, message: String| Condition {
            type_: kind.into(),
            status: if holds { "True" } else { "False" }.into(),
            reason: reason.into(),
            message,
            last_transition_time: Time(clock.now()),
            observed_generation: None,
        };
        let state = bus.state();
        status.conditions =
            vec![condition("Ready", true, "AgentServes", String::new()), condition("BusConnected", state.connected, bus.name(), state.message)];
        against = if takes_pods(&status) && state.connected { 0 } else { against + 1 };
        let pause = match api.write_profile(&status).await {
            Ok(()) if (1..=DOUBTED).contains(&against) => RETRY,
            Ok(()) => every,
            Err(error) => {
                tracing::warn!(%error, "the node's profile is written again soon");
                RETRY
            }
        };
        if stop.run_until_cancelled(until_due(probe, status.gate.installed, pause)).await.is_none() {
            return;
        }
    }
}

/// Waits for the next profile: so long, or until the gate is another than the last one says. Whether a source may stay frozen hangs on it.
async fn until_due(probe: &dyn NodeProbe, gated: bool, pause: Duration) {
    let due = tokio::time::Instant::now() + pause;
    while tokio::time::Instant::now() < due {
        tokio::time::sleep_until(due.min(tokio::time::Instant::now() + GATE_LOOK)).await;
        if probe.is_gated().await.is_some_and(|now| now != gated) {
            return;
        }
    }
}

fn takes_pods(status: &NodeProfileStatus) -> bool {
    status.gate.installed && status.lanes.iter().any(|lane| lane.available)
}

/// What this node's agent takes of others.
#[derive(Debug, Clone)]
pub struct Pushes {
    /// `host:port` of the push door.
    pub address: String,
    /// Bytes that one migration may store.
    pub most_bytes: u64,
}

/// What to write into this node's NodeProfile now; conditions are the caller's.
pub async fn observe(probe: &dyn NodeProbe, clock: &dyn Clock, pushes: &Pushes) -> NodeProfileStatus {
    let facts = probe.facts().await;
    NodeProfileStatus {
        push_address: pushes.address.clone(),
        max_bytes_per_migration: Some(pushes.most_bytes),
        pull_address: PULL_ADDRESS.to_owned(),
        post_copy: true,
        observed_at: Some(Time(clock.now())),
        ..lanes::profile(facts)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::{
        api::{Migration, MigrationSpec},
        domain::{lanes::NodeFacts, registry_event::RegistryEvent},
        ports::{PortError, PortResult, SystemClock, bus::BusState},
        testing::FakeNode,
    };

    /// A node that nothing is known of; how often it was looked at.
    #[derive(Default)]
    struct Silent(AtomicUsize);

    fn pushes() -> Pushes {
        Pushes { address: "10.0.0.1:5786".to_owned(), most_bytes: 1 << 30 }
    }

    /// A bus whose broker does not answer.
    struct Away;

    #[async_trait]
    impl Announcer for Away {
        fn name(&self) -> &'static str {
            "Kafka"
        }
        async fn announce(&self, _event: &RegistryEvent) -> PortResult<()> {
            Err(PortError::transient("away"))
        }
        fn state(&self) -> BusState {
            BusState { connected: false, message: "no broker answers".into() }
        }
    }

    #[async_trait]
    impl NodeProbe for Silent {
        async fn facts(&self) -> NodeFacts {
            self.0.fetch_add(1, Ordering::Relaxed);
            NodeFacts::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_just_begun_to_take_no_pod_is_looked_at_again_soon_and_not_for_ever() {
        let (probe, api, stop) = (Silent::default(), FakeNode::new(Migration::new("m", MigrationSpec::default())), CancellationToken::new());
        let pushes = pushes();
        let looks = |seconds| {
            let kept = keep(
                Parts { probe: &probe, api: &api, bus: &Away, clock: &SystemClock, meter: None, pushes: &pushes, staying: &Vec::new },
                stop.clone(),
            );
            async move {
                let _ = tokio::time::timeout(Duration::from_secs(seconds), kept).await;
            }
        };
        looks(9).await;
        assert_eq!(probe.0.swap(0, Ordering::Relaxed), 5, "every two seconds");
        looks(60).await;
        assert_eq!(probe.0.load(Ordering::Relaxed), 7, "after ten seconds as seldom as ever");
    }

    /// A node whose gate is taken away after some looks at it.
    struct Losing(Silent, AtomicUsize);

    #[async_trait]
    impl NodeProbe for Losing {
        async fn facts(&self) -> NodeFacts {
            self.0.facts().await
        }
        async fn is_gated(&self) -> Option<bool> {
            // The first two answers are those of a runtime that is being restarted.
            let look = self.1.fetch_add(1, Ordering::Relaxed);
            (look >= 2).then_some(true)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_that_is_another_than_was_said_is_told_before_the_next_profile_is_due() {
        let probe = Losing(Silent::default(), AtomicUsize::default());
        let begun = tokio::time::Instant::now();
        until_due(&probe, false, EVERY).await;
        assert_eq!(begun.elapsed(), GATE_LOOK * 3);
        until_due(&probe, true, EVERY).await;
        assert_eq!(begun.elapsed(), GATE_LOOK * 3 + EVERY);
    }

    #[tokio::test]
    async fn a_silent_node_says_why_it_takes_no_pod() {
        let status = observe(&Silent::default(), &SystemClock, &pushes()).await;
        assert_eq!((status.push_address.as_str(), status.pull_address.as_str()), ("10.0.0.1:5786", PULL_ADDRESS));
        assert_eq!((status.max_bytes_per_migration, status.post_copy), (Some(1 << 30), true));
        assert!(status.lanes.iter().all(|lane| !lane.available && !lane.message.is_empty()));
        assert!(!status.gate.installed && status.observed_at.is_some());
    }
}
