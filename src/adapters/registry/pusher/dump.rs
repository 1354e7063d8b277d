//! Sending a checkpoint that the runtime has taken: its memory past the registry, also while it is still being written, and the rest as an archive that names it.

use std::{
    fs::{self, DirEntry, File},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use backon::Retryable as _;
use bytes::Bytes;
use futures::stream;
use reqwest::Body;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::AgentPusher;
use crate::{
    adapters::registry::client::Distribution,
    api::attestation::PushedImage,
    domain::memory::{self, LIST, MemoryDigest, MemoryFile, is_memory},
    ports::{Failure, Mending, PortError, PortResult, PushTarget, Pusher as _, layout::Size},
    runc::{CHECKPOINT, LOG, ROOTFS_DIFF},
};

/// Bytes of memory that are read at once.
const CHUNK: usize = 1 << 18;
/// So many of these are read ahead of the network.
const AHEAD: usize = 8;
/// How long between two looks for more of an image that is still being written.
const LOOK: Duration = Duration::from_millis(2);

/// Whether more will be written to an image.
type Grows = Arc<dyn Fn() -> bool + Send + Sync>;

impl AgentPusher {
    /// Sends the memory of a checkpoint that has not been sent ahead, then pushes the rest as an archive that names all of it.
    pub(super) async fn push_dump(&self, dump: &Path, container: &str, mending: &Mending, target: &PushTarget) -> PortResult<PushedImage> {
        let registry = self.registry_of(target).await?;
        let mut sent = sent_ahead(dump).map_err(|error| unreadable(&error))?;
        for file in memory_files(dump).map_err(|error| unreadable(&error))? {
            if sent.iter().any(|one| one.file == file) {
                continue;
            }
            let begun = Instant::now();
            let attempt = || send_whole(&registry, &target.repository, container, dump, &file);
            let tried = attempt.retry(self.policy()).when(|error| error.kind == Failure::Transient);
            let arrived = tried.notify(|error, pause| tracing::warn!(%error, ?pause, file, "the memory is sent again")).await;
            let arrived = arrived.map_err(|error| error.context(&format!("the memory of container {container}")))?;
            self.metrics.pushed(arrived.bytes, begun.elapsed());
            sent.push(arrived);
        }
        sent.sort_by(|one, other| one.file.cmp(&other.file));
        let memory: u64 = sent.iter().map(|one| one.bytes).sum();
        let (from, archive) = (dump.to_owned(), dump.join("archive.tar"));
        let to = archive.clone();
        let written = tokio::task::spawn_blocking(move || write_archive(&from, &sent, &to)).await;
        written.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| unreadable(&error))?;
        let pushed = self.push(&archive, container, mending, target).await?;
        Ok(PushedImage { memory_bytes: (memory > 0).then_some(memory), ..pushed })
    }

    /// Sends images one after the other as they are written, and notes beside them what has arrived.
    pub(super) async fn follow(
        &self,
        registry: &Distribution,
        dump: &Path,
        container: &str,
        bytes: u64,
        target: &PushTarget,
        written: CancellationToken,
    ) -> PortResult<()> {
        let mut sent: Vec<MemoryFile> = vec![];
        loop {
            let is_written = written.is_cancelled();
            let files = memory_files(dump).map_err(|error| unreadable(&error))?;
            let Some(file) = files.into_iter().find(|file| sent.iter().all(|one| one.file != *file)) else {
                if is_written {
                    break;
                }
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let begun = Instant::now();
            let estimate = bytes.saturating_sub(sent.iter().map(|one| one.bytes).sum());
            // CRIU ends an image before it begins the next; what it wrote after that all the same would be found by the size.
            let (others, known, over) = (dump.to_owned(), sent.len() + 1, written.clone());
            let grows: Grows = Arc::new(move || !over.is_cancelled() && memory_files(&others).is_ok_and(|files| files.len() <= known));
            let arrived = send(registry, &target.repository, container, &path_of(dump, &file), Size::Estimated(estimate), grows).await?;
            self.metrics.pushed(arrived.bytes, begun.elapsed());
            sent.push(arrived);
        }
        sent.retain(|one| fs::metadata(path_of(dump, &one.file)).is_ok_and(|found| found.len() == one.bytes));
        note(dump, &sent).map_err(|error| unreadable(&error))
    }
}

fn path_of(dump: &Path, file: &str) -> PathBuf {
    dump.join(CHECKPOINT).join(file)
}

/// Names of the images with pages, in the order in which CRIU writes them.
fn memory_files(dump: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(dump.join(CHECKPOINT))?.collect::<io::Result<Vec<_>>>()?;
    let names = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut found: Vec<String> = names.filter(|name| is_memory(name)).collect();
    found.sort_by_key(|name| (name.len(), name.clone()));
    Ok(found)
}

/// What of a dump's memory the destination has; nothing where nobody has noted it.
fn sent_ahead(dump: &Path) -> io::Result<Vec<MemoryFile>> {
    match fs::read(dump.join(LIST)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        other => memory::parse(&other?).map_err(io::Error::other),
    }
}

fn note(dump: &Path, sent: &[MemoryFile]) -> io::Result<()> {
    let part = dump.join("sent.part");
    fs::write(&part, serde_json::to_vec(sent)?)?;
    fs::rename(part, dump.join(LIST))
}

async fn send_whole(registry: &Distribution, repository: &str, container: &str, dump: &Path, file: &str) -> PortResult<MemoryFile> {
    let path = path_of(dump, file);
    let bytes = fs::metadata(&path).map_err(|error| unreadable(&error))?.len();
    send(registry, repository, container, &path, Size::Exact(bytes), Arc::new(|| false)).await
}

/// Sends one image, hashed while it is read, and compares what has arrived.
async fn send(registry: &Distribution, repository: &str, container: &str, path: &Path, size: Size, grows: Grows) -> PortResult<MemoryFile> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let opened = File::open(path).map_err(|error| unreadable(&error))?;
    let (chunks, mut received) = mpsc::channel(AHEAD);
    // Beside the encryption, which takes as long.
    let reading = tokio::task::spawn_blocking(move || {
        let read = read(opened, &*grows, &chunks);
        if let Err(error) = &read {
            // A body that only ends would count as a whole one.
            let _ = chunks.blocking_send(Err(error.kind().into()));
        }
        read
    });
    let answer =
        registry.put_memory(repository, container, &file, size, Body::wrap_stream(stream::poll_fn(move |context| received.poll_recv(context)))).await;
    let read = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let arrived = answer?;
    let (bytes, digest) = read.map_err(|error| unreadable(&error))?;
    if digest != arrived {
        return Err(PortError::transient(format!("{file} arrived as {arrived}, not as {digest}")));
    }
    Ok(MemoryFile { file, bytes, digest })
}

