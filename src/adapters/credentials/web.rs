//! One HTTP request to a data server, for the mechanisms that speak HTTP.
//!
//! What must stay true here: every call ends within [`CALL_TIME`] and reads at most [`LARGEST_ANSWER`]; no redirect is
//! followed and no proxy asked, because requests carry credentials meant for one server; no URL, header or body gets
//! into an error.

use crate::domain::instance::Endpoint;
use crate::ports::{PortError, PortResult, Target};
use reqwest::header::HeaderValue;
use reqwest::redirect::Policy;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::net::Ipv6Addr;
use std::time::Duration;

const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Longest time one request may take, its answer included.
pub(super) const CALL_TIME: Duration = Duration::from_secs(15);

/// Most bytes of an answer that are read: the users of a server with tens of thousands of bindings.
const LARGEST_ANSWER: usize = 16 * 1024 * 1024;

/// A request, apart from the server it goes to.
pub(super) struct Request {
    /// `GET`, `PUT`, …
    pub method: &'static str,
    /// Path and query, percent-encoded, with its leading `/`.
    pub path_and_query: String,
    /// Header names in lower case; values are treated as secret.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// Empty for none.
    pub body: Vec<u8>,
}

/// What a server answered; any status is an answer.
pub(super) struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Whether the server did what it was asked.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Where a server is: scheme and authority, the latter as it stands in the `Host` header.
pub(super) struct Base {
    scheme: &'static str,
    /// `host` or `host:port`; the scheme's own port is left out, as HTTP clients do.
    pub authority: String,
}

impl Base {
    /// The endpoint of an instance, with TLS when the setting `tls` is true.
    pub fn of(target: &Target) -> Self {
        Self::at(
            &target.endpoint,
            target.settings.get("tls") == Some(&Value::Bool(true)),
        )
    }

    /// An endpoint, with TLS or without.
    pub fn at(endpoint: &Endpoint, tls: bool) -> Self {
        let (scheme, usual_port) = if tls { ("https", 443) } else { ("http", 80) };
        let host = &endpoint.host;
        let host = match host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => host.clone(),
        };
        let port = endpoint.port;
        let authority = if port == usual_port {
            host
        } else {
            format!("{host}:{port}")
        };
        Self { scheme, authority }
    }
}

/// Checks the setting `tls`, which all mechanisms over HTTP have.
pub(super) fn check_tls(settings: &Map<String, Value>) -> Option<String> {
    settings
        .get("tls")
        .filter(|tls| !tls.is_boolean())
        .map(|_| "tls: must be true or false".to_owned())
}

/// Sends requests; keeps connections open between calls.
pub(super) struct Web(PortResult<reqwest::Client>);

impl Web {
    /// A sender. What is wrong with the machine's TLS set-up is told by each [`send`](Self::send).
    pub fn new() -> Self {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME)
            .timeout(CALL_TIME)
            .redirect(Policy::none())
            .no_proxy()
            .http1_only()
            .build();
        Self(client.map_err(|e| {
            PortError::invalid("HTTP with TLS cannot be set up on this machine; tell the broker's operator.")
                .with_detail(e)
        }))
    }

    /// Sends one request. Fails only when there is no answer; a status that says no is an answer too.
    pub async fn send(&self, base: &Base, request: Request) -> PortResult<Answer> {
        let client = self.0.as_ref().map_err(Clone::clone)?;
        let method = reqwest::Method::from_bytes(request.method.as_bytes()).map_err(|_| bad_request())?;
        let url = format!("{}://{}{}", base.scheme, base.authority, request.path_and_query);
        let mut sending = client.request(method, url);
        for (name, value) in &request.headers {
            let mut value = HeaderValue::from_str(value).map_err(|_| bad_request())?;
            value.set_sensitive(true);
            sending = sending.header(name.as_ref(), value);
        }
        let mut response = sending.body(request.body).send().await.map_err(explain)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(explain)? {
            if body.len() + chunk.len() > LARGEST_ANSWER {
                return Err(PortError::invalid(
                    "The server's answer is larger than the broker reads; tell the broker's operator.",
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

fn bad_request() -> PortError {
    PortError::invalid(
        "The server's address or this binding's stored secret is damaged; tell the broker's operator.",
    )
}

/// The error's own text names the URL; that is cut, the reasons behind it stay.
fn explain(error: reqwest::Error) -> PortError {
    if error.is_builder() {
        return bad_request();
    }
    let message = if error.is_timeout() {
        "The server took too long to answer."
    } else {
        "The server does not answer."
    };
    let error = error.without_url();
    let mut detail = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(reason) = source {
        detail = format!("{detail}: {reason}");
        source = reason.source();
    }
    PortError::transient(message).with_detail(detail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::secret::Secret;
    use crate::ports::PortErrorKind;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn target(host: &str, port: u16, settings: &Value) -> Target {
        let endpoint = Endpoint {
            name: "client".to_owned(),
            host: host.to_owned(),
            port,
        };
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: settings.as_object().unwrap().clone(),
            admin: Secret::default(),
            revoked: Vec::new(),
        }
    }

    fn get(path_and_query: &str) -> Request {
        Request {
            method: "GET",
            path_and_query: path_and_query.to_owned(),
            headers: vec![("authorization".into(), "Basic c2VjcmV0".to_owned())],
            body: Vec::new(),
        }
    }

    /// Answers one connection with `answer`, whatever it is asked.
    async fn server(answer: Vec<u8>) -> Base {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(read > 0);
            drop(stream.write_all(&answer).await);
        });
        Base::of(&target("127.0.0.1", port, &json!({})))
    }

    #[test]
    fn the_authority_is_the_one_clients_send_as_host() {
        for (host, port, tls, authority) in [
            ("127.0.0.1", 9000, false, "127.0.0.1:9000"),
            ("s3.internal", 80, false, "s3.internal"),
            ("s3.internal", 443, true, "s3.internal"),
            ("s3.internal", 443, false, "s3.internal:443"),
            ("::1", 9000, true, "[::1]:9000"),
        ] {
            let base = Base::of(&target(host, port, &json!({"tls": tls})));
            assert_eq!(base.authority, authority);
            assert_eq!(base.scheme, if tls { "https" } else { "http" });
        }
    }

    #[tokio::test]
    async fn redirects_are_answers_and_not_followed() {
        let base = server(
            b"HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 2\r\n\r\nno".to_vec(),
        )
        .await;
        let answer = Web::new().send(&base, get("/")).await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (307, &b"no"[..]));
        assert!(!answer.is_success());
    }

    #[tokio::test]
    async fn endless_answers_are_cut() {
        let length = LARGEST_ANSWER + 1;
        let mut answer = format!("HTTP/1.1 200 x\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + length, b'x');
        let base = server(answer).await;
        let error = Web::new().send(&base, get("/")).await.err().unwrap();
        assert_eq!(error.kind, PortErrorKind::Invalid);
    }

    #[tokio::test]
    async fn silence_is_transient_and_no_error_shows_the_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let base = Base::of(&target("127.0.0.1", port, &json!({})));
        let error = Web::new().send(&base, get("/path?q=secret")).await.err().unwrap();
        assert_eq!(error.kind, PortErrorKind::Transient);
        for text in [&error.message, &error.detail] {
            assert!(!text.contains("secret") && !text.contains("c2VjcmV0"), "{text}");
        }
    }
}
