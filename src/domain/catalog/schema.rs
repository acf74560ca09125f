//! Parameter schemas: compiled once, and held to what platforms accept (C-13, C-14, osb-rules §18).

use super::Schema;
use crate::domain::delivery::PARAMETERS;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The dialect platforms promise to read (C-14).
pub(super) const DRAFT_04: &str = "http://json-schema.org/draft-04/schema#";
/// Largest schema in bytes (C-14).
const MAX_BYTES: usize = 65_536;
/// Names a parameter may not end in: parameters are stored, shown and logged by platforms, so none may be a secret.
const SECRET_NAMES: [&str; 7] = [
    "password",
    "passwd",
    "secret",
    "token",
    "api_key",
    "private_key",
    "credentials",
];

impl Schema {
    /// Compiles a draft-04 schema. Errors: what is wrong with it, in one sentence.
    ///
    /// Patterns run on an engine without backtracking, so no parameter can make one slow, and nothing is ever fetched.
    pub fn compile(json: Value) -> Result<Self, String> {
        let validator = jsonschema::draft4::options()
            .offline()
            .with_pattern_options(jsonschema::PatternOptions::regex())
            .build(&json)
            .map_err(|e| format!("is not a valid draft-04 schema: {}: {e}", e.instance_path()))?;
        Ok(Self {
            json,
            validator: Arc::new(validator),
        })
    }

    /// The schema of a call without parameters.
    pub(super) fn none() -> Value {
        json!({"$schema": DRAFT_04, "type": "object", "additionalProperties": false, "properties": {}})
    }
}

/// Everything a schema breaks, beyond what compiling finds: path and message.
pub(super) fn problems(schema: &Schema) -> Vec<(String, String)> {
    let json = &schema.json;
    let mut problems = Vec::new();
    let mut say = |path: &str, message: String| problems.push((path.to_owned(), message));
    if json.get("$schema").and_then(Value::as_str) != Some(DRAFT_04) {
        say(
            "$schema",
            format!("must be \"{DRAFT_04}\": platforms read no newer dialect (C-14)"),
        );
    }
    if json.get("type").and_then(Value::as_str) != Some("object") {
        say("type", "must be \"object\"".into());
    }
    if json.get("additionalProperties") != Some(&Value::Bool(false)) {
        say(
            "additionalProperties",
            "must be false, so that a mistyped parameter is refused instead of ignored".into(),
        );
    }
    let bytes = json.to_string().len();
    if bytes > MAX_BYTES {
        say(
            "",
            format!("has {bytes} bytes; platforms refuse more than {MAX_BYTES} (C-14)"),
        );
    }
    walk(json, "", &mut say);
    // Defaults become parameters without being checked again.
    let defaults = super::super::params::with_defaults(schema, &Map::new());
    for error in schema.validator.iter_errors(&Value::Object(defaults)) {
        if error.kind().keyword() != "required" {
            let path = error
                .instance_path()
                .as_str()
                .trim_start_matches('/')
                .replace('/', ".");
            say(
                &format!("properties.{path}.default"),
                format!("breaks the schema's own rule \"{}\"", error.kind().keyword()),
            );
        }
    }
    problems
}

/// Properties that a bind schema may not have: the broker takes parameters of these names for itself.
pub(super) fn reserved(schema: &Schema) -> Vec<&'static str> {
    let properties = schema.json.get("properties").and_then(Value::as_object);
    PARAMETERS
        .into_iter()
        .filter(|name| properties.is_some_and(|p| p.contains_key(*name)))
        .collect()
}

fn walk(value: &Value, path: &str, say: &mut impl FnMut(&str, String)) {
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                walk(item, &format!("{path}[{i}]"), say);
            }
        }
        Value::Object(members) => {
            for (key, item) in members {
                let at = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                match (key.as_str(), item.as_str()) {
                    ("$ref", Some(target)) if !target.starts_with('#') => {
                        say(
                            &at,
                            "refers to another document; platforms refuse that (C-14)".into(),
                        );
                    }
                    ("id" | "$id", Some(_)) => say(&at, "a schema may not name itself by an address".into()),
                    ("format", Some("password")) => say(&at, SECRET_ADVICE.into()),
                    _ => {}
                }
                if key == "properties"
                    && let Some(properties) = item.as_object()
                {
                    for name in properties.keys() {
                        let lower = name.to_ascii_lowercase();
                        if SECRET_NAMES.iter().any(|end| lower.ends_with(end)) {
                            say(&format!("{at}.{name}"), SECRET_ADVICE.into());
                        }
                    }
                    // A property may itself be named `id` or `format`: only its schema is walked.
                    for (name, schema) in properties {
                        walk(schema, &format!("{at}.{name}"), say);
                    }
                } else if key != "default" && key != "enum" {
                    walk(item, &at, say);
                }
            }
        }
        _ => {}
    }
}

const SECRET_ADVICE: &str = "looks like a secret; parameters are stored and shown by platforms, so secrets are made by the broker, never sent to it";
