//! Who may push into a node's registry, and what a disk that is full does.

use std::{fs, path::Path, process::Command, time::Duration};

use drover::{api::MigrationSpec, domain::ids::node_server_name};

use crate::support::{
    SYSTEM,
    agents::Part,
    lab,
    migrations::{status, to},
    moving::{Moment, Moving},
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
