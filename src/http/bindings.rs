//! Service bindings: the shape of each request, then the engine, then the answer.

use super::answers;
use super::body;
use super::error::Refusal;
use super::instances::read_delete;
use super::schema::{BindBody, BindingBody, EmptyBody, ErrorBody, LastOperationBody, OperationBody};
use super::{Call, Input, detached};
use crate::domain::binding::BindingAttributes;
use crate::domain::error::Error;
use crate::domain::request::Bind;
use actix_web::HttpResponse;
use serde_json::Value;
use std::sync::Arc;

/// Reads PUT. Errors: 400.
fn read_bind(input: &Input) -> Result<Bind, Error> {
    let body: BindBody = body::parse(input.request.headers(), &input.body)?;
    body::text_members(
        "bind_resource",
        body.bind_resource.as_ref(),
        &["app_guid", "route"],
    )?;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let predecessor = filled(body.predecessor_binding_id);
    let (service_id, plan_id) = (filled(body.service_id), filled(body.plan_id));
    // a rotation may name nothing but its predecessor.
    if predecessor.is_none() {
        for (name, value) in [("service_id", &service_id), ("plan_id", &plan_id)] {
            if value.is_none() {
                return Err(Error::bad_request(format!(
                    "`{name}` is required and must not be empty."
                )));
            }
        }
    }
    Ok(Bind {
        instance_id: input.instance_id.clone(),
        binding_id: input.binding_id.clone(),
        attributes: BindingAttributes {
            service_id: service_id.unwrap_or_default(),
            plan_id: plan_id.unwrap_or_default(),
            parameters: body.parameters.unwrap_or_default(),
            bind_resource: body.bind_resource.map(Value::Object),
            app_guid: filled(body.app_guid),
            predecessor_binding_id: predecessor,
        },
        context: body.context.map(Value::Object),
        accepts_incomplete: input.query.accepts_incomplete(),
    })
}

/// Create a service binding, or the successor of one.
#[utoipa::path(
    put,
    path = "/v2/service_instances/{instance_id}/service_bindings/{binding_id}",
    operation_id = "serviceBinding.binding",
    tag = "Service bindings",
    params(
        ("instance_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("binding_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("accepts_incomplete" = Option<String>, Query, description = "`true` in any case: the answer may be 202; everything else is false"),
    ),
    request_body(content = BindBody, content_type = "application/json"),
    responses(
        (status = 200, description = "It exists already, with the same attributes", body = BindingBody),
        (status = 201, description = "Created", body = BindingBody),
        (status = 202, description = "Being created; fetch it when that succeeded", body = OperationBody),
        (status = 404, description = "There is no such instance", body = ErrorBody),
        (status = 409, description = "The id is taken by a binding with other attributes", body = ErrorBody),
        (status = 422, description = "AsyncRequired, RequiresApp or ConcurrencyError", body = ErrorBody),
    )
)]
pub(super) async fn bind(call: Call) -> Result<HttpResponse, Refusal> {
    let request = read_bind(&call.input)?;
    call.compare_platform_words(request.context.as_ref());
    let (engine, caller) = (Arc::clone(&call.state.engine), call.caller);
    let outcome = detached(async move { engine.bind(&caller, request).await }).await?;
    Ok(answers::bound(&outcome, call.view))
}

/// Read a service binding with its credentials.
#[utoipa::path(
    get,
    path = "/v2/service_instances/{instance_id}/service_bindings/{binding_id}",
    operation_id = "serviceBinding.get",
    tag = "Service bindings",
    params(
        ("instance_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("binding_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("service_id" = Option<String>, Query, description = "A hint, not used"),
        ("plan_id" = Option<String>, Query, description = "A hint, not used"),
    ),
    responses(
        (status = 200, description = "The binding", body = BindingBody),
        (status = 404, description = "There is none, or it is still being created", body = ErrorBody),
        (status = 422, description = "ConcurrencyError: it is being changed", body = ErrorBody),
    )
)]
pub(super) async fn fetch(call: Call) -> Result<HttpResponse, Refusal> {
    let view = call
        .state
        .engine
        .fetch_binding(&call.caller, &call.input.instance_id, &call.input.binding_id)
        .await?;
    Ok(answers::binding_fetched(&view, call.view))
}

