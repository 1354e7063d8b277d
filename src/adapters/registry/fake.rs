//! A registry for tests: the same verbs and the same folders as distribution, nothing else.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{Method, Response, StatusCode, request::Parts},
};
use futures::StreamExt as _;

use crate::domain::{image::digest_of, memory::MemoryDigest};

#[derive(Default)]
pub(super) struct Fake {
    data: PathBuf,
    tags: Mutex<HashMap<String, String>>,
    uploads: Mutex<HashMap<String, Vec<u8>>>,
    begun: AtomicU64,
    /// How often somebody has asked how far an upload is.
    asked: AtomicU64,
    /// Bytes of layers that have come, with what was sent again.
    pub(super) received: AtomicU64,
    /// How many PATCH requests fail before one succeeds.
    pub(super) failures: Mutex<u32>,
    /// What is said of the uploads' range instead of the truth.
    pub(super) claim: Mutex<Option<String>>,
    /// Memory that has come, by its place.
    pub(super) memory: Mutex<HashMap<String, Vec<u8>>>,
    /// How often memory changes on its way.
    pub(super) changed: Mutex<u32>,
    /// Every request, as `METHOD /path`.
    pub(super) seen: Mutex<Vec<String>>,
}

impl Fake {
    pub(super) fn new(data: &Path) -> Arc<Self> {
        Arc::new(Self { data: data.to_owned(), ..Self::default() })
    }

    pub(super) fn router(self: &Arc<Self>) -> Router {
        Router::new().fallback(handle).with_state(Arc::clone(self))
    }

    /// Serves on a unix socket until the test's runtime ends.
    pub(super) fn serve(self: &Arc<Self>, socket: &Path) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let router = self.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
    }

    fn content(&self, hex: &str) -> PathBuf {
        self.data.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    fn link(&self, repository: &str, kind: &str, hex: &str) -> PathBuf {
        self.data.join("docker/registry/v2/repositories").join(repository).join(kind).join("sha256").join(hex).join("link")
    }

    fn store(&self, repository: &str, kind: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes).to_string();
        let hex = digest.trim_start_matches("sha256:");
        for (path, content) in [(self.content(hex), bytes), (self.link(repository, kind, hex), digest.as_bytes())] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        digest
    }

    fn load(&self, repository: &str, kind: &str, digest: &str) -> Option<Vec<u8>> {
        let hex = digest.strip_prefix("sha256:")?;
        self.link(repository, kind, hex).exists().then(|| fs::read(self.content(hex)).ok()).flatten()
    }
}

impl Fake {
    /// Whether a repository has this manifest and each blob that it names, in full.
    pub(super) fn verified(&self, repository: &str, manifest: &str) -> bool {
        let manifest = self.load(repository, "_manifests/revisions", manifest).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let blobs = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
        blobs.map(|blob| blob["digest"].as_str().unwrap()).all(|digest| {
            let bytes = self.load(repository, "_layers", digest).unwrap();
            digest_of(&bytes).as_str() == digest
        })
    }

    /// The one layer of an image.
    pub(super) fn layer(&self, repository: &str, manifest: &str) -> Vec<u8> {
        let manifest: serde_json::Value = serde_json::from_slice(&self.load(repository, "_manifests/revisions", manifest).unwrap()).unwrap();
        self.load(repository, "_layers", manifest["layers"][0]["digest"].as_str().unwrap()).unwrap()
    }

    /// Where an upload goes on. As distribution's, the place knows how far it was.
    fn place(&self, repository: &str, id: &str) -> String {
        format!("/v2/{repository}/blobs/uploads/{id}?_state={}", self.uploads.lock().unwrap()[id].len())
    }

    fn fails(&self) -> bool {
        one_less(&self.failures)
    }

    /// As the agent in front of the registry, which keeps memory elsewhere.
    async fn take_memory(&self, place: &str, body: Body) -> Response<Body> {
        let mut content = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        if self.fails() {
            return answer(StatusCode::SERVICE_UNAVAILABLE, "", Vec::new());
        }
        if one_less(&self.changed) {
            content.push(0);
        }
        let mut told = answer(StatusCode::CREATED, "", Vec::new());
        told.headers_mut().insert("docker-content-digest", MemoryDigest::of(&content).to_string().parse().unwrap());
        self.memory.lock().unwrap().insert(place.to_owned(), content);
        told
    }

    /// What has come stays though the rest does not.
    async fn patch(self: Arc<Self>, repository: String, id: String, body: Body) -> Response<Body> {
        let mut body = body.into_data_stream();
        let asked = self.asked.load(Ordering::Relaxed);
        while let Some(Ok(chunk)) = body.next().await {
            let mut uploads = self.uploads.lock().unwrap();
            if self.asked.load(Ordering::Relaxed) != asked {
                break;
            }
            self.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            uploads.entry(id.clone()).or_default().extend_from_slice(&chunk);
        }
        answer(StatusCode::ACCEPTED, &self.place(&repository, &id), Vec::new())
    }

