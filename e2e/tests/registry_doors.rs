//! Who may push into a node's registry and pull from it, and what a disk that is full does.

use std::{fs, path::Path, process::Command, time::Duration};

use kube::api::DeleteParams;
use serde_json::json;

use drover::{api::MigrationSpec, domain::ids::node_server_name};

use crate::support::{
    SYSTEM,
    agents::Part,
    lab,
    migrations::{status, to},
    moving::{Moment, Moving},
    pods::{TOOLBOX, container, pod},
    with_namespace,
};

/// Writes a certificate of the agent of that node, as Drover's CA signs them, and its key.
fn certify(folder: &Path, node: &str) {
    let script = format!(
        "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={node} -keyout {node}.key -out {node}.csr &&
         printf 'extendedKeyUsage=clientAuth,serverAuth\\nsubjectAltName=DNS:{}' >{node}.ext &&
         openssl x509 -req -in {node}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -out {node}.crt -extfile {node}.ext",
        node_server_name(node)
    );
    let out = Command::new("sh").args(["-c", &script]).current_dir(folder).output().expect("openssl runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// What the push door of n2 answers to whoever shows this certificate: its status, `000` where no connection comes about.
fn ask(folder: &Path, shown: Option<&str>, method: &str, path: &str) -> String {
    let name = node_server_name("n2");
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", "--cacert", "ca.crt", "-X", method, "-H", "Content-Length: 0"]);
    curl.args(["--resolve", &format!("{name}:5786:10.88.0.12")]);
    if let Some(node) = shown {
        curl.args(["--cert", &format!("{node}.crt"), "--key", &format!("{node}.key")]);
    }
    let out = curl.arg(format!("https://{name}:5786{path}")).current_dir(folder).output().expect("curl runs");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn only_the_sources_agent_pushes_and_only_into_its_migrations_repository() {
    with_namespace("doors", |namespace| async move {
        let folder = tempfile::tempdir().unwrap();
        for (field, file) in [("tls\\.crt", "ca.crt"), ("tls\\.key", "ca.key")] {
            let encoded = lab::lab(&[
                "kubectl",
                "-n",
                SYSTEM,
                "get",
                "secret",
                "drover-ca",
                "-o",
                &format!("go-template={{{{index .data \"{}\" | base64decode}}}}", field.replace('\\', "")),
            ]);
            fs::write(folder.path().join(file), encoded).unwrap();
        }
        for node in ["n1", "n2", "n3"] {
            certify(folder.path(), node);
        }
        let mut moving = Moving::begin(&namespace, 0, to("c", "n2")).await;
        moving.hold(Moment::BeforeRelease).await;
        let repository = status(&moving.migration).destination.unwrap().repository;
        let upload = |shown, repository: &str| ask(folder.path(), shown, "POST", &format!("/v2/{repository}/blobs/uploads/"));
        assert_eq!(upload(Some("n1"), &repository), "202", "the source's agent is let in");
        for (shown, why) in [(Some("n3"), "a third node's agent"), (Some("n2"), "the destination's own")] {
            assert_eq!(upload(shown, &repository), "403", "{why}");
        }
        assert_eq!(upload(None, &repository), "000", "without a certificate there is no connection");
        assert_eq!(upload(Some("n1"), "drover/00112233445566778899aabbccddeeff"), "403", "another repository");
        assert_ne!(ask(folder.path(), Some("n1"), "GET", "/v2/_catalog"), "200", "nothing is listed");
        moving.go_on();
        moving.migrates().await;
    });
}

/// The count of a kind of connection to the pull door of n2.
fn connections(kind: &str) -> u64 {
    let text = lab::on_node("n2", "curl -sf http://10.88.0.12:5787/metrics");
    let line = format!("drover_pull_connections_total{{result=\"{kind}\"}} ");
    text.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or_default()
}

#[test]
fn only_the_node_itself_pulls_and_no_pod_that_has_its_network() {
    with_namespace("pulls", |namespace| async move {
        let sleeping = json!({"name": "c", "image": TOOLBOX, "command": ["sleep", "600"], "securityContext": {"runAsUser": 0}});
        let mut nosy = pod("nosy", "n2", &[sleeping]);
        nosy.spec.as_mut().unwrap().host_network = Some(true);
        let nosy = namespace.run(&nosy).await;
        assert!(container(&nosy, "c").ready);
        let mut moving = Moving::begin(&namespace, 0, to("c", "n2")).await;
        moving.hold(Moment::BeforeRelease).await;
        let repository = status(&moving.migration).destination.unwrap().repository;
        let manifest = format!("/v2/{repository}/manifests/c");
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
        let from_node = || lab::on_node("n2", &format!("curl -s -o /dev/null -w '%{{http_code}}' -H '{accept}' http://127.0.0.1:5785{manifest}"));
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/5785; printf 'GET {manifest} HTTP/1.1\\r\\nHost: 127.0.0.1:5785\\r\\n{accept}\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
        );
        let from_pod = || namespace.exec("nosy", &["bash", "-c", &script]);

        let refused = connections("contained");
        assert_eq!(from_node(), "200", "the node itself is answered");
        let answer = from_pod();
        assert!(answer.starts_with("HTTP/1.1 403 "), "a pod was answered: {answer}");
        assert!(answer.contains("not for those of pods") && !answer.contains(&repository), "{answer}");
        assert_eq!(connections("contained"), refused + 1);

        let pulled = connections("node");
        moving.go_on();
        namespace.until_done(&moving.name()).await;
        assert!(connections("node") > pulled, "the runtime has pulled through this door");
        // The tag stays, for restarts of the pod.
        assert_eq!(from_node(), "200");
        assert!(from_pod().starts_with("HTTP/1.1 403 "));
        // Only the copy is to run now.
        namespace.pods().delete("nosy", &DeleteParams::default().grace_period(0)).await.unwrap();
        moving.migrates().await;
    });
}

#[test]
fn a_full_disk_of_the_destination_rolls_back_and_says_so() {
    with_namespace("full", |namespace| async move {
        // Beside what the agent takes for its disk, so that the preflight cannot have seen it.
        let back = lab::Restore(|| {
            drop(lab::try_lab(&["exec", "n2", "umount", "-l", "/var/lib/drover/registry"]));
            Part::Agent("n2").replace_pods();
        });
        lab::on_node("n2", "mount -t tmpfs -o size=24m tmpfs /var/lib/drover/registry");
        Part::Agent("n2").replace_pods();
        let mut moving = Moving::begin(&namespace, 64, MigrationSpec { freeze_budget_seconds: 60, ..to("c", "n2") }).await;
        moving.rolls_back("a full disk shows like this too", Duration::from_mins(2)).await;
        drop(back);
    });
}
