//! What went wrong, told apart from how it is sent: no status codes here.
//!
//! An [`Error`] carries what the caller may read (`description`, what to do included) and,
//! separately, what only the log gets (`internal`). `http::error` has the one table that maps
//! kinds to status and OSB error word.

use std::fmt;

/// The sentence Go clients compare byte for byte to recognise `AsyncRequired` (osb-rules §18).
pub const ASYNC_REQUIRED: &str =
    "This service plan requires client support for asynchronous service operations.";
/// The sentence Go clients compare byte for byte to recognise `RequiresApp`.
pub const REQUIRES_APP: &str =
    "This service supports generation of credentials through binding an application only.";
/// The sentence Go clients compare byte for byte to recognise `ConcurrencyError`.
pub const CONCURRENCY_ERROR: &str =
    "The Service Broker does not support concurrent requests that mutate the same resource.";

/// The kinds of failure a caller can be told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong and will stay wrong: 400.
    BadRequest,
    /// Credentials missing or wrong: 401.
    Unauthorized,
    /// No such thing for this platform: 404.
    NotFound,
    /// The route exists, the method does not: 405.
    MethodNotAllowed,
    /// The id is taken by a resource with other attributes: 409.
    Conflict,
    /// What should be deleted does not exist: 410.
    Gone,
    /// `X-Broker-API-Version` missing or unsupported: 412 (or 400 by setting H-01 when missing).
    VersionMissing,
    /// `X-Broker-API-Version` names a version that is not served: 412.
    VersionUnsupported,
    /// The body is larger than the limit: 413.
    TooLarge,
    /// 422 `AsyncRequired`.
    AsyncRequired,
    /// 422 `ConcurrencyError`.
    Concurrency,
    /// 422 `RequiresApp`.
    RequiresApp,
    /// 422 `MaintenanceInfoConflict`.
    MaintenanceInfoConflict,
    /// 422 `PlanChangeNotSupported` (U-08).
    PlanChangeNotSupported,
    /// 422 `RotationNotSupported`: a binding that cannot be rotated in place.
    RotationNotSupported,
    /// Too many requests or failed log-ins: 429.
    TooManyRequests,
    /// A backend or our own state failed while serving a correct request: 500.
    Internal,
    /// The broker cannot serve now (starting, draining, store locked or full); try again: 503.
    Unavailable,
}

/// A failure as the caller sees it, with what only the log may hold beside it.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What happened, why and what to do, for the person at the other end. Never a secret.
    pub description: String,
    /// For a failed update or deprovision only (E-04): whether the instance still works.
    pub instance_usable: Option<bool>,
    /// For a failed update only (E-04): whether sending it again may help.
    pub update_repeatable: Option<bool>,
    /// For the log only.
    pub internal: Option<String>,
}

impl Error {
    /// An error of `kind` with the text the caller gets.
    pub fn new(kind: ErrorKind, description: impl Into<String>) -> Self {
        Self {
            kind,
            description: description.into(),
            instance_usable: None,
            update_repeatable: None,
            internal: None,
        }
    }

    /// 400 naming the field at fault.
    pub fn bad_request(description: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadRequest, description)
    }

    /// 404.
    pub fn not_found(description: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, description)
    }

    /// 409.
    pub fn conflict(description: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, description)
    }

    /// 410.
    pub fn gone(description: impl Into<String>) -> Self {
        Self::new(ErrorKind::Gone, description)
    }

    /// 422 `AsyncRequired` with the sentence clients match on.
    pub fn async_required() -> Self {
        Self::new(ErrorKind::AsyncRequired, ASYNC_REQUIRED)
    }

    /// 422 `ConcurrencyError` with the sentence clients match on.
    pub fn concurrency() -> Self {
        Self::new(ErrorKind::Concurrency, CONCURRENCY_ERROR)
    }

    /// 422 `RequiresApp` with the sentence clients match on.
    pub fn requires_app() -> Self {
        Self::new(ErrorKind::RequiresApp, REQUIRES_APP)
    }

    /// 500; `internal` goes to the log, the caller gets a sentence without insides.
    pub fn internal(internal: impl Into<String>) -> Self {
        Self::new(
            ErrorKind::Internal,
            "The broker met an internal error. Nothing was changed by this request; try again, and give the request id to the operator if it persists.",
        )
        .with_internal(internal)
    }

    /// 503: nothing was changed, the same request may be sent again.
    pub fn unavailable(description: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, description)
    }

    /// Adds what only the log may hold.
    #[must_use]
    pub fn with_internal(mut self, internal: impl Into<String>) -> Self {
        self.internal = Some(internal.into());
        self
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.description)?;
        if let Some(internal) = &self.internal {
            write!(f, " [{internal}]")?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

impl std::error::Error for Error {}
