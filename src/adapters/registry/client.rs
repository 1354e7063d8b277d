//! The few verbs of the distribution API that Drover uses.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use reqwest::{
    Body, Client, Method, RequestBuilder, Response, StatusCode, Upgraded, Url,
    header::{ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE, UPGRADE},
};

use crate::{
    adapters::chain,
    domain::{
        ids::Digest,
        image::{Blob, MANIFEST_MEDIA_TYPE, digest_of},
        memory::{MemoryDigest, PRE_COPY},
    },
    ports::{
        Failure, PortError, PortResult,
        layout::{ESTIMATED_LENGTH, Incoming, OVER, Size, WAY},
    },
};

/// Manifests that are asked for. Docker's own form too: base images often have it.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// The digest of what was stored, as the distribution specification has it.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// Largest manifest that is taken, in bytes: as large as registries take them.
const LARGEST_MANIFEST: usize = 4 << 20;

/// How long a call without a body of size may take. A blob's stream has no limit here: the migration's deadline ends it.
const SHORT_CALL: Duration = Duration::from_secs(30);

/// A manifest with its media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
}

impl Manifest {
    pub(super) fn digest(&self) -> Digest {
        digest_of(&self.bytes)
    }
}

/// One registry.
#[derive(Debug, Clone)]
pub(super) struct Distribution {
    http: Client,
    base: Url,
}

impl Distribution {
    pub(super) fn new(http: Client, base: Url) -> Self {
        Self { http, base }
    }

    fn url(&self, repository: &str, kind: &str, reference: &str) -> PortResult<Url> {
        self.base
            .join(&format!("/v2/{repository}/{kind}/{reference}"))
            .map_err(|error| PortError::permanent(format!("{repository} names no repository: {error}")))
    }

    async fn send(&self, request: RequestBuilder, doing: &str) -> PortResult<Response> {
        request.send().await.map_err(|error| PortError::transient(format!("could not {doing}: {}", chain(&error))))
    }

