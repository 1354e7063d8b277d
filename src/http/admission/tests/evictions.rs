//! Evictions: what kubectl drain, the descheduler and the autoscaler are answered.

use super::*;

fn world() -> Arc<FakeWorld> {
    let policy = json!({"apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": "all"}, "spec": {"evacuation": {"triggers": ["Drain"]}}});
    Arc::new(FakeWorld { policies: vec![serde_json::from_value(policy).expect("a policy")], ..FakeWorld::default() })
}

fn app_of(world: &Arc<FakeWorld>) -> Router {
    router(Admission {
        world: world.clone(),
        evictions: world.clone(),
        clock: Arc::new(SystemClock),
        manager_username: String::new(),
        metrics: Metrics::default(),
    })
}

fn eviction(pod: &str, options: &Value, dry_run: bool) -> Value {
    let object = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "shop"}, "deleteOptions": options});
    let mut review = review("CREATE", "Eviction", &object, &Value::Null);
    review["request"]["name"] = json!(pod);
    review["request"]["subResource"] = json!("eviction");
    review["request"]["dryRun"] = json!(dry_run);
    review
}

#[tokio::test]
async fn a_pod_that_is_to_move_is_noted_and_asked_for_again_later() {
    let world = world();
    let response = response_to(app_of(&world), "/mutate/evictions", &eviction("web", &json!({}), false)).await;
    assert_eq!(
        (&response["allowed"], &response["status"]["code"], &response["status"]["reason"]),
        (&json!(false), &json!(429), &json!("TooManyRequests"))
    );
    assert!(response["status"]["message"].as_str().is_some_and(|message| message.starts_with("Eviction triggered evacuation of pod")), "{response}");
    // client-go would wait inside, unseen.
    assert_eq!(response["status"]["details"], Value::Null);
    assert_eq!(*world.noted.lock().unwrap(), ["web"]);
}

#[tokio::test]
async fn a_rehearsal_notes_nothing_wherever_it_says_so() {
    let world = world();
    for (options, dry_run) in [(json!({"dryRun": ["All"]}), false), (json!({}), true)] {
        let response = response_to(app_of(&world), "/mutate/evictions", &eviction("web", &options, dry_run)).await;
        assert_eq!(response["status"]["code"], 429);
    }
    assert_eq!(*world.noted.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn what_is_gone_or_is_another_pod_is_the_api_servers_to_answer() {
    for (pod, options) in [("gone", json!({})), ("web", json!({"preconditions": {"uid": "another"}}))] {
        let response = response_to(app_of(&world()), "/mutate/evictions", &eviction(pod, &options, false)).await;
        assert_eq!(response["allowed"], true, "{pod}");
    }
}
