//! A node's agent: both sides of migrations, the registry's two doors, the node's profile.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum_server::Handle;
use futures::StreamExt as _;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, reflector, reflector::Store, watcher},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    ApiClients, GRACE, bind,
    bus::{KafkaSettings, announcer},
    serve_plain,
};
use crate::{
    adapters::{
        agent_api::KubeAgentApi,
        agent_certificate::AgentCertificate,
        callers::NodeCallers,
        containerd::Containerd,
        dump::NodeDump,
        inside::NodeInside,
        kubelet::{Credential, KubeletSettings, LocalKubelet, ServerTrust},
        layout::NodeLayout,
        node_probe::{HostProbe, ProbeSettings},
        registry::{AgentPusher, LocalDistribution},
    },
    agent::{
        controller::{self, Sides, may_push},
        destination::{DestinationAgent, DestinationParts},
        journal::Journals,
        notified::{self, Announcing, Verified},
        profile::{self, Parts, Pushes},
        registry_proxy::{Doorkeeper, Grant, Upstream, serve_pulls, serve_pushes},
        source::{SourceAgent, SourceParts},
    },
    api::Migration,
    domain::{evacuation, keys, notification::Pushed},
    http::{
        admin, notifications,
        tls::{Clients, FollowingTls},
    },
    markers::{Markers, evidence},
    metrics::Metrics,
    ports::{AgentApi, Images, Kubelet, Runtime, SystemClock, bus::Announcer, front::Identity, inside::Inside, layout::Layout},
    readiness::Readiness,
    runc::{RECORDS, pages},
    shutdown::{Tasks, on_signal},
    watching,
};

/// The service account's token, which kubelets accept by TokenReview.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The node's root as its first process sees it.
const NODE: &str = "/proc/1/root";

/// Runs a command in the node's own mount namespace: the agent sees the node's processes (hostPID), and its image brings nsenter.
const HOST_COMMAND: [&str; 5] = ["nsenter", "-t", "1", "-m", "--"];

/// How the agent reaches its node's kubelet.
#[derive(Debug, Clone)]
pub struct KubeletAccess {
    /// Its port.
    pub port: u16,
    /// Where it puts checkpoints.
    pub checkpoints: PathBuf,
    /// CA of its certificate; none: do not verify it.
    pub ca: Option<PathBuf>,
    /// Folder with a client certificate; none: the service account's token.
    pub client_certs: Option<PathBuf>,
}

/// What an agent is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this node.
    pub node: String,
    /// Address of this node.
    pub host_ip: IpAddr,
    /// Drover's own namespace.
    pub namespace: String,
    /// Port at which other agents push.
    pub push_port: u16,
    /// Port of readiness and metrics.
    pub admin_port: u16,
    /// It reports what the node's pods use.
    pub reports_usage: bool,
    /// Containers may run while their memory still comes from this node's memory.
    pub restores_lazily: bool,
    /// Whether memory is sent before the freeze.
    pub pre_copies: bool,
    /// Port at which the node's registry tells of pushes.
    pub notification_port: u16,
    /// File with the token that it shows.
    pub notification_token_file: PathBuf,
    /// The readiness bus; none: the API server.
    pub kafka: Option<KafkaSettings>,
    /// Unix socket of the node's registry.
    pub registry_socket: PathBuf,
    /// Its data.
    pub registry_data: PathBuf,
    /// Bytes that one migration may store in it.
    pub max_bytes_per_migration: u64,
    /// Journals and markers.
    pub state: PathBuf,
    /// Socket of containerd.
    pub containerd_socket: PathBuf,
    /// The node's root file system.
    pub host_root: PathBuf,
    /// The kubelet.
    pub kubelet: KubeletAccess,
}

/// The parts of this node that both sides use.
struct Node {
    containerd: Containerd,
    runtime: Arc<dyn Runtime>,
    images: Arc<dyn Images>,
    kubelet: Arc<dyn Kubelet>,
    api: Arc<dyn AgentApi>,
    inside: Arc<dyn Inside>,
    layout: Arc<dyn Layout>,
    registry: Arc<LocalDistribution>,
}

