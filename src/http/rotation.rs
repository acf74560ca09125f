//! The broker's own call beside the OSB API: new credentials for a binding, in place.
//!
//! The same log-in as for the OSB API; no version header, because the path has the version.

use super::answers;
use super::error::Refusal;
use super::schema::{ErrorBody, OperationBody, RotationBody};
use super::{Call, detached};
use crate::domain::error::Error;
use crate::domain::request::{Outcome, Rotate};
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use std::sync::Arc;

/// Give a binding new credentials in place.
///
/// For bindings whose answers do not carry the credentials: the application finds the new ones where it found the
/// present ones, and the present ones go on working for a while. At most two work at a time.
#[utoipa::path(
    post,
    path = "/api/v1/bindings/{binding_id}/rotate",
    operation_id = "bindings.rotate",
    tag = "Service bindings",
    params(
        ("binding_id" = String, Path, description = "The platform's id of the binding, percent-encoded", min_length = 1),
        ("instance_id" = Option<String>, Query, description = "The platform's id of the instance; needed when several instances have a binding with this id"),
    ),
    responses(
        (status = 200, description = "Rotated", body = RotationBody),
        (status = 202, description = "Going on: ask last_operation of the binding with this token", body = OperationBody),
        (status = 404, description = "There is no such binding, or it has expired", body = ErrorBody),
        (status = 409, description = "It is being deleted, or nothing can be made for it any more", body = ErrorBody),
        (status = 422, description = "RotationNotSupported: its answers carry the credentials; or ConcurrencyError", body = ErrorBody),
    )
)]
pub(super) async fn rotate(call: Call) -> Result<HttpResponse, Refusal> {
    let instance_id = call.input.query.first("instance_id").map(str::to_owned);
    if instance_id.as_ref().is_some_and(|id| id.contains('\0')) {
        return Err(Error::bad_request("instance_id: holds a NUL character.").into());
    }
    let request = Rotate {
        binding_id: call.input.binding_id,
        instance_id,
    };
    let (engine, caller) = (Arc::clone(&call.state.engine), call.caller);
    let outcome = detached(async move { engine.rotate(&caller, request).await }).await?;
    Ok(match outcome {
        Outcome::Created(done) | Outcome::Done(done) => answers::json(
            StatusCode::OK,
            &RotationBody {
                generation: done.generation,
                former_valid_until: done.former_until.and_then(answers::timestamp),
            },
        ),
        Outcome::Accepted { operation, .. } => {
            answers::json(StatusCode::ACCEPTED, &OperationBody { operation })
        }
    })
}
