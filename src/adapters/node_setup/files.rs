//! Changes of files: shown, then made.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::SetupError;

const BEGIN: &str = "# drover: begin";
const END: &str = "# drover: end";

/// One file, as it is and as it should be; none where there is no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    path: PathBuf,
    before: Option<Vec<u8>>,
    after: Option<(Vec<u8>, u32)>,
}

impl Change {
    pub(super) fn to(root: &Path, path: &str, content: Vec<u8>, mode: u32) -> Result<Self, SetupError> {
        let path = root.join(path.trim_start_matches('/'));
        Ok(Self { before: read_optional(&path)?, path, after: Some((content, mode)) })
    }

    pub(super) fn away(root: &Path, path: &str) -> Result<Self, SetupError> {
        let path = root.join(path.trim_start_matches('/'));
        Ok(Self { before: read_optional(&path)?, path, after: None })
    }

    pub(super) fn is_one(&self) -> bool {
        self.before.as_deref() != self.after.as_ref().map(|(content, _)| content.as_slice())
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the change. A file is replaced whole, so that a container that starts meanwhile finds the old gate or the new one.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn apply(&self) -> Result<(), SetupError> {
        self.write().map_err(|source| SetupError::File { path: self.path.clone(), source })
    }

    fn write(&self) -> io::Result<()> {
        let Some((content, mode)) = &self.after else {
            return fs::remove_file(&self.path);
        };
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut name = self.path.clone().into_os_string();
        name.push(".drover-new");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(*mode).open(&name)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(*mode))?;
        file.sync_all()?;
        fs::rename(&name, &self.path)
    }
}

/// The lines that go and the lines that come. These changes only add or remove stretches, so no longer comparison is needed.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.before.as_deref().unwrap_or_default();
        let after = self.after.as_ref().map(|(content, _)| content.as_slice()).unwrap_or_default();
        let what = match (&self.before, &self.after) {
            (None, _) => "new",
            (_, None) => "removed",
            _ => "changed",
        };
        writeln!(f, "{} ({what})", self.path.display())?;
        let (Ok(before), Ok(after)) = (std::str::from_utf8(before), std::str::from_utf8(after)) else {
            return writeln!(f, "  a program: {} bytes, before {} bytes", after.len(), before.len());
        };
        let old: Vec<&str> = before.lines().collect();
        let new: Vec<&str> = after.lines().collect();
        for line in old.iter().filter(|line| !new.contains(line)) {
            writeln!(f, "  - {line}")?;
        }
        for line in new.iter().filter(|line| !old.contains(line)) {
            writeln!(f, "  + {line}")?;
        }
        Ok(())
    }
}

/// A text with stretches of ours between two marks, which can be taken out again.
pub(super) struct Lines<'a>(Vec<&'a str>);

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self(text.lines().collect())
    }

    /// With these lines at the end, as far as they are missing; a setting with a value counts as there whatever its value.
    pub(super) fn with(&self, wanted: &[&str]) -> String {
        let key = |line: &str| line.trim().split([' ', '=']).next().unwrap_or_default().to_owned();
        let missing: Vec<&str> = wanted.iter().copied().filter(|line| !self.0.iter().any(|there| key(there) == key(line))).collect();
        let ours = if missing.is_empty() { Vec::new() } else { [vec![BEGIN], missing, vec![END]].concat() };
        joined(self.0.iter().copied().chain(ours))
    }

    /// With this line at the beginning.
    pub(super) fn with_first(&self, line: &str) -> String {
        joined([BEGIN, line, END].into_iter().chain(self.0.iter().copied()))
    }

    pub(super) fn without_ours(&self) -> String {
        let mut ours = false;
        joined(self.0.iter().copied().filter(|line| {
            let mark = *line == BEGIN || *line == END;
            if mark {
                ours = *line == BEGIN;
            }
            !ours && !mark
        }))
    }
}

fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.flat_map(|line| [line, "\n"]).collect()
}

pub(super) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, SetupError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SetupError::File { path: path.to_owned(), source }),
    }
}
