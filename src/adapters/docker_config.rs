//! Docker's configuration of registry credentials, as pull Secrets hold it.

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Map, Value};

use crate::ports::PullCredential;

/// Key of the configuration in a Secret of type `kubernetes.io/dockerconfigjson`.
pub const KEY: &str = ".dockerconfigjson";
/// Key in the older type `kubernetes.io/dockercfg`, whose value is the `auths` object itself.
const OLD_KEY: &str = ".dockercfg";

/// What is wrong with a pull Secret; never its content.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DockerConfigError {
    /// Neither key is there.
    #[error("has neither .dockerconfigjson nor .dockercfg; is its type kubernetes.io/dockerconfigjson?")]
    NoKey,
    /// It is no JSON object of the expected shape.
    #[error("does not hold a docker configuration")]
    Malformed,
}

/// The `auths` of a pull Secret: registry → its entry.
///
/// # Errors
/// Where the Secret holds no docker configuration.
pub fn auths(secret: &Secret) -> Result<Map<String, Value>, DockerConfigError> {
    let data = secret.data.as_ref().ok_or(DockerConfigError::NoKey)?;
    match data.get(KEY) {
        Some(config) => auths_of(&config.0),
        None => parse(&data.get(OLD_KEY).ok_or(DockerConfigError::NoKey)?.0),
    }
}

/// The credentials in a docker configuration; entries without user and password are left out.
///
/// # Errors
/// Where it is none.
pub fn credentials_of(config: &[u8]) -> Result<Vec<PullCredential>, DockerConfigError> {
    Ok(auths_of(config)?.into_iter().filter_map(|(registry, entry)| credential(registry, &entry)).collect())
}

fn auths_of(config: &[u8]) -> Result<Map<String, Value>, DockerConfigError> {
    match parse(config)?.remove("auths") {
        Some(Value::Object(auths)) => Ok(auths),
        None => Ok(Map::new()),
        Some(_) => Err(DockerConfigError::Malformed),
    }
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, DockerConfigError> {
    serde_json::from_slice(bytes).map_err(|_| DockerConfigError::Malformed)
}

fn credential(registry: String, entry: &Value) -> Option<PullCredential> {
    let text = |field: &str| entry.get(field).and_then(Value::as_str).map(str::to_owned);
    let (username, password) = if let (Some(username), Some(password)) = (text("username"), text("password")) {
        (username, password)
    } else {
        use base64::Engine as _;
        let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")?).ok()?;
        String::from_utf8(decoded).ok()?.split_once(':').map(|(username, password)| (username.to_owned(), password.to_owned()))?
    };
    Some(PullCredential { registry, username, password })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(key: &str, value: &str) -> Secret {
        Secret { data: Some([(key.to_owned(), ByteString(value.as_bytes().to_vec()))].into()), ..Secret::default() }
    }

    #[test]
    fn both_shapes_and_both_keys_are_read() {
        let plain = credentials_of(br#"{"auths":{"r.example":{"username":"u","password":"p"}}}"#).unwrap();
        let packed = credentials_of(br#"{"auths":{"r.example":{"auth":"dTpw"}}}"#).unwrap();
        assert_eq!(plain, packed);
        assert_eq!((plain[0].username.as_str(), plain[0].password.as_str()), ("u", "p"));
        let new = auths(&secret(KEY, r#"{"auths":{"r.example":{"auth":"dTpw"}}}"#)).unwrap();
        assert_eq!(new, auths(&secret(OLD_KEY, r#"{"r.example":{"auth":"dTpw"}}"#)).unwrap());
    }

    #[test]
    fn a_broken_secret_is_told_without_its_content() {
        assert_eq!(auths(&secret("password", "x")).unwrap_err(), DockerConfigError::NoKey);
        let error = auths(&secret(KEY, "s3cret")).unwrap_err();
        assert!(!error.to_string().contains("s3cret"));
        let parsed = credentials_of(br#"{"auths":{"r":{"username":"u","password":"s3cret"}}}"#).unwrap();
        assert!(!format!("{parsed:?}").contains("s3cret"));
    }
}
