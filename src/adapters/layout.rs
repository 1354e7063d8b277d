//! Checkpoints laid out for `drover-runc` ([`crate::runc`]): a folder for each container, in memory where there is room for it.
//!
//! The archive is the kubelet's: of it CRIU's images, the difference of the root file system and the log are of use here, and nothing else is written.

mod take;

use std::{
    fs::{self, DirEntry, File},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{OpenOptionsExt as _, symlink},
    },
    path::{Component, Path, PathBuf},
};

use async_trait::async_trait;
use flate2::read::GzDecoder;
use tar::{Archive, EntryType};

use super::{
    blocking,
    memory_room::{has_room, make_private, remove, seen},
    received::{Received, feed, feed_at_once},
    volumes::Hashed,
    ways::Ways,
};
use crate::{
    domain::{
        ids::{Digest, is_dns_subdomain, is_repository, is_uid},
        keys::REPOSITORY_PREFIX,
        memory::{self, LIST, MemoryDigest, PRE_COPY, goes_past_the_registry},
    },
    ports::{
        BlobStream, PortError, PortResult,
        layout::{Copy, Incoming, Layout, Way},
    },
    runc::{CHECKPOINT, LAZY, LOG, LOG_FOLDER, POST_COPY, READY, RESTORE_ROOT, ROOTFS_DIFF},
};

/// Where a kubelet keeps pods' logs (`podLogsDir`).
const LOGS: &str = "/var/log/pods";
/// Where images with pages wait in memory; the same file system as where they are laid out.
const INCOMING: &str = "/run/drover/incoming";
/// Extension of the file that has an image's digest.
const DIGEST: &str = "digest";

/// Checkpoints on the node whose root is at `node`.
#[derive(Debug, Clone)]
pub struct NodeLayout {
    node: PathBuf,
    disk: PathBuf,
    /// Whether what lies in memory may be read while its container runs already.
    is_lazy: bool,
    ways: Ways,
}

impl NodeLayout {
    /// On the node whose root is at `node`; what memory has no room for lies below `disk` there.
    #[must_use]
    pub fn new(node: &Path, disk: &Path) -> Self {
        Self { node: node.to_owned(), disk: disk.to_owned(), is_lazy: true, ways: Ways::new(node) }
    }

    /// The same, with lazy restores or without.
    #[must_use]
    pub fn with_lazy(self, is_lazy: bool) -> Self {
        Self { is_lazy, ..self }
    }

    fn on_node(&self, path: &Path) -> PathBuf {
        seen(&self.node, path)
    }

    fn pod(&self, pod_uid: &str) -> io::Result<PathBuf> {
        if is_uid(pod_uid) { Ok(self.on_node(Path::new(RESTORE_ROOT)).join(pod_uid)) } else { Err(invalid(format!("{pod_uid:?} is no pod UID"))) }
    }

