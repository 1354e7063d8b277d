//! Drover with Kafka as its readiness bus: `e2e/lab up --with kafka && e2e/lab install --with kafka`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use drover::{
    adapters::kafka::{Bus, KafkaAnnouncer, KafkaSettings, KafkaSubscription, Sasl, Topics},
    api::{Migration, MigrationSpec, Phase, migration::condition},
    domain::registry_event::RegistryEvent,
    metrics::Metrics,
    ports::bus::Subscription,
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::contract;
use crate::support::{
    Namespace,
    agents::{Part, ready},
    eventually,
    kafka::{DEAD_LETTERS, MIGRATIONS, REGISTRY, assert_installed, counted_by_managers, records, send, unsettled},
    lab,
    migrations::{status, to},
    moving::{Moment, Moving},
    with_namespace,
};

/// Word that is not read at once arrives within this time of the broker's return.
const RETURN: Duration = Duration::from_secs(30);

fn uid(migration: &Migration) -> String {
    migration.uid().expect("a UID")
}

#[track_caller]
fn assert_confirmed(migration: &Migration) {
    let conditions = status(migration).conditions;
    let confirmed = conditions.iter().find(|it| it.type_ == condition::REGISTRY_CONFIRMED).expect("the condition");
    assert_eq!((confirmed.status.as_str(), confirmed.reason.as_str()), ("True", "Kafka"), "{confirmed:?}");
}

/// The phases that other systems were told of, once each.
fn told_phases(migration: &Migration) -> Vec<String> {
    let mut told: Vec<(String, String)> = vec![];
    for event in records(MIGRATIONS, Some(&uid(migration))) {
        let (id, phase) = (event["id"].as_str().unwrap().to_owned(), event["data"]["phase"].as_str().unwrap().to_owned());
        if !told.iter().any(|(known, _)| *known == id) {
            told.push((id, phase));
        }
    }
    told.into_iter().map(|(_, phase)| phase).collect()
}

#[test]
fn a_migration_is_confirmed_by_kafka_and_other_systems_hear_of_each_phase() {
    assert_installed();
    with_namespace("kafka", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 0, to("c", "n2")).await;
        moving.migrates().await;
        let migration = namespace.migrations().get(&moving.name()).await.unwrap();
        assert_confirmed(&migration);
        let [event] = &records(REGISTRY, Some(&uid(&migration)))[..] else { panic!("one event: {:?}", records(REGISTRY, Some(&uid(&migration)))) };
        let voted = &status(&migration).containers[0];
        assert_eq!((&event["container"], &event["digest"], &event["node"]), (&json!(voted.name), &json!(voted.digest), &json!("n2")));
        assert!(!event.to_string().contains(&status(&migration).destination.unwrap().repository), "the repository's name is a capability");
        eventually(RETURN, || (unsettled() != 0).then(|| format!("{} records are not settled", unsettled())));
        let phases: Vec<_> = status(&migration).phases.iter().map(|timing| timing.phase.to_string()).collect();
        eventually(RETURN, || (told_phases(&migration) != phases).then(|| format!("{:?} of {phases:?}", told_phases(&migration))));
        let last = records(MIGRATIONS, Some(&uid(&migration))).pop().unwrap();
        assert_eq!((&last["data"]["outcome"], &last["specversion"]), (&json!("Migrated"), &json!("1.0")));
    });
}

/// The broker is gone from this phase on.
async fn moves_without(namespace: &Namespace, phase: Phase) {
    let mut moving = Moving::begin(namespace, 0, to("c", "n2")).await;
    namespace.until_phase(&moving.name(), phase).await;
    let back = lab::Restore(|| drop(lab::try_lab(&["start-part", "kafka"])));
    lab::lab(&["stop-part", "kafka"]);
    moving.migrates().await;
    drop(back);
    let migration = namespace.migrations().get(&moving.name()).await.unwrap();
    // Nothing is lost: what could not be told is told now, though nobody needs it any more.
    eventually(RETURN, || records(REGISTRY, Some(&uid(&migration))).is_empty().then(|| "the registry's event".to_owned()));
    eventually(RETURN, || (told_phases(&migration).last().map(String::as_str) != Some("Done")).then(|| format!("{:?}", told_phases(&migration))));
    eventually(RETURN, || (unsettled() != 0).then(|| format!("{} records are not settled", unsettled())));
}

#[test]
fn kafka_that_goes_while_the_pod_is_frozen_stops_nothing() {
    assert_installed();
    with_namespace("kafka-frozen", |namespace| async move { moves_without(&namespace, Phase::Checkpointing).await });
}

