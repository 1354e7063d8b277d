//! Images with pages, which come before the archive that names them.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::{
    adapters::pre_copy::pieces::encode,
    domain::{
        memory::MemoryFile,
        pages::{PAGE, PageIndex, hash_of},
    },
    ports::{Failure, layout::Size},
};

const DISK: &str = "/var/lib/drover/restore";
const PAGES: &str = "pages-1.img";

fn scene() -> (tempfile::TempDir, NodeLayout) {
    let node = tempfile::tempdir().unwrap();
    let layout = NodeLayout::new(node.path(), Path::new(DISK));
    (node, layout)
}

fn incoming(bytes: u64) -> Incoming {
    Incoming { repository: copy(1).repository, container: "app".into(), file: PAGES.into(), size: Size::Exact(bytes), is_over_pre_copy: false }
}

fn digest(content: &str) -> MemoryDigest {
    MemoryDigest::of(content.as_bytes())
}

async fn receive(layout: &NodeLayout, content: &'static str) -> PortResult<MemoryDigest> {
    receive_as(layout, &incoming(content.len() as u64), content).await
}

async fn receive_as(layout: &NodeLayout, memory: &Incoming, content: &'static str) -> PortResult<MemoryDigest> {
    layout.receive(memory, futures::stream::iter([Ok(Bytes::from_static(content.as_bytes()))]).boxed()).await
}

/// An archive that names this memory.
fn naming(memory: &[(&str, &str)]) -> Vec<u8> {
    let of =
        |(file, content): &(&str, &str)| MemoryFile { file: (*file).into(), bytes: content.len() as u64, digest: digest(content), pre_copied: 0 };
    let list = serde_json::to_string(&memory.iter().map(of).collect::<Vec<_>>()).unwrap();
    archive(&[
        ("checkpoint/", EntryType::Directory, b""),
        ("checkpoint/core-1.img", EntryType::Regular, b"core"),
        (LIST, EntryType::Regular, list.as_bytes()),
    ])
}

fn pages(node: &Path) -> PathBuf {
    place(node).join(CHECKPOINT).join(PAGES)
}

