//! Parameters against their schema: a clear 400 that names the field, or the parameters with defaults filled in.
//!
//! The texts reach whoever ran the platform's command line (P-10, U-19, B-11), so they name the
//! field in the words of the request, say what would be right, and stay short whatever was sent.

use super::catalog::Schema;
use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind};
use serde_json::{Map, Value};

/// Most fields named in one message.
const MAX_ERRORS: usize = 5;
/// Longest echo of anything the request held, in characters.
const MAX_ECHO: usize = 40;
/// Longest list of known names or choices, in characters.
const MAX_LIST: usize = 300;

/// Checks `params` against `schema`. Errors: one sentence naming each field at fault (at most five), without echoing long values.
pub fn check(schema: &Schema, params: &Map<String, Value>) -> Result<(), String> {
    let instance = Value::Object(params.clone());
    let mut problems: Vec<String> = Vec::new();
    let mut more = 0usize;
    for error in schema.validator.iter_errors(&instance) {
        for problem in explain(schema, &error) {
            if problems.len() < MAX_ERRORS {
                problems.push(problem);
            } else {
                more += 1;
            }
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let mut text = problems.join("; ");
    if more > 0 {
        text.push_str("; and ");
        text.push_str(&more.to_string());
        text.push_str(" more");
    }
    Err(text)
}

/// `params` with the schema's top-level `default`s where a member is absent: what expressions see.
pub fn with_defaults(schema: &Schema, params: &Map<String, Value>) -> Map<String, Value> {
    let mut filled = params.clone();
    for (name, property) in properties(schema) {
        if let Some(default) = property.get("default")
            && !filled.contains_key(name)
        {
            filled.insert(name.clone(), default.clone());
        }
    }
    filled
}

fn properties(schema: &Schema) -> impl Iterator<Item = (&String, &Value)> {
    schema
        .json
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

/// `parameters.a.b[0]` for `/a/b/0`.
fn field(pointer: &str) -> String {
    let mut text = String::from("parameters");
    for step in pointer.split('/').skip(1) {
        if !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit()) {
            text.extend(["[", step, "]"]);
        } else {
            text.push('.');
            text.push_str(&echo_name(&step.replace("~1", "/").replace("~0", "~")));
        }
    }
    text
}

/// One sentence per field at fault.
fn explain(schema: &Schema, error: &ValidationError<'_>) -> Vec<String> {
    let pointer = error.instance_path().as_str();
    let field = field(pointer);
    let value = echo(error.instance());
    let said = |text: String| vec![format!("{field}: {text}")];
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let known = if pointer.is_empty() {
                known(schema)
            } else {
                String::new()
            };
            unexpected
                .iter()
                .map(|name| format!("{field}.{}: is not known here{known}", echo_name(name)))
                .collect()
        }
        ValidationErrorKind::Required { property } => {
            vec![format!(
                "{field}.{}: is required",
                property.as_str().unwrap_or_default()
            )]
        }
        ValidationErrorKind::Type { kind } => said(format!("{value} is not {}", types(kind))),
        ValidationErrorKind::Enum { options } => said(format!("{value} is not one of {}", choices(options))),
        ValidationErrorKind::Maximum { limit } => said(format!("{value} is more than the maximum {limit}")),
        ValidationErrorKind::Minimum { limit } => said(format!("{value} is less than the minimum {limit}")),
        ValidationErrorKind::ExclusiveMaximum { limit } => said(format!("{value} is not less than {limit}")),
        ValidationErrorKind::ExclusiveMinimum { limit } => said(format!("{value} is not more than {limit}")),
        ValidationErrorKind::MultipleOf { multiple_of } => {
            said(format!("{value} is not a multiple of {multiple_of}"))
        }
        ValidationErrorKind::MaxLength { limit } => said(format!("is longer than {limit} characters")),
        ValidationErrorKind::MinLength { limit } => said(format!("is shorter than {limit} characters")),
        ValidationErrorKind::MaxItems { limit } => said(format!("has more than {limit} entries")),
        ValidationErrorKind::MinItems { limit } => said(format!("has fewer than {limit} entries")),
        ValidationErrorKind::MaxProperties { limit } => said(format!("has more than {limit} members")),
        ValidationErrorKind::MinProperties { limit } => said(format!("has fewer than {limit} members")),
        ValidationErrorKind::UniqueItems => said("has the same entry twice".into()),
        ValidationErrorKind::Pattern { pattern } => said(format!(
            "{value} does not have the form {}",
            bounded(pattern, MAX_LIST)
        )),
        ValidationErrorKind::Format { format } => said(format!("{value} is not a valid {format}")),
        ValidationErrorKind::Not { .. } => said(format!("{value} is not allowed")),
        ValidationErrorKind::AnyOf { .. }
        | ValidationErrorKind::OneOfNotValid { .. }
        | ValidationErrorKind::OneOfMultipleValid { .. } => {
            said(format!("{value} has none of the allowed forms"))
        }
        other => said(format!("breaks the rule \"{}\"", other.keyword())),
    }
}

