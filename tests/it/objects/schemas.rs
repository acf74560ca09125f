//! Every object against the API schemas of the Kubernetes versions that are supported.
//!
//! `schemas/` holds them, trimmed to the kinds a catalog may use (`schemas/trim.py` says how and from what). They refuse
//! members they do not know, so a mistyped one is found.

use super::{everything, name_of, text};
use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const VERSIONS: [(&str, &str); 7] = [
    ("1.31", include_str!("schemas/1.31.json")),
    ("1.32", include_str!("schemas/1.32.json")),
    ("1.33", include_str!("schemas/1.33.json")),
    ("1.34", include_str!("schemas/1.34.json")),
    ("1.35", include_str!("schemas/1.35.json")),
    ("1.36", include_str!("schemas/1.36.json")),
    ("1.37", include_str!("schemas/1.37.json")),
];

/// Validators by `<apiVersion>/<kind>`.
fn validators(schemas: &str) -> BTreeMap<String, Validator> {
    let schemas: Value = serde_json::from_str(schemas).unwrap();
    let kinds = schemas["kinds"].as_object().unwrap();
    kinds
        .iter()
        .map(|(kind, name)| {
            let schema = json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$ref": format!("#/$defs/{}", name.as_str().unwrap()), "$defs": schemas["$defs"],
            });
            (
                kind.clone(),
                jsonschema::options().offline().build(&schema).unwrap(),
            )
        })
        .collect()
}

#[test]
fn every_object_fits_every_supported_version() {
    let all = everything();
    let mut checked = 0;
    for (version, schemas) in VERSIONS {
        let validators = validators(schemas);
        for (what, _, objects) in &all {
            for object in objects {
                let kind = format!("{}/{}", text(object, "/apiVersion"), text(object, "/kind"));
                let Some(validator) = validators.get(&kind) else {
                    assert!(
                        !kind.starts_with("v1/") && kind.contains('.'),
                        "{version} does not know {kind}"
                    );
                    continue;
                };
                checked += 1;
                let problems: Vec<String> = validator
                    .iter_errors(object)
                    .map(|e| format!("{}: {e}", e.instance_path()))
                    .collect();
                assert!(
                    problems.is_empty(),
                    "{version}: {what}: {}: {problems:#?}",
                    name_of(object)
                );
            }
        }
    }
    assert!(checked > 1_000, "{checked}");
}

#[test]
fn a_mistyped_member_is_found() {
    let validators = validators(VERSIONS[3].1);
    let service =
        |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec});
    let found = |spec: Value| validators["v1/Service"].is_valid(&service(spec));
    assert!(found(
        json!({"selector": {"a": "b"}, "ports": [{"port": 1, "targetPort": "client"}]})
    ));
    assert!(!found(json!({"selektor": {"a": "b"}})));
    assert!(!found(json!({"ports": [{"port": "1"}]})));
}
