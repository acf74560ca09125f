//! One HTTP request to the vault: the only place that knows how it travels.
//!
//! What must stay true here: every call ends within the configured time and reads at most [`LARGEST_ANSWER`]; no redirect
//! is followed and no proxy asked, because requests carry a token meant for one server; a name becomes one segment of a
//! path or is refused; and no error holds anything that was sent.

use super::fault;
use crate::ports::{PortError, PortResult};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest time to get a connection, where the whole request may take longer.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Shorter than servers and the proxies before them keep an idle connection, so that none is used that is just closing.
const IDLE_TIME: Duration = Duration::from_secs(20);
/// Most bytes of an answer that are read: the list of some 500,000 instances.
const LARGEST_ANSWER: usize = 16 * 1024 * 1024;

/// What stands in a path as it is (RFC 3986, unreserved).
const IN_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// One name as one segment of a path.
///
/// Percent-encoding alone is not enough: the vault decodes a path before it looks at it, so a name with `/` in it would be
/// two segments there, and `..` is taken away by URL libraries. Nothing the broker names has such names.
pub(super) fn segment(name: &str) -> PortResult<String> {
    let harmless = !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', '*', '+'])
        && !name.contains(char::is_control);
    if harmless {
        Ok(utf8_percent_encode(name, IN_SEGMENT).to_string())
    } else {
        Err(
            PortError::invalid("This name cannot be kept in the vault; tell the broker's operator.")
                .with_detail("a segment of a path in the vault is empty, a dot, or holds / \\ * + or a control character"),
        )
    }
}

/// A request, apart from the server it goes to.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    /// `GET`, `POST`, `DELETE`.
    pub method: &'static str,
    /// Path below `/v1/` with its query, encoded.
    pub path: &'a str,
    /// The token it is asked with.
    pub token: Option<&'a SecretString>,
    /// JSON.
    pub body: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// Reads.
    pub fn get(path: &'a str) -> Self {
        Self {
            method: "GET",
            path,
            token: None,
            body: None,
        }
    }

    /// Writes.
    pub fn post(path: &'a str, body: &'a [u8]) -> Self {
        Self {
            method: "POST",
            path,
            token: None,
            body: Some(body),
        }
    }

    /// Removes.
    pub fn delete(path: &'a str) -> Self {
        Self {
            method: "DELETE",
            path,
            token: None,
            body: None,
        }
    }

    /// With this token.
    pub fn with(self, token: &'a SecretString) -> Self {
        Self {
            token: Some(token),
            ..self
        }
    }

    /// The method and the path, for logs: no name in a path of the vault is a secret.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Whether `text` holds something that was sent and that nobody may read.
    fn shows_in(&self, text: &str) -> bool {
        let token = self
            .token
            .is_some_and(|token| text.contains(token.expose_secret()));
        let body = self
            .body
            .and_then(|body| serde_json::from_slice::<Value>(body).ok());
        token || body.is_some_and(|body| any_text_in(&body, text))
    }
}

/// Whether a text of `value` that is long enough to be a secret stands in `text`.
fn any_text_in(value: &Value, text: &str) -> bool {
    const SHORTEST_SECRET: usize = 12;
    match value {
        Value::String(part) => part.len() >= SHORTEST_SECRET && text.contains(part.as_str()),
        Value::Array(items) => items.iter().any(|item| any_text_in(item, text)),
        Value::Object(members) => members.values().any(|member| any_text_in(member, text)),
        _ => false,
    }
}

/// What the vault answered; any status is an answer.
pub(super) struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body; null when it is empty or no JSON.
    pub body: Value,
    /// What the vault says is wrong, for logs; empty when it says nothing.
    pub errors: String,
}

impl Answer {
    /// Whether the vault did what it was asked. 200 and 204 mean the same: warnings turn one into the other.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether nothing is there. A path that belongs to no mount is 404 too, with a reason.
    pub fn is_absent(&self) -> bool {
        self.status == 404 && self.errors.is_empty()
    }

    /// A member of `data`, where nearly all answers have what was asked for.
    pub fn data(&self, member: &str) -> &Value {
        &self.body["data"][member]
    }
}

/// Sends requests; keeps connections open between calls.
pub(super) struct Http {
    client: reqwest::Client,
    base: String,
    namespace: Option<HeaderValue>,
}