/// Runs the agent until a signal ends it.
///
/// # Errors
/// Where a part fails that must not.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let stop = on_signal()?;
    let ApiClients { watching: client, calling } = ApiClients::new().await?;
    let (readiness, metrics) = (Readiness::default(), Metrics::default());
    let doors = readiness.register("registry doors");
    let mut tasks = Tasks::new(stop);
    let admin_address = SocketAddr::new(settings.host_ip, settings.admin_port);
    tasks.spawn("admin", serve_plain(admin_address, admin::router(readiness, metrics.clone()), tasks.token()));

    let containerd = Containerd::at(&settings.containerd_socket).with_cgroups(settings.host_root.join("sys/fs/cgroup"));
    let containerd = Arc::new(containerd.with_records(on_node(RECORDS)).with_pages(on_node(pages::ROOT)));
    let node = Node {
        containerd: Containerd::clone(&containerd),
        runtime: containerd.clone(),
        images: containerd.clone(),
        kubelet: Arc::new(LocalKubelet::new(kubelet_settings(&settings))?),
        api: Arc::new(KubeAgentApi::new(calling.clone(), &settings.namespace, &settings.node)),
        inside: Arc::new(NodeInside::new(Containerd::clone(&containerd), &settings.host_root, &pods_folder(&settings.kubelet.checkpoints))),
        layout: Arc::new(NodeLayout::new(Path::new(NODE), &settings.state.join("restore")).with_lazy(settings.restores_lazily)),
        registry: Arc::new(LocalDistribution::new(&settings.registry_socket, &settings.registry_data, containerd.clone())?),
    };
    let bus = announcer(settings.kafka.clone(), calling, &settings.node, &metrics)?;
    let pushed = mpsc::channel(notified::ROOM);
    let (identified, identity) = watch::channel(Arc::new(Identity::absent()));
    let sides = Arc::new(Sides {
        node: settings.node.clone(),
        source: SourceAgent::new(source_parts(
            &settings,
            &node,
            AgentPusher::new(identity.clone(), metrics.clone()).with_pages(on_node(pages::ROOT)),
        )),
        destination: DestinationAgent::new(destination_parts(
            &settings,
            &node,
            AgentPusher::new(identity.clone(), metrics.clone()),
            Verified::new(pushed.0.clone()),
        )),
    });
    tasks.spawn("budgets", supervised(controller::watch_over(Arc::clone(&sides), tasks.token())));
    tasks.spawn("migrations", supervised(controller::run(client.clone(), sides, tasks.token())));

    let migrations = follow_migrations(client.clone(), &mut tasks);
    tasks.spawn("node profile", keep_profile(&settings, &containerd, &node, Arc::clone(&bus), migrations.clone(), tasks.token()));
    // Only now, since the manager may be away: pods that are frozen already do not wait for a certificate.
    let certificate = AgentCertificate::start(client, settings.node.clone(), metrics.clone()).await?;
    identified.send_replace(certificate.identity().borrow().clone());
    tasks.spawn("agent identity", pass_on(certificate.identity(), identified, tasks.token()));
    tasks.spawn("agent certificate", certificate.run(tasks.token()));
    announce(&settings, &node, Told { bus, pushed, migrations: migrations.clone(), metrics: metrics.clone() }, &mut tasks)?;
    let tls = FollowingTls::new(identity, Clients::Verified)?;
    open_doors(&settings, &tls, &node, migrations, metrics, &mut tasks)?;
    tasks.spawn("push door certificate", tls.run(tasks.token()));
    doors.set(true);
    tasks.run(GRACE).await
}

