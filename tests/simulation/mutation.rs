//! What is taken away from the cluster on purpose, to see that the simulation notices.

/// One thing that the protocol rests on, switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Everything is as it is built.
    None,
    /// No gate is asked before a container starts.
    NoGate,
    /// The API server neither compares resource versions nor knows the CRDs' rules: each masks the other.
    NoCompareAndSwap,
    /// An agent's journals are gone when it dies.
    JournalsAreNotDurable,
    /// A kubelet that shows a pod's deletion still starts an ended container of it again, once.
    KubeletStartsWhatIsDeleted,
    /// Fences and claims are gone after a power failure.
    MarkersAreNotDurable,
}
