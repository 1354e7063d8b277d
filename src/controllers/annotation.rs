//! Makes a Migration for each pod that is annotated with `drover.dev/migrate-to`, then takes the annotation away.
//!
//! # Guarantees
//! One Migration for each request, also when this controller dies between its two writes ([`crate::domain::request`]). A pod that cannot be
//! moved gets its Migration too (the webhook may have been down): the preflight refuses it and says why.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::bail;
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::leaving::{self, NO_POST_COPY};
use crate::{
    api::{Migration, migration::Lane},
    domain::{
        keys, post_copy,
        preflight::Facts,
        request::{Request, request},
    },
    ports::{Clock as _, SystemClock},
    watching,
};

/// How often failed requests are looked at again.
const RETRY_LOOK: Duration = Duration::from_secs(1);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// One request's limit, so that a hanging connection does not hold up the others.
const LIMIT: Duration = Duration::from_secs(15);

/// The controller.
pub struct AnnotationController {
    client: Client,
    recorder: Recorder,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to {verb}")]
    Api {
        verb: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the API server did not answer in time")]
    Slow,
    #[error("Migration {0} exists and was made for something else")]
    NameTaken(String),
}

fn api_error(verb: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api { verb, source: Box::new(source) }
}

struct Waiting {
    request: Request,
    tries: u32,
    next: Instant,
}

impl AnnotationController {
    /// The controller; `instance` is the manager's pod name, which its Events carry.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        let reporter = Reporter { controller: keys::MANAGER.to_owned(), instance: Some(instance) };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Works until the token is cancelled. Only the leader's runs; two at once would do no harm.
    ///
    /// # Errors
    /// Where the watch ends, which it never does by itself.
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        // Metadata alone: the annotation cannot be selected by the API server, so every pod comes by here.
        let pods = watcher(Api::<PartialObjectMeta<Pod>>::all(self.client.clone()), watcher::Config::default())
            .backoff(watching::backoff())
            .applied_objects();
        pin_mut!(pods);
        let mut waiting: HashMap<String, Waiting> = HashMap::new();
        let mut looks = tokio::time::interval(RETRY_LOOK);
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                item = pods.next() => match item {
                    Some(Ok(pod)) => {
                        waiting.remove(&pod.uid().unwrap_or_default());
                        if let Some(request) = request(&pod.metadata) {
                            self.attempt(request, 0, &mut waiting).await;
                        }
                    }
                    Some(Err(error)) => warn!(%error, "the watch on pods broke and is made again"),
                    None => bail!("the watch on pods ended"),
                },
                _ = looks.tick() => {
                    let now = Instant::now();
                    let due: Vec<_> = waiting.extract_if(|_, w| w.next <= now).map(|(_, w)| w).collect();
                    for Waiting { request, tries, .. } in due {
                        self.attempt(request, tries, &mut waiting).await;
                    }
                }
            }
        }
    }

    async fn attempt(&self, request: Request, tries: u32, waiting: &mut HashMap<String, Waiting>) {
        let result = match tokio::time::timeout(LIMIT, self.take_up(&request)).await {
            Ok(result) => result,
            Err(_) => Err(Error::Slow),
        };
        if let Err(error) = result {
            let wait = LONGEST_WAIT.min(Duration::from_secs(1) * 2_u32.saturating_pow(tries));
            warn!(pod = request.pod(), namespace = request.namespace(), error = &error as &dyn std::error::Error, ?wait, "a request is tried again");
            waiting.insert(request.uid().to_owned(), Waiting { request, tries: tries.saturating_add(1), next: Instant::now() + wait });
        }
    }

    async fn take_up(&self, request: &Request) -> Result<(), Error> {
        let made = match request.migration() {
            Ok(mut migration) => {
                self.by_policy(request, &mut migration).await.map_err(api_error("look up what policies say of post-copy"))?;
                self.create(request, &migration).await?.map(|()| migration)
            }
            Err(problem) => Err(problem),
        };
        if !self.consume(request).await? {
            // Changed or gone meanwhile: the watch brings what it is now.
            return Ok(());
        }
        match made {
            Ok(migration) => {
                let name = migration.name_any();
                info!(pod = request.pod(), namespace = request.namespace(), migration = name, to = request.value(), "a Migration was made");
                let note = format!("Migration {name} moves this pod to {}", request.value());
                self.tell(request, EventType::Normal, "MigrationRequested", note, Some(migration.object_ref(&()))).await;
                if let Some(note) = post_copy::fallen_back(&migration) {
                    self.tell(request, EventType::Normal, NO_POST_COPY, note, Some(migration.object_ref(&()))).await;
                }
            }
            Err(problem) => self.tell(request, EventType::Warning, "MigrationRefused", problem, None).await,
        }
        Ok(())
    }

    /// Makes a post-copy of it where the pod's policy asks for that, which the pod itself has not spoken of.
    async fn by_policy(&self, request: &Request, migration: &mut Migration) -> Result<(), kube::Error> {
        if !request.leaves_post_copy_open() {
            return Ok(());
        }
        let policies = leaving::policies(&self.client).await?;
        if !post_copy::is_asked_for(&policies) {
            return Ok(());
        }
        let pod = Api::<Pod>::namespaced(self.client.clone(), request.namespace()).get_opt(request.pod()).await?;
        // Another pod has the name by now, or none: the preflight says so.
        let Some(pod) = pod.filter(|pod| pod.uid().as_deref() == Some(request.uid())) else { return Ok(()) };
        let namespace = leaving::labels_of(&self.client, request.namespace()).await?;
        let facts = Facts { nodes: leaving::node_views(&self.client).await?, lane: Lane::Runtime, now: SystemClock.now(), ..Facts::default() };
        post_copy::by_policy(migration, &pod, &policies, &namespace, &facts);
        Ok(())
    }

    /// Ok(Err) is a refusal that trying again will not change; the annotation goes, so that the pod does not ask for ever.
    async fn create(&self, request: &Request, migration: &Migration) -> Result<Result<(), String>, Error> {
        let migrations: Api<Migration> = Api::namespaced(self.client.clone(), request.namespace());
        let params = PostParams { field_manager: Some(keys::MANAGER.to_owned()), ..PostParams::default() };
        match migrations.create(&params, migration).await {
            Ok(_) => Ok(Ok(())),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let name = migration.name_any();
                let found = migrations.get(&name).await.map_err(api_error("get the Migration"))?;
                if request.is_made_by(&found) { Ok(Ok(())) } else { Err(Error::NameTaken(name)) }
            }
            Err(kube::Error::Api(status)) if status.is_forbidden() || status.is_invalid() => Ok(Err(status.message.clone())),
            Err(error) => Err(api_error("create the Migration")(error)),
        }
    }

    /// Whether the annotation was taken away; not where pod or value have changed.
    async fn consume(&self, request: &Request) -> Result<bool, Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), request.namespace());
        let params = PatchParams { field_manager: Some(keys::MANAGER.to_owned()), ..PatchParams::default() };
        match pods.patch_metadata(request.pod(), &params, &Patch::<()>::Json(request.take_up())).await {
            Ok(_) => Ok(true),
            // A failed `test` is answered with 422 Invalid.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {
                debug!(pod = request.pod(), "the pod has changed: {}", status.message);
                Ok(false)
            }
            Err(error) => Err(api_error("remove the annotation")(error)),
        }
    }

    /// An Event is a courtesy: the Migration is there without it. `related` keeps two requests apart: the recorder folds Events that differ in
    /// their note alone into a series, under the first one's note.
    async fn tell(&self, request: &Request, type_: EventType, reason: &str, note: String, related: Option<ObjectReference>) {
        let note: String = note.chars().take(keys::LONGEST_NOTE).collect();
        let event = Event { type_, reason: reason.to_owned(), note: Some(note), action: "Migrate".to_owned(), secondary: related };
        if let Err(error) = self.recorder.publish(&event, &reference(request)).await {
            debug!(%error, pod = request.pod(), "the Event was not written");
        }
    }
}

fn reference(request: &Request) -> ObjectReference {
    let metadata = ObjectMeta {
        name: Some(request.pod().to_owned()),
        namespace: Some(request.namespace().to_owned()),
        uid: Some(request.uid().to_owned()),
        ..ObjectMeta::default()
    };
    Pod { metadata, ..Pod::default() }.object_ref(&())
}

#[cfg(test)]
mod tests;
