//! Who asks the pull door: processes of the node itself, or one in a pod.
//!
//! A process is told by its cgroup, as `/proc/PID/cgroup` names it. Two things keep that from being one prefix. Who reads in a cgroup namespace of its own,
//! as the agent does with cgroup v2, sees paths from there: a neighbour is `/../../pod…/…`, and `kubepods` is not to be seen. And a kubelet with
//! `cgroupsPerQOS: false` makes no cgroups of pods at all: only the container's ID is left.

/// Digits of a container's ID, with every runtime.
const CONTAINER_ID: usize = 64;

/// Digits of a pod's UID, which is a UUID, or the MD5 of a static pod's file.
const POD_UID: usize = 32;

/// Who holds the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Processes of the node itself, and nobody else.
    Node,
    /// A process in a pod, or in another container.
    Contained {
        /// Its cgroup, which names pod or container.
        cgroup: String,
    },
    /// Nobody can say, for this reason.
    Unknown(String),
}

impl Caller {
    /// The kind of it, as metrics count it.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Contained { .. } => "contained",
            Self::Unknown(_) => "unknown",
        }
    }

    /// A process in these cgroups, where the node's first process is in `first`; both as `/proc/PID/cgroup` has them.
    ///
    /// What it shares with the first process is the node's own place, which may itself be a container's: a node of kind is one.
    #[must_use]
    pub fn of_process(cgroups: &str, first: &str) -> Self {
        if !cgroups.lines().any(|line| hierarchy(line).is_some()) {
            return Self::Unknown("the kernel names no cgroup of the process".to_owned());
        }
        let contained = cgroups.lines().filter_map(hierarchy).find(|(controllers, path)| {
            let nodes = first.lines().filter_map(hierarchy).find(|(other, _)| other == controllers).map_or("", |(_, path)| path);
            is_contained(path, nodes)
        });
        contained.map_or(Self::Node, |(_, path)| Self::Contained { cgroup: path.to_owned() })
    }

    /// All who hold the same end: the node's own only where all of them are.
    #[must_use]
    pub fn of_holders(holders: impl IntoIterator<Item = Self>) -> Self {
        let (mut node, mut unknown) = (None, None);
        for holder in holders {
            match holder {
                Self::Node => node = Some(holder),
                Self::Contained { .. } => return holder,
                Self::Unknown(_) => unknown = Some(holder),
            }
        }
        unknown.or(node).unwrap_or_else(|| Self::Unknown("no process holds the connection's other end".to_owned()))
    }
}

/// `4:memory:/a/b` → what is before the path, and the path.
fn hierarchy(line: &str) -> Option<(&str, &str)> {
    let at = line.find(":/")?;
    Some((&line[..at], &line[at + 1..]))
}

fn is_contained(path: &str, nodes: &str) -> bool {
    let (mut own, mut nodes) = (path.split('/').peekable(), nodes.split('/'));
    while own.peek().is_some() && nodes.next() == own.peek().copied() {
        own.next();
    }
    own.any(|folder| {
        // `kubepods-burstable-pod0_1.slice` names all of its parents, `cri-containerd-0f.scope` its runtime.
        let plain = folder.strip_suffix(".slice").or_else(|| folder.strip_suffix(".scope")).unwrap_or(folder);
        let last = plain.rsplit('-').next().unwrap_or(plain);
        plain.split('-').any(|part| part == "kubepods") || is_pod(plain) || is_pod(last) || is_hex(last, CONTAINER_ID)
    })
}

