//! What is noted of each container that was restored, for the node's agent to read.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// UID of the pod.
    pub pod: String,
    /// Name of the container in its spec.
    pub container: String,
    /// The image of the checkpoint, as [`super::READY`] names it.
    pub checkpoint: String,
    /// Whether all of its memory is there.
    #[serde(default)]
    pub pages: Pages,
    /// When its processes ran again, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<u64>,
}

/// How far the memory of a restored container has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pages {
    /// All of it is there: always so of a restore that is not lazy, and of records of before there were others.
    #[default]
    Complete,
    /// The container runs, or is about to, and reads what it lacks from the images.
    Outstanding,
    /// It did not come whole, for this reason, and every process was killed before it could have seen that.
    Failed(String),
}

/// Beside a record, by names that no ID can have.
pub(super) fn beside(record: &Path, mark: &str) -> PathBuf {
    let mut name = record.to_owned().into_os_string();
    name.push(mark);
    name.into()
}

/// A record of which it is not known yet whether its processes run.
pub(super) fn pending(record: &Path) -> PathBuf {
    beside(record, "~")
}

/// Writes a record to a file of its own.
pub(super) fn write(path: &Path, record: &Record) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    serde_json::to_writer(&file, record).map_err(io::Error::other)
}

/// Says in a record how the memory has come; false where there is no such record, and none is made: the container may be deleted at any moment.
pub(super) fn settle(path: &Path, pages: &Pages) -> io::Result<bool> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    let record = Record { pages: pages.clone(), ..serde_json::from_slice(&bytes)? };
    let new = beside(path, "~new");
    write(&new, &record)?;
    // Put in its place only while there is one: a plain rename would bring a record back that a delete has just removed.
    let exchanged = renameat_with(CWD, &new, CWD, path, RenameFlags::EXCHANGE);
    fs::remove_file(&new)?;
    match exchanged {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_without_a_word_about_memory_is_complete() {
        let record: Record = serde_json::from_str(r#"{"pod": "u", "container": "c", "checkpoint": "i"}"#).unwrap();
        assert_eq!(record.pages, Pages::Complete);
        for (pages, text) in
            [(Pages::Complete, r#""complete""#), (Pages::Outstanding, r#""outstanding""#), (Pages::Failed("why".into()), r#"{"failed":"why"}"#)]
        {
            assert_eq!(serde_json::to_string(&pages).unwrap(), text);
        }
    }

    #[test]
    fn a_record_is_changed_and_never_brought_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        let record = Record { pod: "u".into(), container: "c".into(), checkpoint: "i".into(), pages: Pages::Outstanding, resumed: Some(7) };
        assert!(!settle(&path, &Pages::Complete).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        write(&path, &record).unwrap();
        assert!(settle(&path, &Pages::Failed("why".into())).unwrap());
        let found: Record = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(found, Record { pages: Pages::Failed("why".into()), ..record });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
