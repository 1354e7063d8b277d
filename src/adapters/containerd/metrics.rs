//! CPU time out of containerd's task metrics.
//!
//! The few fields are declared here by hand (containerd/cgroups, `cgroup1/stats/metrics.proto` and `cgroup2/stats/metrics.proto`): the client crate
//! carries the envelope only.

use prost::Message;
use prost_types::Any;

const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";

#[derive(Clone, PartialEq, Message)]
struct MetricsV1 {
    #[prost(message, optional, tag = "3")]
    cpu: Option<CpuV1>,
}

#[derive(Clone, PartialEq, Message)]
struct CpuV1 {
    #[prost(message, optional, tag = "1")]
    usage: Option<UsageV1>,
}

#[derive(Clone, PartialEq, Message)]
struct UsageV1 {
    /// Nanoseconds (`cpuacct.usage`).
    #[prost(uint64, tag = "1")]
    total: u64,
}

#[derive(Clone, PartialEq, Message)]
struct MetricsV2 {
    #[prost(message, optional, tag = "2")]
    cpu: Option<CpuV2>,
}

#[derive(Clone, PartialEq, Message)]
struct CpuV2 {
    /// Microseconds (`cpu.stat`, `usage_usec`).
    #[prost(uint64, tag = "1")]
    usage_usec: u64,
}

/// CPU time in nanoseconds.
///
/// # Errors
/// Where the metrics are of neither cgroup version, cannot be decoded, or carry no CPU time: a missing number must never look like 'unchanged' (R2).
pub(super) fn cpu_nanos(metrics: &Any) -> Result<u64, String> {
    let kind = metrics.type_url.rsplit('/').next().unwrap_or_default();
    let nanos = match kind {
        V1 => MetricsV1::decode(&*metrics.value).map_err(|e| e.to_string())?.cpu.and_then(|cpu| cpu.usage).map(|usage| usage.total),
        V2 => MetricsV2::decode(&*metrics.value).map_err(|e| e.to_string())?.cpu.map(|cpu| cpu.usage_usec.saturating_mul(1000)),
        other => return Err(format!("unknown kind of metrics {other:?}")),
    };
    nanos.ok_or_else(|| "the metrics have no CPU time; is the cpuacct (v1) or cpu (v2) controller mounted?".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(kind: &str, value: Vec<u8>) -> Any {
        Any { type_url: kind.to_owned(), value }
    }

    #[test]
    fn both_cgroup_versions_are_read_in_nanoseconds() {
        // Field 1 (hugetlb) is there too in real metrics: unknown fields are skipped.
        let v1 = [vec![0x0a, 0x00], MetricsV1 { cpu: Some(CpuV1 { usage: Some(UsageV1 { total: 1_234 }) }) }.encode_to_vec()].concat();
        assert_eq!(cpu_nanos(&any(V1, v1)), Ok(1_234));
        let v2 = MetricsV2 { cpu: Some(CpuV2 { usage_usec: 7 }) }.encode_to_vec();
        assert_eq!(cpu_nanos(&any(&format!("type.googleapis.com/{V2}"), v2)), Ok(7_000));
    }

    #[test]
    fn a_missing_number_is_an_error() {
        assert!(cpu_nanos(&any(V1, Vec::new())).is_err());
        assert!(cpu_nanos(&any("io.containerd.other", Vec::new())).is_err());
    }
}
