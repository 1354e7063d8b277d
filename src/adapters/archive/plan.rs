//! Where each byte of the layer comes from.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use bytes::Bytes;
use tar::{EntryType, Header};

use super::{
    ArchiveError,
    mend::{self, Mender},
};

/// Tar's unit, in bytes: headers are one, contents are filled up to a multiple.
const BLOCK: u64 = 512;

/// Largest OCI spec that is read for its user, in bytes.
const SPEC_CAP: u64 = 4 << 20;

/// What every checkpoint of containerd has (FACTS.md 2.3); `checkpoint/` is a folder.
const REQUIRED: [&str; 4] = ["config.dump", "spec.dump", "status.dump", "checkpoint"];

/// A stretch of the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes of the archive as they are.
    Copy { offset: u64, length: u64 },
    /// Bytes that were made anew.
    New(Bytes),
}

impl Piece {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Copy { length, .. } => *length,
            Self::New(bytes) => bytes.len() as u64,
        }
    }
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) pieces: Vec<Piece>,
    pub(super) user: Option<String>,
}

/// A problem before it is known which file it is about.
pub(super) enum Problem {
    Io(io::Error),
    Archive(ArchiveError),
}

impl Problem {
    pub(super) fn of(self, path: &Path) -> ArchiveError {
        match self {
            // The tar library's own complaints carry no OS error; they are about the content.
            Self::Io(error) if error.raw_os_error().is_none() => ArchiveError::Damaged(error.to_string()),
            Self::Io(source) => ArchiveError::Read { path: path.to_owned(), source },
            Self::Archive(error) => error,
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ArchiveError> for Problem {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

/// One entry as far as it matters here.
struct Found {
    name: String,
    header: Header,
    header_at: u64,
    content_at: u64,
    size: u64,
}

impl Found {
    fn end(&self) -> u64 {
        self.content_at + self.size.next_multiple_of(BLOCK)
    }
}

/// Looks through an archive and lays out the layer.
pub(super) fn plan(file: &File, menders: &[Mender<'_>]) -> Result<Plan, Problem> {
    let length = file.metadata()?.len();
    let entries = entries(file, length)?;
    require(&entries)?;
    let mut layout = Layout { pieces: Vec::new(), copied: 0 };
    let mut user = None;
    for entry in &entries {
        if let Some(mender) = menders.iter().find(|mender| mender.entry == entry.name) {
            let content = content(file, entry, mender.entry, mender.cap)?;
            let changed = (mender.change)(&content).map_err(|problem| ArchiveError::Unmendable { entry: mender.entry, problem })?;
            layout.replace(entry, &changed);
        }
        if entry.name == "spec.dump" {
            let spec = content(file, entry, "spec.dump", SPEC_CAP)?;
            user = mend::user_of(&spec).map_err(|problem| ArchiveError::Unmendable { entry: "spec.dump", problem })?;
        }
    }
    layout.copy_to(length);
    Ok(Plan { pieces: layout.pieces, user })
}

struct Layout {
    pieces: Vec<Piece>,
    copied: u64,
}

impl Layout {
    fn copy_to(&mut self, offset: u64) {
        if offset > self.copied {
            self.pieces.push(Piece::Copy { offset: self.copied, length: offset - self.copied });
        }
        self.copied = offset;
    }

    /// Header with the new size and check sum, content, padding. An extension header before it stays as it is.
    fn replace(&mut self, entry: &Found, content: &[u8]) {
        self.copy_to(entry.header_at);
        let mut header = entry.header.clone();
        header.set_size(content.len() as u64);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        self.pieces.push(Piece::New(bytes.into()));
        self.copied = entry.end();
    }
}

fn entries(file: &File, length: u64) -> Result<Vec<Found>, Problem> {
    let mut handle = file;
    handle.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(handle);
    let mut found = Vec::new();
    let mut end = 0;
    for entry in archive.entries_with_seek()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let name = plain_name(&entry.path_bytes(), kind)?;
        let sized_elsewhere = entry.pax_extensions()?.into_iter().flatten().flatten().any(|extension| extension.key_bytes() == b"size");
        if sized_elsewhere && (REQUIRED.contains(&name.as_str())) {
            return Err(ArchiveError::Forbidden { name, problem: "whose size stands in an extension header" }.into());
        }
        let item = Found {
            name,
            header: entry.header().clone(),
            header_at: entry.raw_header_position(),
            content_at: entry.raw_file_position(),
            size: entry.size(),
        };
        end = item.end();
        if end > length {
            return Err(ArchiveError::Damaged(format!("{} ends at byte {end}, but the file has only {length}", item.name)).into());
        }
        found.push(item);
    }
    check_end(file, end, length)?;
    Ok(found)
}

/// A tar ends with zeros. Without them it was cut off between two entries, which nothing else would show.
fn check_end(mut file: &File, end: u64, length: u64) -> Result<(), Problem> {
    let mut mark = [1_u8; 512];
    let whole = end + mark.len() as u64 <= length && {
        file.seek(SeekFrom::Start(end))?;
        file.read_exact(&mut mark)?;
        mark.iter().all(|byte| *byte == 0)
    };
    if whole { Ok(()) } else { Err(ArchiveError::Damaged(format!("it breaks off at byte {length} without an end mark")).into()) }
}

fn require(entries: &[Found]) -> Result<(), ArchiveError> {
    let mut names = BTreeSet::new();
    for entry in entries {
        let top = entry.name.split('/').next().unwrap_or_default();
        if !names.insert(entry.name.as_str()) && REQUIRED.contains(&entry.name.as_str()) && top != "checkpoint" {
            return Err(ArchiveError::Forbidden { name: entry.name.clone(), problem: "which is there twice" });
        }
    }
    let has = |wanted: &str| names.iter().any(|name| *name == wanted || (wanted == "checkpoint" && name.starts_with("checkpoint/")));
    REQUIRED.into_iter().find(|wanted| !has(wanted)).map_or(Ok(()), |missing| Err(ArchiveError::Missing(missing)))
}

/// The entry's name without `./` and a trailing slash. Only files and folders below the root are let through: containerd refuses or skips all else,
/// and no checkpoint has it.
fn plain_name(raw: &[u8], kind: EntryType) -> Result<String, ArchiveError> {
    let text = String::from_utf8_lossy(raw);
    let forbidden = |problem| ArchiveError::Forbidden { name: text.chars().take(80).collect(), problem };
    if !matches!(kind, EntryType::Regular | EntryType::Directory) {
        return Err(forbidden("which is neither a file nor a folder"));
    }
    if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err(forbidden("which leads out of the archive"));
    }
    Ok(text.trim_start_matches("./").trim_end_matches('/').to_owned())
}

fn content(mut file: &File, entry: &Found, name: &'static str, cap: u64) -> Result<Vec<u8>, Problem> {
    if entry.size > cap {
        return Err(ArchiveError::Unmendable {
            entry: name,
            problem: format!("has {} bytes, more than the {cap} that any real one has", entry.size),
        }
        .into());
    }
    file.seek(SeekFrom::Start(entry.content_at))?;
    let mut bytes = Vec::new();
    file.take(entry.size).read_to_end(&mut bytes)?;
    Ok(bytes)
}
