//! The manager's front against a real API server: what only a real one can answer. Beside the installed Drover, in namespaces of its own; the
//! cluster-wide objects have the namespace's name and are removed again.

use std::{sync::Arc, time::Duration};

use drover::{
    adapters::{
        agent_certificate::AgentCertificate,
        ca::{CaStore, SelfManaged, service_names},
        lease::LeaderElection,
        webhook_configuration::WebhookConfigurations,
        world::KubeWorld,
    },
    api::Migration,
    controllers::annotation::AnnotationController,
    domain::election::Timing,
    http::{
        admission::{Admission, router},
        tls::{Clients, FollowingTls, serve},
    },
    metrics::Metrics,
    ports::SystemClock,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    core::v1::{Event, Pod, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Namespace, SYSTEM, agents, webhook, with_namespace};

/// The lab's API server reaches this machine here.
const HERE: &str = "10.88.0.254";

#[test]
fn managers_that_race_agree_on_one_ca() {
    with_namespace("ca", |own| async move {
        let (client, namespace) = (own.client.clone(), own.name.clone());
        let store = CaStore::new(client.clone(), &namespace);
        let now = Timestamp::now();
        let (a, b, c) = tokio::join!(store.load_or_create(now), store.load_or_create(now), store.load_or_create(now));
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert!(a.certificate_pem() == b.certificate_pem() && b.certificate_pem() == c.certificate_pem());

        let managed = SelfManaged::start(store.clone(), service_names("drover-webhook", &namespace), Metrics::default()).await.unwrap();
        let identity = managed.identity();
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        secrets.delete("drover-ca", &DeleteParams::default()).await.unwrap();
        let token = CancellationToken::new();
        let task = tokio::spawn(managed.run(token.clone()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(store.load_or_create(now).await.unwrap().certificate_pem(), a.certificate_pem(), "the same CA is written again");
        assert_eq!(identity.borrow().ca_pem, a.certificate_pem());
        token.cancel();
        task.await.unwrap().unwrap();
    });
}

#[test]
fn an_agent_gets_the_certificate_of_its_own_node_and_no_other() {
    with_namespace("csr", |namespace| async move {
        let own = AgentCertificate::start(agents::client("n1").await, "n1".to_owned(), Metrics::default()).await;
        let other = AgentCertificate::start(agents::client("n2").await, "n1".to_owned(), Metrics::default()).await;
        let identity = own.expect("its own certificate").identity();
        let ca = CaStore::new(namespace.client.clone(), SYSTEM).load_or_create(Timestamp::now()).await.unwrap();
        assert_eq!(identity.borrow().ca_pem, ca.certificate_pem());
        let hours = identity.borrow().not_after.duration_since(Timestamp::now()).as_hours();
        assert!((22..=24).contains(&hours), "{hours}");
        let refused = other.err().expect("no certificate of another node").to_string();
        assert!(refused.contains("gets \"n2.nodes.drover.dev\" and nothing else"), "{refused}");
    });
}

#[test]
fn one_leads_at_a_time_and_hands_over() {
    with_namespace("lease", |own| async move {
        let (client, namespace) = (own.client.clone(), own.name.clone());
        let timing = Timing { lease: Duration::from_secs(6), renew: Duration::from_secs(1), retry: Duration::from_millis(300) };
        let candidate = |name: &str| {
            let election = LeaderElection::new(client.clone(), &namespace, "drover-manager".to_owned(), name.to_owned(), timing);
            let (leading, token) = (election.leading(), CancellationToken::new());
            (leading, token.clone(), tokio::spawn(election.run(token)))
        };
        let (mut a, stop_a, task_a) = candidate("a");
        a.wait_for(|leads| *leads).await.unwrap();
        let (mut b, _stop_b, task_b) = candidate("b");
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert!(*a.borrow() && !*b.borrow(), "a renews, b waits");

        stop_a.cancel();
        task_a.await.unwrap().unwrap();
        tokio::time::timeout(Duration::from_secs(3), b.wait_for(|leads| *leads)).await.expect("a released it").unwrap();

        let (mut c, stop_c, task_c) = candidate("c");
        tokio::time::sleep(Duration::from_secs(1)).await;
        task_b.abort();
        let died = std::time::Instant::now();
        tokio::time::timeout(Duration::from_secs(12), c.wait_for(|leads| *leads)).await.expect("b's lease runs out").unwrap();
        assert!(died.elapsed() > Duration::from_secs(4), "{:?}", died.elapsed());
        stop_c.cancel();
        task_c.await.unwrap().unwrap();
    });
}

/// A Service `hook` whose endpoint is this process.
async fn serve_here(namespace: &Namespace, port: u16) {
    let service = json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"port": 443, "targetPort": port}]}});
    let slice = json!({
        "metadata": {"name": "hook", "labels": {"kubernetes.io/service-name": "hook"}}, "addressType": "IPv4",
        "ports": [{"port": port}], "endpoints": [{"addresses": [HERE], "conditions": {"ready": true}}]
    });
    let (services, slices) = (Api::namespaced(namespace.client.clone(), &namespace.name), Api::namespaced(namespace.client.clone(), &namespace.name));
    services.create(&PostParams::default(), &serde_json::from_value::<Service>(service).unwrap()).await.unwrap();
    slices.create(&PostParams::default(), &serde_json::from_value::<EndpointSlice>(slice).unwrap()).await.unwrap();
}