fn keep_profile(
    settings: &Settings,
    containerd: &Containerd,
    node: &Node,
    bus: Arc<dyn Announcer>,
    migrations: Store<Migration>,
    token: CancellationToken,
) -> impl Future<Output = anyhow::Result<()>> + use<> {
    let probe = HostProbe::new(
        containerd.clone(),
        ProbeSettings { host_root: settings.host_root.clone(), host_command: HOST_COMMAND.map(str::to_owned).into(), data: settings.state.clone() },
    );
    let (api, pushes) = (Arc::clone(&node.api), Pushes { address: push_address(settings), most_bytes: settings.max_bytes_per_migration });
    let meter = settings.reports_usage.then(|| Arc::clone(&node.kubelet));
    let name = settings.node.clone();
    async move {
        let staying = || evacuation::staying(&name, migrations.state().iter().map(|migration| &**migration));
        let parts = Parts { probe: &probe, api: &*api, bus: &*bus, clock: &SystemClock, meter: meter.as_deref(), pushes: &pushes, staying: &staying };
        profile::keep(parts, token).await;
        Ok(())
    }
}

/// A path of the node's, as its first process sees it: what is mounted there is not the agent's own.
fn on_node(path: &str) -> PathBuf {
    Path::new(NODE).join(path.trim_start_matches('/'))
}

/// Where the kubelet keeps pods' folders: beside its checkpoints, below its root (`getPodsDir`, `getCheckpointsDir` in `pkg/kubelet/kubelet_getters.go`).
fn pods_folder(checkpoints: &Path) -> PathBuf {
    checkpoints.with_file_name("pods")
}

/// `host:port` of this node's push door.
fn push_address(settings: &Settings) -> String {
    SocketAddr::new(settings.host_ip, settings.push_port).to_string()
}

/// Hands each renewed certificate to those who asked for one before there was any.
async fn pass_on(
    mut renewed: watch::Receiver<Arc<Identity>>,
    identified: watch::Sender<Arc<Identity>>,
    token: CancellationToken,
) -> anyhow::Result<()> {
    while let Some(Ok(())) = token.run_until_cancelled(renewed.changed()).await {
        identified.send_replace(renewed.borrow_and_update().clone());
    }
    token.cancelled().await;
    Ok(())
}

async fn supervised(work: impl Future<Output = ()>) -> anyhow::Result<()> {
    work.await;
    Ok(())
}

fn kubelet_settings(settings: &Settings) -> KubeletSettings {
    let access = &settings.kubelet;
    KubeletSettings {
        url: format!("https://{}", SocketAddr::new(settings.host_ip, access.port)),
        credential: access.client_certs.clone().map_or_else(|| Credential::TokenFile(TOKEN.into()), Credential::ClientCertificate),
        trust: access.ca.clone().map_or(ServerTrust::Unverified, ServerTrust::CaFile),
        checkpoints: access.checkpoints.clone(),
    }
}

fn source_parts(settings: &Settings, node: &Node, pusher: AgentPusher) -> SourceParts {
    SourceParts {
        node: settings.node.clone(),
        runtime: Arc::clone(&node.runtime),
        kubelet: Arc::clone(&node.kubelet),
        dump: Arc::new(NodeDump::new(node.containerd.clone(), Path::new(NODE), &settings.state.join("dump"))),
        inside: Arc::clone(&node.inside),
        pusher: Arc::new(pusher),
        api: Arc::clone(&node.api),
        clock: Arc::new(SystemClock),
        markers: Markers::new(settings.state.join("gate")),
        journals: Journals::new(settings.state.join("journals")),
        pre_copies: settings.pre_copies,
        checkpoint_folder: settings.kubelet.checkpoints.clone(),
    }
}

fn destination_parts(settings: &Settings, node: &Node, pusher: AgentPusher, verified: Verified) -> DestinationParts {
    DestinationParts {
        node: settings.node.clone(),
        runtime: Arc::clone(&node.runtime),
        images: Arc::clone(&node.images),
        kubelet: Arc::clone(&node.kubelet),
        inside: Arc::clone(&node.inside),
        layout: Arc::clone(&node.layout),
        registry: node.registry.clone(),
        pusher: Arc::new(pusher),
        journals: Journals::new(settings.state.join("journals")),
        verified,
        api: Arc::clone(&node.api),
        clock: Arc::new(SystemClock),
        markers: Markers::new(settings.state.join("gate")),
        boot: evidence::this_boot(),
        logs: settings.state.join("logs"),
        host_root: settings.host_root.clone(),
        push_address: push_address(settings),
    }
}

