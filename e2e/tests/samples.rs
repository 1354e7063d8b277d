//! The samples do what they say, as `kubectl apply -k` applies them.

use std::path::Path;

use drover::api::Outcome;

use crate::support::{Namespace, lab, migrations::assert_outcome, with_namespace};

#[test]
fn the_samples_migration_moves_its_pod() {
    with_namespace("samples", |namespace| async move {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/samples");
        let folder = folder.to_str().unwrap();
        let remove = || drop(lab::try_lab(&["kubectl", "delete", "-k", folder, "--ignore-not-found", "--wait=true", "--timeout=60s"]));
        remove();
        let _remove = lab::Restore(remove);
        lab::lab(&["kubectl", "apply", "-k", folder]);
        let default = Namespace { name: "default".to_owned(), ..namespace };
        let migration = default.until_done("drover-sample").await;
        assert_outcome(&migration, Outcome::Migrated);
        default.assert_no_leftovers(&migration).await;
        let copy = crate::support::migrations::replacement(&migration);
        let _ = lab::try_lab(&["kubectl", "delete", "pod", &copy, "--grace-period=1"]);
    });
}
