//! Whether the topics are there and may be used: what is missing is said at the start, not by the first message that does not arrive.

use std::time::Duration;

use rdkafka::{ClientContext, client::Client, error::RDKafkaErrorCode, types::RDKafkaRespErr};

/// How often the topics are looked at while something is missing.
pub(super) const SOON: Duration = Duration::from_secs(5);
/// And while nothing is: they may be deleted under way.
pub(super) const SELDOM: Duration = Duration::from_mins(5);
/// How long the brokers may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Blocks until the brokers have answered, or [`PATIENCE`] is over.
///
/// # Errors
/// What is missing and how to mend it.
pub(super) fn examine(client: &Client<impl ClientContext>, topics: &[String], least_replicas: usize) -> Result<(), String> {
    for name in topics {
        let metadata = client.fetch_metadata(Some(name), PATIENCE).map_err(|error| format!("the brokers do not tell of topic {name}: {error}"))?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == name);
        let topic = topic.ok_or_else(|| missing(name))?;
        if let Some(error) = topic.error() {
            return Err(problem(name, error));
        }
        let partitions = topic.partitions();
        if partitions.is_empty() {
            return Err(missing(name));
        }
        if let Some(partition) = partitions.iter().find(|partition| partition.replicas().len() < least_replicas) {
            return Err(format!(
                "topic {name} has {} replicas in partition {}, fewer than kafka.leastReplicas ({least_replicas}): a broker's loss may lose what it has \
                 taken; raise the topic's replicas, or lower the value",
                partition.replicas().len(),
                partition.id()
            ));
        }
    }
    Ok(())
}

fn missing(name: &str) -> String {
    format!("topic {name} does not exist; make it (kafka.strimzi.create of the chart does, as a KafkaTopic), Drover makes none by itself")
}

fn problem(name: &str, error: RDKafkaRespErr) -> String {
    match RDKafkaErrorCode::from(error) {
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => missing(name),
        RDKafkaErrorCode::TopicAuthorizationFailed => {
            format!("this Kafka user may not use topic {name}; give it the ACLs that docs/events.md lists (a KafkaUser does)")
        }
        other => format!("topic {name}: {other}"),
    }
}
