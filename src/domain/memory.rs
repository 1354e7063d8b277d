//! The memory of a container that travels by itself: which files, how large, with which digests. The archive that goes through the registry names them, so
//! that its digest, which is voted for and verified, covers them too.

use serde::{Deserialize, Serialize};

use super::pages::{PAGE, PageHash, hash_of};

/// Algorithm of a [`MemoryDigest`]. SHA-256 took longer than everything else of a transfer.
const ALGORITHM: &str = "blake3-4k:";

/// What of the memory comes before the container is frozen (pre-copy): pages, in the order in which they were read. No archive names it.
pub const PRE_COPY: &str = "pre-copy.img";

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
    /// Bytes of it that the destination had before the container was frozen (pre-copy).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pre_copied: u64,
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// Of an image with pages: the BLAKE3 of the BLAKE3s of its pages of 4 KiB, the last of which may be shorter; as `blake3-4k:` and 64 lower-case hexadecimal digits. A page that
/// came before its image did has been hashed then, and needs not be read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemoryDigest(String);

impl MemoryDigest {
    /// From the text, bounded where an error repeats it.
    ///
    /// # Errors
    /// Any other algorithm or length.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix(ALGORITHM).filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        match hex {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(format!("digest: {:?} is no blake3-4k:<64 hex digits>", text.chars().take(80).collect::<String>())),
        }
    }
}

/// Makes a [`MemoryDigest`].
#[derive(Debug, Default)]
pub struct MemoryHasher {
    pages: blake3::Hasher,
    /// What has come of a page that is not whole yet.
    begun: Vec<u8>,
    kept: Option<Vec<PageHash>>,
}

impl MemoryHasher {
    /// One that keeps the hashes of the pages.
    #[must_use]
    pub fn keeping() -> Self {
        Self { kept: Some(vec![]), ..Self::default() }
    }

    /// More of the image.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if !self.begun.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(PAGE - self.begun.len()));
            self.begun.extend_from_slice(head);
            bytes = rest;
            if self.begun.len() < PAGE {
                return;
            }
            let page = std::mem::take(&mut self.begun);
            self.pages(&[hash_of(&page)]);
        }
        let mut whole = bytes.chunks_exact(PAGE);
        for page in &mut whole {
            self.pages(&[hash_of(page)]);
        }
        self.begun.extend_from_slice(whole.remainder());
    }

    /// More of the image, which begins at a page: pages of which the hashes are known.
    pub fn pages(&mut self, hashes: &[PageHash]) {
        self.pages.update(hashes.as_flattened());
        if let Some(kept) = &mut self.kept {
            kept.extend_from_slice(hashes);
        }
    }

    /// The hashes of the pages that have come, where they are kept.
    #[must_use]
    pub fn kept(&self) -> &[PageHash] {
        self.kept.as_deref().unwrap_or_default()
    }

    /// Of all that has come.
    #[must_use]
    pub fn finish(mut self) -> MemoryDigest {
        if !self.begun.is_empty() {
            self.pages.update(&hash_of(&self.begun));
        }
        MemoryDigest(format!("{ALGORITHM}{}", self.pages.finalize().to_hex()))
    }
}

impl MemoryDigest {
    /// Of an image that is at hand.
    #[must_use]
    pub fn of(image: &[u8]) -> Self {
        let mut hasher = MemoryHasher::default();
        hasher.update(image);
        hasher.finish()
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

/// Whether a file may be sent past the registry: an image with pages, or those that come before the freeze.
#[must_use]
pub fn goes_past_the_registry(file: &str) -> bool {
    file == PRE_COPY || is_memory(file)
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
    fn a_digest_is_the_same_however_its_image_comes() {
        let image: Vec<u8> = (0..3 * PAGE + 5).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let hashes: Vec<PageHash> = image.chunks(PAGE).map(hash_of).collect();
        assert_eq!(MemoryDigest::of(&image).0, format!("blake3-4k:{}", blake3::hash(hashes.as_flattened()).to_hex()));
        for chunk in [1, 7, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 3] {
            let mut digest = MemoryHasher::default();
            image.chunks(chunk).for_each(|chunk| digest.update(chunk));
            assert_eq!(digest.finish(), MemoryDigest::of(&image), "in chunks of {chunk}");
        }
        let mut digest = MemoryHasher::default();
        digest.pages(&hashes[..2]);
        digest.update(&image[2 * PAGE..]);
        assert_eq!(digest.finish(), MemoryDigest::of(&image));
        assert_ne!(MemoryDigest::of(b""), MemoryDigest::of(&[0]));
    }

    #[test]
    fn a_list_is_read_or_refused_with_its_field() {
        let list = |file: &str, digest: &str| serde_json::to_vec(&serde_json::json!([{"file": file, "bytes": 1, "digest": digest}])).unwrap();
        let digest = MemoryDigest::of(b"memory").to_string();
        assert_eq!(parse(&list("pages-1.img", &digest)).unwrap()[0].bytes, 1);
        assert!(parse(&list("../../etc/passwd", &digest)).is_err_and(|problem| problem.contains("file")));
        assert!(parse(&list("pages-1.img", &digest.replace("blake3-4k", "sha256"))).is_err_and(|problem| problem.contains("digest")));
        assert!(parse(b"{").is_err());
    }
}
