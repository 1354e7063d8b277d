//! The lab's verbs.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub fn program() -> PathBuf {
    env::var_os("LAB").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("e2e/lab"), PathBuf::from)
}

/// `e2e/lab …`; both of its streams, and whether it succeeded.
pub fn try_lab(arguments: &[&str]) -> Result<String, String> {
    let out = Command::new(program()).args(arguments).stdin(Stdio::null()).output().expect("e2e/lab runs");
    let text = [out.stdout, out.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if out.status.success() { Ok(text) } else { Err(text) }
}

/// `e2e/lab …`, which has to succeed; what it printed.
#[track_caller]
pub fn lab(arguments: &[&str]) -> String {
    match try_lab(arguments) {
        Ok(text) => text,
        Err(text) => panic!("e2e/lab {arguments:?} failed:\n{text}"),
    }
}

/// Where the lab keeps what it runs with.
pub fn folder() -> PathBuf {
    let kubeconfig = lab(&["kubeconfig"]);
    let pki = Path::new(kubeconfig.trim()).parent().unwrap();
    pki.parent().unwrap().to_owned()
}

/// Runs the command line as a person does: its exit code and what it printed.
pub fn drover(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
    let out = command.args(arguments).env("KUBECONFIG", lab(&["kubeconfig"]).trim()).output().expect("drover runs");
    (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

/// A shell script in a node; what it printed.
#[track_caller]
pub fn on_node(node: &str, script: &str) -> String {
    lab(&["exec", node, "sh", "-c", script])
}

/// Puts a program of this machine on a node, in a folder that is made for it.
#[track_caller]
pub fn put(node: &str, file: &Path, path: &str) {
    let script = format!("mkdir -p \"$(dirname {path})\" && cat >{path} && chmod 755 {path}");
    let put = Command::new(program()).args(["exec", node, "sh", "-c", &script]).stdin(File::open(file).unwrap()).status().expect("e2e/lab runs");
    assert!(put.success(), "{path} could not be put on {node}");
}

/// Taints a node until it is dropped: `NoSchedule` keeps every pod off it, `NoExecute` has those on it deleted too.
#[track_caller]
pub fn taint(node: &'static str, effect: &str) -> impl Drop + use<> {
    lab(&["kubectl", "taint", "node", node, &format!("e2e=away:{effect}")]);
    Restore(move || drop(try_lab(&["kubectl", "taint", "node", node, "e2e-"])))
}

/// Gives the installed chart these values, `a=b,c=d`, and keeps the others; returns before Drover is ready.
#[track_caller]
pub fn set_values(values: &str) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/drover");
    lab(&["helm", "upgrade", "drover", chart.to_str().unwrap(), "--namespace", super::SYSTEM, "--reuse-values", "--set", values]);
}

/// Undoes an injected fault also when the test fails.
pub struct Restore<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for Restore<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
