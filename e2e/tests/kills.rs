//! Any process of Drover's may be killed in any phase before the release; the migration still ends correctly, with exactly one copy running.

use kube::{ResourceExt as _, api::ListParams};

use drover::api::{Outcome, Phase};

use crate::support::{
    agents::{Part, ready, signal_all},
    counter::{assert_contiguous, assert_went_on},
    migrations::{replacement, status, to},
    pods::counter,
    with_namespace,
};

/// Phases before the release.
const PHASES: [Phase; 6] = [Phase::Preflight, Phase::Preparing, Phase::Freezing, Phase::Checkpointing, Phase::Transferring, Phase::AwaitingReadiness];

/// Kills the victim once in each phase, with a pod and a migration of its own each time.
fn killed_in_each_phase(name: &str, victim: Part) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for phase in PHASES {
        killed(name, victim, phase);
    }
}

fn killed(name: &str, victim: Part, phase: Phase) {
    with_namespace(&format!("{name}-{}", phase.as_str().to_lowercase()), |namespace| async move {
        ready();
        namespace.run(&counter("c", "n1", 16, 50)).await;
        let source = namespace.follow("c", "c").await;
        source.beyond(3).await;
        // Found before: the phases are short.
        let pids = victim.pids();
        let migration = namespace.make(to("c", "n2")).await;
        let seen = namespace.until_phase(&migration.name_any(), phase).await;
        signal_all(&pids, "KILL");
        let migration = namespace.until_done(&migration.name_any()).await;
        let status = status(&migration);
        assert!(victim.pids().iter().all(|pid| !pids.contains(pid)), "{victim:?} was killed");
        eprintln!(
            "{victim:?} killed in {} (asked for {phase}): {:?}, frozen {:?} ms: {}",
            seen.phase(),
            status.outcome,
            status.frozen_millis,
            status.message
        );
        match status.outcome {
            Some(Outcome::Migrated) => {
                let copy = namespace.follow(&replacement(&migration), "c").await;
                copy.beyond(source.last() + 3).await;
                assert_went_on(&source.lines(), &copy.lines(), &migration);
            }
            Some(Outcome::RolledBack) => {
                source.more(5).await;
                assert_contiguous(&source.lines());
            }
            // The preflight waits a bounded time for the source's agent; nothing was touched by then.
            Some(Outcome::Failed) if phase == Phase::Preflight => {
                source.more(5).await;
                assert_contiguous(&source.lines());
            }
            other => panic!("ended as {other:?}: {}", status.message),
        }
        let running = namespace.pods().list(&ListParams::default()).await.unwrap().items;
        assert_eq!(running.len(), 1, "exactly one copy is there: {:?}", running.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>());
        namespace.assert_no_leftovers(&migration).await;
        victim.replace_pods();
    });
}

#[test]
fn managers_killed_in_each_phase_before_the_release() {
    killed_in_each_phase("managers", Part::Managers);
}

#[test]
fn the_sources_agent_killed_in_each_phase_before_the_release() {
    killed_in_each_phase("source", Part::Agent("n1"));
}

#[test]
fn the_destinations_agent_killed_in_each_phase_before_the_release() {
    killed_in_each_phase("destination", Part::Agent("n2"));
}
