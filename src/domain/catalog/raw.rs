//! The catalog's files as they are written: unknown keys refused, nothing interpreted yet.

use super::BindingLifetime;
use crate::domain::delivery::Delivery;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// `offering.yaml`. What a plan may set too stands here as the default of all plans.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Offering {
    pub id: String,
    pub name: String,
    pub description: String,
    pub bindable: Option<bool>,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    pub requires: Vec<String>,
    #[serde(default)]
    pub metadata: Map<String, Value>,
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    #[serde(default)]
    pub generated: BTreeMap<String, usize>,
    #[serde(default)]
    pub values: Map<String, Value>,
    /// Plan → plans its instances may change to.
    #[serde(default)]
    pub updates: BTreeMap<String, Vec<String>>,
    #[serde(default = "polling")]
    pub maximum_polling_duration: u32,
    #[serde(default = "yes")]
    pub binding_rotatable: bool,
    pub maintenance_info: Option<Maintenance>,
    pub binding_lifetime: Option<Lifetime>,
    #[serde(default)]
    pub retain_days: u32,
    /// Ways its bindings may be handed over, the usual one first; empty = as the platform's.
    #[serde(default)]
    pub delivery: Vec<Delivery>,
    /// Custom resources its objects use.
    #[serde(default)]
    pub resources: Vec<super::CustomResource>,
    #[serde(default)]
    pub runs_on: Vec<String>,
    #[serde(default)]
    pub examples: Vec<Example>,
}

/// `plans/<service>/<plan>.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    pub id: String,
    pub name: String,
    pub description: String,
    #[serde(default = "yes")]
    pub free: bool,
    pub bindable: Option<bool>,
    pub binding_rotatable: Option<bool>,
    pub maximum_polling_duration: Option<u32>,
    pub maintenance_info: Option<Maintenance>,
    pub binding_lifetime: Option<Lifetime>,
    pub retain_days: Option<u32>,
    pub delivery: Option<Vec<Delivery>>,
    #[serde(default)]
    pub metadata: Map<String, Value>,
    #[serde(default)]
    pub values: Map<String, Value>,
    pub runs_on: Option<Vec<String>>,
    /// Place among the plans of the offering, as platforms show them; equal places are ordered by name.
    #[serde(default)]
    pub order: i32,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub(super) struct Maintenance {
    pub version: String,
    pub description: Option<String>,
}

/// Seconds.
#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
pub(super) struct Lifetime {
    pub ttl: u32,
    pub renew_before: u32,
}

impl From<Lifetime> for BindingLifetime {
    fn from(raw: Lifetime) -> Self {
        Self {
            ttl: raw.ttl,
            renew_before: raw.renew_before,
        }
    }
}

/// A worked example: parameters and whether they are right.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Example {
    #[serde(rename = "for")]
    pub call: Call,
    /// Absent = every plan.
    pub plan: Option<String>,
    #[serde(default)]
    pub parameters: Map<String, Value>,
    #[serde(default = "yes")]
    pub valid: bool,
}

/// The call an example's parameters belong to.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Call {
    Create,
    Update,
    Bind,
}

/// `process.yaml`. What may hold expressions stays a value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Process {
    #[serde(default)]
    pub user: Vec<String>,
    pub binaries: BTreeMap<String, Vec<String>>,
    pub install: String,
    pub ports: Vec<String>,
    pub files: Option<Value>,
    pub init: Option<Value>,
    pub command: Value,
    pub env: Option<Value>,
    pub stop: Option<Value>,
    pub change: Option<Value>,
    pub ready: Value,
}

/// `binding.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Binding {
    pub mechanism: String,
    #[serde(default)]
    pub settings: Map<String, Value>,
    pub endpoint: String,
    pub default_role: String,
    pub roles: Vec<String>,
    pub credentials: Map<String, Value>,
    /// A list, or one expression that gives a list.
    #[serde(default = "empty_list")]
    pub endpoints: Value,
    #[serde(default)]
    pub requires_app: bool,
}

fn empty_list() -> Value {
    Value::Array(Vec::new())
}

fn yes() -> bool {
    true
}

fn concurrency() -> usize {
    4
}

fn polling() -> u32 {
    600
}

/// Parses one YAML 1.2 document. Errors: place and cause, in one line.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|e| one_line(&e))
}

/// Parses a file of several YAML documents.
pub(super) fn parse_all(text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_str_multiple_with_options(text, options()).map_err(|e| one_line(&e))
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        reject_unsupported_tags: true,
    }
}

fn one_line(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    text.lines().next().unwrap_or_default().trim().to_owned()
}
