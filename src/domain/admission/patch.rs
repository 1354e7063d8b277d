//! The smallest JSON patch from a pod to what it should be.

use std::collections::BTreeMap;

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::Value;

/// A pod's annotations, labels and images, before and after.
///
/// Only these are compared: a diff of the whole object would drop fields that this version of the API types does not know.
pub struct Patched<'a> {
    pod: &'a Pod,
    annotations: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    images: Vec<(String, String, String)>,
}

impl<'a> Patched<'a> {
    pub fn new(pod: &'a Pod) -> Self {
        Self { pod, annotations: pod.annotations().clone(), labels: pod.labels().clone(), images: Vec::new() }
    }

    pub fn set_annotation(&mut self, key: &str, value: &str) {
        self.annotations.insert(key.to_owned(), value.to_owned());
    }

    /// Whether there was one to remove.
    pub fn remove_annotation(&mut self, key: &str) -> bool {
        self.annotations.remove(key).is_some()
    }

    /// Whether there was one to remove.
    pub fn remove_label(&mut self, key: &str) -> bool {
        self.labels.remove(key).is_some()
    }

    /// Container name → image. Names that the pod does not have are the caller's business.
    pub fn set_images(&mut self, images: &BTreeMap<String, String>) {
        let Some(spec) = &self.pod.spec else { return };
        for (list, containers) in [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)] {
            for (index, container) in containers.iter().enumerate() {
                let Some(wanted) = images.get(&container.name) else { continue };
                if container.image.as_ref() != Some(wanted) {
                    self.images.push((list.to_owned(), index.to_string(), wanted.clone()));
                }
            }
        }
    }

    pub fn diff(&self) -> Patch {
        let mut operations = Vec::new();
        diff_map("annotations", self.pod.annotations(), &self.annotations, &mut operations);
        diff_map("labels", self.pod.labels(), &self.labels, &mut operations);
        for (list, index, image) in &self.images {
            // `add` replaces a member that is there (RFC 6902, 4.1) and also serves a container without an image.
            let path = PointerBuf::from_tokens(["spec", list, index, "image"]);
            operations.push(PatchOperation::Add(AddOperation { path, value: Value::String(image.clone()) }));
        }
        Patch(operations)
    }
}

/// Keys hold slashes, which a JSON pointer writes as `~1`; `from_tokens` escapes them.
fn diff_map(field: &str, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>, operations: &mut Vec<PatchOperation>) {
    if before.is_empty() && !after.is_empty() {
        let value = serde_json::json!(after);
        operations.push(PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(["metadata", field]), value }));
        return;
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        operations.push(PatchOperation::Remove(RemoveOperation { path: PointerBuf::from_tokens(["metadata", field, key]) }));
    }
    for (key, value) in after {
        let path = PointerBuf::from_tokens(["metadata", field, key]);
        let value_json = Value::String(value.clone());
        match before.get(key) {
            None => operations.push(PatchOperation::Add(AddOperation { path, value: value_json })),
            Some(old) if old != value => operations.push(PatchOperation::Replace(ReplaceOperation { path, value: value_json })),
            Some(_) => {}
        }
    }
}
