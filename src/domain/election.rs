//! Who leads: the pure part of leader election on a Lease.
//!
//! # Guarantees
//! Where every clock ticks at about the same rate, at most one process believes that it leads: a holder stops believing it at two thirds of
//! the lease after it *sent* its last successful write; others take the lease no earlier than a full lease after they *saw* that write.
//!
//! # Assumptions
//! Wall clocks of different processes are never compared: `renewTime` is only looked at for whether it changed (as client-go does).
//! A process that was suspended may believe for one step that it still leads; every write of the controllers is therefore a compare-and-swap.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Intervals of the election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// After so long without a renewal others may take the lease.
    pub lease: Duration,
    /// How often the holder renews.
    pub renew: Duration,
    /// How often the others look.
    pub retry: Duration,
}

impl Default for Timing {
    /// The values of client-go's components: 15 s, and a deadline of 10 s for the holder.
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(5), retry: Duration::from_secs(2) }
    }
}

impl Timing {
    /// How long after sending its last successful write a holder believes that it leads.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.lease * 2 / 3
    }
}

/// A moment on both clocks: the monotonic one does not count suspension, the wall clock may jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Since the process began.
    pub monotonic: Duration,
    /// In UTC.
    pub wall: Timestamp,
}

/// The Lease as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// `spec.holderIdentity`; empty where it was released.
    pub holder: String,
    /// `spec.renewTime` as text: never interpreted.
    pub renewed: String,
    /// `spec.leaseDurationSeconds`: the holder's own promise.
    pub duration: Option<Duration>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// There is no Lease: make one with oneself as its holder.
    Create,
    /// One holds it: write `renewTime`.
    Renew,
    /// It is free or has run out: write oneself as its holder, one transition more.
    Take,
    /// Somebody else holds it.
    Wait,
}

/// One candidate's knowledge.
#[derive(Debug, Clone)]
pub struct Election {
    identity: String,
    timing: Timing,
    seen: Option<(LeaseView, Duration)>,
    sent: Option<Moment>,
}

impl Election {
    /// A candidate who knows nothing yet.
    #[must_use]
    pub fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, seen: None, sent: None }
    }

    /// What to do about the Lease as it was just read.
    pub fn decide(&mut self, now: Moment, lease: Option<&LeaseView>) -> Action {
        let Some(lease) = lease else {
            self.seen = None;
            return Action::Create;
        };
        if lease.holder == self.identity {
            return Action::Renew;
        }
        self.sent = None;
        if lease.holder.is_empty() {
            return Action::Take;
        }
        match &self.seen {
            Some((seen, since)) if seen == lease => {
                // The longer of the two promises, in case the versions of two managers differ.
                let promised = lease.duration.unwrap_or_default().max(self.timing.lease);
                if now.monotonic.saturating_sub(*since) >= promised { Action::Take } else { Action::Wait }
            }
            _ => {
                self.seen = Some((lease.clone(), now.monotonic));
                Action::Wait
            }
        }
    }

    /// A write that made or kept oneself the holder has succeeded; `sent` is the moment before it was sent.
    pub fn written(&mut self, sent: Moment) {
        self.sent = Some(sent);
    }

    /// Somebody else wrote first, or one has released the lease.
    pub fn lost(&mut self) {
        self.sent = None;
    }

    /// How long from now one leads without another write; zero: one does not lead.
    #[must_use]
    pub fn leads_for(&self, now: Moment) -> Duration {
        let Some(sent) = self.sent else { return Duration::ZERO };
        let by_wall = now.wall.duration_since(sent.wall).max(SignedDuration::ZERO).unsigned_abs();
        // The faster clock counts: a suspended machine shows it on the wall clock alone.
        let age = now.monotonic.saturating_sub(sent.monotonic).max(by_wall);
        self.timing.deadline().saturating_sub(age)
    }

    /// Whether one leads.
    #[must_use]
    pub fn leads(&self, now: Moment) -> bool {
        !self.leads_for(now).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        let wall = Timestamp::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        Moment { monotonic: Duration::from_secs(seconds), wall }
    }

    fn held(holder: &str, renewed: &str) -> LeaseView {
        LeaseView { holder: holder.to_owned(), renewed: renewed.to_owned(), duration: Some(Duration::from_secs(15)) }
    }

    fn candidate(name: &str) -> Election {
        Election::new(name.to_owned(), Timing::default())
    }

    #[test]
    fn a_missing_or_released_lease_is_taken_at_once() {
        let mut a = candidate("a");
        assert_eq!(a.decide(at(0), None), Action::Create);
        assert_eq!(a.decide(at(0), Some(&held("", "x"))), Action::Take);
        assert!(!a.leads(at(0)), "deciding is not having written");
    }

    #[test]
    fn another_holder_is_given_a_full_lease_of_silence_as_seen_here() {
        let mut a = candidate("a");
        assert_eq!(a.decide(at(100), Some(&held("b", "1"))), Action::Wait, "however old renewTime is");
        assert_eq!(a.decide(at(114), Some(&held("b", "1"))), Action::Wait);
        assert_eq!(a.decide(at(114), Some(&held("b", "2"))), Action::Wait, "it was renewed");
        assert_eq!(a.decide(at(128), Some(&held("b", "2"))), Action::Wait);
        assert_eq!(a.decide(at(129), Some(&held("b", "2"))), Action::Take);
        let longer = LeaseView { duration: Some(Duration::from_mins(1)), ..held("b", "3") };
        assert_eq!(a.decide(at(130), Some(&longer)), Action::Wait);
        assert_eq!(a.decide(at(189), Some(&longer)), Action::Wait);
        assert_eq!(a.decide(at(190), Some(&longer)), Action::Take);
    }

    #[test]
    fn a_holder_stops_before_others_may_begin() {
        let mut a = candidate("a");
        a.written(at(0));
        assert!(a.leads(at(9)));
        assert!(!a.leads(at(10)));
        assert_eq!(a.leads_for(at(4)), Duration::from_secs(6));
        a.written(at(5));
        assert!(a.leads(at(14)));
        let suspended = Moment { monotonic: Duration::from_secs(6), ..at(60) };
        assert!(!a.leads(suspended), "the wall clock tells of a suspension");
        let set_back = Moment { wall: at(0).wall, ..at(16) };
        assert!(!a.leads(set_back), "a wall clock that is set back prolongs nothing");
    }

    #[test]
    fn seeing_another_holder_ends_leading() {
        let mut a = candidate("a");
        a.written(at(0));
        assert_eq!(a.decide(at(1), Some(&held("a", "1"))), Action::Renew);
        assert!(a.leads(at(1)));
        assert_eq!(a.decide(at(2), Some(&held("b", "1"))), Action::Wait);
        assert!(!a.leads(at(2)));
    }
}
