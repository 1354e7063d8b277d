//! Composition roots: settings → adapters → ports → tasks.
