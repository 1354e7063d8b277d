//! What the manager has used: memory and CPU by the kernel's word, requests by the API server's.

use std::{collections::BTreeMap, fmt::Write as _, fs::File, io::BufRead as _, path::Path, time::Duration};

use procfs::process::Process;
use serde_json::Value;

/// What was used up to a moment.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Most resident memory so far, in KiB.
    peak_kib: u64,
    cpu_seconds: f64,
    /// Verb and resource → requests.
    requests: BTreeMap<String, u64>,
}

impl Usage {
    /// Of the process, by the audit log of what it has asked for.
    pub fn of(pid: i32, audit: &Path) -> Self {
        let process = Process::new(pid).unwrap();
        let stat = process.stat().unwrap();
        #[allow(clippy::cast_precision_loss)]
        let cpu_seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        Self { peak_kib: process.status().unwrap().vmhwm.unwrap_or_default(), cpu_seconds, requests: requests(audit) }
    }

    /// One block: what was done since `before`, and at which cost.
    pub fn print(&self, before: &Self, title: &str, migrations: usize, wall: Duration) {
        #[allow(clippy::cast_precision_loss)]
        let moved = migrations as f64;
        let mut text = format!("\n=== {title}\n");
        let mut line = |name: &str, value: String| writeln!(text, "{name:<34}{value:>12}").unwrap();
        line("migrations", migrations.to_string());
        line("wall time, s", format!("{:.1}", wall.as_secs_f64()));
        line("migrations per minute", format!("{:.1}", moved * 60.0 / wall.as_secs_f64()));
        line("manager: peak memory, MiB", format!("{:.1}", f64::from(u32::try_from(self.peak_kib).unwrap()) / 1024.0));
        let cpu = self.cpu_seconds - before.cpu_seconds;
        line("manager: CPU, s", format!("{cpu:.1}"));
        line("manager: CPU per migration, ms", format!("{:.1}", cpu * 1000.0 / moved));
        let mut requests: Vec<_> = self.requests.iter().map(|(what, n)| (n - before.requests.get(what).unwrap_or(&0), what)).collect();
        requests.retain(|(n, _)| *n > 0);
        requests.sort_by(|a, b| b.cmp(a));
        let all: u64 = requests.iter().map(|(n, _)| n).sum();
        #[allow(clippy::cast_precision_loss)]
        let per_migration = |n: u64| format!("{n} ({:.1} each)", n as f64 / moved);
        line("manager: API requests", per_migration(all));
        for (n, what) in requests {
            line(&format!("  {what}"), per_migration(n));
        }
        eprintln!("{text}");
    }
}

/// Counts each request once: a watch when it begins, everything else when it is answered.
fn requests(audit: &Path) -> BTreeMap<String, u64> {
    let mut counted = BTreeMap::new();
    for line in std::io::BufReader::new(File::open(audit).unwrap()).lines() {
        // The last line may be half written.
        let Ok(event) = serde_json::from_str::<Value>(&line.unwrap()) else { continue };
        let (verb, stage, object) = (event["verb"].as_str().unwrap_or_default(), event["stage"].as_str().unwrap_or_default(), &event["objectRef"]);
        if stage != (if verb == "watch" { "ResponseStarted" } else { "ResponseComplete" }) {
            continue;
        }
        let part = |field: &str| object[field].as_str().unwrap_or_default();
        let resource = match (part("resource"), part("subresource")) {
            ("", _) => event["requestURI"].as_str().unwrap_or_default().to_owned(),
            (resource, "") => resource.to_owned(),
            (resource, subresource) => format!("{resource}/{subresource}"),
        };
        *counted.entry(format!("{verb} {resource}")).or_default() += 1;
    }
    counted
}
