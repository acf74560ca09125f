//! Whether an object is ready: what is usual for its kind, or the rules its catalog document brings.
//!
//! What must stay true:
//! - what the controllers have not seen yet is never ready: an older hash, an older generation;
//! - a rule that cannot be evaluated (a member that is not there yet) means "not ready", never "ready" and never "failed".

pub(super) use super::trouble::trouble;

use super::dress::Dressed;
use super::{endpoints, names, quantity, shape, words};
use crate::domain::expr::{Scope, Template};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Most parts of an object a rule looks at: evaluation copies it.
const MOST_PARTS: usize = 20_000;
/// Compiled rules that are kept.
const MOST_RULES: usize = 512;

/// How an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// As wanted, and working.
    Ready,
    /// Not yet; the text is shown to people.
    Progressing(String),
    /// It will not get there by itself; the text is shown to people.
    Failed(String),
}

fn progressing(text: impl AsRef<str>) -> Health {
    Health::Progressing(words::sentence(text.as_ref()))
}

fn failed(text: impl AsRef<str>) -> Health {
    Health::Failed(words::sentence(text.as_ref()))
}

/// A live object against the wanted one.
pub(super) fn of(object: &Value, dressed: &Dressed) -> Health {
    // What a watch lists does not say its kind; the wanted object does.
    let (kind, name) = (dressed.reference.kind.as_str(), dressed.reference.name.as_str());
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        return progressing(format!("{kind} {name} is being deleted"));
    }
    if hash(object).is_none() || hash(object) != hash(&dressed.object) {
        return progressing(format!("{kind} {name} is being changed"));
    }
    let generation = shape::number(object, "/metadata/generation").unwrap_or_default();
    let seen = shape::number(object, "/status/observedGeneration");
    if seen.is_some_and(|seen| seen < generation) {
        return progressing(format!("{kind} {name} is being changed"));
    }
    if let Some(rule) = &dressed.failed
        && let Some(Value::String(text)) = evaluate(rule, object)
    {
        let text = words::clean(&text);
        if !text.is_empty() {
            return failed(text);
        }
    }
    let usual = usual(object, dressed, generation);
    let Some(rule) = &dressed.ready else {
        return usual;
    };
    if evaluate(rule, object) == Some(Value::Bool(true)) {
        return Health::Ready;
    }
    match usual {
        Health::Ready => progressing(format!("waiting for {kind} {name}")),
        // The catalog's own rule says what a failure is.
        Health::Failed(text) if dressed.failed.is_some() => Health::Progressing(text),
        other => other,
    }
}

fn hash(object: &Value) -> Option<&str> {
    object
        .pointer("/metadata/annotations")?
        .get(names::HASH)?
        .as_str()
}

/// What is usual for the kind.
fn usual(object: &Value, dressed: &Dressed, generation: i64) -> Health {
    let name = dressed.reference.name.as_str();
    match dressed.reference.kind.as_str() {
        "StatefulSet" => stateful_set(object, generation),
        "Deployment" => deployment(object, name, generation),
        "Job" => job(object, name),
        "PersistentVolumeClaim" => claim(object, name),
        "Service" => service(object, name),
        "Namespace" if shape::text(object, "/status/phase") == "Terminating" => {
            progressing(format!("namespace {name} is being deleted"))
        }
        // Until the quota is counted the first time, every pod is refused.
        "ResourceQuota" if object.pointer("/status/hard") != object.pointer("/spec/hard") => {
            progressing("the quota is being set up")
        }
        _ if shape::is_usual(&dressed.object) || shape::keeps_no_state(&dressed.object) => Health::Ready,
        kind => custom(object, kind, name, generation),
    }
}

fn pods_ready(ready: i64, wanted: i64) -> Health {
    progressing(format!("{ready} of {wanted} pods ready"))
}

fn count(object: &Value, member: &str) -> i64 {
    shape::number(object, &format!("/status/{member}")).unwrap_or_default()
}

fn stateful_set(object: &Value, generation: i64) -> Health {
    let wanted = shape::number(object, "/spec/replicas").unwrap_or(1);
    let ready = count(object, "readyReplicas");
    if count(object, "observedGeneration") < generation || ready < wanted {
        return pods_ready(ready.min(wanted), wanted);
    }
    if count(object, "replicas") > wanted {
        return progressing(format!(
            "{} pods more than wanted",
            count(object, "replicas") - wanted
        ));
    }
    if shape::text(object, "/spec/updateStrategy/type") == "OnDelete" {
        return Health::Ready;
    }
    // With a partition only the pods above it are to be of the new revision.
    let kept = shape::number(object, "/spec/updateStrategy/rollingUpdate/partition").unwrap_or_default();
    let (current, update) = (
        shape::text(object, "/status/currentRevision"),
        shape::text(object, "/status/updateRevision"),
    );
    let renewed = count(object, "updatedReplicas");
    if renewed < (wanted - kept).max(0) || (kept == 0 && current != update) {
        return progressing(format!("{} of {wanted} pods renewed", renewed.min(wanted)));
    }
    Health::Ready
}

fn deployment(object: &Value, name: &str, generation: i64) -> Health {
    let wanted = shape::number(object, "/spec/replicas").unwrap_or(1);
    let ready = count(object, "readyReplicas").min(count(object, "availableReplicas"));
    if let Some(condition) = condition(object, "Progressing")
        && shape::text(condition, "/reason") == "ProgressDeadlineExceeded"
    {
        return failed(format!(
            "the pods of {name} did not become ready in time: {ready} of {wanted} are"
        ));
    }
    let (renewed, all) = (count(object, "updatedReplicas"), count(object, "replicas"));
    if count(object, "observedGeneration") < generation || ready < wanted {
        return pods_ready(ready.min(wanted), wanted);
    }
    if renewed < wanted || all > renewed {
        return progressing(format!("{} of {wanted} pods renewed", renewed.min(wanted)));
    }
    Health::Ready
}

