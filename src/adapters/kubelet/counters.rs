//! What a kubelet has counted of pods, in Prometheus' text form (`pkg/kubelet/metrics/collectors/resource_metrics.go`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use prometheus_parse::{Scrape, Value};

use crate::{
    domain::load::PodCounters,
    ports::{PortError, PortResult},
};

const CPU: &str = "pod_cpu_usage_seconds_total";
const MEMORY: &str = "pod_memory_working_set_bytes";

/// Reads the counters of each pod that has both; every sample carries the time at which it was taken.
pub(super) fn parse(text: &str) -> PortResult<Vec<PodCounters>> {
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))
        .map_err(|error| PortError::transient(format!("the kubelet's counters cannot be read: {error}")))?;
    let mut memory = BTreeMap::new();
    let mut cpu = vec![];
    for sample in scrape.samples {
        let (Some(namespace), Some(name)) = (sample.labels.get("namespace"), sample.labels.get("pod")) else { continue };
        let (Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value)) = sample.value else { continue };
        let pod = (namespace.to_owned(), name.to_owned());
        match sample.metric.as_str() {
            CPU => cpu.extend(Timestamp::from_millisecond(sample.timestamp.timestamp_millis()).ok().map(|at| (pod, value, at))),
            MEMORY => drop(memory.insert(pod, value)),
            _ => {}
        }
    }
    let counters = cpu.into_iter().filter_map(|((namespace, name), cpu_seconds, at)| {
        let memory_bytes = bytes(*memory.get(&(namespace.clone(), name.clone()))?);
        Some(PodCounters { namespace, name, cpu_seconds, at, memory_bytes })
    });
    Ok(counters.collect())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn bytes(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_read_with_their_times() {
        // As a kubelet 1.37 writes it.
        let text = r#"# HELP pod_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the pod in core-seconds
# TYPE pod_cpu_usage_seconds_total counter
pod_cpu_usage_seconds_total{namespace="shop",pod="web"} 12.5 1795863223505
pod_cpu_usage_seconds_total{namespace="shop",pod="new"} 0.1 1795863223505
# HELP pod_memory_working_set_bytes [STABLE] Current working set of the pod in bytes
# TYPE pod_memory_working_set_bytes gauge
pod_memory_working_set_bytes{namespace="shop",pod="web"} 4.194304e+06 1795863223505
# TYPE scrape_error gauge
scrape_error 0
"#;
        let counted = parse(text).unwrap();
        let at = Timestamp::from_millisecond(1_795_863_223_505).unwrap();
        let web = PodCounters { namespace: "shop".into(), name: "web".into(), cpu_seconds: 12.5, at, memory_bytes: 4 << 20 };
        assert_eq!(counted, [web], "the other one has no word on its memory");
        assert_eq!(parse("").unwrap(), []);
    }
}
