//! The memory of a container that travels by itself: which files, how large, with which digests. The archive that goes through the registry names them, so
//! that its digest, which is voted for and verified, covers them too.

use serde::{Deserialize, Serialize};

/// Algorithm of a [`MemoryDigest`]. SHA-256 took longer than everything else of a transfer.
const BLAKE3: &str = "blake3:";

/// Name of the list in the archive.
pub const LIST: &str = "memory.json";

/// One of CRIU's images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFile {
    /// Its name in `checkpoint/`.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Of its content.
    pub digest: MemoryDigest,
}

/// BLAKE3 of an image with pages, as `blake3:` and 64 lower-case hexadecimal digits (OCI image specification, `descriptor.md`, registered algorithms).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemoryDigest(String);

impl MemoryDigest {
    /// From the text, bounded where an error repeats it.
    ///
    /// # Errors
    /// Any other algorithm or length.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix(BLAKE3).filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        match hex {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(format!("digest: {:?} is no blake3:<64 hex digits>", text.chars().take(80).collect::<String>())),
        }
    }
}

impl From<blake3::Hash> for MemoryDigest {
    fn from(hash: blake3::Hash) -> Self {
        Self(format!("{BLAKE3}{}", hash.to_hex()))
    }
}

impl TryFrom<String> for MemoryDigest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<MemoryDigest> for String {
    fn from(digest: MemoryDigest) -> Self {
        digest.0
    }
}

impl std::fmt::Display for MemoryDigest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

/// Whether a file of `checkpoint/` is one that travels by itself: CRIU keeps the content of pages in `pages-<n>.img`, and everything else is small.
#[must_use]
pub fn is_memory(file: &str) -> bool {
    let number = file.strip_prefix("pages-").and_then(|rest| rest.strip_suffix(".img"));
    number.is_some_and(|number| (1..=10).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Reads a list.
///
/// # Errors
/// What is wrong with it, naming the field.
pub fn parse(list: &[u8]) -> Result<Vec<MemoryFile>, String> {
    let files: Vec<MemoryFile> = serde_json::from_slice(list).map_err(|error| format!("{LIST} cannot be parsed: {error}"))?;
    for file in &files {
        if !is_memory(&file.file) {
            return Err(format!("{LIST}: file: {:?} is no image with pages", file.file.chars().take(80).collect::<String>()));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_travel_by_themselves() {
        for (file, expected) in [
            ("pages-1.img", true),
            ("pages-17.img", true),
            ("pagemap-1.img", false),
            ("pages-.img", false),
            ("pages-1.img/x", false),
            ("pages-../a.img", false),
        ] {
            assert_eq!(is_memory(file), expected, "{file}");
        }
    }

    #[test]
    fn a_list_is_read_or_refused_with_its_field() {
        let list = |file: &str, digest: &str| serde_json::to_vec(&serde_json::json!([{"file": file, "bytes": 1, "digest": digest}])).unwrap();
        let digest = MemoryDigest::from(blake3::hash(b"memory")).to_string();
        assert_eq!(parse(&list("pages-1.img", &digest)).unwrap()[0].bytes, 1);
        assert!(parse(&list("../../etc/passwd", &digest)).is_err_and(|problem| problem.contains("file")));
        assert!(parse(&list("pages-1.img", &digest.replace("blake3", "sha256"))).is_err_and(|problem| problem.contains("digest")));
        assert!(parse(b"{").is_err());
    }
}
