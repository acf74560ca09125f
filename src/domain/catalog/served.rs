//! What GET /v2/catalog shows of the catalog: exactly the members of OSB (C-02 … C-16), never a null (Z-02).

use super::{Catalog, Offering, Plan};
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub(super) fn served(
    catalog: &Catalog,
    offered: &dyn Fn(&Offering, &Plan) -> bool,
    own: &Map<String, Value>,
) -> Value {
    let services: Vec<Value> = catalog
        .offerings
        .iter()
        .filter_map(|offering| {
            let plans: Vec<&Arc<Plan>> = offering
                .plans
                .iter()
                .filter(|plan| offered(offering, plan))
                .collect();
            (!plans.is_empty()).then(|| service(offering, &plans, own))
        })
        .collect();
    json!({ "services": services })
}

fn service(offering: &Offering, plans: &[&Arc<Plan>], own: &Map<String, Value>) -> Value {
    // A change is only possible to a plan that is offered too.
    let updateable =
        |plan: &Plan| plan.plan_updateable && plans.iter().any(|other| plan.updates_to.contains(&other.name));
    let mut service = Map::new();
    service.insert("id".into(), json!(offering.id));
    service.insert("name".into(), json!(offering.name));
    service.insert("description".into(), json!(offering.description));
    if !offering.tags.is_empty() {
        service.insert("tags".into(), json!(offering.tags));
    }
    if !offering.requires.is_empty() {
        service.insert("requires".into(), json!(offering.requires));
    }
    service.insert("bindable".into(), json!(offering.bindable));
    service.insert("instances_retrievable".into(), json!(true));
    service.insert(
        "bindings_retrievable".into(),
        json!(plans.iter().any(|plan| plan.bindable)),
    );
    service.insert("allow_context_updates".into(), json!(true));
    service.insert(
        "plan_updateable".into(),
        json!(plans.iter().any(|plan| updateable(plan))),
    );
    if !offering.metadata.is_empty() {
        service.insert("metadata".into(), Value::Object(offering.metadata.clone()));
    }
    let plans: Vec<Value> = plans.iter().map(|p| plan(p, updateable(p), own)).collect();
    service.insert("plans".into(), Value::Array(plans));
    Value::Object(service)
}

fn plan(plan: &Plan, updateable: bool, own: &Map<String, Value>) -> Value {
    let mut served = Map::new();
    served.insert("id".into(), json!(plan.id));
    served.insert("name".into(), json!(plan.name));
    served.insert("description".into(), json!(plan.description));
    served.insert("free".into(), json!(plan.free));
    served.insert("bindable".into(), json!(plan.bindable));
    served.insert(
        "binding_rotatable".into(),
        json!(plan.bindable && plan.binding_rotatable),
    );
    served.insert("plan_updateable".into(), json!(updateable));
    served.insert(
        "maximum_polling_duration".into(),
        json!(plan.maximum_polling_duration),
    );
    if let Some(version) = &plan.maintenance_version {
        let mut info = Map::from_iter([("version".to_owned(), json!(version))]);
        if let Some(description) = &plan.maintenance_description {
            info.insert("description".into(), json!(description));
        }
        served.insert("maintenance_info".into(), Value::Object(info));
    }
    if !plan.metadata.is_empty() {
        served.insert("metadata".into(), Value::Object(plan.metadata.clone()));
    }
    let mut schemas = json!({
        "service_instance": {
            "create": {"parameters": plan.schemas.create.json},
            "update": {"parameters": plan.schemas.update.json},
        }
    });
    // C-13: only for bindable plans.
    if plan.bindable {
        let mut bind = plan.schemas.bind.json.clone();
        if !own.is_empty()
            && let Some(bind) = bind.as_object_mut()
            && let Some(properties) = bind
                .entry("properties")
                .or_insert_with(|| json!({}))
                .as_object_mut()
        {
            properties.extend(own.clone());
        }
        schemas["service_binding"] = json!({"create": {"parameters": bind}});
    }
    served.insert("schemas".into(), schemas);
    Value::Object(served)
}
