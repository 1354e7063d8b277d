//! What is generated is what the types and the chart say: `make generate` was not forgotten.
//!
//! With `DROVER_GENERATE=1` (that is `make generate`) the files are written instead of compared.

#![allow(clippy::panic)] // the helpers of tests fail by panicking

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What manifests/install.yaml begins with.
const HEADER: &str =
    "# Rendered from charts/drover by `make generate`; do not edit. Install: kubectl apply --server-side -f manifests/install.yaml\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a file with what it should hold, or writes it.
fn settle(file: &str, wanted: &str) {
    let path = root().join(file);
    if env::var_os("DROVER_GENERATE").is_some() {
        fs::write(&path, wanted).unwrap_or_else(|error| panic!("{file} cannot be written: {error}"));
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    if let Some((line, (is, should))) = found.lines().zip(wanted.lines()).enumerate().find(|(_, (is, should))| is != should) {
        panic!("{file} is out of date from line {}:\n  is        {is}\n  should be {should}\nRun `make generate` and commit the result.", line + 1);
    }
    assert_eq!(found.len(), wanted.len(), "{file} is out of date: its length differs. Run `make generate` and commit the result.");
}

/// Helm: `$HELM`, the one on the PATH, or the lab's.
fn helm() -> Option<PathBuf> {
    let works = |path: &Path| Command::new(path).arg("version").output().is_ok_and(|out| out.status.success());
    let lab = || {
        let out = Command::new(root().join("e2e/lab")).args(["cached", "helm"]).output().ok()?;
        Some(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()))
    };
    let named = env::var_os("HELM").filter(|value| !value.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from("helm")).filter(|path| works(path))).or_else(lab).filter(|path| works(path))
}

/// Renders the chart, or says why it was not done. In CI a missing helm is a failure, never a skip.
fn rendered(arguments: &[&str]) -> Option<Result<String, String>> {
    let Some(helm) = helm() else {
        let hint = "no helm: set HELM=/path/to/helm, or build the lab's by `e2e/lab build`";
        assert!(env::var_os("CI").is_none() && env::var_os("DROVER_GENERATE").is_none(), "{hint}");
        eprintln!("not checked: {hint}");
        return None;
    };
    let out = Command::new(helm)
        // A helm that was built from its module believes in Kubernetes 1.20
        .args(["template", "drover", "charts/drover", "--namespace", "drover-system", "--kube-version", "1.37"])
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap_or_else(|error| panic!("helm does not run: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Some(if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) })
}

#[test]
fn the_charts_crds_are_the_types() {
    let wanted = drover::cli::crds::render().unwrap_or_else(|error| panic!("{error}"));
    settle("charts/drover/files/crds.yaml", &wanted);
}

#[test]
fn the_crds_survive_a_reader_of_yaml() {
    let text = drover::cli::crds::render().unwrap_or_else(|error| panic!("{error}"));
    let read: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{error}"));
    let meant: Vec<serde_json::Value> = drover::api::crds().into_iter().map(|crd| serde_json::to_value(crd).unwrap_or_default()).collect();
    assert_eq!(read.len(), meant.len());
    assert!(!text.contains("format: uint"), "the API server warns about formats that it does not know");
    for (read, meant) in read.iter().zip(&meant) {
        assert_eq!(read["spec"]["names"], meant["spec"]["names"]);
        let rules = |crd: &serde_json::Value| {
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["x-kubernetes-validations"].clone()
        };
        assert_eq!(rules(read), rules(meant));
        assert_eq!(read["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
}

#[test]
fn the_installer_is_the_chart() {
    // The chart reads the CRDs from a file that the other test may be writing: render the text from the types first.
    the_charts_crds_are_the_types();
    if let Some(text) = rendered(&["--set", "namespace.create=true", "--no-hooks"]) {
        settle("manifests/install.yaml", &format!("{HEADER}{}", text.unwrap_or_else(|error| panic!("the chart does not render:\n{error}"))));
    }
}

#[test]
fn the_sample_for_kube_scheduler_is_the_charts() {
    let Some(text) = rendered(&["--set", "extender.enabled=true"]) else { return };
    let text = text.unwrap_or_else(|error| panic!("the chart does not render:\n{error}"));
    let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{error}"));
    let named = |kind: &str, name: &str| objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).cloned();
    let sample = named("ConfigMap", "drover-kube-scheduler").unwrap_or_default();
    let sample = sample["data"]["config.yaml"].as_str().unwrap_or_default();
    settle("manifests/kube-scheduler-config.yaml", sample);

    let read: serde_json::Value = serde_saphyr::from_str(sample).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((&read["kind"], &read["extenders"][0]["ignorable"]), (&"KubeSchedulerConfiguration".into(), &true.into()));
    let service = named("Service", "drover-extender").unwrap_or_default();
    let url = format!("https://NODE_ADDRESS:{}/extender", service["spec"]["ports"][0]["nodePort"]);
    assert_eq!(read["extenders"][0]["urlPrefix"], url.as_str());
}

const KAFKA: &str = "kafka.enabled=true,kafka.bootstrapServers=a:1,kafka.clusterCASecret=ca,kafka.manager.userSecret=m,kafka.agent.userSecret=a";

#[test]
fn every_way_of_the_chart_renders() {
    for ways in [
        &["--set", "webhook.certificates.mode=certManager"][..],
        &["--set", "webhook.certificates.mode=secret,webhook.certificates.secretName=mine,webhook.certificates.caBundle=Q0E="],
        &["--set", "agent.kubelet.auth=clientCert,agent.kubelet.insecureTLS=true"],
        &["--set", "extender.enabled=true,extender.nodePort=0,webhook.certificates.mode=certManager"],
        &["--set", "imagePullSecrets.copy=false,crds.install=false,manager.replicas=1"],
        &["--set", KAFKA],
        &["--set", KAFKA, "--set", "kafka.authentication=scram-sha-512,kafka.options.socket\\.keepalive\\.enable=true"],
        &[
            "--set",
            KAFKA,
            "--set",
            "kafka.strimzi.create=true,kafka.strimzi.cluster=c,kafka.strimzi.namespace=kafka,webhook.certificates.mode=certManager",
        ],
        &["--set", "kafka.enabled=true,kafka.bootstrapServers=a:1,kafka.authentication=none"],
        &["--kube-version", "1.31"],
    ] {
        if let Some(Err(error)) = rendered(ways) {
            panic!("helm template {ways:?}:\n{error}");
        }
    }
    for ways in [
        &["--set", "webhook.certificates.mode=typo"][..],
        &["--set", "manager.replica=3"],
        &["--set", "agent.kubelet.auth=password"],
        &["--set", "extender.nodePort=x"],
        &["--set", "kafka.enabled=true,kafka.authentication=none"],
        &["--set", "kafka.enabled=true,kafka.bootstrapServers=a:1"],
        &["--set", KAFKA, "--set", "kafka.strimzi.create=true,kafka.strimzi.cluster=c"],
    ] {
        if let Some(Ok(_)) = rendered(ways) {
            panic!("helm template {ways:?} was expected to be refused");
        }
    }
}
