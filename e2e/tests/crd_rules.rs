//! R21: what the API server itself refuses, whoever asks: each rule of the CRDs is broken once, and the courses that are legal pass.
//!
//! The managers are stopped meanwhile, so that nobody else writes; the Attestations are of a node that does not exist.

use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Map, Value, json};

use drover::api::{
    Attestation, Migration, MigrationSpec,
    migration::{InDoubt, Lane},
};

use crate::support::{
    agents::{self, Part, ready, signal_all},
    lab,
    migrations::to,
    webhook, with_namespace,
};

const AT: &str = "2026-01-01T00:00:00.000000Z";
const LATER: &str = "2026-01-01T00:00:01.000000Z";
/// The phases in their order.
const COURSE: [&str; 11] = [
    "Pending",
    "Preflight",
    "Preparing",
    "Freezing",
    "Checkpointing",
    "Transferring",
    "AwaitingReadiness",
    "SourceDeleting sourceFirst=true",
    "Restoring",
    "Finishing",
    "Done",
];

/// A write that is refused. Statuses are written as in [`status`]; an empty one is absent.
#[derive(Clone, Copy)]
struct Broken {
    what: &'static str,
    before: &'static str,
    after: &'static str,
    because: &'static str,
}

const fn broken(what: &'static str, before: &'static str, after: &'static str, because: &'static str) -> Broken {
    Broken { what, before, after, because }
}

const MIGRATIONS: &[Broken] = &[
    broken("the verdict is rewritten", "Finishing verdict=Rollback", "Finishing verdict=Commit", "status.verdict is written once"),
    broken("the verdict is taken back", "Finishing verdict=Rollback", "Finishing", "status.verdict is written once"),
    broken("the outcome is rewritten", "Done outcome=Failed", "Done outcome=ColdStarted", "status.outcome is written once"),
    broken("the outcome is taken back", "Done outcome=Failed", "Done", "status.outcome is written once"),
    broken("the proof is rewritten", "Restoring neverStarted=at", "Restoring neverStarted=later", "status.neverStarted is written once"),
    broken("the proof is taken back", "Restoring neverStarted=at", "Restoring", "status.neverStarted is written once"),
    broken("a release after the verdict", "Preparing verdict=Rollback", "Restoring verdict=Rollback", "no release once a verdict stands"),
    broken("a release with a verdict", "AwaitingReadiness", "Restoring verdict=Rollback", "no release once a verdict stands"),
    broken("a rollback after the release", "Restoring", "Finishing verdict=Rollback", "no rollback after the release without proof"),
    broken("a rollback that is too late", "Finishing", "Finishing verdict=Rollback neverStarted=at", "no rollback after the release without proof"),
    broken("a commit before the release", "AwaitingReadiness", "Finishing verdict=Commit", "no commit of what was not released"),
    broken("a commit that is too late", "Finishing", "Finishing verdict=Commit", "no commit of what was not released"),
    broken("a commit as the first word", "", "Finishing verdict=Commit", "no commit of what was not released"),
    broken("a commit against the proof", "Restoring", "Finishing verdict=Commit neverStarted=at", "no commit of a replacement that never started"),
    broken("an outcome before the end", "Preflight", "Finishing outcome=Failed", "status.outcome is written with phase Done"),
    broken("a false success", "Finishing verdict=Rollback", "Done verdict=Rollback outcome=Migrated", "status.outcome follows the verdict (I5)"),
    broken("a success without a verdict", "Preflight", "Done outcome=Migrated", "status.outcome follows the verdict (I5)"),
    broken("a part of one pod", "Finishing verdict=Rollback", "Done verdict=Rollback outcome=Partial", "status.outcome follows the verdict (I5)"),
    broken("a part of nothing", "Preflight", "Done outcome=Partial", "status.outcome is Partial only for a Migration of several pods"),
    broken(
        "a parent that moves a pod",
        "Transferring children=c",
        "Finishing children=c verdict=Rollback",
        "a Migration of several pods moves none itself",
    ),
    broken("a rollback without its verdict", "Preflight", "Done outcome=RolledBack", "status.outcome follows the verdict (I5)"),
];

const RESOLVED: &[Broken] = &[
    broken("a decision is rewritten", "Restoring resolved=Source", "Restoring resolved=Destination", "status.resolved is written once"),
    broken("a decision is taken back", "Restoring resolved=Source", "Restoring", "status.resolved is written once"),
    broken(
        "a rollback against the decision",
        "Restoring",
        "Finishing verdict=Rollback resolved=Destination",
        "or a decision for the source (status.resolved)",
    ),
    broken(
        "a success that was decided",
        "Restoring resolved=Source",
        "Done resolved=Source outcome=Migrated",
        "what was decided in doubt is never Migrated",
    ),
];

