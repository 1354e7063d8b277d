//! Values as they would be without a rule.

use drover::api::{
    AttestationStatus,
    attestation::{Archived, At, ClosedClaim, NeverStarted, Pushed, Restored, Vote},
};

use crate::{
    intern::{Id, Memo, WORDS},
    objects::{self, NAMES},
};

pub fn as_if_voted(id: Id, n: usize) -> Id {
    static VOTED: Memo<(Id, usize), Id> = Memo::new();
    *VOTED.ask((id, n), |(id, n)| {
        let mut words = WORDS.get(*id).clone();
        if words.pushed.is_some() {
            words.vote.get_or_insert_with(|| Vote { images: objects::images(*n), ..objects::vote(*n) });
            words.abort = None;
            words.thawed = None;
        }
        WORDS.put(words)
    })
}

pub fn as_if_confirmed(id: Id) -> Id {
    let mut words = WORDS.get(id).clone();
    words.confirmed = Some(At { at: objects::now() });
    WORDS.put(words)
}

/// A copy was restored and confirmed.
pub fn as_if_copied(id: Option<Id>) -> Id {
    let mut words = id.map_or_else(AttestationStatus::default, |id| WORDS.get(id).clone());
    words.restored.get_or_insert_with(|| Restored { at: objects::now(), containers: vec![] });
    words.confirmed = Some(At { at: objects::now() });
    WORDS.put(words)
}

/// The source has ended, and its archives, the last that it has executed, are kept; what it has said itself stays.
pub fn as_if_over(id: Id) -> Id {
    let mut words = WORDS.get(id).clone();
    words.archived.get_or_insert_with(|| Archived { at: objects::now(), paths: vec![objects::ARCHIVE.to_owned()], last: true });
    words.ended.get_or_insert_with(|| At { at: objects::now() });
    WORDS.put(words)
}

/// Its checkpoint is the last that it has executed.
pub fn as_if_last(id: Id) -> Id {
    let mut words = WORDS.get(id).clone();
    words.archived.iter_mut().for_each(|archived| archived.last = true);
    WORDS.put(words)
}

pub fn as_if_proved(id: Id, n: usize) -> Id {
    let mut words = WORDS.get(id).clone();
    words.never_started.get_or_insert_with(|| never_started(n, "revoked"));
    words.restored = None;
    WORDS.put(words)
}

fn never_started(n: usize, state: &str) -> NeverStarted {
    let containers = NAMES[..n].iter().map(|name| ClosedClaim { name: (*name).into(), state: state.into(), proof: String::new() });
    NeverStarted { at: objects::now(), containers: containers.collect() }
}

pub fn pushed(n: usize) -> Pushed {
    Pushed { at: objects::now(), images: objects::images(n) }
}
