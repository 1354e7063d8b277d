//! `drover check`: what is in the way of a pod's move, from its spec, the nodes and its running processes; nothing is touched.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
    runtime::wait::await_condition,
};

use super::ask_cluster;
use crate::{
    api::Migration,
    domain::{keys, owner, request::migration_to},
};

/// The preflight waits so long for the agent that looks at the processes, and a little more.
const LIMIT: Duration = Duration::from_mins(1);
/// A check that is ended in the middle leaves its Migration for so many seconds.
const TTL: u32 = 60;
/// Of the pod's name in the Migration's, whose limit is 52.
const STEM: usize = 40;

/// What is checked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the pod
    pod: String,
    /// Node that it would move to; without it the scheduler would choose
    #[arg(long)]
    to: Option<String>,
    /// Namespace of the pod
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Namespace that it would move to, if not its own
    #[arg(long)]
    to_namespace: Option<String>,
    /// The pod keeps its name, and its source goes first
    #[arg(long)]
    keep_name: bool,
}

impl Args {
    /// Makes a Migration that only checks, and says what it found. The exit code is 0 where nothing is in the way, 2 where something is.
    ///
    /// # Errors
    /// Where the API server cannot be reached or refuses, there is no such pod, or Drover's manager does not answer.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        ask_cluster(async |client| {
            let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
            let pod = pods.get(&self.pod).await.with_context(|| format!("no pod {} in namespace {}", self.pod, self.namespace))?;
            let migrations: Api<Migration> = Api::namespaced(client, &self.namespace);
            let made = migrations.create(&PostParams::default(), &self.migration(&pod)?).await.context("the check was refused")?;
            let name = made.name_any();
            let done = await_condition(migrations.clone(), &name, |migration: Option<&Migration>| migration.is_none_or(Migration::is_done));
            let done = tokio::time::timeout(LIMIT, done).await;
            // It would go by itself, later.
            let _ = migrations.delete(&name, &DeleteParams::default()).await;
            match done {
                Ok(Ok(Some(migration))) => Ok(show(&migration)),
                Ok(Ok(None)) => bail!("somebody has deleted the check's Migration {name}"),
                Ok(Err(error)) => Err(error).context("the check cannot be watched"),
                Err(_) => bail!("no answer within {} s: does Drover's manager run? kubectl get pods -n drover-system", LIMIT.as_secs()),
            }
        })
    }

    fn migration(&self, pod: &Pod) -> anyhow::Result<Migration> {
        let keep_name = self.keep_name || owner::keeps_its_name(&pod.metadata);
        let mut migration =
            migration_to(self.to.as_deref().unwrap_or(keys::AUTO), "", &self.pod, keep_name).map_err(|problem| anyhow::anyhow!("--to: {problem}"))?;
        let stem: String = self.pod.chars().take(STEM).collect();
        migration.metadata.name = None;
        migration.metadata.generate_name = Some(format!("check-{}-", stem.trim_end_matches(['-', '.'])));
        migration.spec.destination_namespace.clone_from(&self.to_namespace);
        migration.spec.check_only = true;
        migration.spec.ttl_seconds_after_finished = Some(TTL);
        Ok(migration)
    }
}

fn show(migration: &Migration) -> ExitCode {
    print!("{}", findings(migration));
    // A check that has passed ends without an outcome.
    let refused = migration.status.as_ref().is_some_and(|status| status.outcome.is_some());
    if refused { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

/// A line for each thing that was found.
fn findings(migration: &Migration) -> String {
    let status = migration.status.clone().unwrap_or_default();
    let mut lines: Vec<String> = status.blockers.iter().map(|blocker| format!("blocked  {blocker}")).collect();
    lines.extend(status.warnings.iter().map(|warning| format!("warning  {warning}")));
    lines.extend(status.estimated_freeze_millis.map(|millis| format!("freeze   about {:.1} s", Duration::from_millis(millis).as_secs_f64())));
    if status.blockers.is_empty() {
        // Refused before the preflight, or passed.
        lines.insert(0, status.message);
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MigrationStatus;

    fn found(blockers: &[&str], warnings: &[&str], message: &str) -> String {
        let mut migration = Migration::new("check", crate::api::MigrationSpec::default());
        let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        migration.status =
            Some(MigrationStatus { blockers: all(blockers), warnings: all(warnings), message: message.into(), ..MigrationStatus::default() });
        findings(&migration)
    }

    #[test]
    fn each_finding_has_a_line_of_its_own() {
        assert_eq!(found(&["spec.a: no (b)", "spec.c: no"], &["d"], "all in one"), "blocked  spec.a: no (b)\nblocked  spec.c: no\nwarning  d\n");
        assert_eq!(found(&[], &["d"], "preflight found no blocker"), "preflight found no blocker\nwarning  d\n");
    }

    #[test]
    fn the_estimated_freeze_is_told() {
        let mut migration = Migration::new("check", crate::api::MigrationSpec::default());
        migration.status = Some(MigrationStatus { message: "ok".into(), estimated_freeze_millis: Some(7_260), ..MigrationStatus::default() });
        assert_eq!(findings(&migration), "ok\nfreeze   about 7.3 s\n");
    }

    #[test]
    fn a_check_touches_nothing_and_goes_by_itself() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "web-0", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true}]}}))
        .unwrap();
        let args = Args { pod: "web-0".into(), to: Some("n2".into()), namespace: "d".into(), to_namespace: None, keep_name: false };
        let migration = args.migration(&pod).unwrap();
        assert!(migration.spec.check_only && migration.spec.keep_name && migration.spec.ttl_seconds_after_finished == Some(TTL));
        assert_eq!(migration.metadata.generate_name.as_deref(), Some("check-web-0-"));
        assert!(Args { to: Some("No Node".into()), ..args }.migration(&pod).unwrap_err().to_string().starts_with("--to: "));
    }
}
