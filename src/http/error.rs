//! The one table from kinds of failure to status and OSB error word, and how a refusal is sent.
//!
//! Every refusal, whatever its status, is a JSON object with `error` and `description` (E-02,
//! Z-02). What is internal goes to the log, never into a body.

use super::answers::{self, View};
use super::schema::ErrorBody;
use crate::domain::error::{Error, ErrorKind};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use std::fmt;

/// Seconds after which a 503 may be tried again.
const UNAVAILABLE_RETRY: u32 = 5;

/// The value of `WWW-Authenticate` in a 401.
pub(super) const CHALLENGE: &str = r#"Basic realm="chandler", charset="UTF-8""#;

/// Status and OSB error word of each kind of failure.
const fn table(kind: ErrorKind) -> (StatusCode, &'static str) {
    match kind {
        ErrorKind::BadRequest => (StatusCode::BAD_REQUEST, "BadRequest"),
        ErrorKind::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, "NotFound"),
        ErrorKind::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        ErrorKind::Conflict => (StatusCode::CONFLICT, "Conflict"),
        ErrorKind::Gone => (StatusCode::GONE, "Gone"),
        ErrorKind::VersionMissing => (StatusCode::PRECONDITION_FAILED, "VersionMissing"),
        ErrorKind::VersionUnsupported => (StatusCode::PRECONDITION_FAILED, "VersionNotSupported"),
        ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge"),
        ErrorKind::AsyncRequired => (StatusCode::UNPROCESSABLE_ENTITY, "AsyncRequired"),
        ErrorKind::Concurrency => (StatusCode::UNPROCESSABLE_ENTITY, "ConcurrencyError"),
        ErrorKind::RequiresApp => (StatusCode::UNPROCESSABLE_ENTITY, "RequiresApp"),
        ErrorKind::MaintenanceInfoConflict => (StatusCode::UNPROCESSABLE_ENTITY, "MaintenanceInfoConflict"),
        ErrorKind::PlanChangeNotSupported => (StatusCode::UNPROCESSABLE_ENTITY, "PlanChangeNotSupported"),
        ErrorKind::RotationNotSupported => (StatusCode::UNPROCESSABLE_ENTITY, "RotationNotSupported"),
        ErrorKind::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
        ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
    }
}

/// A failure on its way out: the domain's error with what only HTTP knows.
pub(super) struct Refusal {
    error: Error,
    status: StatusCode,
    retry_after: Option<u32>,
    allow: Option<&'static str>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, _) = table(error.kind);
        let retry_after = (error.kind == ErrorKind::Unavailable).then_some(UNAVAILABLE_RETRY);
        Self {
            error,
            status,
            retry_after,
            allow: None,
        }
    }
}

impl Refusal {
    /// 401.
    pub(super) fn unauthorized() -> Self {
        Error::new(
            ErrorKind::Unauthorized,
            "Credentials are missing or wrong. Send the platform's user name and password with HTTP basic authentication.",
        )
        .into()
    }

    /// 404 for a path where nothing is.
    pub(super) fn no_such_path() -> Self {
        Error::not_found(
            "Nothing is served at this path. The OSB API is below /v2; /openapi.json describes it.",
        )
        .into()
    }

