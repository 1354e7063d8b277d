//! What a node's registry tells its agent, and what others cannot tell it. Whichever bus is used.

use drover::api::{Outcome, migration::condition};
use kube::ResourceExt as _;

use crate::support::{
    kafka::counted_by_agent,
    lab,
    migrations::{assert_outcome, status},
    pods::counter,
    with_namespace,
};

#[test]
fn a_migration_says_that_its_images_were_confirmed() {
    with_namespace("confirmed", |namespace| async move {
        namespace.run(&counter("c", "n1", 0, 50)).await;
        let migration = namespace.migrate("c", "n2").await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        let status = status(&migration);
        let [voted] = &status.containers[..] else { panic!("{:?}", status.containers) };
        let [known] = &status.confirmations[..] else { panic!("{:?}", status.confirmations) };
        assert_eq!((&known.container, &known.digest, known.bytes), (&voted.name, &voted.digest, voted.bytes));
        let confirmed = status.conditions.iter().find(|it| it.type_ == condition::REGISTRY_CONFIRMED).expect("the condition");
        assert_eq!((confirmed.status.as_str(), confirmed.reason.as_str()), ("True", known.bus.as_str()), "{confirmed:?}");
    });
}

#[test]
fn who_is_not_the_registry_is_not_listened_to() {
    with_namespace("unlistened", |_| async move {
        let refused = "drover_registry_notifications_total{result=\"unauthorized\"}";
        let before = counted_by_agent("n2", refused);
        let tell = |header: &str| {
            let body = r#"{"events":[{"id":"1","action":"push","target":{"mediaType":"application/vnd.oci.image.manifest.v1+json"}}]}"#;
            lab::on_node("n2", &format!("curl -s -o /dev/null -w '%{{http_code}}' {header} -d '{body}' http://127.0.0.1:5788/notifications"))
        };
        assert_eq!(tell(""), "401");
        assert_eq!(tell("-H 'Authorization: Bearer 00000000000000000000000000000000'"), "401");
        assert_eq!(counted_by_agent("n2", refused), before + 2);
        let elsewhere = lab::on_node("n1", "curl -s -o /dev/null -w '%{http_code}' --max-time 2 http://10.88.0.12:5788/notifications || true");
        assert_eq!(elsewhere, "000", "nobody listens on the node's address");
    });
}
