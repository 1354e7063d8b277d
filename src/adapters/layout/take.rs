//! Writing an image with pages as it comes.

use std::{
    fs::{self, File},
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{create, invalid};
use crate::{
    adapters::{
        memory_room::remove,
        pre_copy::pieces::{Part, decode},
        received::Received,
    },
    domain::{
        memory::{MemoryDigest, MemoryHasher, PRE_COPY},
        pages::{PAGE, PageHash},
    },
    ports::layout::Size,
};

/// Bytes by which an image that is told as pieces may be larger than twice what it was thought to become.
pub(super) const GROWTH: u64 = 64 << 20;

/// Where the hashes of what has come before the freeze are: those of its pages, one after the other.
fn hashes_of(known: &Path) -> PathBuf {
    known.with_extension("hashes")
}

/// The same pages once more: what the image is made in. Most of it is in its place already where the pod goes on as it was, and the rest has its memory.
fn mould_of(known: &Path) -> PathBuf {
    known.with_extension("mould")
}

/// Writes an image to a new file, in the place of one that is there.
pub(super) fn whole(part: &Path, size: Size, content: Received) -> io::Result<MemoryDigest> {
    write(part, size, content, MemoryHasher::default()).map(MemoryHasher::finish)
}

/// The same of pages that come before the freeze.
pub(super) fn before_the_freeze(part: &Path, size: Size, content: Received) -> io::Result<MemoryDigest> {
    let (hashes, mould) = (hashes_of(part), mould_of(part));
    remove(&hashes)?;
    remove(&mould)?;
    let written = || {
        let digest = write(part, size, content, MemoryHasher::keeping())?;
        create(&hashes)?.write_all(digest.kept().as_flattened())?;
        io::copy(&mut File::open(part)?, &mut create(&mould)?)?;
        Ok(digest.finish())
    };
    written().inspect_err(|_| {
        // What there is no room for must not keep the room that there is; the part goes with its caller.
        let _ = remove(&mould).and(remove(&hashes));
    })
}

fn write(part: &Path, size: Size, mut content: Received, mut digest: MemoryHasher) -> io::Result<MemoryHasher> {
    remove(part)?;
    let (mut file, mut written) = (create(part)?, 0);
    while let Some(chunk) = content.chunk()? {
        digest.update(&chunk);
        file.write_all(&chunk)?;
        written += chunk.len() as u64;
    }
    match size {
        Size::Exact(bytes) if written != bytes => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{written} bytes of {bytes} came"))),
        _ => Ok(digest),
    }
}

/// Writes an image that is told as pieces of what has come before. Those pages were hashed as they came, and are copied within the kernel.
pub(super) fn pieces(part: &Path, path: &Path, size: Size, mut content: Received) -> io::Result<MemoryDigest> {
    remove(part)?;
    let absent = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => invalid(format!("{PRE_COPY} has not come, or was lost when the node was started again")),
        _ => error,
    };
    let (hashes, mut known) = (fs::read(hashes_of(path)).map_err(absent)?, File::open(path).map_err(absent)?);
    let (hashes, _) = hashes.as_chunks::<{ size_of::<PageHash>() }>();
    // One image gets it, the largest in all likelihood; where that is elsewhere, or taken, one begins with nothing.
    let mut file = match fs::rename(mould_of(path), part) {
        Ok(()) => File::options().write(true).open(part)?,
        Err(_) => create(part)?,
    };
    let mut digest = MemoryHasher::default();
    let in_mould = file.metadata()?.len();
    // A pod may have grown since it was looked at; whoever sends endless pieces has not.
    let most = size.bytes().saturating_mul(2).saturating_add(GROWTH);
    let length = decode(&mut content, most, &mut |at, part| {
        match part {
            Part::New(bytes) => {
                digest.update(&bytes);
                file.write_all_at(&bytes, at)?;
            }
            Part::Known { first, pages } => {
                let of_these = usize::try_from(first).ok().and_then(|first| hashes.get(first..first.checked_add(pages)?));
                digest.pages(of_these.ok_or_else(|| invalid(format!("a piece is of pages from {first} on, which have not come")))?);
                let (from, bytes) = (u64::from(first) * PAGE as u64, (pages * PAGE) as u64);
                if from != at || at + bytes > in_mould {
                    known.seek(SeekFrom::Start(from))?;
                    file.seek(SeekFrom::Start(at))?;
                    if io::copy(&mut Read::take(&mut known, bytes), &mut file)? != bytes {
                        return Err(invalid(format!("{PRE_COPY} is shorter than the list of its pages")));
                    }
                }
            }
        }
        Ok(())
    })?;
    file.set_len(length)?;
    Ok(digest.finish())
}