#[test]
fn the_api_server_understands_the_webhook() {
    with_namespace("hook", |own| async move {
        let (client, namespace) = (own.client.clone(), own.name.clone());
        let away = webhook::nobody_answers(&client).await;
        let managed =
            SelfManaged::start(CaStore::new(client.clone(), &namespace), service_names("hook", &namespace), Metrics::default()).await.unwrap();
        let tls = FollowingTls::new(managed.identity(), Clients::Anyone).unwrap();
        let listener = std::net::TcpListener::bind((HERE, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let world = Arc::new(KubeWorld::new(client.clone()));
        let admission = Admission {
            evictions: world.clone(),
            world,
            clock: Arc::new(SystemClock),
            manager_username: "nobody".to_owned(),
            metrics: Metrics::default(),
        };
        let token = CancellationToken::new();
        let server = tokio::spawn(serve(listener, tls.config(), router(admission), token.clone(), Duration::from_secs(1)));

        serve_here(&own, port).await;
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
        let ca = k8s_openapi::ByteString(managed.identity().borrow().ca_pem.clone().into_bytes());
        let configuration = json!({"metadata": {"name": namespace}, "webhooks": [{
            "name": "pods.front.example", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail", "timeoutSeconds": 10,
            "clientConfig": {"service": {"namespace": namespace, "name": "hook", "path": "/mutate/pods"}, "caBundle": ca},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["pods"]}]
        }]});
        configurations.create(&PostParams::default(), &serde_json::from_value(configuration).unwrap()).await.unwrap();
        // The API server learns of the configuration by a watch.
        tokio::time::sleep(Duration::from_secs(2)).await;

        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let pod = json!({
            "metadata": {"name": "web", "annotations": {"drover.dev/migrate-to": "n2", "keep": "me"}},
            "spec": {"schedulerName": "nobody", "automountServiceAccountToken": false, "containers": [{"name": "main", "image": "none"}]}
        });
        let made = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await;
        let annotate = Patch::Merge(json!({"metadata": {"annotations": {"drover.dev/claim": "u", "drover.dev/hops": "7"}}}));
        let refused = pods.patch("web", &PatchParams::default(), &annotate).await;
        let elsewhere = Patch::Merge(json!({"metadata": {"annotations": {"migrate-to": "n2"}}}));
        let asked = pods.patch("web", &PatchParams::default(), &elsewhere).await;
        configurations.delete(&namespace, &DeleteParams::default()).await.unwrap();
        token.cancel();
        server.await.unwrap().unwrap();
        drop(away);

        let annotations = made.expect("stripped, not refused").metadata.annotations.unwrap_or_default();
        assert_eq!(annotations.into_iter().collect::<Vec<_>>(), [("keep".to_owned(), "me".to_owned())]);
        let refused = refused.expect_err("not the manager").to_string();
        assert!(
            refused.contains("denied the request: drover: pod") && refused.contains("drover.dev/claim") && refused.contains("drover.dev/hops"),
            "{refused}"
        );
        // Where the CRDs are not installed the lookup fails; where they are, the pod is not running. Refused it is, with a reason.
        let asked = asked.expect_err("not running").to_string();
        assert!(asked.contains("status.phase: is Pending") || asked.contains("could not be looked up"), "{asked}");
        println!("{refused}\n{asked}");
    });
}

