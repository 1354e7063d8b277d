//! A model checker that drives the product's own decisions: `domain::migration::advance`, `domain::attest`, `domain::verdict`, `domain::tasks`,
//! `domain::resolution`, `domain::preflight`, `domain::admission`, `gate::rule` and the CRDs' CEL rules are called, not copied; what the shells around them
//! do is mirrored write by write, and a crash may fall between any two writes.
//!
//! A plain `cargo test` checks a few seconds' worth; `make test` optimises the search and checks the small size (`.build/model`, `MODEL_SIZE=small`); with
//! `MODEL_MINUTES` it goes as deep as that time allows (`make model`: an hour).
//! `MODEL_TRY="containers faults naps policy phase"` explores one size and tells the stories of what it finds.

// A model is one world with its steps: they all belong to it, ask it in one way, and count what they do.
#![allow(clippy::unused_self, clippy::type_complexity, clippy::struct_excessive_bools, clippy::similar_names)]
// It is a test: what cannot be read or compiled ends it.
#![allow(clippy::panic)]

mod action;
mod cel;
mod decide;
mod destination;
mod explore;
mod faults;
mod filling;
mod intern;
mod kubelets;
mod manager;
mod model;
mod mutations;
mod objects;
mod owners;
mod properties;
mod rules;
mod sizes;
mod source;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Mutex,
    time::{Duration, Instant},
};

use stateright::{Checker as _, Expectation, Model as _};

use action::Action;
use explore::{Explored, explore};
use model::Drover;
use mutations::Mutation;
use sizes::Scale;

/// No property breaks, from everywhere it ends or is held with a reason, and every end that should be reachable is.
#[test]
fn the_protocol_is_safe_and_ends() {
    let queue = Mutex::new(sizes::all().into_iter());
    let (failures, reached) = (Mutex::new(String::new()), Mutex::new(BTreeSet::new()));
    let work = || {
        while let Some((model, bounds)) = next(&queue) {
            let found = explore(&model, bounds);
            let told = tell(&model, &found);
            println!("{told}");
            for (property, trace) in &found.broken {
                failures.lock().expect("no worker panics").push_str(&story(&model, property, trace));
            }
            reached.lock().expect("no worker panics").extend(found.reached.iter().copied());
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    println!("model: the product was asked {} different questions", decide::questions());
    let failures = failures.into_inner().expect("no worker panics");
    assert!(failures.is_empty(), "{failures}");
    if sizes::scale() == Scale::Tiny {
        return;
    }
    let reached = reached.into_inner().expect("no worker panics");
    let wanted: BTreeSet<_> =
        properties::of_states().into_iter().filter(|property| property.expectation == Expectation::Sometimes).map(|property| property.name).collect();
    assert_eq!(reached, wanted, "every end is reachable");
}

fn next<T>(queue: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    queue.lock().expect("no worker panics").next()
}

/// Each rule off, one at a time: something must break. What is not found is a rule that nothing needs, or a model that is blind.
#[test]
fn every_rule_is_needed() {
    let alone = mutations::ALL.iter().map(|mutation| (mutation, None));
    let rows = alone.chain(mutations::TWICE.iter().map(|(mutation, why)| (mutation, Some(*why))));
    let rows: Vec<_> = rows.filter(|(mutation, _)| sizes::scale() > Scale::Tiny || mutation.is_quick()).collect();
    println!("{:<72} {:<74} {:>5} {:>6}", "rule that is off", "what breaks", "steps", "faults");
    let mut missed = String::new();
    for row in in_parallel(&rows, |(mutation, why)| row(mutation, *why)) {
        match row {
            Ok(row) => println!("{row}"),
            Err(problem) => _ = writeln!(missed, "{problem}"),
        }
    }
    println!("{}", mutations::NOT_HERE);
    assert!(missed.is_empty(), "{missed}");
}

/// A row of the table; for what is kept twice, why nothing breaks.
fn row(mutation: &Mutation, twice: Option<&str>) -> Result<String, String> {
    let name = mutation.masked_by.map_or(mutation.name.to_owned(), |(by, _)| format!("{} [masked by {by}]", mutation.name));
    match (mutation.run(), twice) {
        (Some(broken), None) => {
            let mut row = format!("{name:<72} {:<74} {:>5} {:>6}", broken.property, broken.trace.len(), mutation.faults);
            if sizes::scale() == Scale::Deep {
                mutation.says_too_much(broken.property, 2_000_000)?.iter().for_each(|other| _ = write!(row, "\n  {other}"));
            }
            Ok(row)
        }
        (None, None) => Err(format!("{name}: nothing breaks without it")),
        (Some(broken), Some(_)) => Err(format!("{name}: breaks {} by itself, it has a row of its own now", broken.property)),
        (None, Some(why)) => Ok(format!("{name}: nothing breaks, since {why}")),
    }
}

/// Two at a time, with the answers in the order of the questions.
fn in_parallel<T: Sync, R: Send>(items: &[T], answer: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (queue, answers) = (Mutex::new(items.iter().enumerate()), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some((number, item)) = next(&queue) {
            let answer = answer(item);
            answers.lock().expect("no worker panics").insert(number, answer);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    answers.into_inner().expect("no worker panics").into_values().collect()
}

/// The search of this test and stateright's own see the same states, and stateright finds nothing wrong either.
#[test]
fn statewrights_own_checker_agrees() {
    let model = sizes::smallest();
    let began = Instant::now();
    let checker = model.checker().threads(1).spawn_bfs().join();
    for property in properties::all().iter().filter(|property| property.expectation == Expectation::Always) {
        checker.assert_no_discovery(property.name);
    }
    let ours = explore(&model, explore::Bounds { states: usize::MAX, time: Duration::MAX, stop: explore::Stop::Never });
    assert_eq!((checker.unique_state_count(), checker.max_depth()), (ours.states, ours.depth as usize + 1));
    println!("model: stateright's own breadth-first search saw the same {} states in {:.1} s", ours.states, began.elapsed().as_secs_f32());
}

fn tell(model: &Drover, found: &Explored) -> String {
    let whole = if found.complete { "all of them" } else { "cut off" };
    let mut text = format!("model {model}: {} states ({whole}), depth {}, {:.1} s", found.states, found.depth, found.took.as_secs_f32());
    let at_rest: usize = found.rest.values().sum();
    let held: usize = found.rest.iter().filter(|(rest, _)| matches!(rest, properties::Rest::Held(_))).map(|(_, count)| count).sum();
    let share = |part: usize, whole: usize| {
        100.0 * f64::from(u32::try_from(part).unwrap_or(u32::MAX)) / f64::from(u32::try_from(whole.max(1)).unwrap_or(u32::MAX))
    };
    _ = write!(text, "\n  at rest {at_rest}, of them held {held} ({:.1} %):", share(held, at_rest));
    found.rest.iter().for_each(|(rest, count)| _ = write!(text, " {rest} {count},"));
    _ = write!(text, " a hold is the only exit of {:.2} % of the states under way", share(found.hold_only, found.under_way));
    text
}

fn story(model: &Drover, property: &str, trace: &[Action]) -> String {
    let mut text = format!("\n{property} is broken ({model}):\n");
    trace.iter().enumerate().for_each(|(i, action)| _ = writeln!(text, "  {:>2}. {action}", i + 1));
    text
}
