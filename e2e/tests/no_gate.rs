//! Nodes without the gate: nothing there keeps a container from being started, so the source goes before the release (R8), and what nobody can prove there
//! is held (R6).

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{HTTPGetAction, Probe},
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
};

use drover::{
    api::{Migration, Outcome, Phase},
    domain::keys,
};

use crate::{
    owners::made,
    support::{
        Namespace,
        agents::Part,
        counter::{Follower, assert_contiguous, assert_went_on},
        eventually, lab,
        migrations::{assert_outcome, replacement, status, to},
        pods::counter,
        with_namespace,
    },
};

/// A profile is written every 30 s.
const PROFILE: Duration = Duration::from_secs(75);

/// Takes the gate off a node, as `drover node remove` does, until this is dropped.
struct WithoutGate(&'static str);

impl WithoutGate {
    fn on(node: &'static str) -> Self {
        let without = Self(node);
        lab::on_node(node, "drover node remove --apply");
        without.restarted("false");
        without
    }

    /// containerd reads its settings at its start; the agent sees what it has read.
    fn restarted(&self, gated: &str) {
        lab::lab(&["restart", self.0, "containerd"]);
        eventually(PROFILE, || {
            let path = "jsonpath={.status.gate.installed}";
            let shown = lab::try_lab(&["kubectl", "get", "nodeprofile", self.0, "-o", path]).unwrap_or_default();
            (shown.trim() != gated).then(|| format!("the gate of {} is {gated}, not {shown:?}", self.0))
        });
    }
}

impl Drop for WithoutGate {
    fn drop(&mut self) {
        lab::on_node(self.0, "drover node setup --apply");
        self.restarted("true");
    }
}

async fn counting(namespace: &Namespace, name: &str, node: &str) -> Follower {
    namespace.run(&counter(name, node, 4, 50)).await;
    let follower = namespace.follow(name, "c").await;
    follower.beyond(5).await;
    follower
}

/// Moves a counter and holds it to its promise.
async fn moves(namespace: &Namespace, pod: &str, before: &Follower, node: &str) -> (String, Follower) {
    let migration = namespace.migrate(pod, node).await;
    assert_outcome(&migration, Outcome::Migrated);
    let status = status(&migration);
    assert_eq!(status.source_first, Some(true));
    assert!(status.phases.iter().any(|timing| timing.phase == Phase::SourceDeleting), "{:?}", status.phases);
    let copy = replacement(&migration);
    let after = namespace.follow(&copy, "c").await;
    after.beyond(before.last() + 5).await;
    assert_went_on(&before.lines(), &after.lines(), &migration);
    namespace.assert_no_leftovers(&migration).await;
    (copy, after)
}

#[test]
fn a_pod_moves_from_and_to_a_node_without_the_gate_source_first() {
    with_namespace("no-gate", |namespace| async move {
        let _without = WithoutGate::on("n1");
        let before = counting(&namespace, "c", "n1").await;
        let (copy, after) = moves(&namespace, "c", &before, "n2").await;
        moves(&namespace, &copy, &after, "n1").await;
    });
}

/// R6: what can be seen there proves at best that nothing runs any more.
#[test]
fn a_restore_that_fails_where_nobody_can_prove_it_is_held_until_a_person_sends_the_source_on() {
    const CONF: &str = "/etc/criu/runc.conf";
    with_namespace("no-gate-held", |namespace| async move {
        let _without = WithoutGate::on("n2");
        let source = counting(&namespace, "c", "n1").await;
        let mended = lab::Restore(|| drop(lab::on_node("n2", &format!("mv {CONF}.kept {CONF}"))));
        lab::on_node("n2", &format!("mkdir -p /etc/criu; touch {CONF}; cp {CONF} {CONF}.kept && echo 'root /nonexistent' >>{CONF}"));
        let migration = namespace.make(to("c", "n2")).await;
        let name = migration.name_any();
        let is_held = |m: &Migration| m.name_any() == name && status(m).message.contains("--prefer source");
        let held = namespace.first("a hold with its command", is_held).await;
        assert_eq!((held.phase(), held.verdict()), (Phase::Restoring, None), "{}", status(&held).message);
        drop(mended);
        let decision = Patch::Merge(serde_json::json!({"metadata": {"annotations": {keys::RESOLVE: "source"}}}));
        namespace.migrations().patch(&name, &PatchParams::default(), &decision).await.unwrap();
        let migration = namespace.until_done(&name).await;
        assert_outcome(&migration, Outcome::RolledBack);
        assert!(status(&migration).message.contains("restored on the source node n1 from the kept archive"), "{}", status(&migration).message);
        let pod = namespace.pods().get("c").await.unwrap();
        assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("n1"));
        let after = namespace.follow("c", "c").await;
        after.beyond(source.last() + 5).await;
        assert_went_on(&source.lines(), &after.lines(), &migration);
        namespace.assert_no_leftovers(&migration).await;
    });
}

#[test]
fn a_failure_before_the_source_is_deleted_thaws_it_there_too() {
    with_namespace("no-gate-undone", |namespace| async move {
        let _without = WithoutGate::on("n1");
        let source = counting(&namespace, "c", "n1").await;
        let registry = Part::Registry("n2");
        let migration = namespace.make(drover::api::MigrationSpec { freeze_budget_seconds: 8, ..to("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::Freezing).await;
        let goes_on = lab::Restore(move || registry.signal("CONT"));
        registry.signal("STOP");
        namespace.until_phase(&migration.name_any(), Phase::Finishing).await;
        drop(goes_on);
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::RolledBack);
        source.more(5).await;
        assert_contiguous(&source.lines());
        namespace.assert_no_leftovers(&migration).await;

        // R9: a probe over the network would start it again while it is frozen.
        let mut probed = counter("probed", "n1", 0, 50);
        let http_get = Some(HTTPGetAction { port: IntOrString::Int(1), ..HTTPGetAction::default() });
        let patient = Probe { http_get, initial_delay_seconds: Some(3600), failure_threshold: Some(1000), ..Probe::default() };
        probed.spec.as_mut().unwrap().containers[0].liveness_probe = Some(patient);
        namespace.run(&probed).await;
        let refused = namespace.annotate("probed", keys::MIGRATE_TO, "n2").await.unwrap_err();
        assert!(refused.contains("livenessProbe") && refused.contains("has no gate"), "{refused}");
    });
}

mod slow {
    use super::*;

    /// The source would go first, and its ReplicaSet would make another pod.
    #[test]
    fn a_deployments_pod_stays_where_a_node_has_no_gate_and_is_not_frozen() {
        with_namespace("no-gate-owned", |namespace| async move {
            let pod = made::<Deployment>(&namespace, "Deployment", 1).await.remove(0);
            let source = namespace.counts(&pod).await;
            let _without = WithoutGate::on("n2");
            let migration = namespace.migrate(&pod.name_any(), "n2").await;
            assert_outcome(&migration, Outcome::RolledBack);
            let status = status(&migration);
            assert!(status.message.contains("node n2 has no gate") && status.message.contains("drover node setup --apply"), "{}", status.message);
            assert!(!status.phases.iter().any(|timing| timing.phase == Phase::Freezing), "{:?}", status.phases);
            source.more(5).await;
            assert_contiguous(&source.lines());
            namespace.until_ready(1).await;
            assert_eq!(namespace.pods_made("ReplicaSet"), 1, "the first pod alone");
        });
    }
}
