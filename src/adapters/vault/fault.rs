//! What an answer of the vault that says no means for the engine, and the sentence people read.
//!
//! What a user is told names the vault and what is wrong with it, no path, no address and nothing that was sent; the log
//! gets method, path, status and the vault's own reason. Sealed, standby, not initialised and out of reach are told apart
//! by asking `sys/health`, which needs no token; the words of an error differ between servers and versions.

use super::http::{Answer, Http, Request};
use crate::ports::{PortError, PortErrorKind, PortResult};
use serde_json::Value;

/// What is told of a store that was just made and is not ready yet.
pub(super) const PREPARING: &str = "The vault's store is being prepared; try again.";

/// How the server is, by its own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it was ever set up.
    pub initialized: bool,
    /// Whether it waits for its unseal keys.
    pub sealed: bool,
    /// Whether another node of it does the work.
    pub standby: bool,
    /// Such as `1.21.4`.
    pub version: String,
    /// Which of the two it is.
    pub product: Product,
}

/// The servers that speak this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// HashiCorp Vault.
    Vault,
    /// OpenBao.
    OpenBao,
}

impl Product {
    /// OpenBao began with 2.0 and does not know editions.
    fn of(health: &Value, version: &str) -> Self {
        if health.get("enterprise").is_none() && !version.starts_with("1.") {
            Self::OpenBao
        } else {
            Self::Vault
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vault => "Vault",
            Self::OpenBao => "OpenBao",
        }
    }
}

impl Health {
    /// Asks the server; any state is an answer.
    pub(super) async fn of(http: &Http) -> PortResult<Self> {
        let request = Request::get(
            "sys/health?standbyok=true&perfstandbyok=true&sealedcode=200&uninitcode=200&drsecondarycode=200",
        );
        let answer = http.send(request).await?;
        let text = |member: &str| answer.body[member].as_str().unwrap_or_default().to_owned();
        let (Some(initialized), Some(sealed)) = (
            answer.body["initialized"].as_bool(),
            answer.body["sealed"].as_bool(),
        ) else {
            return Err(PortError::transient(
                "What answers at the vault's address is no vault, or something before it answers instead.",
            )
            .with_detail(format!("{} answered {}", request.line(), answer.status)));
        };
        let version = text("version");
        Ok(Self {
            initialized,
            sealed,
            standby: answer.body["standby"].as_bool().unwrap_or_default(),
            product: Product::of(&answer.body, &version),
            version,
        })
    }

    /// Why it cannot work now, if it cannot.
    pub(super) fn trouble(&self) -> Option<PortError> {
        if !self.initialized {
            Some(PortError::transient(
                "The vault is not initialised; its operator has to set it up.",
            ))
        } else if self.sealed {
            Some(PortError::transient(
                "The vault is sealed; its operator has to unseal it.",
            ))
        } else {
            None
        }
    }
}

/// A request that could not even be made.
pub(super) fn bad_request(request: &Request<'_>) -> PortError {
    PortError::invalid(
        "The vault's address, its namespace or the broker's token is damaged; tell the broker's operator.",
    )
    .with_detail(request.line())
}

/// Turns an answer that says no into an error.
pub(super) async fn refusal(http: &Http, request: &Request<'_>, answer: &Answer) -> PortError {
    let mut error = sentence(answer);
    // The reason may be the server's state, which it tells anybody.
    if error.kind == PortErrorKind::Transient
        && let Ok(health) = Health::of(http).await
    {
        if let Some(trouble) = health.trouble() {
            error = trouble;
        } else if health.standby && answer.status >= 500 {
            error = PortError::transient(
                "The vault's node is a standby that does not reach the active one; try again, or tell the broker's operator.",
            );
        }
    }
    error.with_detail(told(request, answer))
}

/// Method, path, status and the vault's reason, for the log.
pub(super) fn told(request: &Request<'_>, answer: &Answer) -> String {
    let reason = if answer.errors.is_empty() {
        "no reason given"
    } else {
        &answer.errors
    };
    format!("{} answered {}: {reason}", request.line(), answer.status)
}

/// Whether a store says that it is not ready yet.
pub(super) fn is_preparing(answer: &Answer) -> bool {
    answer.status == 400 && answer.errors.contains("pgrading from non-versioned")
}

fn sentence(answer: &Answer) -> PortError {
    match answer.status {
        403 => PortError::denied(
            "The vault does not allow the broker to do this; the broker's operator finds what is missing with `chandler doctor`.",
        ),
        404 => PortError::invalid(
            "The vault has no such store; the broker's operator sets it up with `chandler bootstrap vault`.",
        ),
        // A store that was just made, or is being upgraded, says so with 400 for some seconds.
        400 if is_preparing(answer) => PortError::transient(PREPARING),
        300..=399 => PortError::transient(
            "The vault's node is a standby that sends requests elsewhere; its address in the broker's configuration must lead to the active node.",
        ),
        412 => PortError::transient("The vault's node has not caught up with the others yet; try again."),
        429 => PortError::transient("The vault is asked too much at the moment; try again."),
        500.. => PortError::transient("The vault has trouble of its own; try again."),
        _ => PortError::invalid("The vault refuses what the broker sent; tell the broker's operator."),
    }
}

/// The number in a member, where the vault sends one.
pub(super) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn answer(status: u16, errors: &str) -> Answer {
        Answer {
            status,
            body: Value::Null,
            errors: errors.to_owned(),
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (status, errors, kind) in [
            (
                400,
                "check-and-set parameter did not match the current version",
                PortErrorKind::Invalid,
            ),
            (
                400,
                "Upgrading from non-versioned to versioned data",
                PortErrorKind::Transient,
            ),
            (403, "permission denied", PortErrorKind::Denied),
            (404, "no handler for route", PortErrorKind::Invalid),
            (405, "unsupported operation", PortErrorKind::Invalid),
            (307, "", PortErrorKind::Transient),
            (412, "", PortErrorKind::Transient),
            (429, "", PortErrorKind::Transient),
            (500, "internal error", PortErrorKind::Transient),
            (502, "", PortErrorKind::Transient),
            (503, "Vault is sealed", PortErrorKind::Transient),
        ] {
            assert_eq!(sentence(&answer(status, errors)).kind, kind, "{status} {errors}");
        }
    }

    #[test]
    fn a_server_that_cannot_work_says_why() {
        let mut health = Health {
            initialized: true,
            sealed: false,
            standby: true,
            version: "2.6.2".to_owned(),
            product: Product::OpenBao,
        };
        assert!(health.trouble().is_none());
        health.sealed = true;
        assert!(health.trouble().unwrap().message.contains("sealed"));
        health.initialized = false;
        assert!(health.trouble().unwrap().message.contains("not initialised"));
    }
}
