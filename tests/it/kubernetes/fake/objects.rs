//! What the server holds, and what it does with a request.

use super::{Fault, Key, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(super) struct Planned {
    pub(super) method: &'static str,
    pub(super) part: String,
    pub(super) times: usize,
    pub(super) fault: Fault,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) objects: BTreeMap<Key, Value>,
    pub(super) applied: BTreeMap<Key, Value>,
    pub(super) version: u64,
    /// Version, word, key, object.
    pub(super) history: Vec<(u64, &'static str, Key, Value)>,
    /// Watches from before this version have expired.
    pub(super) oldest: u64,
    pub(super) planned: Vec<Planned>,
    pub(super) nth: Option<(usize, Fault)>,
    pub(super) log: Vec<String>,
    pub(super) custom: BTreeMap<String, Vec<(String, String)>>,
    /// Namespaces stay until [`Fake::settle`] when set.
    pub(super) linger: bool,
    /// Deleted pods stay until told otherwise when set.
    pub(super) pods_stay: bool,
    /// What pods become when controllers make them.
    pub(super) pods_fail: Option<Value>,
}

pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) after: Option<u64>,
}

pub(super) fn reply(status: u16, body: Value) -> Reply {
    Reply {
        status,
        body,
        after: None,
    }
}

/// A refusal as the API server writes it.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Reply {
    reply(
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}),
    )
}

/// Version, plural, namespace and name of a path.
pub(super) fn route(path: &str) -> Option<Key> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let text = |part: &str| part.to_owned();
    match rest {
        ["namespaces", namespace, plural] => Some((version, text(plural), text(namespace), String::new())),
        ["namespaces", namespace, plural, name] => Some((version, text(plural), text(namespace), text(name))),
        [plural] => Some((version, text(plural), String::new(), String::new())),
        [plural, name] => Some((version, text(plural), String::new(), text(name))),
        _ => None,
    }
}

/// Label selectors as the adapter writes them: `a=b`, `a`, `!a`.
pub(super) fn selected(object: &Value, selector: &str) -> bool {
    let label = |name: &str| object["metadata"]["labels"].get(name).and_then(Value::as_str);
    selector
        .split(',')
        .filter(|part| !part.is_empty())
        .all(|part| match part.split_once('=') {
            Some((name, value)) => label(name) == Some(value),
            None => match part.strip_prefix('!') {
                Some(name) => label(name).is_none(),
                None => label(part).is_some(),
            },
        })
}

pub(super) fn merge(into: &mut Value, from: &Value, drop_null: bool) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                if drop_null && value.is_null() {
                    into.remove(name);
                } else {
                    merge(into.entry(name).or_insert(Value::Null), value, drop_null);
                }
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Takes away what was applied before and is applied no more.
pub(super) fn unapply(object: &mut Value, before: &Value, now: &Value) {
    let (Value::Object(object), Value::Object(before)) = (object, before) else {
        return;
    };
    for (name, old) in before {
        match now.get(name) {
            None => {
                object.remove(name);
            }
            Some(new) => unapply(object.entry(name).or_insert(Value::Null), old, new),
        }
    }
}

impl State {
    /// Counts down to the request that was planned by its number.
    pub(super) fn nth(&mut self, line: &str) -> Option<Fault> {
        if line.contains("watch=true") {
            return None;
        }
        let (left, _) = self.nth.as_mut()?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.nth.take().map(|(_, fault)| fault)
    }

