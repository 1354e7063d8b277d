//! A pod whose image needs credentials: its own pull Secret also opens the registry for its destination.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use kube::ResourceExt as _;
use serde_json::json;

use drover::api::Outcome;

use crate::support::{
    NODES,
    counter::assert_went_on,
    eventually, lab,
    migrations::{assert_outcome, replacement, to},
    pods::pod,
    with_namespace,
};

/// Another registry in the control plane's network, over the lab's images, that wants to know who asks.
const ADDRESS: &str = "10.88.0.1:5001";
/// `somebody`, password `secret`.
const HTPASSWD: &str = "somebody:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

fn lab_folder() -> PathBuf {
    Path::new(lab::lab(&["kubeconfig"]).trim()).parent().unwrap().parent().unwrap().to_owned()
}

/// Starts it; it ends with what is returned.
fn guarded_registry(folder: &Path) -> impl Drop + use<> {
    let images = lab_folder().join("registry");
    let htpasswd = folder.join("htpasswd");
    fs::write(&htpasswd, HTPASSWD).unwrap();
    let config = json!({
        "version": "0.1", "log": {"level": "warn"}, "http": {"addr": ADDRESS, "secret": "lab"},
        "storage": {"filesystem": {"rootdirectory": images}, "maintenance": {"readonly": {"enabled": true}}},
        "auth": {"htpasswd": {"realm": "lab", "path": htpasswd}}
    });
    let path = folder.join("registry.yml");
    fs::write(&path, config.to_string()).unwrap();
    let program = lab::lab(&["cached", "registry"]);
    let mut child = Command::new("ip")
        .args(["netns", "exec", "drover-cp", program.trim(), "serve", path.to_str().unwrap()])
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    lab::Restore(move || {
        let _ = child.kill();
        let _ = child.wait();
        for node in NODES {
            let _ = lab::try_lab(&["exec", node, "rm", "-rf", &format!("/etc/containerd/certs.d/{ADDRESS}")]);
        }
    })
}

#[test]
fn a_private_image_is_pulled_with_the_pods_own_secret() {
    with_namespace("private", |namespace| async move {
        let folder = tempfile::tempdir().unwrap();
        let _registry = guarded_registry(folder.path());
        for node in NODES {
            // Read anew for every pull; the registry speaks plain HTTP.
            let hosts = format!("[host.\"http://{ADDRESS}\"]\\n  capabilities = [\"pull\",\"resolve\"]\\n");
            let place = format!("/etc/containerd/certs.d/{ADDRESS}");
            lab::on_node(node, &format!("mkdir -p {place} && printf '{hosts}' >{place}/hosts.toml"));
            // What an earlier run has pulled would need no credentials.
            lab::on_node(
                node,
                &format!("ctr -n k8s.io images ls -q 2>/dev/null | grep '^{ADDRESS}/' | xargs -r ctr -n k8s.io images rm 2>/dev/null; true"),
            );
        }
        eventually(Duration::from_secs(10), || {
            let answer = lab::on_node("n2", &format!("curl -s -o /dev/null -w '%{{http_code}}' http://{ADDRESS}/v2/ || true"));
            (answer.trim() != "401").then(|| format!("the guarded registry answers {answer:?}"))
        });
        let secret = ["create", "secret", "docker-registry", "private", "--docker-username=somebody", "--docker-password=secret"];
        namespace.kubectl(&[secret.as_slice(), &["--docker-server", ADDRESS]].concat()).unwrap();

        let container = json!({"name": "c", "image": format!("{ADDRESS}/counter:1"), "args": ["0", "50"]});
        let mut private = pod("private", "n1", &[container]);
        private.spec.as_mut().unwrap().image_pull_secrets = serde_json::from_value(json!([{"name": "private"}])).unwrap();
        namespace.run(&private).await;
        let before = namespace.follow("private", "c").await;
        before.beyond(3).await;
        let migration = namespace.make(to("private", "n2")).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        let after = namespace.follow(&replacement(&migration), "c").await;
        after.beyond(before.last() + 3).await;
        assert_went_on(&before.lines(), &after.lines(), &migration);
        namespace.assert_no_leftovers(&migration).await;
    });
}