/// The order in which the source goes before the release.
const SOURCE_FIRST: &[Broken] = &[
    broken("the order is rewritten", "Preparing sourceFirst=true", "Preparing sourceFirst=false", "status.sourceFirst is written once"),
    broken("a source deleted without that order", "AwaitingReadiness", "SourceDeleting", "only where status.sourceFirst says so (R13)"),
    broken(
        "a release before the source is deleted",
        "AwaitingReadiness sourceFirst=true",
        "Restoring sourceFirst=true",
        "no release before the source is deleted (R8)",
    ),
    broken(
        "a rollback of a deleted source without the fallback",
        "SourceDeleting sourceFirst=true",
        "Finishing verdict=Rollback sourceFirst=true",
        "such a rollback needs status.fallback (R13)",
    ),
    broken(
        "a fallback without a rollback",
        "SourceDeleting sourceFirst=true",
        "SourceDeleting sourceFirst=true fallback=p",
        "status.fallback is for a rollback (R13)",
    ),
    broken(
        "the fallback is taken back",
        "Finishing verdict=Rollback sourceFirst=true fallback=p",
        "Finishing verdict=Rollback sourceFirst=true",
        "status.fallback stays",
    ),
    broken(
        "what has not fallen back is given up",
        "SourceDeleting sourceFirst=true",
        "Finishing verdict=Commit sourceFirst=true givenUp=at",
        "status.givenUp is for a fallback that has failed",
    ),
    broken(
        "it is given up a second time",
        "Finishing verdict=Rollback sourceFirst=true fallback=p givenUp=at",
        "Finishing verdict=Rollback sourceFirst=true fallback=p givenUp=later",
        "status.givenUp is written once",
    ),
    broken(
        "what was given up is called a rollback",
        "Finishing verdict=Rollback sourceFirst=true fallback=p givenUp=at",
        "Done verdict=Rollback sourceFirst=true fallback=p givenUp=at outcome=RolledBack",
        "status.outcome is GivenUp where a person has given the pod up",
    ),
];

/// Courses that pass, one status after the other.
const LEGAL: &[&[&str]] = &[
    &["Pending", "Transferring children=c", "Done children=c outcome=Partial"],
    &[
        "Pending",
        "Preflight",
        "Preparing",
        "Freezing",
        "Checkpointing",
        "Transferring",
        "AwaitingReadiness",
        "Restoring",
        "Finishing verdict=Commit",
        "Done verdict=Commit outcome=Migrated",
    ],
    &["AwaitingReadiness", "Restoring", "Finishing verdict=Rollback neverStarted=at", "Done verdict=Rollback neverStarted=at outcome=RolledBack"],
    &["Restoring", "Finishing verdict=Rollback resolved=Source", "Done verdict=Rollback resolved=Source outcome=RolledBack"],
    &["Restoring", "Finishing verdict=Commit resolved=Destination", "Done verdict=Commit resolved=Destination outcome=ColdStarted"],
    &["Preparing", "Finishing verdict=Rollback", "Done verdict=Rollback outcome=RolledBack"],
    &["Preflight", "Done outcome=Failed"],
    &[
        "AwaitingReadiness sourceFirst=true",
        "SourceDeleting sourceFirst=true",
        "Finishing verdict=Rollback sourceFirst=true fallback=p",
        "Done verdict=Rollback sourceFirst=true fallback=p outcome=RolledBack",
    ],
    &[
        "Finishing verdict=Rollback sourceFirst=true fallback=p",
        "Finishing verdict=Rollback sourceFirst=true fallback=p givenUp=at",
        "Done verdict=Rollback sourceFirst=true fallback=p givenUp=at outcome=GivenUp",
    ],
    &["SourceDeleting sourceFirst=true", "Restoring sourceFirst=true", "Finishing verdict=Commit sourceFirst=true"],
];

