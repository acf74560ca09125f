//! Service instances: the shape of each request, then the engine, then the answer.

use super::answers;
use super::body;
use super::error::Refusal;
use super::schema::{
    EmptyBody, ErrorBody, InstanceBody, InstanceChangedBody, LastOperationBody, OperationBody, ProvisionBody,
    UpdateBody,
};
use super::{Call, Input, Settings, detached};
use crate::domain::error::Error;
use crate::domain::instance::InstanceAttributes;
use crate::domain::request::{Delete, Provision, Update};
use actix_web::HttpResponse;
use serde_json::Value;
use std::sync::Arc;

/// Reads PUT. Errors: 400.
fn read_provision(input: &Input, settings: &Settings) -> Result<Provision, Error> {
    let body: ProvisionBody = body::parse(input.request.headers(), &input.body)?;
    check_guids(&body, settings)?;
    Ok(Provision {
        instance_id: input.instance_id.clone(),
        attributes: InstanceAttributes {
            service_id: body.service_id.unwrap_or_default(),
            plan_id: body.plan_id.unwrap_or_default(),
            organization_guid: body.organization_guid.unwrap_or_default(),
            space_guid: body.space_guid.unwrap_or_default(),
            parameters: body.parameters.unwrap_or_default(),
        },
        context: body.context.map(Value::Object),
        maintenance_version: body.maintenance_info.and_then(|info| info.version),
        accepts_incomplete: input.query.accepts_incomplete(),
    })
}

/// P-07: the two guids are required, unless the context says which platform it is and that may do.
fn check_guids(body: &ProvisionBody, settings: &Settings) -> Result<(), Error> {
    let platform = body.context.as_ref().and_then(|context| context.get("platform"));
    let from_context = platform
        .and_then(Value::as_str)
        .is_some_and(|word| !word.is_empty());
    if from_context && !settings.require_guids {
        return Ok(());
    }
    for (name, value) in [
        ("organization_guid", &body.organization_guid),
        ("space_guid", &body.space_guid),
    ] {
        if value.as_deref().unwrap_or_default().is_empty() {
            return Err(Error::bad_request(format!(
                "`{name}` is required and must not be empty, unless `context.platform` is given."
            )));
        }
    }
    Ok(())
}

/// Reads PATCH. Errors: 400.
fn read_update(input: &Input) -> Result<Update, Error> {
    let body: UpdateBody = body::parse(input.request.headers(), &input.body)?;
    Ok(Update {
        instance_id: input.instance_id.clone(),
        service_id: body.service_id.unwrap_or_default(),
        plan_id: body.plan_id.filter(|id| !id.is_empty()),
        parameters: body.parameters.unwrap_or_default(),
        context: body.context.map(Value::Object),
        maintenance_version: body.maintenance_info.and_then(|info| info.version),
        accepts_incomplete: input.query.accepts_incomplete(),
    })
}

/// Reads DELETE; which ids may be missing is the engine's to decide (D-03, N-03).
pub(super) fn read_delete(input: &Input, binding_id: Option<String>) -> Delete {
    Delete {
        instance_id: input.instance_id.clone(),
        binding_id,
        service_id: input.query.first("service_id").map(str::to_owned),
        plan_id: input.query.first("plan_id").map(str::to_owned),
        accepts_incomplete: input.query.accepts_incomplete(),
    }
}

/// Create a service instance.
#[utoipa::path(
    put,
    path = "/v2/service_instances/{instance_id}",
    operation_id = "serviceInstance.provision",
    tag = "Service instances",
    params(
        ("instance_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("accepts_incomplete" = Option<String>, Query, description = "`true` in any case: the answer may be 202; everything else is false"),
    ),
    request_body(content = ProvisionBody, content_type = "application/json"),
    responses(
        (status = 200, description = "It exists already, with the same attributes", body = InstanceChangedBody),
        (status = 201, description = "Created", body = InstanceChangedBody),
        (status = 202, description = "Being created", body = InstanceChangedBody),
        (status = 409, description = "The id is taken by an instance with other attributes", body = ErrorBody),
        (status = 422, description = "AsyncRequired, MaintenanceInfoConflict or ConcurrencyError", body = ErrorBody),
    )
)]
pub(super) async fn provision(call: Call) -> Result<HttpResponse, Refusal> {
    let request = read_provision(&call.input, &call.state.settings)?;
    call.compare_platform_words(request.context.as_ref());
    let (engine, caller) = (Arc::clone(&call.state.engine), call.caller);
    let outcome = detached(async move { engine.provision(&caller, request).await }).await?;
    Ok(answers::instance_changed(&outcome, call.view, true))
}

