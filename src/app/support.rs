//! The support bundle: what a cluster's objects, logs and nodes tell of migrations, in one file.
//!
//! What cannot be had is named in it and stops nothing else: whoever asks for a bundle has a cluster in which something does not work.

mod bundle;
pub mod node;

use std::{collections::BTreeSet, io::Write, time::Duration};

use anyhow::bail;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::{Client, Resource};
use serde_json::{Value, json};

use crate::{
    adapters::support::{ContainerLog, Sources},
    api::{Attestation, Migration, MigrationGrant, MigrationPolicy, NodeProfile},
    domain::support::{self, Subjects},
    ports::PortResult,
};
use bundle::Bundle;

/// So many logs are read at the same time.
const AT_ONCE: usize = 8;

/// Which migrations a bundle is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of the cluster.
    All,
    /// Those of a namespace.
    Namespace(String),
    /// One, with those that it has made for several pods.
    Migration {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Scope {
    fn namespace(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::Namespace(namespace) | Self::Migration { namespace, .. } => Some(namespace),
        }
    }

    /// Whether one of the cluster's nodes or UIDs belongs to it.
    fn takes(&self, among: &BTreeSet<String>, name: &str) -> bool {
        *self == Self::All || among.contains(name)
    }
}

/// What goes into a bundle.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which migrations.
    pub scope: Scope,
    /// How far back logs go.
    pub since: Duration,
    /// Drover's own namespace.
    pub system_namespace: String,
    /// The folder in the bundle.
    pub folder: String,
    /// Now.
    pub now: Timestamp,
}

/// What is read of a node or a pod of Drover's.
enum Wanted {
    Log { path: String, of: ContainerLog },
    Kept { node: String, pod: String },
}

/// Writes a bundle, and returns what could not be had.
///
/// # Errors
/// Where the API server cannot be reached, nothing could be read, there is no such Migration, or the bundle cannot be written.
pub async fn collect(client: Client, settings: &Settings, out: impl Write) -> anyhow::Result<Vec<String>> {
    let sources = Sources::new(client, &settings.system_namespace);
    let mut collector = Collector { sources, settings, bundle: Bundle::new(out, &settings.folder, settings.now) };
    let version = collector.sources.version().await?;
    let about = json!({"drover": env!("CARGO_PKG_VERSION"), "kubernetes": version, "made": settings.now.to_string(),
        "scope": format!("{:?}", settings.scope), "since": format!("{} s", settings.since.as_secs())});
    collector.bundle.json("about.json", &about)?;
    let subjects = collector.objects().await?;
    let wanted = collector.own_pods(&subjects).await?;
    collector.logs(wanted, &subjects).await?;
    if collector.bundle.read == 0 {
        bail!("nothing could be read: {}", collector.bundle.problems.join("; "));
    }
    collector.bundle.finish()
}

struct Collector<'a, W: Write> {
    sources: Sources,
    settings: &'a Settings,
    bundle: Bundle<W>,
}

