//! Init containers, which did their work on the source: the replacement must go through them without doing it again.
//!
//! The pod's spec stays as it is, since it also says what happens after a reboot of the destination. So the image of each init container is one of our own in
//! its place: the base image, with a program that does nothing where the container's command leads. Like a checkpoint it is named by tag, and the tag is
//! pointed to the base image once the pod is restored: what starts anew later does its work again.
//!
//! # Sources
//! Which program runs: `EntryPoint` and `Cmd` against `command` and `args` (kubernetes.io, "Define a Command and Arguments for a Container"). A name
//! without a slash is looked for in the container's PATH, for which containerd has a default (`oci.WithDefaultPathEnv`).

use k8s_openapi::api::core::v1::{Container, EnvVar};
use serde_json::{Value, json};

use super::image::{Blob, LAYER_MEDIA_TYPE, blob, digest_of};
use crate::api::migration::InitContainer;

/// containerd's, where an image says nothing (`pkg/oci/spec_opts.go`).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Media type of a layer of Docker's manifests that is not compressed (distribution, `manifest/schema2`).
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// What the destination's agent must know of an init container.
#[must_use]
pub fn recorded(container: &Container, image: String) -> InitContainer {
    let first = |words: &Option<Vec<String>>| words.iter().flatten().next().cloned().unwrap_or_default();
    InitContainer {
        name: container.name.clone(),
        image,
        command: first(&container.command),
        argument: first(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        search_path: path_variable(container).and_then(|path| path.value.clone()).unwrap_or_default(),
        mount_paths: container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.clone()).collect(),
    }
}

fn path_variable(container: &Container) -> Option<&EnvVar> {
    container.env.iter().flatten().find(|variable| variable.name == "PATH")
}

/// Why it cannot be told, before the image is known, which program runs: field of the container, message, remedy.
#[must_use]
pub fn obstacles(container: &Container) -> Vec<(&'static str, String, &'static str)> {
    let mut found = vec![];
    let known = recorded(container, String::new());
    let varies = |word: &str| word.contains("$(");
    if varies(&known.command) || known.command.is_empty() && varies(&known.argument) {
        found.push((".command", "its program's name is made of variables".to_owned(), "write the program's name out"));
    }
    let elsewhere =
        path_variable(container).is_some_and(|path| path.value_from.is_some()) || container.env_from.as_ref().is_some_and(|e| !e.is_empty());
    if elsewhere && !known.command.starts_with('/') {
        found.push((".command", "where its program lies may depend on a ConfigMap or Secret (PATH)".to_owned(), "write the program's whole path"));
    }
    if known.command.starts_with('/')
        && let Err(message) = places(&known, &json!({}))
    {
        found.push((".command", message, MOUNTED_REMEDY));
    }
    found
}

/// What to do about a program that lies in a volume.
const MOUNTED_REMEDY: &str = "call it by a program of the image, as in [sh, /scripts/init.sh]";

/// Absolute paths at which a program must lie to be the one that the container starts. `config` is the image's.
///
/// # Errors
/// Why there is no such place: the container starts nothing, or a mount covers it.
pub fn places(container: &InitContainer, config: &Value) -> Result<Vec<String>, String> {
    let first = |field: &str| config.pointer(&format!("/config/{field}/0")).and_then(Value::as_str).unwrap_or_default();
    let words = [container.command.as_str(), first("Entrypoint"), container.argument.as_str(), first("Cmd")];
    let program = words.into_iter().find(|word| !word.is_empty()).ok_or("neither the container nor its image names a program")?;
    let found: Vec<String> = if program.starts_with('/') {
        vec![normal(program)?]
    } else if program.contains('/') {
        let of_image = config.pointer("/config/WorkingDir").and_then(Value::as_str).unwrap_or_default();
        let folder = if container.working_dir.is_empty() { of_image } else { &container.working_dir };
        vec![normal(&format!("/{folder}/{program}"))?]
    } else {
        let folders = search_path(container, config);
        folders.split(':').filter(|folder| folder.starts_with('/')).map(|folder| normal(&format!("{folder}/{program}"))).collect::<Result<_, _>>()?
    };
    let covers = |mount: &String, place: &str| {
        let mount = mount.trim_end_matches('/');
        place.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for place in &found {
        if let Some(mount) = container.mount_paths.iter().find(|mount| covers(mount, place)) {
            return Err(format!("its program {place} lies in the volume that is mounted at {mount}"));
        }
    }
    if found.is_empty() { Err(format!("its program {program} is in no folder of its PATH")) } else { Ok(found) }
}

fn search_path(container: &InitContainer, config: &Value) -> String {
    if !container.search_path.is_empty() {
        return container.search_path.clone();
    }
    let variables = config.pointer("/config/Env").and_then(Value::as_array);
    let path = variables.into_iter().flatten().filter_map(Value::as_str).find_map(|variable| variable.strip_prefix("PATH="));
    path.filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH).to_owned()
}

