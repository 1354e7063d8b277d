//! How the process ends: by a signal, in order; by a task that should not have ended, with an error.

use std::{collections::HashMap, future::Future, time::Duration};

use anyhow::{Context as _, anyhow};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Exit status after a second signal: 128 + SIGINT, as shells count.
const ABORTED: i32 = 130;

/// A token that the first SIGTERM or SIGINT cancels. A second signal ends the process at once: a person who asks twice means it, and every
/// part of Drover may be killed at any point (I6).
///
/// # Errors
/// Where the handlers cannot be installed.
pub fn on_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("signal received, shutting down");
        first.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        warn!("second signal received, aborting");
        std::process::exit(ABORTED);
    });
    Ok(token)
}

/// The tasks of a process. Each runs until the token is cancelled; one that ends earlier takes the process down, so that nothing runs on
/// with a part missing that nobody notices.
#[derive(Debug)]
pub struct Tasks {
    token: CancellationToken,
    set: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// No tasks yet; `token` ends them all.
    #[must_use]
    pub fn new(token: CancellationToken) -> Self {
        Self { token, set: JoinSet::new(), names: HashMap::new() }
    }

    /// The token that ends the tasks.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task. It must return soon after the token is cancelled.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let handle = self.set.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// Waits until the token is cancelled or a task ends, then gives the others `grace` to end.
    ///
    /// # Errors
    /// The first task that failed, panicked or ended although nobody asked it to.
    pub async fn run(mut self, grace: Duration) -> anyhow::Result<()> {
        let mut first_error = None;
        tokio::select! {
            () = self.token.cancelled() => {}
            ended = self.set.join_next_with_id() => {
                if let Some(ended) = ended {
                    // A task may see the token before this select does; that is an ordinary end.
                    first_error = self.judge(ended, self.token.is_cancelled());
                }
                self.token.cancel();
            }
        }
        let rest = async {
            let mut error = None;
            while let Some(ended) = self.set.join_next_with_id().await {
                error = error.or(judge(&self.names, ended, true));
            }
            error
        };
        if let Ok(error) = tokio::time::timeout(grace, rest).await {
            first_error = first_error.or(error);
        } else {
            warn!(?grace, "tasks did not end in time and are aborted");
        }
        first_error.map_or(Ok(()), Err)
    }

    fn judge(&self, ended: Ended, asked: bool) -> Option<anyhow::Error> {
        judge(&self.names, ended, asked)
    }
}

type Ended = Result<(Id, anyhow::Result<()>), JoinError>;

fn judge(names: &HashMap<Id, &'static str>, ended: Ended, asked: bool) -> Option<anyhow::Error> {
    let name_of = |id: Id| names.get(&id).copied().unwrap_or("unnamed");
    let problem = match ended {
        Ok((_, Ok(()))) if asked => return None,
        Ok((id, Ok(()))) => anyhow!("task {} ended although nobody asked it to", name_of(id)),
        Ok((id, Err(problem))) => problem.context(format!("task {} failed", name_of(id))),
        Err(broken) => anyhow!("task {} panicked: {broken}", name_of(broken.id())),
    };
    error!("{problem:#}");
    Some(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> Tasks {
        Tasks::new(CancellationToken::new())
    }

    async fn until(token: CancellationToken) -> anyhow::Result<()> {
        token.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn an_early_end_an_error_and_a_panic_stop_the_process() {
        for (kind, expected) in [("end", "task odd ended although"), ("fail", "task odd failed: broken"), ("panic", "task odd panicked")] {
            let mut tasks = tasks();
            let token = tasks.token();
            tasks.spawn("steady", until(token.clone()));
            tasks.spawn("odd", async move {
                match kind {
                    "end" => Ok(()),
                    "fail" => Err(anyhow!("broken")),
                    _ => panic!("boom"),
                }
            });
            let error = tasks.run(Duration::from_secs(5)).await.expect_err("the process stops");
            assert!(format!("{error:#}").contains(expected), "{error:#}");
            assert!(token.is_cancelled(), "the other tasks are told");
        }
    }

    #[tokio::test]
    async fn a_signal_ends_all_in_order() {
        let mut tasks = tasks();
        let token = tasks.token();
        tasks.spawn("steady", until(token.clone()));
        token.cancel();
        tasks.run(Duration::from_secs(5)).await.expect("an ordinary end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_hangs_is_aborted_after_the_grace() {
        let mut tasks = tasks();
        tasks.spawn("stuck", std::future::pending());
        tasks.token().cancel();
        tasks.run(Duration::from_secs(5)).await.expect("an ordinary end");
    }
}