    /// Size of a blob in bytes, none where the repository does not have it.
    pub(super) async fn blob_size(&self, repository: &str, digest: &Digest) -> PortResult<Option<u64>> {
        let doing = format!("look for blob {digest}");
        let answer = self.send(self.http.head(self.url(repository, "blobs", digest.as_str())?).timeout(SHORT_CALL), &doing).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(refused(answer, &doing).await),
        }
    }

    /// A blob's bytes, not yet compared with its digest.
    pub(super) async fn blob(&self, repository: &str, digest: &Digest) -> PortResult<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static> {
        let doing = format!("read blob {digest}");
        let answer = self.send(self.http.get(self.url(repository, "blobs", digest.as_str())?), &doing).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer.bytes_stream().map_err(std::io::Error::other)),
            _ => Err(refused(answer, &doing).await),
        }
    }

    /// A manifest by tag or digest.
    pub(super) async fn manifest(&self, repository: &str, reference: &str) -> PortResult<Option<Manifest>> {
        let doing = format!("read manifest {repository}:{reference}");
        let request = self.http.get(self.url(repository, "manifests", reference)?).header(ACCEPT, MANIFESTS).timeout(SHORT_CALL);
        let answer = self.send(request, &doing).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(refused(answer, &doing).await),
        }
        let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or(MANIFEST_MEDIA_TYPE).to_owned();
        let bytes = answer.bytes().await.map_err(|error| PortError::transient(format!("could not {doing}: {}", chain(&error))))?;
        if bytes.len() > LARGEST_MANIFEST {
            return Err(PortError::permanent(format!("manifest {repository}:{reference} is larger than {LARGEST_MANIFEST} bytes")));
        }
        Ok(Some(Manifest { media_type, bytes: bytes.to_vec() }))
    }

    /// Stores a manifest under a tag or its digest; every blob that it names must be there.
    pub(super) async fn put_manifest(&self, repository: &str, reference: &str, manifest: &Manifest) -> PortResult<()> {
        let doing = format!("store manifest {repository}:{reference}");
        let request = self.http.put(self.url(repository, "manifests", reference)?).header(CONTENT_TYPE, &manifest.media_type).timeout(SHORT_CALL);
        let answer = self.send(request.body(manifest.bytes.clone()), &doing).await?;
        if answer.status() == StatusCode::CREATED { Ok(()) } else { Err(refused(answer, &doing).await) }
    }

    /// Deletes a manifest or a blob from a repository; nothing happens where it is gone.
    pub(super) async fn delete(&self, repository: &str, kind: &str, digest: &Digest) -> PortResult<()> {
        let doing = format!("delete {digest} from {repository}");
        let answer = self.send(self.http.delete(self.url(repository, kind, digest.as_str())?).timeout(SHORT_CALL), &doing).await?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(refused(answer, &doing).await),
        }
    }

    /// Begins an upload. Some registries name its place with their own host, which may not be the way that we came: only path and query are taken.
    pub(super) async fn begin(&self, repository: &str) -> PortResult<Url> {
        let doing = format!("begin an upload to {repository}");
        let answer =
            self.send(self.http.post(self.url(repository, "blobs", "uploads/")?).header(CONTENT_LENGTH, 0).timeout(SHORT_CALL), &doing).await?;
        if answer.status() == StatusCode::ACCEPTED { self.location(&answer, &doing) } else { Err(refused(answer, &doing).await) }
    }

    fn location(&self, answer: &Response, doing: &str) -> PortResult<Url> {
        let text = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let place = answer.url().join(text).ok().filter(|url| url.path().starts_with("/v2/"));
        let place =
            place.ok_or_else(|| PortError::permanent(format!("could not {doing}: the registry named no place for it (Location: {text:?})")))?;
        let mut url = self.base.clone();
        url.set_path(place.path());
        url.set_query(place.query());
        Ok(url)
    }

    async fn finish(&self, request: RequestBuilder, digest: &Digest) -> PortResult<()> {
        let doing = format!("store blob {digest}");
        let answer = self.send(request, &doing).await?;
        if answer.status() == StatusCode::CREATED { Ok(()) } else { Err(refused(answer, &doing).await) }
    }

    /// Sends an image with pages to the agent in front of the registry; the digest of what has arrived.
    pub(super) async fn put_memory(&self, image: &Incoming, body: Body) -> PortResult<MemoryDigest> {
        let Incoming { repository, container, file, size, is_over_pre_copy } = image;
        let doing = format!("send {file} of container {container}");
        let url = self.base.join(&format!("/memory/{repository}/{container}/{file}"));
        let url = url.map_err(|error| PortError::permanent(format!("could not {doing}: {error}")))?;
        let (name, bytes) = match *size {
            Size::Exact(bytes) => (CONTENT_LENGTH, bytes),
            Size::Estimated(bytes) => (HeaderName::from_static(ESTIMATED_LENGTH), bytes),
        };
        let mut request = self.http.put(url).header(CONTENT_TYPE, "application/octet-stream").header(name, bytes);
        if *is_over_pre_copy {
            request = request.header(OVER, PRE_COPY);
        }
        let answer = self.send(request.body(body), &doing).await?;
        if answer.status() != StatusCode::CREATED {
            return Err(refused(answer, &doing).await);
        }
        let told = answer.headers().get(CONTENT_DIGEST).and_then(|value| MemoryDigest::parse(value.to_str().ok()?).ok());
        told.ok_or_else(|| PortError::permanent(format!("could not {doing}: the agent told no digest of it")))
    }

    /// Opens a way to the agent in front of the registry, by which it fetches the memory of a container.
    pub(super) async fn open_way(&self, repository: &str, container: &str) -> PortResult<Upgraded> {
        let doing = format!("open a way for the memory of container {container}");
        let failed = |error: &dyn std::fmt::Display| PortError::permanent(format!("could not {doing}: {error}"));
        let url = self.base.join(&format!("/way/{repository}/{container}")).map_err(|error| failed(&error))?;
        let request = self.http.post(url).header(CONNECTION, "upgrade").header(UPGRADE, WAY).header(CONTENT_LENGTH, 0);
        let answer = self.send(request, &doing).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(answer, &doing).await);
        }
        answer.upgrade().await.map_err(|error| PortError::transient(format!("could not {doing}: {}", chain(&error))))
    }

    /// Stores a blob whose digest is known, in one request.
    pub(super) async fn put_blob(&self, repository: &str, digest: &Digest, size: u64, body: Body) -> PortResult<()> {
        let place = with_digest(self.begin(repository).await?, digest);
        self.finish(self.upload(Method::PUT, place, size, body), digest).await
    }

    /// Stores a small blob, unless it is there.
    pub(super) async fn ensure_blob(&self, repository: &str, blob: &Blob) -> PortResult<()> {
        if self.blob_size(repository, &blob.digest).await?.is_some() {
            return Ok(());
        }
        self.put_blob(repository, &blob.digest, blob.bytes.len() as u64, blob.bytes.clone().into()).await
    }

    /// How many bytes of an upload the registry holds, and where it goes on; none where it does not know it, or holds so few that it may be none.
    pub(super) async fn upload_held(&self, place: &Url) -> PortResult<Option<(Url, u64)>> {
        let doing = "ask how much of the upload has arrived";
        let answer = self.send(self.http.get(place.clone()).timeout(SHORT_CALL), doing).await?;
        match answer.status() {
            StatusCode::NO_CONTENT => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(refused(answer, doing).await),
        }
        let range = answer.headers().get(RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let last = range.strip_prefix("bytes=").unwrap_or(range).strip_prefix("0-").and_then(|last| last.parse::<u64>().ok());
        let last =
            last.ok_or_else(|| PortError::permanent(format!("could not {doing}: the registry told no range from byte 0 (Range: {range:?})")))?;
        // Distribution says `0-0` for one byte and for none.
        if last == 0 { Ok(None) } else { Ok(Some((self.location(&answer, doing)?, last.saturating_add(1)))) }
    }

    /// Sends the bytes of an upload of `size` from `from` on, all in one request; where the upload goes on then.
    pub(super) async fn send_upload(&self, place: Url, from: u64, size: u64, body: Body) -> PortResult<Url> {
        let doing = format!("send bytes {from} to {size} of a layer");
        let range = format!("{from}-{}", size.saturating_sub(1));
        let request = self.upload(Method::PATCH, place, size - from, body).header(CONTENT_RANGE, range);
        // An answer that comes while the body is still sent is lost where the connection is reset before it is read.
        let cut = |error: reqwest::Error| {
            let remedy = if error.is_connect() { "" } else { SEE_LOG };
            PortError::transient(format!("could not {doing}{remedy}: {}", chain(&error.without_url())))
        };
        let answer = request.send().await.map_err(cut)?;
        if answer.status() == StatusCode::ACCEPTED { self.location(&answer, &doing) } else { Err(refused(answer, &doing).await) }
    }

    /// Ends an upload: the registry compares all that it has with the digest.
    pub(super) async fn end_upload(&self, place: Url, digest: &Digest) -> PortResult<()> {
        self.finish(self.http.put(with_digest(place, digest)).header(CONTENT_LENGTH, 0), digest).await
    }

    fn upload(&self, method: Method, place: Url, size: u64, body: Body) -> RequestBuilder {
        self.http.request(method, place).header(CONTENT_TYPE, "application/octet-stream").header(CONTENT_LENGTH, size).body(body)
    }
}

