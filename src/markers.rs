//! The durable files that the gate and the agent agree on: `<root>/<podUID>/fence`.
//!
//! A fence is a file whose content is the UID of the migration that froze the pod. While it stands the gate refuses every new container of
//! that pod (R8), without the agent and across a reboot. A marker is complete or absent: it is written to a temporary name, synced, and renamed.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Where the markers lie on a node. On disk, since a fence must outlast a power failure.
pub const GATE_ROOT: &str = "/var/lib/drover/gate";

/// The markers below one folder.
#[derive(Debug, Clone)]
pub struct Markers {
    root: PathBuf,
}

impl Markers {
    /// The markers below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn fence_path(&self, pod_uid: &str) -> io::Result<PathBuf> {
        if pod_uid.len() >= 8 && pod_uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            Ok(self.root.join(pod_uid).join("fence"))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "pod UID: only letters, digits and dashes are allowed"))
        }
    }

    /// The migration that has fenced a pod, or none.
    ///
    /// # Errors
    /// Where the marker cannot be read for another reason than its absence: the caller must then act as if the fence stood.
    pub fn fenced_by(&self, pod_uid: &str) -> io::Result<Option<String>> {
        match fs::read_to_string(self.fence_path(pod_uid)?) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fences a pod for a migration; durable when it returns. Fencing it twice for the same migration is no error.
    ///
    /// # Errors
    /// `AlreadyExists` where another migration has fenced it; otherwise what the file system says.
    pub fn fence(&self, pod_uid: &str, migration_uid: &str) -> io::Result<()> {
        let path = self.fence_path(pod_uid)?;
        if let Some(owner) = self.fenced_by(pod_uid)? {
            return if owner == migration_uid {
                Ok(())
            } else {
                Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("the pod is fenced by migration {owner}")))
            };
        }
        write_durably(&path, migration_uid.as_bytes())
    }

    /// Removes the fence of a migration; durable when it returns. Nothing happens where there is none.
    ///
    /// # Errors
    /// `PermissionDenied` where the fence is another migration's (R11); otherwise what the file system says.
    pub fn unfence(&self, pod_uid: &str, migration_uid: &str) -> io::Result<()> {
        match self.fenced_by(pod_uid)? {
            None => Ok(()),
            Some(owner) if owner == migration_uid => {
                let path = self.fence_path(pod_uid)?;
                fs::remove_file(&path)?;
                let folder = path.parent().unwrap_or(&self.root);
                sync_folder(folder)?;
                // Not empty only where another marker of the pod lies there, which then keeps its folder.
                let _ = fs::remove_dir(folder);
                Ok(())
            }
            Some(owner) => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the fence belongs to migration {owner}"))),
        }
    }
}

/// Writes a file so that after a crash it is there whole or not at all.
///
/// # Errors
/// What the file system says.
pub fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no folder"))?;
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(folder)?;
    if let Some(above) = folder.parent() {
        sync_folder(above)?;
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0f1c22aa-0000-4000-8000-000000000000";

    #[test]
    fn a_fence_belongs_to_one_migration() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let markers = Markers::new(folder.path());
        assert_eq!(markers.fenced_by(POD)?, None);
        markers.fence(POD, "one")?;
        markers.fence(POD, "one")?;
        assert_eq!(markers.fenced_by(POD)?.as_deref(), Some("one"));
        assert_eq!(markers.fence(POD, "two").map_err(|e| e.kind()), Err(io::ErrorKind::AlreadyExists));
        assert_eq!(markers.unfence(POD, "two").map_err(|e| e.kind()), Err(io::ErrorKind::PermissionDenied));
        markers.unfence(POD, "one")?;
        markers.unfence(POD, "one")?;
        assert_eq!(markers.fenced_by(POD)?, None);
        assert!(!folder.path().join(POD).exists());
        Ok(())
    }

    #[test]
    fn a_hostile_uid_names_no_file() {
        let markers = Markers::new("/nonexistent");
        assert!(markers.fenced_by("../../etc/shadow").is_err());
        assert!(markers.fence("", "one").is_err());
    }
}
