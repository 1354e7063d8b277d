//! The API server's errors as ports see them.

use kube::{Error, core::Status};

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

/// Whether a `test` of a JSON patch did not hold: the pod is another one, or somebody wrote first. The API server answers 422 with a message that
/// does not say so (seen: "the server rejected our request due to an error in our request"); what it refuses for its content it calls invalid.
#[must_use]
pub fn is_failed_test(status: &Status) -> bool {
    status.code == 422 && !status.message.contains("is invalid")
}

#[cfg(test)]
mod tests {
    use super::is_failed_test;

    #[test]
    fn a_patch_whose_test_did_not_hold_is_a_conflict_and_bad_content_is_not() {
        let status = |code: u16, message: &str| kube::core::Status { code, message: message.into(), ..kube::core::Status::default() };
        assert!(is_failed_test(&status(422, "the server rejected our request due to an error in our request")));
        assert!(!is_failed_test(&status(422, "Pod \"p\" is invalid: spec: Forbidden: pod updates may not change fields")));
        assert!(!is_failed_test(&status(403, "forbidden")));
    }
}
