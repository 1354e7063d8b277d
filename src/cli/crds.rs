//! `drover crds`: the custom resource definitions, as they stand in charts/ and manifests/.

use kube::ResourceExt as _;
use serde_json::Value;

/// What the text begins with, so that nobody edits the file that holds it.
const HEADER: &str = "# The types of src/api as custom resource definitions, printed by `drover crds`. Do not edit: `make generate`.\n";

/// The CRDs as YAML documents; the same types give the same bytes.
///
/// Each carries Helm's `keep`: removing the chart must not remove every Migration, and with it the knowledge of which copy of a pod lives.
///
/// # Errors
/// Where a type cannot be written as YAML, which would be a mistake in the type.
pub fn render() -> anyhow::Result<String> {
    let mut text = HEADER.to_owned();
    for mut crd in crate::api::crds() {
        crd.annotations_mut().insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
        // By way of a JSON value: its maps are sorted.
        let mut value = serde_json::to_value(crd)?;
        drop_unsigned_formats(&mut value);
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&value)?);
    }
    Ok(text)
}

/// The API server knows no unsigned formats and warns about each at every install; `minimum: 0`, which stays, says the same.
fn drop_unsigned_formats(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                map.remove("format");
            }
            map.values_mut().for_each(drop_unsigned_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_unsigned_formats),
        _ => {}
    }
}
