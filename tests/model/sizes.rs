//! How large the model is: what a plain `cargo test` can afford, what `make test` can, and what an hour can.

use std::time::Duration;

use drover::api::{Phase, migration::InDoubt};

use crate::{
    explore::{Bounds, Stop},
    filling::Memory,
    model::{Drover, Order},
    owners::Owner,
    rules::Off,
};

/// `small`: the size of `make test`, for an optimised search. Without it, and without [`MINUTES`], a few seconds' worth.
const SIZE: &str = "MODEL_SIZE";
/// Minutes that the deep size may take.
const MINUTES: &str = "MODEL_MINUTES";
/// One size by hand: "containers faults naps policy phase", and perhaps "order seconds".
const TRY: &str = "MODEL_TRY";
/// Some five gigabytes, as measured (24 million took a little more); two searches run at once.
const MOST_STATES: usize = 24_000_000;

/// How much time there is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scale {
    Tiny,
    Small,
    Deep,
}

pub fn scale() -> Scale {
    match (minutes(), std::env::var(SIZE).as_deref()) {
        (Some(_), _) => Scale::Deep,
        (None, Ok("small")) => Scale::Small,
        (None, Ok(other)) => panic!("{SIZE}={other}: it can be small, or not be set"),
        (None, Err(_)) => Scale::Tiny,
    }
}

fn minutes() -> Option<u64> {
    std::env::var(MINUTES).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{MINUTES}={text}: a number of minutes is needed")))
}

const fn size(n: usize, faults: u8, naps: u8, from: Phase, in_doubt: InDoubt) -> Drover {
    Drover {
        n,
        faults,
        naps,
        from,
        until: None,
        falls_back: false,
        impatient: false,
        in_doubt,
        order: Order::CopyFirst,
        gates: [true; 2],
        owner: None,
        memory: Memory::AtOnce,
        off: Off::NONE,
    }
}

/// Small enough for two searches.
pub const fn smallest() -> Drover {
    size(1, 0, 0, Phase::Restoring, InDoubt::HoldFrozen)
}

const fn until(phase: Phase, model: Drover) -> Drover {
    Drover { until: Some(phase), ..model }
}

const fn gates(gates: [bool; 2], model: Drover) -> Drover {
    Drover { gates, ..model }
}

const fn owned(owner: Owner, model: Drover) -> Drover {
    Drover { owner: Some(owner), ..model }
}

const fn same_name(model: Drover) -> Drover {
    Drover { order: Order::SameName, ..model }
}

const fn lazily(model: Drover) -> Drover {
    Drover { memory: Memory::Lazily, ..model }
}

const fn post_copy(model: Drover) -> Drover {
    Drover { memory: Memory::FromTheSource, ..model }
}

/// What is explored, the longest first.
pub fn all() -> Vec<(Drover, Bounds<'static>)> {
    let bounds = |seconds| Bounds { states: MOST_STATES, time: Duration::from_secs(seconds), stop: Stop::Never };
    if let Ok(text) = std::env::var(TRY) {
        let seconds = text.split_whitespace().nth(6).and_then(|seconds| seconds.parse().ok()).unwrap_or(600);
        return vec![(by_hand(&text), bounds(seconds))];
    }
    let whole = |models: &[Drover]| -> Vec<_> { models.iter().map(|model| (*model, Bounds { time: Duration::MAX, ..bounds(0) })).collect() };
    // Every end that is possible without a fault.
    let tiny = [smallest(), size(1, 1, 0, Phase::Finishing, InDoubt::PreferDestination), lazily(smallest()), post_copy(smallest())];
    let minutes = match (scale(), minutes()) {
        (Scale::Deep, Some(minutes)) => minutes,
        (Scale::Small, _) => return whole(&small()),
        _ => return whole(&tiny),
    };
    // Two at a time.
    let deep = deep();
    let each = minutes * 60 * 2 / deep.len() as u64;
    let deep = deep.into_iter().map(|model| (model, bounds(each)));
    // Whatever the time is, every end is reached.
    deep.chain(whole(&small())).collect()
}

