//! Where settings come from: one file, then the environment over it, merged into one JSON value.
//!
//! Nothing here prints what it read: a broken file may hold a secret in the wrong place, so parse
//! errors name line and column and never quote.

use super::Problem;
use super::schema;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// What starts the name of an environment variable that overrides a setting.
pub const PREFIX: &str = "CHANDLER__";

/// Reads a file as YAML, TOML or JSON, by its extension.
pub(super) fn read(path: &Path) -> Result<Value, Problem> {
    let fail = |message: String| Problem::new("", format!("{}: {message}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| {
        fail(format!(
            "cannot be read ({error}); give the configuration file with --config FILE"
        ))
    })?;
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    let parsed = match extension {
        "yaml" | "yml" => yaml(&text),
        "toml" => toml::from_str::<Value>(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| {
                text[..span.start.min(text.len())].lines().count().max(1)
            });
            format!("line {line}: {}", first_words(error.message()))
        }),
        "json" => serde_json::from_str(&text)
            .map_err(|error| format!("line {}, column {}", error.line(), error.column())),
        _ => {
            return Err(fail(
                "its name must end in .yaml, .yml, .toml or .json".to_owned(),
            ));
        }
    };
    match parsed.map_err(|error| fail(format!("is not valid {extension}: {error}")))? {
        Value::Null => Ok(Value::Object(Map::new())),
        value @ Value::Object(_) => Ok(value),
        _ => Err(fail("must hold sections such as `http:` and `store:`".to_owned())),
    }
}

/// Parses YAML; an error tells where, and what kind of thing, but quotes nothing.
fn yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|error| match error.location() {
        Some(location) => format!("line {}, column {}", location.line(), location.column()),
        None => "its structure is broken".to_owned(),
    })
}

/// A parser's message up to the first quotation: what follows may be the file's own text.
fn first_words(message: &str) -> &str {
    message.split(['`', '"', '\'']).next().unwrap_or_default().trim()
}

/// Lays `CHANDLER__SECTION__KEY` variables over `value`.
///
/// A value is YAML (`5`, `true`, `[a, b]`), except where the setting is text: there it is taken as
/// it is. List members go by number and must leave no gap. Returns which path came from which
/// variable, and what could not be placed.
pub(super) fn overlay(
    value: &mut Value,
    environment: impl IntoIterator<Item = (String, String)>,
    schema: &Value,
) -> (BTreeMap<String, String>, Vec<Problem>) {
    let mut origins = BTreeMap::new();
    let mut problems = Vec::new();
    let mut variables: Vec<(Vec<String>, String, String)> = environment
        .into_iter()
        .filter_map(|(name, text)| {
            let path = name
                .strip_prefix(PREFIX)?
                .split("__")
                .map(str::to_ascii_lowercase)
                .collect();
            Some((path, name, text))
        })
        .collect();
    // By number where it is one, so that PLATFORMS__10 comes after PLATFORMS__9.
    variables.sort_by_cached_key(|(path, ..)| {
        path.iter()
            .map(|part| (part.parse::<usize>().ok(), part.clone()))
            .collect::<Vec<_>>()
    });
    for (path, name, text) in variables {
        let is_text = schema::at(schema, &path)
            .is_some_and(|schema| schema.get("type") == Some(&Value::from("string")));
        let parsed = if is_text { Err(String::new()) } else { yaml(&text) };
        let placed = place(value, &path, parsed.unwrap_or(Value::String(text)));
        match placed {
            Ok(()) => {
                origins.insert(path.join("."), name);
            }
            Err(reason) => problems.push(Problem::new(path.join("."), reason).with_variable(&name)),
        }
    }
    (origins, problems)
}

fn place(node: &mut Value, path: &[String], leaf: Value) -> Result<(), String> {
    let Some((part, rest)) = path.split_first() else {
        *node = leaf;
        return Ok(());
    };
    if part.is_empty() {
        return Err(format!("the name must look like {PREFIX}SECTION__KEY"));
    }
    let next = match (part.parse::<usize>(), &mut *node) {
        (Ok(index), Value::Array(items)) => {
            if index == items.len() {
                items.push(Value::Null);
            }
            let next = items.len();
            items
                .get_mut(index)
                .ok_or_else(|| format!("number {index} leaves a gap: the next one is {next}"))?
        }
        (_, Value::Object(map)) => map.entry(part.clone()).or_insert(Value::Null),
        (Ok(0), other) => {
            *other = Value::Array(Vec::new());
            return place(other, path, leaf);
        }
        (Ok(index), _) => return Err(format!("number {index} leaves a gap: the first one is 0")),
        (Err(_), other) => {
            *other = Value::Object(Map::new());
            return place(other, path, leaf);
        }
    };
    place(next, rest, leaf)
}

/// Drops members that are `null`: a section whose members are all commented out is an absent one.
pub(super) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, member| !member.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