const ATTESTATIONS: &[Broken] = &[
    broken("the vote is rewritten", "vote=at", "vote=later", "status.vote is written once"),
    broken("the vote is taken back", "vote=at", "pushed=at", "status.vote is written once"),
    broken("the abort is rewritten", "abort=at", "abort=later", "status.abort is written once"),
    broken("the abort is taken back", "abort=at", "thawed=at", "status.abort is written once"),
    broken("an abort after the vote", "vote=at", "vote=at abort=at", "exclude each other (R2)"),
    broken("a vote after the abort", "abort=at", "vote=at abort=at", "exclude each other (R2)"),
    broken("what was restored is rewritten", "restored=at", "restored=later", "status.restored is written once"),
    broken("what was restored is taken back", "restored=at", "prepared=at", "status.restored is written once"),
    broken("restored, and never started", "restored=at", "restored=at neverStarted=at", "exclude each other (R3, R4)"),
    broken("never started, and restored", "neverStarted=at", "restored=at neverStarted=at", "exclude each other (R3, R4)"),
    broken("the proof is rewritten", "neverStarted=at", "neverStarted=later", "status.neverStarted is written once"),
    broken("the proof is taken back", "neverStarted=at", "prepared=at", "status.neverStarted is written once"),
    broken("the confirmation is rewritten", "restored=at confirmed=at", "restored=at confirmed=later", "status.confirmed is written once"),
    broken("the confirmation is taken back", "restored=at confirmed=at", "restored=at", "status.confirmed is written once"),
    broken("the death is rewritten", "died=at", "died=later", "status.died is written once"),
    broken("the cold start is rewritten", "coldStarted=at", "coldStarted=later", "status.coldStarted is written once"),
    broken("died, and never started", "neverStarted=at", "neverStarted=at died=at", "exclude each other (R7)"),
    broken("restored, and started cold", "restored=at", "restored=at coldStarted=at", "exclude each other (R15)"),
    broken("restored after it died", "died=at", "died=at restored=at", "status.restored after status.died (R7)"),
    broken("a confirmation of nothing", "prepared=at", "prepared=at confirmed=at", "status.confirmed needs status.restored"),
];

/// A Migration's status from its phase and `field=value`.
fn status(text: &str) -> Value {
    let mut words = text.split_whitespace();
    let mut status = Map::from_iter([("phase".to_owned(), json!(words.next()))]);
    for word in words {
        let (field, value) = word.split_once('=').unwrap();
        let value = match value {
            "at" => AT,
            "later" => LATER,
            other => other,
        };
        let value = match field {
            "resolved" => json!({"at": AT, "prefer": value, "by": "Person", "message": "so"}),
            "sourceFirst" => json!(value == "true"),
            "children" => json!([{"pod": value, "podUid": value, "migration": value}]),
            "fallback" => json!({"name": value}),
            _ => json!(value),
        };
        status.insert(field.to_owned(), value);
    }
    Value::Object(status)
}

/// An Attestation's status from `field=at` and `field=later`.
fn attested(text: &str) -> Value {
    let field = |word: &str| {
        let (field, at) = word.split_once('=').unwrap();
        let at = if at == "at" { AT } else { LATER };
        let value = match field {
            "vote" => json!({"at": at, "containers": [], "images": []}),
            "pushed" => json!({"at": at, "images": []}),
            "abort" | "coldStarted" => json!({"at": at, "message": "late"}),
            "prepared" => json!({"at": at, "pushAddress": "n", "pullAddress": "n"}),
            "restored" | "neverStarted" | "died" => json!({"at": at, "containers": []}),
            _ => json!({"at": at}),
        };
        (field.to_owned(), value)
    };
    Value::Object(text.split_whitespace().map(field).collect())
}

/// Writes a status, whatever stood there.
async fn write<K>(api: &Api<K>, name: &str, status: &Value) -> Result<(), String>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let patch: json_patch::Patch = serde_json::from_value(json!([{"op": "add", "path": "/status", "value": status}])).unwrap();
    api.patch_status(name, &PatchParams::default(), &Patch::<()>::Json(patch)).await.map(drop).map_err(|e| e.to_string())
}

#[track_caller]
fn assert_refused(what: &str, answer: Result<(), String>, because: &str) {
    match answer {
        Ok(()) => panic!("{what}: was accepted"),
        Err(error) => assert!(error.contains(because), "{what}: was refused, but not because of {because:?}: {error}"),
    }
}

async fn make(migrations: &Api<Migration>, name: &str, spec: MigrationSpec) -> Result<(), String> {
    migrations.create(&PostParams::default(), &Migration::new(name, spec)).await.map(drop).map_err(|e| e.to_string())
}

/// Stops the managers, whom nobody then asks either, until the answer is dropped.
async fn without_managers(client: &kube::Client) -> impl Drop + use<> {
    let unasked = webhook::nobody_answers(client).await;
    let managers = Part::Managers.pids();
    assert!(!managers.is_empty(), "no manager runs");
    signal_all(&managers, "STOP");
    let mut unasked = Some(unasked);
    lab::Restore(move || {
        signal_all(&managers, "CONT");
        unasked.take();
    })
}

