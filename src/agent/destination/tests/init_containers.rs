//! Pods with init containers: what stands in for their images, and for how long.

use super::*;
use crate::domain::{image::go_architecture, init_container::stand_in};

impl Course {
    fn with_init_container(self, command: &str) -> Self {
        self.node.manager_writes(|status| {
            let init = InitContainer { name: "init".into(), image: base(), command: command.into(), ..InitContainer::default() };
            status.source.as_mut().unwrap().init_containers = vec![init];
        });
        self
    }
}

#[tokio::test]
async fn an_image_that_does_nothing_stands_in_and_may_start_before_the_restore() {
    let course = Course::new().with_init_container("/bin/sh");
    course.look().unwrap();
    let pulled = format!("ensure {}", base());
    assert_eq!(course.trace(), [pulled.as_str(), "adopt_base", pulled.as_str(), "adopt_base", "store init", "attest prepared"]);
    let mut claims = course.markers().claims(POD).unwrap();
    claims.sort();
    assert_eq!(claims, [("app".to_owned(), Claim::Waiting), ("init".to_owned(), Claim::Open)]);
}

#[tokio::test]
async fn a_program_that_cannot_be_stood_in_for_ends_the_migration_before_any_freeze() {
    let course = Course::new().with_init_container("../run");
    course.look().unwrap();
    assert!(course.said().prepared.is_none());
    assert!(course.failure().contains("init container init cannot be passed over: its program"), "{}", course.failure());
}

#[tokio::test]
async fn its_tag_names_its_own_image_before_anything_is_said_to_be_restored() {
    let course = Course::restored().with_init_container("/bin/sh");
    course.markers().admit(POD, "init", "5f1c22aa-0000-4000-8000-000000000001").unwrap();
    course.look().unwrap();
    assert!(course.said().restored.is_some());
    let image = |name: &str| format!("remove {}", keys::checkpoint_image(&repository(), name));
    assert_eq!(course.trace()[..4], ["repoint app".to_owned(), image("app"), "repoint init".to_owned(), image("init")]);
}

#[tokio::test]
async fn its_claim_says_nothing_of_the_restore() {
    let course = Course::released(Phase::Restoring).with_init_container("/bin/sh");
    course.markers().admit(POD, "init", "5f1c22aa-0000-4000-8000-000000000001").unwrap();
    course.asked_to_revoke();
    let _ = course.look();
    let proof = course.said().never_started.expect("nothing was taken");
    assert_eq!(proof.containers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["app"]);
}

#[test]
fn the_program_of_the_image_does_nothing_and_ends_well() {
    use std::os::unix::fs::PermissionsExt as _;
    let config = json!({"rootfs": {"diff_ids": []}});
    let image = stand_in(br#"{"config": {}, "layers": []}"#, &config, &["/bin/sh".into()], go_architecture()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    tar::Archive::new(image.layer.bytes.as_slice()).unpack(folder.path()).unwrap();
    let program = folder.path().join("bin/sh");
    assert_eq!(std::fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
    let out = std::process::Command::new(program).args(["-c", "exit 7"]).output().unwrap();
    assert!(out.status.success() && out.stdout.is_empty(), "{out:?}");
}
