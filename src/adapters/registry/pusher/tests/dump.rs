//! A checkpoint that the runtime has taken: its memory first, past the registry, then an archive that names it.

use std::{collections::BTreeMap, fs, io::Read as _, os::unix::fs::symlink};

use super::*;
use crate::{
    domain::{
        memory::{self, LIST, MemoryDigest},
        pages::{PAGE, PageIndex, hash_of},
    },
    ports::Growing,
};

impl Scene {
    /// As the dump adapter leaves one.
    fn dump(&self, images: &[(&str, &str)]) -> PathBuf {
        let dump = self.folder.path().join("dump/redis");
        for folder in ["checkpoint", "work"] {
            fs::create_dir_all(dump.join(folder)).unwrap();
        }
        symlink("/run/drover/dump/nowhere", dump.join("checkpoint/criu.work")).unwrap();
        fs::write(dump.join("work/dump.log"), "log").unwrap();
        for name in ["config.dump", "spec.dump", "status.dump"] {
            fs::write(dump.join(name), "{}").unwrap();
        }
        fs::write(dump.join("rootfs-diff.tar"), "difference").unwrap();
        for (name, content) in images {
            fs::write(dump.join("checkpoint").join(name), content).unwrap();
        }
        dump
    }

    async fn push_dump(&self, dump: &Path) -> PortResult<PushedImage> {
        self.pusher.push(dump, "redis", &Mending { base_image: "docker.io/library/redis@sha256:00".to_owned() }, &self.target).await
    }

    /// The layer's files with their content.
    fn files(&self, pushed: &PushedImage) -> BTreeMap<String, String> {
        let layer = self.fake.layer(REPOSITORY, &pushed.digest);
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(layer.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (mut content, name) = (String::new(), entry.path().unwrap().display().to_string());
            entry.read_to_string(&mut content).unwrap();
            assert_eq!(files.insert(name.clone(), content), None, "{name} is there twice");
        }
        files
    }

    fn memory_requests(&self) -> Vec<String> {
        self.fake.seen.lock().unwrap().iter().filter(|line| line.contains("/memory/")).cloned().collect()
    }
}

#[tokio::test]
async fn memory_goes_past_the_registry_and_the_layer_names_it() {
    let scene = scene("n2", of_n1);
    let dump = scene.dump(&[("pages-2.img", "more memory"), ("pages-1.img", "memory"), ("core-1.img", "core")]);
    let pushed = scene.push_dump(&dump).await.unwrap();
    assert_eq!(scene.memory_requests(), [1, 2].map(|number| format!("PUT /memory/{REPOSITORY}/redis/pages-{number}.img")));
    let seen = scene.fake.seen.lock().unwrap().clone();
    assert!(seen[..2].iter().all(|line| line.contains("/memory/")), "the archive that names it comes after it: {seen:?}");
    let come = |file: &str| scene.fake.memory.lock().unwrap()[&format!("{REPOSITORY}/redis/{file}")].clone();
    assert_eq!(pushed.memory_bytes, Some(6 + 11), "it is counted beside the archive");
    assert_eq!((come("pages-1.img"), come("pages-2.img")), (b"memory".to_vec(), b"more memory".to_vec()));

    let files = scene.files(&pushed);
    assert!(scene.fake.verified(REPOSITORY, &pushed.digest));
    assert_eq!((files["checkpoint/core-1.img"].as_str(), files["rootfs-diff.tar"].as_str()), ("core", "difference"));
    assert!(!files.keys().any(|name| name.contains("pages-") || name.contains("work") || name.contains("log")), "{files:?}");
    let named: Vec<_> = memory::parse(files[LIST].as_bytes()).unwrap().into_iter().map(|one| (one.file, one.bytes, one.digest)).collect();
    let expected = [("pages-1.img", "memory"), ("pages-2.img", "more memory")];
    assert_eq!(named, expected.map(|(file, content)| (file.to_owned(), content.len() as u64, MemoryDigest::of(content.as_bytes()))));
}

