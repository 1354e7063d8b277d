//! Fields that the cluster knows and Drover's types do not yet: a pod that Drover makes after another one has them all the same.

use serde_json::{Map, Value};

/// Key by which the entries of Kubernetes' lists are told apart.
const NAME: &str = "name";

/// What of `whole` is missing in `known`, which is the same read by types that know less; none where nothing is. Entries of lists keep their names, and are
/// otherwise looked at only where both lists have as many.
#[must_use]
pub fn of(whole: &Value, known: &Value) -> Option<Value> {
    match (whole, known) {
        (Value::Object(whole), Value::Object(known)) => {
            let part = |(key, value): (&String, &Value)| match known.get(key) {
                None => Some((key.clone(), value.clone())),
                Some(known) => of(value, known).map(|part| (key.clone(), part)),
            };
            let parts: Map<String, Value> = whole.iter().filter_map(part).collect();
            (!parts.is_empty()).then_some(Value::Object(parts))
        }
        (Value::Array(whole), Value::Array(known)) if whole.len() == known.len() => {
            let parts: Vec<Value> = whole.iter().zip(known).map(|(whole, known)| entry(whole, known)).collect();
            parts.iter().any(is_more_than_a_name).then_some(Value::Array(parts))
        }
        _ => None,
    }
}

fn entry(whole: &Value, known: &Value) -> Value {
    let mut part = of(whole, known).unwrap_or(Value::Null);
    if let Some(name) = whole.get(NAME) {
        match &mut part {
            Value::Object(part) => {
                part.insert(NAME.to_owned(), name.clone());
            }
            part => *part = Value::Object([(NAME.to_owned(), name.clone())].into_iter().collect()),
        }
    }
    part
}

fn is_more_than_a_name(part: &Value) -> bool {
    match part {
        Value::Object(part) => part.keys().any(|key| key != NAME),
        Value::Null => false,
        _ => true,
    }
}

/// Adds what is missing in `target`: never a change of what it has. Entries of lists are found by their names, or by their place where they have none;
/// those that the target does not have, such as a volume that was left out, are passed over.
pub fn add(target: &mut Value, missing: &Value) {
    match (target, missing) {
        (Value::Object(target), Value::Object(missing)) => {
            for (key, value) in missing {
                match target.get_mut(key) {
                    Some(target) => add(target, value),
                    None => {
                        target.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(target), Value::Array(missing)) => {
            for (place, missing) in missing.iter().enumerate() {
                let found = match missing.get(NAME) {
                    Some(name) => target.iter_mut().find(|entry| entry.get(NAME) == Some(name)),
                    None => target.get_mut(place),
                };
                if let Some(entry) = found {
                    add(entry, missing);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_types_do_not_know_is_carried_over_and_nothing_else() {
        let known = json!({
            "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "j"}], "tolerations": [{"key": "k"}],
            "volumes": [{"name": "v", "emptyDir": {}}]
        });
        let mut whole = known.clone();
        whole["responders"] = json!([{"name": "r"}]);
        whole["containers"][1]["newer"] = json!({"field": 1});
        whole["tolerations"][0]["op"] = json!("Gt");
        whole["volumes"][0]["emptyDir"]["sticky"] = json!(true);
        let missing = of(&whole, &known).unwrap();
        let mut copy = json!({
            "containers": [{"name": "b", "image": "changed"}, {"name": "a", "image": "changed"}], "tolerations": [{"key": "other"}, {"key": "k"}],
            "volumes": [], "nodeName": "n2"
        });
        add(&mut copy, &missing);
        let wanted = json!({
            "containers": [{"name": "b", "image": "changed", "newer": {"field": 1}}, {"name": "a", "image": "changed"}],
            "tolerations": [{"key": "other", "op": "Gt"}, {"key": "k"}], "volumes": [], "nodeName": "n2", "responders": [{"name": "r"}]
        });
        assert_eq!(copy, wanted, "a nameless entry goes by its place");
        assert_eq!(of(&known, &known), None);
        assert_eq!(of(&json!({"a": [1, 2]}), &json!({"a": [1]})), None, "lists that cannot be told apart");
    }

    #[test]
    fn a_pod_of_fields_that_are_known_has_no_others() {
        let spec = json!({
            "containers": [{"name": "c", "image": "i", "resources": {}, "env": [{"name": "A", "value": ""}], "securityContext": {}, "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "16Mi"}}, {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
            "securityContext": {}, "tolerations": [{"operator": "Exists"}], "nodeName": "n1", "priority": 0
        });
        let typed: k8s_openapi::api::core::v1::PodSpec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(of(&spec, &serde_json::to_value(typed).unwrap()), None);
    }
}
