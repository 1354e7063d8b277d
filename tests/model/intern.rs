//! The product's own values as small numbers, so that a state of the model is small and hashes fast.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{LazyLock, Mutex, OnceLock, PoisonError, RwLock},
};

use ahash::RandomState;
use drover::api::{AttestationStatus, MigrationStatus};
use serde::Serialize;

/// A value of a [`Table`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Id(u32);

/// Values that a table has room for; a run of an hour has met some ten thousand.
const ROOM: usize = 1 << 20;

pub static STATUSES: LazyLock<Table<MigrationStatus>> = LazyLock::new(Table::default);
pub static WORDS: LazyLock<Table<AttestationStatus>> = LazyLock::new(Table::default);

/// Values by number, numbers by the values' JSON. Reading takes no lock.
pub struct Table<T> {
    numbers: Mutex<HashMap<String, Id, RandomState>>,
    values: Box<[OnceLock<T>]>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { numbers: Mutex::default(), values: (0..ROOM).map(|_| OnceLock::new()).collect() }
    }
}

impl<T: Serialize> Table<T> {
    pub fn get(&self, id: Id) -> &T {
        self.values[id.0 as usize].get().expect("a number is given with its value")
    }

    pub fn put(&self, value: T) -> Id {
        let key = serde_json::to_string(&value).expect("a status can be written as JSON");
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = numbers.get(&key) {
            return *id;
        }
        let id = Id(u32::try_from(numbers.len()).expect("there is room for fewer than 2^32"));
        assert!(self.values[id.0 as usize].set(value).is_ok(), "a number is given once");
        numbers.insert(key, id);
        id
    }
}

/// Answers of a pure function by its arguments: it is asked once for each, and the answer stays.
pub struct Memo<K, V: 'static>(LazyLock<RwLock<HashMap<K, &'static V, RandomState>>>);

impl<K: Hash + Eq, V> Memo<K, V> {
    pub const fn new() -> Self {
        Self(LazyLock::new(RwLock::default))
    }

    pub fn ask(&self, key: K, answer: impl FnOnce(&K) -> V) -> &'static V {
        if let Some(known) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return known;
        }
        let value: &'static V = Box::leak(Box::new(answer(&key)));
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, value);
        value
    }

    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// What an agent has said once it has said one word more; `word` names the change and all that it depends on.
pub fn with_word(said: Id, word: (&str, usize), change: impl FnOnce(&mut AttestationStatus)) -> Id {
    static SAID: Memo<(Id, u64), Id> = Memo::new();
    *SAID.ask((said, fingerprint(&word)), |(said, _)| {
        let mut words = WORDS.get(*said).clone();
        change(&mut words);
        WORDS.put(words)
    })
}

/// 64 bits of a state, the same in every run.
pub fn fingerprint(state: &impl Hash) -> u64 {
    RandomState::with_seeds(1, 2, 3, 4).hash_one(state)
}
