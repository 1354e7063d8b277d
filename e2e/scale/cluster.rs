//! A whole control plane on this machine's loopback: etcd, API server, controller manager, scheduler, kwok, and the manager under test.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use axum::http::Request;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{pki, process::Process};

/// Drover's own namespace.
pub const SYSTEM: &str = "drover-system";
/// What of the installer the manager needs, as a process: what it is allowed to, and what agents are not.
const INSTALLED: [&str; 9] = [
    "CustomResourceDefinition",
    "Namespace",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];
/// How long a part may take to begin.
const PATIENCE: Duration = Duration::from_mins(2);
/// One line for each request of the manager's.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
    - {level: Metadata, users: ['system:serviceaccount:drover-system:drover-manager']}\n- {level: None}\n";
const STAGES: &str = include_str!("stages.yaml");
const INSTALLER: &str = include_str!("../../manifests/install.yaml");

/// The running parts, ended in this order: first who asks, then who is asked.
pub struct Cluster {
    manager: Option<Process>,
    parts: Vec<Process>,
    folder: Option<tempfile::TempDir>,
    kube: PathBuf,
    server: String,
    pub admin: Config,
    pub client: Client,
}

impl Cluster {
    /// Starts everything but the manager.
    pub async fn start() -> Self {
        let (kube, etcd, kwok) = (cached("kube"), cached("etcd"), cached("kwok"));
        let folder = tempfile::Builder::new().prefix("drover-scale-").tempdir().unwrap();
        let [etcd_client, etcd_peer, secure, kcm, scheduler] = free_ports();
        let server = format!("https://127.0.0.1:{secure}");
        let path = folder.path().to_owned();
        pki::make(&path, &server);
        fs::write(path.join("audit.yaml"), AUDIT).unwrap();
        fs::write(path.join("stages.yaml"), STAGES).unwrap();
        let start = |name, program: &Path, arguments: Vec<String>| Process::start(name, &path, program, &arguments, &[]);
        let mut parts = vec![
            start("etcd", &etcd, etcd_arguments(&path, etcd_client, etcd_peer)),
            start("apiserver", &kube, apiserver_arguments(&path, etcd_client, secure)),
        ];
        let admin = config(&path.join("admin.kubeconfig")).await;
        let client = Client::try_from(admin.clone()).unwrap();
        wait_for_api(&client, &mut parts).await;
        parts.insert(0, start("kcm", &kube, kcm_arguments(kcm)));
        fs::write(path.join("scheduler.yaml"), scheduler_configuration(&path)).unwrap();
        parts.insert(0, start("scheduler", &kube, scheduler_arguments(scheduler)));
        let flags = ["--kubeconfig=kwok.kubeconfig", "--config=stages.yaml", "--manage-all-nodes=true", "--node-lease-duration-seconds=120"];
        parts.insert(0, start("kwok", &kwok, strings(&[&flags[..], &["--cidr=10.128.0.1/16"]].concat())));
        Self { manager: None, parts, folder: Some(folder), kube, server, admin, client }
    }

    fn path(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    /// Installs what the manager needs, and starts it as what it is in a cluster: its service account.
    pub async fn start_manager(&mut self) {
        let chosen: Vec<_> = INSTALLER.split("\n---\n").filter(|text| kind(text).is_some_and(|kind| INSTALLED.contains(&kind))).collect();
        assert!(chosen.len() > INSTALLED.len(), "the installer was taken apart: {}", chosen.len());
        fs::write(self.path().join("install.yaml"), chosen.join("\n---\n")).unwrap();
        self.kubectl(&["apply", "--server-side", "-f", "install.yaml"]);
        let token = self.kubectl(&["create", "token", "drover-manager", "-n", SYSTEM, "--duration=24h"]);
        let kubeconfig = pki::kubeconfig(self.path(), &self.server, &format!("token: {}", token.trim()));
        fs::write(self.path().join("manager.kubeconfig"), kubeconfig).unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "default");
        eventually("the default service account", async || accounts.get("default").await.is_ok()).await;
        // Another build of it, to compare figures.
        let program = std::env::var_os("DROVER_SCALE_MANAGER").map_or_else(|| env!("CARGO_BIN_EXE_drover").into(), PathBuf::from);
        // Under a name of its own: the lab's tests know its managers by theirs, and kill them.
        let manager = self.path().join("manager-of-scale");
        std::os::unix::fs::symlink(program, &manager).unwrap();
        let [webhooks, admin] = free_ports();
        let arguments = ["manager", "--pod-name=manager-0", &format!("--webhook-port={webhooks}"), &format!("--admin-port={admin}")];
        let environment = [
            ("KUBECONFIG", self.path().join("manager.kubeconfig").display().to_string()),
            ("POD_NAMESPACE", SYSTEM.to_owned()),
            ("NO_COLOR", "1".to_owned()),
        ];
        let manager = Process::start("manager", self.path(), &manager, &strings(&arguments), &environment);
        self.manager = Some(manager);
    }

