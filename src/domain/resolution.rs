//! Who decides a released migration that nothing can be proved of, and how: `spec.inDoubt`, or a person by `drover resolve`.
//!
//! A decision never makes two copies run (I1): the source is thawed only once the destination's agent attests that nothing of the replacement executes or
//! will, or on a person's word that the destination node is down for good and the replacement's object is gone. It chooses between states that are
//! both known to be incomplete, and says in the status what is lost (R7).

use kube::ResourceExt as _;

use super::keys;
use crate::api::{
    AttestationStatus, Migration,
    migration::{Decider, InDoubt, Side},
};

/// A decision for one of the two copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preference {
    /// The copy that is to go on.
    pub side: Side,
    /// Who decided.
    pub by: Decider,
    /// A person says that the destination node is powered off and stays so: nothing there can be asked, and nothing executes.
    pub destination_is_down: bool,
}

impl Preference {
    /// The value of the annotation [`keys::RESOLVE`].
    #[must_use]
    pub const fn as_annotation(self) -> &'static str {
        match (self.side, self.destination_is_down) {
            (Side::Source, false) => "source",
            (Side::Source, true) => "source-destination-is-down",
            (Side::Destination, _) => "destination",
        }
    }

    fn from_annotation(value: &str) -> Option<Self> {
        [(Side::Source, false), (Side::Source, true), (Side::Destination, false)]
            .map(|(side, destination_is_down)| Self { side, by: Decider::Person, destination_is_down })
            .into_iter()
            .find(|preference| preference.as_annotation() == value)
    }
}

/// The decision that stands for a migration: a person's before the policy's. None: it is held. An annotation that says something else decides nothing.
#[must_use]
pub fn preference(migration: &Migration) -> Option<Preference> {
    if let Some(value) = migration.annotations().get(keys::RESOLVE) {
        return Preference::from_annotation(value);
    }
    let side = match migration.spec.in_doubt {
        InDoubt::HoldFrozen => return None,
        InDoubt::PreferSource => Side::Source,
        InDoubt::PreferDestination => Side::Destination,
    };
    Some(Preference { side, by: Decider::Policy, destination_is_down: false })
}

/// The reason of the hold of a fallback that does not get on.
pub const FALLBACK_FAILED: &str = "FallbackFailed";
/// What [`keys::RESOLVE`] says where a person gives up a pod whose fallback has failed: neither copy goes on.
pub const GIVE_UP: &str = "give-up";

/// Whether a person has given the pod up.
#[must_use]
pub fn gives_up(migration: &Migration) -> bool {
    migration.annotations().get(keys::RESOLVE).is_some_and(|value| value == GIVE_UP)
}

/// What a decision leads to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Nothing yet: what it needs is not known.
    Wait,
    /// Delete the replacement, at once where its node is down: only then can it be proved that nothing of it executes (R4).
    DeleteReplacement {
        /// Remove the object without its kubelet.
        force: bool,
    },
    /// The source goes on.
    RollBack,
    /// The replacement goes on, from its image where it does not run.
    StartCold,
}

/// What a decision leads to for a released migration whose revocation stands in its status.
///
/// `replacement_is_there`: an object of the replacement's UID exists that is not being deleted; `replacement_is_gone`: none exists at all.
#[must_use]
pub fn course(preference: Preference, destination: &AttestationStatus, replacement_is_there: bool, replacement_is_gone: bool) -> Course {
    // A person who prefers the source wants the replacement ended whatever it does; a policy only where its agent says that it cannot end well.
    let hopeless = destination.cold_started.is_some() || destination.failure.is_some();
    match preference.side {
        Side::Source if destination.died.is_some() => Course::RollBack,
        Side::Source if preference.destination_is_down && replacement_is_gone => Course::RollBack,
        Side::Source if preference.destination_is_down => Course::DeleteReplacement { force: true },
        Side::Source if replacement_is_there && (preference.by == Decider::Person || hopeless) => Course::DeleteReplacement { force: false },
        Side::Destination if replacement_is_there && (destination.died.is_some() || destination.cold_started.is_some()) => Course::StartCold,
        Side::Source | Side::Destination => Course::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        MigrationSpec,
        attestation::{Died, Remark},
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn migration(in_doubt: InDoubt, annotation: Option<&str>) -> Migration {
        let mut migration = Migration::new("m", MigrationSpec { in_doubt, ..MigrationSpec::default() });
        migration.metadata.annotations = annotation.map(|value| [(keys::RESOLVE.to_owned(), value.to_owned())].into());
        migration
    }

    fn at() -> MicroTime {
        MicroTime(jiff::Timestamp::UNIX_EPOCH)
    }

    fn died() -> AttestationStatus {
        AttestationStatus { died: Some(Died { at: at(), containers: vec![] }), ..Default::default() }
    }

    fn cold() -> AttestationStatus {
        AttestationStatus { cold_started: Some(Remark { at: at(), message: "cold".into() }), ..Default::default() }
    }

    #[test]
    fn a_person_decides_before_the_policy_and_rubbish_decides_nothing() {
        assert_eq!(preference(&migration(InDoubt::HoldFrozen, None)), None);
        assert_eq!(preference(&migration(InDoubt::PreferSource, None)).map(|p| (p.side, p.by)), Some((Side::Source, Decider::Policy)));
        let both = preference(&migration(InDoubt::PreferSource, Some("destination")));
        assert_eq!(both.map(|p| (p.side, p.by)), Some((Side::Destination, Decider::Person)));
        assert_eq!(preference(&migration(InDoubt::PreferSource, Some("; rm -rf /"))), None);
        let down = preference(&migration(InDoubt::HoldFrozen, Some("source-destination-is-down")));
        assert!(down.is_some_and(|p| p.destination_is_down && p.side == Side::Source));
    }

    #[test]
    fn the_source_goes_on_only_where_nothing_of_the_replacement_executes() {
        let policy = Preference { side: Side::Source, by: Decider::Policy, destination_is_down: false };
        let person = Preference { by: Decider::Person, ..policy };
        let down = Preference { destination_is_down: true, ..person };
        let silent = AttestationStatus::default();
        assert_eq!(course(policy, &died(), true, false), Course::RollBack);
        assert_eq!(course(policy, &silent, true, false), Course::Wait, "a silent node may run it");
        assert_eq!(course(policy, &silent, false, true), Course::Wait, "absence from the API server is no proof");
        assert_eq!(course(policy, &cold(), true, false), Course::DeleteReplacement { force: false });
        assert_eq!(course(person, &silent, true, false), Course::DeleteReplacement { force: false });
        assert_eq!(course(person, &silent, false, true), Course::Wait);
        assert_eq!(course(down, &silent, true, false), Course::DeleteReplacement { force: true });
        assert_eq!(course(down, &silent, false, false), Course::DeleteReplacement { force: true });
        assert_eq!(course(down, &silent, false, true), Course::RollBack);
    }

    #[test]
    fn the_replacement_goes_on_cold_only_where_it_can_start() {
        let prefer = Preference { side: Side::Destination, by: Decider::Policy, destination_is_down: false };
        assert_eq!(course(prefer, &died(), true, false), Course::StartCold);
        assert_eq!(course(prefer, &cold(), true, false), Course::StartCold);
        assert_eq!(course(prefer, &died(), false, true), Course::Wait);
        assert_eq!(course(prefer, &AttestationStatus::default(), true, false), Course::Wait);
    }
}