/// The cgroupfs driver keeps the UID's dashes, systemd's makes underscores of them.
fn is_pod(name: &str) -> bool {
    name.strip_prefix("pod").is_some_and(|uid| is_hex(&uid.replace(['-', '_'], ""), POD_UID))
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "92f18e767df54461efa69dbc40ead09920b0fcc6aa8e26974cfa66aa8dae888d";
    const UID: &str = "c1efeaaa-3a1e-4180-8d55-f40b9567e4ac";

    fn label(path: &str, first: &str) -> &'static str {
        Caller::of_process(&format!("0::{path}\n"), &format!("0::{first}\n")).label()
    }

    #[test]
    fn the_nodes_own_processes() {
        for path in [
            "/",
            "/init.scope",
            "/kubelet",
            "/system.slice/containerd.service",
            "/system.slice/crio.service",
            "/system.slice/k3s.service",
            "/system.slice/snap.microk8s.daemon-containerd.service",
            "/runtime.slice/containerd.service",
            "/podruntime/runtime",
            "/user.slice/user-0.slice/session-3.scope",
            "/system.slice/podman-pod.service",
            // From a cgroup namespace of the agent's own.
            "/../../../../system.slice/containerd.service",
            "/../../..",
        ] {
            for first in ["/", "/init.scope", "/../../../../init.scope"] {
                assert_eq!(label(path, first), "node", "{path} beside {first}");
            }
        }
    }

    #[test]
    fn processes_of_pods() {
        let systemd = UID.replace('-', "_");
        for path in [
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}/{ID}/nested"),
            "/kubepods".to_owned(),
            format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{systemd}.slice/cri-containerd-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod{systemd}.slice/crio-{ID}.scope"),
            // A static pod's UID.
            format!("/kubepods/pod{}/{ID}", "0f".repeat(16)),
            // Below the node's own prefix, as kind has it.
            format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{systemd}.slice/cri-containerd-{ID}.scope"),
            format!("/kubelet/kubepods/besteffort/pod{UID}/{ID}"),
            // From a cgroup namespace of the agent's own.
            format!("/../../pod{UID}/{ID}"),
            format!("/../../pod{UID}"),
            format!("/../../kubepods-burstable-pod{systemd}.slice/cri-containerd-{ID}.scope"),
            format!("/../../kubepods-burstable-pod{systemd}.slice"),
            format!("/../cri-containerd-{ID}.scope"),
            // Without cgroups of pods.
            format!("/k8s.io/{ID}"),
            format!("/../{ID}"),
            format!("/system.slice/cri-containerd-{ID}.scope"),
            format!("/docker/{ID}"),
        ] {
            for first in ["/", "/init.scope", "/../../../../init.scope", ""] {
                assert_eq!(label(&path, first), "contained", "{path} beside {first}");
            }
        }
    }

    #[test]
    fn a_node_may_be_a_container_itself() {
        let node = format!("/kubepods/pod{UID}/{ID}");
        let first = format!("{node}/init.scope");
        assert_eq!(label(&format!("{node}/system.slice/containerd.service"), &first), "node");
        assert_eq!(label(&format!("{node}/init.scope"), &first), "node");
        assert_eq!(label(&format!("{node}/kubepods/pod{UID}/{ID}"), &first), "contained");
        assert_eq!(label(&format!("{node}/k8s.io/{ID}"), &node), "contained");
    }

    #[test]
    fn one_hierarchy_is_enough() {
        let first = "9:name=systemd:/\n4:memory:/\n0::/\n";
        let container = format!("9:name=systemd:/k8s.io/{ID}\n4:memory:/\n0::/\n");
        assert_eq!(Caller::of_process(&container, first), Caller::Contained { cgroup: format!("/k8s.io/{ID}") });
        assert_eq!(Caller::of_process(first, first), Caller::Node);
        // Another hierarchy's place is not this one's.
        assert_eq!(Caller::of_process(&container, &format!("0::/k8s.io/{ID}\n")).label(), "contained");
        for nothing in ["", "\n", "garbage"] {
            assert_eq!(Caller::of_process(nothing, first).label(), "unknown", "{nothing:?}");
        }
    }

    #[test]
    fn whoever_else_holds_it_counts() {
        let (contained, unknown) = (Caller::Contained { cgroup: "/kubepods".into() }, Caller::Unknown("gone".into()));
        for (holders, wanted) in [
            (vec![Caller::Node, Caller::Node], "node"),
            (vec![Caller::Node, contained.clone(), Caller::Node], "contained"),
            (vec![unknown.clone(), contained], "contained"),
            (vec![Caller::Node, unknown.clone(), Caller::Node], "unknown"),
            (vec![], "unknown"),
        ] {
            assert_eq!(Caller::of_holders(holders.clone()).label(), wanted, "{holders:?}");
        }
    }
}
