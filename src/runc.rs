//! The runtime: what containerd runs in runc's place (`BinaryName`), so that a container's ordinary `create` becomes a restore (MEASURED.md 10).
//!
//! Each call goes to runc as it came, by exec, but for these:
//!
//! | call | what it does |
//! | --- | --- |
//! | `create` of a container whose claim is `waiting` ([`crate::markers`]) | waits for the images, applies the difference of its root folder, runs `runc restore`, lazily where the images say so; the gate, runc's hook, takes the claim |
//! | `start` of what it has restored | nothing: the processes run already |
//! | `delete` | forgets that it was restored; then it is runc's. Where pages were outstanding, CRIU's daemon is ended after runc has |
//! | `checkpoint` of a container whose pages are asked for ([`pages`]) | has it written without most of its memory, which a server hands out from then on |
//!
//! A `create` without a claim is runc's, and so is one whose claim is anything but `waiting`: the gate judges it. One whose claim is waiting is
//! never an ordinary create: whatever is in its restore's way is an error, after which the kubelet asks again.
//!
//! The images lie below [`RESTORE_ROOT`], put there by the agent: `<podUID>/<container>/` with CRIU's in `checkpoint/`, an OCI layer
//! `rootfs-diff.tar` where the root folder had changed, `lazy` where the container may run before all of its memory is back, `post-copy` where that
//! memory is not among the images but still at its source, and `ready`, which is written last.

mod arguments;
mod delete;
mod diff;
mod freezer;
mod held;
mod keeper;
pub mod kept;
mod lazy;
pub mod pages;
pub(crate) mod processes;
mod record;
mod remote;
mod report;
mod restore;
mod serve;
mod transfer;
mod wire;

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
    time::Duration,
};

use arguments::Call;
#[cfg(test)]
pub(crate) use diff::apply;
pub use record::{Pages, Record};

use crate::{
    gate::{Rule, caller::Caller, is_bare, rule},
    markers::{GATE_ROOT, Markers},
};

/// Where the agent puts what is to be restored, as `<podUID>/<container>/`. In memory: images of an earlier boot are nobody's.
pub const RESTORE_ROOT: &str = "/run/drover/restore";
/// Below a container's folder: CRIU's images.
pub const CHECKPOINT: &str = "checkpoint";
/// Below a container's folder: an OCI layer with what has changed in its root folder.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";
/// Below a container's folder: its log so far, as the runtime writes logs.
pub const LOG: &str = "container.log";
/// Below a container's folder: the path of the folder to which the kubelet has the container's logs written, where that is known.
pub const LOG_FOLDER: &str = "log-folder";
/// Below a container's folder: there where the images lie in memory, and may be read while the container runs already.
pub const LAZY: &str = "lazy";
/// Below a container's folder: the absolute path of a socket, there where the memory is still at the source and comes through that socket.
pub const POST_COPY: &str = "post-copy";
/// Below a container's folder: the name of the checkpoint's image, written when all else is there.
pub const READY: &str = "ready";

/// Where it remembers what it has restored, a [`Record`] by each of the runtime's IDs. In memory, as runc's own state is.
pub const RECORDS: &str = "/run/drover/runc";
/// Where programs are where the environment does not say it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The kubelet gives up a request after 120 s (runtimeRequestTimeout); the restore has the rest.
const PATIENCE: Duration = Duration::from_secs(100);
/// The first argument by which the program calls itself; no command of runc's.
const APPLY: &str = "apply-rootfs-diff";
/// The same for a keeper.
const KEEP: &str = "keep-lazy-pages";
/// The same for a server of pages.
const SERVE: &str = "serve-pages";

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Places {
    /// The markers' root.
    pub gate_root: PathBuf,
    /// Images to restore.
    pub restore_root: PathBuf,
    /// What has been restored.
    pub records: PathBuf,
    /// Whose pages are asked for or served.
    pub pages: PathBuf,
    /// CRIU's logs that are kept.
    pub logs: PathBuf,
    /// Folders of programs, as `PATH` has them.
    pub path: OsString,
    /// This program, for the child that changes its root folder.
    pub program: PathBuf,
    /// What CRIU remembers of the kernel.
    pub criu_cache: PathBuf,
    /// How long a create waits for its images.
    pub patience: Duration,
}

impl Places {
    /// Those of a node.
    #[must_use]
    pub fn of_node() -> Self {
        Self {
            gate_root: GATE_ROOT.into(),
            restore_root: RESTORE_ROOT.into(),
            records: RECORDS.into(),
            pages: pages::ROOT.into(),
            logs: kept::ROOT.into(),
            path: std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_PATH.into()),
            program: "/proc/self/exe".into(),
            criu_cache: "/run/criu.kdat".into(),
            patience: PATIENCE,
        }
    }

    /// Where what is known of a restored container lies; none where the ID could be no file's name.
    fn record(&self, id: &OsStr) -> Option<PathBuf> {
        Some(self.records.join(name_of(id)?))
    }
}