impl Http {
    /// A sender to `address`, which trusts the authorities in `ca` (PEM) beside the system's.
    pub fn new(
        address: &str,
        namespace: Option<&str>,
        ca: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Self, String> {
        let mut client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME.min(limit))
            .timeout(limit)
            .pool_idle_timeout(IDLE_TIME)
            .redirect(Policy::none())
            .no_proxy()
            .http1_only();
        if let Some(pem) = ca {
            let authorities = reqwest::Certificate::from_pem_bundle(pem)
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or("ca_file holds no certificate in PEM form")?;
            client = client.tls_certs_merge(authorities);
        }
        let namespace = namespace
            .map(HeaderValue::from_str)
            .transpose()
            .map_err(|_| "namespace cannot stand in a request")?;
        Ok(Self {
            client: client.build().map_err(|error| {
                format!(
                    "HTTP with TLS cannot be set up on this machine: {}",
                    reasons(&error)
                )
            })?,
            base: format!("{}/v1/", address.trim_end_matches('/')),
            namespace,
        })
    }

    /// Sends one request. Fails only when there is no answer; a status that says no is an answer too.
    pub async fn send(&self, request: Request<'_>) -> PortResult<Answer> {
        let method = reqwest::Method::from_bytes(request.method.as_bytes())
            .map_err(|_| fault::bad_request(&request))?;
        let mut sending = self
            .client
            .request(method, format!("{}{}", self.base, request.path))
            .header("x-vault-request", "true");
        // What is about the server as a whole is asked of its root namespace alone.
        if let Some(namespace) = self
            .namespace
            .as_ref()
            .filter(|_| !request.path.starts_with("sys/health"))
        {
            sending = sending.header("x-vault-namespace", namespace.clone());
        }
        if let Some(token) = request.token {
            let mut token =
                HeaderValue::from_str(token.expose_secret()).map_err(|_| fault::bad_request(&request))?;
            token.set_sensitive(true);
            sending = sending.header("x-vault-token", token);
        }
        if let Some(body) = request.body {
            sending = sending
                .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
                .body(body.to_vec());
        }
        let response = sending.send().await.map_err(|error| explain(&request, error))?;
        let status = response.status().as_u16();
        let body = read(&request, response).await?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let errors = errors(&body);
        Ok(Answer {
            status,
            errors: if request.shows_in(&errors) {
                "the answer repeats what was sent, so it is not shown".to_owned()
            } else {
                errors
            },
            body,
        })
    }
}

async fn read(request: &Request<'_>, mut response: reqwest::Response) -> PortResult<Zeroizing<Vec<u8>>> {
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(|error| explain(request, error))? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(PortError::invalid(
                "The vault's answer is larger than the broker reads; tell the broker's operator.",
            )
            .with_detail(request.line()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The list `errors` of an answer as one line of bounded length.
fn errors(body: &Value) -> String {
    const MOST: usize = 300;
    let said = body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let said: Vec<&str> = said.iter().filter_map(Value::as_str).collect();
    said.join("; ")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MOST)
        .collect()
}

fn explain(request: &Request<'_>, error: reqwest::Error) -> PortError {
    if error.is_builder() {
        return fault::bad_request(request);
    }
    let message = if error.is_timeout() {
        "The vault took too long to answer."
    } else if error.is_connect() {
        "The vault cannot be reached."
    } else {
        "The vault ended the connection without an answer."
    };
    let why = reasons(&error.without_url());
    PortError::transient(message).with_detail(format!("{}: {why}", request.line()))
}

fn reasons(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        text = format!("{text}: {reason}");
        source = reason.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_is_one_segment_or_none() {
        assert_eq!(segment("osb-b-abc").unwrap(), "osb-b-abc");
        assert_eq!(segment("a b%2f?#ä").unwrap(), "a%20b%252f%3F%23%C3%A4");
        for wrong in ["", ".", "..", "a/b", "a\\b", "osb-b-*", "+", "a\nb", "\0"] {
            assert!(segment(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_was_sent_is_found_in_what_comes_back() {
        let token = SecretString::from("hvs.token-of-the-broker");
        let body =
            serde_json::to_vec(&json!({"data": {"list": [{"password": "correct-horse"}], "n": "short"}}))
                .unwrap();
        let request = Request::post("osb/data/x", &body).with(&token);
        assert!(request.shows_in("bad token hvs.token-of-the-broker"));
        assert!(request.shows_in("bad value \"correct-horse\""));
        assert!(!request.shows_in("short: permission denied"));
    }

    #[test]
    fn errors_are_one_line_of_bounded_length() {
        assert_eq!(errors(&json!({"errors": ["a", "b\nc"]})), "a; b c");
        assert_eq!(errors(&json!({"errors": []})), "");
        assert_eq!(errors(&json!(null)), "");
        assert_eq!(errors(&json!({"errors": ["x".repeat(5000)]})).len(), 300);
    }
}
