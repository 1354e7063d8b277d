//! A pod with an init container: nothing is frozen before its copy has passed it.

use super::*;
use crate::domain::{keys, replacement::init_images};

impl Walk {
    fn with_init_container() -> Self {
        let mut walk = Self::new();
        let source = walk.observed.source.as_mut().unwrap();
        source.spec.as_mut().unwrap().init_containers =
            serde_json::from_value(serde_json::json!([{"name": "init", "image": "j", "command": ["sh", "-c", "work"]}])).unwrap();
        source.status.as_mut().unwrap().init_container_statuses = serde_json::from_value(serde_json::json!([{"name": "init", "image": "j",
            "ready": true, "restartCount": 0, "imageID": format!("r/j@sha256:{}", "c".repeat(64))}]))
        .unwrap();
        walk
    }

    pub(super) fn give_init_images(&mut self) {
        let images = init_images(&self.migration);
        let spec = self.observed.replacement.as_mut().unwrap().spec.as_mut().unwrap();
        for container in spec.init_containers.iter_mut().flatten() {
            container.image = images.get(&container.name).cloned();
        }
    }

    fn init_image(&self) -> Option<String> {
        self.observed.replacement.as_ref()?.spec.as_ref()?.init_containers.as_ref()?[0].image.clone()
    }
}

#[test]
fn nothing_is_frozen_before_the_copy_has_passed_its_init_containers() {
    let mut walk = Walk::with_init_container();
    walk.settle();
    walk.attest(Role::Source, |s| s.inspected = Some(preflight::inspected(&[], &[])));
    assert_eq!(walk.settle(), Phase::Preparing);
    let recorded = walk.status().source.clone().unwrap().init_containers;
    assert_eq!((recorded[0].command.as_str(), recorded[0].image.contains("@sha256:c")), ("sh", true));
    assert_eq!(walk.init_image().as_deref(), Some(keys::WAITING_IMAGE), "what stands in for it is not there yet");
    walk.attest(Role::Destination, |s| {
        s.prepared = Some(Prepared { at: at(2), push_address: "10.0.0.2:5786".into(), pull_address: String::new() });
    });
    assert_eq!(walk.settle(), Phase::Preparing);
    assert_eq!(walk.init_image(), Some(keys::checkpoint_image("drover/00000000000000000000000000000000", "init")));
    assert!(walk.status().message.contains("init containers"), "{}", walk.status().message);
    let ended =
        serde_json::json!([{"name": "init", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]);
    walk.observed.replacement.as_mut().unwrap().status.as_mut().unwrap().init_container_statuses = serde_json::from_value(ended).unwrap();
    assert_eq!(walk.settle(), Phase::Freezing);
}
