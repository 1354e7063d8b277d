//! The entries that are changed, each by a small pure function.

mod timers;

use crate::ports::Mending;

/// One entry that is rewritten: the new content may have any length, the rest of the archive does not move within itself.
pub(super) struct Mender<'a> {
    /// Path of the entry.
    pub(super) entry: &'static str,
    /// Largest content that is taken into memory, in bytes.
    pub(super) cap: u64,
    /// The change.
    pub(super) change: Box<Change<'a>>,
}

/// The new content, or what is wrong with the old one.
type Change<'a> = dyn Fn(&[u8]) -> Result<Vec<u8>, String> + 'a;

/// A config.dump is some hundred bytes. The cap keeps a hostile one out of the memory of an agent that serves the whole node.
const CONFIG_DUMP_CAP: u64 = 1 << 20;

/// About 100 bytes an open file.
const FILES_CAP: u64 = 64 << 20;

/// Everything that is mended.
pub(super) fn menders(mending: &Mending) -> Vec<Mender<'_>> {
    vec![
        Mender { entry: "config.dump", cap: CONFIG_DUMP_CAP, change: Box::new(|content| rewrite_base_image(content, &mending.base_image)) },
        Mender { entry: "checkpoint/files.img", cap: FILES_CAP, change: Box::new(timers::rearm) },
    ]
}

/// Makes `rootfsImageRef` the canonical base image: containerd writes whichever name its store lists first for the image, which may be one that the
/// destination does not have (MEASURED.md 5). CRI-O's own form, a bare image ID, stays: its restore accepts nothing else.
fn rewrite_base_image(content: &[u8], base_image: &str) -> Result<Vec<u8>, String> {
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(content).map_err(|error| format!("is no JSON object: {error}"))?;
    let crio = config
        .get("rootfsImageRef")
        .and_then(serde_json::Value::as_str)
        .is_some_and(|id| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    if !crio {
        config.insert("rootfsImageRef".to_owned(), base_image.into());
    }
    serde_json::to_vec(&config).map_err(|error| format!("cannot be written again: {error}"))
}

/// `uid:gid` of the process in an OCI spec, none for root.
pub(super) fn user_of(spec: &[u8]) -> Result<Option<String>, String> {
    let spec: serde_json::Value = serde_json::from_slice(spec).map_err(|error| format!("is no JSON: {error}"))?;
    let number = |field: &str| spec.pointer(&format!("/process/user/{field}")).and_then(serde_json::Value::as_u64).unwrap_or(0);
    Ok(Some((number("uid"), number("gid"))).filter(|(uid, _)| *uid != 0).map(|(uid, gid)| format!("{uid}:{gid}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_base_image_changes() {
        let before = br#"{"id":"x","rootfsImageRef":"sha256:00","checkpointedTime":"2026-11-23T06:00:00.123456789Z"}"#;
        let after: serde_json::Value = serde_json::from_slice(&rewrite_base_image(before, "docker.io/library/redis@sha256:0f").unwrap()).unwrap();
        let wanted = serde_json::json!({"id": "x", "rootfsImageRef": "docker.io/library/redis@sha256:0f", "checkpointedTime": "2026-11-23T06:00:00.123456789Z"});
        assert_eq!(after, wanted);
        assert!(rewrite_base_image(b"[]", "x").is_err());
    }

    #[test]
    fn crios_image_id_stays() {
        let before = format!(r#"{{"rootfsImageRef":"{}"}}"#, "0f".repeat(32));
        assert_eq!(rewrite_base_image(before.as_bytes(), "x").unwrap(), before.as_bytes());
    }

    #[test]
    fn the_user_is_that_of_the_process() {
        assert_eq!(user_of(br#"{"process":{"user":{"uid":999,"gid":1000}}}"#), Ok(Some("999:1000".to_owned())));
        assert_eq!(user_of(br#"{"process":{"user":{"uid":0,"gid":0}}}"#), Ok(None));
    }
}