/// The migrations as the push door and the node's profile know them.
fn follow_migrations(client: Client, tasks: &mut Tasks) -> Store<Migration> {
    let (store, writer) = reflector::store();
    let stream = reflector::reflector(writer, watcher(Api::<Migration>::all(client), watcher::Config::default())).backoff(watching::backoff());
    let token = tasks.token();
    tasks.spawn("migration store", async move {
        tokio::pin!(stream);
        while let Some(Some(event)) = token.run_until_cancelled(stream.next()).await {
            if let Err(error) = event {
                tracing::warn!(%error, "the watch of the migrations is tried again");
            }
        }
        Ok(())
    });
    store
}

/// What is known of pushes, and who is to be told.
struct Told {
    bus: Arc<dyn Announcer>,
    pushed: (mpsc::Sender<Pushed>, mpsc::Receiver<Pushed>),
    migrations: Store<Migration>,
    metrics: Metrics,
}

/// Takes the registry's notifications, and tells the readiness bus.
fn announce(settings: &Settings, node: &Node, told: Told, tasks: &mut Tasks) -> anyhow::Result<()> {
    let path = &settings.notification_token_file;
    let token = std::fs::read_to_string(path)
        .with_context(|| format!("failed to read {}: the init container `drover registry-config` writes it", path.display()))?;
    let (sender, receiver) = told.pushed;
    let router = notifications::router(token.trim(), sender, told.metrics.clone());
    tasks.spawn("notifications", serve_plain((Ipv4Addr::LOCALHOST, settings.notification_port).into(), router, tasks.token()));
    let parts = Announcing {
        node: settings.node.clone(),
        registry: node.registry.clone(),
        migrations: told.migrations,
        bus: told.bus,
        clock: Arc::new(SystemClock),
        metrics: told.metrics,
    };
    tasks.spawn("announcements", supervised(notified::announce(Arc::new(parts), receiver, tasks.token())));
    Ok(())
}

fn open_doors(
    settings: &Settings,
    tls: &FollowingTls,
    own: &Node,
    migrations: Store<Migration>,
    metrics: Metrics,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let upstream = Upstream::at(&settings.registry_socket).context("failed to make a client of the node's registry")?;
    let pull_address: SocketAddr = keys::PULL_ADDRESS.parse()?;
    let pulls = bind((Ipv4Addr::LOCALHOST, pull_address.port()).into())?;
    let keeper = Doorkeeper { callers: Arc::new(NodeCallers::default()), metrics };
    let handle = Handle::new();
    tasks.spawn("pull door", until_told(serve_pulls(pulls, upstream.clone(), keeper, handle.clone())?, handle, tasks.token()));
    let node = settings.node.clone();
    let grant = Grant {
        may_push: Arc::new(move |repository, peer| may_push(&migrations, &node, repository, peer)),
        most_bytes: settings.max_bytes_per_migration,
        layout: Arc::clone(&own.layout),
    };
    let pushes = bind(SocketAddr::new(settings.host_ip, settings.push_port))?;
    let handle = Handle::new();
    tasks.spawn("push door", until_told(serve_pushes(pushes, upstream, tls.config(), grant, handle.clone())?, handle, tasks.token()));
    Ok(())
}

/// Serves until the token is cancelled, then lets requests in flight end.
async fn until_told(server: impl Future<Output = std::io::Result<()>>, handle: Handle<SocketAddr>, token: CancellationToken) -> anyhow::Result<()> {
    let stopper = async {
        token.cancelled().await;
        handle.graceful_shutdown(Some(GRACE / 2));
        // The server ends first; this only bounds the wait.
        tokio::time::sleep(Duration::MAX).await;
    };
    tokio::select! { done = server => Ok(done?), () = stopper => Ok(()) }
}
