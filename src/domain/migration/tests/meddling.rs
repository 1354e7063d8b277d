//! Others have a say in what pods look like; a waiting pod must be as it was asked for.

use super::*;

#[test]
fn a_sidecar_that_was_injected_rolls_back_before_the_freeze() {
    for keep_name in [false, true] {
        let mut walk = Walk::new();
        walk.migration.spec.keep_name = keep_name;
        walk.walk_to(Phase::Preparing);
        let waiting = if keep_name { &mut walk.observed.placeholder } else { &mut walk.observed.replacement };
        let spec = waiting.as_mut().unwrap().spec.as_mut().unwrap();
        spec.containers.push(serde_json::from_value(serde_json::json!({"name": "mesh", "image": "m"})).unwrap());
        assert_eq!(walk.settle(), Phase::Finishing);
        assert_eq!(walk.status().verdict, Some(Verdict::Rollback));
        assert!(walk.status().message.contains("Preparing: an admission webhook or policy has changed"), "{}", walk.status().message);
        assert!(walk.status().message.contains("spec.containers: mesh was added"), "{}", walk.status().message);
        assert!(walk.observed.source_status().frozen.is_none());
    }
}
