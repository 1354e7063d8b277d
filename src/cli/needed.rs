//! `drover needed`: whether Drover may be uninstalled. The chart asks it before it goes (a hook of Helm's).

use std::process::ExitCode;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};

use super::ask_cluster;
use crate::{api::Migration, domain::needed::needed};

/// Helm takes a release whose uninstall was refused for one that is going, and upgrades it no more before it is told otherwise.
const AFTER_A_REFUSAL: &str = "If this was helm uninstall, the release can be upgraded again after: helm rollback drover REVISION, with the revision that \
                               helm history shows as uninstalling. To uninstall all the same: helm uninstall drover --no-hooks";

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Prints what still needs Drover, a line each. The exit code is 0 where nothing does, 2 where something does.
    ///
    /// # Errors
    /// Where the API server cannot be reached or refuses.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        ask_cluster(async |client| {
            let all = ListParams::default();
            let migrations: Api<Migration> = Api::all(client.clone());
            let migrations = match migrations.list(&all).await {
                // The definitions have been deleted before.
                Err(kube::Error::Api(status)) if status.code == 404 => vec![],
                other => other.context("failed to list the Migrations")?.items,
            };
            let pods: Api<Pod> = Api::all(client);
            let pods = pods.list(&all).await.context("failed to list the pods")?.items;
            let found = needed(&pods, &migrations);
            for sentence in &found {
                println!("{sentence}");
            }
            if found.is_empty() {
                println!("nothing needs Drover");
                return Ok(ExitCode::SUCCESS);
            }
            println!("{} still need Drover. {AFTER_A_REFUSAL}", found.len());
            Ok(ExitCode::from(2))
        })
    }
}
