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
    adapters::{pre_copy::pieces::encode, registry::client::Distribution},
    api::attestation::PushedImage,
    domain::{
        memory::{self, LIST, MemoryDigest, MemoryFile, MemoryHasher, is_memory},
        pages::{PAGE, PageIndex, hash_of},
    },
    ports::{
        Failure, Growing, Mending, PortError, PortResult, PushTarget, Pusher as _,
        layout::{Incoming, Size},
    },
    runc::{CHECKPOINT, LOG, ROOTFS_DIFF},
};

/// Bytes of memory that are read at once.
const CHUNK: usize = 1 << 18;
/// So many of these are read ahead of the network.
pub(super) const AHEAD: usize = 8;
/// How long between two looks for more of an image that is still being written.
const LOOK: Duration = Duration::from_millis(2);

/// Whether more will be written to an image.
type Grows = Arc<dyn Fn() -> bool + Send + Sync>;
/// Where a thread puts what is to be sent.
pub(super) type Chunks = mpsc::Sender<io::Result<Bytes>>;

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
            let attempt = || send_whole(&registry, of(&target.repository, container, &file), dump);
            let tried = attempt.retry(self.policy()).when(|error| error.kind == Failure::Transient);
            let arrived = tried.notify(|error, pause| tracing::warn!(%error, ?pause, file, "the memory is sent again")).await;
            let arrived = arrived.map_err(|error| error.context(&format!("the memory of container {container}")))?;
            self.metrics.pushed(arrived.bytes, begun.elapsed());
            sent.push(arrived);
        }
        sent.sort_by(|one, other| one.file.cmp(&other.file));
        let sum = |of: fn(&MemoryFile) -> u64| Some(sent.iter().map(of).sum()).filter(|bytes| *bytes > 0);
        let (memory_bytes, pre_copied_bytes) = (sum(|one| one.bytes), sum(|one| one.pre_copied));
        let (from, archive) = (dump.to_owned(), dump.join("archive.tar"));
        let to = archive.clone();
        let written = tokio::task::spawn_blocking(move || write_archive(&from, &sent, &to)).await;
        written.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| unreadable(&error))?;
        let pushed = self.push(&archive, container, mending, target).await?;
        Ok(PushedImage { memory_bytes, pre_copied_bytes, ..pushed })
    }

    /// Sends images one after the other as they are written, and notes beside them what has arrived.
    pub(super) async fn follow(&self, registry: &Distribution, dump: &Growing, target: &PushTarget, written: CancellationToken) -> PortResult<()> {
        let Growing { folder, container, bytes, known } = dump;
        let mut sent: Vec<MemoryFile> = vec![];
        loop {
            let is_written = written.is_cancelled();
            let files = memory_files(folder).map_err(|error| unreadable(&error))?;
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
            let (others, count, over) = (folder.clone(), sent.len() + 1, written.clone());
            let grows: Grows = Arc::new(move || !over.is_cancelled() && memory_files(&others).is_ok_and(|files| files.len() <= count));
            let image = Incoming { size: Size::Estimated(estimate), is_over_pre_copy: known.bytes() > 0, ..of(&target.repository, container, &file) };
            let arrived = send(registry, image, &path_of(folder, &file), grows, Arc::clone(known)).await?;
            self.metrics.pushed(arrived.bytes, begun.elapsed());
            sent.push(arrived);
        }
        sent.retain(|one| fs::metadata(path_of(folder, &one.file)).is_ok_and(|found| found.len() == one.bytes));
        note(folder, &sent).map_err(|error| unreadable(&error))
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

/// An image of a container, as [`send_whole`] sends it.
fn of(repository: &str, container: &str, file: &str) -> Incoming {
    let [repository, container, file] = [repository, container, file].map(str::to_owned);
    Incoming { repository, container, file, size: Size::Exact(0), is_over_pre_copy: false }
}

async fn send_whole(registry: &Distribution, image: Incoming, dump: &Path) -> PortResult<MemoryFile> {
    let path = path_of(dump, &image.file);
    let bytes = fs::metadata(&path).map_err(|error| unreadable(&error))?.len();
    send(registry, Incoming { size: Size::Exact(bytes), ..image }, &path, Arc::new(|| false), Arc::default()).await
}

/// Sends one image, as pieces where some of its pages are known.
async fn send(registry: &Distribution, image: Incoming, path: &Path, grows: Grows, known: Arc<PageIndex>) -> PortResult<MemoryFile> {
    let opened = File::open(path).map_err(|error| unreadable(&error))?;
    let is_over_pre_copy = image.is_over_pre_copy;
    let ((bytes, pre_copied), digest) = sent(registry, &image, move |chunks| {
        let known = is_over_pre_copy.then_some(&*known);
        read(opened, &*grows, known, chunks)
    })
    .await?;
    Ok(MemoryFile { file: image.file, bytes, digest, pre_copied })
}

/// Sends what a thread reads, and compares what has arrived with what it has read. With the digest the thread returns what its caller wants of it.
pub(super) async fn sent<T: Send + 'static>(
    registry: &Distribution,
    image: &Incoming,
    read: impl FnOnce(&Chunks) -> io::Result<(T, MemoryDigest)> + Send + 'static,
) -> PortResult<(T, MemoryDigest)> {
    let (chunks, mut received) = mpsc::channel(AHEAD);
    // Beside the encryption, which takes as long.
    let reading = tokio::task::spawn_blocking(move || {
        let read = read(&chunks);
        if let Err(error) = &read {
            // A body that only ends would count as a whole one.
            let _ = chunks.blocking_send(Err(error.kind().into()));
        }
        read
    });
    let answer = registry.put_memory(image, Body::wrap_stream(stream::poll_fn(move |context| received.poll_recv(context)))).await;
    let read = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let arrived = answer?;
    let (told, digest) = read.map_err(|error| unreadable(&error))?;
    if digest != arrived {
        return Err(PortError::transient(format!("{} arrived as {arrived}, not as {digest}", image.file)));
    }
    Ok((told, digest))
}

