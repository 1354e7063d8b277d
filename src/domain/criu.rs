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
