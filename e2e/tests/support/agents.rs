//! The processes of Drover, found from outside the nodes, which are namespaces of this machine: a signal must not wait for a shell in a node.

use std::{fs, process::Command, time::Duration};

use super::{NODES, SYSTEM, eventually, lab};

/// A process of Drover's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `drover manager`, wherever it runs.
    Managers,
    /// `drover agent` of a node.
    Agent(&'static str),
    /// The registry of a node.
    Registry(&'static str),
}

/// A node's network namespace tells its processes from others'. The registry has the agent pod's, which is the node's.
fn node_of(pid: u32) -> Option<&'static str> {
    let own = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    NODES.into_iter().find(|node| {
        let first = fs::read_to_string(run_folder().join(format!("{node}.pid"))).unwrap_or_default();
        let first = first.split_whitespace().next().unwrap_or_default();
        fs::read_link(format!("/proc/{first}/ns/net")).is_ok_and(|net| net == own)
    })
}

/// Where the lab keeps the pids of its nodes.
fn run_folder() -> std::path::PathBuf {
    let kubeconfig = lab::lab(&["kubeconfig"]);
    let pki = std::path::Path::new(kubeconfig.trim()).parent().unwrap();
    pki.parent().unwrap().join("run")
}

impl Part {
    fn matches(self, pid: u32, arguments: &[String]) -> bool {
        let program = arguments.first().map(|a| a.rsplit('/').next().unwrap_or_default()).unwrap_or_default();
        let first = arguments.get(1).map(String::as_str).unwrap_or_default();
        match self {
            Self::Managers => program == "drover" && first == "manager",
            Self::Agent(node) => program == "drover" && first == "agent" && node_of(pid) == Some(node),
            Self::Registry(node) => first == "serve" && arguments.iter().any(|a| a.contains("distribution")) && node_of(pid) == Some(node),
        }
    }

    /// Its processes, as this machine counts.
    pub fn pids(self) -> Vec<u32> {
        let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let arguments = |pid: u32| -> Vec<String> {
            let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            raw.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
        };
        all.filter(|pid| self.matches(*pid, &arguments(*pid))).collect()
    }

    /// Sends a signal to its processes, of which there must be some.
    #[track_caller]
    pub fn signal(self, signal: &str) {
        let pids = self.pids();
        assert!(!pids.is_empty(), "{self:?} does not run");
        signal_all(&pids, signal);
    }

    fn selector(self) -> &'static str {
        match self {
            Self::Managers => "app.kubernetes.io/component=manager",
            Self::Agent(_) | Self::Registry(_) => "app.kubernetes.io/component=agent",
        }
    }

    /// Replaces its pods by new ones: the kubelet starts a killed container again at once the first time only, and then after ever longer waits.
    pub fn replace_pods(self) {
        let mut arguments = vec!["kubectl", "-n", SYSTEM, "delete", "pods", "-l", self.selector(), "--grace-period=1", "--wait=true"];
        let field;
        if let Self::Agent(node) | Self::Registry(node) = self {
            field = format!("--field-selector=spec.nodeName={node}");
            arguments.push(&field);
        }
        lab::lab(&arguments);
        ready();
    }
}

/// Sends a signal to processes of this machine.
pub fn signal_all(pids: &[u32], signal: &str) {
    let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
    let _ = Command::new("kill").arg(format!("-{signal}")).args(&pids).status();
}

/// Waits until every part of Drover is ready.
pub fn ready() {
    for workload in ["deployment/drover-manager", "daemonset/drover-agent"] {
        lab::lab(&["kubectl", "-n", SYSTEM, "rollout", "status", workload, "--timeout=90s"]);
    }
    // A killed container counts as ready until the kubelet has looked.
    eventually(Duration::from_secs(30), || {
        let all = NODES.map(Part::Agent).map(|part| part.pids().len());
        (all != [1, 1] || Part::Managers.pids().len() < 2).then(|| format!("agents {all:?}, managers {}", Part::Managers.pids().len()))
    });
}