/// Files of memory that wait, or what is left of them.
fn waiting(node: &Path) -> Vec<PathBuf> {
    let mut folders = vec![node.join("run/drover/incoming"), node.join("var/lib/drover/restore/incoming")];
    let mut found = vec![];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

/// It fails for good, says this, and nothing is ready.
async fn assert_refused(layout: &NodeLayout, tar: Vec<u8>, said: &str) {
    let error = lay_out(layout, tar, 1).await.unwrap_err();
    assert!(error.kind == Failure::Permanent && error.message.contains(said), "{error}");
    assert!(!layout.is_laid_out(POD, "app").await.unwrap());
}

#[tokio::test]
async fn memory_that_has_come_is_laid_out_beside_the_archive_that_names_it() {
    let (node, layout) = scene();
    assert_eq!(receive(&layout, "memory").await.unwrap(), digest("memory"));
    assert_eq!(layout.repositories().await.unwrap(), [copy(1).repository]);
    assert_eq!(fs::metadata(&waiting(node.path())[0]).unwrap().permissions().mode() & 0o777, 0o600);
    lay_out(&layout, naming(&[(PAGES, "memory")]), 1).await.unwrap();
    assert!(layout.is_laid_out(POD, "app").await.unwrap());
    assert_eq!(fs::read_to_string(pages(node.path())).unwrap(), "memory");
    assert_eq!(fs::metadata(pages(node.path())).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(waiting(node.path()).is_empty(), "it is there once");
    layout.forget(&copy(1).repository).await.unwrap();
    layout.forget(&copy(1).repository).await.unwrap();
    assert!(layout.repositories().await.unwrap().is_empty());
    assert_eq!(fs::read_to_string(pages(node.path())).unwrap(), "memory", "what is laid out stays");
}

#[tokio::test]
async fn memory_that_is_not_what_the_archive_names_is_never_ready() {
    let (_node, layout) = scene();
    receive(&layout, "MEMORY").await.unwrap();
    assert_refused(&layout, naming(&[(PAGES, "memory")]), "pages-1.img is not the one").await;
    receive(&layout, "memory and more").await.unwrap();
    assert_refused(&layout, naming(&[(PAGES, "memory")]), "pages-1.img is not the one").await;
    // Mended by sending it again.
    receive(&layout, "memory").await.unwrap();
    lay_out(&layout, naming(&[(PAGES, "memory")]), 1).await.unwrap();
    assert!(layout.is_laid_out(POD, "app").await.unwrap());
}

#[tokio::test]
async fn memory_that_has_not_come_is_named() {
    let (_node, layout) = scene();
    receive(&layout, "memory").await.unwrap();
    assert_refused(&layout, naming(&[(PAGES, "memory"), ("pages-2.img", "more")]), "pages-2.img has not come").await;
    layout.forget(&copy(1).repository).await.unwrap();
    assert_refused(&layout, naming(&[(PAGES, "memory")]), "pages-1.img has not come").await;
}

#[tokio::test]
async fn a_list_that_names_memory_twice_empties_none() {
    let (node, layout) = scene();
    receive(&layout, "memory").await.unwrap();
    assert_refused(&layout, naming(&[(PAGES, "memory"), (PAGES, "memory")]), "twice").await;
    assert_eq!(fs::read_to_string(pages(node.path())).unwrap(), "memory");
}

#[tokio::test]
async fn memory_that_does_not_come_whole_is_not_kept() {
    let (node, layout) = scene();
    for bytes in [7, 5] {
        let error = receive_as(&layout, &incoming(bytes), "memory").await.unwrap_err();
        assert!(error.kind == Failure::Transient && error.message.contains(&format!("6 bytes of {bytes} came")), "{error}");
        assert_eq!(waiting(node.path()), Vec::<PathBuf>::new());
    }
    for size in [Size::Exact(6), Size::Estimated(3)] {
        let broken = futures::stream::iter([Ok(Bytes::from_static(b"mem")), Err(io::Error::other("the line is dead"))]).boxed();
        let error = layout.receive(&Incoming { size, ..incoming(6) }, broken).await.unwrap_err();
        assert!(error.kind == Failure::Transient && error.message.contains("the line is dead"), "{error}");
        assert_eq!(waiting(node.path()), Vec::<PathBuf>::new());
    }
    assert_refused(&layout, naming(&[(PAGES, "memory")]), "pages-1.img has not come").await;
}

#[tokio::test]
async fn memory_may_become_more_than_it_was_thought_to() {
    let (node, layout) = scene();
    receive_as(&layout, &Incoming { size: Size::Estimated(2), ..incoming(6) }, "memory").await.unwrap();
    lay_out(&layout, naming(&[(PAGES, "memory")]), 1).await.unwrap();
    assert_eq!(fs::read_to_string(pages(node.path())).unwrap(), "memory");
}

#[tokio::test]
async fn memory_that_comes_again_replaces_what_came_before() {
    let (node, layout) = scene();
    receive(&layout, "before").await.unwrap();
    // Where the agent was killed in its middle.
    fs::write(waiting(node.path())[0].with_extension("part"), "left").unwrap();
    assert_eq!(receive(&layout, "memory").await.unwrap(), digest("memory"));
    lay_out(&layout, naming(&[(PAGES, "memory")]), 1).await.unwrap();
    assert_eq!(fs::read_to_string(pages(node.path())).unwrap(), "memory");

    receive(&layout, "before").await.unwrap();
    assert!(receive_as(&layout, &incoming(9), "memory").await.is_err());
    assert_refused(&layout, naming(&[(PAGES, "before")]), "pages-1.img has not come").await;
}

#[tokio::test]
async fn who_dies_before_it_is_ready_begins_again() {
    let (node, layout) = scene();
    receive(&layout, "memory").await.unwrap();
    // All but the last word: as where the agent was killed after it had placed the memory.
    let tar = naming(&[(PAGES, "memory")]);
    let (this, of) = (layout.clone(), copy(1));
    let written = feed(futures::stream::iter([Ok(Bytes::from(tar.clone()))]).boxed(), move |tar| this.write(&of, tar)).await.unwrap();
    assert_eq!(written, Hashed::new(tar.as_slice()).finish().unwrap());
    layout.place_memory(&copy(1), &place(node.path())).unwrap();
    assert_eq!(fs::metadata(pages(node.path())).unwrap().nlink(), 2, "not twice in memory");
    assert!(!layout.is_laid_out(POD, "app").await.unwrap());

    lay_out(&layout, tar, 1).await.unwrap();
    assert_eq!(fs::read_to_string(pages(node.path())).unwrap(), "memory");
    assert!(layout.is_laid_out(POD, "app").await.unwrap() && waiting(node.path()).is_empty());
}

#[tokio::test]
async fn memory_for_which_memory_has_no_room_goes_to_the_disk() {
    let (node, layout) = scene();
    // It ends early, but where it was written to shows.
    let error = receive_as(&layout, &incoming(u64::MAX / 4), "memory").await.unwrap_err();
    assert!(error.message.contains("6 bytes of"), "{error}");
    let hex = "0".repeat(32);
    let [in_memory, on_disk] =
        ["run/drover/incoming", "var/lib/drover/restore/incoming"].map(|folder| node.path().join(folder).join(&hex).join("app"));
    assert!(!in_memory.exists() && on_disk.is_dir());
    layout.forget(&copy(1).repository).await.unwrap();
    assert!(!on_disk.exists());
}

#[tokio::test]
async fn a_checkpoint_whose_memory_has_come_to_the_disk_is_laid_out_there() {
    let (node, layout) = scene();
    receive(&layout, "memory").await.unwrap();
    let [in_memory, on_disk] = ["run/drover/incoming", "var/lib/drover/restore/incoming"].map(|folder| node.path().join(folder));
    fs::create_dir_all(&on_disk).unwrap();
    fs::rename(in_memory.join("0".repeat(32)), on_disk.join("0".repeat(32))).unwrap();
    assert_eq!(layout.repositories().await.unwrap(), [copy(1).repository]);
    assert!(layout.pods().await.unwrap().is_empty(), "what waits is no pod's");

    lay_out(&layout, naming(&[(PAGES, "memory")]), 1).await.unwrap();
    assert_eq!(fs::read_link(place(node.path())).unwrap(), Path::new(DISK).join(POD).join("app"), "by its path on the node");
    let far = node.path().join("var/lib/drover/restore").join(POD).join("app").join(CHECKPOINT).join(PAGES);
    assert_eq!(fs::read_to_string(&far).unwrap(), "memory");
    assert!(layout.is_laid_out(POD, "app").await.unwrap() && waiting(node.path()).is_empty());
    layout.discard(POD).await.unwrap();
    assert!(!far.exists() && layout.pods().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_memory_is_not_taken() {
    let (node, layout) = scene();
    for (repository, container, file) in [
        ("drover/../../etc", "app", PAGES),
        ("library/redis", "app", PAGES),
        (copy(1).repository.as_str(), "../app", PAGES),
        (copy(1).repository.as_str(), "app", "core-1.img"),
        (copy(1).repository.as_str(), "app", "pages-../x.img"),
    ] {
        let memory =
            Incoming { repository: repository.into(), container: container.into(), file: file.into(), size: Size::Exact(6), is_over_pre_copy: false };
        let error = receive_as(&layout, &memory, "memory").await.unwrap_err();
        assert_eq!(error.kind, Failure::Permanent, "{repository} {container} {file}: {error}");
    }
    assert_eq!(fs::read_dir(node.path()).unwrap().count(), 0);
}

/// A page of the memory.
fn page(content: u8) -> Vec<u8> {
    vec![content; PAGE]
}

/// What a source sends of an image whose pages 1 to 3 have come before.
fn pieces(image: &[u8]) -> (Vec<u8>, PageIndex) {
    let mut index = PageIndex::default();
    assert!((1..=3).all(|content| index.add(hash_of(&page(content)))));
    let image = Bytes::copy_from_slice(image);
    (
        index
            .pieces(&image.chunks(PAGE).map(hash_of).collect::<Vec<_>>(), image.len(), &mut 0)
            .iter()
            .flat_map(|piece| encode(piece, &image).unwrap())
            .flatten()
            .collect(),
        index,
    )
}

async fn receive_bytes(layout: &NodeLayout, memory: &Incoming, content: Vec<u8>) -> PortResult<MemoryDigest> {
    layout.receive(memory, futures::stream::iter([Ok(Bytes::from(content))]).boxed()).await
}

async fn pre_copied(layout: &NodeLayout) {
    let before = Incoming { file: PRE_COPY.into(), size: Size::Estimated(PAGE as u64), ..incoming(0) };
    receive_bytes(layout, &before, [page(1), page(2), page(3)].concat()).await.unwrap();
}

#[tokio::test]
async fn memory_over_pages_that_came_before_is_whole_and_they_go_with_their_repository() {
    let (node, layout) = scene();
    pre_copied(&layout).await;
    let over = Incoming { size: Size::Estimated(PAGE as u64), is_over_pre_copy: true, ..incoming(0) };
    let images: [&[u8]; 7] = [&[1, 9, 3], &[1, 2, 3], &[1, 2], &[2, 3], &[9, 1, 2, 3, 8], &[], &[3, 9, 1, 2, 1]];
    let mut image = vec![];
    for pages in images {
        // Made in what has come where nobody has had that, else of nothing.
        for has_mould in [true, false] {
            if has_mould {
                pre_copied(&layout).await;
            }
            image = pages.iter().flat_map(|content| page(*content)).collect();
            let sent = pieces(&image).0;
            assert!(sent.len() < 2 * PAGE + 100);
            assert_eq!(receive_bytes(&layout, &over, sent).await.unwrap(), MemoryDigest::of(&image), "{pages:?}");
            let come = waiting(node.path()).into_iter().find(|path| path.ends_with(PAGES)).unwrap();
            assert_eq!(fs::read(come).unwrap(), image, "{pages:?} {has_mould}");
        }
    }

    let named = String::from_utf8(image.clone()).unwrap();
    lay_out(&layout, naming(&[(PAGES, &named)]), 1).await.unwrap();
    assert_eq!(fs::read(pages(node.path())).unwrap(), image);
    let left = waiting(node.path());
    assert!(!left.is_empty() && left.iter().all(|path| path.file_stem() == Path::new(PRE_COPY).file_stem()), "nothing of what is laid out: {left:?}");
    layout.forget(&copy(1).repository).await.unwrap();
    assert!(waiting(node.path()).is_empty());
}

#[tokio::test]
async fn pieces_of_what_has_not_come_or_of_endless_memory_are_refused() {
    let (node, layout) = scene();
    let over = |bytes| Incoming { size: Size::Estimated(bytes), is_over_pre_copy: true, ..incoming(0) };
    let error = receive_bytes(&layout, &over(6), pieces(&page(1)).0).await.unwrap_err();
    assert!(error.kind == Failure::Permanent && error.message.contains("pre-copy.img has not come"), "{error}");
    pre_copied(&layout).await;
    let endless: Vec<u8> = std::iter::repeat_n(pieces(&page(1)).0, usize::try_from(take::GROWTH).unwrap() / PAGE + 13).flatten().collect();
    let error = receive_bytes(&layout, &over(6), endless).await.unwrap_err();
    assert!(error.kind == Failure::Permanent && error.message.contains("the pieces make more than"), "{error}");
    assert!(!waiting(node.path()).iter().any(|path| path.ends_with(PAGES) || path.extension().is_some_and(|it| it == "part")));
}

#[tokio::test]
async fn pages_are_not_taken_before_where_there_is_no_room_for_them_besides_the_memory() {
    let (node, layout) = scene();
    let before = Incoming { file: PRE_COPY.into(), size: Size::Estimated(u64::MAX), ..incoming(0) };
    let error = receive_bytes(&layout, &before, page(1)).await.unwrap_err();
    assert!(error.message.contains("no room for it besides the checkpoint"), "{error}");
    assert!(waiting(node.path()).is_empty());
}
