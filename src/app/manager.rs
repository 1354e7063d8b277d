//! The manager: webhooks on every replica, controllers on the leader.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    ApiClients, GRACE, bind,
    bus::{self, KafkaSettings},
    serve_plain,
};
use crate::{
    adapters::{
        ca::{CaStore, SelfManaged, service_names},
        certificate_dir::CertificateDir,
        cluster::{KubeCluster, NodeWatch},
        lease::LeaderElection,
        webhook_configuration::WebhookConfigurations,
        world::KubeWorld,
    },
    api::migration::Lane,
    controllers::{
        annotation::AnnotationController, certificates::CertificateController, evacuation::EvacuationController, migration, rebalancer::Rebalancer,
        registry_events,
    },
    domain::{
        election::Timing,
        rebalance::{self, Mode},
    },
    http::{
        admin,
        admission::{self, Admission},
        extender::{self, Extender},
        tls::{self, Clients, FollowingTls},
    },
    metrics::Metrics,
    ports::{
        SystemClock,
        bus::Inbox,
        front::{AgentSigner, Identity},
    },
    readiness::Readiness,
    shutdown::{Tasks, on_signal},
    watching,
};

/// Name of the Lease that the leader holds.
const LEASE: &str = "drover-manager";

/// How long a leader that the readiness bus has shut out waits: twice as long as a lease that nobody renews.
const SHUT_OUT: Duration = Duration::from_secs(30);

/// What the manager is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Drover's own namespace.
    pub namespace: String,
    /// Name of this pod.
    pub pod_name: String,
    /// Service through which the API server calls the webhooks.
    pub webhook_service: String,
    /// Port of the webhooks.
    pub webhook_port: u16,
    /// Port of the scheduler extender; none: there is no extender. A port of its own, since whoever runs kube-scheduler must reach it from outside of the
    /// cluster's network, and needs nothing else.
    pub extender_port: Option<u16>,
    /// Port of readiness and metrics.
    pub admin_port: u16,
    /// Name of the webhook configurations.
    pub webhook_configuration: String,
    /// Service account of the agents.
    pub agent_service_account: String,
    /// Service account of the manager.
    pub manager_service_account: String,
    /// Folder with the webhooks' certificate, where somebody else makes it.
    pub webhook_cert_dir: Option<PathBuf>,
    /// The readiness bus; none: the API server.
    pub kafka: Option<KafkaSettings>,
    /// Whether evictions of the API `lifecycle.k8s.io` are answered.
    pub eviction_requests: bool,
    /// Keys of the taints that empty a node as a cordon does.
    pub evacuation_taints: Vec<String>,
    /// The lane of migrations that leave it open.
    pub lane: Lane,
    /// How many pods are on their way to a node at the same time; 0: no limit.
    pub arrivals_per_node: u32,
    /// What is done about nodes that have too much to do, and when they have; none: nothing.
    pub rebalancer: Option<(Mode, rebalance::Settings)>,
}

impl Settings {
    fn username(&self, account: &str) -> String {
        format!("system:serviceaccount:{}:{account}", self.namespace)
    }
}

/// Runs the manager until a signal ends it.
///
/// # Errors
/// Where a part fails that must not.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let stop = on_signal()?;
    let clients = ApiClients::new().await?;
    let client = clients.watching.clone();
    let (readiness, metrics) = (Readiness::default(), Metrics::default());
    let webhooks = readiness.register("webhooks");
    let mut tasks = Tasks::new(stop.clone());

    let authority = SelfManaged::start(
        CaStore::new(client.clone(), &settings.namespace),
        service_names(&settings.webhook_service, &settings.namespace),
        metrics.clone(),
    )
    .await?;
    let signer: Arc<dyn AgentSigner> = Arc::new(authority.signer());
    let identity = match settings.webhook_cert_dir.clone() {
        None => authority.identity(),
        Some(folder) => {
            let certificates = CertificateDir::start(folder, metrics.clone()).await?;
            let identity = certificates.identity();
            tasks.spawn("certificate folder", certificates.run(tasks.token()));
            identity
        }
    };
    tasks.spawn("certificate authority", authority.run(tasks.token()));
    serve_webhooks(&settings, &client, &metrics, identity.clone(), &mut tasks)?;
    if let Some(port) = settings.extender_port {
        serve_extender(port, &client, &metrics, identity.clone(), &mut tasks)?;
    }
    let bundles = WebhookConfigurations::new(client.clone(), settings.webhook_configuration.clone(), identity);
    tasks.spawn("webhook configurations", bundles.run(tasks.token()));
    tasks.spawn("admin", serve_plain((Ipv4Addr::UNSPECIFIED, settings.admin_port).into(), admin::router(readiness, metrics.clone()), tasks.token()));

    let timing = Timing { lease: Duration::from_secs(15), renew: Duration::from_secs(5), retry: Duration::from_secs(2) };
    let election = LeaderElection::new(client.clone(), &settings.namespace, LEASE.to_owned(), settings.pod_name.clone(), timing);
    let leading = election.leading();
    // The lease is given back only after the leader's work has ended.
    let released = CancellationToken::new();
    tasks.spawn("leader", lead(settings, clients, signer, metrics, leading, tasks.token(), released.clone()));
    tasks.spawn("election", election.run(released));
    webhooks.set(true);
    tasks.run(GRACE).await
}

