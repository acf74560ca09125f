//! One request to Keycloak: the only place that knows the HTTP library.
//!
//! What must stay true: every call ends within the configured time and reads at most [`LARGEST_ANSWER`]; no redirect is
//! followed and no proxy asked, because requests carry secrets meant for one server; nothing is sent a second time here;
//! no URL, header or body gets into an error, and of an answer only the few words that say what is wrong.

use crate::ports::{PortError, PortErrorKind, PortResult};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;
use zeroize::Zeroizing;

/// Most bytes of an answer that are read; a page of clients with their key sets is far below.
const LARGEST_ANSWER: usize = 16 * 1024 * 1024;

/// Longest time until a connection is there; a call's own limit may be shorter.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Most bytes of Keycloak's own words in an error.
const WORDS: usize = 200;

/// What may stand unencoded in a part of a path or in a query.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// One part of a path, or one value of a query, as it is written in an address.
pub(super) fn encoded(part: &str) -> String {
    utf8_percent_encode(part, UNRESERVED).to_string()
}

/// What a request carries.
#[derive(Clone, Copy)]
pub(super) enum Body<'a> {
    /// Nothing.
    Nothing,
    /// A JSON document.
    Json(&'a Value),
    /// Fields as a web form sends them.
    Form(&'a [(&'a str, &'a str)]),
}

/// What Keycloak answered; any status is an answer.
pub(super) struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The whole body. It may hold secrets, so it is wiped and has no `Debug`.
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> PortResult<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // The error's own text may quote what it could not read.
            PortError::transient("The identity provider's answer is not what Keycloak answers.").with_detail(
                format!("status {}: line {} of the answer", self.status, error.line()),
            )
        })
    }

    /// Keycloak's short words for what is wrong, without any of `hidden`; empty when there are none.
    fn words(&self, hidden: &[&str]) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let mut words: Vec<&str> = ["error", "errorMessage", "error_description"]
            .iter()
            .filter_map(|member| body[*member].as_str())
            .collect();
        words.dedup();
        let mut text = words.join(": ");
        if hidden
            .iter()
            .any(|secret| !secret.is_empty() && text.contains(secret))
        {
            return String::new();
        }
        while text.len() > WORDS {
            text.pop();
        }
        text
    }

    /// Why this answer is a failure of `what`, by its status alone: names of errors differ between versions.
    pub fn refused(&self, what: &str, hidden: &[&str]) -> PortError {
        let (kind, message) = match self.status {
            401 => (
                PortErrorKind::Denied,
                "The identity provider does not let the broker in; tell the broker's operator.",
            ),
            403 => (
                PortErrorKind::Denied,
                "The identity provider does not allow the broker to do this; tell the broker's operator.",
            ),
            404 => (
                PortErrorKind::Gone,
                "The identity provider does not know what it was asked for; tell the broker's operator.",
            ),
            409 => (
                PortErrorKind::Conflict,
                "Somebody else changed the same client of the identity provider.",
            ),
            408 | 425 | 429 | 500.. => (
                PortErrorKind::Transient,
                "The identity provider is not able to answer at the moment.",
            ),
            _ => (
                PortErrorKind::Invalid,
                "The identity provider refuses what the broker asks for; tell the broker's operator.",
            ),
        };
        let words = self.words(hidden);
        PortError::new(kind, message)
            .with_detail(format!("{what}: status {} {words}", self.status).trim_end())
    }
}

/// Sends requests to one Keycloak; keeps connections open between calls.
pub(super) struct Http {
    client: reqwest::Client,
    base: String,
}

impl Http {
    /// A sender to the server at `base`, trusting the authorities in `ca_pem` beside the system's.
    pub fn new(base: &str, ca_pem: Option<&[u8]>, call_time: Duration) -> PortResult<Self> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME.min(call_time))
            .timeout(call_time)
            .redirect(Policy::none())
            .no_proxy()
            .http1_only();
        if let Some(pem) = ca_pem {
            let authorities = reqwest::Certificate::from_pem_bundle(pem)
                .ok()
                .filter(|authorities| !authorities.is_empty())
                .ok_or_else(|| {
                    PortError::invalid("The file of trusted authorities holds no certificate in PEM form.")
                })?;
            builder = builder.tls_certs_merge(authorities);
        }
        let client = builder
            .build()
            .map_err(|error| PortError::invalid("TLS cannot be set up.").with_detail(reasons(error)))?;
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { client, base })
    }

    /// Sends one request. Fails only when there is no answer; a status that says no is an answer too.
    ///
    /// `path` starts with `/`, its parts are [`encoded`].
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        bearer: Option<&str>,
        body: Body<'_>,
    ) -> PortResult<Answer> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).map_err(|_| bad_request())?;
        let mut sending = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = bearer {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| bad_request())?;
            value.set_sensitive(true);
            sending = sending.header(AUTHORIZATION, value);
        }
        sending = match body {
            Body::Nothing => sending,
            Body::Json(value) => sending
                .header(CONTENT_TYPE, "application/json")
                .body(value.to_string()),
            Body::Form(fields) => sending
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form(fields)),
        };
        let mut response = sending.send().await.map_err(explain)?;
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(explain)? {
            if body.len() + chunk.len() > LARGEST_ANSWER {
                return Err(PortError::invalid(
                    "The identity provider's answer is larger than the broker reads; tell the broker's operator.",
                ));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer {
            status: response.status().as_u16(),
            body,
        })
    }
}

