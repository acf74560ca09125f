//! The services of the catalog as Kubernetes objects: rendered, never applied.
//!
//! Every plan is rendered as an instance would be, with secrets that can be recognised, once with the defaults and once
//! with parameters at their extremes. What a cluster does with the objects is the testbed's to show.

mod baseline;
mod bindings;
mod golden;
mod plumbing;
mod rules;
mod schemas;

use chandler::adapters::catalog_dir;
use chandler::domain::catalog::{Catalog, KINDS, KnownMechanisms, Mechanisms, Offering, Plan};
use chandler::domain::manifest::{self, Desired, KUBERNETES};
use chandler::domain::params;
use chandler::domain::secret::Secret;
use serde_json::{Map, Value};
use std::sync::LazyLock;

pub const IID: &str = "abcdefghijklmnopqrstuvwxyz";
pub const NAMESPACE: &str = "osb-abcdefghijklmnopqrstuvwxyz";

static CATALOG: LazyLock<Catalog> =
    LazyLock::new(|| Catalog::load(&catalog_dir::embedded(), &KnownMechanisms).unwrap());

/// Every offering that has objects, with each of its plans.
pub fn plans() -> impl Iterator<Item = (&'static Offering, &'static Plan)> {
    let offerings = CATALOG.offerings.iter().filter(|o| !o.objects.is_empty());
    offerings.flat_map(|o| o.plans.iter().map(move |p| (&**o, &**p)))
}

pub fn plan(offering: &str, plan: &str) -> (&'static Offering, &'static Plan) {
    plans()
        .find(|(o, p)| o.name == offering && p.name == plan)
        .unwrap()
}

/// Every custom kind the offering knows: as if all operators were installed.
pub fn all_kinds(offering: &Offering) -> Vec<String> {
    let kinds = offering.resources.iter();
    kinds.map(|r| format!("{}/{}", r.api_version, r.kind)).collect()
}

/// The parameters of an instance whose creator sent nothing but what must be sent.
pub fn defaults(plan: &Plan) -> Map<String, Value> {
    let must = plan.schemas.create.json.get("required").and_then(Value::as_array);
    let sent = must.into_iter().flatten().filter_map(Value::as_str).map(|name| {
        let property = plan
            .schemas
            .create
            .json
            .pointer(&format!("/properties/{name}"))
            .unwrap();
        (name.to_owned(), property["enum"][0].clone())
    });
    params::with_defaults(&plan.schemas.create, &sent.collect())
}

/// Every parameter as far from its default as the schema lets it be.
pub fn extremes(plan: &Plan) -> Map<String, Value> {
    let properties = plan.schemas.create.json["properties"].as_object().unwrap();
    let sent: Map<String, Value> = properties
        .iter()
        .map(|(name, property)| (name.clone(), extreme(name, property)))
        .collect();
    let checked = params::check(&plan.schemas.create, &sent);
    assert_eq!(checked, Ok(()), "{}", Value::Object(sent));
    sent
}

fn extreme(name: &str, property: &Value) -> Value {
    if let Some(choices) = property["enum"].as_array() {
        return choices.last().unwrap().clone();
    }
    let longest = usize::try_from(property["maxLength"].as_u64().unwrap_or(8)).unwrap();
    match (name, property["type"].as_str().unwrap()) {
        ("consumers", _) => (0..20)
            .map(|i| Value::String(format!("{}-{i}", "n".repeat(60))))
            .collect(),
        ("notify_keyspace_events", _) => "KEgdlshzxetmnA".into(),
        (_, "boolean") => Value::Bool(!property["default"].as_bool().unwrap()),
        (_, "integer") => property["maximum"].clone(),
        (_, "string") => Value::String("z".repeat(longest)),
        (_, "array") => property["items"]["enum"].clone(),
        (name, other) => panic!("{name}: there is no extreme for {other}"),
    }
}

pub fn placement(name: &str, kinds: &[String]) -> Map<String, Value> {
    manifest::cluster_place(name, NAMESPACE, "cluster.local", kinds)
}

/// Secrets that show where they went.
pub fn secrets(offering: &Offering) -> (Secret, Secret) {
    let mechanism = &offering.binding.as_ref().unwrap().mechanism;
    let generated = offering.generated.iter();
    let generated = generated.map(|(name, length)| (name.clone(), format!("{name:x<length$}")));
    (
        Secret::new(KnownMechanisms.sample_admin(mechanism)),
        Secret::from_pairs(generated),
    )
}

pub fn rendered(offering: &Offering, plan: &Plan, params: &Map<String, Value>, kinds: &[String]) -> Desired {
    named(offering, plan, params, kinds, &offering.name)
}

/// Rendered with `name` as the name of everything: in a shared namespace it holds the iid.
pub fn named(
    offering: &Offering,
    plan: &Plan,
    params: &Map<String, Value>,
    kinds: &[String],
    name: &str,
) -> Desired {
    let place = placement(name, kinds);
    let scope = manifest::instance_scope(IID, "cf", offering, plan, params, &place);
    let (admin, generated) = secrets(offering);
    manifest::render(offering, plan, KUBERNETES, &scope, &admin, &generated)
        .unwrap_or_else(|e| panic!("{} {}: {e}", offering.name, plan.name))
}

/// Every rendering worth looking at: each plan with defaults and extremes, with and without optional kinds, alone and in a
/// shared namespace.
pub fn everything() -> Vec<(String, &'static Plan, Vec<Value>)> {
    let mut all = Vec::new();
    for (offering, plan) in plans() {
        let shared = format!("{}-{IID}", offering.name);
        for (what, params, kinds, name) in [
            (
                "defaults",
                defaults(plan),
                all_kinds(offering),
                offering.name.as_str(),
            ),
            ("extremes", extremes(plan), Vec::new(), offering.name.as_str()),
            ("shared", defaults(plan), all_kinds(offering), shared.as_str()),
        ] {
            let desired = named(offering, plan, &params, &kinds, name);
            let objects = desired.objects.into_iter().map(|o| o.object).collect();
            all.push((format!("{} {} {what}", offering.name, plan.name), plan, objects));
        }
    }
    all
}

pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// `StatefulSet redis`.
pub fn name_of(object: &Value) -> String {
    format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"))
}

/// The pod template of an object that makes pods by one.
pub fn template(object: &Value) -> Option<&Value> {
    let usual = KINDS
        .iter()
        .any(|(version, kind, _)| *version == text(object, "/apiVersion") && *kind == text(object, "/kind"));
    object.pointer("/spec/template").filter(|_| usual)
}

/// Every container of a pod template, those that run before it too.
pub fn containers(template: &Value) -> impl Iterator<Item = &Value> {
    let of = |pointer| list(template, pointer).iter();
    of("/spec/initContainers").chain(of("/spec/containers"))
}