fn with_digest(mut place: Url, digest: &Digest) -> Url {
    place.query_pairs_mut().append_pair("digest", digest.as_str());
    place
}

/// What to do about a registry that fails, or that ends a connection.
const SEE_LOG: &str = " (see the registry's log; a full disk shows like this too)";

/// A refusal of a registry, or of the agent in front of it.
async fn refused(answer: Response, doing: &str) -> PortError {
    let status = answer.status();
    let body = answer.text().await.unwrap_or_default();
    let told = serde_json::from_str::<serde_json::Value>(&body).ok().and_then(|told| Some(told.pointer("/errors/0/message")?.as_str()?.to_owned()));
    let body: String = told.unwrap_or(body).chars().take(300).collect();
    let (kind, remedy) = match status {
        // The agent of the destination learns of a migration from its own watch, which may lag behind ours.
        StatusCode::FORBIDDEN => (Failure::Transient, " (the destination's agent does not expect this push)"),
        StatusCode::UNAUTHORIZED => (Failure::Permanent, " (the registry wants a login: Drover's own has none)"),
        StatusCode::NOT_FOUND => (Failure::NotFound, ""),
        StatusCode::METHOD_NOT_ALLOWED => (Failure::Permanent, " (is storage.delete.enabled set in the registry's configuration?)"),
        StatusCode::INSUFFICIENT_STORAGE => (Failure::Permanent, " (the destination's disk is full)"),
        // An upload whose last request is not over in the registry: asked again, it tells how far it has come.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::RANGE_NOT_SATISFIABLE => (Failure::Transient, ""),
        _ if status.is_server_error() => (Failure::Transient, SEE_LOG),
        _ => (Failure::Permanent, ""),
    };
    PortError::new(kind, format!("could not {doing}: the registry answered {}{remedy}: {}", status.as_u16(), body.trim()))
}
