//! `drover status`: a migration's phases as they come, and a table at the end.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use kube::{
    Api, ResourceExt as _,
    api::ListParams,
    runtime::{WatchStreamExt as _, watcher},
};

use super::ask_cluster;
use crate::api::{Migration, MigrationStatus, Outcome, Phase, migration::condition};

/// What to show.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the Migration; without it all of the namespace are listed
    migration: Option<String>,
    /// Namespace of the Migration
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Print a line for each phase until the migration has ended
    #[arg(long, short)]
    watch: bool,
    /// With --watch: seconds to wait for the end
    #[arg(long, default_value_t = 600)]
    timeout: u64,
}

impl Args {
    /// Shows it. The exit code is 0 where the migration ended as Migrated, 2 where it ended otherwise, 3 where it has not ended.
    ///
    /// # Errors
    /// Where the API server cannot be reached or there is no such migration.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        ask_cluster(async |client| {
            let api: Api<Migration> = Api::namespaced(client, &self.namespace);
            match &self.migration {
                None => list(&api).await,
                Some(name) if self.watch => {
                    let limit = Duration::from_secs(self.timeout);
                    let ended = tokio::time::timeout(limit, watch(api.clone(), name)).await;
                    let migration = match ended {
                        Ok(ended) => ended?,
                        Err(_) => api.get(name).await?,
                    };
                    Ok(show(&migration))
                }
                Some(name) => Ok(show(&api.get(name).await.with_context(|| format!("no Migration {name} in namespace {}", self.namespace))?)),
            }
        })
    }
}

async fn list(api: &Api<Migration>) -> anyhow::Result<ExitCode> {
    println!("{:<40} {:<24} {:<18} {:<11} {:>9}", "MIGRATION", "POD", "PHASE", "OUTCOME", "FROZEN");
    for migration in api.list(&ListParams::default()).await? {
        let status = migration.status.clone().unwrap_or_default();
        let frozen = status.frozen_millis.map_or_else(String::new, |ms| format!("{ms} ms"));
        let outcome = status.outcome.map_or("", Outcome::as_str);
        println!(
            "{:<40} {:<24} {:<18} {outcome:<11} {frozen:>9}",
            migration.name_any(),
            migration.spec.pod_name.clone().unwrap_or_default(),
            status.phase.as_str()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints each phase when it is entered; returns the migration when it has ended.
async fn watch(api: Api<Migration>, name: &str) -> anyhow::Result<Migration> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let changes = watcher(api, config).default_backoff().applied_objects();
    tokio::pin!(changes);
    let mut told = 0;
    let mut message = String::new();
    while let Some(change) = changes.next().await {
        let Ok(migration) = change else { continue };
        let status = migration.status.clone().unwrap_or_default();
        for timing in status.phases.iter().skip(told) {
            println!("{:>8} ms  {}", since_start(&status, timing), timing.phase);
        }
        told = status.phases.len();
        if !status.message.is_empty() && status.message != message {
            println!("             {}", status.message);
            message.clone_from(&status.message);
        }
        if status.phase == Phase::Done {
            return Ok(migration);
        }
    }
    bail!("the watch of the Migration ended")
}

fn since_start(status: &MigrationStatus, timing: &crate::api::migration::PhaseTiming) -> i128 {
    status.phases.first().map_or(0, |first| timing.started_at.0.duration_since(first.started_at.0).as_millis())
}

fn show(migration: &Migration) -> ExitCode {
    print!("{}", table(migration));
    match migration.status.as_ref().and_then(|s| s.outcome) {
        Some(Outcome::Migrated) => ExitCode::SUCCESS,
        Some(_) => ExitCode::from(2),
        None if migration.is_done() => ExitCode::SUCCESS,
        None => ExitCode::from(3),
    }
}

/// The phases with their milliseconds, and what came of it.
fn table(migration: &Migration) -> String {
    use std::fmt::Write as _;
    let status = migration.status.clone().unwrap_or_default();
    let mut text = String::new();
    let from = status.source.as_ref().map_or("?", |s| s.node_name.as_str());
    let to = status.destination.as_ref().map_or("?", |d| d.node_name.as_str());
    let replacement = status.replacement.as_ref().map_or("?", |r| r.name.as_str());
    let elsewhere = migration.elsewhere().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    let pod = status.source.as_ref().map_or_else(|| migration.spec.pod_name.clone().unwrap_or_default(), |s| s.name.clone());
    let _ = writeln!(text, "{pod} on {from} -> {elsewhere}{replacement} on {to}");
    for timing in status.phases.iter().filter(|timing| timing.phase != Phase::Done) {
        let millis = timing.millis.map_or_else(|| "…".to_owned(), |ms| ms.to_string());
        let _ = writeln!(text, "  {:<18} {millis:>8} ms", timing.phase.as_str());
    }
    if let Some(estimated) = status.estimated_freeze_millis.filter(|_| status.frozen_millis.is_none()) {
        let _ = writeln!(text, "  {:<18} {estimated:>8} ms (estimated)", "frozen");
    }
    if let Some(frozen) = status.frozen_millis {
        let _ = writeln!(text, "  {:<18} {frozen:>8} ms", "frozen");
    }
    let bytes: u64 = status.containers.iter().map(|c| c.bytes).sum();
    let memory: u64 = status.containers.iter().filter_map(|c| c.memory_bytes).sum();
    let pre_copied: u64 = status.containers.iter().filter_map(|c| c.pre_copied_bytes).sum();
    if bytes > 0 {
        let before = if pre_copied > 0 { format!(", {pre_copied} of them before the freeze") } else { String::new() };
        let beside = if memory > 0 { format!(", and {memory} bytes of memory{before}") } else { String::new() };
        let _ = writeln!(text, "  {:<18} {bytes:>8} bytes in {} checkpoint(s){beside}", "transferred", status.containers.len());
    }
    if let Some(confirmed) = status.conditions.iter().find(|c| c.type_ == condition::REGISTRY_CONFIRMED) {
        let _ = writeln!(text, "  {:<18} {:>8}", "confirmed by", confirmed.reason);
    }
    let outcome = status.outcome.map_or(if status.held().is_some() { "HELD" } else { status.phase.as_str() }, Outcome::as_str);
    let _ = writeln!(text, "{outcome}{}{}", if status.message.is_empty() { "" } else { ": " }, status.message);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_both_nodes_the_times_and_the_outcome() {
        let status: MigrationStatus = serde_json::from_value(serde_json::json!({
            "phase": "Done", "outcome": "Migrated", "frozenMillis": 1234, "message": "all is well",
            "conditions": [{"type": "RegistryConfirmed", "status": "True", "reason": "Kafka", "message": "", "lastTransitionTime": "2026-11-23T06:20:00Z"}],
            "source": {"name": "p", "uid": "u", "nodeName": "n1"}, "destination": {"nodeName": "n2"}, "replacement": {"name": "p-1"},
            "phases": [{"phase": "Freezing", "startedAt": "2026-11-23T06:20:00.000000Z", "millis": 42}],
            "containers": [{"name": "c", "digest": "sha256:0", "bytes": 5, "memoryBytes": 64, "preCopiedBytes": 60, "image": "i"}]
        }))
        .unwrap();
        let mut migration = Migration::new("m", crate::api::MigrationSpec::default());
        migration.status = Some(status);
        let text = table(&migration);
        for part in [
            "p on n1 -> p-1 on n2",
            "Freezing",
            "42 ms",
            "1234 ms",
            "confirmed by          Kafka",
            "5 bytes in 1 checkpoint(s), and 64 bytes of memory, 60 of them before the freeze",
            "Migrated: all is well",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
