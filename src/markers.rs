//! The durable files that the gate and the agent agree on: `<root>/<podUID>/fence` and `<root>/<podUID>/<container>.<state>`.
//!
//! A **fence** is a file whose content is the UID of the migration that froze the pod. While it stands the gate refuses every new container of
//! that pod (R8), without the agent and across a reboot.
//!
//! A **claim** is a file whose name says how far a container of a replacement may go. It has one atomic transition at a time, a rename (R3):
//!
//! ```text
//! waiting ──gate, before the restore──▶ taken ──agent, after the confirmation (R17)──▶ open
//!    └────agent────▶ revoked              └────agent, with its proof────▶ failed
//! ```
//!
//! Only `waiting` (which is taken by it) and `open` let a container start. A marker is complete or absent: it is written to a temporary
//! name, synced, and renamed.

pub mod evidence;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Where the markers lie on a node. On disk, since a fence must outlast a power failure.
pub const GATE_ROOT: &str = "/var/lib/drover/gate";

/// End of the content of a claim that only `drover-runc` may take.
const BY_RUNTIME: &str = " runtime";

/// How far a container of a replacement may go; the stricter is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// The checkpoint is out of reach: ordinary creates pass, no restore does.
    Open,
    /// Nobody has started it yet; the next create is the restore.
    Waiting,
    /// The gate has let its one restore through.
    Taken,
    /// That restore was refused before its resume point, and there is proof.
    Failed,
    /// It will never start.
    Revoked,
}

impl Claim {
    const ALL: [Self; 5] = [Self::Waiting, Self::Taken, Self::Failed, Self::Revoked, Self::Open];

