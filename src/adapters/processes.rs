//! The processes of a pod, read from the node's `/proc`: what they have open and mapped, and where their sockets are bound.
//!
//! Everything that is read here was written or chosen by the pod, which may be hostile: names are taken as bytes, no link is followed but those of
//! `/proc` itself, nothing that could block is opened, and all of it ends after [`LIMIT`].

mod files;
mod mounts;
mod network;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub(super) use crate::runc::processes::{is_gone, pids};
use crate::{
    api::attestation::ContainerId,
    domain::processes::{PodFacts, Process},
    ports::{PortError, PortResult},
};
use mounts::Mounts;

/// How long a look may take. A file system that hangs would hold it for ever.
const LIMIT: Duration = Duration::from_secs(10);

/// Most processes of one pod that are looked at.
const MOST_PROCESSES: usize = 4096;

/// Reads `/proc`.
#[derive(Debug, Clone)]
pub struct ProcInspector {
    proc: PathBuf,
    /// CRIU's settings for runc on the node, where an administrator may have named folders to be searched for inotify watches.
    criu_settings: PathBuf,
}

impl ProcInspector {
    /// An inspector of the node whose root file system is at `host_root`; the agent shares its process IDs.
    #[must_use]
    pub fn new(host_root: &Path) -> Self {
        Self { proc: PathBuf::from("/proc"), criu_settings: host_root.join("etc/criu/runc.conf") }
    }

    fn read(&self, containers: &[ContainerId], addresses: &[IpAddr]) -> io::Result<PodFacts> {
        let mut pod = Pod { facts: PodFacts::default(), views: HashMap::new(), network_is_read: false };
        for (pid, container) in self.processes(containers)? {
            match self.read_one(pid, container, addresses, &mut pod) {
                Ok(process) => pod.facts.processes.push(process),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pod.facts)
    }

    fn read_one(&self, pid: i32, container: &ContainerId, addresses: &[IpAddr], pod: &mut Pod) -> io::Result<Process> {
        let folder = self.proc.join(pid.to_string());
        let view = fs::read_link(folder.join("ns/mnt"))?;
        let mounts = if let Some(mounts) = pod.views.get(&view) {
            Arc::clone(mounts)
        } else {
            let mounts = Arc::new(Mounts::read(&folder, container, &self.criu_settings)?);
            pod.facts.image_volumes.extend(mounts.image_volumes.iter().cloned());
            pod.facts.shared_memory = pod.facts.shared_memory.max(mounts.shared_memory());
            pod.views.insert(view, Arc::clone(&mounts));
            mounts
        };
        if !pod.network_is_read {
            network::read(&self.proc, &folder, addresses, &mut pod.facts)?;
            pod.network_is_read = true;
        }
        self.process(pid, &folder, &mounts)
    }

    /// IDs of the processes in these containers' cgroups, with their container. A cgroup's path has the container's ID in it with every runtime and driver.
    fn processes<'c>(&self, containers: &'c [ContainerId]) -> io::Result<Vec<(i32, &'c ContainerId)>> {
        let mut found = vec![];
        for pid in pids(&self.proc)? {
            let Ok(cgroup) = fs::read(self.proc.join(pid.to_string()).join("cgroup")) else { continue };
            let cgroup = String::from_utf8_lossy(&cgroup);
            if let Some(container) = containers.iter().find(|c| !c.container_id.is_empty() && cgroup.contains(&c.container_id)) {
                found.push((pid, container));
            }
        }
        if found.len() > MOST_PROCESSES {
            return Err(io::Error::other(format!("the pod has {} processes; at most {MOST_PROCESSES} are looked at", found.len())));
        }
        found.sort_by_key(|(pid, _)| *pid);
        Ok(found)
    }

    fn process(&self, pid: i32, folder: &Path, mounts: &Mounts) -> io::Result<Process> {
        let status = fs::read(folder.join("status"))?;
        let status = String::from_utf8_lossy(&status);
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim();
        let mut nested_namespaces = vec![];
        // The agent is in the node's own; pods with `hostUsers: false` are refused before.
        if fs::read_link(folder.join("ns/user"))? != fs::read_link(self.proc.join("self/ns/user"))? {
            nested_namespaces.push("user");
        }
        // One ID in the node, one in the container; each namespace inside adds one.
        if field("NSpid").split_whitespace().count() > 2 {
            nested_namespaces.push("pid");
        }
        // In units of 1024 bytes, whatever they are called (proc_pid_status(5)).
        let kibibytes = |name| field(name).split(' ').next().and_then(|count| count.parse::<u64>().ok()).unwrap_or_default();
        Ok(Process {
            pid,
            name: field("Name").to_owned(),
            memory: ["RssAnon", "RssShmem", "VmSwap"].map(kibibytes).iter().sum::<u64>() << 10,
            tracer: field("TracerPid").parse().ok().filter(|tracer| *tracer != 0),
            nested_namespaces,
            files: files::open_files(folder, mounts)?,
            mappings: files::mappings(folder)?,
        })
    }
}

/// A pod that is being read.
struct Pod {
    facts: PodFacts,
    /// Mount namespace → what is mounted there.
    views: HashMap<PathBuf, Arc<Mounts>>,
    /// There is one network namespace a pod.
    network_is_read: bool,
}

/// What to do about a `/proc` that cannot be read, in words that follow the error.
pub(super) fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { " (the agent needs the capability SYS_PTRACE)" } else { "" }
}

impl ProcInspector {
    /// [`crate::ports::inside::Inside::look`]; `sizes` adds up the pod's emptyDir volumes, within the same time.
    ///
    /// # Errors
    /// Permanent where `/proc` or the volumes cannot be read.
    pub async fn look(
        &self,
        containers: &[ContainerId],
        addresses: &[String],
        sizes: impl FnOnce() -> io::Result<u64> + Send + 'static,
    ) -> PortResult<PodFacts> {
        let (reader, containers) = (self.clone(), containers.to_vec());
        let addresses: Vec<IpAddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let reading = tokio::task::spawn_blocking(move || io::Result::Ok(PodFacts { empty_dirs: sizes()?, ..reader.read(&containers, &addresses)? }));
        match tokio::time::timeout(LIMIT, reading).await {
            Ok(Ok(Ok(facts))) => Ok(facts),
            Ok(Ok(Err(error))) => Err(PortError::permanent(format!("the pod's processes and volumes could not be read: {error}{}", remedy(&error)))),
            Ok(Err(error)) => Err(PortError::transient(format!("the look ended early: {error}"))),
            Err(_) => Err(PortError::permanent(format!("the pod was not read within {} s; a file system that it uses may hang", LIMIT.as_secs()))),
        }
    }
}
