//! What the lab's real kube-scheduler has posted (testdata/README.md), read and answered.

use super::*;
use crate::domain::extender::protocol::ExtenderPreemptionArgs;

const NAMES_ORDINARY: &[u8] = include_bytes!("../testdata/names-ordinary.json");
const FULL_ORDINARY: &[u8] = include_bytes!("../testdata/full-ordinary.json");
const NAMES_REPLACEMENT: &[u8] = include_bytes!("../testdata/names-replacement.json");
const FULL_REPLACEMENT: &[u8] = include_bytes!("../testdata/full-replacement.json");
const PREEMPT_NAMES: &[u8] = include_bytes!("../testdata/preempt-names.json");
const PREEMPT_FULL: &[u8] = include_bytes!("../testdata/preempt-full.json");

/// The recorded replacement's Migration, as far as the extender looks at it.
fn move_web(node: &str) -> Migration {
    let migration = json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Migration",
        "metadata": {"name": "move-web", "namespace": "golden", "uid": "67a40d75-d048-480e-bd04-84459858029a"},
        "spec": {"podName": "web", "destination": {"nodeName": node}},
        "status": {"phase": "Preparing", "source": {"name": "web", "uid": "s", "nodeName": "n1"}, "replacement": {"name": "web-67a40d"},
            "destination": {"nodeName": node}}
    });
    serde_json::from_value(migration).unwrap()
}

fn read(body: &[u8]) -> ExtenderArgs {
    ExtenderArgs::read(body).expect("what kube-scheduler posts can be read")
}

#[test]
fn an_ordinary_pod_gets_back_what_was_sent() {
    for body in [NAMES_ORDINARY, FULL_ORDINARY] {
        let sent: Value = serde_json::from_slice(body).unwrap();
        assert!(made_for(&read(body).pod).is_none());
        assert_eq!(serde_json::to_value(indifferent(&read(body))).unwrap(), json!([{"Host": "n2", "Score": 0}, {"Host": "n1", "Score": 0}]));
        let answer = serde_json::to_value(pass(read(body))).unwrap();
        assert_eq!((&answer["Nodes"], &answer["NodeNames"]), (&sent["Nodes"], &sent["NodeNames"]), "unchanged");
    }
}

#[test]
fn a_recorded_replacement_goes_to_its_node_only() {
    for body in [NAMES_REPLACEMENT, FULL_REPLACEMENT] {
        let args = read(body);
        assert_eq!(args.names(), ["n2"], "its affinity has excluded n1 already");
        let [to_n2, to_n1] = [[move_web("n2")], [move_web("n1")]];
        let filtered = |migrations: &[Migration]| filter(args.clone(), &Placement::of(&args.pod, migrations).expect("its Migration"), &three());
        let passed = filtered(&to_n2);
        assert_eq!((passed.passing(), passed.failed_and_unresolvable_nodes.len()), (1, 0), "{passed:?}");
        let contradicted = filtered(&to_n1);
        assert_eq!(contradicted.passing(), 0);
        assert_told(contradicted.failed_and_unresolvable_nodes.get("n2"), "Migration move-web moves this pod to node n1 and nowhere else");
    }
}

#[test]
fn the_node_that_has_the_base_image_is_preferred() {
    let replacement = read(FULL_REPLACEMENT).pod;
    let mut args = read(FULL_ORDINARY);
    args.pod = replacement;
    let best = |args: &ExtenderArgs| prioritize(args, &Facts::default()).into_iter().map(|found| found.score).collect::<Vec<_>>();
    assert_eq!(best(&args), [5, 5], "both nodes have it");
    let node = args.nodes.as_mut().and_then(|list| list.items.as_mut()).and_then(|items| items.first_mut()).unwrap();
    node["status"]["images"].as_array_mut().unwrap().retain(|image| !image["names"][0].as_str().unwrap().contains("/counter@"));
    assert_eq!(best(&args), [0, 5]);
}

#[test]
fn recorded_victims_are_spared_in_both_forms() {
    for body in [PREEMPT_NAMES, PREEMPT_FULL] {
        let args = || ExtenderPreemptionArgs::read(body).expect("what kube-scheduler posts can be read");
        let answer = serde_json::to_value(preempt(args(), &[])).unwrap();
        let victims = json!({"n2": {"Pods": [{"UID": "1fa1f080-fa22-4ab9-8197-7c9beb829a68"}], "NumPDBViolations": 0}});
        assert_eq!(answer["NodeNameToMetaVictims"], victims);
        let mut migration = move_web("n2");
        migration.status.as_mut().unwrap().replacement.as_mut().unwrap().uid = "1fa1f080-fa22-4ab9-8197-7c9beb829a68".into();
        assert_eq!(preempt(args(), &[migration]).node_name_to_meta_victims.len(), 0);
    }
}
