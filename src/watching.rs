//! How soon a watch is begun again that the API server has ended or refused.

use std::time::Duration;

use backon::ExponentialBuilder;
use kube::runtime::watcher::ExponentialBackoff;

/// The first pause.
const FIRST: Duration = Duration::from_millis(250);
/// The longest pause, without the jitter that at most doubles it.
const LONGEST: Duration = Duration::from_secs(2);

/// The back-off of every watch that a migration depends on.
///
/// kube's own grows to 30 s. A controller pauses all its watches after an error of any, so each of an agent's three, when it fails in its turn, makes the
/// others wait too: after an API server had been away for a minute, agents were deaf for another minute and a half, in which pods may stand frozen.
#[must_use]
pub fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default().with_min_delay(FIRST).with_max_delay(LONGEST).with_factor(2.0).with_jitter().without_max_times().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_is_long_and_none_is_the_last() {
        assert_eq!(backoff().take(200).filter(|pause| *pause <= 2 * LONGEST).count(), 200);
    }
}