/// Read a service instance.
#[utoipa::path(
    get,
    path = "/v2/service_instances/{instance_id}",
    operation_id = "serviceInstance.get",
    tag = "Service instances",
    params(
        ("instance_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("service_id" = Option<String>, Query, description = "A hint, not used"),
        ("plan_id" = Option<String>, Query, description = "A hint, not used"),
    ),
    responses(
        (status = 200, description = "The instance", body = InstanceBody),
        (status = 404, description = "There is none, or it is still being created", body = ErrorBody),
        (status = 422, description = "ConcurrencyError: it is being changed", body = ErrorBody),
    )
)]
pub(super) async fn fetch(call: Call) -> Result<HttpResponse, Refusal> {
    let view = call
        .state
        .engine
        .fetch_instance(&call.caller, &call.input.instance_id)
        .await?;
    Ok(answers::instance_fetched(&view, call.view))
}

/// Change a service instance.
#[utoipa::path(
    patch,
    path = "/v2/service_instances/{instance_id}",
    operation_id = "serviceInstance.update",
    tag = "Service instances",
    params(
        ("instance_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("accepts_incomplete" = Option<String>, Query, description = "`true` in any case: the answer may be 202; everything else is false"),
    ),
    request_body(content = UpdateBody, content_type = "application/json"),
    responses(
        (status = 200, description = "Changed, or nothing to change", body = InstanceChangedBody),
        (status = 202, description = "Being changed", body = InstanceChangedBody),
        (status = 404, description = "There is no such instance", body = ErrorBody),
        (status = 422, description = "AsyncRequired, MaintenanceInfoConflict, PlanChangeNotSupported or ConcurrencyError", body = ErrorBody),
    )
)]
pub(super) async fn update(call: Call) -> Result<HttpResponse, Refusal> {
    let request = read_update(&call.input)?;
    call.compare_platform_words(request.context.as_ref());
    let (engine, caller) = (Arc::clone(&call.state.engine), call.caller);
    let outcome = detached(async move { engine.update(&caller, request).await }).await?;
    Ok(answers::instance_changed(&outcome, call.view, false))
}

/// Delete a service instance.
#[utoipa::path(
    delete,
    path = "/v2/service_instances/{instance_id}",
    operation_id = "serviceInstance.deprovision",
    tag = "Service instances",
    params(
        ("instance_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("service_id" = String, Query, description = "Id of the instance's offering", min_length = 1),
        ("plan_id" = String, Query, description = "Id of the instance's plan", min_length = 1),
        ("accepts_incomplete" = Option<String>, Query, description = "`true` in any case: the answer may be 202; everything else is false"),
    ),
    responses(
        (status = 200, description = "Deleted", body = EmptyBody),
        (status = 202, description = "Being deleted", body = OperationBody),
        (status = 410, description = "There is no such instance", body = ErrorBody),
        (status = 422, description = "AsyncRequired or ConcurrencyError", body = ErrorBody),
    )
)]
pub(super) async fn deprovision(call: Call) -> Result<HttpResponse, Refusal> {
    let request = read_delete(&call.input, None);
    let (engine, caller) = (Arc::clone(&call.state.engine), call.caller);
    let outcome = detached(async move { engine.deprovision(&caller, request).await }).await?;
    Ok(answers::deleted(outcome))
}

