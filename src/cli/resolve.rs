//! `drover resolve`: a person's decision on a migration that is held in doubt.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};

use super::ask_cluster;
use crate::{
    api::{
        Migration, Phase, Verdict,
        migration::{Decider, Side},
    },
    domain::{
        keys,
        resolution::{self, Preference},
    },
};

/// What is decided.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the Migration
    migration: String,
    /// Namespace of the Migration
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// The copy that goes on: the frozen source, or the replacement (from its image, where its memory is lost)
    #[arg(long, value_enum, required_unless_present = "give_up")]
    prefer: Option<Copy>,
    /// Give up a pod that could not be restored on its old node either: it is deleted, its checkpoint is kept
    #[arg(long, conflicts_with_all = ["prefer", "destination_is_down"])]
    give_up: bool,
    /// You have seen that the destination node is powered off, and it stays so until the migration has ended. If it still runs, two copies will run
    #[arg(long)]
    destination_is_down: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Copy {
    Source,
    Destination,
}

impl Args {
    /// Writes the decision; the manager carries it out as soon as it is safe.
    ///
    /// # Errors
    /// Where there is no such migration, it is not held, the decision is not possible, or the API server refuses it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        ask_cluster(async |client| {
            let api: Api<Migration> = Api::namespaced(client, &self.namespace);
            let migration =
                api.get(&self.migration).await.with_context(|| format!("no Migration {} in namespace {}", self.migration, self.namespace))?;
            let (decision, consequence) = self.decide(&migration)?;
            let patch = serde_json::json!({"metadata": {
                "resourceVersion": migration.resource_version(),
                "annotations": {keys::RESOLVE: decision},
            }});
            // A merge patch with the version that was judged: whoever wrote in between is read first.
            api.patch(&self.migration, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .context("failed to write the decision; look again and repeat it")?;
            println!("{consequence}");
            println!("drover status {} -n {} --watch shows how it goes on", self.migration, self.namespace);
            Ok(ExitCode::SUCCESS)
        })
    }

    /// The value of the annotation, and what follows from it.
    fn decide(&self, migration: &Migration) -> anyhow::Result<(&'static str, &'static str)> {
        let status = migration.status.clone().unwrap_or_default();
        let Some(held) = status.held() else {
            bail!("Migration {} is not held (phase {}): there is nothing to decide; it goes on by itself", self.migration, migration.phase());
        };
        let side = match self.prefer {
            None if held.reason == resolution::FALLBACK_FAILED => return Ok((resolution::GIVE_UP, GIVEN_UP)),
            None => bail!(
                "Migration {} is held for {}: only a pod that could not be restored on its old node either ({}) is given up; see the Migration's message",
                self.migration,
                held.reason,
                resolution::FALLBACK_FAILED
            ),
            Some(Copy::Source) => Side::Source,
            Some(Copy::Destination) => Side::Destination,
        };
        if self.destination_is_down && side == Side::Destination {
            bail!("--destination-is-down goes with --prefer source: nothing can go on where a node is down");
        }
        if side == Side::Source && (migration.phase() > Phase::Restoring || status.verdict == Some(Verdict::Commit)) {
            bail!("Migration {} is committed, and a verdict is written once; see docs/operations.md, Held, NotConfirmed", self.migration);
        }
        let preference = Preference { side, by: Decider::Person, destination_is_down: self.destination_is_down };
        Ok((preference.as_annotation(), consequence(preference, migration.spec.post_copy)))
    }
}

const GIVEN_UP: &str = "given up: the pod is deleted, and if it was restored after all, what it has done since is lost; the checkpoint is kept on the source node, \
                        and whoever owns the pod may start another from its image";

fn consequence(preference: Preference, is_post_copy: bool) -> &'static str {
    match (preference.side, preference.destination_is_down) {
        (Side::Source, false) => {
            "decided for the source: the replacement is deleted, and the source goes on once the destination's agent attests that nothing of the replacement runs"
        }
        (Side::Source, true) => {
            "decided for the source on your word that the destination node is down: the replacement's object is deleted, then the source goes on"
        }
        (Side::Destination, _) if is_post_copy => {
            "decided for the replacement: it goes on from its image where its memory has not come; the frozen source, which alone has it, is ended, and no checkpoint is kept"
        }
        (Side::Destination, _) => {
            "decided for the replacement: it goes on from its image where its memory is lost; the checkpoint is kept on the source node"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(status: serde_json::Value) -> Migration {
        let mut migration = Migration::new("m", crate::api::MigrationSpec::default());
        migration.status = Some(serde_json::from_value(status).unwrap());
        migration
    }

    fn args(prefer: Copy, destination_is_down: bool) -> Args {
        Args { migration: "m".into(), namespace: "d".into(), prefer: Some(prefer), give_up: false, destination_is_down }
    }

    fn held(phase: &str) -> serde_json::Value {
        serde_json::json!({"phase": phase, "conditions": [{"type": "Held", "status": "True", "reason": "InDoubt", "message": "why",
            "lastTransitionTime": "2026-11-23T06:20:00Z"}]})
    }

    #[test]
    fn only_what_is_held_is_decided() {
        let refused = args(Copy::Source, false).decide(&migration(serde_json::json!({"phase": "Restoring"}))).unwrap_err().to_string();
        assert!(refused.contains("is not held (phase Restoring)"), "{refused}");
        let decided = args(Copy::Source, true).decide(&migration(held("Restoring"))).unwrap();
        assert_eq!(decided.0, "source-destination-is-down");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        assert!(args(Copy::Destination, true).decide(&migration(held("Restoring"))).is_err());
        let mut committed = held("Finishing");
        committed["verdict"] = "Commit".into();
        assert!(args(Copy::Source, false).decide(&migration(committed.clone())).unwrap_err().to_string().contains("written once"));
        assert!(args(Copy::Destination, false).decide(&migration(committed)).is_ok());
    }

    #[test]
    fn only_a_pod_that_could_not_be_restored_on_its_old_node_is_given_up() {
        let given_up = Args { prefer: None, give_up: true, ..args(Copy::Source, false) };
        let mut status = held("Finishing");
        status["verdict"] = "Rollback".into();
        let refused = given_up.decide(&migration(status.clone())).unwrap_err().to_string();
        assert!(refused.contains("is held for InDoubt"), "{refused}");
        status["conditions"][0]["reason"] = resolution::FALLBACK_FAILED.into();
        assert_eq!(given_up.decide(&migration(status)).unwrap().0, "give-up");
    }
}
