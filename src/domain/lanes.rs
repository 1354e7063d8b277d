//! Which lanes a node has, and whether it has the gate: facts in, words with remedies out.

pub mod crio;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::api::node_profile::{CriuStatus, GateStatus, LaneStatus, NodeProfileStatus};
use crio::CrioFacts;

/// Name of the lane that restores through CRI CreateContainer.
pub const IMAGE: &str = "image";
/// Name of the lane that restores through an OCI runtime of Drover's.
pub const RUNTIME: &str = "runtime";

/// Name of the RuntimeClass of the runtime lane, and of the container runtime's handler, as drover node setup makes it.
pub const RUNTIME_CLASS: &str = "drover";

/// Oldest CRIU that containerd takes, and that restores what runc has checkpointed.
const OLDEST_CRIU: Version = Version(3, 16, 0);
/// What to do where something of Drover's lacks on a node.
const SETUP: &str = "run drover node setup --apply on it and restart containerd";

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
    /// The gate, for the default runtime.
    pub gate: GateFacts,
    /// The runtime lane's runtime.
    pub handler: HandlerFacts,
    /// The same and the gate by CRI-O's files; nothing where the node does not run it.
    pub crio: CrioFacts,
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
    /// What the node's memory has room for, in bytes, besides the processes that are restored from it.
    pub free_memory_bytes: u64,
}

/// What is on the node of the gate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateFacts {
    /// Paths of the createRuntime hooks in a runtime's base spec.
    pub hooks: Vec<String>,
    /// Which of them are programs on the host.
    pub programs: Vec<String>,
}

/// What is on the node of the handler `drover`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandlerFacts {
    /// Whether what it runs is a program on the host.
    pub is_program: bool,
    /// The gate, for its containers.
    pub gate: GateFacts,
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
    /// Whatever the runtime's shim takes; null where nothing is set.
    #[serde(default)]
    options: Option<BTreeMap<String, serde_json::Value>>,
}

impl Handler {
    fn base_spec(&self) -> Option<&str> {
        Some(self.base_runtime_spec.as_str()).filter(|path| !path.is_empty())
    }
}

impl RuntimeConfiguration {
    /// The base spec of the default runtime, none where containerd generates it.
    #[must_use]
    pub fn base_spec(&self) -> Option<&str> {
        self.containerd.runtimes.get(&self.containerd.default_runtime_name)?.base_spec()
    }

    /// The base spec of the handler `drover`, none where there is no such handler or containerd generates it.
    #[must_use]
    pub fn handlers_base_spec(&self) -> Option<&str> {
        self.containerd.runtimes.get(RUNTIME_CLASS)?.base_spec()
    }

    /// What the handler `drover` runs (`BinaryName`): none where there is no such handler, empty where it runs what containerd chooses.
    #[must_use]
    pub fn handlers_program(&self) -> Option<&str> {
        let options = self.containerd.runtimes.get(RUNTIME_CLASS)?.options.as_ref();
        Some(options.and_then(|options| options.get("BinaryName")?.as_str()).unwrap_or_default())
    }
}

/// The node's profile, but for addresses, conditions and time, which are the agent's.
#[must_use]
pub fn profile(facts: NodeFacts) -> NodeProfileStatus {
    let lanes = vec![lane(IMAGE, image_lane(&facts)), lane(RUNTIME, runtime_lane(&facts))];
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
        free_memory_bytes: Some(facts.free_memory_bytes),
        ..NodeProfileStatus::default()
    }
}

fn lane(name: &str, found: Result<(), String>) -> LaneStatus {
    LaneStatus { name: name.to_owned(), available: found.is_ok(), message: found.err().unwrap_or_default() }
}

