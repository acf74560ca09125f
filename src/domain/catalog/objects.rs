//! `objects/*.yaml`: which documents there are, which kinds they may have, and what a filled one must keep.
//!
//! A document is a Kubernetes object with four members of our own beside it: `when`, `phase`, `ready` and
//! `failed`. What must stay true: the broker never makes an object of a kind that is not in the table here or
//! named by the offering, because its rights are written from the same table.

use super::load::{Folder, Problems};
use super::{CustomResource, ObjectTemplate, raw};
use crate::domain::expr::Template;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Kinds any offering may use: group and version, kind, plural.
pub const KINDS: [(&str, &str, &str); 12] = [
    ("v1", "ConfigMap", "configmaps"),
    ("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    ("v1", "Secret", "secrets"),
    ("v1", "Service", "services"),
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("batch/v1", "CronJob", "cronjobs"),
    ("batch/v1", "Job", "jobs"),
    (
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
    ),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
];

/// Members that name an image, in objects Kubernetes or an operator defines.
pub const IMAGE_MEMBERS: [&str; 5] = [
    "image",
    "imageName",
    "serverImage",
    "systemLoggerImage",
    "configBuilderImage",
];

/// The phase of a document that names none.
pub const DEFAULT_PHASE: u16 = 10;
/// Longest name that is a label too.
const MAX_NAME: usize = 63;

/// Reads every document of every file in `objects/`, in file order.
pub(super) fn read(folder: &Folder<'_>, problems: &mut Problems) -> Vec<ObjectTemplate> {
    let mut objects = Vec::new();
    for (name, text) in &folder.files {
        if !name.starts_with("objects/") {
            continue;
        }
        let file = folder.file(name);
        match raw::parse_all(text) {
            Ok(documents) => {
                for (i, document) in documents.into_iter().enumerate() {
                    let place = format!("{name}[{i}]");
                    objects.extend(one(place, &file, &format!("[{i}]"), document, problems));
                }
            }
            Err(message) => problems.add(&file, "", message),
        }
    }
    objects
}

fn one(
    place: String,
    file: &str,
    at: &str,
    document: Value,
    problems: &mut Problems,
) -> Option<ObjectTemplate> {
    let Value::Object(mut members) = document else {
        problems.add(file, at, "must be an object");
        return None;
    };
    let mut own = |name: &str, problems: &mut Problems| -> Result<Option<Template>, ()> {
        match members.remove(name) {
            None => Ok(None),
            Some(value) => Template::compile(value)
                .map(Some)
                .map_err(|errors| problems.add_all(file, &format!("{at}.{name}"), errors)),
        }
    };
    let (when, ready, failed) = (
        own("when", problems),
        own("ready", problems),
        own("failed", problems),
    );
    let phase = match members.remove("phase") {
        None => DEFAULT_PHASE,
        Some(phase) => match phase.as_u64().and_then(|phase| u16::try_from(phase).ok()) {
            Some(phase) => phase,
            None => {
                problems.add(
                    file,
                    &format!("{at}.phase"),
                    "must be a number such as 10, 20 or 30",
                );
                return None;
            }
        },
    };
    let fixed = |name: &str, problems: &mut Problems| -> Option<String> {
        match members.get(name).and_then(Value::as_str) {
            Some(text) if !text.contains("${") && !text.is_empty() => Some(text.to_owned()),
            _ => {
                problems.add(
                    file,
                    &format!("{at}.{name}"),
                    "must be given, and without an expression",
                );
                None
            }
        }
    };
    let (api_version, kind) = (fixed("apiVersion", problems), fixed("kind", problems));
    let object = Template::compile(Value::Object(members))
        .map_err(|errors| problems.add_all(file, at, errors))
        .ok();
    Some(ObjectTemplate {
        file: place,
        api_version: api_version?,
        kind: kind?,
        phase,
        when: when.ok()?,
        ready: ready.ok()?,
        failed: failed.ok()?,
        object: object?,
    })
}

/// The plural of a kind, from the table or the offering's own `resources`; `None` = not allowed.
pub fn plural<'a>(resources: &'a [CustomResource], api_version: &str, kind: &str) -> Option<&'a str> {
    let usual = KINDS
        .iter()
        .find(|(version, name, _)| *version == api_version && *name == kind);
    match usual {
        Some((_, _, plural)) => Some(plural),
        None => resources
            .iter()
            .find(|r| r.api_version == api_version && r.kind == kind)
            .map(|r| r.plural.as_str()),
    }
}

/// Checks one filled object; `secrets` are values that must not be readable outside a Secret.
pub(super) fn is_right(
    file: &str,
    resources: &[CustomResource],
    object: &Value,
    secrets: &[String],
    seen: &mut BTreeSet<(String, String)>,
    problems: &mut Problems,
) {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (api_version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    if plural(resources, api_version, kind).is_none() {
        problems.add(
            file,
            "kind",
            format!("{kind} of {api_version} is not a kind the broker may make; a custom resource is named in `resources` of offering.yaml"),
        );
    }
    let label = |name: &str| {
        !name.is_empty()
            && name.len() <= MAX_NAME
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-')
    };
    if !label(name) {
        problems.add(
            file,
            "metadata.name",
            format!("`{name}` is not a name of at most {MAX_NAME} small letters, digits and dashes"),
        );
    }
    if object.pointer("/metadata/namespace").is_some() {
        problems.add(
            file,
            "metadata.namespace",
            "must be left out: the broker puts every object into the instance's own namespace",
        );
    }
    if !seen.insert((format!("{api_version}/{kind}"), name.to_owned())) {
        problems.add(
            file,
            "metadata.name",
            format!("there are two objects {kind} {name}"),
        );
    }
    if object.get("stringData").is_some() {
        problems.add(
            file,
            "stringData",
            "use `data` with `b64(…)`: server-side apply keeps removed keys of `stringData`",
        );
    }
    if kind != "Secret" && secrets.iter().any(|secret| holds(object, secret)) {
        problems.add(file, kind, "holds a secret; put it into a Secret and mount that");
    }
    images_are_pinned(file, object, problems);
}

fn holds(value: &Value, secret: &str) -> bool {
    match value {
        Value::String(text) => text.contains(secret),
        Value::Array(items) => items.iter().any(|item| holds(item, secret)),
        Value::Object(members) => members.values().any(|member| holds(member, secret)),
        _ => false,
    }
}

/// Every `image` of an object must say by digest which one: a tag can be moved to another.
fn images_are_pinned(file: &str, value: &Value, problems: &mut Problems) {
    let members: &Map<String, Value> = match value {
        Value::Array(items) => {
            return items
                .iter()
                .for_each(|item| images_are_pinned(file, item, problems));
        }
        Value::Object(members) => members,
        _ => return,
    };
    for (key, member) in members {
        if IMAGE_MEMBERS.contains(&key.as_str())
            && let Some(image) = member.as_str()
            && !is_pinned(image)
        {
            problems.add(
                file,
                key,
                format!("`{image}` is not pinned by digest (name@sha256:…)"),
            );
        }
        images_are_pinned(file, member, problems);
    }
}

fn is_pinned(image: &str) -> bool {
    image
        .split_once("@sha256:")
        .is_some_and(|(_, hex)| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}
