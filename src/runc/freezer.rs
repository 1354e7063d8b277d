//! A container's freezer, as runc knows it: without a process of runc's for each look, since every millisecond counts while a container is frozen.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;

/// How long it may take to freeze what has stopped already.
const PATIENCE: Duration = Duration::from_secs(5);

/// What of runc's state.json is needed.
#[derive(Deserialize)]
struct State {
    cgroup_paths: BTreeMap<String, PathBuf>,
}

/// A container's freezer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Freezer {
    /// The folder of a freezer of version 1.
    One(PathBuf),
    /// The folder of a cgroup of version 2.
    Two(PathBuf),
}

impl Freezer {
    /// That of a container whose state runc keeps below `root`.
    ///
    /// # Errors
    /// Where runc's state cannot be read.
    pub(super) fn of(root: &Path, id: &str) -> Result<Self, String> {
        let path = root.join(id).join("state.json");
        let read = fs::read(&path).map_err(|error| error.to_string());
        let state: State = read
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        let mut paths = state.cgroup_paths;
        // Where there are both, runc freezes by the first.
        let found = paths.remove("freezer").map(Self::One).or_else(|| paths.remove("").map(Self::Two));
        found.ok_or_else(|| format!("{} names no freezer", path.display()))
    }

    pub(super) fn is_frozen(&self) -> bool {
        let says = |path: PathBuf, wanted: &str| fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line == wanted));
        match self {
            Self::One(folder) => says(folder.join("freezer.state"), "FROZEN"),
            Self::Two(folder) => says(folder.join("cgroup.freeze"), "1") && says(folder.join("cgroup.events"), "frozen 1"),
        }
    }

    /// Freezes, and waits until all is frozen.
    ///
    /// # Errors
    /// Where it cannot, or that does not come.
    pub(super) fn freeze(&self) -> Result<(), String> {
        let (file, word) = match self {
            Self::One(folder) => (folder.join("freezer.state"), "FROZEN"),
            Self::Two(folder) => (folder.join("cgroup.freeze"), "1"),
        };
        fs::write(&file, word).map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
        let begin = Instant::now();
        while !self.is_frozen() {
            if begin.elapsed() >= PATIENCE {
                return Err(format!("{}: not all is frozen after {} s", file.display(), PATIENCE.as_secs()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runcs_state_tells_where_it_is() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("id");
        fs::create_dir(&folder).unwrap();
        for (paths, wanted) in [
            (r#"{"": "/u", "freezer": "/f", "cpu": "/c"}"#, Ok(Freezer::One("/f".into()))),
            (r#"{"": "/u"}"#, Ok(Freezer::Two("/u".into()))),
            (r#"{"cpu": "/c"}"#, Err("names no freezer")),
        ] {
            fs::write(folder.join("state.json"), format!(r#"{{"id": "id", "cgroup_paths": {paths}}}"#)).unwrap();
            match (Freezer::of(root.path(), "id"), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
                (Err(found), Err(wanted)) => assert!(found.ends_with(wanted), "{found}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(Freezer::of(root.path(), "other").unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn it_is_frozen_when_all_in_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (one, two) = (Freezer::One(folder.path().into()), Freezer::Two(folder.path().into()));
        assert!(!one.is_frozen() && !two.is_frozen());
        fs::write(at("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        fs::write(at("freezer.state"), "FREEZING\n").unwrap();
        fs::write(at("cgroup.freeze"), "1\n").unwrap();
        assert!(!one.is_frozen() && !two.is_frozen());
        fs::write(at("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        one.freeze().unwrap();
        two.freeze().unwrap();
        assert!(Freezer::One(at("none")).freeze().unwrap_err().contains("cannot be written"));
    }
}
