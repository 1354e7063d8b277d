//! The product's own values as small numbers, so that a state of the model is small and hashes fast.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use drover::api::{AttestationStatus, MigrationStatus};
use serde::Serialize;

/// A value of a [`Table`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Id(u32);

pub static STATUSES: LazyLock<Table<MigrationStatus>> = LazyLock::new(Table::default);
pub static WORDS: LazyLock<Table<AttestationStatus>> = LazyLock::new(Table::default);

/// Values by number, numbers by the values' JSON.
pub struct Table<T>(Mutex<(HashMap<String, Id>, Vec<Arc<T>>)>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Mutex::new((HashMap::new(), vec![])))
    }
}

impl<T: Serialize> Table<T> {
    pub fn get(&self, id: Id) -> Arc<T> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner).1[id.0 as usize])
    }

    pub fn put(&self, value: T) -> Id {
        let key = serde_json::to_string(&value).expect("a status can be written as JSON");
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = table.0.get(&key) {
            return *id;
        }
        let id = Id(u32::try_from(table.1.len()).expect("fewer than 2^32 statuses"));
        table.1.push(Arc::new(value));
        table.0.insert(key, id);
        id
    }
}

/// Answers of a pure function by its arguments: it is asked once for each.
pub struct Memo<K, V>(LazyLock<Mutex<HashMap<K, V>>>);

impl<K: Hash + Eq, V: Clone> Memo<K, V> {
    pub const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    pub fn ask(&self, key: K, answer: impl FnOnce(&K) -> V) -> V {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return known.clone();
        }
        let value = answer(&key);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value.clone());
        value
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
