//! What a catalog must keep beside its form: OSB's rules (C-02 … C-16), the limits of real platforms
//! (osb-rules §18), and what the engine relies on.

use super::load::{Loaded, Problems};
use super::{Plan, Schema, mechanism, raw};
use crate::domain::params;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Longest name that Kubernetes platforms take.
const MAX_NAME: usize = 63;
/// Longest description Cloud Foundry takes, in characters.
const MAX_DESCRIPTION: usize = 10_000;
/// Longest list of tags Cloud Foundry takes, joined, in characters.
const MAX_TAGS: usize = 2_048;
/// Longest `maintenance_info` Cloud Foundry takes, in characters of JSON.
const MAX_MAINTENANCE: usize = 2_000;
/// Longest time a platform polls, in seconds: a week.
const MAX_POLLING: u32 = 604_800;
/// Shortest time to live of a binding that leaves room to rotate, in seconds.
const MIN_TTL: u32 = 60;
/// The roles a credential mechanism knows.
const ROLES: [&str; 3] = ["owner", "readwrite", "readonly"];

const REQUIRES: [&str; 3] = ["syslog_drain", "route_forwarding", "volume_mount"];
const RUNS_ON: [&str; 2] = ["local", "kubernetes"];

/// What must be unique over the whole catalog (C-04, C-05).
pub(super) fn across(loaded: &[Loaded<'_>], problems: &mut Problems) {
    let mut ids: BTreeMap<&str, String> = BTreeMap::new();
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for one in loaded {
        let file = one.folder.file("offering.yaml");
        if let Some(first) = names.insert(&one.offering.name, file.clone()) {
            problems.add(
                &file,
                "name",
                format!("`{}` is the name of {first} too (C-04)", one.offering.name),
            );
        }
        let plans = one.offering.plans.iter().zip(&one.plan_files);
        let all = std::iter::once((one.offering.id.as_str(), file))
            .chain(plans.map(|(plan, name)| (plan.id.as_str(), one.folder.plan_file(name))));
        for (id, file) in all {
            if !is_uuid(id) {
                problems.add(
                    &file,
                    "id",
                    format!(
                        "`{id}` is not a lower-case UUID; make one with `uuidgen` and never change it (C-05)"
                    ),
                );
            }
            if let Some(first) = ids.insert(id, file.clone()) {
                problems.add(&file, "id", format!("`{id}` is the id of {first} too (C-05)"));
            }
        }
    }
}

fn is_uuid(id: &str) -> bool {
    uuid::Uuid::parse_str(id).is_ok_and(|uuid| uuid.hyphenated().to_string() == id)
}

/// Everything that can be said of one offering without rendering it.
pub(super) fn offering(one: &Loaded<'_>, problems: &mut Problems) {
    let file = one.folder.file("offering.yaml");
    let offering = &one.offering;
    name(&offering.name, &file, problems);
    description(&offering.description, &file, problems);
    if offering.tags.iter().any(String::is_empty) {
        problems.add(&file, "tags", "holds an empty tag");
    }
    let tags: usize = offering.tags.iter().map(|tag| tag.chars().count() + 1).sum();
    if tags > MAX_TAGS {
        problems.add(
            &file,
            "tags",
            format!("are longer than {MAX_TAGS} characters together; Cloud Foundry refuses that"),
        );
    }
    for word in offering
        .requires
        .iter()
        .filter(|word| !REQUIRES.contains(&word.as_str()))
    {
        problems.add(
            &file,
            "requires",
            format!("`{word}` is none of {} (C-07)", REQUIRES.join(", ")),
        );
    }
    if offering
        .metadata
        .get("shareable")
        .is_some_and(|v| !v.is_boolean())
    {
        problems.add(
            &file,
            "metadata.shareable",
            "must be true or false; Cloud Foundry refuses anything else",
        );
    }
    for key in ["displayName", "longDescription", "providerDisplayName"] {
        text_member(&offering.metadata, key, &file, problems);
    }
    for key in ["documentationUrl", "supportUrl", "imageUrl"] {
        text_member(&offering.metadata, key, &file, problems);
        let url = offering.metadata.get(key).and_then(Value::as_str);
        if url.is_some_and(|url| {
            !["https://", "http://", "data:image/"]
                .iter()
                .any(|start| url.starts_with(start))
        }) {
            problems.add(&file, &format!("metadata.{key}"), "is not a web address");
        }
    }
    if !(1..=64).contains(&offering.concurrency) {
        problems.add(&file, "concurrency", "must be between 1 and 64");
    }
    for (name, length) in &offering.generated {
        let path = format!("generated.{name}");
        if !is_word(name) {
            problems.add(
                &file,
                &path,
                "must be lower-case letters, digits and `_`, a letter first",
            );
        }
        if !(16..=128).contains(length) {
            problems.add(&file, &path, "must have between 16 and 128 characters");
        }
    }
    updates(one, &file, problems);
    plans(one, problems);
    process(one, problems);
    binding(one, problems);
    examples(one, &file, problems);
}

fn name(name: &str, file: &str, problems: &mut Problems) {
    let friendly = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    if !friendly || !name.chars().any(|c| c.is_ascii_alphanumeric()) {
        problems.add(
            file,
            "name",
            format!("`{name}` is not made of letters, digits, dots and hyphens (C-06)"),
        );
    }
    if name.len() > MAX_NAME {
        problems.add(
            file,
            "name",
            format!("is longer than {MAX_NAME} characters; Kubernetes platforms refuse that"),
        );
    }
}

fn description(text: &str, file: &str, problems: &mut Problems) {
    if text.trim().is_empty() {
        problems.add(file, "description", "is empty (C-02)");
    }
    if text.chars().count() > MAX_DESCRIPTION {
        problems.add(
            file,
            "description",
            format!("is longer than {MAX_DESCRIPTION} characters; Cloud Foundry refuses that"),
        );
    }
}

fn text_member(metadata: &serde_json::Map<String, Value>, key: &str, file: &str, problems: &mut Problems) {
    if metadata.get(key).is_some_and(|v| !v.is_string()) {
        problems.add(file, &format!("metadata.{key}"), "must be a text (C-15)");
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= MAX_NAME
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn updates(one: &Loaded<'_>, file: &str, problems: &mut Problems) {
    let names: BTreeSet<&str> = one.offering.plans.iter().map(|plan| plan.name.as_str()).collect();
    for (from, to) in &one.updates {
        for name in std::iter::once(from)
            .chain(to)
            .filter(|name| !names.contains(name.as_str()))
        {
            problems.add(
                file,
                &format!("updates.{from}"),
                format!("there is no plan `{name}`"),
            );
        }
        if to.contains(from) {
            problems.add(
                file,
                &format!("updates.{from}"),
                "a plan need not be allowed to change to itself",
            );
        }
    }
}

fn plans(one: &Loaded<'_>, problems: &mut Problems) {
    let mut names = BTreeSet::new();
    for (plan, name_of_file) in one.offering.plans.iter().zip(&one.plan_files) {
        let file = one.folder.plan_file(name_of_file);
        name(&plan.name, &file, problems);
        description(&plan.description, &file, problems);
        if !names.insert(plan.name.as_str()) {
            problems.add(
                &file,
                "name",
                format!(
                    "another plan of {} is named `{}` too (C-04)",
                    one.offering.name, plan.name
                ),
            );
        }
        if !(60..=MAX_POLLING).contains(&plan.maximum_polling_duration) {
            problems.add(
                &file,
                "maximum_polling_duration",
                format!("must be between 60 and {MAX_POLLING} seconds"),
            );
        }
        if plan.bindable && one.offering.binding.is_none() {
            problems.add(
                &file,
                "bindable",
                "needs a binding.yaml that says how bindings are made",
            );
        }
        if plan.runs_on.is_empty() {
            problems.add(
                &file,
                "runs_on",
                format!(
                    "names nothing that runs it; at least one of {}",
                    RUNS_ON.join(", ")
                ),
            );
        }
        for word in plan
            .runs_on
            .iter()
            .filter(|word| !RUNS_ON.contains(&word.as_str()))
        {
            problems.add(
                &file,
                "runs_on",
                format!("`{word}` is none of {}", RUNS_ON.join(", ")),
            );
        }
        if plan.runs_on.iter().any(|word| word == "local") && one.offering.process.is_none() {
            problems.add(&file, "runs_on", "`local` needs a process.yaml");
        }
        if let Some(life) = plan.binding_lifetime
            && (life.ttl < MIN_TTL || life.renew_before == 0 || life.renew_before >= life.ttl)
        {
            problems.add(
                &file,
                "binding_lifetime",
                format!("ttl must be at least {MIN_TTL} seconds and renew_before between 1 and ttl, so that there is room to rotate (B-17)"),
            );
        }
        plan_metadata(plan, &file, problems);
        // Parameters of an update are merged over the instance's own and then checked as a whole by nobody: each must
        // be one that creating knows.
        for name in properties(&plan.schemas.update)
            .filter(|name| !properties(&plan.schemas.create).any(|n| n == *name))
        {
            problems.add(
                &one.folder.file("update.schema.json"),
                &format!("properties.{name}"),
                "is not in create.schema.json; an update only changes what an instance was created with",
            );
        }
    }
}

fn properties(schema: &Schema) -> impl Iterator<Item = &String> {
    let properties = schema.json.get("properties").and_then(Value::as_object);
    properties.into_iter().flat_map(|members| members.keys())
}

fn plan_metadata(plan: &Plan, file: &str, problems: &mut Problems) {
    text_member(&plan.metadata, "displayName", file, problems);
    if let Some(bullets) = plan.metadata.get("bullets")
        && !bullets
            .as_array()
            .is_some_and(|list| list.iter().all(Value::is_string))
    {
        problems.add(file, "metadata.bullets", "must be a list of texts (C-15)");
    }
    let Some(costs) = plan.metadata.get("costs") else {
        return;
    };
    let right = |cost: &Value| {
        let amount = cost.get("amount").and_then(Value::as_object);
        cost.get("unit").is_some_and(Value::is_string)
            && amount.is_some_and(|amount| !amount.is_empty() && amount.values().all(Value::is_number))
    };
    if !costs.as_array().is_some_and(|list| list.iter().all(right)) {
        problems.add(
            file,
            "metadata.costs",
            "must be a list of {amount: {currency: number}, unit: text} (C-15)",
        );
    }
}

/// Checks `maintenance_info` (C-12).
pub(super) fn maintenance(info: &raw::Maintenance, file: &str, problems: &mut Problems) {
    if !is_semver(&info.version) {
        problems.add(
            file,
            "maintenance_info.version",
            format!(
                "`{}` is not a semantic version such as 1.0.0 (C-12)",
                info.version
            ),
        );
    }
    let json = serde_json::json!({"version": info.version, "description": info.description}).to_string();
    if json.chars().count() > MAX_MAINTENANCE {
        problems.add(
            file,
            "maintenance_info",
            format!("is longer than {MAX_MAINTENANCE} characters; Cloud Foundry refuses that"),
        );
    }
}

/// Semantic versioning 2.0, with pre-release and build.
fn is_semver(text: &str) -> bool {
    let identifiers = |text: &str| {
        text.split('.')
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
    };
    let plain =
        |text: &str| !(text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    let (rest, build) = text
        .split_once('+')
        .map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest
        .split_once('-')
        .map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let numbers: Vec<&str> = core.split('.').collect();
    numbers.len() == 3
        && numbers
            .iter()
            .all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) && plain(n))
        && pre.is_none_or(|pre| identifiers(pre) && pre.split('.').all(plain))
        && build.is_none_or(identifiers)
}

fn process(one: &Loaded<'_>, problems: &mut Problems) {
    let Some(process) = &one.offering.process else {
        return;
    };
    let file = one.folder.file("process.yaml");
    if process.ports.is_empty() {
        problems.add(&file, "ports", "names no port, so nobody could connect");
    }
    let mut seen = BTreeSet::new();
    for port in &process.ports {
        if !is_word(port) {
            problems.add(
                &file,
                "ports",
                format!("`{port}` must be lower-case letters, digits and `_`, a letter first"),
            );
        }
        if !seen.insert(port) {
            problems.add(&file, "ports", format!("`{port}` is there twice"));
        }
    }
    if process.install.trim().is_empty() {
        problems.add(&file, "install", "must say how to install the binaries");
    }
    if process.binaries.is_empty() {
        problems.add(&file, "binaries", "names no binary, so nothing could be started");
    }
    for (name, candidates) in &process.binaries {
        let path = format!("binaries.{name}");
        if !is_word(name) {
            problems.add(
                &file,
                &path,
                "must be lower-case letters, digits and `_`, a letter first",
            );
        }
        if candidates.is_empty() {
            problems.add(&file, &path, "has no candidate");
        }
        for candidate in candidates {
            let segments = candidate.split('/').skip(1).collect::<Vec<_>>();
            let right = if candidate.contains('/') {
                candidate.starts_with('/') && segments.iter().all(|s| !s.is_empty() && *s != "..")
            } else {
                !candidate.is_empty() && !candidate.contains('*')
            };
            if !right {
                problems.add(
                    &file,
                    &path,
                    format!("`{candidate}` is neither a plain name nor an absolute path"),
                );
            }
        }
    }
}

fn binding(one: &Loaded<'_>, problems: &mut Problems) {
    let Some(binding) = &one.offering.binding else {
        return;
    };
    let file = one.folder.file("binding.yaml");
    if !binding.roles.contains(&binding.default_role) {
        problems.add(
            &file,
            "default_role",
            format!("`{}` is not in roles", binding.default_role),
        );
    }
    for role in binding
        .roles
        .iter()
        .filter(|role| !ROLES.contains(&role.as_str()))
    {
        problems.add(
            &file,
            "roles",
            format!("`{role}` is none of {}", ROLES.join(", ")),
        );
    }
    if let Some(process) = &one.offering.process
        && !process.ports.contains(&binding.endpoint)
    {
        problems.add(
            &file,
            "endpoint",
            format!("process.yaml has no port `{}`", binding.endpoint),
        );
    }
    for member in mechanism::literal_settings(&binding.mechanism) {
        if let Some(value) = binding.settings.source().get(member) {
            literal(value, &format!("settings.{member}"), &file, one, problems);
        }
    }
    let credentials = binding.credentials.source();
    if !credentials.get("type").is_some_and(Value::is_string) {
        problems.add(
            &file,
            "credentials.type",
            "is missing; clients choose their driver by it",
        );
    }
    for key in credentials
        .as_object()
        .into_iter()
        .flat_map(|members| members.keys())
    {
        let right = !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if !right {
            problems.add(
                &file,
                &format!("credentials.{key}"),
                "must be letters, digits, `-`, `.` and `_`: on Kubernetes it becomes the key of a Secret",
            );
        }
    }
    // The role a schema lets through must be one that is served.
    for plan in &one.offering.plans {
        let asked = plan
            .schemas
            .bind
            .json
            .pointer("/properties/role/enum")
            .and_then(Value::as_array);
        for role in asked.into_iter().flatten() {
            if !role
                .as_str()
                .is_some_and(|role| binding.roles.iter().any(|known| known == role))
            {
                problems.add(
                    &one.folder.file("bind.schema.json"),
                    "properties.role.enum",
                    format!("{role} is not in the roles of binding.yaml"),
                );
            }
        }
    }
}

/// Nothing in `value` may be an expression: it would be filled in before the mechanism could quote what it gives.
/// What it takes from a binding's parameters by holes (`{params.name}`) must be a parameter that there is.
fn literal(value: &Value, path: &str, file: &str, one: &Loaded<'_>, problems: &mut Problems) {
    match value {
        Value::String(text) if text.contains("${") => problems.add(
            file,
            path,
            "must hold no `${…}`: name what it gives in `settings.values`, and write a hole such as `{name}` here",
        ),
        Value::String(text) => {
            for hole in text.split("{params.").skip(1) {
                let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                let name: String = hole.chars().take_while(|c| name(*c)).collect();
                let mut plans = one.offering.plans.iter();
                if let Some(plan) = plans.find(|plan| !properties(&plan.schemas.bind).any(|known| *known == name)) {
                    let message = format!("bind.schema.json of plan {} has no parameter `{name}`", plan.name);
                    problems.add(file, path, message);
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                literal(item, &format!("{path}[{i}]"), file, one, problems);
            }
        }
        Value::Object(members) => {
            for (name, item) in members {
                literal(item, &format!("{path}.{name}"), file, one, problems);
            }
        }
        _ => {}
    }
}

fn examples(one: &Loaded<'_>, file: &str, problems: &mut Problems) {
    for (i, example) in one.examples.iter().enumerate() {
        let path = format!("examples[{i}]");
        if let Some(name) = &example.plan
            && !one.offering.plans.iter().any(|plan| plan.name == *name)
        {
            problems.add(file, &path, format!("there is no plan `{name}`"));
        }
        for plan in one
            .offering
            .plans
            .iter()
            .filter(|plan| example.plan.as_ref().is_none_or(|name| *name == plan.name))
        {
            let schema = match example.call {
                raw::Call::Create => &plan.schemas.create,
                raw::Call::Update => &plan.schemas.update,
                raw::Call::Bind => &plan.schemas.bind,
            };
            match (params::check(schema, &example.parameters), example.valid) {
                (Err(message), true) => problems.add(file, &path, format!("plan {}: {message}", plan.name)),
                (Ok(()), false) => problems.add(
                    file,
                    &path,
                    format!("plan {}: should be refused and is not", plan.name),
                ),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semantic_versions() {
        for right in [
            "1.0.0",
            "0.0.0",
            "15.4.0+deb12u1",
            "1.2.3-rc.1",
            "1.2.3-0a.b-c+5.6",
            "10.20.30",
        ] {
            assert!(is_semver(right), "{right}");
        }
        for wrong in [
            "", "1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0+", "1.0.0-01", "1.0.a", "1..0",
            "1.0.0-ü",
        ] {
            assert!(!is_semver(wrong), "{wrong}");
        }
    }
}