    /// The name, as it ends the file's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Taken => "taken",
            Self::Failed => "failed",
            Self::Revoked => "revoked",
            Self::Open => "open",
        }
    }
}

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

    fn folder(&self, pod_uid: &str) -> io::Result<PathBuf> {
        if pod_uid.len() >= 8 && pod_uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            Ok(self.root.join(pod_uid))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "pod UID: only letters, digits and dashes are allowed"))
        }
    }

    fn fence_path(&self, pod_uid: &str) -> io::Result<PathBuf> {
        self.folder(pod_uid).map(|folder| folder.join("fence"))
    }

    fn claim_path(&self, pod_uid: &str, container: &str, claim: Claim) -> io::Result<PathBuf> {
        // A DNS label, as Kubernetes demands of container names.
        if !container.is_empty() && container.len() <= 63 && container.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            Ok(self.folder(pod_uid)?.join(format!("{container}.{}", claim.as_str())))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "container name: only letters, digits and dashes are allowed"))
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

    /// Lets a container of a replacement be restored once. Nothing happens where it has a claim already, whatever its state.
    ///
    /// # Errors
    /// What the file system says.
    pub fn arm(&self, pod_uid: &str, container: &str, migration_uid: &str) -> io::Result<()> {
        if self.claim(pod_uid, container)?.is_some() {
            return Ok(());
        }
        write_durably(&self.claim_path(pod_uid, container, Claim::Waiting)?, migration_uid.as_bytes())
    }

    /// The same where only `drover-runc` restores it: an ordinary create does not take the claim, whatever runtime the pod has got.
    ///
    /// # Errors
    /// What the file system says.
    pub fn arm_for_runtime(&self, pod_uid: &str, container: &str, migration_uid: &str) -> io::Result<()> {
        self.arm(pod_uid, container, &format!("{migration_uid}{BY_RUNTIME}"))
    }

    /// Whether a waiting claim was armed by [`Self::arm_for_runtime`].
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn is_for_runtime(&self, pod_uid: &str, container: &str) -> io::Result<bool> {
        Ok(fs::read_to_string(self.claim_path(pod_uid, container, Claim::Waiting)?)?.ends_with(BY_RUNTIME))
    }

    /// Lets a container of a pod with claims start as often as its kubelet likes: it is no restore.
    ///
    /// # Errors
    /// What the file system says.
    pub fn admit(&self, pod_uid: &str, container: &str, migration_uid: &str) -> io::Result<()> {
        write_durably(&self.claim_path(pod_uid, container, Claim::Open)?, migration_uid.as_bytes())
    }

    /// The claim of a container, or none where Drover says nothing about it.
    ///
    /// # Errors
    /// Where the folder cannot be read for another reason than its absence: the caller must then act as if the container must not start.
    pub fn claim(&self, pod_uid: &str, container: &str) -> io::Result<Option<Claim>> {
        Ok(self.claims(pod_uid)?.into_iter().filter(|(name, _)| name == container).map(|(_, claim)| claim).max())
    }

    /// All claims of a pod: container and state.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn claims(&self, pod_uid: &str) -> io::Result<Vec<(String, Claim)>> {
        let entries = match fs::read_dir(self.folder(pod_uid)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            other => other?,
        };
        let mut claims: Vec<(String, Claim)> = vec![];
        for entry in entries {
            let file = entry?.file_name().to_string_lossy().into_owned();
            let Some((container, state)) = file.rsplit_once('.') else { continue };
            let Some(claim) = Claim::ALL.into_iter().find(|claim| claim.as_str() == state) else { continue };
            claims.push((container.to_owned(), claim));
        }
        Ok(claims)
    }

    /// Moves a claim from one state to the next by one rename; durable when it returns. False where it is not in that state (any more): then
    /// nothing has happened, and somebody else has decided.
    ///
    /// # Errors
    /// What the file system says.
    pub fn advance(&self, pod_uid: &str, container: &str, from: Claim, to: Claim) -> io::Result<bool> {
        let (old, new) = (self.claim_path(pod_uid, container, from)?, self.claim_path(pod_uid, container, to)?);
        match fs::rename(&old, &new) {
            Ok(()) => {
                sync_folder(old.parent().unwrap_or(&self.root))?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Forgets the claims of a pod and what was kept as their evidence; a fence stays. Nothing happens where there are none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn disarm(&self, pod_uid: &str) -> io::Result<()> {
        let folder = self.folder(pod_uid)?;
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name() != "fence" {
                fs::remove_file(entry.path())?;
            }
        }
        sync_folder(&folder)?;
        let _ = fs::remove_dir(&folder);
        Ok(())
    }

    /// Where the gate notes what it has let through: `<container>.evidence`.
    ///
    /// # Errors
    /// Where a name is none.
    pub fn evidence_path(&self, pod_uid: &str, container: &str) -> io::Result<PathBuf> {
        Ok(self.claim_path(pod_uid, container, Claim::Taken)?.with_extension("evidence"))
    }

    /// UIDs of the pods that have markers.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn pods(&self) -> io::Result<Vec<String>> {
        match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            entries => entries?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
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
    fn a_claim_is_taken_once_or_revoked() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let markers = Markers::new(folder.path());
        markers.arm(POD, "c", "one")?;
        assert_eq!(markers.claim(POD, "c")?, Some(Claim::Waiting));
        assert!(markers.advance(POD, "c", Claim::Waiting, Claim::Taken)?);
        assert!(!markers.advance(POD, "c", Claim::Waiting, Claim::Taken)?, "once");
        assert!(!markers.advance(POD, "c", Claim::Waiting, Claim::Revoked)?, "taken and revoked exclude each other");
        markers.arm(POD, "c", "one")?;
        assert_eq!(markers.claim(POD, "c")?, Some(Claim::Taken), "armed again it stays as it is");
        assert!(markers.advance(POD, "c", Claim::Taken, Claim::Failed)?);
        markers.fence(POD, "two")?;
        markers.disarm(POD)?;
        assert_eq!((markers.claim(POD, "c")?, markers.fenced_by(POD)?.as_deref()), (None, Some("two")));
        markers.disarm(POD)
    }

    #[test]
    fn what_is_admitted_starts_as_often_as_it_likes_and_opens_nothing_else() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let markers = Markers::new(folder.path());
        markers.arm(POD, "c", "one")?;
        markers.admit(POD, "init", "one")?;
        markers.admit(POD, "init", "one")?;
        assert_eq!((markers.claim(POD, "init")?, markers.claim(POD, "c")?), (Some(Claim::Open), Some(Claim::Waiting)));
        Ok(())
    }

    #[test]
    fn a_hostile_uid_names_no_file() {
        let markers = Markers::new("/nonexistent");
        assert!(markers.fenced_by("../../etc/shadow").is_err());
        assert!(markers.fence("", "one").is_err());
        assert!(markers.arm(POD, "../x", "one").is_err() && markers.arm(POD, "", "one").is_err());
    }
}