#[tokio::test]
async fn a_dump_that_is_pushed_again_is_the_same_image() {
    let scene = scene("n2", of_n1);
    let dump = scene.dump(&[("pages-1.img", "memory")]);
    let pushed = scene.push_dump(&dump).await.unwrap();
    assert_eq!(scene.push_dump(&dump).await.unwrap(), pushed, "an agent that was restarted votes for the same");
}

#[tokio::test]
async fn a_dump_without_memory_has_an_empty_list() {
    let scene = scene("n2", of_n1);
    let pushed = scene.push_dump(&scene.dump(&[("core-1.img", "core")])).await.unwrap();
    assert_eq!(scene.files(&pushed)[LIST], "[]");
    assert!(scene.memory_requests().is_empty());
}

#[tokio::test]
async fn memory_is_sent_again_after_a_passing_failure_or_where_it_was_changed_on_the_way() {
    let scene = scene("n2", of_n1);
    *scene.fake.failures.lock().unwrap() = 2;
    *scene.fake.changed.lock().unwrap() = 1;
    let dump = scene.dump(&[("pages-1.img", "memory")]);
    let pushed = scene.push_dump(&dump).await.unwrap();
    assert_eq!(scene.memory_requests().len(), 4);
    assert_eq!(memory::parse(scene.files(&pushed)[LIST].as_bytes()).unwrap()[0].digest, MemoryDigest::of(b"memory"));
    assert_eq!(scene.fake.memory.lock().unwrap()[&format!("{REPOSITORY}/redis/pages-1.img")], b"memory");
}

#[tokio::test]
async fn memory_that_is_always_changed_on_the_way_ends_the_push() {
    let scene = scene("n2", of_n1);
    *scene.fake.changed.lock().unwrap() = u32::MAX;
    let dump = scene.dump(&[("pages-1.img", "memory")]);
    let error = scene.push_dump(&dump).await.unwrap_err();
    assert!(error.message.contains("container redis") && error.message.contains("pages-1.img arrived as"), "{error}");
    assert_eq!(scene.memory_requests().len(), ATTEMPTS);
    assert!(!scene.fake.seen.lock().unwrap().iter().any(|line| line.contains("/v2/")), "no image names what is not there");
}

#[tokio::test]
async fn a_dump_that_is_not_there_is_told() {
    let scene = scene("n2", of_n1);
    let dump = scene.dump(&[("pages-1.img", "memory")]);
    fs::remove_dir_all(dump.join("checkpoint")).unwrap();
    let error = scene.push_dump(&dump).await.unwrap_err();
    assert!(error.message.contains("the checkpoint could not be read"), "{error}");
    assert!(scene.fake.seen.lock().unwrap().is_empty());
}

impl Scene {
    fn append(dump: &Path, file: &str, content: &str) {
        let mut file = fs::File::options().create(true).append(true).open(dump.join("checkpoint").join(file)).unwrap();
        std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
    }

    async fn send_ahead(&self, dump: &Path, written: CancellationToken) -> PortResult<()> {
        let dump = Growing { folder: dump.to_owned(), container: "redis".into(), bytes: 4, known: Arc::default() };
        self.pusher.send_ahead(&dump, &self.target, written).await
    }

    fn come(&self, file: &str) -> String {
        String::from_utf8(self.fake.memory.lock().unwrap()[&format!("{REPOSITORY}/redis/{file}")].clone()).unwrap()
    }
}

