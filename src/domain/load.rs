//! What pods use of CPU and memory, as kubelets count it.

use std::{
    fmt,
    iter::Sum,
    ops::{Add, AddAssign, SubAssign},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::node_profile::{NodeUsage, PodUsage};

/// What a kubelet has counted of a pod (`/metrics/resource`: `pod_cpu_usage_seconds_total`, `pod_memory_working_set_bytes`).
#[derive(Debug, Clone, PartialEq)]
pub struct PodCounters {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Seconds of CPU time since it was started.
    pub cpu_seconds: f64,
    /// When they were counted.
    pub at: Timestamp,
    /// Memory that is in use and cannot be taken back.
    pub memory_bytes: u64,
}

/// CPU and memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

impl Amount {
    /// What a pod uses.
    #[must_use]
    pub const fn of(pod: &PodUsage) -> Self {
        Self { cpu_millis: pod.cpu_millis, memory_bytes: pod.memory_bytes }
    }

    /// Its share of what there is; of nothing it is all.
    #[must_use]
    pub fn percent_of(self, all: &Self) -> Percent {
        let share = |part: u64, all: u64| {
            let percent = (u128::from(part) * 100).checked_div(u128::from(all)).unwrap_or(if part > 0 { 100 } else { 0 });
            u32::try_from(percent).unwrap_or(u32::MAX)
        };
        Percent { cpu: share(self.cpu_millis, all.cpu_millis), memory: share(self.memory_bytes, all.memory_bytes) }
    }
}

impl Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { cpu_millis: self.cpu_millis + other.cpu_millis, memory_bytes: self.memory_bytes + other.memory_bytes }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Amount {
    fn sub_assign(&mut self, other: Self) {
        self.cpu_millis = self.cpu_millis.saturating_sub(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), Add::add)
    }
}

/// Shares of CPU and memory, rounded down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percent {
    /// Of CPU.
    pub cpu: u32,
    /// Of memory.
    pub memory: u32,
}

impl Percent {
    /// Whether either is over its limit.
    #[must_use]
    pub const fn is_over(self, limits: Self) -> bool {
        self.cpu > limits.cpu || self.memory > limits.memory
    }

    /// So many percent less of each.
    #[must_use]
    pub const fn less(self, percent: u32) -> Self {
        Self { cpu: self.cpu.saturating_sub(percent), memory: self.memory.saturating_sub(percent) }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} % of CPU, {} % of memory", self.cpu, self.memory)
    }
}

/// What the pods have used between two counts; pods that were not counted twice, or were started anew, are left out. None where there is no earlier count.
#[must_use]
pub fn usage(before: &[PodCounters], now: &[PodCounters]) -> Option<NodeUsage> {
    let observed_at = now.iter().map(|pod| pod.at).max()?;
    let rate = |pod: &PodCounters| {
        let earlier = before.iter().find(|it| it.namespace == pod.namespace && it.name == pod.name)?;
        let seconds = pod.at.duration_since(earlier.at).as_secs_f64();
        let used = pod.cpu_seconds - earlier.cpu_seconds;
        (seconds > 0.0 && used >= 0.0).then(|| PodUsage {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            cpu_millis: millis(used / seconds),
            memory_bytes: pod.memory_bytes,
        })
    };
    (!before.is_empty()).then(|| NodeUsage { observed_at: Time(observed_at), pods: now.iter().filter_map(rate).collect() })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, and what is used is not negative")]
fn millis(cpus: f64) -> u64 {
    (cpus * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(name: &str, second: i64, cpu_seconds: f64) -> PodCounters {
        PodCounters { namespace: "d".into(), name: name.into(), cpu_seconds, at: Timestamp::from_second(second).unwrap(), memory_bytes: 7 }
    }

    #[test]
    fn a_rate_needs_two_counts_of_one_pod() {
        let now = [counted("steady", 30, 16.0), counted("new", 30, 1.0), counted("anew", 30, 0.5), counted("still", 10, 3.0)];
        assert_eq!(usage(&[], &now), None);
        let before = [counted("steady", 10, 10.0), counted("anew", 10, 9.0), counted("still", 10, 3.0), counted("gone", 10, 3.0)];
        let usage = usage(&before, &now).unwrap();
        assert_eq!(usage.observed_at.0.as_second(), 30);
        let pods: Vec<_> = usage.pods.iter().map(|pod| (pod.name.as_str(), pod.cpu_millis, pod.memory_bytes)).collect();
        assert_eq!(pods, [("steady", 300, 7)], "6 s of CPU in 20 s");
    }

    #[test]
    fn a_share_of_nothing_is_all() {
        let amount = Amount { cpu_millis: 500, memory_bytes: 0 };
        assert_eq!(amount.percent_of(&Amount { cpu_millis: 2000, memory_bytes: 0 }), Percent { cpu: 25, memory: 0 });
        assert_eq!(amount.percent_of(&Amount::default()), Percent { cpu: 100, memory: 0 });
        assert!(
            Percent { cpu: 61, memory: 0 }.is_over(Percent { cpu: 60, memory: 70 })
                && !Percent { cpu: 60, memory: 70 }.is_over(Percent { cpu: 60, memory: 70 })
        );
    }
}
