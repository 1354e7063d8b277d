//! How long a move will keep a pod frozen, before anything is frozen.
//!
//! An estimate, not a promise: it knows the bytes and not the machines. What it is made from is in docs/operations.md, Time frozen.

use std::time::Duration;

use super::preflight::Blocker;
use crate::api::migration::Lane;

/// What the parts of a freeze take.
struct Rates {
    /// However small the pod is.
    fixed: Duration,
    /// Each further container.
    a_container: Duration,
    /// A GiB that is carried.
    a_gib: Duration,
}

/// The kubelet's archive is copied several times (MEASURED.md 9).
const IMAGE: Rates = Rates { fixed: Duration::from_millis(2200), a_container: Duration::from_millis(700), a_gib: Duration::from_secs(24) };
const RUNTIME: Rates = Rates { fixed: Duration::from_millis(1300), a_container: Duration::from_millis(500), a_gib: Duration::from_secs(4) };

/// How long a pod with so many bytes and containers is frozen. A source that goes first leaves the kubelet's archive behind in either lane (R14).
#[must_use]
pub fn freeze(lane: Lane, source_first: bool, bytes: u64, containers: usize) -> Duration {
    let rates = if lane == Lane::Runtime && !source_first { RUNTIME } else { IMAGE };
    let further = rates.a_container.saturating_mul(u32::try_from(containers.saturating_sub(1)).unwrap_or(u32::MAX));
    let millis = (u128::from(bytes) * rates.a_gib.as_millis()) >> 30;
    rates.fixed + further + Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// What the estimate says against the budget, which the source's agent keeps by thawing; none where it fits.
#[must_use]
pub fn warning(freeze: Duration, budget_seconds: u32) -> Option<Blocker> {
    (freeze > Duration::from_secs(budget_seconds.into())).then(|| {
        let message = format!("is {budget_seconds} s, and the freeze is estimated at {:.0} s: it will be undone in the middle", freeze.as_secs_f64());
        Blocker::new("spec.freezeBudgetSeconds", message, "give it more, or move the pod when it holds less")
    })
}

/// What the estimate says against the time that is left until the migration is undone; none where it fits.
#[must_use]
pub fn late(freeze: Duration, left: Duration, deadline_seconds: u32) -> Option<Blocker> {
    (freeze > left).then(|| {
        let (left, freeze) = (left.as_secs(), freeze.as_secs_f64());
        let message = format!(
            "is {deadline_seconds} s, of which {left} s are left, and the freeze is estimated at {freeze:.0} s: it will be undone in the middle"
        );
        Blocker::new("spec.deadlineSeconds", message, "give it more, or move the pod when it holds less")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_memory_and_containers_and_never_overflows() {
        for (lane, rates) in [(Lane::Image, &IMAGE), (Lane::Runtime, &RUNTIME)] {
            let of = |bytes, containers| freeze(lane, false, bytes, containers);
            assert_eq!((of(0, 1), of(1 << 30, 1)), (rates.fixed, rates.fixed + rates.a_gib));
            assert_eq!(of(0, 3), rates.fixed + rates.a_container * 2);
            assert!(of(u64::MAX, usize::MAX) > of(1 << 50, 1));
        }
        assert_eq!(freeze(Lane::Runtime, true, 1 << 30, 1), freeze(Lane::Image, true, 1 << 30, 1));
    }

    #[test]
    fn a_budget_that_will_not_do_is_warned_of() {
        assert_eq!(warning(Duration::from_mins(1), 60), None);
        let warned = warning(Duration::from_millis(61_400), 60).unwrap().to_string();
        assert!(warned.starts_with("spec.freezeBudgetSeconds: is 60 s, and the freeze is estimated at 61 s"), "{warned}");
        assert_eq!(late(Duration::from_secs(30), Duration::from_secs(30), 40), None);
        let warned = late(Duration::from_secs(31), Duration::from_secs(30), 40).unwrap().to_string();
        assert!(warned.starts_with("spec.deadlineSeconds: is 40 s, of which 30 s are left, and the freeze is estimated at 31 s"), "{warned}");
    }
}
