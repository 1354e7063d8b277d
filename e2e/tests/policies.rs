//! What the API server itself keeps, whether or not Drover runs: the chart's admission policies and its rights.
//!
//! Everything is asked by impersonation, so the same requests run as a user, as the manager and as the agent of a node.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

const IMAGE: &str = "10.88.0.1:5000/counter:1";
const CHECKPOINT: &str = "127.0.0.1:5785/drover/00ff00ff:c";
const MANAGER: &[&str] = &["--as=system:serviceaccount:drover-system:drover-manager"];
const AGENT_OF_N1: &[&str] = &["--as=system:serviceaccount:drover-system:drover-agent", "--as-user-extra=authentication.kubernetes.io/node-name=n1"];
const ADMINISTRATOR: &[&str] = &[];

/// A namespace of one test, removed with what is in it.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let namespace = Self(format!("policies-{name}-{}", std::process::id()));
        expect_accepted("the namespace", run(ADMINISTRATOR, &["create", "namespace", &namespace.0], None));
        let account = ["wait", "--for=create", "serviceaccount/default", "--timeout=20s"];
        expect_accepted("its default service account", namespace.ask(ADMINISTRATOR, &account, None));
        namespace
    }

    /// kubectl in this namespace.
    fn ask(&self, who: &[&str], what: &[&str], input: Option<&str>) -> Result<(), String> {
        run(who, &[&["--namespace", &self.0], what].concat(), input)
    }

    /// Creates a pod with this spec.
    fn pod(&self, who: &[&str], name: &str, spec: &str) -> Result<(), String> {
        let pod = format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}},"spec":{spec}}}"#);
        self.ask(who, &["create", "-f", "-"], Some(&pod))
    }

    fn set_image(&self, who: &[&str], pod: &str, container: usize, image: &str) -> Result<(), String> {
        let patch = format!(r#"[{{"op":"replace","path":"/spec/containers/{container}/image","value":"{image}"}}]"#);
        self.ask(who, &["patch", "pod", pod, "--type=json", "--patch", &patch], None)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failed removal must not hide the failure that led here
        let _ = run(ADMINISTRATOR, &["delete", "namespace", &self.0, "--wait=false"], None);
    }
}