#[tokio::test]
async fn memory_is_sent_while_it_is_written_and_only_once() {
    let scene = scene("n2", of_n1);
    let (dump, written) = (scene.dump(&[]), CancellationToken::new());
    let criu = async {
        for (file, content) in [("pages-1.img", "mem"), ("pages-1.img", "ory"), ("pages-2.img", "more "), ("pages-2.img", "memory")] {
            Scene::append(&dump, file, content);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Scene::append(&dump, "pages-3.img", "last");
        written.cancel();
    };
    let (sent, ()) = tokio::join!(scene.send_ahead(&dump, written.clone()), criu);
    sent.unwrap();
    assert_eq!(["pages-1.img", "pages-2.img", "pages-3.img"].map(|file| scene.come(file)), ["memory", "more memory", "last"]);
    let pushed = scene.push_dump(&dump).await.unwrap();
    assert_eq!(scene.memory_requests().len(), 3, "nothing is sent again");
    let named = memory::parse(scene.files(&pushed)[LIST].as_bytes()).unwrap();
    assert_eq!(named.iter().map(|one| one.bytes).collect::<Vec<_>>(), [6, 11, 4]);
    assert_eq!(named[1].digest, MemoryDigest::of(b"more memory"));
}

#[tokio::test]
async fn what_was_not_sent_ahead_whole_is_sent_after() {
    let scene = scene("n2", of_n1);
    let (dump, written) = (scene.dump(&[("pages-1.img", "memory")]), CancellationToken::new());
    // Another that is begun ends the first, as CRIU writes them; here it is written to all the same.
    Scene::append(&dump, "pages-2.img", "more memory");
    let criu = async {
        while !scene.fake.memory.lock().unwrap().contains_key(&format!("{REPOSITORY}/redis/pages-1.img")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Scene::append(&dump, "pages-1.img", ", and late");
        written.cancel();
    };
    let (sent, ()) = tokio::join!(scene.send_ahead(&dump, written.clone()), criu);
    sent.unwrap();
    let pushed = scene.push_dump(&dump).await.unwrap();
    assert_eq!(scene.come("pages-1.img"), "memory, and late");
    assert_eq!(memory::parse(scene.files(&pushed)[LIST].as_bytes()).unwrap()[0].digest, MemoryDigest::of(b"memory, and late"));
    assert_eq!(scene.memory_requests().len(), 3);
}

#[tokio::test]
async fn where_sending_ahead_fails_all_is_sent_after() {
    let scene = scene("n2", of_n1);
    *scene.fake.changed.lock().unwrap() = 1;
    let (dump, written) = (scene.dump(&[("pages-1.img", "memory")]), CancellationToken::new());
    written.cancel();
    let error = scene.send_ahead(&dump, written).await.unwrap_err();
    assert!(error.message.contains("pages-1.img arrived as"), "{error}");
    scene.push_dump(&dump).await.unwrap();
    assert_eq!(scene.come("pages-1.img"), "memory");
}

#[tokio::test]
async fn pages_that_the_destination_has_are_only_named() {
    let scene = scene("n2", of_n1);
    let page = |content: u8| vec![content; PAGE];
    let mut known = PageIndex::default();
    assert!(known.add(hash_of(&page(b'1'))) && known.add(hash_of(&page(b'2'))));
    let (dump, written) = (scene.dump(&[]), CancellationToken::new());
    let image = String::from_utf8([page(b'2'), page(b'9'), page(b'1'), b"rest".to_vec()].concat()).unwrap();
    let criu = async {
        // Ends in the middle of pages.
        for part in [&image[..1000], &image[1000..PAGE + 5], &image[PAGE + 5..]] {
            Scene::append(&dump, "pages-1.img", part);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        written.cancel();
    };
    let growing = Growing { folder: dump.clone(), container: "redis".into(), bytes: 4, known: Arc::new(known) };
    let (sent, ()) = tokio::join!(scene.pusher.send_ahead(&growing, &scene.target, written.clone()), criu);
    // The fake takes the pieces for the image itself, which is what an agent that does not know them would do.
    assert!(sent.unwrap_err().message.contains("pages-1.img arrived as"));
    let come = scene.fake.memory.lock().unwrap()[&format!("{REPOSITORY}/redis/pages-1.img")].clone();
    let expected = [&[1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0][..], &page(b'9'), &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], b"rest"].concat();
    assert_eq!(come, expected);
    scene.push_dump(&dump).await.unwrap();
    assert_eq!(scene.come("pages-1.img"), image);
}