/// An event as the golden file has it, about this migration.
fn event_of(migration: &Migration, change: impl FnOnce(&mut Value)) -> String {
    let mut event = serde_json::to_value(contract::golden()).unwrap();
    event["migration"] = json!({"namespace": migration.namespace(), "name": migration.name_any(), "uid": uid(migration)});
    event["container"] = json!("c");
    change(&mut event);
    event.to_string()
}

#[test]
fn what_is_forged_repeated_or_unreadable_changes_nothing_and_is_counted() {
    assert_installed();
    with_namespace("forged", |namespace| async move {
        let counts = || {
            ["wrong_digest", "wrong_node", "unknown_migration", "unknown_container", "malformed"]
                .map(|result| counted_by_managers(&format!("drover_registry_events_total{{result=\"{result}\"}}")))
        };
        let (before, letters) = (counts(), records(DEAD_LETTERS, None).len());
        let mut moving = Moving::begin(&namespace, 0, MigrationSpec { freeze_budget_seconds: 120, ..to("c", "n2") }).await;
        moving.hold(Moment::BeforeVote).await;
        let migration = moving.migration.clone();
        let key = uid(&migration);
        // Whoever has an agent's rights may write this; the broker stops nobody else. The digest is one that nobody has voted for: it is noted, then dropped.
        let as_agent = ["--user", "drover-agent"];
        let tell = |value: &str, more: &[&str]| send(REGISTRY, &key, value, more).unwrap();
        tell(&event_of(&migration, |_| {}), &["--user", "drover-agent", "--times", "10"]);
        tell(
            &event_of(&migration, |event| {
                event["node"] = json!("n1");
                event["digest"] = json!(format!("sha256:{}", "b".repeat(64)));
            }),
            &as_agent,
        );
        tell(&event_of(&migration, |event| event["container"] = json!("other")), &as_agent);
        tell(&event_of(&migration, |event| event["migration"]["uid"] = json!("00000000-0000-4000-8000-000000000000")), &as_agent);
        tell("{\"version\": 1, \"node\": ", &as_agent);
        eventually(RETURN, || (unsettled() != 0).then(|| format!("{} records are not settled", unsettled())));
        moving.go_on();
        moving.migrates().await;
        let migration = namespace.migrations().get(&moving.name()).await.unwrap();
        assert_confirmed(&migration);
        let status = status(&migration);
        assert_eq!(
            status.confirmations.iter().map(|it| &it.digest).collect::<Vec<_>>(),
            [&status.containers[0].digest],
            "only what was voted for stays"
        );
        let after = counts();
        let grown: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        assert!(grown.iter().all(|grown| *grown >= 1), "wrong digest, node, migration, container, malformed: {grown:?}");
        let letters = &records(DEAD_LETTERS, None)[letters..];
        assert!(letters.len() == 1 && letters[0]["reason"].as_str().unwrap().contains("version cannot be read"), "{letters:?}");
    });
}

#[test]
fn who_has_no_right_writes_nothing() {
    assert_installed();
    let before = records(REGISTRY, Some("intruder")).len();
    for (user, because) in
        [("stranger", "SslAuthenticationException"), ("outsider", "TopicAuthorizationException"), ("drover-manager", "TopicAuthorizationException")]
    {
        let refused = send(REGISTRY, "intruder", "{}", &["--user", user]).expect_err(user);
        assert!(refused.contains(because), "{user}: {refused}");
    }
    let refused = send(MIGRATIONS, "intruder", "{}", &["--user", "drover-agent"]).expect_err("an agent tells of images alone");
    assert!(refused.contains("TopicAuthorizationException"), "{refused}");
    assert_eq!(records(REGISTRY, Some("intruder")).len(), before);
}

/// Where the lab keeps Kafka's certificates and passwords.
fn pki() -> PathBuf {
    lab::folder().join("kafka-pki")
}

/// A user of the real broker, on topics that the managers do not read.
fn bus_of(user: &str) -> Bus {
    let pki = pki();
    let settings = KafkaSettings {
        brokers: "10.88.0.1:9093".into(),
        topics: Topics {
            group: "drover-contract".into(),
            registry: "drover.contract.v1".into(),
            dead_letters: DEAD_LETTERS.into(),
            migrations: MIGRATIONS.into(),
        },
        ca: Some(pki.join("cluster-ca.crt")),
        client_certs: Some(pki.join(format!("users/{user}"))),
        sasl: None,
        options: vec![],
        least_replicas: 1,
    };
    Bus::new(settings, Metrics::default())
}