    fn folder(&self, pod_uid: &str, container: &str) -> io::Result<PathBuf> {
        if !is_container(container) {
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

    /// Where images with pages wait for the archive that names them: in memory, and on disk.
    fn incoming(&self, repository: &str) -> io::Result<[PathBuf; 2]> {
        let hex = repository.strip_prefix(REPOSITORY_PREFIX).filter(|_| is_repository(repository));
        let hex = hex.ok_or_else(|| invalid(format!("{repository:?} is no repository of a checkpoint")))?;
        Ok([self.on_node(Path::new(INCOMING)).join(hex), self.on_node(&self.disk).join("incoming").join(hex)])
    }

    fn take(&self, memory: &Incoming, content: Received) -> io::Result<MemoryDigest> {
        let is_pre_copy = memory.file == PRE_COPY;
        if !is_container(&memory.container) || !goes_past_the_registry(&memory.file) {
            return Err(invalid(format!("{:?} of {:?} is no image with pages", memory.file, memory.container)));
        }
        let [in_memory, on_disk] = self.incoming(&memory.repository)?;
        for place in [&in_memory, &on_disk] {
            remove(&place.join(&memory.container).join(&memory.file))?;
        }
        make_private(&in_memory)?;
        // What it is a copy of comes besides it. From the disk it would be no faster than from the source.
        if is_pre_copy && !has_room(&in_memory, memory.size.bytes().saturating_mul(2)) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the node's memory has no room for it besides the checkpoint"));
        }
        let known = in_memory.join(&memory.container).join(PRE_COPY);
        let folder = if has_room(&in_memory, memory.size.bytes()) { in_memory } else { on_disk }.join(&memory.container);
        make_private(&folder)?;
        let file = folder.join(&memory.file);
        let part = file.with_extension("part");
        let taken = match memory.size {
            size if memory.is_over_pre_copy => take::pieces(&part, &known, size, content),
            size if is_pre_copy => take::before_the_freeze(&part, size, content),
            size => take::whole(&part, size, content),
        };
        let digest = match taken {
            Ok(digest) => digest,
            Err(error) => {
                // What there is no room for must not keep the room that there is.
                remove(&part)?;
                return Err(error);
            }
        };
        fs::write(file.with_extension(DIGEST), digest.to_string())?;
        fs::rename(part, file)?;
        Ok(digest)
    }

    /// Puts the images that an archive names beside the others: by a second name where that is possible, so that a crash loses none.
    fn place_memory(&self, copy: &Copy, folder: &Path) -> io::Result<()> {
        let list = match fs::read(folder.join(LIST)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => memory::parse(&other?).map_err(invalid)?,
        };
        let places = self.incoming(&copy.repository)?.map(|place| place.join(&copy.container));
        for wanted in list {
            let come = places.iter().map(|place| place.join(&wanted.file)).find(|file| file.exists());
            let come = come.ok_or_else(|| invalid(format!("{} has not come, or was lost when the node was started again", wanted.file)))?;
            let digest = fs::read_to_string(come.with_extension(DIGEST))?;
            if digest != wanted.digest.to_string() || fs::metadata(&come)?.len() != wanted.bytes {
                return Err(invalid(format!("{} is not the one that the archive names: {digest}, not {}", wanted.file, wanted.digest)));
            }
            let to = folder.join(CHECKPOINT).join(&wanted.file);
            match fs::hard_link(&come, &to) {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(&come, &to).map(drop)?,
                // To copy it onto itself would empty it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(invalid(format!("{} is there twice", wanted.file))),
                other => other?,
            }
        }
        Ok(())
    }

    fn write(&self, copy: &Copy, tar: Received) -> io::Result<Digest> {
        let folder = self.folder(&copy.pod_uid, &copy.container)?;
        let far = self.far(&copy.pod_uid, &copy.container);
        remove(&folder)?;
        remove(&far)?;
        let above = folder.parent().unwrap_or(&self.node);
        make_private(above)?;
        // Beside its memory, which may have come to the disk.
        let [_, come_to_disk] = self.incoming(&copy.repository)?;
        let on_disk = come_to_disk.join(&copy.container).exists() || !has_room(above, copy.bytes);
        if on_disk {
            // By its path on the node: that is where it is followed.
            make_private(&far)?;
            symlink(self.disk.join(&copy.pod_uid).join(&copy.container), &folder)?;
        }
        let folder = if on_disk { far } else { folder };
        make_private(&folder.join(CHECKPOINT))?;
        let mut hashed = Hashed::new(tar);
        for entry in Archive::new(&mut hashed).entries()? {
            let mut entry = entry?;
            if let Some(name) = wanted(&entry.path()?, entry.header().entry_type())? {
                let mut to = create(&folder.join(&name))?;
                // CRIU compresses some of its images as well, and wants them so.
                if name == Path::new(ROOTFS_DIFF) { write_unpacked(&mut entry, &mut to)? } else { io::copy(&mut entry, &mut to).map(drop)? }
            }
        }
        hashed.finish()
    }

    /// Only now that its digest is right.
    fn finish(&self, copy: &Copy) -> io::Result<()> {
        let folder = self.place(&copy.pod_uid, &copy.container)?;
        self.place_memory(copy, &folder)?;
        self.name_log_folder(copy, &folder)?;
        if folder != self.folder(&copy.pod_uid, &copy.container)? {
            rustix::fs::syncfs(File::open(&folder)?)?;
        } else if self.is_lazy && !copy.is_post_copy {
            // From the disk a process would wait for each page as long as for all of them at once.
            fs::write(folder.join(LAZY), "")?;
        }
        if copy.is_post_copy {
            fs::write(folder.join(POST_COPY), Ways::socket(copy).as_os_str().as_bytes())?;
        }
        fs::write(folder.join(READY), &copy.image)?;
        for place in self.incoming(&copy.repository)? {
            remove_but_pre_copy(&place.join(&copy.container))?;
        }
        Ok(())
    }

    /// The kubelet makes the pod's folder with its sandbox; where it is elsewhere, the log is left out. It is not put in its place here: a kubelet that finds a
    /// log of a container that it has not started yet takes that for a restart (`calcRestartCountByLogDir` in `pkg/kubelet/kuberuntime`).
    fn name_log_folder(&self, copy: &Copy, folder: &Path) -> io::Result<()> {
        let logs = Path::new(LOGS).join(format!("{}_{}", copy.pod, copy.pod_uid));
        if self.on_node(&logs).is_dir() {
            fs::write(folder.join(LOG_FOLDER), logs.join(&copy.container).as_os_str().as_bytes())?;
        }
        Ok(())
    }
}

/// What gzip begins with (RFC 1952, 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Writes an entry as it is, or unpacked: containerd compresses the difference that it puts into the kubelet's archive, whatever its name says.
fn write_unpacked(entry: &mut impl Read, to: &mut File) -> io::Result<()> {
    let mut begin = Vec::with_capacity(GZIP.len());
    entry.take(GZIP.len() as u64).read_to_end(&mut begin)?;
    let is_compressed = begin == GZIP;
    let mut whole = io::Cursor::new(begin).chain(entry);
    if is_compressed { io::copy(&mut GzDecoder::new(whole), to) } else { io::copy(&mut whole, to) }.map(drop)
}

/// A DNS label, as Kubernetes demands of containers' names.
fn is_container(name: &str) -> bool {
    is_dns_subdomain(name) && !name.contains('.')
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
    let is_wanted = matches!(parts.as_slice(), [ROOTFS_DIFF | LOG | LIST] | [CHECKPOINT, _]);
    match kind {
        EntryType::Regular if is_wanted => Ok(Some(parts.iter().collect())),
        EntryType::Regular | EntryType::Directory => Ok(None),
        other => Err(invalid(format!("{} is of kind {other:?}, which no archive has", path.display()))),
    }
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn failed(doing: &str, error: &io::Error) -> PortError {
    PortError::transient(format!("failed to {doing}: {error}"))
}

/// Removes what has come of a container's memory and is laid out. To give what was sent before the freeze back to the kernel takes longer than all else of this,
/// and the source is frozen meanwhile: that goes with its repository ([`Layout::forget`]).
fn remove_but_pre_copy(folder: &Path) -> io::Result<()> {
    if !folder.join(PRE_COPY).exists() {
        return remove(folder);
    }
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let others = entries.iter().map(DirEntry::path).filter(|path| path.file_stem() != Path::new(PRE_COPY).file_stem());
    others.into_iter().try_for_each(|path| remove(&path))
}

/// The names that satisfy a condition in these folders.
fn names(folders: &[PathBuf], wanted: impl Fn(&str) -> bool) -> PortResult<Vec<String>> {
    let mut found = vec![];
    for folder in folders {
        match fs::read_dir(folder) {
            Ok(entries) => found.extend(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| wanted(name))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("list the checkpoints that are laid out", &error)),
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[async_trait]
impl Layout for NodeLayout {
    async fn receive(&self, memory: &Incoming, content: BlobStream) -> PortResult<MemoryDigest> {
        let (this, of) = (self.clone(), memory.clone());
        let take = move |content| this.take(&of, content);
        let taken = if memory.is_over_pre_copy { feed_at_once(content, take).await } else { feed(content, take).await };
        taken.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::StorageFull => PortError::permanent(error.to_string()),
            _ => failed(&format!("take {} of container {}", memory.file, memory.container), &error),
        })
    }

    async fn connect(&self, repository: &str, container: &str, way: Box<dyn Way>) -> PortResult<()> {
        self.ways.connect(repository, container, way);
        Ok(())
    }

    async fn offer(&self, copy: &Copy) -> PortResult<()> {
        self.ways.offer(copy).map_err(|error| failed(&format!("listen for the keeper of container {}", copy.container), &error))
    }

    async fn forget(&self, repository: &str) -> PortResult<()> {
        self.ways.forget(repository).map_err(|error| failed("close the ways to memory", &error))?;
        let (this, repository) = (self.clone(), repository.to_owned());
        let removed = blocking(move || this.incoming(&repository)?.iter().try_for_each(|place| remove(place))).await;
        removed.map_err(|error| failed("remove memory that has come", &error))
    }

    async fn repositories(&self) -> PortResult<Vec<String>> {
        let folders = [self.on_node(Path::new(INCOMING)), self.on_node(&self.disk).join("incoming")];
        let is_hex = |hex: &str| is_repository(&format!("{REPOSITORY_PREFIX}{hex}"));
        let mut found = names(&folders, is_hex)?;
        let asked = self.ways.repositories().map_err(|error| failed("list the ways to memory", &error))?;
        found.extend(asked.into_iter().filter(|hex| is_hex(hex)));
        found.sort();
        found.dedup();
        Ok(found.into_iter().map(|hex| format!("{REPOSITORY_PREFIX}{hex}")).collect())
    }

    async fn is_laid_out(&self, pod_uid: &str, container: &str) -> PortResult<bool> {
        let place = self.place(pod_uid, container).map_err(|error| PortError::permanent(error.to_string()))?;
        Ok(place.join(READY).is_file())
    }

    async fn lay_out(&self, copy: &Copy, tar: BlobStream, digest: &Digest) -> PortResult<()> {
        let (this, of) = (self.clone(), copy.clone());
        let written = feed(tar, move |tar| this.write(&of, tar)).await;
        let what = format!("the checkpoint of container {}", copy.container);
        match written {
            Ok(found) if found == *digest => {}
            Ok(found) => return Err(PortError::permanent(format!("{what} has the digest {found}, not {digest}: it was changed on the way"))),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(PortError::permanent(format!("{what}: {error}"))),
            Err(error) => return Err(failed(&format!("lay out {what}"), &error)),
        }
        let (this, of) = (self.clone(), copy.clone());
        blocking(move || this.finish(&of)).await.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => PortError::permanent(format!("{what}: {error}")),
            _ => failed(&format!("lay out {what}"), &error),
        })
    }

    async fn discard(&self, pod_uid: &str) -> PortResult<()> {
        let (this, uid) = (self.clone(), pod_uid.to_owned());
        let removed = blocking(move || remove(&this.pod(&uid)?).and_then(|()| remove(&this.on_node(&this.disk).join(&uid)))).await;
        removed.map_err(|error| failed("remove a checkpoint that was laid out", &error))
    }

    async fn pods(&self) -> PortResult<Vec<String>> {
        names(&[self.on_node(Path::new(RESTORE_ROOT)), self.on_node(&self.disk)], is_uid)
    }
}

#[cfg(test)]
mod tests;
