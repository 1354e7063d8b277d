//! The counter's lines, and what they prove.
//!
//! A line is the next number and the time at which it was printed. The number lives in memory only: a lost or repeated one shows a lost or a
//! second copy, and the times show that a line was really printed then and not replayed from the source's log, which the restored pod's log begins with.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{AsyncBufReadExt as _, StreamExt as _};
use kube::api::LogParams;
use tokio::task::JoinHandle;

use drover::api::{Migration, Phase};

use super::{Namespace, migrations::entered};

/// One line of the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    pub number: u64,
    /// Milliseconds since 1970.
    pub at: i64,
}

/// Reads lines; whatever is none is a failure, since the counter prints nothing else.
#[track_caller]
pub fn lines(text: &str) -> Vec<Line> {
    text.lines().map(|line| parse(line).unwrap_or_else(|| panic!("{line:?} is no line of the counter"))).collect()
}

fn parse(line: &str) -> Option<Line> {
    let (number, at) = line.split_once(' ')?;
    let (seconds, millis) = at.split_once('.')?;
    Some(Line { number: number.parse().ok()?, at: seconds.parse::<i64>().ok()? * 1000 + millis.parse::<i64>().ok()? })
}

/// No number is missing or comes twice, and none is printed before the one before it.
#[track_caller]
pub fn assert_contiguous(lines: &[Line]) {
    for pair in lines.windows(2) {
        assert_eq!(pair[1].number, pair[0].number + 1, "after {:?} came {:?}", pair[0], pair[1]);
        assert!(pair[1].at > pair[0].at, "{:?} is not later than {:?}", pair[1], pair[0]);
    }
}

/// The source's last number and the destination's first new one follow each other, and the new ones were printed after the release.
#[track_caller]
pub fn assert_went_on(source: &[Line], destination: &[Line], migration: &Migration) {
    assert_contiguous(source);
    assert_contiguous(destination);
    let last = *source.last().expect("the source has printed something");
    let first_new = destination.iter().find(|line| line.number > last.number).expect("the destination has printed something new");
    assert_eq!(first_new.number, last.number + 1);
    let replayed = destination.iter().filter(|line| line.number <= last.number);
    for line in replayed.filter(|line| line.number >= source[0].number) {
        assert!(source.contains(line), "{line:?} was never printed on the source");
    }
    // A migration that fell back before the release has never entered Restoring.
    let released = entered(migration, Phase::Restoring).or_else(|| entered(migration, Phase::Finishing)).expect("something was released");
    // The very first may have read the clock before the freeze and have been printed after the restore.
    let later = destination.iter().filter(|line| line.number > first_new.number).collect::<Vec<_>>();
    assert!(!later.is_empty(), "the destination goes on");
    assert!(later.iter().all(|line| line.at >= released), "printed before the release ({released}): {later:?}");
}

/// Reads a pod's log as it comes, so that it is known after the pod is gone.
pub struct Follower {
    pod: String,
    lines: Arc<Mutex<Vec<Line>>>,
    task: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Namespace {
    /// Follows a container's log from its beginning.
    pub async fn follow(&self, pod: &str, container: &str) -> Follower {
        let params = LogParams { follow: true, container: Some(container.to_owned()), ..Default::default() };
        let mut stream = self.pods().log_stream(pod, &params).await.unwrap().lines();
        let lines = Arc::new(Mutex::new(vec![]));
        let read = Arc::clone(&lines);
        let task = tokio::spawn(async move {
            while let Some(Ok(line)) = stream.next().await {
                let line = parse(&line).unwrap_or_else(|| panic!("{line:?} is no line of the counter"));
                read.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Follower { pod: pod.to_owned(), lines, task }
    }
}

impl Follower {
    /// What has come so far.
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last number so far.
    pub fn last(&self) -> u64 {
        self.lines().last().map_or(0, |line| line.number)
    }

    /// Waits until a number above this one has come.
    pub async fn beyond(&self, number: u64) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.last() <= number {
            assert!(Instant::now() < end, "pod {} printed nothing above {number} within 30 s; its last is {}", self.pod, self.last());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until so many more numbers have come.
    pub async fn more(&self, count: u64) {
        self.beyond(self.last() + count - 1).await;
    }
}