#[test]
fn an_agent_with_a_password_is_let_in() {
    assert_installed();
    with_namespace("scram", |_| async move {
        use drover::ports::bus::Announcer as _;
        let event = contract::golden();
        let settings = |password_file: PathBuf| KafkaSettings {
            brokers: "10.88.0.1:9094".into(),
            topics: Topics {
                group: "drover-contract".into(),
                registry: REGISTRY.into(),
                dead_letters: DEAD_LETTERS.into(),
                migrations: MIGRATIONS.into(),
            },
            ca: Some(pki().join("cluster-ca.crt")),
            client_certs: None,
            sasl: Some(Sasl { mechanism: "SCRAM-SHA-512".into(), username: "drover-agent-scram".into(), password_file }),
            options: vec![],
            least_replicas: 1,
        };
        let announcer = |file: PathBuf| KafkaAnnouncer::start(&Bus::new(settings(file), Metrics::default()), "n2").unwrap();
        // Of no migration: the manager passes over it.
        announcer(pki().join("scram.password")).announce(&event).await.expect("the broker takes it");
        let refused = announcer(pki().join("cluster.id")).announce(&event).await.expect_err("a wrong password");
        assert!(refused.message.to_lowercase().contains("authentication failed"), "{refused}");
    });
}

#[test]
fn the_real_broker_is_a_bus() {
    assert_installed();
    with_namespace("contract", |_| async move {
        let fresh: [u8; 3] = rand::random();
        let event = |nonce: u8| RegistryEvent { digest: format!("sha256:{}", drover::domain::ids::hex(&[nonce; 32])), ..contract::golden() };
        let announcer = KafkaAnnouncer::start(&bus_of("drover-agent"), "n2").unwrap();
        let subscribe = || Arc::new(KafkaSubscription::start(&bus_of("drover-manager")).unwrap()) as Arc<dyn Subscription>;
        contract::holds(contract::Bus { announcer: &announcer, subscribe: &subscribe }, fresh.map(event)).await;
    });
}

/// The broker, the leader and the certificates at further moments.
mod slow {
    use super::*;

    #[test]
    fn who_is_shut_out_hears_of_it() {
        assert_installed();
        with_namespace("fenced", |_| async move {
            let subscribe = || KafkaSubscription::start(&bus_of("drover-manager")).unwrap();
            let first = subscribe();
            // Until it is a member of the group.
            assert!(tokio::time::timeout(Duration::from_secs(5), first.receive()).await.is_err());
            let second = subscribe();
            let (shut_out, _) = tokio::join!(
                tokio::time::timeout(Duration::from_mins(1), first.receive()),
                tokio::time::timeout(Duration::from_secs(20), second.receive()),
            );
            let error = shut_out.expect("within a minute").expect_err("it was shut out");
            assert!(error.message.contains("shut this subscriber out"), "{error}");
        });
    }

    #[test]
    fn kafka_that_goes_before_the_freeze_stops_nothing() {
        assert_installed();
        with_namespace("kafka-early", |namespace| async move { moves_without(&namespace, Phase::Preparing).await });
    }

    #[test]
    fn kafka_that_goes_after_the_release_stops_nothing() {
        assert_installed();
        with_namespace("kafka-released", |namespace| async move { moves_without(&namespace, Phase::Restoring).await });
    }

    #[test]
    fn kafka_that_goes_before_the_release_stops_nothing() {
        assert_installed();
        with_namespace("kafka-release", |namespace| async move { moves_without(&namespace, Phase::Transferring).await });
    }

    #[test]
    fn a_leader_that_dies_before_its_commit_hears_of_it_again() {
        assert_installed();
        with_namespace("kafka-leader", |namespace| async move {
            let repeated = || counted_by_managers("drover_registry_events_total{result=\"repeated\"}");
            let mut moving = Moving::begin(&namespace, 0, MigrationSpec { freeze_budget_seconds: 120, ..to("c", "n2") }).await;
            let noted = namespace.first("an event is noted", |it| it.name_any() == moving.name() && !status(it).confirmations.is_empty()).await;
            // Commits are made five times a second.
            Part::Managers.signal("KILL");
            ready();
            moving.migrates().await;
            let migration = namespace.migrations().get(&noted.name_any()).await.unwrap();
            assert_confirmed(&migration);
            assert_eq!(status(&migration).confirmations.len(), 1);
            eventually(RETURN, || (unsettled() != 0).then(|| format!("{} records are not settled", unsettled())));
            println!("delivered again to the next leader: {}", repeated());
            let phases: Vec<_> = status(&migration).phases.iter().map(|timing| timing.phase.to_string()).collect();
            eventually(RETURN, || (told_phases(&migration) != phases).then(|| format!("{:?} of {phases:?}", told_phases(&migration))));
        });
    }

    #[test]
    fn a_wrong_certificate_is_told_with_its_reason() {
        assert_installed();
        with_namespace("stranger", |_| async move {
            use drover::ports::bus::Announcer as _;
            let announcer = KafkaAnnouncer::start(&bus_of("stranger"), "n2").unwrap();
            eventually(RETURN, || {
                let state = announcer.state();
                (state.connected || !state.message.contains("SSL")).then(|| format!("{state:?}"))
            });
        });
    }
}
