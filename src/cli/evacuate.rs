//! `drover evacuate`: cordons a node and moves its pods away, by hand and without a policy.

use std::{cmp::Reverse, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use jiff::{SignedDuration, Timestamp, Unit};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};

use super::ask_cluster;
use crate::{
    api::{Migration, Outcome, policy::Trigger},
    domain::{
        evacuation::{
            can_leave,
            deadline::{bound, late_of},
            evacuation_of, priority,
        },
        extender::requested_memory,
        keys,
    },
};

/// How often the Migrations are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Whose pods stay where nothing else is asked for: the control plane's and Drover's.
const OWN: [&str; 2] = ["kube-system", "drover-system"];

/// What leaves.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the node
    node: String,
    /// Only pods of this namespace; without it all but those of kube-system and drover-system
    #[arg(long, short)]
    namespace: Option<String>,
    /// Only pods with these labels, as in kubectl: app=db,tier!=web
    #[arg(long, short = 'l')]
    selector: Option<String>,
    /// How many pods leave at the same time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=50))]
    parallel: u32,
    /// Leave the node schedulable
    #[arg(long)]
    no_cordon: bool,
    /// When the node goes, from now on (90s, 10m, 1h): it is written on the node, and what will probably not have left by then is said at once
    #[arg(long)]
    deadline: Option<SignedDuration>,
    /// Seconds to wait for the end; what is under way then goes on
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
}

impl Args {
    /// Prints a line for each pod as it goes. The exit code is 0 where every pod was moved with its memory, 2 where one was not, 3 where that is open.
    ///
    /// # Errors
    /// Where the API server cannot be reached or refuses, or there is no such node.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        ask_cluster(async |client| {
            let nodes: Api<Node> = Api::all(client.clone());
            nodes.get(&self.node).await.with_context(|| format!("no node {}", self.node))?;
            let deadline = self.deadline.map(|deadline| seconds_of(Timestamp::now() + deadline));
            if let Some(deadline) = deadline {
                let goes = serde_json::json!({"metadata": {"annotations": {keys::EVACUATE_BY: deadline.to_string()}}});
                nodes.patch(&self.node, &PatchParams::default(), &Patch::Merge(goes)).await.context("failed to write the deadline on the node")?;
            }
            if !self.no_cordon {
                let cordon = serde_json::json!({"spec": {"unschedulable": true}});
                nodes.patch(&self.node, &PatchParams::default(), &Patch::Merge(cordon)).await.context("failed to cordon the node")?;
                println!("node {} is cordoned", self.node);
            }
            let pods = self.pods(&client).await?;
            let late = deadline.map(|deadline| late_of(&pods, self.parallel, deadline, Timestamp::now()));
            late.iter().flatten().for_each(|late| println!("{late}"));
            let ended = tokio::time::timeout(Duration::from_secs(self.timeout), self.empty(&client, &pods, deadline)).await;
            ended.unwrap_or_else(|_| {
                println!("not all within {} s; what is under way goes on: kubectl get migrations -A", self.timeout);
                Ok(ExitCode::from(3))
            })
        })
    }

    async fn pods(&self, client: &Client) -> anyhow::Result<Vec<Pod>> {
        let api: Api<Pod> = match &self.namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let mut wanted = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        wanted.label_selector.clone_from(&self.selector);
        let mut pods = api.list(&wanted).await.context("failed to list the node's pods")?.items;
        pods.sort_by_key(|pod| (Reverse(priority(pod)), requested_memory(pod)));
        pods.retain(|pod| can_leave(pod) && (self.namespace.is_some() || !OWN.contains(&pod.namespace().unwrap_or_default().as_str())));
        Ok(pods)
    }

    async fn empty(&self, client: &Client, pods: &[Pod], deadline: Option<Timestamp>) -> anyhow::Result<ExitCode> {
        let mut waiting = pods.iter();
        let mut under_way: Vec<Migration> = vec![];
        let mut moved = 0;
        loop {
            while under_way.len() < self.parallel as usize
                && let Some(pod) = waiting.next()
            {
                under_way.push(self.begin(client, pod, deadline).await?);
            }
            if under_way.is_empty() {
                return Ok(told(pods.len(), moved));
            }
            tokio::time::sleep(LOOK).await;
            for migration in std::mem::take(&mut under_way) {
                let now = look(client, &migration).await?;
                if now.phase() != migration.phase() || now.is_done() {
                    println!("{}", line(&now));
                }
                match now.status.as_ref().filter(|_| now.is_done()) {
                    Some(status) => moved += usize::from(status.outcome == Some(Outcome::Migrated)),
                    None => under_way.push(now),
                }
            }
        }
    }

    /// The pod's Migration, which is there already where a policy or an earlier call has made it.
    async fn begin(&self, client: &Client, pod: &Pod, deadline: Option<Timestamp>) -> anyhow::Result<Migration> {
        let mut migration = evacuation_of(pod, &self.node, Trigger::Drain).map_err(|problem| anyhow::anyhow!("pod {}: {problem}", pod.name_any()))?;
        bound(&mut migration, deadline, Timestamp::now());
        let api: Api<Migration> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        match api.create(&PostParams::default(), &migration).await {
            Ok(made) => Ok(made),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(api.get(&migration.name_any()).await?),
            // What the webhook has against the pod: it is no reason to leave the others.
            Err(kube::Error::Api(status)) if status.is_forbidden() || status.is_invalid() => Ok(refused(migration, &status.message)),
            Err(error) => Err(error).with_context(|| format!("failed to make the Migration of pod {}", pod.name_any())),
        }
    }
}

