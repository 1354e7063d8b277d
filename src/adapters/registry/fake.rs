//! A registry for tests: the same verbs and the same folders as distribution, nothing else.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{Method, Response, StatusCode},
};

use crate::domain::image::digest_of;

#[derive(Default)]
pub(super) struct Fake {
    data: PathBuf,
    tags: Mutex<HashMap<String, String>>,
    uploads: Mutex<HashMap<String, Vec<u8>>>,
    /// How many PATCH requests fail before one succeeds.
    pub(super) failures: Mutex<u32>,
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

fn answer(status: StatusCode, location: &str, body: Vec<u8>) -> Response<Body> {
    Response::builder().status(status).header("location", location).header("content-length", body.len()).body(body.into()).unwrap()
}

async fn handle(State(fake): State<Arc<Fake>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
    let path = parts.uri.path().trim_start_matches("/v2/").to_owned();
    fake.seen.lock().unwrap().push(format!("{} {}", parts.method, parts.uri.path()));
    let nothing = || answer(StatusCode::NOT_FOUND, "", Vec::new());
    if let Some((repository, id)) = path.split_once("/blobs/uploads/") {
        return match parts.method {
            // An absolute place with a host that nobody can reach: the client must come back the way it came.
            Method::POST => {
                answer(StatusCode::ACCEPTED, &format!("http://unreachable.invalid/v2/{repository}/blobs/uploads/one?_state=a"), Vec::new())
            }
            Method::PATCH => {
                let mut failures = fake.failures.lock().unwrap();
                if *failures > 0 {
                    *failures -= 1;
                    return answer(StatusCode::SERVICE_UNAVAILABLE, "", Vec::new());
                }
                fake.uploads.lock().unwrap().insert(id.to_owned(), body);
                answer(StatusCode::ACCEPTED, &format!("/v2/{repository}/blobs/uploads/{id}?_state=b"), Vec::new())
            }
            _ => {
                let whole = [fake.uploads.lock().unwrap().remove(id).unwrap_or_default(), body].concat();
                let wanted = parts.uri.query().unwrap_or_default().replace("%3A", ":");
                if wanted.ends_with(digest_of(&whole).as_str()) {
                    fake.store(repository, "_layers", &whole);
                    answer(StatusCode::CREATED, "", Vec::new())
                } else {
                    answer(StatusCode::BAD_REQUEST, "", b"DIGEST_INVALID".to_vec())
                }
            }
        };
    }
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
