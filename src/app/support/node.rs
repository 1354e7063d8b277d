//! A node's part of a support bundle: CRIU's logs that it keeps, written to its agent's caller and read there.

use std::{
    fs,
    io::{self, Read as _, Write},
    path::{Component, Path},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use crate::runc::kept;

/// So much of one log is believed, in bytes; a node keeps less.
const MOST: u64 = 4 << 20;

/// Writes what the node keeps below `root` and is no older than this, as a compressed tar.
///
/// # Errors
/// Where the folder cannot be read or the tar cannot be written.
pub fn write(root: &Path, since: Duration, out: impl Write) -> anyhow::Result<()> {
    let since = SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH);
    let kept = kept::list(root, since).with_context(|| format!("failed to read {}", root.display()))?;
    let mut tar = tar::Builder::new(GzEncoder::new(out, Compression::fast()));
    for log in kept {
        // It may have been removed since, to make room for others.
        let Ok(bytes) = fs::read(&log.path) else { continue };
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len())?);
        header.set_mode(0o600);
        tar.append_data(&mut header, &log.name, bytes.as_slice()).context("failed to write the logs")?;
    }
    tar.into_inner().and_then(GzEncoder::finish).and_then(|mut out| out.flush()).context("failed to write the logs")
}

/// What [`write`] has written: UID, file and content of each log.
///
/// # Errors
/// Where it is no such tar.
pub(super) fn unpacked(bytes: &[u8]) -> io::Result<Vec<(String, String, Vec<u8>)>> {
    let mut logs = vec![];
    for entry in tar::Archive::new(GzDecoder::new(bytes)).entries()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let names: Vec<_> = path.components().map(|name| matches!(name, Component::Normal(_)).then(|| name.as_os_str().to_string_lossy())).collect();
        let [Some(uid), Some(name)] = names.as_slice() else { continue };
        let mut log = vec![];
        entry.take(MOST).read_to_end(&mut log)?;
        logs.push((uid.clone().into_owned(), name.clone().into_owned(), log));
    }
    Ok(logs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_keeps_comes_as_it_is_and_not_what_is_too_old() {
        let root = tempfile::tempdir().unwrap();
        for (uid, age) in [("5f1c22aa", 0), ("6f1c22aa", 7200)] {
            fs::create_dir(root.path().join(uid)).unwrap();
            let path = root.path().join(uid).join("c.dump.log");
            fs::write(&path, format!("of {uid}\n")).unwrap();
            fs::File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        let read = |since| {
            let mut written = vec![];
            write(root.path(), Duration::from_secs(since), &mut written).unwrap();
            unpacked(&written).unwrap()
        };
        let log = |uid: &str| (uid.to_owned(), "c.dump.log".to_owned(), format!("of {uid}\n").into_bytes());
        assert_eq!(read(3600), [log("5f1c22aa")]);
        assert_eq!(read(u64::MAX), [log("5f1c22aa"), log("6f1c22aa")]);
        let mut none = vec![];
        write(&root.path().join("none"), Duration::from_secs(1), &mut none).unwrap();
        assert_eq!(unpacked(&none).unwrap(), []);
        assert!(unpacked(b"error: unrecognized subcommand").is_err());
    }
}
