//! A look at the node: what its runtime, CRIU, kernel and disk are.
//!
//! The agent runs in a container, so whatever is the host's is reached through a folder (`/host` or `/proc/1/root`) and commands through a prefix
//! (`nsenter -t 1 -m --`). What cannot be found out is left empty: the profile then says that it is not available, and why.

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    containerd::{Containerd, RuntimeVersion},
    crio, memory_room,
};
use crate::{
    api::node_profile::CriuStatus,
    domain::{
        image::go_architecture,
        lanes::{
            GateFacts, HandlerFacts, NodeFacts, RuntimeConfiguration,
            crio::{CrioFacts, NAME as CRIO},
            is_gated,
        },
    },
    ports::NodeProbe,
};

/// How long CRIU may take to look at the kernel.
const CRIU_CALL: Duration = Duration::from_secs(20);

/// Runs CRIU with a `/run` of its own, or else leaves none of what it notes there (`/run/criu.kdat`): what this container may not do, userfaultfd among it,
/// would be taken for what the kernel cannot do by every checkpoint and restore of the node.
const ALONE: [&str; 6] = [
    "unshare",
    "-m",
    "sh",
    "-c",
    "mount -t tmpfs -o size=1m none /run 2>/dev/null || [ -e /run/criu.kdat ] || trap 'rm -f /run/criu.kdat' EXIT; criu \"$1\"",
    "sh",
];

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSettings {
    /// The host's root folder, as the agent sees it.
    pub host_root: PathBuf,
    /// What comes before a command that must run on the host; empty where the agent runs there itself.
    pub host_command: Vec<String>,
    /// Where registry and checkpoints lie, as the agent sees it.
    pub data: PathBuf,
}

/// Looks at this node.
#[derive(Debug, Clone)]
pub struct HostProbe {
    runtime: Containerd,
    settings: ProbeSettings,
}

impl HostProbe {
    /// A probe with these settings.
    #[must_use]
    pub fn new(runtime: Containerd, settings: ProbeSettings) -> Self {
        Self { runtime, settings }
    }

    fn on_host(&self, path: &str) -> PathBuf {
        self.settings.host_root.join(path.trim_start_matches('/'))
    }

