//! What the tests share: a namespace for each, the lab, pods that count, waiting, and what is printed on failure.

pub mod agents;
pub mod counter;
pub mod explain;
pub mod kafka;
pub mod lab;
pub mod leaving;
pub mod leftovers;
pub mod migrations;
pub mod moving;
pub mod outstanding;
pub mod pods;
pub mod webhook;

use std::{
    io::Write as _,
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace as KubeNamespace, Pod, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Config, Resource as _,
    api::{DeleteParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::await_condition,
};

use drover::api::{Attestation, Migration};

/// The nodes of the lab.
pub const NODES: [&str; 2] = ["n1", "n2"];
/// Drover's own namespace.
pub const SYSTEM: &str = "drover-system";
/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_mins(10);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A test's own namespace, and the way to the API server.
#[derive(Clone)]
pub struct Namespace {
    pub client: Client,
    pub name: String,
    /// When the test began.
    pub since: Timestamp,
}

/// Runs a test in a namespace of its own, which is deleted afterwards; what is needed to understand a failure is printed before that.
pub fn with_namespace<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Namespace) -> F) {
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let begun = Instant::now();
    runtime.block_on(async {
        let namespace = Namespace::create(name, None).await;
        let ended = AssertUnwindSafe(tokio::time::timeout(LIMIT, test(namespace.clone()))).catch_unwind().await;
        let failure: Option<Box<dyn std::any::Any + Send>> = match ended {
            Ok(Ok(())) => None,
            Ok(Err(_)) => Some(Box::new(format!("the test did not end within {} s", LIMIT.as_secs()))),
            Err(panic) => Some(panic),
        };
        if failure.is_some() {
            explain::print(&namespace);
        }
        namespace.delete().await;
        // Past the test runner's capture: where the time goes is of interest when all is well.
        let _ = write!(std::io::stderr(), "{:.0} s ", begun.elapsed().as_secs_f64());
        if let Some(failure) = failure {
            std::panic::resume_unwind(failure);
        }
    });
}

/// The way to the lab's API server, as its administrator.
pub async fn config() -> Config {
    let kubeconfig = Kubeconfig::read_from(lab::lab(&["kubeconfig"]).trim()).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()
}

impl Namespace {
    /// Another namespace, which goes with this one.
    pub async fn beside(&self, name: &str) -> Self {
        let own = Api::<KubeNamespace>::all(self.client.clone()).get(&self.name).await.unwrap();
        Self::create(name, own.controller_owner_ref(&())).await
    }

    async fn create(name: &str, owner: Option<OwnerReference>) -> Self {
        let client = Client::try_from(config().await).unwrap();
        let millis = Timestamp::now().as_millisecond() % 100_000_000;
        let namespace = Self { client: client.clone(), name: format!("e2e-{name}-{millis}"), since: Timestamp::now() };
        let owner_references = owner.map(|owner| vec![owner]);
        let metadata = ObjectMeta { name: Some(namespace.name.clone()), owner_references, ..Default::default() };
        let object = KubeNamespace { metadata, ..Default::default() };
        Api::<KubeNamespace>::all(client).create(&PostParams::default(), &object).await.unwrap();
        // Pods are refused before it is there.
        let accounts: Api<ServiceAccount> = Api::namespaced(namespace.client.clone(), &namespace.name);
        let made = await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some());
        tokio::time::timeout(Duration::from_secs(20), made).await.expect("the namespace gets its default service account").unwrap();
        namespace
    }

    /// Deletes what is in it without waiting: the next test has its own, and asks only for what belongs to that.
    async fn delete(&self) {
        let now = DeleteParams::default().grace_period(0);
        let _ = self.pods().delete_collection(&now, &kube::api::ListParams::default()).await;
        let _ = Api::<KubeNamespace>::all(self.client.clone()).delete(&self.name, &DeleteParams::default()).await;
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn migrations(&self) -> Api<Migration> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn attestations(&self) -> Api<Attestation> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// kubectl in this namespace: what it printed on both streams, and whether it succeeded.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        lab::try_lab(&[&["kubectl", "--namespace", &self.name], arguments].concat())
    }
}

/// Waits for something that nothing announces; the closure says what is missing yet.
#[track_caller]
pub fn eventually(limit: Duration, mut missing: impl FnMut() -> Option<String>) {
    let end = Instant::now() + limit;
    while let Some(what) = missing() {
        assert!(Instant::now() < end, "not within {} s: {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}