/// Kubernetes writes whole seconds.
fn seconds_of(time: Timestamp) -> Timestamp {
    time.round(Unit::Second).unwrap_or(time)
}

/// One that was never made counts as one that has failed.
fn refused(mut migration: Migration, message: &str) -> Migration {
    let status = crate::api::MigrationStatus {
        phase: crate::api::Phase::Done,
        outcome: Some(Outcome::Failed),
        message: message.to_owned(),
        ..crate::api::MigrationStatus::default()
    };
    migration.status = Some(status);
    migration
}

async fn look(client: &Client, migration: &Migration) -> anyhow::Result<Migration> {
    if migration.is_done() {
        return Ok(migration.clone());
    }
    let api: Api<Migration> = Api::namespaced(client.clone(), &migration.namespace().unwrap_or_default());
    match api.get_opt(&migration.name_any()).await.context("failed to look at a Migration")? {
        Some(found) => Ok(found),
        None => bail!("Migration {} was deleted", migration.name_any()),
    }
}

fn line(migration: &Migration) -> String {
    let status = migration.status.clone().unwrap_or_default();
    let pod = format!("{}/{}", migration.namespace().unwrap_or_default(), migration.spec.pod_name.clone().unwrap_or_default());
    let node = status.destination.as_ref().map_or("", |destination| destination.node_name.as_str());
    let what = status.outcome.map_or(status.phase.as_str(), Outcome::as_str);
    let message = if status.outcome == Some(Outcome::Migrated) { String::new() } else { status.message };
    format!("{pod:<48} {what:<18} {node:<12} {message}").trim_end().to_owned()
}

fn told(pods: usize, moved: usize) -> ExitCode {
    println!("{moved} of {pods} pods were moved with their memory");
    if moved == pods { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_became_of_a_pod() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "db-0", "namespace": "shop", "uid": "u"}})).unwrap();
        let migration = evacuation_of(&pod, "n1", Trigger::Drain).unwrap();
        assert_eq!(line(&migration).split_whitespace().collect::<Vec<_>>(), ["shop/db-0", "Pending"]);
        let refused = refused(migration, "spec.hostPID: is set");
        assert!(line(&refused).ends_with("spec.hostPID: is set") && line(&refused).contains("Failed"), "{}", line(&refused));
        assert_eq!((told(2, 1), told(0, 0)), (ExitCode::from(2), ExitCode::SUCCESS));
    }
}
