//! Parameters to try a plan with: the defaults, and each parameter at each of its extremes.
//!
//! Only combinations the schema itself lets through are tried; what cannot be made up (a required
//! text of some form, without a default) comes from the worked examples.

use super::Schema;
use crate::domain::params;
use serde_json::{Map, Value, json};

/// Longest text made up: enough for names, far from what a file could not hold.
const LONGEST: u64 = 1_000;

/// Valid parameters: the defaults first when they are valid, then every extreme, then the examples.
pub(super) fn parameters(schema: &Schema, examples: &[&Map<String, Value>]) -> Vec<Map<String, Value>> {
    let mut base = params::with_defaults(schema, &Map::new());
    let empty = Map::new();
    let properties = schema
        .json
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let required = schema.json.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if !base.contains_key(name)
            && let Some(property) = properties.get(name)
        {
            // The first that the property's own schema takes.
            let fits = |value: &Value| {
                let mut alone = property.clone();
                if let Some(alone) = alone.as_object_mut() {
                    alone.insert("$schema".into(), super::schema::DRAFT_04.into());
                }
                Schema::compile(alone).is_ok_and(|schema| schema.validator.is_valid(value))
            };
            if let Some(value) = extremes(property, 0).into_iter().find(fits) {
                base.insert(name.to_owned(), value);
            }
        }
    }
    let mut all = vec![base.clone()];
    for (name, property) in properties {
        for value in extremes(property, 0) {
            let mut one = base.clone();
            one.insert(name.clone(), value);
            all.push(one);
        }
    }
    all.extend(
        examples
            .iter()
            .map(|example| params::with_defaults(schema, example)),
    );
    let mut distinct: Vec<Map<String, Value>> = Vec::new();
    for params in all {
        if !distinct.contains(&params) && schema.validator.is_valid(&Value::Object(params.clone())) {
            distinct.push(params);
        }
    }
    distinct
}

/// Values at the edges of what a property takes; some may break its other rules.
fn extremes(property: &Value, depth: usize) -> Vec<Value> {
    if let Some(choices) = property.get("enum").and_then(Value::as_array) {
        return choices.clone();
    }
    let mut values: Vec<Value> = property.get("default").cloned().into_iter().collect();
    let number = |key: &str| property.get(key).cloned();
    let size = |key: &str, absent: u64| {
        property
            .get(key)
            .and_then(Value::as_u64)
            .unwrap_or(absent)
            .min(LONGEST)
    };
    match property.get("type").and_then(Value::as_str) {
        Some("boolean") => values.extend([json!(true), json!(false)]),
        Some("integer" | "number") => {
            values.extend([
                number("minimum").unwrap_or(json!(0)),
                number("maximum").unwrap_or(json!(i64::MAX)),
            ]);
        }
        Some("string") => {
            let (least, most) = (size("minLength", 1), size("maxLength", LONGEST));
            for length in [least, most] {
                let length = usize::try_from(length).unwrap_or(1);
                values.push(Value::String("a".repeat(length)));
                // For forms that end in a separator, as key prefixes do.
                values.push(Value::String(format!(
                    "{}:",
                    "a".repeat(length.saturating_sub(1))
                )));
            }
        }
        Some("array") if depth < 3 => {
            let items = property
                .get("items")
                .map(|items| extremes(items, depth + 1))
                .unwrap_or_default();
            let (least, most) = (size("minItems", 0), size("maxItems", 10));
            values.extend(items.iter().map(|item| json!([item])));
            for length in [least, most] {
                let length = usize::try_from(length).unwrap_or(1);
                values.push(Value::Array(items.iter().cycle().take(length).cloned().collect()));
            }
        }
        Some("object") if depth < 3 => {
            let members = property.get("properties").and_then(Value::as_object);
            let fullest = members.into_iter().flatten();
            let fullest =
                fullest.filter_map(|(name, schema)| Some((name.clone(), extremes(schema, depth + 1).pop()?)));
            values.extend([json!({}), Value::Object(fullest.collect())]);
        }
        _ => {}
    }
    values
}
