//! The kubelet's checkpoint archive, on its way into an image.
//!
//! The archive becomes the image's one layer byte for byte, except for the entries that must be mended before a restore on another node. It is looked
//! through once, header by header (seeks, no data), which gives the length of the whole before the first byte is sent; then its data is read
//! once, and hashed while it is read.

mod mend;
mod plan;
mod stream;

use std::path::{Path, PathBuf};

use crate::ports::{Mending, PortError};

pub use stream::{Hashed, HashedStream};

/// What is wrong with an archive. All of these fail again with the same archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file itself cannot be read.
    #[error("failed to read the checkpoint archive {path}")]
    Read {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no tar, or ends too early.
    #[error("the checkpoint archive is damaged: {0}; free some disk space on the node and try again")]
    Damaged(String),
    /// A part without which nothing can restore it.
    #[error("the checkpoint archive has no {0}: the runtime's checkpoint is of a kind that Drover does not know")]
    Missing(&'static str),
    /// An entry that no checkpoint has, and that would be followed or made on the destination.
    #[error("the checkpoint archive has the entry {name:?}, {problem}; it is not sent")]
    Forbidden {
        /// The entry, cut to 80 characters.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An entry that must be mended cannot be.
    #[error("{entry} of the checkpoint archive {problem}")]
    Unmendable {
        /// The entry.
        entry: &'static str,
        /// Why.
        problem: String,
    },
}

impl From<ArchiveError> for PortError {
    fn from(error: ArchiveError) -> Self {
        match &error {
            ArchiveError::Read { source, .. } => Self::transient(format!("{error}: {source}")),
            _ => Self::permanent(error.to_string()),
        }
    }
}

/// An archive that has been looked through and can be streamed, as often as a push is tried.
#[derive(Debug, Clone)]
pub struct Archive {
    path: PathBuf,
    pieces: Vec<plan::Piece>,
    user: Option<String>,
}

impl Archive {
    /// Looks an archive through. Blocks: seeks through the file and reads the small entries.
    ///
    /// # Errors
    /// Where it cannot be read, is damaged or incomplete, or has entries that no checkpoint has.
    pub fn open(path: &Path, mending: &Mending) -> Result<Self, ArchiveError> {
        let file = std::fs::File::open(path).map_err(|source| ArchiveError::Read { path: path.to_owned(), source })?;
        let plan = plan::plan(&file, &mend::menders(mending)).map_err(|problem| problem.of(path))?;
        Ok(Self { path: path.to_owned(), pieces: plan.pieces, user: plan.user })
    }

    /// Length of the layer in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.pieces.iter().map(plan::Piece::len).sum()
    }

    /// `uid:gid` of the checkpointed process, where it is not root: the kubelet reads an image's user for `runAsNonRoot`.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The layer's bytes from this one on, where those that `hashed` stands for need not be hashed again. A thread reads and hashes while the last chunks
    /// are being sent.
    #[must_use]
    pub fn stream(&self, from: u64, hashed: Hashed) -> HashedStream {
        stream::start(self.path.clone(), self.pieces.clone(), from, hashed)
    }
}

#[cfg(test)]
mod tests;
