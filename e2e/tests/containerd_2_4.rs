//! Nodes whose containerd restores no checkpoint image any more: LAB_CONTAINERD=2.4.2 e2e/lab up, and LANE=auto e2e/lab install.

use kube::ResourceExt as _;

use drover::{
    api::{MigrationSpec, Outcome, migration::Lane},
    domain::keys,
};

use crate::support::{
    counter::assert_went_on,
    lab,
    migrations::{assert_outcome, replacement, status, to},
    pods::counter,
    with_namespace,
};

#[test]
fn the_image_lane_is_refused_with_its_reason() {
    with_namespace("no-image-lane", |namespace| async move {
        let before = namespace.run(&counter("counter", "n1", 0, 50)).await;
        let migration = namespace.make(MigrationSpec { lane: Lane::Image, ..to("counter", "n2") }).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Failed);
        let message = status(&migration).message;
        assert!(message.contains("removed in 2.4") && message.contains("use the runtime lane"), "{message}");
        let after = namespace.pods().get("counter").await.unwrap();
        assert_eq!(after.uid(), before.uid(), "nothing was touched");
    });
}

#[test]
fn whoever_asks_for_no_lane_gets_the_one_that_the_nodes_have() {
    with_namespace("auto-lane", |namespace| async move {
        namespace.run(&counter("counter", "n1", 4, 50)).await;
        let before = namespace.follow("counter", "c").await;
        before.beyond(5).await;
        let (code, said) = lab::drover(&["check", "counter", "--to", "n2", "-n", &namespace.name]);
        assert!(code == Some(0) && said.contains("lane runtime: every node that can take the pod has it"), "{code:?} {said}");
        let migration = namespace.ask("counter", keys::MIGRATE_TO, "n2").await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        assert_eq!(status(&migration).lane, Some(Lane::Runtime));
        let after = namespace.follow(&replacement(&migration), "c").await;
        after.beyond(before.last() + 5).await;
        assert_went_on(&before.lines(), &after.lines(), &migration);
        namespace.assert_no_leftovers(&migration).await;
    });
}