#[test]
fn a_migration_keeps_its_rules_whoever_writes() {
    with_namespace("rules", |namespace| async move {
        let asleep = without_managers(&namespace.client).await;
        let migrations = namespace.migrations();
        let backwards = COURSE.windows(2).map(|pair| broken("a phase backwards", pair[1], pair[0], "status.phase never goes back"));
        for (index, rule) in MIGRATIONS.iter().chain(RESOLVED).chain(SOURCE_FIRST).copied().chain(backwards).enumerate() {
            let name = format!("broken-{index}");
            make(&migrations, &name, to("nobody", "n2")).await.unwrap();
            if !rule.before.is_empty() {
                assert_eq!(write(&migrations, &name, &status(rule.before)).await, Ok(()), "before {}", rule.what);
            }
            assert_refused(rule.what, write(&migrations, &name, &status(rule.after)).await, rule.because);
            migrations.delete(&name, &DeleteParams::default()).await.unwrap();
        }
        for (index, course) in LEGAL.iter().enumerate() {
            let name = format!("legal-{index}");
            make(&migrations, &name, to("nobody", "n2")).await.unwrap();
            for step in *course {
                assert_eq!(write(&migrations, &name, &status(step)).await, Ok(()), "{step} in {course:?}");
            }
            migrations.delete(&name, &DeleteParams::default()).await.unwrap();
        }
        drop(asleep);
        ready();
    });
}

#[test]
fn a_migration_is_what_it_was_made_as() {
    with_namespace("spec", |namespace| async move {
        let asleep = without_managers(&namespace.client).await;
        let migrations = namespace.migrations();
        make(&migrations, "immutable", to("nobody", "n2")).await.unwrap();
        let change = Patch::Merge(json!({"spec": {"deadlineSeconds": 3600}}));
        let changed = migrations.patch("immutable", &PatchParams::default(), &change).await.map(drop).map_err(|e| e.to_string());
        assert_refused("the spec is changed", changed, "spec is immutable");
        let two = MigrationSpec { deployment: Some("web".to_owned()), ..to("nobody", "n2") };
        assert_refused("two subjects", make(&migrations, "two", two).await, "exactly one of spec.podName");
        let none = MigrationSpec { pod_name: None, ..to("nobody", "n2") };
        assert_refused("no subject", make(&migrations, "none", none).await, "exactly one of spec.podName");
        assert_refused("a long name", make(&migrations, &"x".repeat(53), to("nobody", "n2")).await, "no more than 52 characters");
        let by_runtime = || MigrationSpec { lane: Lane::Runtime, post_copy: true, ..to("nobody", "n2") };
        for (name, spec) in [
            ("auto", MigrationSpec { lane: Lane::Auto, ..by_runtime() }),
            ("same-name", MigrationSpec { keep_name: true, ..by_runtime() }),
            ("cold", MigrationSpec { in_doubt: InDoubt::PreferDestination, ..by_runtime() }),
        ] {
            assert_refused(name, make(&migrations, name, spec).await, "spec.postCopy needs spec.lane: runtime");
        }
        migrations.delete("immutable", &DeleteParams::default()).await.unwrap();
        drop(asleep);
        ready();
    });
}

#[test]
fn an_attestation_keeps_its_rules_even_against_its_own_agent() {
    const NOWHERE: &str = "no-such-node";
    with_namespace("words", |namespace| async move {
        let all = namespace.attestations();
        let own: Api<Attestation> = Api::namespaced(agents::client(NOWHERE).await, &namespace.name);
        for (index, rule) in ATTESTATIONS.iter().enumerate() {
            let object = json!({"metadata": {"name": format!("broken-{index}")},
                "spec": {"migration": "none", "migrationUID": "none", "nodeName": NOWHERE, "podUID": "none", "role": "Source"}});
            let name = all.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap().name_any();
            assert_eq!(write(&own, &name, &attested(rule.before)).await, Ok(()), "before {}", rule.what);
            assert_refused(rule.what, write(&own, &name, &attested(rule.after)).await, rule.because);
        }
        let change = Patch::Merge(json!({"spec": {"nodeName": "n1"}}));
        let changed = all.patch("broken-0", &PatchParams::default(), &change).await.map(drop).map_err(|e| e.to_string());
        assert_refused("the spec is changed", changed, "spec is immutable");
    });
}
