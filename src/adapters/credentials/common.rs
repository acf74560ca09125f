//! What the mechanisms have in common: whose user a handle is, who administers, and how long is waited.

use super::password;
use crate::domain::names;
use crate::domain::secret::Secret;
use crate::ports::{PortError, PortResult, Target};
use std::future::Future;
use std::time::Duration;

/// The name of the user by which the broker itself logs in.
pub(super) const ADMIN: &str = "chandler";

/// `username` and `password` of the user by which the broker itself logs in.
pub(super) fn administrator() -> PortResult<Secret> {
    Ok(Secret::from_pairs([
        ("username", ADMIN.to_owned()),
        ("password", password::generate()?),
    ]))
}

/// The administrator's name, provided it stays the same with its next credentials: nobody else's may be changed.
pub(super) fn own_name<'a>(target: &Target, next: &'a Secret) -> PortResult<&'a str> {
    let name = next.text("username");
    if name.is_empty() || name != target.admin.text("username") {
        return Err(PortError::invalid(
            "The new credentials are not this administrator's; nothing was changed.",
        ));
    }
    Ok(name)
}

/// Whether a name on a server is that of a binding's user.
pub(super) fn is_user(name: &str) -> bool {
    names::bid_of_user(name).is_some()
}

/// A handle, provided it is a binding's user: nobody else may be touched by way of a handle.
pub(super) fn own_handle(handle: &str) -> PortResult<&str> {
    if is_user(handle) {
        Ok(handle)
    } else {
        Err(PortError::invalid(format!(
            "{handle:?} is not the user of a binding."
        )))
    }
}

/// The stored user has another name than this binding's must have, or no secret.
pub(super) fn not_this_bindings() -> PortError {
    PortError::invalid("The stored user is not the one of this binding; make a new binding.")
}

/// Gives up when the server stops talking in the middle, and bounds what several requests take together.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = PortResult<T>> + Send,
) -> PortResult<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(PortError::transient("The server took too long to answer.")))
}
