//! The second way in which the agent proves to its kubelet who it is: a client certificate instead of its token.

use std::path::Path;

use drover::api::Outcome;

use crate::support::{
    SYSTEM,
    agents::ready,
    counter::assert_went_on,
    lab,
    migrations::{assert_outcome, replacement},
    pods::counter,
    with_namespace,
};

const SECRET: &str = "kubelet-client-certs";

fn set_auth(auth: &str) {
    lab::set_values(&format!("agent.kubelet.auth={auth}"));
    ready();
}

#[test]
fn a_client_certificate_opens_the_kubelet_too() {
    with_namespace("client-certificate", |namespace| async move {
        let kubeconfig = lab::lab(&["kubeconfig"]);
        let pki = Path::new(kubeconfig.trim()).parent().unwrap().join("apiserver-kubelet-client");
        let (cert, key) = (format!("--cert={}.crt", pki.display()), format!("--key={}.key", pki.display()));
        let _ = lab::try_lab(&["kubectl", "-n", SYSTEM, "delete", "secret", SECRET, "--ignore-not-found"]);
        lab::lab(&["kubectl", "-n", SYSTEM, "create", "secret", "tls", SECRET, &cert, &key]);
        let _back = lab::Restore(|| {
            set_auth("token");
            let _ = lab::try_lab(&["kubectl", "-n", SYSTEM, "delete", "secret", SECRET]);
        });
        set_auth("clientCert");

        namespace.run(&counter("counter", "n1", 0, 50)).await;
        let before = namespace.follow("counter", "c").await;
        before.beyond(3).await;
        let migration = namespace.migrate("counter", "n2").await;
        assert_outcome(&migration, Outcome::Migrated);
        let after = namespace.follow(&replacement(&migration), "c").await;
        after.beyond(before.last() + 3).await;
        assert_went_on(&before.lines(), &after.lines(), &migration);
        namespace.assert_no_leftovers(&migration).await;
    });
}
