//! The adapter against librdkafka's own mock brokers.

use std::sync::Arc;

use rdkafka::{
    consumer::{Consumer as _, StreamConsumer},
    message::Message as _,
    mocking::MockCluster,
    producer::{DefaultProducerContext, FutureRecord},
};
use serde_json::{Value, json};

use super::*;
use crate::ports::bus::{Announcer as _, Subscription};
use crate::testing::bus_contract::{self as contract, event};

type Brokers = MockCluster<'static, DefaultProducerContext>;

fn settings(brokers: &str) -> KafkaSettings {
    KafkaSettings {
        brokers: brokers.to_owned(),
        topics: Topics {
            group: "drover-manager".into(),
            registry: "drover.registry.v1".into(),
            dead_letters: "drover.registry.v1.dlq".into(),
            migrations: "drover.migrations.v1".into(),
        },
        ca: None,
        client_certs: None,
        sasl: None,
        // The mock's sessions are as long as ours.
        options: vec![("session.timeout.ms".into(), "6000".into())],
        least_replicas: 1,
    }
}

/// Brokers with the topics, and the bus on them.
fn brokers() -> (Brokers, Bus, Metrics) {
    let brokers = MockCluster::new(1).expect("mock brokers");
    for topic in ["drover.registry.v1", "drover.registry.v1.dlq", "drover.migrations.v1"] {
        brokers.create_topic(topic, 1, 1).expect("a topic");
    }
    let metrics = Metrics::default();
    let bus = Bus::new(settings(&brokers.bootstrap_servers()), metrics.clone());
    (brokers, bus, metrics)
}

fn subscribe(bus: &Bus) -> Arc<dyn Subscription> {
    Arc::new(KafkaSubscription::start(bus).expect("a subscription"))
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_a_bus() {
    let (_brokers, bus, _) = brokers();
    let announcer = KafkaAnnouncer::start(&bus, "n2").expect("an announcer");
    contract::holds(contract::Bus { announcer: &announcer, subscribe: &|| subscribe(&bus) }, ["a", "b", "c"].map(event)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_goes_to_the_dead_letters_and_stops_nothing() {
    let (brokers, bus, metrics) = brokers();
    let raw = bus.settings.producer("somebody", 5_000, Link::beside()).expect("a producer");
    for bad in [b"{".as_slice(), br#"{"version":2}"#, b"\xff\xfe", b""] {
        raw.send(FutureRecord::to("drover.registry.v1").key("k").payload(bad), std::time::Duration::from_secs(1)).await.expect("it is taken");
    }
    let announcer = KafkaAnnouncer::start(&bus, "n2").expect("an announcer");
    announcer.announce(&event("a")).await.expect("it is taken");
    let leader = subscribe(&bus);
    assert_eq!(leader.receive().await.expect("an event").event, event("a"));
    let text = metrics.text().expect("text");
    for line in [r#"drover_registry_events_total{result="malformed"} 3"#, r#"drover_registry_events_total{result="unknown_version"} 1"#] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let letters: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers.bootstrap_servers())
        .set("group.id", "reader")
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("a consumer");
    letters.subscribe(&["drover.registry.v1.dlq"]).expect("subscribed");
    let mut reasons = vec![];
    for offset in 0..4 {
        let letter = letters.recv().await.expect("a letter");
        let value: Value = serde_json::from_slice(letter.payload().expect("a value")).expect("JSON");
        assert_eq!((&value["topic"], &value["offset"]), (&json!("drover.registry.v1"), &json!(offset)));
        reasons.push(value["reason"].as_str().expect("a reason").to_owned());
    }
    assert!(reasons[1].contains("version 2 is not known here"), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_said() {
    let (brokers, bus, metrics) = brokers();
    let strict = Bus::new(KafkaSettings { least_replicas: 3, ..settings(&brokers.bootstrap_servers()) }, metrics.clone());
    let announcer = KafkaAnnouncer::start(&strict, "n2").expect("an announcer");
    let said = said(&announcer).await;
    assert!(said.contains("has 1 replicas") && said.contains("kafka.leastReplicas (3)"), "{said}");

    brokers.topic_error("drover.registry.v1", rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).expect("set");
    let said = self::said(&KafkaAnnouncer::start(&bus, "n2").expect("an announcer")).await;
    assert!(said.contains("may not use topic drover.registry.v1"), "{said}");

    let away = Bus::new(settings("127.0.0.1:1"), metrics);
    let announcer = KafkaAnnouncer::start(&away, "n2").expect("an announcer");
    assert!(!announcer.state().connected && announcer.announce(&event("a")).await.is_err());
    assert!(announcer.state().message.contains("127.0.0.1:1"), "{:?}", announcer.state());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_goes_soon_though_no_broker_answers() {
    let bus = Bus::new(settings("127.0.0.1:1"), Metrics::default());
    let leader = subscribe(&bus);
    assert!(tokio::time::timeout(std::time::Duration::from_secs(1), leader.receive()).await.is_err(), "nothing comes");
    let gone = tokio::task::spawn_blocking(move || drop(leader));
    tokio::time::timeout(std::time::Duration::from_secs(5), gone).await.expect("within seconds").expect("without a panic");
}

/// The first remark on the topics.
async fn said(announcer: &KafkaAnnouncer) -> String {
    for _ in 0..200 {
        let message = announcer.state().message;
        if message.contains("topic") {
            return message;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("nothing is said: {:?}", announcer.state())
}

#[test]
fn a_renewed_password_makes_a_new_client_and_one_that_cannot_be_read_keeps_the_old_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let password_file = folder.path().join("password");
    std::fs::write(&password_file, "one").expect("written");
    let sasl = Sasl { mechanism: "SCRAM-SHA-512".into(), username: "u".into(), password_file: password_file.clone() };
    let settings = KafkaSettings { sasl: Some(sasl), ..settings("127.0.0.1:1") };
    let producer = Producer::start(&settings, "p", 1_000, Link::beside()).expect("a producer");
    let client = || producer.now().client().native_ptr() as usize;
    let (first, before) = (client(), producer::fingerprint(&settings));
    assert_eq!(client(), first);
    std::fs::remove_file(&password_file).expect("removed");
    assert_eq!(client(), first, "kubelet swaps the files: for a moment there is none");
    std::fs::write(&password_file, "two").expect("written");
    assert_ne!(client(), first);
    assert_ne!(producer::fingerprint(&settings), before);
}

#[test]
fn settings_that_cannot_be_used_are_refused_at_once() {
    let metrics = Metrics::default();
    let start = |change: fn(&mut KafkaSettings)| {
        let mut settings = settings("127.0.0.1:1");
        change(&mut settings);
        let bus = Bus::new(settings, metrics.clone());
        bus.settings.producer("p", 1_000, Link::new(metrics.clone())).err().expect("a refusal").message
    };
    assert!(start(|it| it.ca = Some("/nowhere/ca.crt".into())).contains("kafka.*"));
    assert!(start(|it| it.options.push(("no.such.option".into(), "1".into()))).contains("no.such.option"));
    assert!(
        start(|it| it.sasl = Some(Sasl { mechanism: "SCRAM-SHA-512".into(), username: "u".into(), password_file: "/nowhere/password".into() }))
            .contains("/nowhere/password")
    );
}
