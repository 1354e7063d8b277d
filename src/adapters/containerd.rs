//! containerd: [`Runtime`](crate::ports::Runtime) and [`Images`](crate::ports::Images) over its socket.
//!
//! Two APIs share the socket: containerd's own (tasks, containers, images, content; namespace `k8s.io`) and CRI. The first can pause a task and
//! read blobs, which CRI cannot; the second pulls as the kubelet does and knows what a container was restored from. Nothing here depends on
//! containerd's state or root folder.

mod cgroup;
mod content;
mod cri;
mod dump;
mod images;
mod metrics;
mod pids;
mod records;
mod tasks;
mod vfork;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    ports::{Failure, PortError},
    runc::{RECORDS, pages},
};

pub use cri::RuntimeVersion;
pub use pids::Sandbox;

/// Containerd's namespace of everything that CRI makes.
const NAMESPACE: &str = "k8s.io";

/// Largest answer that is taken, in bytes. `Containers.List` returns whole OCI specs, which pass gRPC's default of 4 MiB on a pod with many containers.
const LARGEST_ANSWER: usize = 64 << 20;

/// How long a call on a task may take. Freezing a cgroup v1 that forks wildly takes containerd some seconds; longer means that it hangs.
const TASK_CALL: Duration = Duration::from_secs(20);

/// A node's containerd. Cheap to clone; connects at the first call and again after containerd restarted.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    cgroups: PathBuf,
    /// Where `drover-runc` notes what it has restored.
    records: PathBuf,
    /// Where its page servers are.
    pages: PathBuf,
}

impl Containerd {
    /// Containerd behind this socket (`/run/containerd/containerd.sock`). Nothing is connected yet, so the agent starts without it too.
    ///
    /// # Panics
    /// Outside of a tokio runtime, as tonic's lazy channel does.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        });
        // The URI is a placeholder that HTTP/2 wants; the connector goes to the socket.
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Self { channel, cgroups: PathBuf::from("/sys/fs/cgroup"), records: PathBuf::from(RECORDS), pages: PathBuf::from(pages::ROOT) }
    }

    /// The same with `drover-runc`'s records elsewhere than at their place on the node that this process runs on.
    #[must_use]
    pub fn with_records(self, records: PathBuf) -> Self {
        Self { records, ..self }
    }

    /// The same with `drover-runc`'s page servers elsewhere.
    #[must_use]
    pub fn with_pages(self, pages: PathBuf) -> Self {
        Self { pages, ..self }
    }

    /// The same with the host's cgroups mounted elsewhere than `/sys/fs/cgroup`.
    #[must_use]
    pub fn with_cgroups(self, cgroups: PathBuf) -> Self {
        Self { cgroups, ..self }
    }
}

/// A request in containerd's namespace, with a limit that the server keeps too.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", tonic::metadata::MetadataValue::from_static(NAMESPACE));
    request
}

/// The same for calls on tasks, which must not hang.
fn task_request<T>(message: T) -> Request<T> {
    let mut request = request(message);
    request.set_timeout(TASK_CALL);
    request
}

/// A gRPC status as a port's failure. containerd answers `Unknown` for whatever runc or a registry said, which may pass: the caller's deadline bounds
/// the retries.
fn failure(doing: &str, status: &Status) -> PortError {
    let kind = match status.code() {
        Code::NotFound => Failure::NotFound,
        Code::AlreadyExists | Code::Aborted => Failure::Conflict,
        Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => Failure::Permanent,
        _ => Failure::Transient,
    };
    let remedy = match status.code() {
        Code::Unavailable => " (is containerd running, and is its socket mounted into the agent?)",
        Code::PermissionDenied => " (the agent must run as root to use containerd's socket)",
        _ => "",
    };
    PortError::new(kind, format!("containerd could not {doing}: {}{remedy}", status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Runtime as _;

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        assert_eq!(failure("x", &Status::unknown("runc did not terminate successfully")).kind, Failure::Transient);
        assert_eq!(failure("x", &Status::not_found("task")).kind, Failure::NotFound);
        assert_eq!(failure("x", &Status::unimplemented("")).kind, Failure::Permanent);
    }

    #[tokio::test]
    async fn a_missing_socket_is_named_with_its_remedy() {
        let error = Containerd::at(Path::new("/nonexistent/containerd.sock")).pause("x").await.unwrap_err();
        assert_eq!(error.kind, Failure::Transient);
        assert!(error.message.contains("is containerd running"), "{error}");
    }
}
