//! Checkpoints laid out for `drover-runc` ([`crate::runc`]): a folder for each container, in memory where there is room for it.
//!
//! The archive is the kubelet's: of it CRIU's images, the difference of the root file system and the log are of use here, and nothing else is written.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

use async_trait::async_trait;
use futures::StreamExt as _;
use tar::{Archive, EntryType};

use super::volumes::{Hashed, Received};
use crate::{
    domain::ids::{Digest, is_dns_subdomain, is_uid},
    ports::{
        BlobStream, PortError, PortResult,
        layout::{Copy, Layout},
    },
};

const RESTORE_ROOT: &str = "/run/drover/restore";

/// CRIU's images in the archive, and in the folder that is laid out.
const IMAGES: &str = "checkpoint";
/// The difference of the container's root file system.
const DIFFERENCE: &str = "rootfs-diff.tar";
/// The container's log so far, as the runtime writes logs.
const LOG: &str = "container.log";
/// Written last; its content is what the container is restored from.
const READY: &str = "ready";
/// Where a kubelet keeps pods' logs (`podLogsDir`).
const LOGS: &str = "var/log/pods";
/// What stays free of the node's memory besides the checkpoint and the processes that are restored from it, in bytes.
const SPARE: u64 = 256 << 20;

/// Checkpoints on the node whose root is at `node`.
#[derive(Debug, Clone)]
pub struct NodeLayout {
    node: PathBuf,
    disk: PathBuf,
}

impl NodeLayout {
    /// On the node whose root is at `node`; what memory has no room for lies below `disk` there.
    #[must_use]
    pub fn new(node: &Path, disk: &Path) -> Self {
        Self { node: node.to_owned(), disk: disk.to_owned() }
    }

