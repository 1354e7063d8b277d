//! What is said of a node of CRI-O: what Drover's set-up has left there, what lacks, and that no pod moves all the same.
//!
//! Set-up is all that there is for CRI-O. Nothing freezes or dumps through it, and none of this has met a real one.

use super::{NodeFacts, RUNTIME_CLASS};

/// What is on a node of Drover's for CRI-O, by CRI-O's files. What CRI-O itself has read of them it does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CrioFacts {
    /// Which file of CRI-O's cannot be read, and why. Nothing else is known then.
    pub unreadable: Option<String>,
    /// What the handler `drover` runs (`runtime_path`): none where no file names the handler, empty where its file names no program.
    pub handler: Option<String>,
    /// Whether that is a program on the host.
    pub is_program: bool,
    /// The hook file that names the gate for createRuntime, in a folder that CRI-O reads.
    pub hook: Option<String>,
    /// Whether the gate that it names is a program on the host.
    pub has_gate: bool,
    /// Whether drover-runc would find runc there.
    pub has_runc: bool,
}

/// The name that CRI-O has in CRI.
pub const NAME: &str = "cri-o";

/// Why CRI-O's own file comes first: set-up refuses it.
const MEND: &str = "CRI-O does not start with a file that it cannot read either: mend it first";
/// What to do where something of Drover's lacks on such a node.
const SETUP: &str = "run drover node setup --container-runtime cri-o --apply on it and restart CRI-O";
const YET: &str = "Drover cannot freeze pods through CRI-O yet (experimental: set-up only)";

/// Why the image lane is not there.
pub(super) fn image_lane(facts: &NodeFacts) -> String {
    format!("the node runs CRI-O {}, and this version of Drover freezes and restores pods through containerd only", facts.runtime_version)
}

/// Why the runtime lane is not there, whatever is set up.
pub(super) fn runtime_lane(facts: &NodeFacts) -> String {
    let version = &facts.runtime_version;
    match lacks(&facts.crio) {
        None => format!("the handler {RUNTIME_CLASS} is set up in the files of the node's CRI-O {version}, but {YET}"),
        Some(lack) => format!("{YET}; besides, for CRI-O {version} {lack}"),
    }
}

/// What lacks, and what to do.
fn lacks(found: &CrioFacts) -> Option<String> {
    remedied(found, lacks_handler(found).or_else(|| lacks_gate(found)))
}

fn remedied(found: &CrioFacts, lack: Option<String>) -> Option<String> {
    let unreadable = found.unreadable.as_ref().map(|unreadable| format!("{unreadable}; {MEND}"));
    unreadable.or_else(|| lack.map(|lack| format!("{lack}; {SETUP}")))
}

fn lacks_handler(found: &CrioFacts) -> Option<String> {
    match found.handler.as_deref() {
        None => Some(format!("no file below /etc/crio names a runtime handler {RUNTIME_CLASS}")),
        Some(program) if program.rsplit('/').next() != Some("drover-runc") => {
            Some(format!("the handler {RUNTIME_CLASS} has runtime_path {program:?}, which is not drover-runc"))
        }
        Some(program) if !found.is_program => Some(format!("the handler {RUNTIME_CLASS} runs {program}, which is no program on the node")),
        Some(_) if !found.has_runc => Some("there is no runc on the node, which drover-runc runs: CRI-O's own crun does not do".to_owned()),
        Some(_) => None,
    }
}

/// What is said of the gate, which is never counted on.
pub(super) fn gate(facts: &NodeFacts) -> String {
    match (remedied(&facts.crio, lacks_gate(&facts.crio)), &facts.crio.hook) {
        (None, Some(hook)) => format!("{hook} has CRI-O run the gate, which was never seen at work there and is not counted on; {YET}"),
        (lack, _) => format!("{YET}; besides, {}", lack.unwrap_or_default()),
    }
}