/// An ID as a file's name; none where it could be no file's.
fn name_of(id: &OsStr) -> Option<&str> {
    let id = id.to_str()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    (!id.is_empty() && id.len() <= 1024 && id.bytes().all(allowed) && id != "." && id != "..").then_some(id)
}

/// What is left to do after a call was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It is runc's.
    Pass,
    /// It has been done.
    Done,
    /// It has failed, with this exit code, and whoever reads runc's log was told why.
    Failed(u8),
}

impl Outcome {
    /// What runc has not done, by how it ended.
    fn failed(status: ExitStatus) -> Self {
        Self::Failed(status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1))
    }
}

/// A claimed container that is to be restored.
struct Restore<'a> {
    places: &'a Places,
    markers: Markers,
    pod_uid: String,
    container: String,
    bundle: PathBuf,
    record: PathBuf,
    call: Call<'a>,
}

/// The whole program; `arguments` are those after its name. It returns only where runc is not what comes next.
#[must_use]
pub fn main_with(places: &Places, arguments: &[OsString]) -> ExitCode {
    if let [command, root] = arguments
        && command == APPLY
    {
        return match diff::apply_inside(Path::new(root), std::io::stdin().lock()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    if let [command, rest @ ..] = arguments
        && command == KEEP
    {
        return keeper::main(places, rest);
    }
    if let [command, rest @ ..] = arguments
        && command == SERVE
    {
        return serve::main(places, rest);
    }
    match look_at(places, arguments) {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Failed(code) => ExitCode::from(code),
        Outcome::Pass => {
            let problem = match program("runc", &places.path) {
                Some(program) => format!("{} cannot be run: {}", program.display(), Command::new(&program).args(arguments).exec()),
                None => missing(places),
            };
            report::failure(Call::of(arguments).as_ref(), &problem);
            ExitCode::FAILURE
        }
    }
}

fn missing(places: &Places) -> String {
    format!("there is no program runc in {}; install it on the node", places.path.display())
}

/// The first program of this name that can be run.
fn program(name: &str, path: &OsStr) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    std::env::split_paths(path).filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)).find(is_program)
}

fn look_at(places: &Places, arguments: &[OsString]) -> Outcome {
    // What cannot be understood is runc's to refuse.
    let Some(call) = Call::of(arguments) else { return Outcome::Pass };
    let Some(record) = call.id.and_then(|id| places.record(id)) else { return Outcome::Pass };
    match call.command.to_str() {
        Some("start") if record.exists() => Outcome::Done,
        Some("delete") => delete::delete(places, &call.id.unwrap_or_default().to_string_lossy(), arguments, &record),
        Some("checkpoint") => match pages::requested(&places.pages, call.id.unwrap_or_default()) {
            Some(folder) => serve::checkpoint(places, &call, arguments, &folder),
            None => Outcome::Pass,
        },
        Some("create") if !is_bare(&places.gate_root) => match claimed(places, call, record) {
            Ok(None) => Outcome::Pass,
            Ok(Some(restore)) => restore.carry_out(),
            Err(problem) => {
                report::failure(Some(&call), &problem);
                Outcome::Failed(1)
            }
        },
        _ => Outcome::Pass,
    }
}

/// The restore that a create stands for, or none. A bundle that cannot be read is refused by runc, and a container without a name by the gate.
///
/// # Errors
/// Where markers are there but cannot be read: were it runc's, and the gate could read them a moment later, it would take the claim for a new container.
fn claimed<'a>(places: &'a Places, call: Call<'a>, record: PathBuf) -> Result<Option<Restore<'a>>, String> {
    let bundle = call.bundle.map_or_else(|| ".".into(), PathBuf::from);
    let id = call.id.unwrap_or_default().to_string_lossy().into_owned();
    let Ok(Some(caller)) = Caller::of_bundle(id, bundle.clone()) else { return Ok(None) };
    let markers = Markers::new(&places.gate_root);
    let claims = match markers.claims(&caller.pod_uid) {
        // No UID, no markers: the gate lets it through as well.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
        other => other.map_err(|error| unreadable(places, &caller.pod_uid, &error))?,
    };
    if claims.is_empty() || caller.is_sandbox() {
        return Ok(None);
    }
    let Some(container) = caller.container_name() else { return Ok(None) };
    Ok((rule(&claims, &container) == Rule::Take).then_some(Restore { places, markers, pod_uid: caller.pod_uid, container, bundle, record, call }))
}

fn unreadable(places: &Places, pod_uid: &str, error: &io::Error) -> String {
    format!("the markers of pod {pod_uid} below {} cannot be read ({error}); no container of it may start until they can", places.gate_root.display())
}

#[cfg(test)]
mod tests;