/// Whether containerd restores in CRI CreateContainer: from 2.1 on, by an opt-in from 2.2.7 and 2.3.4 on, no more from 2.4 on (FACTS.md 2.1).
fn image_lane(facts: &NodeFacts) -> Result<(), String> {
    if facts.runtime == crio::NAME {
        return Err(crio::image_lane(facts));
    }
    let (found, version) = (&facts.runtime_version, containerd_version(facts)?);
    if version < Version(2, 1, 0) {
        return Err(format!("containerd {found} cannot restore; upgrade it to 2.3 (2.3 is maintained until 2028)"));
    }
    if version >= Version(2, 4, 0) {
        return Err(format!("containerd {found} restores no more (removed in 2.4); use the runtime lane (drover node setup) or install 2.3"));
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
    new_enough(&facts.criu)
}

/// Whether the handler `drover` restores: containerd only has to start it, so any version will do that knows base specs and shims of today.
fn runtime_lane(facts: &NodeFacts) -> Result<(), String> {
    if facts.runtime == crio::NAME {
        return Err(crio::runtime_lane(facts));
    }
    if containerd_version(facts)? < Version(1, 7, 0) {
        return Err(format!("containerd {} is too old; upgrade it to 1.7 or newer", facts.runtime_version));
    }
    let Some(configuration) = &facts.configuration else {
        return Err(format!(
            "the runtime does not tell its configuration, so nobody knows whether it has the handler {RUNTIME_CLASS}; if it has not, {SETUP}"
        ));
    };
    let Some(program) = configuration.handlers_program() else {
        return Err(format!("containerd has no runtime handler {RUNTIME_CLASS}; {SETUP}"));
    };
    if program.rsplit('/').next() != Some("drover-runc") {
        return Err(format!("the handler {RUNTIME_CLASS} has BinaryName {program:?}, which is not drover-runc; {SETUP}"));
    }
    if !facts.handler.is_program {
        return Err(format!("the handler {RUNTIME_CLASS} runs {program}, which is no program on the node; {SETUP}"));
    }
    gated_by(&format!("the handler {RUNTIME_CLASS}"), configuration.handlers_base_spec(), &facts.handler.gate)?;
    new_enough(&facts.criu)
}

fn containerd_version(facts: &NodeFacts) -> Result<Version, String> {
    if facts.runtime.is_empty() {
        return Err("the runtime does not answer on its CRI socket".to_owned());
    }
    if facts.runtime != "containerd" {
        return Err(format!("this version of Drover freezes pods through containerd only; the node runs {}", facts.runtime));
    }
    Version::parse(&facts.runtime_version).ok_or_else(|| format!("containerd's version {:?} cannot be read", facts.runtime_version))
}

fn new_enough(criu: &CriuStatus) -> Result<(), String> {
    match Version::parse(&criu.version) {
        None => Err("CRIU is not installed on the node, or the agent cannot run it there".to_owned()),
        Some(version) if version < OLDEST_CRIU => Err(format!("CRIU {} is too old; 3.16 or newer is needed", criu.version)),
        Some(_) => Ok(()),
    }
}

/// Whether the runtime runs the gate; of the facts only its configuration and what is on the node of the gate count.
#[must_use]
pub fn is_gated(facts: &NodeFacts) -> bool {
    gate(facts).is_ok()
}

fn gate(facts: &NodeFacts) -> Result<(), String> {
    if facts.runtime == crio::NAME {
        return Err(crio::gate(facts));
    }
    let Some(configuration) = &facts.configuration else {
        return Err(format!("the runtime does not tell its configuration, so nobody knows whether it runs the gate; if it does not, {SETUP}"));
    };
    gated_by("the default runtime", configuration.base_spec(), &facts.gate)
}

/// Whether a runtime's base spec names the gate, and that is a program.
fn gated_by(runtime: &str, spec: Option<&str>, found: &GateFacts) -> Result<(), String> {
    let Some(spec) = spec else {
        return Err(format!("{runtime} has no base_runtime_spec; {SETUP}"));
    };
    let Some(hook) = found.hooks.iter().find(|path| path.rsplit('/').next() == Some("drover-gate")) else {
        return Err(format!("{spec} names no drover-gate as createRuntime hook; {SETUP}"));
    };
    if found.programs.contains(hook) {
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
    fn the_runtime_lane_needs_its_handler_whole() {
        let path = "/usr/local/lib/drover/drover-gate".to_owned();
        let gate = GateFacts { hooks: vec![path.clone()], programs: vec![path] };
        let with = |version: &str, handler: serde_json::Value| {
            let json = serde_json::json!({"containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {"options": null}, "drover": handler}}});
            let configuration = serde_json::from_value(json).unwrap();
            let handler = HandlerFacts { is_program: true, gate: gate.clone() };
            NodeFacts { configuration: Some(configuration), handler, ..facts(version, None) }
        };
        let options = serde_json::json!({"BinaryName": "/usr/local/lib/drover/drover-runc", "SystemdCgroup": true});
        let whole = |version| with(version, serde_json::json!({"baseRuntimeSpec": "/etc/b.json", "options": options}));
        for version in ["1.7.0", "v2.0.5", "2.3.4", "v2.4.2", "3.0.0"] {
            assert_eq!(runtime_lane(&whole(version)), Ok(()), "{version}");
        }
        let shown = profile(whole("2.4.2"));
        assert_eq!(shown.lanes.iter().map(|lane| (lane.name.as_str(), lane.available)).collect::<Vec<_>>(), [(IMAGE, false), (RUNTIME, true)]);
        assert!(shown.lanes[0].message.contains("use the runtime lane"), "{}", shown.lanes[0].message);
        let cases = [
            (whole("1.6.30"), "too old"),
            (NodeFacts { runtime: "cri-o".to_owned(), ..whole("1.35.0") }, "cannot freeze pods through CRI-O yet"),
            (NodeFacts { runtime: "docker".to_owned(), ..whole("29.0") }, "containerd only"),
            (NodeFacts { configuration: None, ..whole("2.4.2") }, "does not tell its configuration"),
            (facts("2.4.2", None), "no runtime handler drover; run drover node setup --apply"),
            (with("2.4.2", serde_json::json!({"baseRuntimeSpec": "/etc/b.json"})), "is not drover-runc"),
            (with("2.4.2", serde_json::json!({"baseRuntimeSpec": "/etc/b.json", "options": {"BinaryName": "/usr/bin/runc"}})), "is not drover-runc"),
            (with("2.4.2", serde_json::json!({"options": options})), "the handler drover has no base_runtime_spec"),
            (NodeFacts { handler: HandlerFacts { is_program: false, gate: gate.clone() }, ..whole("2.4.2") }, "which is no program on the node"),
            (NodeFacts { handler: HandlerFacts { is_program: true, ..HandlerFacts::default() }, ..whole("2.4.2") }, "names no drover-gate"),
            (NodeFacts { criu: CriuStatus::default(), ..whole("2.4.2") }, "CRIU is not installed"),
        ];
        for (found, words) in cases {
            assert!(runtime_lane(&found).is_err_and(|message| message.contains(words)), "{words}: {:?}", runtime_lane(&found));
        }
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
