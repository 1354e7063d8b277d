//! The mounts that the processes of one container see.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{adapters::volumes, api::attestation::ContainerId, domain::processes::ImageVolume};

/// Where CRIU looks for a watched file whose path it does not know (`criu/irmap.c`).
const SEARCHED: [&str; 7] = [
    "/etc",
    "/var/spool",
    "/var/log",
    "/usr/share/dbus-1/system-services",
    "/var/lib/polkit-1/localauthority",
    "/usr/share/polkit-1/actions",
    "/lib/udev",
];

/// The setting that adds to them.
const SEARCH_ALSO: &str = "irmap-scan-path";

/// Most files that are looked through, in the searched folders as in /dev/shm.
const MOST_FILES: usize = 50_000;

/// File systems whose server may not answer, so that a look at a file may never return.
const MAY_HANG: [&str; 6] = ["nfs", "cifs", "smb", "fuse", "ceph", "9p"];

pub(super) struct Mount {
    id: i32,
    pub(super) point: String,
    pub(super) is_image_volume: bool,
    pub(super) may_hang: bool,
}

pub(super) struct Mounts {
    root: PathBuf,
    all: Vec<Mount>,
    /// Device of `/`, as inotify names it: minor in the low 20 bits.
    root_device: Option<u64>,
    criu_settings: PathBuf,
    searched: OnceLock<HashSet<u64>>,
    pub(super) image_volumes: Vec<ImageVolume>,
}

impl Mounts {
    /// Reads the mounts that the process below `/proc/PID` sees.
    pub(super) fn read(process: &Path, container: &ContainerId, criu_settings: &Path) -> io::Result<Self> {
        let root = process.join("root");
        let text = fs::read(process.join("mountinfo"))?;
        let list: procfs::process::MountInfos =
            procfs::FromRead::from_read(String::from_utf8_lossy(&text).as_bytes()).map_err(|error| io::Error::other(error.to_string()))?;
        let mut all = vec![];
        let mut root_device = None;
        let mut image_volumes = vec![];
        for mount in list {
            let point = mount.mount_point.to_string_lossy().into_owned();
            if point == "/" {
                root_device = device(&mount.majmin);
            }
            // containerd keeps them in the container's own folder.
            let is_image_volume = mount.root.contains(&format!("/{}/volumes/", container.container_id));
            let may_hang = MAY_HANG.iter().any(|kind| mount.fs_type.starts_with(kind));
            if is_image_volume && !may_hang {
                let is_empty = fs::read_dir(root.join(point.trim_start_matches('/')))?.next().is_none();
                image_volumes.push(ImageVolume { container: container.name.clone(), path: point.clone(), is_empty });
            }
            all.push(Mount { id: mount.mnt_id, point, is_image_volume, may_hang });
        }
        Ok(Self { root, all, root_device, criu_settings: criu_settings.to_owned(), searched: OnceLock::new(), image_volumes })
    }

    pub(super) fn by_id(&self, id: i32) -> Option<&Mount> {
        self.all.iter().find(|mount| mount.id == id)
    }

    /// Whether a watched file is on the root file system, whose files have no handles that CRIU could open, and not where it looks for their names.
    pub(super) fn is_unseen(&self, device: u64, inode: u64) -> bool {
        self.root_device == Some(device) && !self.searched.get_or_init(|| self.search()).contains(&inode)
    }

    /// Inodes of the files that CRIU finds.
    fn search(&self) -> HashSet<u64> {
        let settings = fs::read_to_string(&self.criu_settings).unwrap_or_default();
        let added = settings.lines().filter_map(|line| line.trim().strip_prefix(SEARCH_ALSO)).map(|path| path.trim_start_matches([' ', '=']).trim());
        let mut found = HashSet::new();
        let mut folders: Vec<PathBuf> = SEARCHED.into_iter().chain(added).map(|path| self.root.join(path.trim_start_matches('/'))).collect();
        found.extend(fs::metadata(self.root.join(".")).map(|root| root.ino()));
        while let Some(path) = folders.pop().filter(|_| found.len() < MOST_FILES) {
            let Ok(file) = fs::symlink_metadata(&path) else { continue };
            found.insert(file.ino());
            if file.is_dir() {
                folders.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
        }
        found
    }

    /// Bytes that the files in /dev/shm claim to have; 0 where nothing is mounted there.
    pub(super) fn shared_memory(&self) -> u64 {
        if !self.all.iter().any(|mount| mount.point == "/dev/shm") {
            return 0;
        }
        volumes::bytes(vec![self.root.join("dev/shm")], MOST_FILES)
    }
}

/// `MAJOR:MINOR` as the kernel packs it.
fn device(majmin: &str) -> Option<u64> {
    let (major, minor) = majmin.split_once(':')?;
    Some(major.parse::<u64>().ok()? << 20 | minor.parse::<u64>().ok()?)
}