/// Delete a service binding; its credentials stop working.
#[utoipa::path(
    delete,
    path = "/v2/service_instances/{instance_id}/service_bindings/{binding_id}",
    operation_id = "serviceBinding.unbinding",
    tag = "Service bindings",
    params(
        ("instance_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("binding_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("service_id" = Option<String>, Query, description = "Id of the instance's offering; required when the binding exists"),
        ("plan_id" = Option<String>, Query, description = "Id of the instance's plan; required when the binding exists"),
        ("accepts_incomplete" = Option<String>, Query, description = "`true` in any case: the answer may be 202; everything else is false"),
    ),
    responses(
        (status = 200, description = "Deleted", body = EmptyBody),
        (status = 202, description = "Being deleted", body = OperationBody),
        (status = 410, description = "There is no such binding", body = ErrorBody),
        (status = 422, description = "AsyncRequired or ConcurrencyError", body = ErrorBody),
    )
)]
pub(super) async fn unbind(call: Call) -> Result<HttpResponse, Refusal> {
    let request = read_delete(&call.input, Some(call.input.binding_id.clone()));
    let (engine, caller) = (Arc::clone(&call.state.engine), call.caller);
    let outcome = detached(async move { engine.unbind(&caller, request).await }).await?;
    Ok(answers::deleted(outcome))
}

/// Ask how far the last operation of a binding is.
#[utoipa::path(
    get,
    path = "/v2/service_instances/{instance_id}/service_bindings/{binding_id}/last_operation",
    operation_id = "serviceBinding.lastOperation.get",
    tag = "Service bindings",
    params(
        ("instance_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("binding_id" = String, Path, description = "Any non-empty string, percent-encoded", min_length = 1),
        ("operation" = Option<String>, Query, description = "The token of a 202; absent or unknown: the latest operation"),
        ("service_id" = Option<String>, Query, description = "A hint, not used"),
        ("plan_id" = Option<String>, Query, description = "A hint, not used"),
    ),
    responses(
        (status = 200, description = "Where it stands", body = LastOperationBody,
            headers(("Retry-After" = i32, description = "Seconds; only while in progress"))),
        (status = 404, description = "There never was such a binding", body = ErrorBody),
        (status = 410, description = "By setting: the deletion succeeded", body = ErrorBody),
    )
)]
pub(super) async fn last_operation(call: Call) -> Result<HttpResponse, Refusal> {
    let operation = call
        .state
        .engine
        .last_binding_operation(
            &call.caller,
            &call.input.instance_id,
            &call.input.binding_id,
            call.input.query.operation(),
        )
        .await?;
    Ok(answers::last_operation(
        &operation,
        call.view,
        false,
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

    fn put(body: &Value) -> Result<Bind, Error> {
        read_bind(&input(&Method::PUT, "accepts_incomplete=1", &body.to_string()))
    }

    #[actix_web::test]
    async fn a_whole_bind_arrives() {
        let request = put(
            &json!({"service_id": "s", "plan_id": "p", "app_guid": "a", "parameters": {"role": "owner"},
            "bind_resource": {"app_guid": "a", "more": 1}, "context": {"platform": "x"}}),
        )
        .unwrap();
        assert_eq!(
            (request.instance_id.as_str(), request.binding_id.as_str()),
            ("i/d", "..")
        );
        assert_eq!(
            request.attributes.bind_resource,
            Some(json!({"app_guid": "a", "more": 1})),
            "B-19"
        );
        assert_eq!(request.attributes.app_guid.as_deref(), Some("a"));
        assert_eq!(request.attributes.predecessor_binding_id, None);
        assert!(!request.accepts_incomplete, "S-08");
    }

    #[actix_web::test]
    async fn b06_required_members() {
        for (body, field) in [
            (json!({"plan_id": "p"}), "`service_id`"),
            (json!({"service_id": "s", "plan_id": ""}), "`plan_id`"),
            (json!({"service_id": "s", "plan_id": null}), "`plan_id`"),
            (
                json!({"service_id": "s", "plan_id": "p", "bind_resource": "x"}),
                "`bind_resource`",
            ),
            (
                json!({"service_id": "s", "plan_id": "p", "bind_resource": {"app_guid": 1}}),
                "`bind_resource.app_guid`",
            ),
            (
                json!({"service_id": "s", "plan_id": "p", "app_guid": {}}),
                "`app_guid`",
            ),
            (
                json!({"predecessor_binding_id": "a\u{0}b"}),
                "`predecessor_binding_id`",
            ),
            (json!({"predecessor_binding_id": ""}), "`service_id`"),
        ] {
            let error = put(&body).unwrap_err();
            assert!(error.description.contains(field), "{body}: {error}");
        }
    }

    #[actix_web::test]
    async fn r02_a_rotation_needs_only_its_predecessor() {
        let request = put(&json!({"predecessor_binding_id": "old"})).unwrap();
        assert_eq!(request.attributes.predecessor_binding_id.as_deref(), Some("old"));
        assert_eq!(request.attributes.service_id, "");
        let request =
            put(&json!({"predecessor_binding_id": "old", "service_id": "s", "plan_id": "p"})).unwrap();
        assert_eq!(request.attributes.plan_id, "p");
    }
}
