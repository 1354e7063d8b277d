//! What a failure of the API server means for us.

use crate::ports::{Failure, PortError};

/// The kind of a failure.
#[must_use]
pub fn failure(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => Failure::NotFound,
            // AlreadyExists is a conflict too: somebody else wrote first.
            409 => Failure::Conflict,
            429 => Failure::Transient,
            400..=499 => Failure::Permanent,
            _ => Failure::Transient,
        },
        _ => Failure::Transient,
    }
}

/// A failure as a port's failure, said to have happened while doing something (`failed to <verb> …`).
#[must_use]
pub fn port_error(doing: &str, error: &kube::Error) -> PortError {
    let said = match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    };
    PortError::new(failure(error), format!("{doing}: {said}"))
}