    /// Output of CRIU on the host, whatever its exit code; what went wrong where it could not be run.
    async fn criu(&self, argument: &str) -> Result<(bool, String), String> {
        let mut words = self.settings.host_command.iter().map(String::as_str).chain(ALONE).chain([argument]);
        let program = words.next().unwrap_or("criu");
        let run = tokio::process::Command::new(program).args(words).stdin(std::process::Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(CRIU_CALL, run)
            .await
            .map_err(|_| format!("criu {argument} did not end within {CRIU_CALL:?}"))?
            .map_err(|error| format!("{program} cannot be run: {error}"))?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    async fn criu_status(&self) -> CriuStatus {
        let version = match self.criu("--version").await {
            Ok((true, text)) => version_in(&text),
            Ok((false, text)) => return CriuStatus { message: last_line(&text), ..CriuStatus::default() },
            Err(message) => return CriuStatus { message, ..CriuStatus::default() },
        };
        match self.criu("check").await {
            Ok((true, _)) => CriuStatus { version, check: true, message: String::new() },
            Ok((false, text)) => CriuStatus { version, check: false, message: last_line(&text) },
            Err(message) => CriuStatus { version, check: false, message },
        }
    }

    fn gate(&self, spec: Option<&str>) -> GateFacts {
        let spec = spec.and_then(|path| std::fs::read(self.on_host(path)).ok());
        let hooks = spec.map(|spec| hooks_in(&spec)).unwrap_or_default();
        let programs = hooks.iter().filter(|path| is_program(&self.on_host(path))).cloned().collect();
        GateFacts { hooks, programs }
    }

    /// Who speaks CRI here. Where nobody answers on containerd's socket it may be CRI-O on its own; the profile then says what is to be said of that.
    async fn version(&self) -> Option<RuntimeVersion> {
        let error = match self.runtime.version().await {
            Ok(version) => return Some(version),
            Err(error) => error,
        };
        let socket = self.on_host(crio::SOCKET);
        if socket.exists()
            && let Ok(version) = Containerd::at(&socket).version().await
        {
            return Some(version);
        }
        tracing::warn!(%error, "the runtime told no version");
        None
    }

    fn handler(&self, configuration: &RuntimeConfiguration) -> HandlerFacts {
        let is_program = configuration.handlers_program().is_some_and(|path| is_program(&self.on_host(path)));
        HandlerFacts { is_program, gate: self.gate(configuration.handlers_base_spec()) }
    }
}

#[async_trait]
impl NodeProbe for HostProbe {
    async fn is_gated(&self) -> Option<bool> {
        let configuration: RuntimeConfiguration = serde_json::from_str(&self.runtime.configuration().await.ok().flatten()?).ok()?;
        let gate = self.gate(configuration.base_spec());
        Some(is_gated(&NodeFacts { configuration: Some(configuration), gate, ..NodeFacts::default() }))
    }

    async fn facts(&self) -> NodeFacts {
        let (runtime, runtime_version) = self.version().await.map(|found| (found.name, found.version)).unwrap_or_default();
        let crio = if runtime == CRIO { crio::facts(&self.settings.host_root) } else { CrioFacts::default() };
        let told = self.runtime.configuration().await.ok().flatten();
        let configuration = told.and_then(|json| serde_json::from_str::<RuntimeConfiguration>(&json).ok());
        let gate = self.gate(configuration.as_ref().and_then(RuntimeConfiguration::base_spec));
        let handler = configuration.as_ref().map(|found| self.handler(found)).unwrap_or_default();
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        NodeFacts {
            runtime,
            runtime_version,
            configuration,
            criu: self.criu_status().await,
            gate,
            handler,
            crio,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            architecture: go_architecture().to_owned(),
            cpu_features: cpu_features(&read("/proc/cpuinfo")),
            cgroup_version: if self.on_host("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 },
            free_bytes: free_bytes(&self.settings.data),
            free_memory_bytes: memory_room::room(&self.on_host("/run")),
        }
    }
}

/// `Version: 4.2.1` of `criu --version`.
fn version_in(text: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix("Version:")).map(|version| version.trim().to_owned()).unwrap_or_default()
}

fn last_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().chars().take(300).collect()
}

fn hooks_in(spec: &[u8]) -> Vec<String> {
    let spec: serde_json::Value = serde_json::from_slice(spec).unwrap_or_default();
    let hooks = spec.pointer("/hooks/createRuntime").and_then(serde_json::Value::as_array);
    hooks.into_iter().flatten().filter_map(|hook| hook.get("path")?.as_str().map(str::to_owned)).collect()
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The flags that every CPU of the node has: a process may run on any of them. x86 says `flags`, arm `Features`.
fn cpu_features(cpuinfo: &str) -> Vec<String> {
    let lines = cpuinfo.lines().filter_map(|line| line.split_once(':')).filter(|(key, _)| matches!(key.trim(), "flags" | "Features"));
    let sets = lines.map(|(_, flags)| flags.split_whitespace().collect::<BTreeSet<_>>());
    let common = sets.reduce(|all, one| all.intersection(&one).copied().collect()).unwrap_or_default();
    common.into_iter().map(str::to_owned).collect()
}

/// 0 where it cannot be found out, which preflight takes for a full disk.
fn free_bytes(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map(|found| found.f_bavail.saturating_mul(found.f_frsize)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::VersionResponse;
    use prost::Message as _;

    use super::*;

    fn probe(host_command: &[&str], host_root: &Path) -> HostProbe {
        let settings = ProbeSettings {
            host_root: host_root.to_owned(),
            host_command: host_command.iter().map(|word| (*word).to_owned()).collect(),
            data: host_root.to_owned(),
        };
        HostProbe::new(Containerd::at(Path::new("/nonexistent.sock")), settings)
    }

    #[tokio::test]
    async fn criu_is_asked_through_the_prefix() {
        let root = tempfile::tempdir().unwrap();
        let script =
            r#"case "$7" in --version) echo "Version: 4.2.1";; *) echo "Warn  ..."; echo "Error (criu/cr-check.c:1): no userfaultfd"; exit 1;; esac"#;
        let status = probe(&["sh", "-c", script, "sh"], root.path()).criu_status().await;
        assert_eq!((status.version.as_str(), status.check), ("4.2.1", false));
        assert!(status.message.contains("no userfaultfd"), "{}", status.message);
        let without = probe(&["/nonexistent/nsenter"], root.path()).criu_status().await;
        assert!(without.version.is_empty() && without.message.contains("/nonexistent/nsenter"));
    }

    #[tokio::test]
    async fn a_node_whose_runtime_is_silent_has_a_profile_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let facts = probe(&["/nonexistent"], root.path()).facts().await;
        assert!(facts.runtime.is_empty() && !facts.kernel.is_empty() && facts.free_bytes > 0);
    }

    /// A stand-in for CRI-O that tells its version and nothing else.
    #[tokio::test]
    async fn a_node_of_crio_is_known_by_its_own_socket() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/crio")).unwrap();
        let version = VersionResponse { runtime_name: "cri-o".to_owned(), runtime_version: "1.35.0".to_owned(), ..VersionResponse::default() };
        let message = version.encode_to_vec();
        let body = [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat();
        let answer = || async move { ([("content-type", "application/grpc"), ("grpc-status", "0")], body) };
        let router = axum::Router::new().route("/runtime.v1.RuntimeService/Version", axum::routing::post(answer));
        let listener = tokio::net::UnixListener::bind(root.path().join("run/crio/crio.sock")).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let facts = probe(&["/nonexistent"], root.path()).facts().await;
        assert_eq!((facts.runtime.as_str(), facts.runtime_version.as_str(), facts.configuration), ("cri-o", "1.35.0", None));
        assert_eq!(facts.crio, CrioFacts::default(), "nothing is set up");
    }

    #[test]
    fn the_hook_is_looked_for_on_the_host() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("lib")).unwrap();
        std::fs::write(root.path().join("b.json"), r#"{"hooks":{"createRuntime":[{"path":"/lib/drover-gate"}]}}"#).unwrap();
        let json = r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{"runc":{"baseRuntimeSpec":"/b.json"}}}}"#;
        let configuration: RuntimeConfiguration = serde_json::from_str(json).unwrap();
        let facts = || probe_inside(root.path(), |probe| probe.gate(configuration.base_spec()));
        assert_eq!(facts(), GateFacts { hooks: vec!["/lib/drover-gate".to_owned()], programs: Vec::new() });
        let gate = root.path().join("lib/drover-gate");
        std::fs::write(&gate, "x").unwrap();
        std::fs::set_permissions(&gate, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(facts().programs, ["/lib/drover-gate"]);
    }

