//! Request bodies and query strings: read within bounds, then turned into checked structures.
//!
//! Shape errors name the field and never repeat its value, which may be a secret.

use super::error::Refusal;
use crate::domain::error::Error;
use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap};
use actix_web::http::{Method, Version};
use actix_web::web::{self, Bytes, BytesMut};
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::time::Duration;
use validator::{Validate, ValidationErrorsKind};

/// A body that takes longer than this to arrive is refused, so that slow senders hold nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Reads a whole body of at most `max` bytes, however it is framed. Errors: 413 when it is larger, 400 when it cannot be read.
pub(super) async fn read(request: &HttpRequest, payload: web::Payload, max: usize) -> Result<Bytes, Refusal> {
    let headers = request.headers();
    // The server takes all that follows CONNECT or an `Upgrade` for a body without end: waiting for that end would
    // hold the request until the time-out. HTTP/1 has a body only where the head says so, and CONNECT has none.
    let framed = headers.contains_key(header::CONTENT_LENGTH)
        || headers.contains_key(header::TRANSFER_ENCODING)
        || request.version() > Version::HTTP_11;
    if !framed || *request.method() == Method::CONNECT {
        return Ok(Bytes::new());
    }
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok());
    if declared.is_some_and(|length| length > max as u64) {
        return Err(Refusal::too_large(max));
    }
    match tokio::time::timeout(READ_TIMEOUT, collect(payload, max)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::bad_request(format!(
            "The request body did not arrive within {} seconds.",
            READ_TIMEOUT.as_secs()
        ))
        .into()),
    }
}

