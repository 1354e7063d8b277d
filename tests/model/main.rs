//! A model checker that drives the product's own decisions: `domain::migration::advance`, `domain::attest`, `domain::verdict`, `domain::tasks`,
//! `domain::admission` and `gate::rule` are called, not copied; what the shells around them do is mirrored write by write.

mod decide;
mod destination;
mod intern;
mod manager;
mod model;
mod nodes;
mod objects;
mod properties;
mod rules;
mod source;
mod state;

use std::time::Instant;

use drover::api::Phase;
use stateright::{Checker as _, Model as _};

use model::Drover;
use rules::Off;

fn check(name: &str, model: Drover) {
    let began = Instant::now();
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, depth {}, {:.1} s, {} questions",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f32(),
        decide::questions()
    );
    for (property, path) in checker.discoveries() {
        println!("  {property}");
        for action in path.into_actions() {
            println!("    {action:?}");
        }
    }
}

#[test]
fn no_fault() {
    for n in [1, 2] {
        check("no fault", Drover { n, faults: 0, naps: 0, from: Phase::Pending, off: Off::default() });
    }
}