    /// Process ID of the manager.
    pub fn manager(&self) -> i32 {
        self.manager.as_ref().unwrap().pid()
    }

    /// Where the API server writes down what the manager asks for.
    pub fn audit_log(&self) -> PathBuf {
        self.path().join("audit.log")
    }

    /// Fails the test where a part has ended.
    pub fn assert_runs(&mut self) {
        self.manager.iter_mut().chain(&mut self.parts).for_each(Process::assert_runs);
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.kube);
        command.args(["kubectl", "--kubeconfig=admin.kubeconfig"]).args(arguments).current_dir(self.path()).env("HOME", self.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.manager.take();
        self.parts.clear();
        if std::thread::panicking() {
            eprintln!("the logs stay in {}", self.folder.take().unwrap().keep().display());
        }
    }
}

/// Until it is ready, its own roles among what it has made: the controller manager gives up where it is not allowed to begin.
async fn wait_for_api(client: &Client, parts: &mut [Process]) {
    let begun = Instant::now();
    while client.request_text(Request::get("/readyz").body(vec![]).unwrap()).await.is_err() {
        parts.iter_mut().for_each(Process::assert_runs);
        assert!(begun.elapsed() < PATIENCE, "the API server does not begin to answer");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until something is so.
pub async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn kind(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("kind: "))
}

async fn config(kubeconfig: &Path) -> Config {
    let read = Kubeconfig::read_from(kubeconfig).unwrap();
    Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap()
}

/// The path of a program that the lab has built.
fn cached(name: &str) -> PathBuf {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/lab");
    let output = Command::new(lab).args(["cached", name]).stderr(std::process::Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the lab has no {name}; run: e2e/lab build");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// Ports that nobody listens on, all different.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn strings(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(ToString::to_string).collect()
}

fn etcd_arguments(folder: &Path, client: u16, peer: u16) -> Vec<String> {
    let (data, client, peer) = (folder.join("etcd"), format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    strings(&[
        &format!("--data-dir={}", data.display()),
        "--unsafe-no-fsync",
        "--log-level=error",
        &format!("--listen-client-urls={client}"),
        &format!("--advertise-client-urls={client}"),
        &format!("--listen-peer-urls={peer}"),
        &format!("--initial-advertise-peer-urls={peer}"),
        &format!("--initial-cluster=default={peer}"),
    ])
}

fn apiserver_arguments(folder: &Path, etcd: u16, secure: u16) -> Vec<String> {
    let cert_dir = folder.join("run").display().to_string();
    strings(&[
        "kube-apiserver",
        &format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        &format!("--secure-port={secure}"),
        &format!("--cert-dir={cert_dir}"),
        "--tls-cert-file=apiserver.crt",
        "--tls-private-key-file=apiserver.key",
        "--client-ca-file=ca.crt",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=sa.pub",
        "--service-account-signing-key-file=sa.key",
        "--service-cluster-ip-range=10.96.0.0/24",
        "--authorization-mode=RBAC",
        "--audit-policy-file=audit.yaml",
        "--audit-log-path=audit.log",
        // Megabytes; a second file would not be counted.
        "--audit-log-maxsize=100000",
    ])
}

/// With room for thousands of pods; and a machine that is busy makes no node look dead.
fn kcm_arguments(secure: u16) -> Vec<String> {
    strings(&[
        "kube-controller-manager",
        "--kubeconfig=kcm.kubeconfig",
        "--authentication-kubeconfig=kcm.kubeconfig",
        "--authorization-kubeconfig=kcm.kubeconfig",
        "--service-account-private-key-file=sa.key",
        "--root-ca-file=ca.crt",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        &format!("--secure-port={secure}"),
        "--node-monitor-grace-period=10m",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ])
}

fn scheduler_arguments(secure: u16) -> Vec<String> {
    strings(&[
        "kube-scheduler",
        "--config=scheduler.yaml",
        "--authentication-kubeconfig=scheduler.kubeconfig",
        "--authorization-kubeconfig=scheduler.kubeconfig",
        "--bind-address=127.0.0.1",
        &format!("--secure-port={secure}"),
    ])
}

fn scheduler_configuration(folder: &Path) -> String {
    let kubeconfig = folder.join("scheduler.kubeconfig");
    format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nleaderElection: {{leaderElect: false}}\n\
         clientConnection: {{kubeconfig: {}, qps: 500, burst: 1000}}\n",
        kubeconfig.display()
    )
}
