//! What a support bundle is made of, read from the API server, and from the nodes through their agents' pods.

use std::{fmt::Write as _, time::Duration};

use futures::AsyncReadExt as _;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::{
    Api, Client, Resource,
    api::{AttachParams, DynamicObject, ListParams, LogParams},
    core::ApiResource,
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{chain, kube_error::port_error};
use crate::ports::{PortError, PortResult};

/// How long one answer may take.
const LIMIT: Duration = Duration::from_mins(1);
/// So many objects come at once.
const PAGE: u32 = 500;
/// So much of the end of a container's log is taken, in bytes.
const MOST_OF_A_LOG: usize = 8 << 20;
/// So much may come from a node, in bytes; it keeps less than this.
const MOST_OF_A_NODE: u64 = 128 << 20;
/// So much of what a command says of its failure is repeated, in bytes.
const WORDS: u64 = 500;
/// This program, where the image has it.
const PROGRAM: &str = "/usr/local/bin/drover";
/// The container of an agent's pod in which it runs.
const AGENT: &str = "agent";

/// The log of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerLog {
    /// The pod.
    pub pod: String,
    /// The container.
    pub container: String,
    /// Of the container before the last restart.
    pub is_previous: bool,
}

/// A cluster, by a person's rights.
#[derive(Clone)]
pub struct Sources {
    client: Client,
    /// Drover's own namespace.
    namespace: String,
}

impl Sources {
    /// The cluster behind `client`; `namespace` is Drover's own there.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    /// The API server's version.
    ///
    /// # Errors
    /// Where it cannot be reached or refuses.
    pub async fn version(&self) -> PortResult<Value> {
        let doing = "ask the API server for its version";
        let version = within(doing, self.client.apiserver_version()).await?.map_err(|error| explained(doing, &error))?;
        serde_json::to_value(version).map_err(|error| PortError::permanent(format!("failed to {doing}: {error}")))
    }

    /// All objects of a kind, of one namespace or of all.
    ///
    /// # Errors
    /// Where the API server cannot be reached or refuses.
    pub async fn list<K: Resource<DynamicType = ()>>(&self, namespace: Option<&str>) -> PortResult<Vec<Value>> {
        let kind = ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind),
            None => Api::all_with(self.client.clone(), &kind),
        };
        let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
        let doing = format!("list {}{place}", kind.plural);
        let mut params = ListParams::default().limit(PAGE);
        let mut found = vec![];
        loop {
            let page = within(&doing, api.list(&params)).await?.map_err(|error| explained(&doing, &error))?;
            for object in page.items {
                let mut object = serde_json::to_value(object).map_err(|error| PortError::permanent(format!("failed to {doing}: {error}")))?;
                // A list's items do not say what they are.
                object["apiVersion"] = kind.api_version.clone().into();
                object["kind"] = kind.kind.clone().into();
                found.push(object);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(found),
            }
        }
    }

    /// The end of the log of a container of Drover's, since so long ago.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn log(&self, of: &ContainerLog, since: Duration) -> PortResult<Vec<u8>> {
        let before = if of.is_previous { " before its last restart" } else { "" };
        let doing = format!("read the log of container {} of pod {}{before}", of.container, of.pod);
        let params = LogParams {
            container: Some(of.container.clone()),
            previous: of.is_previous,
            // What has ended is of interest however long ago that was.
            since_seconds: (!of.is_previous).then(|| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
            timestamps: true,
            ..LogParams::default()
        };
        let read = async {
            let mut stream = Box::pin(self.pods().log_stream(&of.pod, &params).await.map_err(|error| explained(&doing, &error))?);
            let (mut end, mut part) = (vec![], vec![0; 64 << 10]);
            loop {
                let read = stream.read(&mut part).await.map_err(|error| PortError::transient(format!("failed to {doing}: {error}")))?;
                if read == 0 {
                    break;
                }
                end.extend_from_slice(&part[..read]);
                if end.len() > 2 * MOST_OF_A_LOG {
                    end.drain(..end.len() - MOST_OF_A_LOG);
                }
            }
            let surplus = end.len().saturating_sub(MOST_OF_A_LOG);
            end.drain(..surplus);
            Ok(end)
        };
        within(&doing, read).await?
    }

    /// CRIU's logs that an agent's node keeps, as `drover support node` writes them.
    ///
    /// # Errors
    /// Where nothing can be run in the agent's pod, or its image is older than that command.
    pub async fn kept_logs(&self, pod: &str, since: Duration) -> PortResult<Vec<u8>> {
        let doing = format!("run drover support node in pod {pod}");
        let command = [PROGRAM.to_owned(), "support".into(), "node".into(), format!("--since={}s", since.as_secs())];
        let params = AttachParams::default().container(AGENT).stdin(false).stdout(true).stderr(true).max_stdout_buf_size(1 << 20);
        let run = async {
            let mut process = self.pods().exec(pod, command, &params).await.map_err(|error| explained(&doing, &error))?;
            let (stdout, stderr, status) = (process.stdout(), process.stderr(), process.take_status());
            let (logs, said) = tokio::join!(all_of(stdout, MOST_OF_A_NODE), all_of(stderr, WORDS));
            let status = match status {
                Some(status) => status.await,
                None => None,
            };
            let logs = logs.map_err(|error| PortError::transient(format!("failed to {doing}: {error}")))?;
            match failure_of(status.as_ref(), &said.unwrap_or_default()) {
                None => Ok(logs),
                Some(why) => Err(PortError::permanent(format!("failed to {doing}: {why}"))),
            }
        };
        within(&doing, run).await?
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// Why a command has failed; none where it has not.
fn failure_of(status: Option<&Status>, said: &[u8]) -> Option<String> {
    let mut why = match status {
        Some(status) if status.status.as_deref() == Some("Success") => return None,
        Some(status) => status.message.clone().unwrap_or_else(|| "it has failed".to_owned()),
        None => "the connection has ended before it".to_owned(),
    };
    let said = String::from_utf8_lossy(said);
    if let Some(line) = said.lines().find(|line| !line.trim().is_empty()) {
        let _ = write!(why, ": {}", line.trim());
    }
    Some(why)
}

async fn all_of(from: Option<impl AsyncRead + Unpin>, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![];
    if let Some(mut from) = from {
        (&mut from).take(most).read_to_end(&mut bytes).await?;
        // Whoever writes must not wait for a reader for ever.
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

/// What is behind a connection that fails stands in its sources.
fn explained(doing: &str, error: &kube::Error) -> PortError {
    match error {
        kube::Error::Api(_) => port_error(doing, error),
        other => PortError::transient(format!("failed to {doing}: {}", chain(other))),
    }
}

async fn within<T>(doing: &str, work: impl Future<Output = T>) -> PortResult<T> {
    tokio::time::timeout(LIMIT, work).await.map_err(|_| PortError::transient(format!("failed to {doing} within {} s", LIMIT.as_secs())))
}

#[cfg(test)]
mod tests;