    pub(super) fn store(&mut self, key: Key, mut object: Value) -> Value {
        let before = self.objects.get(&key);
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        let keep = |name: &str| {
            before
                .map(|b| b["metadata"][name].clone())
                .filter(|v| !v.is_null())
        };
        let uid = keep("uid").unwrap_or_else(|| format!("uid-{}", self.version + 1).into());
        metadata.insert("uid".into(), uid);
        let created = keep("creationTimestamp").unwrap_or_else(|| "2026-11-21T12:00:00Z".into());
        metadata.insert("creationTimestamp".into(), created);
        let generation = before
            .and_then(|b| b["metadata"]["generation"].as_i64())
            .unwrap_or(0);
        metadata.insert("generation".into(), generation.into());
        if before.is_none_or(|b| b["spec"] != object["spec"] || generation == 0) {
            object["metadata"]["generation"] = (generation + 1).into();
        }
        if let Some(before) = before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if *before == object {
                return object;
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let word = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.history
            .push((self.version, word, key.clone(), object.clone()));
        self.objects.insert(key, object.clone());
        object
    }

    pub(super) fn gone(&mut self, key: &Key) {
        self.applied.remove(key);
        let Some(mut object) = self.objects.remove(key) else {
            return;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.history.push((self.version, "DELETED", key.clone(), object));
        if key.1 == "namespaces" {
            let inside: Vec<Key> = self.objects.keys().filter(|k| k.2 == key.3).cloned().collect();
            for key in inside {
                self.gone(&key);
            }
        }
    }

    pub(super) fn answer(&mut self, request: &Request) -> Reply {
        if request.path == "/version" {
            return reply(200, json!({"gitVersion": "v1.34.1-fake"}));
        }
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        if let ["apis", group, version] = parts.as_slice() {
            return match self.custom.get(&format!("{group}/{version}")) {
                None => status(
                    404,
                    "NotFound",
                    "the server could not find the requested resource",
                ),
                Some(kinds) => {
                    let resources: Vec<Value> = kinds
                        .iter()
                        .map(|(kind, plural)| json!({"name": plural, "kind": kind, "namespaced": true}))
                        .collect();
                    reply(200, json!({"kind": "APIResourceList", "resources": resources}))
                }
            };
        }
        let Some(key) = route(&request.path) else {
            return status(404, "NotFound", "no such path");
        };
        if request.method == "GET" && key.3.is_empty() {
            return self.list(&key, request);
        }
        match request.method.as_str() {
            "GET" => match self.objects.get(&key) {
                Some(object) => reply(200, object.clone()),
                None => status(404, "NotFound", "not found"),
            },
            "PATCH" => self.patch(&key, request),
            "DELETE" => self.remove(&key, request),
            _ => status(405, "MethodNotAllowed", "no"),
        }
    }

    pub(super) fn list(&self, key: &Key, request: &Request) -> Reply {
        let empty = String::new();
        let selector = request.query.get("labelSelector").unwrap_or(&empty);
        let limit: usize = request
            .query
            .get("limit")
            .and_then(|l| l.parse().ok())
            .unwrap_or(usize::MAX);
        let skip: usize = request
            .query
            .get("continue")
            .and_then(|c| c.parse().ok())
            .unwrap_or(0);
        let all: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(k, _)| k.0 == key.0 && k.1 == key.1 && (key.2.is_empty() || k.2 == key.2))
            .map(|(_, object)| object)
            .filter(|object| selected(object, selector))
            .collect();
        let page: Vec<&Value> = all.iter().skip(skip).take(limit).copied().collect();
        let next = if skip + page.len() < all.len() {
            (skip + page.len()).to_string()
        } else {
            String::new()
        };
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": next});
        reply(200, json!({"kind": "List", "metadata": metadata, "items": page}))
    }

    pub(super) fn patch(&mut self, key: &Key, request: &Request) -> Reply {
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            return status(400, "BadRequest", "no JSON");
        };
        if !key.2.is_empty() {
            let home = (
                "v1".to_owned(),
                "namespaces".to_owned(),
                String::new(),
                key.2.clone(),
            );
            match self.objects.get(&home) {
                None => return status(404, "NotFound", &format!("namespaces \"{}\" not found", key.2)),
                Some(home)
                    if home["metadata"].get("deletionTimestamp").is_some()
                        && !self.objects.contains_key(key) =>
                {
                    let text = format!(
                        "{} \"{}\" is forbidden: unable to create new content in namespace {} because it is being terminated",
                        key.1, key.3, key.2
                    );
                    return status(403, "Forbidden", &text);
                }
                Some(_) => {}
            }
        }
        let there = self.objects.get(key).cloned();
        let mut object = there.clone().unwrap_or(json!({}));
        if request.content.contains("apply-patch") {
            if let Some(refused) = unchangeable(key, there.as_ref(), &body) {
                return refused;
            }
            if let Some(before) = self.applied.get(key) {
                unapply(&mut object, before, &body);
            }
            merge(&mut object, &body, false);
        } else if there.is_none() {
            return status(404, "NotFound", "not found");
        } else {
            merge(&mut object, &body, true);
        }
        if request.query.contains_key("dryRun") {
            return reply(200, object);
        }
        if request.content.contains("apply-patch") {
            self.applied.insert(key.clone(), body);
        }
        let created = there.is_none();
        let stored = self.store(key.clone(), object);
        reply(if created { 201 } else { 200 }, stored)
    }

    pub(super) fn remove(&mut self, key: &Key, request: &Request) -> Reply {
        let Some(mut object) = self.objects.get(key).cloned() else {
            return status(404, "NotFound", "not found");
        };
        let params: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        if let Some(uid) = params.pointer("/preconditions/uid")
            && *uid != object["metadata"]["uid"]
        {
            return status(409, "Conflict", "the UID in the precondition differs");
        }
        let policy = params["propagationPolicy"]
            .as_str()
            .unwrap_or("Background")
            .to_owned();
        let held = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty());
        let waits = match key.1.as_str() {
            "namespaces" => true,
            "statefulsets" | "deployments" | "jobs" => policy == "Foreground" || policy == "Orphan",
            _ => held,
        };
        if policy != "Orphan" {
            self.end_pods(key);
        }
        if waits || held {
            object["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:01Z".into();
            object["metadata"]["deletedBy"] = policy.into();
            let object = self.store(key.clone(), object);
            if key.1 == "namespaces" && !self.linger {
                self.controllers(false);
            }
            return reply(200, object);
        }
        self.gone(key);
        reply(200, json!({"kind": "Status", "status": "Success"}))
    }
}

/// What the real server does not let anybody change.
pub(super) fn unchangeable(key: &Key, there: Option<&Value>, wanted: &Value) -> Option<Reply> {
    let there = there?;
    let differs = |pointer: &str| there.pointer(pointer) != wanted.pointer(pointer);
    let immutable = match key.1.as_str() {
        "jobs" => differs("/spec/template"),
        "statefulsets" => {
            differs("/spec/volumeClaimTemplates") || differs("/spec/selector") || differs("/spec/serviceName")
        }
        _ => false,
    };
    immutable.then(|| {
        let text = format!(
            "{} \"{}\" is invalid: spec: Forbidden: updates to these fields are forbidden",
            key.1, key.3
        );
        status(422, "Invalid", &text)
    })
}
