//! Manager, agents and gate as they are built, in a simulated cluster: ports, clock and chance come from a seed, and one seed is one schedule of
//! steps and faults that replays exactly. See `docs/simulation.md`.
//!
//! - `DROVER_SIM_SEEDS` (how many), `DROVER_SIM_START` (the first): `make simulate` runs many.
//! - `DROVER_SIM_KIND=SameName` (or `NewName`, `Gateless`) leaves the seeds of the other kinds out.
//! - `DROVER_SIM_SEED=n cargo test --test simulation -- --nocapture one_seed` tells the story of one.
#![allow(missing_docs, clippy::struct_excessive_bools, clippy::ref_option)]

mod agent_api;
mod api;
mod cluster;
mod environment;
mod faults;
mod kind;
mod kubelet;
mod mutation;
mod node;
mod process;
mod registry;
mod rules;
mod run;
mod runtime;
mod runtime_lane;
mod start;
mod truth;
mod world;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use drover::api::{Attestation, Migration};
use kube::CustomResourceExt as _;

use kind::Kind;
use mutation::Mutation;
use run::{Report, run};

/// Schedules of an ordinary run, a third of each kind.
const SEEDS: u64 = 60;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds, of one kind where `only` names it, on every core until one fails, all have run, or the time is over; in the order of the seeds.
fn run_seeds(first: u64, count: u64, limit: Duration, mutation: Mutation, only: Option<Kind>, to_the_end: bool) -> (Vec<Report>, Option<Report>) {
    let (next, failed_at) = (AtomicU64::new(first), AtomicU64::new(u64::MAX));
    let began = Instant::now();
    let work = || {
        let mut reports = vec![];
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count || seed > failed_at.load(Ordering::Relaxed) || began.elapsed() > limit {
                return reports;
            }
            if only.is_some_and(|only| only != Kind::of(seed)) {
                continue;
            }
            let mut report = run(seed, mutation);
            if report.broken.is_some() {
                if !to_the_end {
                    failed_at.fetch_min(seed, Ordering::Relaxed);
                }
            } else {
                report.story.clear();
            }
            reports.push(report);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut reports: Vec<Report> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
    });
    reports.sort_by_key(|report| report.seed);
    let failed = reports.iter().find(|report| report.broken.is_some()).cloned();
    (reports, failed)
}

fn ends<'a>(reports: impl Iterator<Item = &'a Report>) -> BTreeMap<&'a str, u64> {
    let mut ends = BTreeMap::new();
    reports.flat_map(|report| report.ends.values()).for_each(|end| *ends.entry(end.as_str()).or_default() += 1);
    ends
}

#[test]
fn nothing_breaks() {
    let (first, count) = (number("DROVER_SIM_START").unwrap_or(1), number("DROVER_SIM_SEEDS").unwrap_or(SEEDS));
    let limit = Duration::from_secs(number("DROVER_SIM_SECONDS").unwrap_or(600));
    let named = std::env::var("DROVER_SIM_KIND").ok();
    let only = named.map(|name| Kind::ALL.into_iter().find(|kind| format!("{kind:?}") == name).expect("DROVER_SIM_KIND names a kind"));
    let began = Instant::now();
    let (reports, failed) = run_seeds(first, count, limit, Mutation::None, only, true);
    let calls: u64 = reports.iter().map(|report| report.calls).sum();
    let seconds = began.elapsed().as_secs_f64();
    println!("{} schedules from seed {first}, {calls} port calls, {seconds:.1} s", reports.len());
    for kind in Kind::ALL {
        let of_kind = reports.iter().filter(|report| report.kind == kind);
        println!("{kind:?}: {} schedules; migrations ended: {:?}", of_kind.clone().count(), ends(of_kind));
    }
    for report in &reports {
        report.broken.iter().for_each(|what| println!("seed {}: {what}", report.seed));
    }
    if let Some(failed) = failed {
        panic!("{}", failed.tell());
    }
    // Holds are rare.
    let (ends, within) = (ends(reports.iter()), reports.len());
    for (end, among) in [("Migrated", 30), ("RolledBack", 30), ("Fallback", 90), ("Failed", 100), ("ColdStarted", 3000), ("Held", 3000)] {
        let is_found = only.is_some() || within < among || ends.keys().any(|found| found.starts_with(end));
        assert!(is_found, "no schedule ends as {end}: {ends:?}");
    }
}

#[test]
fn one_seed() {
    let seed = number("DROVER_SIM_SEED");
    let report = run(seed.unwrap_or(1), Mutation::None);
    if seed.is_some() {
        println!("{}", report.tell());
    }
    assert_eq!(report.broken, None);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 1..=6 {
        let (one, other) = (run(seed, Mutation::None), run(seed, Mutation::None));
        assert_eq!((one.story, one.calls), (other.story, other.calls), "seed {seed}");
    }
}

fn finds(mutation: Mutation, only: Option<Kind>, invariants: &[&str]) {
    let (reports, failed) = run_seeds(1, 2000, Duration::from_mins(5), mutation, only, false);
    let (seed, found) = failed.and_then(|report| Some((report.seed, report.broken?))).unwrap_or_default();
    assert!(!found.is_empty(), "{} seeds did not find {mutation:?}", reports.len());
    println!("{mutation:?} is found by seed {seed}: {found}");
    assert!(invariants.iter().any(|invariant| found.contains(invariant)), "{mutation:?} is found for another reason: {found}");
}

#[test]
fn the_simulation_finds_a_missing_gate() {
    finds(Mutation::NoGate, None, &["I1", "I4", "I8"]);
}

#[test]
fn the_simulation_finds_a_missing_gate_where_the_source_goes_first() {
    finds(Mutation::NoGate, Some(Kind::SameName), &["I1", "I4", "I8", "R8"]);
}

#[test]
fn the_simulation_finds_a_kubelet_that_starts_what_is_deleted() {
    finds(Mutation::KubeletStartsWhatIsDeleted, Some(Kind::Gateless), &["R8", "I1"]);
}

#[test]
fn the_simulation_finds_writes_that_are_not_compared() {
    finds(Mutation::NoCompareAndSwap, None, &["I3", "I4", "R2", "I1", "I2"]);
}

#[test]
fn the_simulation_finds_journals_that_are_not_durable() {
    finds(Mutation::JournalsAreNotDurable, None, &["R2", "I1", "I2", "I6", "is left"]);
}

#[test]
fn the_simulation_finds_markers_that_are_not_durable() {
    finds(Mutation::MarkersAreNotDurable, Some(Kind::NewName), &["I1", "I2", "I4", "I8", "I6", "R8"]);
}

#[test]
fn the_simulated_api_server_knows_every_rule() {
    let crd = |crd| serde_json::to_value(crd).unwrap_or_default();
    for (in_crd, mut known) in [
        (rules::messages_in(&crd(Migration::crd())), rules::MIGRATION.iter().map(|(message, _)| *message).collect::<Vec<_>>()),
        (rules::messages_in(&crd(Attestation::crd())), rules::ATTESTATION.iter().map(|(message, _)| *message).collect::<Vec<_>>()),
    ] {
        known.sort_unstable();
        assert_eq!(in_crd, known, "the CRD's rules have changed: change tests/simulation/rules.rs with them");
    }
}
