//! How many pods are on their way to a node at the same time: each of them takes a slot there before it is frozen, and gives it back at its end.
//!
//! A slot is a Lease in Drover's own namespace, as many of a node as its limit. It is taken by compare-and-swap, so that two managers, or one with an old
//! view, never let in one more. A Lease whose holder has ended, or is gone, is free, whoever has failed to give it back.

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt as _;

use super::ids::derived_name;

/// Label of such a Lease: the node, in so far as a label can name it.
pub const ARRIVALS: &str = "drover.dev/arrivals";
/// Of a node's name in a label, whose limit is 63.
const LABEL_STEM: usize = 56;
/// Of a node's name in a Lease's, which has a number behind it.
const NAME_STEM: usize = 200;

/// Whether a pod may come to a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Permit {
    /// There is no limit, or the migration has its permit.
    #[default]
    Held,
    /// There is one for it.
    Available,
    /// Others have all of them.
    Refused {
        /// Who they are.
        holders: Vec<String>,
    },
}

/// A permit for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name of its Lease.
    pub name: String,
    /// Who has it; none where nobody has.
    pub holder: Option<Holder>,
    /// Version of the Lease that was read; none where it has to be made.
    pub version: Option<String>,
}

/// A Migration that has a slot: its namespace, name and UID, as the Lease's `holderIdentity` names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.name, self.uid)
    }
}

impl Holder {
    fn parse(identity: &str) -> Option<Self> {
        let mut parts = identity.splitn(3, '/').map(str::to_owned);
        Some(Self { namespace: parts.next()?, name: parts.next()?, uid: parts.next()? })
    }
}

/// Value of the label [`ARRIVALS`] for a node.
#[must_use]
pub fn label(node: &str) -> String {
    derived_name(node, LABEL_STEM, node)
}

/// The slots of a node, of which these Leases are there. Those past the limit, which was larger once, are none.
#[must_use]
pub fn slots(node: &str, limit: u32, leases: &[Lease]) -> Vec<Slot> {
    let stem = derived_name(node, NAME_STEM, node);
    let slot = |number: u32| {
        let name = format!("arrivals-{stem}-{number}");
        let lease = leases.iter().find(|lease| lease.name_any() == name);
        let identity = lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref());
        Slot { name, holder: identity.and_then(Holder::parse), version: lease.and_then(|lease| lease.metadata.resource_version.clone()) }
    };
    (0..limit).map(slot).collect()
}

/// The slot to take for a migration, given which holders are known to have ended; none where it has one, or there is none.
#[must_use]
pub fn free<'p>(slots: &'p [Slot], uid: &str, has_ended: impl Fn(&Holder) -> bool) -> (Permit, Option<&'p Slot>) {
    let holds = |slot: &&Slot| slot.holder.as_ref().is_some_and(|holder| holder.uid == uid);
    if slots.is_empty() || slots.iter().any(|slot| holds(&slot)) {
        return (Permit::Held, None);
    }
    let free = slots.iter().find(|slot| slot.holder.is_none()).or_else(|| slots.iter().find(|slot| slot.holder.as_ref().is_some_and(&has_ended)));
    if let Some(slot) = free {
        return (Permit::Available, Some(slot));
    }
    let holders = slots.iter().flat_map(|slot| &slot.holder).map(|holder| format!("{}/{}", holder.namespace, holder.name));
    (Permit::Refused { holders: holders.collect() }, None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lease(node: &str, number: u32, holder: Option<&str>) -> Lease {
        let name = format!("arrivals-{}-{number}", derived_name(node, NAME_STEM, node));
        serde_json::from_value(json!({"metadata": {"name": name, "resourceVersion": "7"}, "spec": {"holderIdentity": holder}})).unwrap()
    }

    fn ask(leases: &[Lease], limit: u32, uid: &str, ended: &[&str]) -> (Permit, Option<Slot>) {
        let slots = slots("n2", limit, leases);
        let (permit, slot) = free(&slots, uid, |holder| ended.contains(&holder.uid.as_str()));
        (permit, slot.cloned())
    }

    #[test]
    fn the_first_slot_that_nobody_has_is_taken() {
        let (permit, slot) = ask(&[], 2, "a", &[]);
        assert_eq!((permit, slot.unwrap().version), (Permit::Available, None), "no Lease is there yet");
        let leases = [lease("n2", 0, Some("d/m/b")), lease("n2", 1, None)];
        let (permit, slot) = ask(&leases, 2, "a", &[]);
        let slot = slot.unwrap();
        assert_eq!((permit, slot.version.as_deref(), slot.name.ends_with("-1")), (Permit::Available, Some("7"), true));
        assert_eq!(ask(&leases, 2, "b", &[]), (Permit::Held, None), "it has one");
        assert_eq!(ask(&leases, 0, "a", &[]), (Permit::Held, None), "no limit");
    }

    #[test]
    fn a_slot_is_free_once_its_holder_has_ended() {
        let leases = [lease("n2", 0, Some("d/m/b")), lease("n2", 1, Some("e/n/c"))];
        assert_eq!(ask(&leases, 2, "a", &[]).0, Permit::Refused { holders: vec!["d/m".into(), "e/n".into()] });
        assert_eq!(ask(&leases, 2, "a", &["c"]).1.unwrap().holder.unwrap().uid, "c");
        assert_eq!(ask(&leases, 1, "a", &["c"]).0, Permit::Refused { holders: vec!["d/m".into()] }, "the limit is smaller now");
        assert_eq!(ask(&[lease("n2", 0, Some("garbage"))], 1, "a", &[]).0, Permit::Available, "nobody can have it");
    }

    #[test]
    fn every_node_has_names_of_its_own() {
        let long = "n".repeat(253);
        let (one, other) = (format!("{}a", &long[1..]), format!("{}b", &long[1..]));
        assert!(label(&one).len() <= 63 && label(&one) != label(&other));
        let name = |node: &str| slots(node, 1, &[])[0].name.clone();
        assert!(name(&one).len() <= 253 && name(&one) != name(&other));
    }
}