fn job(object: &Value, name: &str) -> Health {
    if is_true(object, "Complete") {
        return Health::Ready;
    }
    if let Some(end) = condition(object, "Failed").filter(|c| shape::text(c, "/status") == "True") {
        let why = match shape::text(end, "/reason") {
            "BackoffLimitExceeded" => format!("it failed {} times", count(object, "failed").max(1)),
            "DeadlineExceeded" => "it took too long".to_owned(),
            _ => words::clean(shape::text(end, "/message")),
        };
        return failed(format!("the job {name} did not do its work: {why}"));
    }
    match count(object, "failed") {
        0 => progressing(format!("the job {name} is at work")),
        n => progressing(format!("the job {name} is at work, after {n} failed tries")),
    }
}

fn claim(object: &Value, name: &str) -> Health {
    match shape::text(object, "/status/phase") {
        "Bound" => {}
        "Lost" => return failed(format!("the volume {name} has lost its storage")),
        _ => return progressing(format!("waiting for the volume {name}")),
    }
    let resize = shape::text(object, "/status/allocatedResourceStatuses/storage");
    if resize.ends_with("Infeasible") {
        return failed(format!(
            "the volume {name} cannot be enlarged to {}: its storage refuses",
            shape::text(object, "/spec/resources/requests/storage")
        ));
    }
    let amount = |path: &str| object.pointer(path).and_then(quantity::milli);
    let is_smaller = amount("/status/capacity/storage") < amount("/spec/resources/requests/storage");
    if is_smaller || is_true(object, "Resizing") || is_true(object, "FileSystemResizePending") {
        return progressing(format!("the volume {name} is being enlarged"));
    }
    Health::Ready
}

fn service(object: &Value, name: &str) -> Health {
    if shape::text(object, "/spec/type") == "LoadBalancer" && endpoints::balanced(object).is_none() {
        return progressing(format!("waiting for the load balancer's address of {name}"));
    }
    Health::Ready
}

/// A custom resource that brings no rule: the conditions most operators keep.
fn custom(object: &Value, kind: &str, name: &str, generation: i64) -> Health {
    if let Some(stalled) = condition(object, "Stalled").filter(|c| shape::text(c, "/status") == "True") {
        return failed(format!(
            "{kind} {name} is stalled: {}",
            words::clean(shape::text(stalled, "/message"))
        ));
    }
    let Some(condition) = ["Ready", "Available"]
        .iter()
        .find_map(|word| condition(object, word))
    else {
        return progressing(format!("waiting for {kind} {name}"));
    };
    let seen = shape::number(condition, "/observedGeneration");
    if seen.is_some_and(|seen| seen < generation) {
        return progressing(format!("{kind} {name} is being changed"));
    }
    if shape::text(condition, "/status") == "True" {
        return Health::Ready;
    }
    match words::clean(shape::text(condition, "/message")) {
        message if message.is_empty() => progressing(format!("waiting for {kind} {name}")),
        message => progressing(format!("{kind} {name}: {message}")),
    }
}

fn condition<'a>(object: &'a Value, word: &str) -> Option<&'a Value> {
    shape::list(object, "/status/conditions")
        .iter()
        .find(|condition| shape::text(condition, "/type") == word)
}

fn is_true(object: &Value, word: &str) -> bool {
    condition(object, word).is_some_and(|condition| shape::text(condition, "/status") == "True")
}

/// The value of a rule over `object`; `None` when it cannot be told.
fn evaluate(rule: &str, object: &Value) -> Option<Value> {
    let template = compiled(rule)?;
    let mut object = object.clone();
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        // The largest part, and about nothing a rule asks.
        metadata.remove("managedFields");
    }
    if parts(&object, MOST_PARTS) == 0 {
        return None;
    }
    let scope = Scope::from_iter([("object".to_owned(), object)]);
    template.fill(&scope).ok()
}

/// A rule as a template that is one expression; `None` when it is none.
fn compiled(rule: &str) -> Option<Template> {
    static RULES: LazyLock<Mutex<HashMap<String, Option<Template>>>> = LazyLock::new(Mutex::default);
    let known = |rules: &HashMap<String, Option<Template>>| rules.get(rule).cloned();
    // A panic elsewhere leaves whole entries: nothing is half written.
    if let Some(template) = known(&RULES.lock().unwrap_or_else(PoisonError::into_inner)) {
        return template;
    }
    let template = Template::compile(Value::String(format!("${{{rule}}}"))).ok();
    let mut rules = RULES.lock().unwrap_or_else(PoisonError::into_inner);
    if rules.len() >= MOST_RULES {
        rules.clear();
    }
    rules.insert(rule.to_owned(), template.clone());
    template
}

/// How many parts are left of `most` after counting those of a value; 0 when it has more.
fn parts(value: &Value, most: usize) -> usize {
    let left = most.saturating_sub(1);
    match value {
        Value::Array(items) => items.iter().fold(left, |left, item| parts(item, left)),
        Value::Object(members) => members.values().fold(left, |left, item| parts(item, left)),
        _ => left,
    }
}

#[cfg(test)]
mod tests;
