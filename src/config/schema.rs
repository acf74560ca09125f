//! The JSON Schema of the configuration, and what it makes of a wrong one.
//!
//! The schema comes from the types in `sections`, so it cannot say anything else than they do. It
//! finds every structural mistake at once, which plain deserialisation cannot.

use super::Problem;
use super::sections::{Config, PortRange, parse_osb_version};
use crate::telemetry;
use jsonschema::error::ValidationErrorKind;
use jsonschema::{ValidationError, Validator};
use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// The schema of a configuration file, without `$ref` and without `null`: an absent member is absent.
pub(super) fn schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<Config>();
    RecursiveTransform(simplify).transform(&mut schema);
    Value::from(schema)
}

/// Rewrites what the generator writes for `Option` and for enums into what people expect to read.
fn simplify(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|word| word != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(mut options)) = object.remove("anyOf") {
        options.retain(|option| option.get("type") != Some(&json!("null")));
        if let [Value::Object(only)] = options.as_slice() {
            for (key, value) in only {
                object.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    if let Some(Value::Array(options)) = object.remove("oneOf") {
        let words: Vec<Value> = options
            .iter()
            .filter_map(|option| option.get("const").cloned())
            .collect();
        object.insert("type".to_owned(), json!("string"));
        object.insert("enum".to_owned(), Value::Array(words));
    }
    if object.get("default") == Some(&Value::Null) {
        object.remove("default");
    }
    if matches!(object.get("format"), Some(Value::String(format)) if format.starts_with("uint")) {
        object.remove("format");
    }
}

/// The schema of the setting at `path`; `None` when there is no such setting.
pub(super) fn at<'a>(schema: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(schema, |schema, part| {
        schema
            .get("properties")
            .and_then(|properties| properties.get(part))
            .or_else(|| part.parse::<usize>().ok().and_then(|_| schema.get("items")))
    })
}

/// What is structurally wrong with `value`, each with the segments of its path.
pub(super) fn problems(schema: &Value, value: &Value) -> Vec<(Vec<String>, Problem)> {
    let validator = match validator(schema) {
        Ok(validator) => validator,
        Err(error) => {
            let text = format!(
                "the built-in schema is broken ({error}): this is a fault of chandler, please report it"
            );
            return vec![(Vec::new(), Problem::new("", text))];
        }
    };
    validator
        .iter_errors(value)
        .flat_map(|error| explain(schema, &error))
        .collect()
}

fn validator(schema: &Value) -> Result<Validator, String> {
    jsonschema::options()
        .should_validate_formats(true)
        .with_format("socket-address", |text: &str| text.parse::<SocketAddr>().is_ok())
        .with_format("osb-version", |text: &str| parse_osb_version(text).is_some())
        .with_format("port-range", |text: &str| {
            PortRange::try_from(text.to_owned()).is_ok()
        })
        .with_format("log-filter", |text: &str| telemetry::parse_filter(text).is_ok())
        .build(schema)
        .map_err(|error| error.to_string())
}

fn explain(schema: &Value, error: &ValidationError<'_>) -> Vec<(Vec<String>, Problem)> {
    let path: Vec<String> = error
        .instance_path()
        .as_str()
        .split('/')
        .skip(1)
        .map(|part| part.replace("~1", "/").replace("~0", "~"))
        .collect();
    if let ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() {
        return unexpected
            .iter()
            .map(|key| {
                let mut path = path.clone();
                let message = unknown(at(schema, &path), key);
                path.push(key.clone());
                (path.clone(), Problem::new(path.join("."), message))
            })
            .collect();
    }
    let message = match error.kind() {
        ValidationErrorKind::Type { .. } => {
            let wanted = at(schema, &path)
                .and_then(|schema| schema.get("type"))
                .and_then(Value::as_str);
            let hint = match (wanted, error.instance().as_ref()) {
                (Some("string"), Value::Number(_) | Value::Bool(_)) => "; write it in quotes",
                _ => "",
            };
            format!(
                "must be {}, not {}{hint}",
                wanted.map_or("something else", word),
                found(error.instance())
            )
        }
        ValidationErrorKind::Enum { options } => format!("must be one of: {}", list(options)),
        ValidationErrorKind::Minimum { limit } => format!("must not be below {limit}"),
        ValidationErrorKind::Maximum { limit } => format!("must not be above {limit}"),
        ValidationErrorKind::Format { format } => format!("must be {}", format_help(format)),
        other => format!("does not fit the rule `{}`", other.keyword()),
    };
    vec![(path.clone(), Problem::new(path.join("."), message))]
}

fn format_help(format: &str) -> &'static str {
    match format {
        "socket-address" => "an IP address with a port, such as 127.0.0.1:8080 or [::]:8080",
        "osb-version" => "a version from 2.0 to 2.17, in quotes",
        "port-range" => "two ports such as 20000-29999, the first not below 1024 and not above the last",
        "log-filter" => {
            "a level (error, warn, info, debug, trace) or levels by module, such as info,chandler::engine=debug"
        }
        _ => "of another form",
    }
}

fn unknown(section: Option<&Value>, key: &str) -> String {
    let known: Vec<&str> = section
        .and_then(|section| section.get("properties"))
        .and_then(Value::as_object)
        .map(|properties| properties.keys().map(String::as_str).collect())
        .unwrap_or_default();
    let file = format!("{key}_file");
    if known.contains(&file.as_str()) || is_secret_word(key) {
        let files: Vec<&str> = known
            .iter()
            .copied()
            .filter(|name| name.ends_with("_file") || *name == "file")
            .collect();
        let where_to = if files.is_empty() {
            String::new()
        } else {
            format!(" and name that file in `{}`", files.join("` or `"))
        };
        return format!(
            "secrets are not written into the configuration: put it into a file only the broker can read (mode 0600){where_to}"
        );
    }
    match known.iter().find(|name| alike(name, key)) {
        Some(name) => format!("unknown setting; did you mean `{name}`?"),
        None => format!("unknown setting; known here: {}", known.join(", ")),
    }
}

/// Whether a key names something that must not be shown.
pub(super) fn is_secret_word(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["password", "passwd", "secret", "token", "private", "credential"]
        .iter()
        .any(|word| key.contains(word))
}

/// Whether two names differ by one letter left out, added, changed or swapped, or by `-` for `_`.
fn alike(a: &str, b: &str) -> bool {
    let (a, b) = (a.replace('-', "_"), b.to_ascii_lowercase().replace('-', "_"));
    if a == b {
        return true;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let tail = a[head..]
        .iter()
        .rev()
        .zip(b[head..].iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    let (a, b) = (&a[head..a.len() - tail], &b[head..b.len() - tail]);
    match (a, b) {
        ([] | [_], [] | [_]) => true,
        ([a1, a2], [b1, b2]) => a1 == b2 && a2 == b1,
        _ => false,
    }
}

fn word(schema_type: &str) -> &'static str {
    match schema_type {
        "string" => "text",
        "integer" | "number" => "a whole number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a group of settings",
        _ => "something else",
    }
}

/// The kind of what is there, never the value: it may be a secret in the wrong place.
fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a group of settings",
    }
}

fn list(options: &Value) -> String {
    let words = options.as_array().map(Vec::as_slice).unwrap_or_default();
    words.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// A scalar as a person writes it.
pub(super) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