    fn on_node(&self, path: &Path) -> PathBuf {
        self.node.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn pod(&self, pod_uid: &str) -> io::Result<PathBuf> {
        if is_uid(pod_uid) { Ok(self.on_node(Path::new(RESTORE_ROOT)).join(pod_uid)) } else { Err(invalid(format!("{pod_uid:?} is no pod UID"))) }
    }

    fn folder(&self, pod_uid: &str, container: &str) -> io::Result<PathBuf> {
        if !is_dns_subdomain(container) || container.contains('.') {
            return Err(invalid(format!("{container:?} is no container's name")));
        }
        Ok(self.pod(pod_uid)?.join(container))
    }

    /// Where a checkpoint really lies. A link's goal is a path on the node, which this process may have elsewhere.
    fn place(&self, pod_uid: &str, container: &str) -> io::Result<PathBuf> {
        let folder = self.folder(pod_uid, container)?;
        let is_link = fs::symlink_metadata(&folder).is_ok_and(|found| found.is_symlink());
        Ok(if is_link { self.far(pod_uid, container) } else { folder })
    }

    /// Where it lies on disk.
    fn far(&self, pod_uid: &str, container: &str) -> PathBuf {
        self.on_node(&self.disk).join(pod_uid).join(container)
    }

    fn write(&self, copy: &Copy, tar: Received) -> io::Result<Digest> {
        let folder = self.folder(&copy.pod_uid, &copy.container)?;
        let far = self.far(&copy.pod_uid, &copy.container);
        remove(&folder, &far)?;
        let above = folder.parent().unwrap_or(&self.node);
        make(above)?;
        let on_disk = !has_room(above, copy.bytes);
        if on_disk {
            // By its path on the node: that is where it is followed.
            make(&far)?;
            symlink(self.disk.join(&copy.pod_uid).join(&copy.container), &folder)?;
        }
        let folder = if on_disk { far } else { folder };
        make(&folder.join(IMAGES))?;
        let mut hashed = Hashed::new(tar);
        for entry in Archive::new(&mut hashed).entries()? {
            let mut entry = entry?;
            if let Some(name) = wanted(&entry.path()?, entry.header().entry_type())? {
                io::copy(&mut entry, &mut create(&folder.join(name))?)?;
            }
        }
        let digest = hashed.finish()?;
        if on_disk {
            rustix::fs::syncfs(File::open(&folder)?)?;
        }
        Ok(digest)
    }

    /// Only now that its digest is right.
    fn finish(&self, copy: &Copy) -> io::Result<()> {
        let folder = self.place(&copy.pod_uid, &copy.container)?;
        self.place_log(copy, &folder.join(LOG))?;
        fs::write(folder.join(READY), &copy.image)
    }

    /// The kubelet makes the pod's folder with its sandbox; where it is elsewhere, the log is left out.
    fn place_log(&self, copy: &Copy, log: &Path) -> io::Result<()> {
        let pod = self.node.join(LOGS).join(format!("{}_{}", copy.pod, copy.pod_uid));
        if !log.exists() || !pod.is_dir() {
            return Ok(());
        }
        let folder = pod.join(&copy.container);
        fs::create_dir_all(&folder)?;
        let mut to = File::options().write(true).create(true).truncate(true).mode(0o640).open(folder.join("0.log"))?;
        io::copy(&mut File::open(log)?, &mut to)?;
        fs::remove_file(log)
    }
}

/// Where an entry of the archive goes; none where it is of no use.
fn wanted(path: &Path, kind: EntryType) -> io::Result<Option<PathBuf>> {
    let parts: Vec<&str> = path
        .components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(name) => name.to_str().ok_or_else(|| invalid(format!("{} is no name that an archive has", path.display()))),
            _ => Err(invalid(format!("{} leads out of the archive", path.display()))),
        })
        .collect::<io::Result<_>>()?;
    let is_wanted = matches!(parts.as_slice(), [DIFFERENCE | LOG] | [IMAGES, _]);
    match kind {
        EntryType::Regular if is_wanted => Ok(Some(parts.iter().collect())),
        EntryType::Regular | EntryType::Directory => Ok(None),
        other => Err(invalid(format!("{} is of kind {other:?}, which no archive has", path.display()))),
    }
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// Whether memory has room for a checkpoint, and once more for the processes that are restored from it.
fn has_room(folder: &Path, bytes: u64) -> bool {
    let free = rustix::fs::statvfs(folder).map(|found| found.f_bavail.saturating_mul(found.f_frsize)).unwrap_or_default();
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text)).unwrap_or_default();
    free > bytes && available > bytes.saturating_mul(2).saturating_add(SPARE)
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn mem_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// It is the memory of somebody's processes: nobody else may read it.
fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Removes a folder, or the link that stands for one and what it leads to.
fn remove(folder: &Path, on_disk: &Path) -> io::Result<()> {
    for path in [folder, on_disk] {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path)?,
            Ok(_) => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn failed(doing: &str, error: &io::Error) -> PortError {
    PortError::transient(format!("failed to {doing}: {error}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[async_trait]
impl Layout for NodeLayout {
    async fn is_laid_out(&self, pod_uid: &str, container: &str) -> PortResult<bool> {
        let place = self.place(pod_uid, container).map_err(|error| PortError::permanent(error.to_string()))?;
        Ok(place.join(READY).is_file())
    }

    async fn lay_out(&self, copy: &Copy, mut tar: BlobStream, digest: &Digest) -> PortResult<()> {
        let (reader, sender) = Received::channel();
        let (this, of) = (self.clone(), copy.clone());
        let written = tokio::task::spawn_blocking(move || this.write(&of, reader));
        while let Some(chunk) = tar.next().await {
            // It has failed, and says why.
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
        drop(sender);
        let what = format!("the checkpoint of container {}", copy.container);
        match written.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(found) if found == *digest => {}
            Ok(found) => return Err(PortError::permanent(format!("{what} has the digest {found}, not {digest}: it was changed on the way"))),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(PortError::permanent(format!("{what}: {error}"))),
            Err(error) => return Err(failed(&format!("lay out {what}"), &error)),
        }
        let (this, of) = (self.clone(), copy.clone());
        blocking(move || this.finish(&of)).await.map_err(|error| failed(&format!("lay out {what}"), &error))
    }

    async fn discard(&self, pod_uid: &str) -> PortResult<()> {
        let (this, uid) = (self.clone(), pod_uid.to_owned());
        let removed = blocking(move || remove(&this.pod(&uid)?, &this.on_node(&this.disk).join(&uid))).await;
        removed.map_err(|error| failed("remove a checkpoint that was laid out", &error))
    }

    async fn pods(&self) -> PortResult<Vec<String>> {
        let mut found = vec![];
        for root in [self.on_node(Path::new(RESTORE_ROOT)), self.on_node(&self.disk)] {
            match fs::read_dir(&root) {
                Ok(entries) => {
                    found.extend(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| is_uid(name)))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("list the checkpoints that are laid out", &error)),
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
