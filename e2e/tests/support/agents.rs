//! The processes of Drover, found from outside the nodes, which are namespaces of this machine: a signal must not wait for a shell in a node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use axum::http::{HeaderName, HeaderValue, Request};
use kube::{
    Client,
    client::{Body, ClientBuilder},
};
use tower::util::MapRequestLayer;

use super::{NODES, SYSTEM, config, eventually, lab};

/// A process of Drover's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `drover manager`, wherever it runs.
    Managers,
    /// `drover agent` of a node.
    Agent(&'static str),
    /// The registry of a node.
    Registry(&'static str),
    /// A node's kubelet, which is none of Drover's.
    Kubelet(&'static str),
}

/// A path on a node's disk, as it is seen from outside of the node.
pub fn on_disk(node: &str, path: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root", first_process(node))).join(path.strip_prefix("/").unwrap_or(path))
}

/// A node's network namespace tells its processes from others'. The registry has the agent pod's, which is the node's.
pub fn node_of(pid: u32) -> Option<&'static str> {
    let own = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    NODES.into_iter().find(|node| fs::read_link(format!("/proc/{}/ns/net", first_process(node))).is_ok_and(|net| net == own))
}

/// The first process of a node, as this machine counts; empty where the node is powered off.
pub fn first_process(node: &str) -> String {
    let remembered = fs::read_to_string(lab::folder().join(format!("run/{node}.pid"))).unwrap_or_default();
    remembered.split_whitespace().next().unwrap_or_default().to_owned()
}

impl Part {
    fn matches(self, pid: u32, arguments: &[String]) -> bool {
        let program = arguments.first().map(|a| a.rsplit('/').next().unwrap_or_default()).unwrap_or_default();
        let first = arguments.get(1).map(String::as_str).unwrap_or_default();
        match self {
            Self::Managers => program == "drover" && first == "manager",
            Self::Agent(node) => program == "drover" && first == "agent" && node_of(pid) == Some(node),
            // Kubernetes is one program in the lab.
            Self::Kubelet(node) => program == "kube" && first == "kubelet" && node_of(pid) == Some(node),
            Self::Registry(node) => first == "serve" && arguments.iter().any(|a| a == "/run/drover/registry.yml") && node_of(pid) == Some(node),
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
            Self::Kubelet(_) => unreachable!("it is in no pod"),
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
    // A profile that was written while a runtime was away refuses every move until the next one.
    eventually(Duration::from_secs(45), || {
        let lanes = "{range .items[*]}{.status.lanes[*].available};{end}";
        let said = lab::try_lab(&["kubectl", "get", "nodeprofiles", "-o", &format!("jsonpath={lanes}")]).unwrap_or_default();
        // Any lane: nodes of containerd 2.4 have one alone.
        (said.split_terminator(';').map(|node| node.contains("true")).collect::<Vec<_>>() != [true; 2])
            .then(|| format!("both nodes take pods: {said}"))
    });
}

/// A client that the API server takes for the agent of this node, as a token bound to a pod there would make it.
pub async fn client(node: &str) -> Client {
    let username = format!("system:serviceaccount:{SYSTEM}:drover-agent");
    let headers = [("impersonate-user", username.as_str()), ("impersonate-extra-authentication.kubernetes.io%2fnode-name", node)]
        .map(|(name, value)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap()));
    let impersonate = MapRequestLayer::new(move |mut request: Request<Body>| {
        request.headers_mut().extend(headers.clone());
        request
    });
    ClientBuilder::try_from(config().await).unwrap().with_layer(&impersonate).build()
}
