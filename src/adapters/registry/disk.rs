//! The registry's data folder, as distribution's file system driver lays it out.
//!
//! ```text
//! docker/registry/v2/blobs/sha256/<xx>/<hex>/data                                   content, shared by all repositories
//! docker/registry/v2/repositories/<name>/_layers/sha256/<hex>/link                  a blob that the repository has
//! docker/registry/v2/repositories/<name>/_manifests/revisions/sha256/<hex>/link     a manifest that it has
//! ```
//!
//! A delete by the API removes links only; the content stays until a garbage collection, for which the registry must stand still. Checkpoints hold
//! the memory of processes, so Drover removes their content itself: what no other repository links cannot be missed.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::domain::ids::{Digest, is_repository};

/// The data folder of one registry. Every method blocks.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    root: PathBuf,
}

/// What a repository links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Links {
    pub(super) layers: BTreeSet<Digest>,
    pub(super) revisions: BTreeSet<Digest>,
}

impl Disk {
    /// The folder that the registry's configuration names as `storage.filesystem.rootdirectory`.
    pub(super) fn new(data: &Path) -> Self {
        Self { root: data.join("docker/registry/v2") }
    }

    fn repository(&self, name: &str) -> io::Result<PathBuf> {
        if is_repository(name) {
            Ok(self.root.join("repositories").join(name))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no repository of Drover's")))
        }
    }

    /// Every repository of Drover's.
    pub(super) fn repositories(&self) -> io::Result<Vec<String>> {
        let names = names_in(&self.root.join("repositories/drover"))?;
        Ok(names.into_iter().map(|name| format!("drover/{name}")).filter(|name| is_repository(name)).collect())
    }

    pub(super) fn links(&self, repository: &str) -> io::Result<Links> {
        links_below(&self.repository(repository)?)
    }

    /// Everything that another repository links, Drover's or not.
    pub(super) fn linked_elsewhere(&self, repository: &str) -> io::Result<BTreeSet<Digest>> {
        let own = self.repository(repository)?;
        let mut found = BTreeSet::new();
        let mut folders = vec![self.root.join("repositories")];
        while let Some(folder) = folders.pop() {
            if folder == own {
                continue;
            }
            for name in names_in(&folder)? {
                // Names of repositories cannot begin with an underscore; such a folder marks that this one is a repository.
                if name == "_layers" {
                    let links = links_below(&folder)?;
                    found.extend(links.layers.into_iter().chain(links.revisions));
                } else if !name.starts_with('_') && folder.join(&name).is_dir() {
                    folders.push(folder.join(name));
                }
            }
        }
        Ok(found)
    }

    /// Removes content. Nothing happens where it is gone.
    pub(super) fn remove_content(&self, digest: &Digest) -> io::Result<()> {
        let hex = hex(digest);
        gone(fs::remove_dir_all(self.root.join("blobs/sha256").join(&hex[..2]).join(hex)))
    }

    /// Removes a repository's links to a digest, whether blob or manifest.
    pub(super) fn remove_links(&self, repository: &str, digest: &Digest) -> io::Result<()> {
        let folder = self.repository(repository)?;
        gone(fs::remove_dir_all(folder.join("_layers/sha256").join(hex(digest))))?;
        gone(fs::remove_dir_all(folder.join("_manifests/revisions/sha256").join(hex(digest))))
    }

    /// Removes uploads that were never ended: the agent that pushed was killed. What came of them is the memory of a process too.
    pub(super) fn remove_uploads(&self, repository: &str) -> io::Result<()> {
        gone(fs::remove_dir_all(self.repository(repository)?.join("_uploads")))
    }

    /// Removes a repository's folder: links, tags and broken uploads.
    pub(super) fn remove_repository(&self, repository: &str) -> io::Result<()> {
        gone(fs::remove_dir_all(self.repository(repository)?))
    }
}

fn links_below(repository: &Path) -> io::Result<Links> {
    let digests = |folder: PathBuf| -> io::Result<BTreeSet<Digest>> {
        let linked = names_in(&folder)?.into_iter().filter(|name| folder.join(name).join("link").is_file());
        Ok(linked.filter_map(|name| Digest::parse(&format!("sha256:{name}")).ok()).collect())
    };
    Ok(Links { layers: digests(repository.join("_layers/sha256"))?, revisions: digests(repository.join("_manifests/revisions/sha256"))? })
}

fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn hex(digest: &Digest) -> &str {
    digest.as_str().trim_start_matches("sha256:")
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