/// Reads an image to its end, and on while it grows; its size, how much of it is known, and its digest. Ends as well where nobody wants more of it. What has been read is final: CRIU
/// splices pages to an image's end and never goes back (criu/page-xfer.c, `write_pages_loc`).
fn read(mut file: File, grows: &dyn Fn() -> bool, known: Option<&PageIndex>, chunks: &Chunks) -> io::Result<((u64, u64), MemoryDigest)> {
    let (mut digest, mut bytes, mut pre_copied, mut next) = (MemoryHasher::default(), 0, 0, 0);
    let (given_back, spare) = channel();
    // What was read of a page that is not whole yet.
    let mut begun: Vec<u8> = vec![];
    loop {
        // Asked before it is read: what was written until then is read all the same.
        let is_whole = !grows();
        let mut buffer = spare.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
        buffer[..begun.len()].copy_from_slice(&begun);
        let found = file.read(&mut buffer[begun.len()..])?;
        let mut length = begun.len() + found;
        begun.clear();
        if found == 0 && !is_whole {
            if chunks.is_closed() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            begun.extend_from_slice(&buffer[..length]);
            let _ = given_back.send(buffer);
            thread::sleep(LOOK);
            continue;
        }
        if known.is_some() && found > 0 {
            let part = length % PAGE;
            begun.extend_from_slice(&buffer[length - part..length]);
            length -= part;
        }
        let chunk = Chunk { buffer, length, given_back: given_back.clone() };
        bytes += length as u64;
        pre_copied += give(Bytes::from_owner(chunk), known.map(|known| (known, &mut next)), &mut digest, chunks)?;
        if found == 0 {
            return Ok(((bytes, pre_copied), digest.finish()));
        }
    }
}

/// Sends a part of an image, as it is or as pieces; how much of it is known.
fn give(part: Bytes, known: Option<(&PageIndex, &mut u32)>, digest: &mut MemoryHasher, chunks: &Chunks) -> io::Result<u64> {
    let send = |bytes: Bytes| chunks.blocking_send(Ok(bytes)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    let Some((known, next)) = known else {
        digest.update(&part);
        return if part.is_empty() { Ok(0) } else { send(part).map(|()| 0) };
    };
    let hashes: Vec<_> = part.chunks(PAGE).map(hash_of).collect();
    let whole = part.len() / PAGE;
    digest.pages(&hashes[..whole]);
    digest.update(&part[whole * PAGE..]);
    let mut bytes = 0;
    for piece in known.pieces(&hashes, part.len(), next) {
        bytes += piece.known_bytes();
        encode(&piece, &part)?.into_iter().try_for_each(send)?;
    }
    Ok(bytes)
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
