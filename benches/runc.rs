//! What the runtime adds to a call that is runc's, in milliseconds, side by side with the same call without it (`make bench`).
//!
//! The program that stands for runc is this one too, and so is the runtime: started with a first argument of its own, it does what
//! `drover-runc` does, in other places. A program ends where it would begin its work, so the figures are those of processes alone.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use drover::{
    markers::Markers,
    runc::{Places, main_with},
};

/// As the runtime; the folder of places comes next.
const RUNTIME: &str = "--as-drover-runc";
const ROUNDS: usize = 1000;
const POD: &str = "0f1c22aa-0000-4000-8000-00000000000";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    if Path::new(&arguments[0]).file_name().is_some_and(|name| name == "runc") {
        return ExitCode::SUCCESS;
    }
    if arguments.get(1).is_some_and(|argument| argument == RUNTIME) {
        return main_with(&places(Path::new(&arguments[2])), &arguments[3..]);
    }
    compare();
    ExitCode::SUCCESS
}

fn places(folder: &Path) -> Places {
    Places {
        gate_root: folder.join("gate"),
        restore_root: folder.join("restore"),
        pages: folder.join("pages"),
        logs: folder.join("logs"),
        records: folder.join("records"),
        path: folder.into(),
        ..Places::of_node()
    }
}

/// A config.json of about the size that containerd's have.
fn bundle(folder: &Path) -> PathBuf {
    let bundle = folder.join("bundle");
    fs::create_dir_all(&bundle).expect("a folder");
    let mounts: Vec<_> = (0..30)
        .map(|at| serde_json::json!({"destination": format!("/mount/{at}"), "type": "bind", "source": format!("/var/lib/kubelet/pods/{POD}0/volumes/{at}"), "options": ["rbind", "rprivate", "rw"]}))
        .collect();
    let calls: Vec<_> = (0..400).map(|at| format!("system_call_{at}")).collect();
    let config = serde_json::json!({"ociVersion": "1.3.0", "mounts": mounts, "root": {"path": "rootfs"}, "process": {"args": ["/bin/sh"], "env": calls[..40]},
        "linux": {"seccomp": {"syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}]}},
        "annotations": {"io.kubernetes.cri.sandbox-uid": format!("{POD}0"), "io.kubernetes.cri.container-name": "c", "io.kubernetes.cri.container-type": "container"}});
    fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config).expect("a document")).expect("a file");
    bundle
}

fn took(program: &Path, arguments: &[OsString]) -> Duration {
    let begin = Instant::now();
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).status().expect("a program that can be run");
    assert!(status.success());
    begin.elapsed()
}

/// Alternating, so that whatever else the machine does meets both alike.
fn case(what: &str, runc: &Path, folder: &Path, arguments: &[OsString]) {
    let itself = env::current_exe().expect("a program");
    let wrapped = [&[RUNTIME.into(), folder.into()], arguments].concat();
    let (mut alone, mut both): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| (took(runc, arguments), took(&itself, &wrapped))).unzip();
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1000.0
    };
    let (alone, both) = (median(&mut alone), median(&mut both));
    println!("{what}: {alone:.3} ms alone, {both:.3} ms through drover-runc: {:.3} ms more, {:.2} times", both - alone, both / alone);
}

fn compare() {
    let folder = tempfile::tempdir().expect("a folder");
    let runc = folder.path().join("runc");
    symlink(env::current_exe().expect("a program"), &runc).expect("a link");
    let bundle = bundle(folder.path());
    let size = fs::metadata(bundle.join("config.json")).map_or(0, |found| found.len());
    let words = ["--root", "/r", "--log", "/dev/null", "--log-format", "json", "create", "--bundle"];
    let create: Vec<OsString> = words.into_iter().map(OsString::from).chain([bundle.into(), "--pid-file".into(), "/p".into(), "id".into()]).collect();
    println!("medians of {ROUNDS} calls each");
    case("state, which is always runc's", &runc, folder.path(), &["state".into(), "id".into()]);
    case("create where no pod has markers", &runc, folder.path(), &create);
    let markers = Markers::new(folder.path().join("gate"));
    markers.arm(&format!("{POD}1"), "c", "migration").expect("a claim");
    case(&format!("create with another pod's claims and a config.json of {size} bytes"), &runc, folder.path(), &create);
}