/// What `make test` can afford.
fn small() -> Vec<Drover> {
    use {InDoubt as D, Phase as P};
    vec![
        post_copy(size(1, 1, 0, P::Restoring, D::PreferSource)),
        until(P::Restoring, post_copy(size(1, 1, 0, P::Checkpointing, D::HoldFrozen))),
        post_copy(size(2, 0, 0, P::Restoring, D::HoldFrozen)),
        lazily(size(1, 1, 0, P::Restoring, D::PreferDestination)),
        lazily(same_name(size(1, 0, 0, P::SourceDeleting, D::HoldFrozen))),
        size(1, 1, 0, P::Restoring, D::HoldFrozen),
        until(P::Restoring, size(1, 1, 0, P::Checkpointing, D::HoldFrozen)),
        size(2, 0, 0, P::Restoring, D::HoldFrozen),
        size(1, 0, 1, P::AwaitingReadiness, D::HoldFrozen),
        size(1, 0, 0, P::Restoring, D::PreferDestination),
        size(1, 0, 0, P::Pending, D::PreferSource),
        same_name(size(1, 0, 0, P::SourceDeleting, D::HoldFrozen)),
        until(P::Finishing, same_name(size(1, 1, 0, P::SourceDeleting, D::HoldFrozen))),
        Drover { falls_back: true, ..same_name(size(1, 1, 0, P::Finishing, D::HoldFrozen)) },
        same_name(size(1, 1, 0, P::Finishing, D::PreferDestination)),
        until(P::SourceDeleting, same_name(size(1, 1, 0, P::AwaitingReadiness, D::HoldFrozen))),
        gates([false, true], until(P::Restoring, size(1, 1, 0, P::SourceDeleting, D::HoldFrozen))),
        gates([true, false], until(P::Finishing, size(1, 1, 0, P::Restoring, D::HoldFrozen))),
        gates([false; 2], size(1, 0, 0, P::SourceDeleting, D::HoldFrozen)),
        owned(Owner::ReplicaSet, size(1, 0, 0, P::Finishing, D::HoldFrozen)),
        owned(Owner::Job, size(1, 0, 0, P::Finishing, D::HoldFrozen)),
    ]
}

/// What is cut off when its time is over.
fn deep() -> Vec<Drover> {
    use {InDoubt as D, Phase as P};
    vec![
        size(1, 1, 0, P::Pending, D::HoldFrozen),
        size(1, 1, 0, P::Pending, D::PreferSource),
        size(1, 1, 0, P::Pending, D::PreferDestination),
        size(2, 0, 1, P::Pending, D::HoldFrozen),
        size(2, 1, 0, P::Transferring, D::HoldFrozen),
        size(1, 1, 1, P::Transferring, D::HoldFrozen),
        size(1, 2, 0, P::Transferring, D::HoldFrozen),
        size(1, 3, 0, P::Restoring, D::HoldFrozen),
        same_name(size(1, 1, 0, P::Pending, D::HoldFrozen)),
        same_name(size(1, 1, 0, P::SourceDeleting, D::PreferSource)),
        same_name(size(1, 0, 1, P::AwaitingReadiness, D::HoldFrozen)),
        same_name(size(2, 0, 0, P::SourceDeleting, D::PreferDestination)),
        gates([false; 2], size(1, 1, 0, P::Pending, D::HoldFrozen)),
        gates([false, true], size(1, 1, 0, P::AwaitingReadiness, D::PreferSource)),
        gates([true, false], size(1, 1, 0, P::AwaitingReadiness, D::PreferDestination)),
        gates([false; 2], same_name(size(1, 1, 0, P::SourceDeleting, D::HoldFrozen))),
        owned(Owner::ReplicaSet, size(1, 1, 0, P::AwaitingReadiness, D::HoldFrozen)),
        owned(Owner::ReplicaSet, size(1, 1, 1, P::Finishing, D::HoldFrozen)),
        owned(Owner::Job, size(1, 1, 1, P::Finishing, D::HoldFrozen)),
        lazily(size(1, 2, 0, P::Restoring, D::HoldFrozen)),
        post_copy(size(1, 2, 0, P::AwaitingReadiness, D::PreferSource)),
        post_copy(size(2, 1, 0, P::Restoring, D::HoldFrozen)),
    ]
}

fn by_hand(text: &str) -> Drover {
    let numbers: Vec<usize> = text.split_whitespace().map(|n| n.parse().unwrap_or_else(|_| panic!("{TRY}={text}: {n} is no number"))).collect();
    let (&[n, faults, naps, policy, phase], order) = numbers.split_first_chunk().unwrap_or_else(|| panic!("{TRY}={text}: five numbers are needed"));
    let policies = [InDoubt::HoldFrozen, InDoubt::PreferSource, InDoubt::PreferDestination];
    let phases = [
        Phase::Pending,
        Phase::Preparing,
        Phase::Freezing,
        Phase::Transferring,
        Phase::Restoring,
        Phase::Finishing,
        Phase::SourceDeleting,
        Phase::AwaitingReadiness,
    ];
    let small = |n: usize| u8::try_from(n).expect("a small number");
    let order = order.first().copied().unwrap_or(0);
    Drover {
        order: if matches!(order, 1 | 2 | 6 | 10) { Order::SameName } else { Order::CopyFirst },
        falls_back: order == 2,
        gates: [!matches!(order, 3 | 5 | 6), !matches!(order, 4..=6)],
        owner: match order {
            7 => Some(Owner::ReplicaSet),
            8 => Some(Owner::Job),
            _ => None,
        },
        memory: match order {
            9 | 10 => Memory::Lazily,
            11 => Memory::FromTheSource,
            _ => Memory::AtOnce,
        },
        ..size(n, small(faults), small(naps), phases[phase], policies[policy])
    }
}