fn lacks_gate(found: &CrioFacts) -> Option<String> {
    match &found.hook {
        None => Some("no hook file in a folder that CRI-O reads names drover-gate for createRuntime".to_owned()),
        Some(hook) if !found.has_gate => Some(format!("{hook} names a drover-gate that is no program on the node")),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::profile;
    use super::*;

    fn whole() -> CrioFacts {
        CrioFacts {
            unreadable: None,
            handler: Some("/usr/local/lib/drover/drover-runc".to_owned()),
            is_program: true,
            hook: Some("/usr/share/containers/oci/hooks.d/drover-gate.json".to_owned()),
            has_gate: true,
            has_runc: true,
        }
    }

    fn node(crio: CrioFacts) -> NodeFacts {
        NodeFacts { runtime: NAME.to_owned(), runtime_version: "1.35.0".to_owned(), crio, ..NodeFacts::default() }
    }

    #[test]
    fn nothing_is_available_however_much_is_set_up() {
        for facts in [whole(), CrioFacts::default()] {
            let shown = profile(node(facts));
            assert_eq!(shown.runtime, "cri-o");
            assert!(shown.lanes.iter().all(|lane| !lane.available) && !shown.gate.installed);
            assert!(shown.lanes[0].message.contains("the node runs CRI-O 1.35.0") && shown.lanes[0].message.contains("containerd only"));
            for message in [&shown.lanes[1].message, &shown.gate.message] {
                assert!(message.contains("cannot freeze pods through CRI-O yet (experimental: set-up only)"), "{message}");
                assert!(!message.contains("restart containerd"), "{message}");
            }
        }
    }

    #[test]
    fn what_is_there_and_what_lacks_is_said() {
        let runtime = |facts: CrioFacts| runtime_lane(&node(facts));
        let is_set_up = runtime(whole());
        assert!(
            is_set_up.starts_with("the handler drover is set up in the files of the node's CRI-O 1.35.0, but Drover cannot freeze"),
            "{is_set_up}"
        );
        assert!(!is_set_up.contains("node setup"), "{is_set_up}");
        let cases = [
            (CrioFacts { handler: None, ..whole() }, "no file below /etc/crio names a runtime handler drover"),
            (CrioFacts { handler: Some("/usr/bin/crun".to_owned()), ..whole() }, r#"has runtime_path "/usr/bin/crun", which is not drover-runc"#),
            (CrioFacts { handler: Some(String::new()), ..whole() }, r#"has runtime_path "", which is not drover-runc"#),
            (CrioFacts { is_program: false, ..whole() }, "which is no program on the node"),
            (CrioFacts { has_runc: false, ..whole() }, "there is no runc on the node"),
            (CrioFacts { hook: None, ..whole() }, "names drover-gate for createRuntime"),
            (CrioFacts { has_gate: false, ..whole() }, "hooks.d/drover-gate.json names a drover-gate that is no program"),
        ];
        for (facts, words) in cases {
            let message = runtime(facts);
            assert!(message.contains(words) && message.contains("run drover node setup --container-runtime cri-o --apply"), "{words}: {message}");
        }
        let gate_of = |facts: CrioFacts| gate(&node(facts));
        assert!(gate_of(whole()).contains("is not counted on"), "{}", gate_of(whole()));
        assert!(gate_of(CrioFacts { hook: None, ..whole() }).contains("names drover-gate for createRuntime; run drover node setup"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_said_instead_of_what_would_lack() {
        let broken = CrioFacts { unreadable: Some("/etc/crio/crio.conf cannot be read: line 3 is no TOML".to_owned()), ..CrioFacts::default() };
        for message in [runtime_lane(&node(broken.clone())), gate(&node(broken))] {
            assert!(message.contains("/etc/crio/crio.conf cannot be read: line 3 is no TOML; CRI-O does not start"), "{message}");
            assert!(!message.contains("names") && !message.contains("run drover node setup"), "{message}");
        }
    }
}