    async fn upload(self: &Arc<Self>, repository: &str, id: &str, parts: Parts, body: Body) -> Response<Body> {
        let query = parts.uri.query().unwrap_or_default().replace("%3A", ":");
        if parts.method == Method::POST {
            let id = format!("upload-{}", self.begun.fetch_add(1, Ordering::Relaxed));
            self.uploads.lock().unwrap().insert(id.clone(), Vec::new());
            // An absolute place with a host that nobody can reach: the client must come back the way it came.
            return answer(StatusCode::ACCEPTED, &format!("http://unreachable.invalid{}", self.place(repository, &id)), Vec::new());
        }
        let held = {
            let uploads = self.uploads.lock().unwrap();
            // As the agent in front has it: who asks how far an upload is ends the request before.
            if parts.method == Method::GET {
                self.asked.fetch_add(1, Ordering::Relaxed);
            }
            uploads.get(id).map(Vec::len)
        };
        let Some(held) = held else { return answer(StatusCode::NOT_FOUND, "", Vec::new()) };
        if parts.method == Method::GET {
            let range = self.claim.lock().unwrap().take().unwrap_or_else(|| format!("0-{}", held.saturating_sub(1)));
            let mut told = answer(StatusCode::NO_CONTENT, &self.place(repository, id), Vec::new());
            told.headers_mut().insert("range", range.parse().unwrap());
            return told;
        }
        if !query.split('&').any(|part| part == format!("_state={held}")) {
            return answer(StatusCode::RANGE_NOT_SATISFIABLE, "", Vec::new());
        }
        if parts.method == Method::PATCH {
            if self.fails() {
                return answer(StatusCode::SERVICE_UNAVAILABLE, "", Vec::new());
            }
            // Not by the server's own task, which ends with its connection.
            return tokio::spawn(Arc::clone(self).patch(repository.to_owned(), id.to_owned(), body)).await.unwrap();
        }
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        let whole = [self.uploads.lock().unwrap().remove(id).unwrap_or_default(), body].concat();
        if query.ends_with(digest_of(&whole).as_str()) {
            self.store(repository, "_layers", &whole);
            answer(StatusCode::CREATED, "", Vec::new())
        } else {
            answer(StatusCode::BAD_REQUEST, "", br#"{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}"#.to_vec())
        }
    }
}

fn one_less(left: &Mutex<u32>) -> bool {
    let mut left = left.lock().unwrap();
    let less = left.checked_sub(1);
    *left = less.unwrap_or(0);
    less.is_some()
}

fn answer(status: StatusCode, location: &str, body: Vec<u8>) -> Response<Body> {
    Response::builder().status(status).header("location", location).header("content-length", body.len()).body(body.into()).unwrap()
}

async fn handle(State(fake): State<Arc<Fake>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_start_matches("/v2/").to_owned();
    fake.seen.lock().unwrap().push(format!("{} {}", parts.method, parts.uri.path()));
    if let Some(place) = parts.uri.path().strip_prefix("/memory/") {
        return fake.take_memory(place, body).await;
    }
    let nothing = || answer(StatusCode::NOT_FOUND, "", Vec::new());
    if let Some((repository, id)) = path.split_once("/blobs/uploads/") {
        return fake.upload(repository, id, parts, body).await;
    }
    let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
    let (kind, folder) = if path.contains("/manifests/") { ("/manifests/", "_manifests/revisions") } else { ("/blobs/", "_layers") };
    let Some((repository, reference)) = path.split_once(kind) else { return nothing() };
    let tag = format!("{repository}:{reference}");
    let digest = fake.tags.lock().unwrap().get(&tag).cloned().unwrap_or_else(|| reference.to_owned());
    match parts.method {
        Method::PUT => {
            let stored = fake.store(repository, folder, &body);
            if !reference.starts_with("sha256:") {
                fake.tags.lock().unwrap().insert(tag, stored);
            }
            answer(StatusCode::CREATED, "", Vec::new())
        }
        Method::DELETE => match fake.load(repository, folder, &digest) {
            Some(_) => {
                fs::remove_file(fake.link(repository, folder, digest.trim_start_matches("sha256:"))).unwrap();
                answer(StatusCode::ACCEPTED, "", Vec::new())
            }
            None => nothing(),
        },
        _ => fake.load(repository, folder, &digest).map_or_else(nothing, |bytes| answer(StatusCode::OK, "", bytes)),
    }
}