fn run(who: &[&str], what: &[&str], input: Option<&str>) -> Result<(), String> {
    let mut child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/lab"))
        .arg("kubectl")
        .args(what)
        .args(who)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("e2e/lab runs");
    child.stdin.take().expect("a pipe").write_all(input.unwrap_or_default().as_bytes()).expect("kubectl reads");
    let out = child.wait_with_output().expect("kubectl ends");
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

#[track_caller]
fn expect_accepted(what: &str, answer: Result<(), String>) {
    assert_eq!(answer, Ok(()), "{what}: was expected to be accepted");
}

#[track_caller]
fn expect_refused(what: &str, answer: Result<(), String>, because: &str) {
    match answer {
        Ok(()) => panic!("{what}: was accepted"),
        Err(error) => assert!(error.contains(because), "{what}: was refused, but not because of {because:?}:\n{error}"),
    }
}

#[test]
fn nobody_names_a_checkpoint_but_the_manager() {
    let namespace = Namespace::new("checkpoints");
    let container = |image: &str| format!(r#"[{{"name":"c","image":"{image}"}}]"#);
    let because = "is a checkpoint of Drover's";
    let pod = |name: &str, spec: String| namespace.pod(ADMINISTRATOR, name, &spec);

    expect_refused("a container", pod("a", format!(r#"{{"containers":{}}}"#, container(CHECKPOINT))), because);
    expect_refused("another spelling", pod("a", format!(r#"{{"containers":{}}}"#, container("localhost:05785/drover/00:c"))), because);
    let spec = format!(r#"{{"initContainers":[{{"name":"i","image":"{CHECKPOINT}"}}],"containers":{}}}"#, container(IMAGE));
    expect_refused("an init container", pod("a", spec), because);
    let spec = format!(r#"{{"volumes":[{{"name":"v","image":{{"reference":"{CHECKPOINT}"}}}}],"containers":{}}}"#, container(IMAGE));
    expect_refused("an image volume", pod("a", spec), "which nobody may mount");
    expect_accepted("an ordinary pod", pod("a", format!(r#"{{"containers":[{{"name":"c","image":"{IMAGE}"}},{{"name":"d","image":"{IMAGE}"}}]}}"#)));
    expect_refused("a later change", namespace.set_image(ADMINISTRATOR, "a", 0, CHECKPOINT), because);
    let debug = ["debug", "a", "--image", CHECKPOINT, "--container", "e"];
    expect_refused("an ephemeral container", namespace.ask(ADMINISTRATOR, &debug, None), because);

    expect_accepted("the manager's change", namespace.set_image(MANAGER, "a", 0, CHECKPOINT));
    expect_accepted("a user's later change of something else", namespace.ask(ADMINISTRATOR, &["annotate", "pod", "a", "note=kept"], None));
    expect_refused("the same image in another container", namespace.set_image(ADMINISTRATOR, "a", 1, CHECKPOINT), because);
    expect_refused("another tag", namespace.set_image(ADMINISTRATOR, "a", 0, "127.0.0.1:5785/drover/00ff00ff:d"), because);
    expect_accepted("an ordinary image again", namespace.set_image(ADMINISTRATOR, "a", 0, IMAGE));
}

#[test]
fn an_attestation_is_the_word_of_its_own_nodes_agent() {
    let namespace = Namespace::new("attestations");
    let make = |who, name: &str, node: &str| {
        let object = format!(
            r#"{{"apiVersion":"drover.dev/v1alpha1","kind":"Attestation","metadata":{{"name":"{name}"}},
            "spec":{{"migration":"m","migrationUID":"u","nodeName":"{node}","podUID":"p","role":"Source"}}}}"#
        );
        namespace.ask(who, &["create", "-f", "-"], Some(&object))
    };
    let say = |who, name: &str| {
        let word = r#"{"status":{"thawed":{"at":"2026-01-01T00:00:00.000000Z"}}}"#;
        namespace.ask(who, &["patch", "attestation", name, "--subresource=status", "--type=merge", "--patch", word], None)
    };
    expect_refused("an agent makes one", make(AGENT_OF_N1, "one", "n1"), "cannot create resource");
    expect_accepted("the manager makes n1's", make(MANAGER, "one", "n1"));
    expect_accepted("the manager makes n2's", make(MANAGER, "two", "n2"));
    expect_accepted("n1's agent speaks for n1", say(AGENT_OF_N1, "one"));
    expect_refused("n1's agent speaks for n2", say(AGENT_OF_N1, "two"), "only the agent of node n2");
    expect_refused("an administrator speaks for n2", say(ADMINISTRATOR, "two"), "only the agent of node n2");
    expect_refused("the manager speaks for n2", say(MANAGER, "two"), "cannot patch resource");
}

#[test]
fn a_node_profile_is_its_own_nodes() {
    let make = |who, node: &str| {
        let object = format!(r#"{{"apiVersion":"drover.dev/v1alpha1","kind":"NodeProfile","metadata":{{"name":"{node}"}},"spec":{{}}}}"#);
        run(who, &["create", "--dry-run=server", "-f", "-"], Some(&object))
    };
    expect_refused("n1's agent for another node", make(AGENT_OF_N1, "no-such-node"), "only the agent of node no-such-node");
    expect_refused("an administrator", make(ADMINISTRATOR, "no-such-node"), "only the agent of node no-such-node");
    let agent_of_none: &[&str] = &[AGENT_OF_N1[0], "--as-user-extra=authentication.kubernetes.io/node-name=no-such-node"];
    expect_accepted("the node's own agent", make(agent_of_none, "no-such-node"));
}

#[test]
fn rights_are_no_larger_than_needed() {
    let can = |who: &[&str], what: &[&str]| run(who, &[&["auth", "can-i"], what].concat(), None).is_ok();
    let (verbs, system) = (["get", "list", "create", "update", "delete"], "--namespace=drover-system");
    for verb in verbs {
        assert!(!can(AGENT_OF_N1, &[verb, "pods"]), "an agent may {verb} pods");
        assert_eq!(can(MANAGER, &[verb, "secrets", "--namespace=default"]), verb == "get", "the manager and {verb} secrets");
        assert!(!can(AGENT_OF_N1, &[verb, "secrets", system]), "an agent may {verb} every secret of its namespace, where the CA's key lies");
        let one = can(AGENT_OF_N1, &[verb, "secrets/drover-pull-credentials", system]);
        assert!(verb == "create" || one == (verb == "get"), "an agent and {verb} the pull credentials");
    }
    assert!(!can(AGENT_OF_N1, &["get", "secrets", "--namespace=default"]));
    assert!(!can(AGENT_OF_N1, &["update", "migrations", "--subresource=status", "--namespace=default"]));
    assert!(!can(MANAGER, &["update", "attestations", "--subresource=status", "--namespace=default"]));
    assert!(!can(MANAGER, &["create", "pods", "--subresource=exec", "--namespace=default"]));
    assert!(can(AGENT_OF_N1, &["create", "nodes", "--subresource=checkpoint"]));
}