    #[test]
    fn the_handlers_program_is_looked_for_on_the_host() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("lib")).unwrap();
        std::fs::write(root.path().join("b.json"), r#"{"hooks":{"createRuntime":[{"path":"/lib/drover-gate"}]}}"#).unwrap();
        let json = r#"{"containerd":{"runtimes":{"drover":{"baseRuntimeSpec":"/b.json","options":{"BinaryName":"/lib/drover-runc"}}}}}"#;
        let configuration: RuntimeConfiguration = serde_json::from_str(json).unwrap();
        let facts = || probe_inside(root.path(), |probe| probe.handler(&configuration));
        let gate = GateFacts { hooks: vec!["/lib/drover-gate".to_owned()], programs: Vec::new() };
        assert_eq!(facts(), HandlerFacts { is_program: false, gate: gate.clone() });
        let program = root.path().join("lib/drover-runc");
        std::fs::write(&program, "x").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(facts(), HandlerFacts { is_program: true, gate });
    }

    fn probe_inside<T>(root: &Path, look: impl FnOnce(&HostProbe) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _inside = runtime.enter();
        look(&probe(&[], root))
    }

    #[test]
    fn a_flag_counts_where_every_cpu_has_it() {
        assert_eq!(cpu_features("processor\t: 0\nflags\t\t: sse avx\n\nprocessor\t: 1\nflags\t\t: sse\n"), ["sse"]);
        assert_eq!(cpu_features("Features\t: fp asimd\n"), ["asimd", "fp"]);
    }
}
