//! What a node's registry tells its agent, and what others cannot tell it. Whichever bus is used.

use std::sync::Arc;

use drover::{
    adapters::direct::{DirectAnnouncer, DirectSubscription},
    api::{Attestation, AttestationSpec, Outcome, Role, attestation::attestation_name, migration::condition},
    domain::registry_event::{MigrationRef, RegistryEvent},
    ports::bus::Subscription,
};
use kube::{ResourceExt as _, api::PostParams};

use crate::contract;
use crate::support::{
    agents,
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

/// Kafka's own turn is in kafka.rs.
#[test]
fn the_real_api_server_is_a_bus() {
    with_namespace("bus", |namespace| async move {
        let golden = contract::golden();
        let of = MigrationRef { namespace: namespace.name.clone(), ..golden.migration.clone() };
        let spec = AttestationSpec {
            migration: of.name.clone(),
            migration_uid: of.uid.clone(),
            node_name: golden.node.clone(),
            pod_uid: "0f1c22aa-0000-4000-8000-000000000000".into(),
            role: Role::Destination,
        };
        let attestation = Attestation::new(&attestation_name(&of.name, Role::Destination), spec);
        namespace.attestations().create(&PostParams::default(), &attestation).await.unwrap();
        let event = |digit: &str| RegistryEvent { migration: of.clone(), ..contract::event(digit) };
        let announcer = DirectAnnouncer::new(agents::client("n2").await);
        let subscribe = || Arc::new(DirectSubscription::start(namespace.client.clone())) as Arc<dyn Subscription>;
        contract::holds(contract::Bus { announcer: &announcer, subscribe: &subscribe }, ["a", "b", "c"].map(event)).await;
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
