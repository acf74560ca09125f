//! A JSON value that must not be seen: no `Serialize`, no readable `Debug`, wiped when dropped.

use serde_json::{Map, Value};
use std::fmt;
use zeroize::Zeroize;

/// Secret material: an object whose members are named by whoever made it (`username`, `password`, `seed`, …).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Map<String, Value>);

impl Secret {
    /// Wraps an object as secret.
    pub fn new(members: Map<String, Value>) -> Self {
        Self(members)
    }

    /// Builds a secret from text members.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(k, v)| (k.into(), Value::String(v.into())))
                .collect(),
        )
    }

    /// The members in clear. Every call is a place where a secret could leak: keep them few.
    pub fn expose(&self) -> &Map<String, Value> {
        &self.0
    }

    /// One text member in clear, empty when absent.
    pub fn text(&self, member: &str) -> &str {
        self.0.get(member).and_then(Value::as_str).unwrap_or_default()
    }

    /// Adds or replaces a member.
    pub fn insert(&mut self, member: impl Into<String>, value: Value) {
        self.0.insert(member.into(), value);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} members)", self.0.len())
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(s) => s.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        _ => {}
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.values_mut().for_each(wipe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let secret = Secret::from_pairs([("password", "hunter2")]);
        assert_eq!(format!("{secret:?}"), "Secret(1 members)");
        assert_eq!(secret.text("password"), "hunter2");
        assert_eq!(secret.text("absent"), "");
    }
}
