//! A container's cgroup, from its own files: CPU time, and the processes in it.
//!
//! containerd has no metrics for a *restored* container: its shim takes the cgroup of the process that `create` leaves behind, and a restore leaves none
//! until `start` (seen with 2.3.4 on the lab: `Tasks.Metrics` is empty). Without a number there is no vote (R2), hence no second hop.

use std::{
    io,
    path::{Path, PathBuf},
};

/// CPU time in nanoseconds of the cgroup at `cgroups_path` (as in the OCI spec) below the host's `/sys/fs/cgroup`.
///
/// # Errors
/// Where neither cgroup version has it there.
pub(super) fn cpu_nanos(root: &Path, cgroups_path: &str) -> io::Result<u64> {
    let folder = folder(cgroups_path);
    for controller in ["cpuacct", "cpu,cpuacct", "cpuacct,cpu"] {
        match std::fs::read_to_string(root.join(controller).join(&folder).join("cpuacct.usage")) {
            Ok(text) => return text.trim().parse().map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let stat = std::fs::read_to_string(root.join(&folder).join("cpu.stat"))?;
    let micros: Option<u64> = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok());
    micros.map(|micros| micros.saturating_mul(1000)).ok_or_else(|| io::Error::other("cpu.stat has no usage_usec"))
}

/// Whether nothing is in the cgroup or below it, of one that was there, whichever PID namespace it is of: the pids controller counts also what is being
/// forked or has not been reaped (kernel documentation, "Process Number Controller"). A cgroup with a process cannot be removed, so one that is there no
/// more has none; its parent must be there, which shows that it was looked for in the right place.
///
/// # Errors
/// Of kind `NotFound` where neither it nor its parent is there, or where nothing counts.
pub(super) fn is_empty(root: &Path, cgroups_path: &str) -> io::Result<bool> {
    let folder = folder(cgroups_path);
    let counted = |folder: &Path| {
        let found = [root.join("pids"), root.to_owned()].into_iter().map(|root| root.join(folder).join("pids.current"));
        found.into_iter().find(|path| path.exists())
    };
    match counted(&folder) {
        Some(count) => Ok(std::fs::read_to_string(count)?.trim() == "0"),
        None => folder
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .and_then(counted)
            .map(|_| true)
            .ok_or_else(|| io::ErrorKind::NotFound.into()),
    }
}

/// IDs of the processes in the cgroup and below it, as the PID namespace of the reader has them.
///
/// # Errors
/// Where neither cgroup version has it there.
pub(super) fn members(root: &Path, cgroups_path: &str) -> io::Result<Vec<i32>> {
    let folder = folder(cgroups_path);
    let found = [root.join("freezer"), root.to_owned()].into_iter().map(|root| root.join(&folder)).find(|folder| folder.is_dir());
    let mut folders = vec![found.ok_or(io::ErrorKind::NotFound)?];
    let mut members = vec![];
    while let Some(folder) = folders.pop() {
        let listed = std::fs::read_to_string(folder.join("cgroup.procs"))?;
        members.extend(listed.lines().filter_map(|pid| pid.trim().parse::<i32>().ok()));
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(members)
}

/// The folder of a cgroup: a path as it is (cgroupfs driver), or `slice:prefix:name` (systemd driver), where each dash of the slice is a level.
fn folder(cgroups_path: &str) -> PathBuf {
    let mut parts = cgroups_path.splitn(3, ':');
    let (Some(slice), Some(prefix), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
        return cgroups_path.trim_start_matches('/').into();
    };
    let stem = slice.trim_end_matches(".slice");
    let mut folder: PathBuf = stem.match_indices('-').map(|(at, _)| format!("{}.slice", &stem[..at])).collect();
    folder.push(slice);
    folder.push(format!("{prefix}-{name}.scope"));
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_drivers_name_a_folder() {
        assert_eq!(folder("/kubepods/burstable/pod1/c0"), Path::new("kubepods/burstable/pod1/c0"));
        let wanted = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-c0.scope";
        assert_eq!(folder("kubepods-burstable-pod1_2.slice:cri-containerd:c0"), Path::new(wanted));
    }

    #[test]
    fn both_versions_are_read() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("cpu,cpuacct/a")).unwrap();
        std::fs::write(root.path().join("cpu,cpuacct/a/cpuacct.usage"), "17\n").unwrap();
        assert_eq!(cpu_nanos(root.path(), "/a").unwrap(), 17);
        std::fs::create_dir_all(root.path().join("b")).unwrap();
        std::fs::write(root.path().join("b/cpu.stat"), "usage_usec 5\nuser_usec 1\n").unwrap();
        assert_eq!(cpu_nanos(root.path(), "/b").unwrap(), 5000);
        assert!(cpu_nanos(root.path(), "/c").is_err());
    }

    #[test]
    fn the_processes_of_the_cgroups_below_are_the_containers_too() {
        let root = tempfile::tempdir().unwrap();
        for (folder, pids) in [("freezer/a", "7\n"), ("freezer/a/below", "9\n11\n"), ("freezer/b", ""), ("c", "13\n")] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
            std::fs::write(root.path().join(folder).join("cgroup.procs"), pids).unwrap();
        }
        assert_eq!(members(root.path(), "/a").unwrap(), [7, 9, 11]);
        assert!(members(root.path(), "/b").unwrap().is_empty());
        assert_eq!(members(root.path(), "/c").unwrap(), [13], "cgroup v2");
        assert_eq!(members(root.path(), "/d").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_cgroup_that_is_there_no_more_has_nothing_in_it() {
        let root = tempfile::tempdir().unwrap();
        for (folder, count) in [("pids/a", "0\n"), ("pids/b", "2\n"), ("c", "0\n"), ("pids/pod", "3\n")] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
            std::fs::write(root.path().join(folder).join("pids.current"), count).unwrap();
        }
        assert!(is_empty(root.path(), "/a").unwrap() && !is_empty(root.path(), "/b").unwrap() && is_empty(root.path(), "/c").unwrap());
        assert!(is_empty(root.path(), "/pod/container").unwrap(), "removed, and its pod's is there");
        for elsewhere in ["/d", "/other/container"] {
            assert_eq!(is_empty(root.path(), elsewhere).unwrap_err().kind(), io::ErrorKind::NotFound, "{elsewhere}");
        }
    }
}