/// Ask how far the last operation of an instance is.
#[utoipa::path(
    get,
    path = "/v2/service_instances/{instance_id}/last_operation",
    operation_id = "serviceInstance.lastOperation.get",
    tag = "Service instances",
    params(
        ("instance_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("operation" = Option<String>, Query, description = "The token of a 202; absent or unknown: the latest operation"),
        ("service_id" = Option<String>, Query, description = "A hint, not used"),
        ("plan_id" = Option<String>, Query, description = "A hint, not used"),
    ),
    responses(
        (status = 200, description = "Where it stands", body = LastOperationBody,
            headers(("Retry-After" = i32, description = "Seconds; only while in progress"))),
        (status = 404, description = "There never was such an instance", body = ErrorBody),
        (status = 410, description = "By setting: the deletion succeeded", body = ErrorBody),
    )
)]
pub(super) async fn last_operation(call: Call) -> Result<HttpResponse, Refusal> {
    let operation = call
        .state
        .engine
        .last_instance_operation(
            &call.caller,
            &call.input.instance_id,
            call.input.query.operation(),
        )
        .await?;
    Ok(answers::last_operation(
        &operation,
        call.view,
        true,
        call.state.settings.deleted_is_gone(),
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::input;
    use super::*;
    use actix_web::http::Method;
    use serde_json::json;

    fn put(body: &Value, require_guids: bool) -> Result<Provision, Error> {
        let settings = Settings {
            require_guids,
            ..Settings::default()
        };
        read_provision(
            &input(&Method::PUT, "accepts_incomplete=true", &body.to_string()),
            &settings,
        )
    }

    #[actix_web::test]
    async fn a_whole_provision_arrives() {
        let body = json!({"service_id": "s", "plan_id": "p", "organization_guid": "-", "space_guid": "-",
            "parameters": {"a": [1, {"b": null}]}, "context": {"platform": "cloudfoundry", "x": 1},
            "maintenance_info": {"version": "1.2.3", "description": "d"}});
        let request = put(&body, true).unwrap();
        assert_eq!(request.instance_id, "i/d");
        assert_eq!(request.attributes.parameters["a"], body["parameters"]["a"]);
        assert_eq!(request.attributes.organization_guid, "-");
        assert_eq!(request.context, Some(body["context"].clone()));
        assert_eq!(request.maintenance_version.as_deref(), Some("1.2.3"));
        assert!(request.accepts_incomplete);
    }

    #[actix_web::test]
    async fn p07_guids_by_setting_and_context() {
        let bare = json!({"service_id": "s", "plan_id": "p"});
        for (body, strict, field) in [
            (
                json!({"organization_guid": "", "space_guid": "x"}),
                false,
                Some("`organization_guid`"),
            ),
            (json!({"organization_guid": "x"}), false, Some("`space_guid`")),
            (
                json!({"organization_guid": null, "space_guid": null, "context": {}}),
                false,
                Some("`organization_guid`"),
            ),
            (
                json!({"context": {"platform": ""}}),
                false,
                Some("`organization_guid`"),
            ),
            (
                json!({"context": {"platform": 1}}),
                false,
                Some("`organization_guid`"),
            ),
            (json!({"context": {"platform": "kubernetes"}}), false, None),
            (
                json!({"context": {"platform": "kubernetes"}}),
                true,
                Some("`organization_guid`"),
            ),
            (json!({"organization_guid": "-", "space_guid": "-"}), true, None),
        ] {
            let mut whole = bare.clone();
            whole
                .as_object_mut()
                .unwrap()
                .extend(body.as_object().unwrap().clone());
            match (put(&whole, strict), field) {
                (Ok(_), None) => {}
                (Err(error), Some(field)) => {
                    assert!(error.description.contains(field), "{whole}: {error}");
                }
                (other, _) => unreachable!("{whole}: {other:?}"),
            }
        }
    }

    #[actix_web::test]
    async fn p14_empty_maintenance_info_is_absent() {
        for info in [json!({}), json!(null), json!({"version": null})] {
            let body = json!({"service_id": "s", "plan_id": "p", "maintenance_info": info, "context": {"platform": "x"}});
            assert_eq!(put(&body, false).unwrap().maintenance_version, None);
        }
        let body = json!({"service_id": "s", "plan_id": "p", "maintenance_info": {"version": "no semver"}, "context": {"platform": "x"}});
        assert_eq!(
            put(&body, false).unwrap().maintenance_version.as_deref(),
            Some("no semver"),
            "P-12: for the engine to refuse"
        );
    }

    #[actix_web::test]
    async fn u04_u06_u07_update() {
        let patch = |body: Value| read_update(&input(&Method::PATCH, "", &body.to_string()));
        let request =
            patch(json!({"service_id": "s", "plan_id": "", "parameters": {}, "previous_values": {}}))
                .unwrap();
        assert_eq!((request.plan_id, request.parameters.len()), (None, 0));
        assert!(!request.accepts_incomplete);
        assert_eq!(
            patch(json!({"service_id": "s", "plan_id": "p"}))
                .unwrap()
                .plan_id
                .as_deref(),
            Some("p")
        );
        assert!(
            patch(json!({"plan_id": "p"}))
                .unwrap_err()
                .description
                .contains("`service_id`")
        );
        assert!(patch(json!({"service_id": "s", "previous_values": "x"})).is_err());
    }

    #[actix_web::test]
    async fn d03_missing_ids_are_left_to_the_engine() {
        let delete = |query: &str| read_delete(&input(&Method::DELETE, query, ""), None);
        assert_eq!(delete("service_id=&accepts_incomplete=true").service_id, None);
        let whole = delete("service_id=s&plan_id=p&plan_id=q&accepts_incomplete=TRUE");
        assert_eq!(
            (whole.service_id.as_deref(), whole.plan_id.as_deref()),
            (Some("s"), Some("p"))
        );
        assert!(whole.accepts_incomplete);
    }
}
