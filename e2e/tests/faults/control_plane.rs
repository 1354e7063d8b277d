//! An API server that is away, a manager that sleeps, a webhook that nobody reaches.

use std::{fs, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;

use drover::api::MigrationSpec;

use crate::support::{
    Namespace, SYSTEM,
    agents::{Part, ready, signal_all},
    counter::{assert_contiguous, lines},
    lab,
    leftovers::AFTER_SWEEP,
    migrations::to,
    moving::{Moment, Moving},
    webhook, with_namespace,
};

/// How long the API server is away.
const AWAY: Duration = Duration::from_mins(1);

/// Ends the API server; it is started again when dropped, with the parts that give up without it.
struct ApiServerAway;

impl ApiServerAway {
    #[track_caller]
    fn now() -> Self {
        lab::lab(&["stop-part", "apiserver"]);
        Self
    }
}

impl Drop for ApiServerAway {
    fn drop(&mut self) {
        drop(lab::try_lab(&["up"]));
    }
}

/// Name of the manager's pod that leads, and its processes.
async fn leader(namespace: &Namespace) -> (String, Vec<u32>) {
    let leases: Api<Lease> = Api::namespaced(namespace.client.clone(), SYSTEM);
    let holder = leases.get("drover-manager").await.unwrap().spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
    let of_holder = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| !holder.is_empty() && variable.ends_with(holder.as_bytes()))
    };
    let pids = Part::Managers.pids().into_iter().filter(of_holder).collect();
    (holder, pids)
}

/// R21, end to end: what a manager has decided before it slept is refused when it wakes, since another has gone on meanwhile.
#[test]
fn a_manager_that_sleeps_through_a_change_of_leaders_does_no_harm() {
    with_namespace("asleep", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 16, MigrationSpec { freeze_budget_seconds: 60, ..to("c", "n2") }).await;
        moving.hold(Moment::BeforeVote).await;
        let (slept, pids) = leader(&namespace).await;
        assert_eq!(pids.len(), 1, "the leader is {slept:?}");
        signal_all(&pids, "STOP");
        let wakes = lab::Restore(|| signal_all(&pids, "CONT"));
        moving.go_on();
        moving.migrates().await;
        let (leads, _) = leader(&namespace).await;
        assert_ne!(leads, slept, "another manager leads");
        drop(wakes);
        // Woken, it believes for one step that it leads.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let after = namespace.migrations().get(&moving.name()).await.unwrap();
        assert_eq!(after.status, moving.migration.status, "nothing was written any more");
        namespace.assert_one_runs("n2");
        ready();
    });
}

/// The claim is made without the webhook; the manager sees that nobody has rewritten the images, and does it itself.
#[test]
fn a_webhook_that_is_away_at_the_claim_does_not_keep_the_pod_from_moving() {
    with_namespace("no-webhook", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
        moving.hold(Moment::BeforeVote).await;
        let away = webhook::nobody_answers(&namespace.client).await;
        moving.go_on();
        moving.migrates().await;
        drop(away);
    });
}

mod slow {
    use super::*;

    /// The source thaws by itself when its budget is over, and counts on while nobody can be asked.
    #[test]
    fn an_api_server_that_is_away_before_the_vote_rolls_back() {
        with_namespace("api-frozen", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 16, MigrationSpec { freeze_budget_seconds: 15, ..to("c", "n2") }).await;
            moving.hold(Moment::BeforeVote).await;
            let frozen_at = moving.source.lines().last().unwrap().at;
            let away = ApiServerAway::now();
            moving.go_on();
            tokio::time::sleep(AWAY).await;
            drop(away);
            ready();
            moving.rolls_back("", AFTER_SWEEP).await;
            let lines = lines(&namespace.logs("c", "c").await);
            assert_contiguous(&lines);
            assert!(lines.iter().any(|line| (frozen_at + 15_000..frozen_at + 30_000).contains(&line.at)), "it was thawed within its budget");
        });
    }

    fn away_after_the_vote(name: &str, moment: Moment) {
        with_namespace(name, |namespace| async move {
            let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
            moving.hold(moment).await;
            let away = ApiServerAway::now();
            moving.go_on();
            tokio::time::sleep(AWAY).await;
            drop(away);
            ready();
            moving.migrates().await;
        });
    }

    #[test]
    fn an_api_server_that_is_away_after_the_vote_only_delays_the_move() {
        away_after_the_vote("api-voted", Moment::BeforeRelease);
    }

    #[test]
    fn an_api_server_that_is_away_after_the_release_only_delays_the_move() {
        away_after_the_vote("api-released", Moment::Taken);
    }
}
