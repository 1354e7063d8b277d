//! The API server's errors as ports see them.

use kube::Error;

use crate::ports::{Failure, PortError};

/// The kind of a failure.
#[must_use]
pub fn failure(error: &Error) -> Failure {
    match error {
        Error::Api(status) => match status.code {
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

/// A failure as a port's failure, said to have happened while doing something (a verb and its object).
#[must_use]
pub fn port_error(doing: &str, error: &Error) -> PortError {
    let said = match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    };
    PortError::new(failure(error), format!("failed to {doing}: {said}"))
}

/// None where the object is not there.
///
/// # Errors
/// Every other failure.
pub fn found<T>(result: Result<T, Error>, doing: &str) -> Result<Option<T>, PortError> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(port_error(doing, &error)),
    }
}
