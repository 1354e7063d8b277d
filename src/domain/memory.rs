//! The memory of a container that travels by itself: which files, how large, with which digests. The archive that goes through the registry names them, so
//! that its digest, which is voted for and verified, covers them too.

use serde::{Deserialize, Serialize};

use super::ids::Digest;

/// Name of the list in the archive.
pub const LIST: &str = "memory.json";

/// One of CRIU's images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFile {
    /// Its name in `checkpoint/`.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Of its content, as [`Digest`] writes it.
    pub digest: String,
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
        Digest::parse(&file.digest).map_err(|error| format!("{LIST}: {error}"))?;
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
        let digest = Digest::from_sha256(&[1; 32]).to_string();
        assert_eq!(parse(&list("pages-1.img", &digest)).unwrap()[0].bytes, 1);
        assert!(parse(&list("../../etc/passwd", &digest)).is_err_and(|problem| problem.contains("file")));
        assert!(parse(&list("pages-1.img", "md5:0")).is_err_and(|problem| problem.contains("digest")));
        assert!(parse(b"{").is_err());
    }
}