fn serve_webhooks(
    settings: &Settings,
    client: &Client,
    metrics: &Metrics,
    identity: watch::Receiver<Arc<Identity>>,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let world = Arc::new(KubeWorld::new(client.clone()));
    let admission = Admission {
        evictions: world.clone(),
        world,
        clock: Arc::new(SystemClock),
        manager_username: settings.username(&settings.manager_service_account),
        metrics: metrics.clone(),
    };
    let tls = FollowingTls::new(identity, Clients::Anyone)?;
    let listener = bind((Ipv4Addr::UNSPECIFIED, settings.webhook_port).into())?;
    tasks.spawn("webhooks", tls::serve(listener, tls.config(), admission::router(admission), tasks.token(), GRACE));
    tasks.spawn("webhook certificate", tls.run(tasks.token()));
    Ok(())
}

/// By every replica, with the webhooks' certificate: kube-scheduler is told its name.
fn serve_extender(port: u16, client: &Client, metrics: &Metrics, identity: watch::Receiver<Arc<Identity>>, tasks: &mut Tasks) -> anyhow::Result<()> {
    let extender = Extender { source: Arc::new(KubeWorld::new(client.clone())), clock: Arc::new(SystemClock), metrics: metrics.clone() };
    let tls = FollowingTls::new(identity, Clients::Anyone)?;
    let listener = bind((Ipv4Addr::UNSPECIFIED, port).into())?;
    tasks.spawn("extender", tls::serve(listener, tls.config(), extender::router(extender), tasks.token(), GRACE));
    tasks.spawn("extender certificate", tls.run(tasks.token()));
    Ok(())
}

/// Runs the controllers whenever this process leads.
async fn lead(
    settings: Settings,
    clients: ApiClients,
    signer: Arc<dyn AgentSigner>,
    metrics: Metrics,
    mut leading: watch::Receiver<bool>,
    token: CancellationToken,
    released: CancellationToken,
) -> anyhow::Result<()> {
    let _release_at_the_end = released.drop_guard();
    loop {
        let elected = token.run_until_cancelled(leading.wait_for(|leads| *leads)).await.is_some_and(|seen| seen.is_ok());
        if !elected {
            return Ok(());
        }
        info!("leading");
        let term = token.child_token();
        let mut controllers = Tasks::new(term.clone());
        move_pods(&settings, &clients, &metrics, &mut controllers)?;
        controllers.spawn("annotations", AnnotationController::new(clients.watching.clone(), settings.pod_name.clone()).run(term.clone()));
        let evacuations = EvacuationController::new(
            clients.calling.clone(),
            settings.namespace.clone(),
            settings.pod_name.clone(),
            settings.eviction_requests,
            settings.evacuation_taints.clone(),
        );
        controllers.spawn("evacuations", evacuations.run(term.clone()));
        if let Some((mode, thresholds)) = settings.rebalancer {
            let (client, own) = (clients.calling.clone(), settings.namespace.clone());
            let rebalancer = Rebalancer::new(client, own, settings.pod_name.clone(), mode, thresholds, metrics.clone());
            controllers.spawn("rebalancer", rebalancer.run(term.clone()));
        }
        let agents = settings.username(&settings.agent_service_account);
        controllers.spawn("certificates", CertificateController::new(clients.watching.clone(), Arc::clone(&signer), agents).run(term.clone()));
        let mut watched = leading.clone();
        let (running, lost) = (term.clone(), term);
        let end_of_term = tokio::spawn(async move {
            if running.run_until_cancelled(watched.wait_for(|leads| !*leads)).await.is_some() {
                info!("not leading any more");
                lost.cancel();
            }
        });
        controllers.run(GRACE).await?;
        end_of_term.await?;
    }
}

/// The controller of migrations, and what the readiness bus tells it.
fn move_pods(settings: &Settings, clients: &ApiClients, metrics: &Metrics, controllers: &mut Tasks) -> anyhow::Result<()> {
    let inbox = Arc::new(Inbox::default());
    let (nodes, following) = NodeWatch::new(&clients.watching, watching::backoff, controllers.token());
    controllers.spawn("nodes", async move {
        following.await;
        Ok(())
    });
    let cluster = KubeCluster::new(clients.calling.clone(), &settings.namespace, &settings.pod_name, Arc::clone(&inbox));
    let cluster = Arc::new(cluster.with_arrivals_per_node(settings.arrivals_per_node).with_lane(settings.lane).with_nodes(nodes));
    let context = migration::Context {
        cluster: cluster.clone(),
        clock: Arc::new(SystemClock),
        metrics: metrics.clone(),
        inbox: Arc::clone(&inbox),
        audit: bus::audit(settings.kafka.clone(), metrics)?,
        told: Mutex::default(),
    };
    let (looks, asked) = mpsc::channel(registry_events::ROOM);
    let moving = migration::run(clients.watching.clone(), context, asked, controllers.token());
    controllers.spawn("migrations", async move {
        moving.await;
        Ok(())
    });
    let (kafka, client, metrics, stop) = (settings.kafka.clone(), clients.watching.clone(), metrics.clone(), controllers.token());
    controllers.spawn("registry events", async move {
        loop {
            let bus = bus::subscription(kafka.clone(), client.clone(), &metrics)?;
            let (migrations, inbox, looks) = (cluster.clone(), Arc::clone(&inbox), looks.clone());
            let parts = registry_events::Parts { bus, migrations, inbox, looks, metrics: metrics.clone() };
            let Err(error) = registry_events::run(parts, stop.clone()).await else { return Ok(()) };
            // Its certificates were renewed; or another one has taken the subscription over. Whoever leads no more hears of it before the pause is over, and is
            // stopped; the leader needs no hints, and takes it back.
            tracing::warn!(%error, "the readiness bus is subscribed to again in half a minute");
            if stop.run_until_cancelled(tokio::time::sleep(SHUT_OUT)).await.is_none() {
                return Ok(());
            }
        }
    });
    Ok(())
}
