//! What the kubelet's refusals mean, and what to do about each.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{StatusCode, Url};

use crate::{
    adapters::chain,
    domain::criu,
    ports::{Failure, PortError},
};

/// How much of CRIU's log is read, in bytes: at its default verbosity a process takes some tens of KiB.
const LARGEST_LOG: u64 = 16 << 20;

/// How much of a kubelet's body goes into a message, in characters.
const EXCERPT: usize = 400;

/// No answer at all.
pub(super) fn unreachable(url: &Url, limit: Duration, error: &reqwest::Error) -> PortError {
    if error.is_timeout() {
        return PortError::transient(format!(
            "the kubelet at {url} did not answer within {limit:?}; give the migration a longer freeze budget, or see the kubelet's log"
        ));
    }
    PortError::transient(format!("the kubelet at {url} cannot be reached: {}", chain(error)))
}

/// An answer that is none of the 2xx; `logged` is a line of CRIU's log that explains it.
pub(super) fn refused(status: StatusCode, body: &str, logged: Option<String>) -> PortError {
    let excerpt: String = body.trim().chars().take(EXCERPT).collect();
    match status {
        StatusCode::UNAUTHORIZED => PortError::permanent(
            "the kubelet does not know the agent (401): give it a service account token and set authentication.webhook.enabled in the kubelet's configuration, \
             or a client certificate that its clientCAFile signed (Secret kubelet-client-certs)",
        ),
        StatusCode::FORBIDDEN => PortError::permanent(format!(
            "the kubelet refuses the agent (403): bind a ClusterRole with verb create on nodes/checkpoint (and get on nodes/pods, before Kubernetes 1.33 nodes/proxy, for its pods) to the agent's \
             service account: {excerpt}"
        )),
        StatusCode::NOT_FOUND if excerpt.contains("does not exist") || excerpt.contains("not found in pod") => {
            PortError::new(Failure::NotFound, format!("the kubelet knows no such pod or container: {excerpt}"))
        }
        StatusCode::NOT_FOUND => PortError::permanent(format!(
            "the kubelet has no checkpoint API (404): enable the feature gate ContainerCheckpoint (on by default since Kubernetes 1.30), or the pod is gone: {excerpt}"
        )),
        _ => checkpoint_failed(status, &excerpt, body, logged),
    }
}

fn checkpoint_failed(status: StatusCode, excerpt: &str, body: &str, logged: Option<String>) -> PortError {
    let cause = logged.or_else(|| criu_line(body)).unwrap_or_else(|| excerpt.to_owned());
    let remedy = criu::remedy(&format!("{body} {cause}"));
    let message = format!("the kubelet answered {}: {cause}{remedy}", status.as_u16());
    // What CRIU refuses it refuses again; anything else of a 5xx may pass.
    let kind = if remedy.is_empty() && status.is_server_error() { Failure::Transient } else { Failure::Permanent };
    PortError::new(kind, message)
}

/// The part that names CRIU's cause: the last of its error lines, else where runc says that CRIU failed.
fn criu_line(text: &str) -> Option<String> {
    // Go prints a nested error with escaped line ends.
    let text = text.replace("\\n", "\n");
    let last_with = |sign: &str| text.lines().rev().find_map(|line| line.find(sign).map(|at| line[at..].trim().chars().take(EXCERPT).collect()));
    last_with("Error (").or_else(|| last_with("criu failed"))
}

/// CRIU's own cause, where the error names a log that this node still has (`log file: /…/dump.log`).
pub(super) fn cause_in_log_named_by(body: &str) -> Option<String> {
    first_error_line(&log_path(body)?)
}

fn log_path(body: &str) -> Option<PathBuf> {
    let end = body.find("dump.log")? + "dump.log".len();
    let start = body[..end].rfind(|c: char| c.is_whitespace() || "\"'(`=".contains(c)).map_or(0, |at| at + 1);
    let path = Path::new(&body[start..end]);
    // Only an absolute path without `..`: the text comes from outside, and the agent runs as root.
    let plain = path.is_absolute() && !path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    plain.then(|| path.to_owned())
}

/// CRIU's first error names the cause (`Unknown shit 600 (anon_inode:[io_uring])`), the later ones what came of it (`Dump files … failed with -1`).
fn first_error_line(log: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(log).ok()?.take(LARGEST_LOG).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    criu::cause(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_kind_and_remedy() {
        for (status, body, kind, words) in [
            (401, "Unauthorized", Failure::Permanent, "kubelet-client-certs"),
            (403, "Forbidden (user=x, verb=create, resource=nodes, subresource=checkpoint)", Failure::Permanent, "nodes/checkpoint"),
            (404, "404 page not found", Failure::Permanent, "ContainerCheckpoint"),
            (404, "pod does not exist", Failure::NotFound, "no such pod"),
            (500, "checkpointing of a/b/c failed (criu support is disabled by configuration)", Failure::Permanent, "enable_criu"),
            (500, "connection reset", Failure::Transient, "connection reset"),
        ] {
            let error = refused(StatusCode::from_u16(status).unwrap(), body, None);
            assert_eq!(error.kind, kind, "{status} {body}");
            assert!(error.message.contains(words), "{error}");
        }
    }

    #[test]
    fn of_a_long_error_crius_line_is_kept() {
        let body = "checkpointing of a/b/c failed (rpc error: code = Unknown desc = checkpointing container \"x\" failed: runc did not terminate: \
                    exit status 1: criu failed: type DUMP errno 0\nlog file: /run/containerd/x/dump.log)";
        let error = refused(StatusCode::INTERNAL_SERVER_ERROR, body, None);
        assert!(error.message.contains("criu failed: type DUMP errno 0"), "{error}");
        assert!(!error.message.contains("rpc error"), "{error}");
        assert_eq!(log_path(body), Some(PathBuf::from("/run/containerd/x/dump.log")));
        assert_eq!(log_path("see /a/../etc/dump.log"), None);
    }

    #[test]
    fn a_file_that_cannot_be_handed_on_is_told_as_what_it_is() {
        let error = refused(StatusCode::INTERNAL_SERVER_ERROR, "", Some("Error (criu/pie/parasite.c:588): send_fds failed (-22)".to_owned()));
        assert!(error.message.contains("send_fds") && error.message.contains("io_uring"), "{error}");
        assert_eq!(error.kind, Failure::Permanent);
    }

    #[test]
    fn the_log_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("dump.log");
        std::fs::write(&log, "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n(00.2) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.\n(00.3) Error (criu/cr-dump.c:1545): Dump files (pid: 7) failed with -1\n(00.4) Error (criu/cr-dump.c:2111): Dumping FAILED.\n").unwrap();
        let body = format!("criu failed: type NOTIFY errno 0\nlog file: {}", log.display());
        let error = refused(StatusCode::INTERNAL_SERVER_ERROR, &body, cause_in_log_named_by(&body));
        assert_eq!(error.kind, Failure::Permanent);
        assert!(error.message.contains("Connected TCP socket") && error.message.contains("runc.conf"), "{error}");
    }
}
