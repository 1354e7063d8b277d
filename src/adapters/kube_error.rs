//! The API server's errors as ports see them.

use kube::Error;

use crate::ports::{Failure, PortError};

/// Names what was being done, and sorts the failure by the API server's code.
pub fn port_error(doing: &str, error: &Error) -> PortError {
    let kind = match error {
        Error::Api(status) => match status.code {
            409 if status.reason == "AlreadyExists" => Failure::Permanent,
            // 422 on a JSON patch is a `test` that did not hold: somebody wrote first.
            409 => Failure::Conflict,
            404 => Failure::NotFound,
            400 | 401 | 403 | 405 | 422 => Failure::Permanent,
            _ => Failure::Transient,
        },
        _ => Failure::Transient,
    };
    PortError::new(kind, format!("failed to {doing}: {error}"))
}

/// None where the object is not there.
pub fn found<T>(result: Result<T, Error>, doing: &str) -> Result<Option<T>, PortError> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(port_error(doing, &error)),
    }
}
