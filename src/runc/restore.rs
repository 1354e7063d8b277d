//! A create that is a restore.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;

use super::{
    APPLY, CHECKPOINT, LAZY, LOG_FOLDER, Outcome, POST_COPY, READY, ROOTFS_DIFF, Record, Restore,
    kept::Logs,
    missing, program,
    record::{self, Pages},
    report, unreadable,
};
use crate::{
    gate::{Rule, rule},
    markers::evidence::{LOG, work_of},
};

/// How long between two looks for the images.
const LOOK: Duration = Duration::from_millis(20);
/// So much of CRIU's words is repeated, in bytes.
const WORDS: usize = 500;
/// So much of the end of CRIU's log is searched for them, in bytes.
const TAIL: u64 = 1 << 20;

/// What of config.json a restore needs.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    process: Option<Process>,
    #[serde(default)]
    root: Option<Root>,
}

#[derive(Deserialize)]
struct Process {
    #[serde(default)]
    terminal: bool,
}

#[derive(Deserialize)]
struct Root {
    path: PathBuf,
}

impl Restore<'_> {
    pub(super) fn carry_out(&self) -> Outcome {
        match self.attempt() {
            Ok(outcome) => outcome,
            Err(problem) => {
                report::failure(Some(&self.call), &problem);
                Outcome::Failed(1)
            }
        }
    }

    fn attempt(&self) -> Result<Outcome, String> {
        let config = self.config()?;
        if config.process.is_some_and(|process| process.terminal) {
            return Err(format!("{} has a terminal (tty: true), which cannot be restored; delete the pod to start it anew", self.named()));
        }
        let images = self.places.restore_root.join(&self.pod_uid).join(&self.container);
        if !self.wait_for(&images)? {
            return Ok(Outcome::Pass);
        }
        self.apply_diff(&images.join(ROOTFS_DIFF), config.root.map_or_else(|| "rootfs".into(), |root| root.path))?;
        if let Err(error) = replay_log(&images) {
            report::warning(&self.call, &format!("the log of {} so far is not shown: {error}", self.named()));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.places.records).map_err(|error| unwritable(&self.places.records, &error))?;
        let keeper = self.keeper(&images)?;
        let pages = if keeper.is_some() { Pages::Outstanding } else { Pages::Complete };
        // Written before, since afterwards its failure would leave processes that run unknown; with its name only when they do.
        let pending = record::pending(&self.record);
        let mut record = self.record_of(&images, pages).map_err(|error| unwritable(&pending, &error))?;
        record::write(&pending, &record).map_err(|error| unwritable(&pending, &error))?;
        let result = self.run(&images, keeper.is_some());
        match &result {
            Ok(status) if status.success() => {
                record.resumed = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|since| u64::try_from(since.as_millis()).ok());
                // They run whether that can be noted or not.
                let noted = record::beside(&self.record, "~resumed");
                if record::write(&noted, &record).and_then(|()| fs::rename(&noted, &self.record)).is_ok() {
                    let _ = fs::remove_file(&pending);
                } else {
                    fs::rename(&pending, &self.record).map_err(|error| unwritable(&self.record, &error))?;
                }
                Ok(Outcome::Done)
            }
            _ => {
                let _ = fs::remove_file(&pending);
                Ok(self.explain(result?))
            }
        }
    }

    /// A lazy restore's keeper, which must be there before runc begins. Without one nothing is lost but time.
    ///
    /// # Errors
    /// Where the memory is still at its source, and no keeper can have it come: then there is nothing to restore all at once.
    fn keeper(&self, images: &Path) -> Result<Option<Child>, String> {
        let source = source(&images.join(POST_COPY))?;
        if source.is_none() && !images.join(LAZY).exists() {
            return Ok(None);
        }
        match self.start_keeper(images, source.as_deref()) {
            Ok(keeper) => Ok(Some(keeper)),
            Err(problem) if source.is_some() => {
                Err(format!("{} cannot be restored while its memory is still at its source: {problem}; the kubelet tries again", self.named()))
            }
            Err(problem) => {
                report::warning(&self.call, &format!("{} is restored with all of its memory at once: {problem}", self.named()));
                Ok(None)
            }
        }
    }

    fn named(&self) -> String {
        format!("container {} of pod {}", self.container, self.pod_uid)
    }

    fn config(&self) -> Result<Config, String> {
        let path = self.bundle.join("config.json");
        let bytes = fs::read(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        serde_json::from_slice(&bytes).map_err(|error| format!("{} cannot be parsed: {error}", path.display()))
    }

    /// Whether the images are there; false where the claim is no longer waiting, which the gate then says in its own words.
    fn wait_for(&self, images: &Path) -> Result<bool, String> {
        let begin = Instant::now();
        loop {
            let claims = self.markers.claims(&self.pod_uid).map_err(|error| unreadable(self.places, &self.pod_uid, &error))?;
            if rule(&claims, &self.container) != Rule::Take {
                return Ok(false);
            }
            if images.join(READY).exists() {
                return Ok(true);
            }
            if begin.elapsed() >= self.places.patience {
                return Err(format!(
                    "the checkpoint of {} was not in {} within {} s; the kubelet tries again: see kubectl get migrations -A and the log of this node's \
                     drover-agent for what is missing",
                    self.named(),
                    images.display(),
                    self.places.patience.as_secs()
                ));
            }
            thread::sleep(LOOK);
        }
    }

    /// Unpacks what has changed in the root folder, in a process of its own that has that folder for its root: no link of the image leads out.
    fn apply_diff(&self, tar: &Path, root: PathBuf) -> Result<(), String> {
        let file = match fs::File::open(tar) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| format!("{} cannot be read: {error}", tar.display()))?,
        };
        let root = self.bundle.join(root);
        let mut child = Command::new(&self.places.program);
        child.arg(APPLY).arg(&root).stdin(file).stdout(Stdio::null());
        let output = child.output().map_err(|error| format!("{} cannot be run: {error}", self.places.program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} cannot be applied to {}: {} ({})", tar.display(), root.display(), bounded(words.trim()), output.status))
    }

    fn run(&self, images: &Path, is_lazy: bool) -> Result<ExitStatus, String> {
        let program = program("runc", &self.places.path).ok_or_else(|| missing(self.places))?;
        let mut command = Command::new(&program);
        command.args(self.call.globals).args(["restore", "--detach", "--no-subreaper", "--image-path"]).arg(images.join(CHECKPOINT));
        command.arg("--work-path").arg(work_of(&self.bundle)).arg("--bundle").arg(&self.bundle);
        let mut option = |name: &str, value: Option<&OsStr>| {
            if let Some(value) = value {
                command.arg(name).arg(value);
            }
        };
        option("--pid-file", self.call.pid_file);
        option("--console-socket", self.call.console_socket);
        if self.call.no_pivot {
            command.arg("--no-pivot");
        }
        if is_lazy {
            command.arg("--lazy-pages");
        }
        command.args(self.call.id).status().map_err(|error| format!("{} cannot be run: {error}", program.display()))
    }

    /// runc has written why; where CRIU has, its words come after runc's, which only name the log.
    fn explain(&self, status: ExitStatus) -> Outcome {
        if let Some(words) = last_error(&work_of(&self.bundle).join(LOG)) {
            report::failure(Some(&self.call), &format!("{}: restore failed: CRIU says: {}", self.named(), bounded(&words)));
        }
        // Containerd removes them once this is over. Those of a restore that succeeds are its keeper's to keep, or the agent's.
        Logs::of_restore(&work_of(&self.bundle)).keep(&self.places.logs, &self.pod_uid, &self.container);
        Outcome::failed(status)
    }

    fn record_of(&self, images: &Path, pages: Pages) -> io::Result<Record> {
        let checkpoint = fs::read_to_string(images.join(READY))?.trim().to_owned();
        Ok(Record { pod: self.pod_uid.clone(), container: self.container.clone(), checkpoint, pages, resumed: None })
    }
}

