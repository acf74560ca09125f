//! Golden renders: every object of every plan as a person would read it, and what extreme parameters change in it.
//!
//! After a wanted change: `INSTA_UPDATE=always cargo test --test it objects::golden`, and read the difference.

use super::{all_kinds, defaults, extremes, name_of, plans, rendered, text};
use base64::Engine as _;
use chandler::domain::manifest::{Desired, ObjectSpec};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

#[test]
fn every_plan_renders_as_it_did() {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("golden");
    for (offering, plan) in plans() {
        let usual = rendered(offering, plan, &defaults(plan), &all_kinds(offering));
        let params = extremes(plan);
        let extreme = rendered(offering, plan, &params, &[]);
        let mut page = String::new();
        for object in &usual.objects {
            document(object, &mut page);
        }
        let _ = writeln!(
            page,
            "# With extreme parameters, and without the kinds of operators:"
        );
        for (name, value) in &params {
            let _ = writeln!(page, "#   {name}: {}", shortened(value));
        }
        changes(&usual, &extreme, &mut page);
        settings.bind(|| insta::assert_snapshot!(format!("{}-{}", offering.name, plan.name), page));
    }
}

/// One object as YAML, secrets in clear: they are made up.
fn document(spec: &ObjectSpec, page: &mut String) {
    let _ = writeln!(page, "---\n# phase {}", spec.phase);
    for (name, rule) in [("ready", &spec.ready), ("failed", &spec.failed)] {
        if let Some(rule) = rule {
            let _ = writeln!(page, "# {name}: {rule}");
        }
    }
    let object = readable(spec.object.clone());
    let _ = writeln!(page, "{}", serde_saphyr::to_string(&object).unwrap().trim_end());
}

fn readable(mut object: Value) -> Value {
    if text(&object, "/kind") == "Secret" {
        let data = object["data"].as_object_mut().unwrap();
        for value in data.values_mut() {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(value.as_str().unwrap())
                .unwrap();
            *value = Value::String(String::from_utf8(bytes).unwrap());
        }
        let data = data.clone();
        object.as_object_mut().unwrap().remove("data");
        object["data, decoded"] = Value::Object(data);
    }
    object
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 100 {
        return text;
    }
    format!("{}… ({} characters)", &text[..80], text.len())
}

/// Objects that are gone or new, and each leaf that differs; of a file, each line.
fn changes(usual: &Desired, extreme: &Desired, page: &mut String) {
    let by_name = |desired: &Desired| -> BTreeMap<String, Value> {
        let objects = desired.objects.iter();
        objects
            .map(|o| (name_of(&o.object), readable(o.object.clone())))
            .collect()
    };
    let (before, after) = (by_name(usual), by_name(extreme));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        match (before.get(name), after.get(name)) {
            (Some(before), Some(after)) => {
                let (before, after) = (leaves(before), leaves(after));
                let lines = |from: &Map<String, Value>, to: &Map<String, Value>, sign: &str| {
                    let gone = from.iter().filter(|(at, value)| to.get(*at) != Some(value));
                    gone.map(|(at, value)| format!("# {sign} {name} {at} {}", shortened(value)))
                        .collect::<Vec<_>>()
                };
                for line in lines(&before, &after, "-")
                    .into_iter()
                    .chain(lines(&after, &before, "+"))
                {
                    let _ = writeln!(page, "{line}");
                }
            }
            (Some(_), None) => {
                let _ = writeln!(page, "# - {name}");
            }
            _ => {
                let _ = writeln!(page, "# + {name}");
            }
        }
    }
}

/// Every leaf by its path; a text of several lines is a leaf for each line.
fn leaves(value: &Value) -> Map<String, Value> {
    let mut found = Map::new();
    collect(value, String::new(), &mut found);
    found
}

fn collect(value: &Value, at: String, found: &mut Map<String, Value>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                collect(member, format!("{at}/{key}"), found);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                collect(item, format!("{at}/{i}"), found);
            }
        }
        Value::String(text) if text.contains('\n') => {
            for (i, line) in text.lines().enumerate() {
                found.insert(format!("{at}:{}", i + 1), line.into());
            }
        }
        leaf => {
            found.insert(at, leaf.clone());
        }
    }
}