#[test]
fn an_annotated_pod_becomes_one_migration_for_each_request() {
    with_namespace("annotation", |own| async move {
        let (client, namespace) = (own.client.clone(), own.name.clone());
        let (pods, migrations): (Api<Pod>, Api<Migration>) =
            (Api::namespaced(client.clone(), &namespace), Api::namespaced(client.clone(), &namespace));
        // A pod that does not run: the webhook would refuse it.
        let away = webhook::nobody_answers(&client).await;
        let pod = json!({
            "metadata": {"name": "web", "annotations": {"migrate-to": "n2"}},
            "spec": {"schedulerName": "nobody", "automountServiceAccountToken": false, "containers": [{"name": "main", "image": "none"}]}
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let token = CancellationToken::new();
        let task = tokio::spawn(AnnotationController::new(client.clone(), "front-test".to_owned()).run(token.clone()));
        for value in ["n2", "n2", "auto"] {
            let annotate = Patch::Merge(json!({"metadata": {"annotations": {"drover.dev/migrate-to": value}}}));
            pods.patch("web", &PatchParams::default(), &annotate).await.unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        token.cancel();
        task.await.unwrap().unwrap();
        drop(away);
        let annotations = pods.get("web").await.unwrap().metadata.annotations.unwrap_or_default();
        let made = migrations.list(&ListParams::default()).await.unwrap().items;
        let events = Api::<Event>::namespaced(client.clone(), &namespace).list(&ListParams::default()).await.unwrap().items;

        // The bare annotation of the creation may have been taken up before the first patch, or with it.
        assert!(annotations.len() == 1 && annotations.contains_key("drover.dev/requests"), "{annotations:?}");
        assert_eq!(annotations["drover.dev/requests"], made.len().to_string(), "one for each request");
        assert!((3..=4).contains(&made.len()));
        let automatic = made.iter().filter(|m| m.spec.destination.node_name.is_none()).count();
        assert!(automatic == 1 && made.iter().all(|m| m.spec.pod_name.as_deref() == Some("web")));
        let told = events.iter().filter(|e| e.reason.as_deref() == Some("MigrationRequested")).count();
        assert_eq!(told, made.len(), "{events:?}");
    });
}

#[test]
fn the_ca_bundle_is_written_to_every_webhook() {
    with_namespace("bundle", |own| async move {
        let (client, namespace) = (own.client.clone(), own.name.clone());
        let webhook = |name: &str| {
            json!({
                "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore",
                "clientConfig": {"service": {"namespace": namespace, "name": "none"}},
                "rules": [{"apiGroups": ["front.example"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nothing"]}]
            })
        };
        let object = json!({"metadata": {"name": namespace}, "webhooks": [webhook("a.front.example"), webhook("b.front.example")]});
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
        mutating.create(&PostParams::default(), &serde_json::from_value(object.clone()).unwrap()).await.unwrap();
        validating.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();

        let managed = SelfManaged::start(CaStore::new(client.clone(), &namespace), vec!["x.svc".to_owned()], Metrics::default()).await.unwrap();
        let token = CancellationToken::new();
        let task = tokio::spawn(WebhookConfigurations::new(client.clone(), namespace.clone(), managed.identity()).run(token.clone()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        token.cancel();
        task.await.unwrap().unwrap();
        let (m, v) = (mutating.get(&namespace).await.unwrap(), validating.get(&namespace).await.unwrap());
        mutating.delete(&namespace, &DeleteParams::default()).await.unwrap();
        validating.delete(&namespace, &DeleteParams::default()).await.unwrap();
        let wanted = Some(managed.identity().borrow().ca_pem.clone().into_bytes());
        let bundles = m.webhooks.unwrap().into_iter().map(|w| w.client_config).chain(v.webhooks.unwrap().into_iter().map(|w| w.client_config));
        let bundles: Vec<_> = bundles.map(|c| c.ca_bundle.map(|b| b.0)).collect();
        assert_eq!(bundles, vec![wanted; 4]);
    });
}
