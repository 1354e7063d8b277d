//! Which lanes a node has, and whether it has the gate: facts in, words with remedies out.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::api::node_profile::{CriuStatus, GateStatus, LaneStatus, NodeProfileStatus};

/// Name of the lane that restores through CRI CreateContainer.
pub const IMAGE: &str = "image";
/// Name of the lane that restores through an OCI runtime of Drover's.
pub const RUNTIME: &str = "runtime";

/// Name of the RuntimeClass, and of the runtime's handler, of the runtime lane.
pub const RUNTIME_CLASS: &str = "drover";

/// Oldest CRIU that containerd takes.
const OLDEST_CRIU: Version = Version(3, 16, 0);

/// What was found on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `containerd` or `cri-o`, as CRI tells it; empty where CRI did not answer.
    pub runtime: String,
    /// Its version.
    pub runtime_version: String,
    /// The CRI plugin's configuration, none where it was not told.
    pub configuration: Option<RuntimeConfiguration>,
    /// CRIU.
    pub criu: CriuStatus,
    /// The gate.
    pub gate: GateFacts,
    /// Kernel release.
    pub kernel: String,
    /// In Go's words.
    pub architecture: String,
    /// Sorted.
    pub cpu_features: Vec<String>,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Where registry and checkpoints lie, in bytes.
    pub free_bytes: u64,
}

/// What is on the node of the gate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateFacts {
    /// Paths of the createRuntime hooks in the default runtime's base spec.
    pub hooks: Vec<String>,
    /// Which of them are programs on the host.
    pub programs: Vec<String>,
}

