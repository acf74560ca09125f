//! What a rotation in place means for what exists.
//!
//! The binding stays what it is all the while: its answers, its client and its place in the vault. Only the user behind
//! it changes, so it is for bindings whose answers do not carry the credentials.

use super::{BindingNow, InstanceNow};
use crate::domain::binding::BindingState;
use crate::domain::catalog::Catalog;
use crate::domain::delivery::Delivery;
use crate::domain::error::{Error, ErrorKind};
use crate::domain::instance::{InstanceState, Millis};
use crate::domain::operation::OperationKind;

/// What a rotation in place comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RotateDecision {
    /// Open a rotation.
    Start,
    /// One is running: the same operation.
    Running(String),
}

/// Decides a rotation in place. Errors: 404, 409 and 422 as they fit.
pub fn rotate(
    catalog: &Catalog,
    instance: Option<&InstanceNow>,
    found: Option<&BindingNow>,
    now: Millis,
) -> Result<RotateDecision, Error> {
    let (Some(on), Some(there)) = (instance, found) else {
        return Err(unknown());
    };
    let binding = &there.binding;
    match binding.state {
        BindingState::Ready if !binding.is_expired(now) => {}
        BindingState::Ready | BindingState::Expired => {
            return Err(Error::not_found(
                "This service binding has expired and its credentials are revoked. Bind again.",
            ));
        }
        BindingState::Creating | BindingState::Deleting => return Err(Error::concurrency()),
        BindingState::DeleteFailed => {
            return Err(Error::conflict(
                "This service binding is being deleted, and the broker goes on trying. Bind again with a new id.",
            ));
        }
        BindingState::Failed | BindingState::Gone => return Err(unknown()),
    }
    if binding.delivery == Delivery::Inline {
        return Err(Error::new(
            ErrorKind::RotationNotSupported,
            "The answers of this binding carry its credentials (delivery inline), so new ones would reach nobody. Make a successor with predecessor_binding_id, or bind with another delivery.",
        ));
    }
    if let Some(open) = &there.open {
        return match open.kind {
            OperationKind::Rotate => Ok(RotateDecision::Running(open.id.clone())),
            _ => Err(Error::concurrency()),
        };
    }
    if on.open.is_some() || on.instance.state != InstanceState::Ready {
        return Err(Error::concurrency());
    }
    let attributes = &binding.attributes;
    if catalog
        .plan(&attributes.service_id, &attributes.plan_id)
        .is_none()
    {
        return Err(Error::conflict(
            "The plan of this binding is no longer in the catalog, so no credentials can be made for it.",
        ));
    }
    Ok(RotateDecision::Start)
}

fn unknown() -> Error {
    Error::not_found("There is no service binding with this id.")
}
