//! A frozen pod and its Services.

use std::time::{Duration, Instant};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use kube::{Api, ResourceExt as _, api::PostParams};
use serde_json::json;

use drover::api::{MigrationSpec, Outcome};

use crate::{
    owners::made,
    support::{
        Namespace,
        migrations::{assert_outcome, replacement, to},
        moving::{Moment, Moving},
        with_namespace,
    },
};

/// From a change of the pod to the Service's endpoints, and what a look at them costs.
const SOON: Duration = Duration::from_secs(3);

impl Namespace {
    /// A Service `web` of the pods with the label `app=web`.
    async fn serve(&self) {
        let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.name);
        services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    }

    /// The pods that it sends to.
    fn served(&self) -> Vec<String> {
        let ready = "jsonpath={range .items[*].endpoints[?(@.conditions.ready==true)]}{.targetRef.name}{\"\\n\"}{end}";
        let slices = ["get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", ready];
        self.kubectl(&slices).unwrap().lines().map(str::to_owned).collect()
    }

    async fn until_served(&self, pods: &[&str]) {
        let end = Instant::now() + SOON;
        while self.served() != pods {
            assert!(Instant::now() < end, "{:?} are served, not {pods:?}", self.served());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[test]
fn a_frozen_pod_is_not_served_and_is_again_once_it_goes_on() {
    with_namespace("services", |namespace| async move {
        namespace.serve().await;
        let pod = made::<Deployment>(&namespace, "Deployment", 1).await.remove(0);
        let (name, source) = (pod.name_any(), namespace.counts(&pod).await);
        namespace.until_served(&[&name]).await;
        let migration = namespace.make(MigrationSpec { freeze_budget_seconds: 20, ..to(&name, "n2") }).await;
        let mut moving = Moving::of(&namespace, source, migration);
        moving.hold(Moment::BeforeVote).await;
        namespace.until_served(&[]).await;
        // Its kubelet says every ten seconds that it is Ready.
        let (mut looks, mut served) = (0, 0);
        let end = Instant::now() + Duration::from_secs(12);
        while Instant::now() < end {
            looks += 1;
            served += usize::from(!namespace.served().is_empty());
        }
        assert!(looks > 20 && served * 10 < looks, "served in {served} of {looks} looks");
        // Its budget is over, and its agent thaws it.
        assert_outcome(&namespace.until_done(&moving.name()).await, Outcome::RolledBack);
        namespace.until_served(&[&name]).await;
        moving.go_on();

        let moved = namespace.migrate(&name, "n2").await;
        assert_outcome(&moved, Outcome::Migrated);
        namespace.until_served(&[&replacement(&moved)]).await;
    });
}