async fn collect(mut payload: web::Payload, max: usize) -> Result<Bytes, Refusal> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| {
            Error::bad_request("The request body could not be read: it ended early or is badly framed.")
        })?;
        if whole.len() + chunk.len() > max {
            return Err(Refusal::too_large(max));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// Reads a JSON object as `T` and checks its members (E-07, E-08, E-10). Errors: 400 naming the field.
pub(super) fn parse<T: DeserializeOwned + Validate>(headers: &HeaderMap, body: &[u8]) -> Result<T, Error> {
    if body.is_empty() {
        return Err(Error::bad_request(
            "The request body is empty; send a JSON object.",
        ));
    }
    let content_type = headers.get(header::CONTENT_TYPE);
    if content_type.is_some_and(|value| !value.to_str().is_ok_and(is_json)) {
        return Err(Error::bad_request(
            "The Content-Type of the request is not application/json.",
        ));
    }
    let value: Value = serde_json::from_slice(body).map_err(|e| {
        Error::bad_request(format!(
            "The request body is not JSON this broker can read (line {}, column {}).",
            e.line(),
            e.column()
        ))
    })?;
    if !value.is_object() {
        return Err(Error::bad_request("The request body is JSON, but not an object."));
    }
    let parsed: T = serde_path_to_error::deserialize(value).map_err(|e| {
        Error::bad_request(format!(
            "`{}` must be {}.",
            e.path(),
            expected(&e.inner().to_string())
        ))
    })?;
    match parsed.validate() {
        Ok(()) => Ok(parsed),
        Err(errors) => Err(Error::bad_request(first_problem(errors.errors()))),
    }
}

/// Whether a Content-Type means JSON; an empty one counts as absent.
fn is_json(content_type: &str) -> bool {
    let essence = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence.is_empty()
        || essence == "application/json"
        || essence
            .split_once('/')
            .is_some_and(|(_, sub)| sub.len() > 5 && sub.ends_with("+json"))
}

/// What serde expected, from a message that may also quote what it got.
fn expected(message: &str) -> &str {
    match message.rsplit_once("expected ").map(|(_, what)| what) {
        Some(what) if what.starts_with("a map") || what.starts_with("struct") => "an object",
        Some("a string") => "a string",
        Some("a boolean") => "a boolean",
        _ => "of another type",
    }
}

/// A sentence on the first member at fault, in the order of their names.
fn first_problem<'a, K: AsRef<str> + Ord + 'a>(
    errors: impl IntoIterator<Item = (&'a K, &'a ValidationErrorsKind)>,
) -> String {
    let mut problems: Vec<_> = errors.into_iter().collect();
    problems.sort_by(|a, b| a.0.cmp(b.0));
    let Some((field, kind)) = problems.first() else {
        return "The request body is not valid.".to_owned();
    };
    let is_nul = matches!(kind, ValidationErrorsKind::Field(list) if list.iter().any(|e| e.code == "nul"));
    let field = field.as_ref();
    if is_nul {
        format!("`{field}` must not hold a NUL character.")
    } else {
        format!("`{field}` is required and must not be empty.")
    }
}

/// Refuses members of `object` that are neither text nor null; `parent` names the object.
pub(super) fn text_members(
    parent: &str,
    object: Option<&Map<String, Value>>,
    members: &[&str],
) -> Result<(), Error> {
    for member in members {
        match object.and_then(|object| object.get(*member)) {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(_) => {
                return Err(Error::bad_request(format!(
                    "`{parent}.{member}` must be a string."
                )));
            }
        }
    }
    Ok(())
}

/// The members of a query string, decoded, in order.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a raw query string; what cannot be read is skipped, never an error (H-10).
    pub(super) fn parse(raw: &str) -> Self {
        if raw.is_empty() {
            return Self::default();
        }
        Self(
            web::Query::<Vec<(String, String)>>::from_query(raw)
                .map_or_else(|_| Vec::new(), web::Query::into_inner),
        )
    }

    /// The first member of this name, when it is not empty (Z-04).
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether `accepts_incomplete` is "true" in any case; everything else is false (S-08).
    pub(super) fn accepts_incomplete(&self) -> bool {
        self.first("accepts_incomplete")
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// The operation token. One no operation can have counts as absent: polls are never refused for it (L-13).
    pub(super) fn operation(&self) -> Option<&str> {
        self.first("operation")
            .filter(|token| token.len() <= 10_000 && !token.contains('\0'))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::schema::{BindBody, ProvisionBody, UpdateBody};
    use super::*;
    use actix_web::http::header::HeaderValue;
    use proptest::prelude::*;

    fn typed(content_type: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        headers
    }

    fn provision(body: &str) -> Result<ProvisionBody, Error> {
        parse(&HeaderMap::new(), body.as_bytes())
    }

    fn complaint(body: &str) -> String {
        provision(body).unwrap_err().description
    }

    const MINIMAL: &str = r#"{"service_id":"s","plan_id":"p"}"#;

    #[test]
    fn e07_content_types() {
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/merge-patch+json",
            "application/vnd.x+json;a=b",
            "",
        ] {
            assert!(
                parse::<ProvisionBody>(&typed(good), MINIMAL.as_bytes()).is_ok(),
                "{good}"
            );
        }
        assert!(provision(MINIMAL).is_ok(), "E-06: absent is processed");
        for bad in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonx",
            "json",
            "multipart/form-data",
            "application/+json",
        ] {
            let error = parse::<ProvisionBody>(&typed(bad), MINIMAL.as_bytes()).unwrap_err();
            assert!(error.description.contains("Content-Type"), "{bad}");
        }
    }

    #[test]
    fn p07_p09_shape_errors_name_the_field_and_not_the_value() {
        for (body, field) in [
            (r#"{"plan_id":"p"}"#, "`service_id`"),
            (r#"{"service_id":null,"plan_id":"p"}"#, "`service_id`"),
            (r#"{"service_id":"","plan_id":"p"}"#, "`service_id`"),
            (r#"{"service_id":"s"}"#, "`plan_id`"),
            (
                r#"{"service_id":7,"plan_id":"p"}"#,
                "`service_id` must be a string",
            ),
            (
                r#"{"service_id":"s","plan_id":"p","parameters":"hunter2"}"#,
                "`parameters` must be an object",
            ),
            (
                r#"{"service_id":"s","plan_id":"p","parameters":[]}"#,
                "`parameters` must be an object",
            ),
            (
                r#"{"service_id":"s","plan_id":"p","parameters":"expected hunter2"}"#,
                "`parameters` must be an object",
            ),
            (
                r#"{"service_id":"s","plan_id":"p","context":1}"#,
                "`context` must be an object",
            ),
            (
                r#"{"service_id":"s","plan_id":"p","maintenance_info":"1"}"#,
                "`maintenance_info` must be an object",
            ),
            (
                r#"{"service_id":"s","plan_id":"p","maintenance_info":{"version":1}}"#,
                "`maintenance_info.version` must be a string",
            ),
            (
                r#"{"service_id":"s\u0000","plan_id":"p"}"#,
                "`service_id` must not hold a NUL",
            ),
            ("[]", "not an object"),
            ("null", "not an object"),
            ("\"x\"", "not an object"),
            ("", "empty"),
            ("{", "not JSON"),
            ("{}x", "not JSON"),
            ("\u{feff}{}", "not JSON"),
        ] {
            let text = complaint(body);
            assert!(text.contains(field), "{body}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert!(parse::<ProvisionBody>(&HeaderMap::new(), b"{\"service_id\":\"\xff\"}").is_err());
    }

    #[test]
    fn deep_json_is_refused_and_duplicate_keys_are_not() {
        let deep = format!(
            r#"{{"service_id":"s","plan_id":"p","parameters":{}1{}}}"#,
            r#"{"a":"#.repeat(200),
            "}".repeat(200)
        );
        assert!(complaint(&deep).contains("not JSON this broker can read"));
        let twice = provision(r#"{"service_id":"a","service_id":"s","plan_id":"p"}"#).unwrap();
        assert_eq!(twice.service_id.as_deref(), Some("s"));
    }

    #[test]
    fn e08_e10_unknown_members_and_nulls() {
        let body = provision(
            r#"{"service_id":"s","plan_id":"p","context":null,"parameters":null,"maintenance_info":null,
                "organization_guid":null,"space_guid":null,"surprise":{"a":[1]}}"#,
        )
        .unwrap();
        assert!(body.context.is_none() && body.parameters.is_none() && body.maintenance_info.is_none());
        let body = provision(r#"{"service_id":"s","plan_id":"p","maintenance_info":{"x":1,"version":null}}"#)
            .unwrap();
        assert!(body.maintenance_info.unwrap().version.is_none());
        let update: UpdateBody = parse(
            &HeaderMap::new(),
            br#"{"service_id":"s","previous_values":{"maintenance_info":null,"plan_id":null}}"#,
        )
        .unwrap();
        assert!(update.plan_id.is_none());
        let bind: BindBody = parse(
            &HeaderMap::new(),
            br#"{"bind_resource":null,"predecessor_binding_id":"x"}"#,
        )
        .unwrap();
        assert!(bind.bind_resource.is_none());
    }

    #[test]
    fn z04_s08_queries() {
        let query =
            Query::parse("service_id=a&service_id=b&plan_id=&operation=x%2By+z&accepts_incomplete=TRUE&junk");
        assert_eq!(query.first("service_id"), Some("a"));
        assert_eq!(query.first("plan_id"), None);
        assert_eq!(query.first("absent"), None);
        assert_eq!(query.operation(), Some("x+y z"));
        assert!(query.accepts_incomplete());
        for (raw, flag) in [
            ("true", true),
            ("True", true),
            ("false", false),
            ("1", false),
            ("yes", false),
            ("", false),
            ("true%20", false),
        ] {
            assert_eq!(
                Query::parse(&format!("accepts_incomplete={raw}")).accepts_incomplete(),
                flag,
                "{raw}"
            );
        }
        assert!(!Query::parse("accepts_incomplete=false&accepts_incomplete=true").accepts_incomplete());
        assert_eq!(Query::parse("operation=%00").operation(), None);
        assert_eq!(
            Query::parse(&format!("operation={}", "x".repeat(10_001))).operation(),
            None
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_bytes_make_parsing_panic(body in prop::collection::vec(any::<u8>(), 0..200), query in ".{0,80}") {
            let _ = parse::<ProvisionBody>(&HeaderMap::new(), &body);
            let _ = Query::parse(&query).first("service_id");
        }
    }
}
