//! What a registry tells of itself: the notifications of distribution (docs of distribution, "Notifications"; events v1 and v2 differ in their media type
//! alone, `notifications/event.go`).

use serde::Deserialize;

use super::{
    ids::{Digest, is_repository},
    keys,
};

/// Media types of what a checkpoint's tag can name.
const MANIFESTS: [&str; 2] = [super::image::MANIFEST_MEDIA_TYPE, "application/vnd.docker.distribution.manifest.v2+json"];

/// An image that a registry says was pushed, of one of Drover's repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// ID of the registry's event: one that is delivered again has the same.
    pub id: String,
    /// `drover/<32 hex>`.
    pub repository: String,
    /// Tag, which is the container's name.
    pub tag: String,
    /// Digest of the manifest.
    pub digest: Digest,
}

#[derive(Deserialize)]
struct Envelope {
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    id: String,
    #[serde(default)]
    action: String,
    #[serde(default)]
    target: Target,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Target {
    media_type: String,
    digest: String,
    repository: String,
    tag: String,
}

/// The pushes of checkpoint images among the events of an envelope. Blobs, other repositories, deletions, pulls and the tar of a pod's volumes are none.
///
/// # Errors
/// Where it is no envelope.
pub fn pushes(envelope: &[u8]) -> Result<Vec<Pushed>, serde_json::Error> {
    let Envelope { events } = serde_json::from_slice(envelope)?;
    Ok(events.into_iter().filter_map(push).collect())
}

fn push(event: Event) -> Option<Pushed> {
    let target = event.target;
    let is_image = event.action == "push" && MANIFESTS.contains(&target.media_type.as_str());
    let is_checkpoint = is_repository(&target.repository) && !target.tag.is_empty() && target.tag != keys::VOLUMES_TAG;
    let digest = Digest::parse(&target.digest).ok()?;
    (is_image && is_checkpoint).then_some(Pushed { id: event.id, repository: target.repository, tag: target.tag, digest })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_what_the_registry_tells_only_pushes_of_checkpoints_are_taken() {
        let golden = include_bytes!("../../tests/golden/registry-notification.json");
        let pushed = pushes(golden).expect("an envelope");
        assert_eq!(pushed.len(), 1);
        assert!(is_repository(&pushed[0].repository) && pushed[0].tag == "counter" && !pushed[0].id.is_empty(), "{pushed:?}");

        let document: serde_json::Value = serde_json::from_slice(golden).expect("JSON");
        let changed = |field: &str, value: &str| {
            let mut document = document.clone();
            *document.pointer_mut(field).expect(field) = json!(value);
            pushes(document.to_string().as_bytes()).expect("an envelope").len()
        };
        for (field, value) in [
            ("/events/0/action", "delete"),
            ("/events/0/target/mediaType", "application/octet-stream"),
            ("/events/0/target/repository", "library/redis"),
            ("/events/0/target/repository", "drover/../x"),
            ("/events/0/target/tag", ""),
            ("/events/0/target/tag", keys::VOLUMES_TAG),
            ("/events/0/target/digest", "sha256:0"),
        ] {
            assert_eq!(changed(field, value), 0, "{field} {value}");
        }
    }

    #[test]
    fn what_is_no_envelope_is_refused_and_an_event_of_few_words_is_none() {
        assert!(pushes(b"{").is_err() && pushes(b"[]").is_err() && pushes(b"{}").is_err());
        assert_eq!(pushes(br#"{"events":[{}]}"#).expect("an envelope"), []);
    }
}
