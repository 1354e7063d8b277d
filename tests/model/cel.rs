//! The CRDs' own rules (R21), as the API server evaluates them when a status is written.

use std::sync::LazyLock;

use cel::{Context, Program, Value, to_value};
use drover::api::{Attestation, Migration};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, ValidationRule};
use kube::CustomResourceExt as _;
use serde::Serialize;

use crate::intern::{Id, Memo, STATUSES, WORDS};

/// The rules of one kind's status.
struct Rules(Vec<(Program, String)>);

static MIGRATION: LazyLock<Rules> = LazyLock::new(|| Rules::of(&Migration::crd()));
static ATTESTATION: LazyLock<Rules> = LazyLock::new(|| Rules::of(&Attestation::crd()));

impl Rules {
    fn of(crd: &CustomResourceDefinition) -> Self {
        let schema = crd.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()).expect("a CRD has a schema");
        let status = schema.properties.as_ref().and_then(|fields| fields.get("status")).expect("it has a status");
        let rules = status.x_kubernetes_validations.as_ref().expect("its status has rules");
        assert!(!rules.is_empty(), "its status has rules");
        let compile = |rule: &str| Program::compile(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
        // With optionalOldSelf the old value is an optional; here there always is one.
        let plain = |rule: &ValidationRule| match rule.optional_old_self {
            Some(true) => rule.rule.replace("oldSelf.hasValue()", "true").replace("oldSelf.value()", "oldSelf"),
            _ => rule.rule.clone(),
        };
        Self(rules.iter().map(|rule| (compile(&plain(rule)), rule.message.clone().unwrap_or_default())).collect())
    }

    /// The first rule that does not let `old` become `new`.
    fn refusal(&self, old: &impl Serialize, new: &impl Serialize) -> Option<String> {
        let mut context = Context::default();
        context.add_variable_from_value("self", json(new));
        context.add_variable_from_value("oldSelf", json(old));
        self.0.iter().find_map(|(program, message)| match program.execute(&context) {
            Ok(Value::Bool(true)) => None,
            Ok(_) => Some(message.clone()),
            Err(error) => panic!("{message}: {error}"),
        })
    }
}

/// By way of JSON, so that a field that is not written is not there.
fn json(value: &impl Serialize) -> Value {
    to_value(serde_json::to_value(value).expect("a status is JSON")).expect("JSON is a value")
}

/// Whether a Migration's status may become another one.
pub fn migration_allows(old: Id, new: Id) -> bool {
    static KNOWN: Memo<(Id, Id), bool> = Memo::new();
    *KNOWN.ask((old, new), |(old, new)| MIGRATION.refusal(STATUSES.get(*old), STATUSES.get(*new)).is_none())
}

/// Whether an attestation may become another one.
pub fn attestation_allows(old: Id, new: Id) -> bool {
    static KNOWN: Memo<(Id, Id), bool> = Memo::new();
    *KNOWN.ask((old, new), |(old, new)| ATTESTATION.refusal(WORDS.get(*old), WORDS.get(*new)).is_none())
}

#[test]
fn the_rules_are_evaluated() {
    use drover::api::{MigrationStatus, Phase, Verdict};
    let before = MigrationStatus { phase: Phase::Restoring, ..MigrationStatus::default() };
    let after = MigrationStatus { phase: Phase::Finishing, verdict: Some(Verdict::Rollback), ..MigrationStatus::default() };
    assert!(MIGRATION.refusal(&before, &after).is_some_and(|why| why.contains("proof")), "no rollback without proof");
    assert_eq!(MIGRATION.refusal(&after, &before).as_deref(), Some("status.verdict is written once"));
    assert_eq!(MIGRATION.refusal(&before, &before), None);
}
