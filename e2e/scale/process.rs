//! Child processes that end with the test, however it ends.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
};

/// A process that runs as long as this lives.
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its output in `folder/NAME.log`. `setpriv` has the kernel end it also where this process is killed.
    pub fn start(name: &'static str, folder: &Path, program: &Path, arguments: &[String], environment: &[(&str, String)]) -> Self {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments).envs(environment.iter().map(|(key, value)| (key, value)));
        // kwok and kubectl read what they find in the home folder.
        command.env("HOME", folder).current_dir(folder).stdin(std::process::Stdio::null());
        let child = command.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap_or_else(|e| panic!("{name} was not started: {e}"));
        Self { name, child, log }
    }

    /// Its process ID.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Fails the test where it has ended by itself.
    pub fn assert_runs(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} has ended ({status}); its last lines:\n{}", self.name, self.tail(20));
        }
    }

    /// The last lines of its log.
    pub fn tail(&self, lines: usize) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.name, self.tail(8));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
