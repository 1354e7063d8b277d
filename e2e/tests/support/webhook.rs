//! Drover's webhooks, when nobody answers them.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{SYSTEM, eventually, lab};

const SERVICE: &str = "drover-webhook";
/// How long the control plane may take to notice.
const LIMIT: Duration = Duration::from_secs(20);

/// Takes the endpoints of the webhooks' Service away until the answer is dropped. Both configurations say what happens then: Ignore.
pub async fn nobody_answers(client: &Client) -> impl Drop + use<> {
    let services: Api<Service> = Api::namespaced(client.clone(), SYSTEM);
    let nobody = json!({"spec": {"selector": {"drover.dev/nobody": "here"}}});
    services.patch(SERVICE, &PatchParams::default(), &Patch::Merge(nobody)).await.unwrap();
    let returns = lab::Restore(|| {
        let everybody = r#"{"spec": {"selector": {"drover.dev/nobody": null}}}"#;
        drop(lab::try_lab(&["kubectl", "-n", SYSTEM, "patch", "service", SERVICE, "--type=merge", "--patch", everybody]));
        // No assertion: this may run while a test fails.
        let end = Instant::now() + LIMIT;
        while endpoints().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    eventually(LIMIT, || {
        let there = endpoints();
        (!there.is_empty()).then(|| format!("service {SERVICE} has no endpoints; it has {there}"))
    });
    returns
}

fn endpoints() -> String {
    let label = format!("kubernetes.io/service-name={SERVICE}");
    let addresses = ["kubectl", "-n", SYSTEM, "get", "endpointslices", "-l", &label, "-o", "jsonpath={.items[*].endpoints[*].addresses}"];
    lab::try_lab(&addresses).unwrap_or_default().trim().to_owned()
}
