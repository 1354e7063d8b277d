//! Archives packed and mended, compared byte for byte.

use std::{collections::BTreeMap, io::Read as _};

use futures::TryStreamExt as _;
use proptest::prelude::*;
use tar::{EntryType, Header};

use super::*;
use crate::domain::image::digest_of;

const BASE: &str = "docker.io/library/redis@sha256:00";

fn append(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8], kind: EntryType) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o600);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, name, content).unwrap();
}

/// A complete archive with further entries.
fn archive(config: &[u8], more: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "checkpoint/", b"", EntryType::Directory);
    append(&mut builder, "checkpoint/inventory.img", b"\x01\x02", EntryType::Regular);
    append(&mut builder, "config.dump", config, EntryType::Regular);
    append(&mut builder, "spec.dump", br#"{"process":{"user":{"uid":999,"gid":999}}}"#, EntryType::Regular);
    append(&mut builder, "status.dump", b"{}", EntryType::Regular);
    for (name, content) in more {
        append(&mut builder, name, content, EntryType::Regular);
    }
    builder.into_inner().unwrap()
}

fn open(bytes: &[u8]) -> Result<(Archive, tempfile::NamedTempFile), ArchiveError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Ok((Archive::open(file.path(), &Mending { base_image: BASE.to_owned() })?, file))
}

async fn packed(archive: &Archive) -> (Vec<u8>, crate::domain::ids::Digest) {
    rest(archive, 0, Hashed::default()).await
}

/// What is sent from this byte on, and the digest of all.
async fn rest(archive: &Archive, from: u64, hashed: Hashed) -> (Vec<u8>, crate::domain::ids::Digest) {
    let mut stream = archive.stream(from, hashed);
    let hashed = stream.hashed();
    let parts: Vec<bytes::Bytes> = stream.try_collect().await.unwrap();
    (parts.concat(), hashed.await.unwrap().of_all(archive.size()).unwrap())
}

#[test]
fn a_stream_goes_on_from_any_byte_with_the_hash_that_was_begun() {
    runtime().block_on(async {
        let pages: Vec<u8> = (0_u32..2 << 20).flat_map(u32::to_le_bytes).collect();
        let (opened, file) = open(&archive(br#"{"rootfsImageRef":"sha256:0f"}"#, &[("checkpoint/pages-1.img".to_owned(), pages)])).unwrap();
        let (all, digest) = packed(&opened).await;

        let mut stream = opened.stream(0, Hashed::default());
        let hashed = stream.hashed();
        let got: Vec<bytes::Bytes> = futures::StreamExt::take(&mut stream, 6).map_ok(Into::into).try_collect().await.unwrap();
        drop(stream);
        let hashed = hashed.await.unwrap();
        assert!(hashed.clone().of_all(opened.size()).is_none(), "it was cut");
        let sent = got.concat().len();
        for from in [0, 1, 700, 1024, sent / 2, sent, all.len() - 1, all.len()] {
            assert_eq!(rest(&opened, from as u64, hashed.clone()).await, (all[from..].to_vec(), digest.clone()), "from byte {from}");
            assert_eq!(
                rest(&opened, from as u64, Hashed::default()).await,
                (all[from..].to_vec(), digest.clone()),
                "without a hash, from byte {from}"
            );
        }
        // What was hashed once is not hashed again, whatever the file says by now.
        let damaged = std::fs::File::options().write(true).open(file.path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&damaged, &[0xff; 4096], 2048).unwrap();
        assert_eq!(rest(&opened, sent as u64, hashed).await.1, digest);
    });
}

fn unpacked(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().to_string_lossy().into_owned(), content)
    });
    entries.collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn all_but_config_dump_stays(
        padding in 0_usize..1500,
        more in prop::collection::vec(("[a-z]{1,60}(/[a-z]{1,60}){0,2}", prop::collection::vec(any::<u8>(), 0..3000)), 0..4),
    ) {
        let config = format!(r#"{{"id":"{}","rootfsImageRef":"sha256:0f"}}"#, "x".repeat(padding));
        let more: Vec<_> = more.into_iter().map(|(name, content)| (format!("checkpoint/{name}"), content)).collect();
        let before = archive(config.as_bytes(), &more);
        let (opened, _file) = open(&before).unwrap();
        let (after, digest) = runtime().block_on(packed(&opened));

        prop_assert_eq!(opened.size(), after.len() as u64);
        prop_assert_eq!(digest, digest_of(&after));
        let (mut old, mut new) = (unpacked(&before), unpacked(&after));
        let (old_config, new_config) = (old.remove("config.dump").unwrap(), new.remove("config.dump").unwrap());
        prop_assert_eq!(old, new);
        let mut wanted: serde_json::Value = serde_json::from_slice(&old_config).unwrap();
        wanted["rootfsImageRef"] = BASE.into();
        prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&new_config).unwrap(), wanted);
    }

    #[test]
    fn no_archive_cut_short_is_sent(cut in 1_usize..100) {
        let whole = archive(br#"{"rootfsImageRef":"sha256:0f"}"#, &[("checkpoint/pages-1.img".to_owned(), vec![7; 4000])]);
        // The two blocks of zeros at the end carry nothing: one of them is enough.
        let content = whole.len() - 512;
        prop_assert!(open(&whole[..content * cut / 101]).is_err());
    }
}

#[test]
fn what_a_restore_needs_must_be_there() {
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "config.dump", b"{}", EntryType::Regular);
    append(&mut builder, "spec.dump", b"{}", EntryType::Regular);
    append(&mut builder, "checkpoint/inventory.img", b"", EntryType::Regular);
    let error = open(&builder.into_inner().unwrap()).unwrap_err();
    assert!(matches!(error, ArchiveError::Missing("status.dump")), "{error}");
    assert!(matches!(open(b"this is no tar").unwrap_err(), ArchiveError::Damaged(_)));
}

#[test]
fn links_devices_and_ways_out_are_refused() {
    for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Fifo] {
        let mut builder = tar::Builder::new(Vec::new());
        append(&mut builder, "checkpoint/x", b"", kind);
        assert!(matches!(open(&builder.into_inner().unwrap()).unwrap_err(), ArchiveError::Forbidden { .. }));
    }
    let mut bytes = archive(b"{}", &[]);
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
    header.set_entry_type(EntryType::Regular);
    header.set_size(0);
    header.set_cksum();
    bytes.splice(..0, header.as_bytes().iter().copied());
    assert!(matches!(open(&bytes).unwrap_err(), ArchiveError::Forbidden { .. }));
}

#[test]
fn an_over_long_config_is_not_read() {
    let error = open(&archive(&vec![b' '; (1 << 20) + 1], &[])).unwrap_err();
    assert!(matches!(error, ArchiveError::Unmendable { entry: "config.dump", .. }), "{error}");
}

#[test]
fn the_user_comes_from_the_spec() {
    assert_eq!(open(&archive(b"{}", &[])).unwrap().0.user(), Some("999:999"));
}
