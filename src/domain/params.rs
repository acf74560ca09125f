//! Parameters against their schema: a clear 400 that names the field, or the parameters with defaults filled in.

use super::catalog::Schema;
use serde_json::{Map, Value};

/// Checks `params` against `schema`. Errors: one sentence naming each field at fault (at most five), without echoing long values.
pub fn check(schema: &Schema, params: &Map<String, Value>) -> Result<(), String> {
    let _ = (schema, params);
    unimplemented!()
}

/// `params` with the schema's top-level `default`s where a member is absent: what expressions see.
pub fn with_defaults(schema: &Schema, params: &Map<String, Value>) -> Map<String, Value> {
    let _ = schema;
    params.clone()
}
