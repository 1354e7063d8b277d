//! Checkpoints straight from the runtime: CRIU's images in a folder, in memory where there is room, and beside them what else of a container moves.
//!
//! ```text
//! <root>/<migration UID>/<container>/ checkpoint/   CRIU's images
//!                                     work/         its log
//!                                     rootfs-diff.tar, container.log, config.dump, spec.dump, status.dump   as the kubelet's archive has them
//! ```

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    blocking,
    containerd::Containerd,
    memory_room::{has_room, make_private, remove, seen},
    volumes,
};
use crate::{
    api::attestation::ContainerId,
    domain::{criu, ids::is_uid},
    ports::{PortError, PortResult, dump::Dump},
    runc::{
        CHECKPOINT, LOG, POST_COPY, ROOTFS_DIFF,
        kept::{self, Logs},
        pages::{self, Serving},
    },
};

/// In memory, on the node.
const IN_MEMORY: &str = "/run/drover/dump";

/// How long a page server may take to end.
const LET_GO: Duration = Duration::from_secs(2);

/// Its log's folder.
const WORK: &str = "work";

/// CRIU writes it last, and restores nothing without it.
const INVENTORY: &str = "checkpoint/inventory.img";

/// Takes checkpoints on the node whose root is at `node`.
#[derive(Debug, Clone)]
pub struct NodeDump {
    containerd: Containerd,
    node: PathBuf,
    disk: PathBuf,
}

impl NodeDump {
    /// On the node whose root is at `node`; what memory has no room for lies below `disk` there.
    #[must_use]
    pub fn new(containerd: Containerd, node: &Path, disk: &Path) -> Self {
        Self { containerd, node: node.to_owned(), disk: disk.to_owned() }
    }

    fn on_node(&self, path: &Path) -> PathBuf {
        seen(&self.node, path)
    }

    /// The path on the node of what this process sees.
    fn of_node(&self, seen: &Path) -> PortResult<PathBuf> {
        let inside = seen.strip_prefix(&self.node).map_err(|_| PortError::permanent(format!("{} is no folder of the node", seen.display())))?;
        Ok(Path::new("/").join(inside))
    }

    fn folders(&self, migration_uid: &str) -> PortResult<[PathBuf; 2]> {
        if !is_uid(migration_uid) {
            return Err(PortError::permanent(format!("{migration_uid:?} is no UID")));
        }
        Ok([Path::new(IN_MEMORY).join(migration_uid), self.disk.join(migration_uid)])
    }

    /// An empty folder, by its path on the node.
    fn fresh(&self, migration_uid: &str, container: &str, bytes: u64) -> PortResult<PathBuf> {
        let [memory, disk] = self.folders(migration_uid)?;
        let made = || -> io::Result<PathBuf> {
            for folder in [&memory, &disk] {
                remove(&self.on_node(&folder.join(container)))?;
            }
            make_private(&self.on_node(&memory))?;
            let folder = if has_room(&self.on_node(&memory), bytes) { memory } else { disk }.join(container);
            make_private(&self.on_node(&folder))?;
            Ok(folder)
        };
        made().map_err(|error| failed("make a folder for the checkpoint", &error))
    }

    /// Why CRIU has failed, in its own words where its log has them.
    fn explained(&self, error: PortError, work: &Path) -> PortError {
        let log = fs::read(self.on_node(work).join(kept::DUMP)).unwrap_or_default();
        match criu::cause(&String::from_utf8_lossy(&log)) {
            // What CRIU refuses it refuses again.
            Some(cause) => PortError::permanent(format!("{cause}{}", criu::remedy(&cause))),
            None => error,
        }
    }

    async fn beside(&self, folder: &Path, id: &str) -> PortResult<()> {
        let (upper, log) = (self.containerd.changed_files(id).await?, self.containerd.log_path(id).await?);
        let spec = self.containerd.spec(id).await?;
        let (folder, upper, log) = (self.on_node(folder), self.on_node(&upper), log.map(|log| self.on_node(&log)));
        let written = blocking(move || {
            volumes::archive_changes(&upper, &folder.join(ROOTFS_DIFF))?;
            // A log that is rotated at this moment is no reason to give the move up.
            if let Some(mut from) = log.and_then(|log| File::open(log).ok()) {
                io::copy(&mut from, &mut create(&folder.join(LOG))?)?;
            }
            io::copy(&mut spec.as_slice(), &mut create(&folder.join("spec.dump"))?)?;
            for name in ["config.dump", "status.dump"] {
                io::copy(&mut b"{}".as_slice(), &mut create(&folder.join(name))?)?;
            }
            Ok(())
        });
        written.await.map_err(|error| failed("read the container's files", &error))
    }
}

