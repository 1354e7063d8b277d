//! What kube-scheduler and its extenders say to each other (`k8s.io/kube-scheduler/extender/v1`): JSON whose keys are the names of Go's fields.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The highest score that a node may get (Go: `MaxExtenderPriority`); kube-scheduler multiplies it by ten and by the extender's weight.
pub const MAX_PRIORITY: i64 = 10;

/// The request of `filter` and of `prioritize`. With `nodeCacheCapable` the nodes come as names, else in full.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderArgs {
    /// The pod that is to be placed.
    pub pod: Pod,
    /// The candidates in full.
    #[serde(default)]
    pub nodes: Option<NodeList>,
    /// The candidates' names.
    #[serde(default)]
    pub node_names: Option<Vec<String>>,
}

/// A `v1.NodeList` as it came, also with fields that this program does not know: what passes is given back unchanged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeList {
    /// The nodes; Go writes null for none.
    #[serde(default)]
    pub items: Option<Vec<Value>>,
    /// What else the list has.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The answer of `filter`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderFilterResult {
    /// The nodes that pass, where they came in full.
    pub nodes: Option<NodeList>,
    /// The nodes that pass, where they came as names. A name that was not asked about is an error to kube-scheduler.
    pub node_names: Option<Vec<String>>,
    /// Nodes that may pass once pods are preempted there: never any of ours.
    pub failed_nodes: BTreeMap<String, String>,
    /// Nodes that do not pass, whatever is preempted there, each with its reason.
    pub failed_and_unresolvable_nodes: BTreeMap<String, String>,
    /// Why nothing could be found out; empty where something was.
    pub error: String,
}

/// One node's score, 0 to [`MAX_PRIORITY`]; `prioritize` answers a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostPriority {
    /// The node.
    pub host: String,
    /// Its score.
    pub score: i64,
}

/// The request of `preempt`: what would have to go on which node, in full or, with `nodeCacheCapable`, as UIDs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderPreemptionArgs {
    /// Node → its victims.
    #[serde(default)]
    pub node_name_to_victims: Option<BTreeMap<String, Victims>>,
    /// Node → its victims' UIDs.
    #[serde(default)]
    pub node_name_to_meta_victims: Option<BTreeMap<String, MetaVictims>>,
}

/// The pods that would go from a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Victims {
    /// The pods in full.
    #[serde(default)]
    pub pods: Option<Vec<Value>>,
    /// How many PodDisruptionBudgets that would violate.
    #[serde(default, rename = "NumPDBViolations")]
    pub num_pdb_violations: i64,
}

/// The pods that would go from a node, by UID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MetaVictims {
    /// The pods.
    #[serde(default)]
    pub pods: Option<Vec<MetaPod>>,
    /// How many PodDisruptionBudgets that would violate.
    #[serde(default, rename = "NumPDBViolations")]
    pub num_pdb_violations: i64,
}

/// A pod by its UID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaPod {
    /// The UID.
    #[serde(rename = "UID")]
    pub uid: String,
}

/// The answer of `preempt`: the nodes on which what was proposed may go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderPreemptionResult {
    /// Node → its victims' UIDs.
    pub node_name_to_meta_victims: BTreeMap<String, MetaVictims>,
}

impl NodeList {
    fn items(&self) -> &[Value] {
        self.items.as_deref().unwrap_or_default()
    }
}

/// A node's name; empty where it has none, which [`ExtenderArgs::read`] refuses.
pub(super) fn name_of(node: &Value) -> &str {
    node.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

impl ExtenderArgs {
    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong with it, by the field's name.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        let args: Self = serde_json::from_slice(body).map_err(|e| format!("the ExtenderArgs cannot be read: {e}"))?;
        if args.nodes.is_none() && args.node_names.is_none() {
            return Err("the ExtenderArgs cannot be read: neither Nodes nor NodeNames is there".to_owned());
        }
        if let Some(index) = args.nodes.iter().flat_map(NodeList::items).position(|node| name_of(node).is_empty()) {
            return Err(format!("the ExtenderArgs cannot be read: Nodes.items[{index}].metadata.name is missing"));
        }
        Ok(args)
    }

    /// The candidates' names, in their order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        match &self.node_names {
            Some(names) => names.iter().map(String::as_str).collect(),
            None => self.nodes.iter().flat_map(NodeList::items).map(name_of).collect(),
        }
    }

    /// A candidate in full, where it came so.
    pub(super) fn node(&self, name: &str) -> Option<&Value> {
        self.nodes.iter().flat_map(NodeList::items).find(|node| name_of(node) == name)
    }
}

impl ExtenderPreemptionArgs {
    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        let args: Self = serde_json::from_slice(body).map_err(|e| format!("the ExtenderPreemptionArgs cannot be read: {e}"))?;
        if args.node_name_to_victims.is_none() && args.node_name_to_meta_victims.is_none() {
            return Err("the ExtenderPreemptionArgs cannot be read: neither NodeNameToVictims nor NodeNameToMetaVictims is there".to_owned());
        }
        Ok(args)
    }
}

impl From<Victims> for MetaVictims {
    fn from(victims: Victims) -> Self {
        let uid = |pod: Value| pod.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        let pods = victims.pods.map(|pods| pods.into_iter().map(|pod| MetaPod { uid: uid(pod) }).collect());
        Self { pods, num_pdb_violations: victims.num_pdb_violations }
    }
}

impl ExtenderFilterResult {
    /// Every candidate passes but those that are refused, each for its reason.
    pub(super) fn sorted(args: ExtenderArgs, mut refusal: impl FnMut(&str) -> Option<String>) -> Self {
        let failed: BTreeMap<String, String> = args.names().into_iter().filter_map(|name| Some((name.to_owned(), refusal(name)?))).collect();
        let passes = |name: &str| !failed.contains_key(name);
        let nodes = args.nodes.map(|mut list| {
            if let Some(items) = &mut list.items {
                items.retain(|node| passes(name_of(node)));
            }
            list
        });
        let node_names = args.node_names.map(|mut names| {
            names.retain(|name| passes(name));
            names
        });
        Self { nodes, node_names, failed_and_unresolvable_nodes: failed, ..Self::default() }
    }

    /// How many nodes pass.
    #[must_use]
    pub fn passing(&self) -> usize {
        self.node_names.as_ref().map_or_else(|| self.nodes.iter().flat_map(NodeList::items).count(), Vec::len)
    }

    /// Nothing could be found out.
    #[must_use]
    pub fn failed(error: String) -> Self {
        Self { error, ..Self::default() }
    }
}