    /// 405 with the methods there are.
    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        let error = Error::new(
            ErrorKind::MethodNotAllowed,
            format!("This path does not serve the method of the request. It serves: {allow}."),
        );
        Self {
            allow: Some(allow),
            ..Self::from(error)
        }
    }

    /// 413.
    pub(super) fn too_large(max: usize) -> Self {
        Error::new(
            ErrorKind::TooLarge,
            format!("The request body is larger than the {max} bytes this broker accepts."),
        )
        .into()
    }

    /// 429; the same request may be sent again after so many seconds.
    pub(super) fn too_many(description: &str, retry_after: u32) -> Self {
        Self {
            retry_after: Some(retry_after.max(1)),
            ..Self::from(Error::new(ErrorKind::TooManyRequests, description))
        }
    }

    /// The same with another status (H-01 lets the operator choose one).
    #[must_use]
    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Drops `instance_usable` and `update_repeatable` where they may not stand (E-04).
    #[must_use]
    pub(super) fn keeping_flags(mut self, usable: bool, repeatable: bool) -> Self {
        if !usable {
            self.error.instance_usable = None;
        }
        if !repeatable {
            self.error.update_repeatable = None;
        }
        self
    }

    /// The status it is sent with.
    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// Writes what operators need to know of a 5xx; other refusals are the caller's matter.
    pub(super) fn log(&self, route: &str, request_id: Option<&str>) {
        let internal = self.error.internal.as_deref().unwrap_or_default();
        let description = self.error.description.as_str();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            tracing::warn!(target: "chandler::http", route, request_id, description, internal, "cannot serve now");
        } else if self.status.is_server_error() {
            tracing::error!(target: "chandler::http", route, request_id, description, internal, "request failed");
        }
    }

    /// The response, as a caller of this version may see it.
    pub(super) fn response(&self, view: View) -> HttpResponse {
        let (_, word) = table(self.error.kind);
        let flags = view.has(answers::SINCE_METADATA);
        let mut response = answers::json(
            self.status,
            &ErrorBody {
                error: word.to_owned(),
                description: self.error.description.clone(),
                instance_usable: self.error.instance_usable.filter(|_| flags),
                update_repeatable: self.error.update_repeatable.filter(|_| flags),
            },
        );
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
        }
        response
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.status, self.error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        self.response(View::NEWEST)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::header_of;
    use super::*;
    use actix_web::body::MessageBody;
    use serde_json::{Value, json};

    fn body(response: HttpResponse) -> Value {
        let bytes = response.into_body().try_into_bytes().unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn e02_every_kind_is_a_json_object_with_word_and_description() {
        let kinds = [
            (ErrorKind::BadRequest, 400, "BadRequest"),
            (ErrorKind::Unauthorized, 401, "Unauthorized"),
            (ErrorKind::NotFound, 404, "NotFound"),
            (ErrorKind::MethodNotAllowed, 405, "MethodNotAllowed"),
            (ErrorKind::Conflict, 409, "Conflict"),
            (ErrorKind::Gone, 410, "Gone"),
            (ErrorKind::VersionMissing, 412, "VersionMissing"),
            (ErrorKind::VersionUnsupported, 412, "VersionNotSupported"),
            (ErrorKind::TooLarge, 413, "RequestTooLarge"),
            (ErrorKind::AsyncRequired, 422, "AsyncRequired"),
            (ErrorKind::Concurrency, 422, "ConcurrencyError"),
            (ErrorKind::RequiresApp, 422, "RequiresApp"),
            (ErrorKind::MaintenanceInfoConflict, 422, "MaintenanceInfoConflict"),
            (ErrorKind::PlanChangeNotSupported, 422, "PlanChangeNotSupported"),
            (ErrorKind::RotationNotSupported, 422, "RotationNotSupported"),
            (ErrorKind::TooManyRequests, 429, "TooManyRequests"),
            (ErrorKind::Internal, 500, "InternalError"),
            (ErrorKind::Unavailable, 503, "ServiceUnavailable"),
        ];
        for (kind, status, word) in kinds {
            let refusal = Refusal::from(Error::new(kind, "why").with_internal("the insides"));
            let response = refusal.response(View::NEWEST);
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(header_of(&response, &header::CONTENT_TYPE), "application/json");
            assert_eq!(body(response), json!({"error": word, "description": "why"}));
        }
    }

    #[test]
    fn refusals_carry_the_headers_their_status_asks_for() {
        let response = Refusal::unauthorized().response(View::NEWEST);
        assert_eq!(header_of(&response, &header::WWW_AUTHENTICATE), CHALLENGE);
        let response = Refusal::method_not_allowed("GET, HEAD").response(View::NEWEST);
        assert_eq!(header_of(&response, &header::ALLOW), "GET, HEAD");
        let response = Refusal::too_many("slow down", 0).response(View::NEWEST);
        assert_eq!(header_of(&response, &header::RETRY_AFTER), "1");
        let response = Refusal::from(Error::unavailable("locked")).response(View::NEWEST);
        assert_eq!(header_of(&response, &header::RETRY_AFTER), "5");
        let response = Refusal::from(Error::gone("gone")).response(View::NEWEST);
        assert!(response.headers().get(header::RETRY_AFTER).is_none());
    }

    #[test]
    fn e04_flags_stand_only_where_they_may() {
        let mut error = Error::concurrency();
        error.instance_usable = Some(false);
        error.update_repeatable = Some(true);
        let send = |usable, repeatable, view| {
            body(
                Refusal::from(error.clone())
                    .keeping_flags(usable, repeatable)
                    .response(view),
            )
        };
        let both = send(true, true, View::NEWEST);
        assert_eq!(both["instance_usable"], json!(false));
        assert_eq!(both["update_repeatable"], json!(true));
        let deprovision = send(true, false, View::NEWEST);
        assert_eq!(deprovision["instance_usable"], json!(false));
        assert_eq!(deprovision.get("update_repeatable"), None);
        assert_eq!(send(false, false, View::NEWEST).get("instance_usable"), None);
        let old = send(
            true,
            true,
            View {
                minor: 15,
                strict: true,
            },
        );
        assert_eq!(old.get("instance_usable"), None, "Z-03(b): newer than 2.15");
    }
}