/// Where the memory is asked for that is not among the images; none where all of it is.
fn source(file: &Path) -> Result<Option<PathBuf>, String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{} cannot be read: {error}", file.display())),
        Ok(path) if Path::new(path.trim()).is_absolute() => Ok(Some(path.trim().into())),
        Ok(path) => Err(format!("{} has no absolute path: {path:?}", file.display())),
    }
}

fn unwritable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be written: {error}", path.display())
}

/// Puts the log so far before what the container will write. The runtime has opened the new log by now, to append to it; it is the one with the highest
/// number, which is how often the container was restarted.
fn replay_log(images: &Path) -> io::Result<()> {
    let folder = match fs::read_to_string(images.join(LOG_FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let logs = fs::read_dir(folder)?.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.strip_suffix(".log")?.parse::<u32>().ok()?;
        Some((number, entry.path()))
    });
    let Some((_, log)) = logs.max() else { return Ok(()) };
    io::copy(&mut fs::File::open(images.join(super::LOG))?, &mut fs::OpenOptions::new().append(true).open(log)?).map(drop)
}

/// The last line of a log that names an error.
pub(super) fn last_error(log: &Path) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut bytes = vec![];
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    String::from_utf8_lossy(&bytes).lines().rev().find(|line| line.contains("Error")).map(|line| line.trim().to_owned())
}

pub(super) fn bounded(words: &str) -> &str {
    &words[..words.floor_char_boundary(WORDS)]
}
