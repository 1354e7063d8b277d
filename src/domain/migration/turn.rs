//! What a pod that has everything ready waits for before it is frozen: its destination's kubelet, a permit for its destination, and a disruption.

use std::time::Duration;

use super::{Effect, Step, course::Course, observed};
use crate::{
    api::MigrationStatus,
    domain::{
        disruption::{Disruption, disruption},
        permits::Permit,
    },
};

/// When to look again after what no watch tells of.
const AT_ONCE: Duration = Duration::from_millis(50);
/// When to look again for what others have, and give back.
const SOON: Duration = Duration::from_secs(1);

impl Course<'_> {
    /// The step that takes, or waits for, what a freeze needs; none where the pod has it all.
    ///
    /// Always in this order, and the first is not taken while the second is refused: whoever has a disruption has a permit too, and nobody who waits for a
    /// disruption keeps others from a permit for nothing.
    pub(super) fn take_turn(&self, status: &MigrationStatus, node: &str) -> Option<Step> {
        if let Some(left) = self.unsettled(status) {
            return Some(Step { after: Some(left), ..Step::wait() });
        }
        let disruption = disruption(self.observed.source.as_ref()?, &self.observed.budgets, self.now);
        if let Disruption::Refused(why) = disruption {
            return Some(waiting(status, &why));
        }
        match &self.observed.permit {
            Permit::Held => {}
            Permit::Available => return Some(at_once(Effect::TakePermit { node: node.to_owned() })),
            Permit::Refused { holders } => {
                return Some(waiting(
                    status,
                    &format!("waiting for a permit for node {node}, where others are on their way: {}", holders.join(", ")),
                ));
            }
        }
        match disruption {
            Disruption::Free | Disruption::Taken { .. } | Disruption::Refused(_) => None,
            Disruption::Allowed { budget } => Some(at_once(Effect::TakeDisruption { budget })),
        }
    }

    /// How long to wait for the destination's kubelet, which would let the frozen pod wait for as long. What comes between freeze and release takes time
    /// too: a third of what is estimated for all of it at least. A placeholder is not released.
    fn unsettled(&self, status: &MigrationStatus) -> Option<Duration> {
        let pod = self.observed.replacement.as_ref().filter(|_| !status.is_source_first())?;
        let left = observed::unsettled(pod, self.now)?;
        let before_the_release = Duration::from_millis(status.estimated_freeze_millis.unwrap_or_default()) / 3;
        left.checked_sub(before_the_release).filter(|left| !left.is_zero())
    }
}

fn at_once(effect: Effect) -> Step {
    Step { after: Some(AT_ONCE), ..Step::perform(vec![effect]) }
}

fn waiting(status: &MigrationStatus, why: &str) -> Step {
    let step = Step::told(status.clone(), why);
    Step { after: step.after.map(|_| SOON), ..step }
}
