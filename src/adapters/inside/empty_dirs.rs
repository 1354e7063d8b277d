//! A pod's emptyDir volumes, where its kubelet keeps them (`pkg/volume/emptydir`, FACTS.md 6).

use std::{fs, io, path::Path};

use crate::adapters::volumes::{self, Volume};

/// Below a pod's folder: the plugin's qualified name, escaped.
const FOLDER: &str = "volumes/kubernetes.io~empty-dir";

/// Before a volume's name in the tar. No volume may have a dot in its name (a DNS label), so /dev/shm's name is none of these.
const PREFIX: &str = "emptydir.";

/// Most files whose length is added up.
const MOST_FILES: usize = 200_000;

/// The volumes of a pod, sorted by name; none where it has none.
///
/// # Errors
/// What the file system says.
pub(super) fn of(pods: &Path, pod_uid: &str) -> io::Result<Vec<Volume>> {
    let entries = match fs::read_dir(pods.join(pod_uid).join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries?,
    };
    let mut found = vec![];
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|name| io::Error::other(format!("{} is no volume's name", name.display())))?;
        found.push(Volume { name: format!("{PREFIX}{name}"), folder: entry.path() });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Bytes that the files in these folders claim to have; of a pod with too many files, those of the first.
pub(super) fn bytes(volumes: &[Volume]) -> u64 {
    volumes::bytes(volumes.iter().map(|volume| volume.folder.clone()).collect(), MOST_FILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pods_own_are_found() {
        let pods = tempfile::tempdir().unwrap();
        let below = |uid: &str, path: &str| pods.path().join(uid).join("volumes").join(path);
        for folder in [below("a", "kubernetes.io~empty-dir/b"), below("a", "kubernetes.io~empty-dir/a"), below("a", "kubernetes.io~projected/c")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::create_dir_all(below("z", "kubernetes.io~empty-dir/d")).unwrap();
        fs::write(below("a", "kubernetes.io~empty-dir/b/file"), b"12345").unwrap();
        let found = of(pods.path(), "a").unwrap();
        assert_eq!(found.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["emptydir.a", "emptydir.b"]);
        assert_eq!((bytes(&found), of(pods.path(), "none").unwrap()), (5, vec![]));
    }
}
