//! Which program runs, and what stands in for it.

use super::*;

fn container(value: &Value) -> Container {
    let mut whole = json!({"name": "init", "image": "i"});
    json_patch::merge(&mut whole, value);
    serde_json::from_value(whole).unwrap()
}

fn places_of(spec: &Value, config: &Value) -> Result<Vec<String>, String> {
    places(&recorded(&container(spec), String::new()), &json!({ "config": config }))
}

#[test]
fn the_program_is_the_commands_else_the_images() {
    let image = json!({"Entrypoint": ["/entry"], "Cmd": ["serve"]});
    assert_eq!(places_of(&json!({}), &image).unwrap(), ["/entry"]);
    assert_eq!(places_of(&json!({"args": ["x"]}), &image).unwrap(), ["/entry"]);
    assert_eq!(places_of(&json!({"command": ["/bin//sh", "-c", "true"]}), &image).unwrap(), ["/bin/sh"]);
    assert_eq!(places_of(&json!({"args": ["/a"]}), &json!({"Cmd": ["/c"]})).unwrap(), ["/a"]);
    assert_eq!(places_of(&json!({}), &json!({"Cmd": ["/c"]})).unwrap(), ["/c"]);
    assert!(places_of(&json!({}), &json!({})).unwrap_err().contains("names a program"));
}

#[test]
fn a_bare_name_is_found_in_every_folder_of_the_path() {
    let image = json!({"Env": ["HOME=/", "PATH=/opt/bin:/bin"]});
    assert_eq!(places_of(&json!({"command": ["sh"]}), &image).unwrap(), ["/opt/bin/sh", "/bin/sh"]);
    let own = json!({"command": ["sh"], "env": [{"name": "PATH", "value": "/own"}]});
    assert_eq!(places_of(&own, &image).unwrap(), ["/own/sh"]);
    assert_eq!(places_of(&json!({"command": ["sh"]}), &json!({})).unwrap().len(), 6, "containerd's default");
}

#[test]
fn a_relative_name_begins_at_the_working_folder() {
    assert_eq!(places_of(&json!({"command": ["./run"]}), &json!({"WorkingDir": "/srv"})).unwrap(), ["/srv/run"]);
    assert_eq!(places_of(&json!({"command": ["bin/run"], "workingDir": "/app/"}), &json!({"WorkingDir": "/srv"})).unwrap(), ["/app/bin/run"]);
    assert!(places_of(&json!({"command": ["../run"]}), &json!({})).unwrap_err().contains("no plain path"));
}

#[test]
fn a_program_in_a_volume_has_no_place() {
    let mounted = |path: &str| json!({"command": ["/scripts/init.sh"], "volumeMounts": [{"name": "v", "mountPath": path}]});
    assert!(places_of(&mounted("/scripts/"), &json!({})).unwrap_err().contains("mounted at /scripts/"));
    assert!(places_of(&mounted("/"), &json!({})).is_err());
    assert_eq!(places_of(&mounted("/script"), &json!({})).unwrap(), ["/scripts/init.sh"]);
}

#[test]
fn what_cannot_be_told_beforehand_is_refused_with_its_field() {
    let fields = |spec: Value| obstacles(&container(&spec)).into_iter().map(|(field, _, _)| field).collect::<Vec<_>>();
    assert_eq!(fields(json!({"command": ["sh", "-c", "echo $(X)"]})), Vec::<&str>::new());
    assert_eq!(fields(json!({"command": ["$(SHELL)"]})), [".command"]);
    assert_eq!(fields(json!({"command": ["sh"], "envFrom": [{"configMapRef": {"name": "c"}}]})), [".command"]);
    assert_eq!(fields(json!({"command": ["/bin/sh"], "envFrom": [{"configMapRef": {"name": "c"}}]})), Vec::<&str>::new());
    assert_eq!(fields(json!({"command": ["/v/run"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]})), [".command"]);
}

#[test]
fn the_stand_in_is_the_image_with_one_more_layer() {
    let config = json!({"architecture": "amd64", "config": {"User": "999"}, "rootfs": {"type": "layers", "diff_ids": ["sha256:a"]}, "history": [{}]});
    let manifest =
        |kind: &str| json!({"mediaType": kind, "config": {"mediaType": "c", "digest": "sha256:c", "size": 1}, "layers": [{"digest": "sha256:l"}]});
    for (kind, layer) in
        [("application/vnd.oci.image.manifest.v1+json", LAYER_MEDIA_TYPE), ("application/vnd.docker.distribution.manifest.v2+json", DOCKER_LAYER)]
    {
        let image = stand_in(manifest(kind).to_string().as_bytes(), &config, &["/bin/sh".into()], "amd64").unwrap();
        let written: Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
        assert_eq!((&written["mediaType"], &written["layers"][0]["digest"]), (&json!(kind), &json!("sha256:l")));
        assert_eq!(written["layers"][1], json!({"mediaType": layer, "digest": image.layer.digest.as_str(), "size": image.layer.bytes.len()}));
        assert_eq!(written["config"]["digest"], image.config.digest.as_str());
        let config: Value = serde_json::from_slice(&image.config.bytes).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!(["sha256:a", image.layer.digest.as_str()]));
        assert_eq!((&config["config"]["User"], config["history"].as_array().unwrap().len()), (&json!("999"), 2));
    }
    assert!(stand_in(b"{}", &config, &[], "amd64").unwrap_err().contains("no layers"));
    assert!(stand_in(b"{}", &config, &[], "s390x").unwrap_err().contains("s390x"));
}