/// Keeps what CRIU has said of each container's dump, for a person. It is done when the folder goes, since the pod is frozen while it is made.
fn keep_logs(folder: &Path, logs: &Path, migration_uid: &str) {
    for container in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = container.file_name().to_string_lossy().into_owned();
        Logs::one(kept::DUMP, &container.path().join(WORK).join(kept::DUMP)).keep(logs, migration_uid, &name);
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn failed(doing: &str, error: &io::Error) -> PortError {
    PortError::transient(format!("failed to {doing}: {error}"))
}

#[async_trait]
impl Dump for NodeDump {
    async fn prepare(&self, migration_uid: &str, container: &str, bytes: u64) -> PortResult<PathBuf> {
        let folder = self.on_node(&self.fresh(migration_uid, container, bytes)?);
        for made in [CHECKPOINT, WORK] {
            make_private(&folder.join(made)).map_err(|error| failed("make a folder for the checkpoint", &error))?;
        }
        Ok(folder)
    }

    async fn dump(&self, container: &ContainerId, folder: &Path) -> PortResult<()> {
        let folder = self.of_node(folder)?;
        let (images, work) = (folder.join(CHECKPOINT), folder.join(WORK));
        let id = &container.container_id;
        let (dumped, beside) = tokio::join!(self.containerd.checkpoint_into(id, &images, &work), self.beside(&folder, id));
        dumped.map_err(|error| self.explained(error, &work))?;
        beside
    }

    async fn dump_but_memory(&self, container: &ContainerId, folder: &Path) -> PortResult<()> {
        let (root, id) = (self.on_node(Path::new(pages::ROOT)), container.container_id.clone());
        let asked = blocking(move || pages::request(&root, &id)).await;
        asked.map_err(|error| failed("ask for a page server", &error))?;
        // Before there is anything that could be taken for a whole checkpoint.
        create(&folder.join(POST_COPY)).map_err(|error| failed("mark the checkpoint", &error))?;
        self.dump(container, folder).await?;
        let (root, id) = (self.on_node(Path::new(pages::ROOT)), container.container_id.clone());
        match blocking(move || pages::state(&root, &id)).await.map_err(|error| failed("ask the page server", &error))? {
            Some(Serving::Serving) => Ok(()),
            Some(Serving::Failed(why)) => Err(PortError::permanent(format!("its page server has ended: {why}"))),
            Some(Serving::Complete) | None => Err(PortError::permanent(
                "the runtime has not left the memory behind (spec.postCopy): is drover-runc on its node older than the agent? Run drover node setup --apply there",
            )),
        }
    }

    async fn left(&self, migration_uid: &str, container: &str) -> PortResult<Option<PathBuf>> {
        let folders = self.folders(migration_uid)?.map(|folder| self.on_node(&folder.join(container)));
        Ok(folders.into_iter().find(|dump| dump.join(INVENTORY).is_file() && !dump.join(POST_COPY).exists()))
    }

    async fn keep(&self, dump: &Path, to: &Path) -> PortResult<()> {
        let (dump, to) = (dump.to_owned(), to.to_owned());
        let kept = blocking(move || {
            let part = to.with_extension("part");
            let mut tar = tar::Builder::new(create(&part)?);
            // CRIU leaves a link to its log's folder, by its path on the node.
            tar.follow_symlinks(false);
            tar.append_dir_all("", &dump)?;
            tar.into_inner()?.sync_all()?;
            fs::rename(part, to)
        });
        kept.await.map_err(|error| failed("keep a checkpoint", &error))
    }

    async fn discard(&self, migration_uid: &str) -> PortResult<()> {
        for folder in self.folders(migration_uid)? {
            let (folder, logs, uid) = (self.on_node(&folder), self.on_node(Path::new(kept::ROOT)), migration_uid.to_owned());
            let removed = blocking(move || {
                keep_logs(&folder, &logs, &uid);
                remove(&folder)
            });
            removed.await.map_err(|error| failed("remove a checkpoint", &error))?;
        }
        Ok(())
    }

    async fn sweep(&self) -> PortResult<()> {
        let root = self.on_node(Path::new(pages::ROOT));
        let listed = root.clone();
        let found = blocking(move || pages::containers(&listed)).await.map_err(|error| failed("list the page servers", &error))?;
        for id in found {
            if !self.containerd.knows(&id).await? {
                let (root, of) = (root.clone(), id.clone());
                let ended = blocking(move || pages::end(&root, &of, LET_GO)).await.map_err(|error| failed("end a page server", &error))?;
                tracing::info!(container = id, ended, "a page server of a container that is gone");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
