//! The node's profile: looked at through the probe, judged in the domain, completed with what only the agent knows.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use tokio_util::sync::CancellationToken;

use crate::{
    api::node_profile::NodeProfileStatus,
    domain::{keys::PULL_ADDRESS, lanes},
    ports::{AgentApi, Clock, NodeProbe},
};

/// How often the profile is written; preflight takes one of four times this age for a dead agent's.
const EVERY: Duration = Duration::from_secs(30);
/// How soon a profile that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps this node's profile until cancelled.
pub async fn keep(probe: &dyn NodeProbe, api: &dyn AgentApi, clock: &dyn Clock, push_address: &str, stop: CancellationToken) {
    loop {
        let mut status = observe(probe, clock, push_address).await;
        status.conditions = vec![Condition {
            type_: "Ready".into(),
            status: "True".into(),
            reason: "AgentServes".into(),
            message: String::new(),
            last_transition_time: Time(clock.now()),
            observed_generation: None,
        }];
        let pause = match api.write_profile(&status).await {
            Ok(()) => EVERY,
            Err(error) => {
                tracing::warn!(%error, "the node's profile is written again soon");
                RETRY
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// What to write into this node's NodeProfile now; conditions are the caller's. `push_address` is `host:port` of the push door.
pub async fn observe(probe: &dyn NodeProbe, clock: &dyn Clock, push_address: &str) -> NodeProfileStatus {
    let facts = probe.facts().await;
    NodeProfileStatus {
        push_address: push_address.to_owned(),
        pull_address: PULL_ADDRESS.to_owned(),
        observed_at: Some(Time(clock.now())),
        ..lanes::profile(facts)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::{domain::lanes::NodeFacts, ports::SystemClock};

    struct Silent;

    #[async_trait]
    impl NodeProbe for Silent {
        async fn facts(&self) -> NodeFacts {
            NodeFacts::default()
        }
    }

    #[tokio::test]
    async fn a_silent_node_says_why_it_takes_no_pod() {
        let status = observe(&Silent, &SystemClock, "10.0.0.1:5786").await;
        assert_eq!((status.push_address.as_str(), status.pull_address.as_str()), ("10.0.0.1:5786", PULL_ADDRESS));
        assert!(status.lanes.iter().all(|lane| !lane.available && !lane.message.is_empty()));
        assert!(!status.gate.installed && status.observed_at.is_some());
    }
}