fn known(schema: &Schema) -> String {
    let names: Vec<&str> = properties(schema).map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        "; this takes no parameters".into()
    } else {
        format!("; known are {}", bounded(&names.join(", "), MAX_LIST))
    }
}

fn types(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(kind) => article(kind.as_str()),
        TypeKind::Multiple(kinds) => {
            let names: Vec<String> = kinds.iter().map(|kind| article(kind.as_str())).collect();
            names.join(" or ")
        }
    }
}

fn article(name: &str) -> String {
    match name {
        "array" => "a list".into(),
        "object" => "an object".into(),
        "integer" => "an integer".into(),
        "null" => "null".into(),
        other => format!("a {other}"),
    }
}

fn choices(options: &Value) -> String {
    let texts: Vec<String> = options
        .as_array()
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    bounded(&texts.join(", "), MAX_LIST)
}

/// A value as the sentence repeats it: short ones as JSON, others by their kind.
fn echo(value: &Value) -> String {
    match value {
        Value::Array(_) => "the list".into(),
        Value::Object(_) => "the object".into(),
        Value::String(text) if text.chars().count() > MAX_ECHO => "the text".into(),
        // Not as JSON, which leaves characters alone that terminals obey.
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

/// A name the request chose: shortened, control characters escaped.
fn echo_name(name: &str) -> String {
    let name: String = name.chars().flat_map(char::escape_debug).collect();
    bounded(&name, MAX_ECHO)
}

fn bounded(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use serde_json::json;

    fn schema() -> Schema {
        Schema::compile(json!({
            "$schema": "http://json-schema.org/draft-04/schema#",
            "type": "object",
            "additionalProperties": false,
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 8, "not": {"enum": ["root"]}},
                "max_connections": {"type": "integer", "minimum": 10, "maximum": 1000, "default": 100},
                "policy": {"type": "string", "enum": ["lru", "lfu"], "default": "lru"},
                "ratio": {"type": "number", "minimum": 0, "exclusiveMinimum": true, "maximum": 1, "exclusiveMaximum": true},
                "on": {"type": ["boolean", "null"]},
                "subjects": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2, "uniqueItems": true},
                "labels": {"type": "object", "additionalProperties": false, "properties": {"a": {"type": "string"}}, "maxProperties": 1}
            }
        }))
        .unwrap()
    }

    fn said(params: Value) -> String {
        let Value::Object(params) = params else {
            panic!("an object")
        };
        match check(&schema(), &params) {
            Ok(()) => String::new(),
            Err(text) => text,
        }
    }

    #[test]
    fn messages_name_the_field_and_what_would_be_right() {
        let table = [
            (json!({"name": "ab"}), ""),
            (json!({"name": "ab", "max_connections": 1000}), ""),
            (
                json!({"name": "ab", "max_connections": 5000}),
                "parameters.max_connections: 5000 is more than the maximum 1000",
            ),
            (
                json!({"name": "ab", "max_connections": 1}),
                "parameters.max_connections: 1 is less than the minimum 10",
            ),
            (
                json!({"name": "ab", "max_connections": "100"}),
                "parameters.max_connections: \"100\" is not an integer",
            ),
            (
                json!({"name": "ab", "max_connections": 15.5}),
                "parameters.max_connections: 15.5 is not an integer",
            ),
            (
                json!({"name": "ab", "max_connections": null}),
                "parameters.max_connections: null is not an integer",
            ),
            (
                json!({"name": "ab", "policy": "x"}),
                "parameters.policy: \"x\" is not one of \"lru\", \"lfu\"",
            ),
            (
                json!({"name": "ab", "ratio": 0}),
                "parameters.ratio: 0 is not more than 0",
            ),
            (
                json!({"name": "ab", "ratio": 1}),
                "parameters.ratio: 1 is not less than 1",
            ),
            (
                json!({"name": "ab", "on": 1}),
                "parameters.on: 1 is not null or a boolean",
            ),
            (
                json!({"name": "root"}),
                "parameters.name: \"root\" is not allowed",
            ),
            (
                json!({"name": "a"}),
                "parameters.name: is shorter than 2 characters",
            ),
            (
                json!({"name": "A1"}),
                "parameters.name: \"A1\" does not have the form ^[a-z]+$",
            ),
            (
                json!({"name": "ab\n"}),
                "parameters.name: \"ab\\n\" does not have the form ^[a-z]+$",
            ),
            (json!({}), "parameters.name: is required"),
            (
                json!({"name": "ab", "subjects": []}),
                "parameters.subjects: has fewer than 1 entries",
            ),
            (
                json!({"name": "ab", "subjects": ["a", "a"]}),
                "parameters.subjects: has the same entry twice",
            ),
            (
                json!({"name": "ab", "subjects": ["a", "abcd"]}),
                "parameters.subjects[1]: is longer than 3 characters",
            ),
            (
                json!({"name": "ab", "labels": {"b": 1}}),
                "parameters.labels.b: is not known here",
            ),
            (
                json!({"name": "ab", "labels": []}),
                "parameters.labels: the list is not an object",
            ),
            (
                json!({"name": "ab", "x/y~": 1}),
                "parameters.x/y~: is not known here; known are labels, max_connections, name, on, policy, ratio, subjects",
            ),
        ];
        for (params, expected) in table {
            assert_eq!(said(params.clone()), expected, "{params}");
        }
    }

    #[test]
    fn messages_stay_short_whatever_was_sent() {
        let long = "s".repeat(100_000);
        let many: Map<String, Value> = (0..500).map(|i| (format!("k{i}{long}"), json!(long))).collect();
        let text = said(Value::Object(many));
        assert!(text.chars().count() < 3_000, "{}", text.len());
        assert!(text.ends_with("more"), "{text}");
        let text = said(json!({"name": long.clone(), "policy": long, "labels": {"a": 5, "b": "\u{1b}[2J"}}));
        assert!(!text.contains("sssss"), "{text}");
        assert!(text.chars().all(|c| !c.is_control()), "{text}");
        let text = said(json!({"name": "ab", "\u{1b}[2J\n": 1}));
        assert!(text.chars().all(|c| !c.is_control()), "{text}");
    }

    #[test]
    fn defaults_fill_what_is_absent_and_nothing_else() {
        let Value::Object(params) = json!({"name": "ab", "policy": "lfu"}) else {
            panic!("an object")
        };
        let filled = with_defaults(&schema(), &params);
        assert_eq!(
            Value::Object(filled),
            json!({"name": "ab", "policy": "lfu", "max_connections": 100})
        );
    }
}
