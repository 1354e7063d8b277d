//! What the manager and the agents serve.