/// Reads an image to its end, and on while it grows; its size and digest. Ends as well where nobody wants more of it. What has been read is final: CRIU
/// splices pages to an image's end and never goes back (criu/page-xfer.c, `write_pages_loc`).
fn read(mut file: File, grows: &dyn Fn() -> bool, chunks: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<(u64, MemoryDigest)> {
    let (mut hash, mut bytes) = (blake3::Hasher::new(), 0);
    let (given_back, spare) = channel();
    loop {
        // Asked before it is read: what was written until then is read all the same.
        let is_whole = !grows();
        let mut buffer = spare.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
        let length = file.read(&mut buffer)?;
        if length > 0 {
            let chunk = Chunk { buffer, length, given_back: given_back.clone() };
            hash.update(chunk.as_ref());
            bytes += length as u64;
            if chunks.blocking_send(Ok(Bytes::from_owner(chunk))).is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            continue;
        }
        if is_whole {
            return Ok((bytes, hash.finalize().into()));
        }
        if chunks.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let _ = given_back.send(buffer);
        thread::sleep(LOOK);
    }
}

/// Bytes in a buffer that is used again: the kernel gives a new one page by page, which takes as long as to fill it.
struct Chunk {
    buffer: Vec<u8>,
    length: usize,
    given_back: Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // Nobody may read any more.
        let _ = self.given_back.send(std::mem::take(&mut self.buffer));
    }
}

/// Everything of a dump but its memory and CRIU's log, as the kubelet's archive has it, with the list of the memory.
fn write_archive(dump: &Path, memory: &[MemoryFile], to: &Path) -> io::Result<()> {
    let mut tar = tar::Builder::new(File::options().write(true).create(true).truncate(true).mode(0o600).open(to)?);
    tar.append_dir(CHECKPOINT, dump.join(CHECKPOINT))?;
    let mut images = fs::read_dir(dump.join(CHECKPOINT))?.collect::<io::Result<Vec<_>>>()?;
    images.sort_by_key(DirEntry::file_name);
    for image in images.iter().filter(|image| !is_memory(&image.file_name().to_string_lossy())) {
        // CRIU leaves a link to its log's folder here, and nothing else that is no file.
        if image.file_type()?.is_file() {
            tar.append_path_with_name(image.path(), Path::new(CHECKPOINT).join(image.file_name()))?;
        }
    }
    for name in ["config.dump", "spec.dump", "status.dump", ROOTFS_DIFF, LOG] {
        if dump.join(name).exists() {
            tar.append_path_with_name(dump.join(name), name)?;
        }
    }
    let list = serde_json::to_vec(memory)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(list.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, LIST, list.as_slice())?;
    tar.finish()
}

fn unreadable(error: &io::Error) -> PortError {
    PortError::transient(format!("the checkpoint could not be read: {error}"))
}