fn form(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    fields.join("&")
}

fn bad_request() -> PortError {
    PortError::invalid("The identity provider's address is not usable; tell the broker's operator.")
}

/// The error's own text names the URL; that is cut, the reasons behind it stay.
fn explain(error: reqwest::Error) -> PortError {
    if error.is_builder() {
        return bad_request();
    }
    let message = if error.is_timeout() {
        "The identity provider took too long to answer."
    } else {
        "The identity provider does not answer."
    };
    PortError::transient(message).with_detail(reasons(error))
}

fn reasons(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(reason) = source {
        text = format!("{text}: {reason}");
        source = reason.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers every connection with `answer`, whatever it is asked.
    async fn server(answer: Vec<u8>, call_time: Duration) -> Http {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                drop(stream.write_all(&answer).await);
            }
        });
        Http::new(&base, None, call_time).unwrap()
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            body: Zeroizing::new(body.as_bytes().to_vec()),
        }
    }

    #[test]
    fn forms_and_paths_hold_nothing_that_could_end_a_part() {
        assert_eq!(encoded("a b/c;d?e&f=ü"), "a%20b%2Fc%3Bd%3Fe%26f%3D%C3%BC");
        assert_eq!(form(&[("a", "x&b=y"), ("c", "+")]), "a=x%26b%3Dy&c=%2B");
    }

    #[test]
    fn the_status_alone_decides_what_kind_of_failure_it_is() {
        for (status, kind) in [
            (400, PortErrorKind::Invalid),
            (301, PortErrorKind::Invalid),
            (401, PortErrorKind::Denied),
            (403, PortErrorKind::Denied),
            (404, PortErrorKind::Gone),
            (409, PortErrorKind::Conflict),
            (429, PortErrorKind::Transient),
            (500, PortErrorKind::Transient),
            (503, PortErrorKind::Transient),
        ] {
            let error = answer(status, r#"{"error":"unauthorized_client"}"#).refused("look", &[]);
            assert_eq!(error.kind, kind, "{status}");
            assert_eq!(error.detail, format!("look: status {status} unauthorized_client"));
        }
    }

    #[test]
    fn what_the_server_says_is_short_and_without_secrets() {
        let quoting = answer(400, r#"{"errorMessage":"secret hunter2 is too long"}"#);
        let error = quoting.refused("make the client", &["", "hunter2"]);
        assert_eq!(error.detail, "make the client: status 400");
        let long = answer(400, &format!(r#"{{"error":"{}"}}"#, "ä".repeat(5000)));
        assert!(long.refused("x", &[]).detail.len() < 300);
        let quoted: PortResult<Vec<String>> = answer(200, r#"{"secret":"hunter2"}"#).json();
        let error = quoted.unwrap_err();
        assert!(
            !error.detail.contains("hunter2") && !error.detail.contains("secret"),
            "{}",
            error.detail
        );
    }

    #[tokio::test]
    async fn redirects_are_answers_and_not_followed() {
        let http = server(
            b"HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec(),
            Duration::from_secs(10),
        )
        .await;
        let answer = http.send("GET", "/x", None, Body::Nothing).await.unwrap();
        assert_eq!(answer.status, 307);
    }

    #[tokio::test]
    async fn silence_and_endless_answers_end_in_time_and_no_error_shows_the_request() {
        let length = LARGEST_ANSWER + 1;
        let mut endless = format!("HTTP/1.1 200 x\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        endless.resize(endless.len() + length, b'x');
        let silent = "HTTP/1.1 200 x\r\ncontent-length: 5\r\n\r\n".into();
        for (given, kind, call_time) in [
            (endless, PortErrorKind::Invalid, Duration::from_secs(30)),
            (silent, PortErrorKind::Transient, Duration::from_millis(300)),
        ] {
            let http = server(given, call_time).await;
            let fields = [("client_secret", "hunter2")];
            let error = http
                .send("POST", "/path?q=hunter2", Some("hunter2"), Body::Form(&fields))
                .await
                .err()
                .unwrap();
            assert_eq!(error.kind, kind);
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let made = Http::new(
            "https://localhost",
            Some(b"no certificate"),
            Duration::from_secs(1),
        );
        assert_eq!(made.err().unwrap().kind, PortErrorKind::Invalid);
    }
}
