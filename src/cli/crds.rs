//! `drover crds`: the custom resource definitions, as they stand in charts/ and manifests/.

use kube::ResourceExt as _;

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
        text.push_str("---\n");
        // By way of a JSON value: its maps are sorted.
        text.push_str(&serde_saphyr::to_string(&serde_json::to_value(crd)?)?);
    }
    Ok(text)
}
