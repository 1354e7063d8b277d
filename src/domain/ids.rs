//! Names that have been parsed once and need no second look.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// What is wrong with a name, naming the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} {problem}")]
pub struct InvalidName {
    /// Which value it is.
    pub field: &'static str,
    /// The value, cut to 80 characters.
    pub value: String,
    /// What is wrong and what would be right.
    pub problem: &'static str,
}

fn invalid(field: &'static str, value: &str, problem: &'static str) -> InvalidName {
    InvalidName { field, value: value.chars().take(80).collect(), problem }
}

/// A name that is always the same for the same seed: so many characters of `stem` at most, and six hex digits of the seed's hash.
#[must_use]
pub fn derived_name(stem: &str, most: usize, seed: &str) -> String {
    let hash = Sha256::digest(seed);
    let stem: String = stem.chars().take(most).collect();
    format!("{}-{}", stem.trim_end_matches(['-', '.']), hex(&hash[..3]))
}

/// Bytes as hex digits in lower case.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A content digest: `sha256:` and 64 hex digits in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Parses a digest.
    ///
    /// # Errors
    /// Where it is not `sha256:` and 64 lower-case hex digits.
    pub fn parse(value: &str) -> Result<Self, InvalidName> {
        let hex = value.strip_prefix("sha256:").ok_or_else(|| invalid("digest", value, "must begin with sha256:"))?;
        if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(value.to_owned()))
        } else {
            Err(invalid("digest", value, "must have 64 lower-case hex digits after sha256:"))
        }
    }

    /// The digest of these 32 bytes of SHA-256.
    #[must_use]
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        Self(format!("sha256:{}", hex(bytes)))
    }

    /// The digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text is a DNS-1123 subdomain, as names of nodes and pods are.
#[must_use]
pub fn is_dns_subdomain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            let bytes = label.as_bytes();
            edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        })
}

/// Whether a text is a pod UID as the API server makes them: hex digits and dashes. It becomes part of file names.
#[must_use]
pub fn is_uid(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// Whether a text is a repository that Drover made: `drover/` and 32 lower-case hex digits.
#[must_use]
pub fn is_repository(text: &str) -> bool {
    text.strip_prefix("drover/").is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// What follows a node's name in the DNS name of its agent's certificate. No such zone exists: the name is only compared, never looked up.
const NODE_SUFFIX: &str = ".nodes.drover.dev";

/// The DNS name in the certificate of a node's agent.
#[must_use]
pub fn node_server_name(node: &str) -> String {
    format!("{node}{NODE_SUFFIX}")
}

/// The node that a certificate's DNS name is about; none where it is no agent's name.
#[must_use]
pub fn node_of_server_name(name: &str) -> Option<&str> {
    name.strip_suffix(NODE_SUFFIX).filter(|node| is_dns_subdomain(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_parsed_strictly() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Digest::parse(&good).map(|d| d.to_string()), Ok(good));
        for bad in ["", "sha256:", "sha512:00", &format!("sha256:{}", "0A".repeat(32)), &format!("sha256:{}/..", "0".repeat(61))] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Digest::from_sha256(&[0xab; 32]).as_str(), format!("sha256:{}", "ab".repeat(32)));
    }

    #[test]
    fn an_agents_certificate_names_its_node() {
        assert_eq!(node_of_server_name(&node_server_name("n1.rack-2")), Some("n1.rack-2"));
        assert_eq!(node_of_server_name("n1.example.org"), None);
        assert_eq!(node_of_server_name(".nodes.drover.dev"), None);
    }

    #[test]
    fn names_that_become_paths_are_harmless() {
        assert!(is_dns_subdomain("n2.example"));
        assert!(!is_dns_subdomain("../etc") && !is_dns_subdomain("-a") && !is_dns_subdomain("A"));
        assert!(is_uid("5f1c22aa-0000-4000-8000-000000000000"));
        assert!(!is_uid("../../../../etc") && !is_uid(""));
        assert!(is_repository(&format!("drover/{}", "0f".repeat(16))));
        assert!(!is_repository("drover/0f/../x"));
    }
}
