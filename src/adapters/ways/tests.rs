//! A keeper and a source that meet.

use tokio::io::{DuplexStream, duplex};

use super::*;

const REPOSITORY: &str = "drover/0123456789abcdef0123456789abcdef";

fn copy() -> Copy {
    let pod_uid = "0f1c22aa-0000-4000-8000-000000000000".to_owned();
    Copy {
        repository: REPOSITORY.into(),
        pod_uid,
        pod: "shop_web".into(),
        container: "app".into(),
        image: String::new(),
        bytes: 1,
        is_post_copy: true,
    }
}

fn ways(node: &tempfile::TempDir) -> Ways {
    Ways { progress: Duration::from_millis(200), ..Ways::new(node.path()) }
}

async fn keeper(node: &tempfile::TempDir) -> UnixStream {
    UnixStream::connect(seen(node.path(), &Ways::socket(&copy()))).await.unwrap()
}

fn way(ways: &Ways) -> DuplexStream {
    let (here, there) = duplex(64);
    ways.connect(REPOSITORY, "app", Box::new(there));
    here
}

async fn read(from: &mut (impl Way + ?Sized), bytes: usize) -> Vec<u8> {
    let mut found = vec![0; bytes];
    from.read_exact(&mut found).await.unwrap();
    found
}

#[tokio::test]
async fn who_comes_first_waits_and_bytes_pass_both_ways() {
    let node = tempfile::tempdir().unwrap();
    let ways = ways(&node);
    ways.offer(&copy()).unwrap();
    ways.offer(&copy()).unwrap();
    let mut keeper = keeper(&node).await;
    keeper.write_all(b"page 7").await.unwrap();
    let mut source = way(&ways);
    assert_eq!(read(&mut source, 6).await, b"page 7");
    source.write_all(b"seven").await.unwrap();
    assert_eq!(read(&mut keeper, 5).await, b"seven");
    drop(keeper);
    assert_eq!(source.read(&mut [0]).await.unwrap(), 0, "the source learns that the keeper has gone");
}

#[tokio::test]
async fn a_way_that_was_closed_before_it_was_used_is_passed_over() {
    let node = tempfile::tempdir().unwrap();
    let ways = ways(&node);
    drop(way(&ways));
    ways.offer(&copy()).unwrap();
    let mut keeper = keeper(&node).await;
    keeper.write_all(b"a").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut source = way(&ways);
    assert_eq!(read(&mut source, 1).await, b"a");
}

/// The keeper's daemon then ends otherwise than well, and the copy with it.
#[tokio::test]
async fn the_keeper_is_cut_off_where_the_source_is_or_says_nothing() {
    let node = tempfile::tempdir().unwrap();
    let ways = ways(&node);
    ways.offer(&copy()).unwrap();
    for is_closed in [true, false] {
        let mut keeper = keeper(&node).await;
        let mut source = way(&ways);
        keeper.write_all(b"a").await.unwrap();
        assert_eq!(read(&mut source, 1).await, b"a");
        let source = (!is_closed).then_some(source);
        assert_eq!(keeper.read(&mut [0]).await.unwrap(), 0);
        drop(source);
    }
}

#[tokio::test]
async fn what_is_forgotten_is_closed_on_both_sides() {
    let node = tempfile::tempdir().unwrap();
    let ways = ways(&node);
    ways.offer(&copy()).unwrap();
    let mut keeper = keeper(&node).await;
    let mut source = way(&ways);
    keeper.write_all(b"a").await.unwrap();
    assert_eq!(read(&mut source, 1).await, b"a");
    assert_eq!(ways.repositories().unwrap(), [&REPOSITORY["drover/".len()..]]);
    ways.forget("drover/ffffffffffffffffffffffffffffffff").unwrap();
    assert!(seen(node.path(), &Ways::socket(&copy())).exists());
    ways.forget(REPOSITORY).unwrap();
    assert_eq!(keeper.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(source.read(&mut [0]).await.unwrap(), 0);
    assert!(!seen(node.path(), &Ways::socket(&copy())).exists());
}

#[tokio::test]
async fn what_a_process_before_has_left_is_taken_over_and_removed() {
    let node = tempfile::tempdir().unwrap();
    let before = ways(&node);
    assert_eq!(before.repositories().unwrap(), [""; 0]);
    before.forget(REPOSITORY).unwrap();
    before.offer(&copy()).unwrap();
    // It was killed.
    std::mem::forget(before);
    let after = ways(&node);
    assert_eq!(after.repositories().unwrap().len(), 1);
    after.forget(REPOSITORY).unwrap();
    assert_eq!(after.repositories().unwrap(), [""; 0]);
    after.offer(&copy()).unwrap();
    assert_eq!(after.repositories().unwrap().len(), 1);
}