impl<W: Write> Collector<'_, W> {
    /// Writes the objects down; returns what they are about.
    async fn objects(&mut self) -> anyhow::Result<Subjects> {
        let scope = &self.settings.scope;
        let listed = self.sources.list::<Migration>(scope.namespace()).await;
        let mut migrations = self.bundle.note(listed).unwrap_or_default();
        if let Scope::Migration { namespace, name } = scope {
            let one = migrations.iter().find(|migration| migration["metadata"]["name"] == **name);
            let uid = one.and_then(|one| one["metadata"]["uid"].as_str()).map(str::to_owned);
            if uid.is_none() && self.bundle.problems.is_empty() {
                bail!("no Migration {name} in namespace {namespace}; without --migration the bundle has those of the namespace");
            }
            migrations.retain(|migration| support::is_of(migration, name, uid.as_deref()));
        }
        let mut subjects = Subjects::of(&migrations);
        subjects.namespaces.extend(scope.namespace().map(str::to_owned));
        self.bundle.list("migrations", &migrations.into_iter().map(support::own).collect::<Vec<_>>())?;

        let mut attestations = self.all::<Attestation>(&subjects).await;
        attestations.retain(|attestation| *scope == Scope::All || subjects.have_attestation(attestation));
        self.bundle.list("attestations", &attestations.into_iter().map(support::own).collect::<Vec<_>>())?;
        let grants = self.all::<MigrationGrant>(&subjects).await;
        self.bundle.list("migrationgrants", &grants.into_iter().map(support::own).collect::<Vec<_>>())?;
        let policies = self.sources.list::<MigrationPolicy>(None).await;
        let policies = self.bundle.note(policies).unwrap_or_default();
        self.bundle.list("migrationpolicies", &policies.into_iter().map(support::own).collect::<Vec<_>>())?;
        let profiles = self.sources.list::<NodeProfile>(None).await;
        let profiles = self.bundle.note(profiles).unwrap_or_default();
        self.bundle.list("nodeprofiles", &profiles.into_iter().map(support::own).collect::<Vec<_>>())?;
        let nodes = self.sources.list::<Node>(None).await;
        let nodes = self.bundle.note(nodes).unwrap_or_default();
        self.bundle.list("nodes", &nodes.iter().map(support::node).collect::<Vec<_>>())?;

        let mut pods = self.all::<Pod>(&subjects).await;
        pods.retain(|pod| subjects.have_pod(pod));
        subjects.uids.extend(pods.iter().filter_map(|pod| Some(pod["metadata"]["uid"].as_str()?.to_owned())));
        self.bundle.list("pods", &pods.iter().map(support::pod).collect::<Vec<_>>())?;
        let mut events = self.all::<Event>(&subjects).await;
        events.retain(|event| subjects.have_event(event) || (*scope == Scope::All && support::is_about_ours(event)));
        self.bundle.list("events", &events.into_iter().map(support::own).collect::<Vec<_>>())?;
        Ok(subjects)
    }

    /// All of a kind where the bundle's migrations are.
    async fn all<K: Resource<DynamicType = ()>>(&mut self, subjects: &Subjects) -> Vec<Value> {
        let namespaces = match self.settings.scope {
            Scope::All => vec![None],
            _ => subjects.namespaces.iter().map(|namespace| Some(namespace.as_str())).collect(),
        };
        let mut found = vec![];
        for namespace in namespaces {
            let listed = self.sources.list::<K>(namespace).await;
            found.extend(self.bundle.note(listed).unwrap_or_default());
        }
        found
    }

    /// Writes Drover's own pods down; returns what is to be read of them and of their nodes.
    async fn own_pods(&mut self, subjects: &Subjects) -> anyhow::Result<Vec<Wanted>> {
        let listed = self.sources.list::<Pod>(Some(&self.settings.system_namespace)).await;
        let listed = self.bundle.note(listed);
        let was_listed = listed.is_some();
        let mut pods = listed.unwrap_or_default();
        pods.retain(|pod| pod["metadata"]["labels"]["app.kubernetes.io/name"] == "drover");
        if pods.is_empty() && was_listed {
            self.bundle
                .problems
                .push(format!("there are no pods of Drover in namespace {}: is --system-namespace right?", self.settings.system_namespace));
        }
        self.bundle.list("drover-pods", &pods.iter().map(support::pod).collect::<Vec<_>>())?;
        let mut wanted = vec![];
        for pod in &pods {
            let (name, node) = (text(pod, "/metadata/name"), text(pod, "/spec/nodeName"));
            let is_agent = text(pod, "/metadata/labels/app.kubernetes.io~1component") == "agent";
            if is_agent && !self.settings.scope.takes(&subjects.nodes, &node) {
                continue;
            }
            wanted.extend(logs_of(pod, &name));
            if is_agent {
                wanted.push(Wanted::Kept { node, pod: name });
            }
        }
        Ok(wanted)
    }

    async fn logs(&mut self, wanted: Vec<Wanted>, subjects: &Subjects) -> anyhow::Result<()> {
        let (sources, since) = (self.sources.clone(), self.settings.since);
        let mut answers = stream::iter(wanted).map(|wanted| fetch(&sources, wanted, since)).buffer_unordered(AT_ONCE);
        while let Some((wanted, answer)) = answers.next().await {
            let Some(bytes) = self.bundle.note(answer) else { continue };
            match wanted {
                Wanted::Log { path, .. } => self.bundle.add(&path, &bytes)?,
                Wanted::Kept { node, pod } => match node::unpacked(&bytes) {
                    Ok(logs) => {
                        for (uid, name, log) in logs.into_iter().filter(|(uid, ..)| self.settings.scope.takes(&subjects.uids, uid)) {
                            self.bundle.add(&format!("node-logs/{node}/{uid}/{name}"), &log)?;
                        }
                    }
                    Err(error) => self.bundle.problems.push(format!("what pod {pod} has sent of node {node} cannot be read: {error}")),
                },
            }
        }
        Ok(())
    }
}

async fn fetch(sources: &Sources, wanted: Wanted, since: Duration) -> (Wanted, PortResult<Vec<u8>>) {
    let answer = match &wanted {
        Wanted::Log { of, .. } => sources.log(of, since).await,
        Wanted::Kept { pod, .. } => sources.kept_logs(pod, since).await,
    };
    (wanted, answer)
}

/// The logs of a pod's containers, and of those before their last restarts.
fn logs_of(pod: &Value, name: &str) -> Vec<Wanted> {
    let mut found = vec![];
    for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
        let container = text(status, "/name");
        for is_previous in [false, true] {
            if is_previous && status["restartCount"].as_u64().unwrap_or_default() == 0 {
                continue;
            }
            let path = format!("logs/{name}/{container}{}.log", if is_previous { ".previous" } else { "" });
            found.push(Wanted::Log { path, of: ContainerLog { pod: name.to_owned(), container: container.clone(), is_previous } });
        }
    }
    found
}

fn text(object: &Value, path: &str) -> String {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