/// The part of containerd's CRI configuration that decides (verbose CRI status, key `config`; `internal/cri/config/config.go`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfiguration {
    /// `enable_criu`; none before 2.2.7 and 2.3.4.
    #[serde(rename = "enableCRIU", default)]
    pub enable_criu: Option<bool>,
    /// `enable_experimental_restore_via_create`; none before 2.2.7 and 2.3.4.
    #[serde(default)]
    pub enable_experimental_restore_via_create: Option<bool>,
    #[serde(default)]
    containerd: Containerd,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Containerd {
    #[serde(default)]
    default_runtime_name: String,
    #[serde(default)]
    runtimes: BTreeMap<String, Handler>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Handler {
    #[serde(default)]
    base_runtime_spec: String,
}

impl RuntimeConfiguration {
    /// The base spec of the default runtime, none where containerd generates it.
    #[must_use]
    pub fn base_spec(&self) -> Option<&str> {
        let handler = self.containerd.runtimes.get(&self.containerd.default_runtime_name)?;
        Some(handler.base_runtime_spec.as_str()).filter(|path| !path.is_empty())
    }
}

/// The node's profile, but for addresses, conditions and time, which are the agent's.
#[must_use]
pub fn profile(facts: NodeFacts) -> NodeProfileStatus {
    let lanes = vec![
        lane(IMAGE, image_lane(&facts)),
        lane(RUNTIME, Err("this version of Drover has no runtime lane yet; the image lane needs containerd 2.1 to 2.3".to_owned())),
    ];
    let gate =
        gate(&facts).map_or_else(|message| GateStatus { installed: false, message }, |()| GateStatus { installed: true, message: String::new() });
    NodeProfileStatus {
        runtime: facts.runtime,
        runtime_version: facts.runtime_version,
        lanes,
        criu: facts.criu,
        gate,
        kernel: facts.kernel,
        architecture: facts.architecture,
        cpu_features: facts.cpu_features,
        cgroup_version: facts.cgroup_version,
        free_bytes: facts.free_bytes,
        ..NodeProfileStatus::default()
    }
}

fn lane(name: &str, found: Result<(), String>) -> LaneStatus {
    LaneStatus { name: name.to_owned(), available: found.is_ok(), message: found.err().unwrap_or_default() }
}

/// Whether containerd restores in CRI CreateContainer: from 2.1 on, by an opt-in from 2.2.7 and 2.3.4 on, no more from 2.4 on (FACTS.md 2.1).
fn image_lane(facts: &NodeFacts) -> Result<(), String> {
    if facts.runtime.is_empty() {
        return Err("the runtime does not answer on its CRI socket".to_owned());
    }
    if facts.runtime != "containerd" {
        return Err(format!("this version of Drover freezes pods through containerd only; the node runs {}", facts.runtime));
    }
    let found = &facts.runtime_version;
    let version = Version::parse(found).ok_or_else(|| format!("containerd's version {found:?} cannot be read"))?;
    if version < Version(2, 1, 0) {
        return Err(format!("containerd {found} cannot restore; upgrade it to 2.3 (2.3 is maintained until 2028)"));
    }
    if version >= Version(2, 4, 0) {
        return Err(format!("containerd {found} restores no more (removed in 2.4); install 2.3 on this node"));
    }
    let opt_in = version >= Version(2, 3, 4) || (version >= Version(2, 2, 7) && version < Version(2, 3, 0));
    let configuration = facts.configuration.as_ref();
    if opt_in && configuration.and_then(|set| set.enable_experimental_restore_via_create) != Some(true) {
        return Err(format!(
            "containerd {found} restores only with enable_experimental_restore_via_create = true in its CRI configuration; run drover node setup --image-lane \
             and restart containerd"
        ));
    }
    if configuration.and_then(|set| set.enable_criu) == Some(false) {
        return Err("containerd has enable_criu = false; set it to true and restart containerd".to_owned());
    }
    match Version::parse(&facts.criu.version) {
        None => Err("CRIU is not installed on the node, or the agent cannot run it there".to_owned()),
        Some(criu) if criu < OLDEST_CRIU => Err(format!("CRIU {} is too old; 3.16 or newer is needed", facts.criu.version)),
        Some(_) => Ok(()),
    }
}

/// Whether the runtime runs the gate; of the facts only its configuration and what is on the node of the gate count.
#[must_use]
pub fn is_gated(facts: &NodeFacts) -> bool {
    gate(facts).is_ok()
}

fn gate(facts: &NodeFacts) -> Result<(), String> {
    const SETUP: &str = "run drover node setup --apply on it and restart containerd";
    let Some(configuration) = &facts.configuration else {
        return Err(format!("the runtime does not tell its configuration, so nobody knows whether it runs the gate; if it does not, {SETUP}"));
    };
    let Some(spec) = configuration.base_spec() else {
        return Err(format!("the default runtime has no base_runtime_spec; {SETUP}"));
    };
    let Some(hook) = facts.gate.hooks.iter().find(|path| path.rsplit('/').next() == Some("drover-gate")) else {
        return Err(format!("{spec} names no drover-gate as createRuntime hook; {SETUP}"));
    };
    if facts.gate.programs.contains(hook) {
        Ok(())
    } else {
        Err(format!("{spec} names {hook}, which is no program on the node: no container can start; {SETUP}"))
    }
}

/// Major, minor, patch; a pre-release counts as its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().trim_start_matches('v').split(['.', '-', '+', '~']).map(str::parse::<u32>);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Self(major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(version: &str, switch: Option<bool>) -> NodeFacts {
        let configuration = RuntimeConfiguration { enable_experimental_restore_via_create: switch, ..RuntimeConfiguration::default() };
        let criu = CriuStatus { version: "4.2.1".to_owned(), check: true, message: String::new() };
        NodeFacts {
            runtime: "containerd".to_owned(),
            runtime_version: version.to_owned(),
            configuration: Some(configuration),
            criu,
            ..NodeFacts::default()
        }
    }

    #[test]
    fn the_image_lane_follows_containerds_history() {
        for (version, switch, words) in [
            ("v2.0.5", None, "cannot restore"),
            ("v2.1.0", None, ""),
            ("2.2.6", None, ""),
            ("2.2.7", Some(false), "enable_experimental_restore_via_create"),
            ("2.2.7", Some(true), ""),
            ("2.3.3", None, ""),
            ("2.3.4", None, "enable_experimental_restore_via_create"),
            ("v2.3.4-k3s1", Some(true), ""),
            ("2.4.0-beta.0", Some(true), "removed in 2.4"),
            ("3.0.0", None, "removed in 2.4"),
            ("unknown", None, "cannot be read"),
        ] {
            let found = image_lane(&facts(version, switch)).err().unwrap_or_default();
            assert!(if words.is_empty() { found.is_empty() } else { found.contains(words) }, "{version} {switch:?}: {found:?}");
        }
    }

    #[test]
    fn what_else_the_image_lane_needs() {
        let crio = NodeFacts { runtime: "cri-o".to_owned(), ..facts("1.35.0", None) };
        assert!(image_lane(&crio).is_err_and(|message| message.contains("containerd only")));
        let without = NodeFacts { criu: CriuStatus::default(), ..facts("2.3.3", None) };
        assert!(image_lane(&without).is_err_and(|message| message.contains("not installed")));
        let old = NodeFacts { criu: CriuStatus { version: "3.15".to_owned(), ..CriuStatus::default() }, ..facts("2.3.3", None) };
        assert!(image_lane(&old).is_err_and(|message| message.contains("too old")));
    }

    #[test]
    fn the_gate_counts_only_where_the_default_runtime_runs_it() {
        let json = r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{"runc":{"baseRuntimeSpec":"/etc/b.json"},"kata":{"baseRuntimeSpec":""}}},
            "enableCRIU":true,"enableExperimentalRestoreViaCreate":true}"#;
        let configuration: RuntimeConfiguration = serde_json::from_str(json).unwrap();
        assert_eq!((configuration.base_spec(), configuration.enable_criu), (Some("/etc/b.json"), Some(true)));
        let path = "/usr/local/lib/drover/drover-gate".to_owned();
        let whole = NodeFacts {
            configuration: Some(configuration),
            gate: GateFacts { hooks: vec![path.clone()], programs: vec![path.clone()] },
            ..facts("2.3.4", None)
        };
        assert_eq!(gate(&whole), Ok(()));
        let hook_only = NodeFacts { gate: GateFacts { hooks: vec![path], programs: Vec::new() }, ..whole.clone() };
        assert!(gate(&hook_only).is_err_and(|message| message.contains("no container can start")));
        assert!(gate(&NodeFacts { gate: GateFacts::default(), ..whole.clone() }).is_err_and(|message| message.contains("names no drover-gate")));
        assert!(
            gate(&NodeFacts { configuration: Some(RuntimeConfiguration::default()), ..whole })
                .is_err_and(|message| message.contains("base_runtime_spec"))
        );
    }
}