/// Without `.`, empty parts and a way up.
fn normal(path: &str) -> Result<String, String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(format!("its program {path:?} is no plain path"));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// An image that does nothing in a base image's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandIn {
    /// The one layer above the base image's.
    pub layer: Blob,
    /// The base image's config with that layer.
    pub config: Blob,
    /// The base image's manifest with both; its media type is the same.
    pub manifest: Blob,
}

/// Puts a program that does nothing at these places of a base image. User, environment and working folder stay the image's, so that whatever the kubelet
/// and the runtime check of them holds.
///
/// # Errors
/// Where manifest or config are none that we know, or there is no program for this architecture (in Go's words).
pub fn stand_in(manifest: &[u8], config: &Value, places: &[String], architecture: &str) -> Result<StandIn, String> {
    let program = no_op(architecture).ok_or_else(|| format!("there is no program that does nothing for architecture {architecture:?}"))?;
    let layer = layer(places, &program).map_err(|error| format!("the layer cannot be made: {error}"))?;
    let mut config = config.clone();
    let diff_ids = config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut).ok_or("the image's config names no layers")?;
    diff_ids.push(json!(layer.digest.as_str()));
    // As many entries that are not empty as there are layers, where there is a history at all (image-spec, config.md).
    if let Some(history) = config.pointer_mut("/history").and_then(Value::as_array_mut) {
        history.push(json!({"created_by": "drover", "comment": "does nothing: the pod's init container has done its work before the move"}));
    }
    let config = blob(&config);
    let mut manifest: Value = serde_json::from_slice(manifest).map_err(|error| format!("the image's manifest cannot be parsed: {error}"))?;
    let is_docker = manifest.pointer("/mediaType").and_then(Value::as_str).is_some_and(|kind| kind.contains("docker"));
    let layers = manifest.pointer_mut("/layers").and_then(Value::as_array_mut).ok_or("the image's manifest names no layers")?;
    let kind = if is_docker { DOCKER_LAYER } else { LAYER_MEDIA_TYPE };
    layers.push(json!({"mediaType": kind, "digest": layer.digest.as_str(), "size": layer.bytes.len()}));
    let descriptor = manifest.pointer_mut("/config").and_then(Value::as_object_mut).ok_or("the image's manifest names no config")?;
    descriptor.insert("digest".into(), json!(config.digest.as_str()));
    descriptor.insert("size".into(), json!(config.bytes.len()));
    Ok(StandIn { layer, config, manifest: blob(&manifest) })
}

fn layer(places: &[String], program: &[u8]) -> std::io::Result<Blob> {
    let mut tar = tar::Builder::new(vec![]);
    for place in places {
        let mut header = tar::Header::new_gnu();
        header.set_size(program.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, place.trim_start_matches('/'), program)?;
    }
    let bytes = tar.into_inner()?;
    Ok(Blob { digest: digest_of(&bytes), bytes })
}

/// A static ELF program whose one act is `exit(0)`. Made by hand, since a linker's smallest is a thousand times larger and there would have to be one for
/// each architecture. Layout: ELF-64 specification, headers of 64 and 56 bytes; numbers of the call: Linux, `asm/unistd.h`.
fn no_op(architecture: &str) -> Option<Vec<u8>> {
    const HEADERS: u64 = 64 + 56;
    const BASE: u64 = 0x40_0000;
    let (machine, code): (u16, &[u8]) = match architecture {
        // xor edi, edi; mov eax, 60; syscall
        "amd64" => (62, &[0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]),
        // mov x0, #0; mov x8, #93; svc #0
        "arm64" => (183, &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4]),
        _ => return None,
    };
    let size = HEADERS + code.len() as u64;
    // 64 bits, little-endian, version 1.
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // An executable.
    elf.extend(2u16.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for value in [BASE + HEADERS, 64, 0] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    // Sizes of the headers, one program header, no sections.
    for value in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(value.to_le_bytes());
    }
    // To be loaded, readable and executable.
    elf.extend(1u32.to_le_bytes());
    elf.extend(5u32.to_le_bytes());
    for value in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(code);
    Some(elf)
}

#[cfg(test)]
mod tests;
