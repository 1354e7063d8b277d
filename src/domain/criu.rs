//! What CRIU's logs say.

/// How much of a line goes into a message, in characters.
const EXCERPT: usize = 400;

/// Error lines that name no cause: what CRIU carries on after, and its own summaries at the end.
const NO_CAUSE: [&str; 4] = ["RLIMIT_NOFILE for self", "Dumping FAILED", "Restoring FAILED", "Dump files (pid"];

/// The first error line that names a cause (`Error (criu/…): …`); the later ones say what came of it.
#[must_use]
pub fn cause(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("Error (") && !NO_CAUSE.iter().any(|harmless| line.contains(harmless)))?;
    line.find("Error (").map(|at| line[at..].trim().chars().take(EXCERPT).collect())
}

/// What to do about a failed checkpoint, by what it or CRIU's log says; empty where nobody knows.
#[must_use]
pub fn remedy(text: &str) -> &'static str {
    const REMEDIES: [(&str, &str); 10] = [
        ("criu support is disabled", "; set enable_criu = true in containerd's CRI configuration"),
        ("criu binary not found", "; install CRIU on the node (drover check names the version)"),
        ("Unimplemented", "; this runtime has no checkpoint: containerd 2.0 or CRI-O with enable_criu_support is needed"),
        ("unimplemented", "; this runtime has no checkpoint: containerd 2.0 or CRI-O with enable_criu_support is needed"),
        ("tcp-established", "; add tcp-close to /etc/criu/runc.conf on both nodes (drover node setup does it)"),
        ("file-locks", "; add file-locks to /etc/criu/runc.conf on both nodes (drover node setup does it)"),
        ("io_uring", "; the program uses io_uring, which CRIU cannot checkpoint: run it with seccompProfile RuntimeDefault or switch io_uring off"),
        // The kernel (6.7 and later) passes no io_uring on to CRIU; its log does not say what it was.
        (
            "send_fds failed (-22)",
            "; the program holds a file that the kernel does not hand on, as io_uring, which CRIU cannot checkpoint: run it with seccompProfile RuntimeDefault or switch io_uring off",
        ),
        ("ghost-limit", "; raise ghost-limit in /etc/criu/runc.conf on both nodes"),
        ("Can't get rlimit", "; CRIU needs CAP_SYS_RESOURCE on this node to checkpoint a container that does not run as root"),
    ];
    REMEDIES.iter().find(|(sign, _)| text.contains(sign)).map_or("", |(_, remedy)| remedy)
}

#[cfg(test)]
mod tests {
    use super::cause;

    #[test]
    fn the_first_error_that_ends_something_is_the_cause() {
        let log = "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.2) Error (criu/mount.c:1): mnt: No mapping for 7\n(00.3) Error (criu/cr-restore.c:2): Restoring FAILED.\n";
        assert_eq!(cause(log).as_deref(), Some("Error (criu/mount.c:1): mnt: No mapping for 7"));
        assert_eq!(cause("(00.1) Restoring\n"), None);
    }
}
