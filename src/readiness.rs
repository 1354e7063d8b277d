//! Who is not ready yet, by name.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// All parts that must be ready before the process is. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    parts: Arc<Mutex<Vec<Part>>>,
}

type Part = (&'static str, Arc<AtomicBool>);

/// One part's say in it; not ready until [`ReadySignal::set`] says so.
#[derive(Debug, Clone)]
pub struct ReadySignal(Arc<AtomicBool>);

impl Readiness {
    /// Adds a part, not ready yet.
    #[must_use]
    pub fn register(&self, name: &'static str) -> ReadySignal {
        let flag = Arc::new(AtomicBool::new(false));
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push((name, Arc::clone(&flag)));
        ReadySignal(flag)
    }

    /// Names of the parts that are not ready.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter(|(_, ready)| !ready.load(Ordering::Relaxed)).map(|(name, _)| *name).collect()
    }
}

impl ReadySignal {
    /// Says whether the part is ready; may change at any time.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }
}
