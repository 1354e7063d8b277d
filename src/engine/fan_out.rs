//! Looks at a Migration of several pods.

use std::time::Duration;

use super::tell;
use crate::{
    api::Migration,
    domain::fan_out::{Seen, Step, advance, child_refused, is_child_of},
    ports::{Clock, Cluster, Failure, PortResult},
};

/// How often it is looked at though nothing changes: the pods themselves are not watched for it.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What a look has come to.
pub(super) enum Looked {
    /// It goes on after a change, or after so long.
    Unfinished(Duration),
    /// It has ended.
    Ended(Box<Migration>),
}

pub(super) async fn reconcile(
    parent: Migration,
    cluster: &dyn Cluster,
    clock: &dyn Clock,
    written: &(dyn Fn(&Migration, &Migration) + Send + Sync),
) -> PortResult<Looked> {
    let mut parent = parent;
    loop {
        let children = cluster.children(&parent).await?.into_iter().filter(|child| is_child_of(child, &parent));
        let children = children.filter_map(|child| Some((child.metadata.name.clone()?, child))).collect();
        let seen = Seen { pods: cluster.asked_for(&parent).await?, children };
        let status = match advance(&parent, &seen, clock.now()) {
            Step::Wait => return Ok(Looked::Unfinished(LOOK_AGAIN)),
            Step::Write(status) => status,
            Step::Make(child) => match cluster.make_child(&parent, &child).await {
                Ok(()) => return Ok(Looked::Unfinished(LOOK_AGAIN)),
                Err(error) if error.kind == Failure::Permanent => match child_refused(&parent, &child, &error.message, clock.now()) {
                    Step::Write(status) => status,
                    Step::Make(_) | Step::Wait => return Err(error),
                },
                Err(error) => return Err(error),
            },
        };
        let after = cluster.write_status(&parent, &status).await?;
        written(&parent, &after);
        tell(&parent, &after, cluster).await;
        parent = after;
        if parent.is_done() {
            return Ok(Looked::Ended(Box::new(parent)));
        }
    }
}
