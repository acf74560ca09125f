//! A client that sends exactly the bytes it is given, and an answer taken apart by hand.

use crate::support::broker::{Choices, PASSWORD, TestBroker};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chandler::http::Settings;
use serde_json::Value;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const VERSION: (&str, &str) = ("X-Broker-API-Version", "2.17");

/// The `Authorization` of a user.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// The `Authorization` that is right.
pub fn right() -> String {
    basic("cf", PASSWORD)
}

/// A broker with these settings, and a client of its listener.
pub async fn serve(settings: Settings) -> (TestBroker, Wire) {
    let broker = TestBroker::with(Choices {
        http: settings,
        ..Choices::default()
    })
    .await;
    let address = broker.base.trim_start_matches("http://").parse().unwrap();
    (broker, Wire { address })
}

/// Asks a listener.
pub struct Wire {
    pub address: SocketAddr,
}

impl Wire {
    pub async fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may answer and close before it read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(20), reading)
            .await
            .expect("an answer in time");
        Reply::parse(&answer)
    }

    pub async fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        if !body.is_empty() {
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        self.raw(format!("{head}\r\n{body}").as_bytes()).await
    }

    /// With credentials and version.
    pub async fn api(&self, method: &str, target: &str, body: &str) -> Reply {
        let authorization = right();
        self.ask(
            method,
            target,
            &[("Authorization", &authorization), VERSION],
            body,
        )
        .await
    }
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer in {text:?}"));
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Self {
            status,
            headers,
            body: body.to_owned(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The body of a refusal, checked for its form (E-02).
    pub fn refusal(&self) -> Value {
        assert_eq!(self.header("x-content-type-options"), Some("nosniff"));
        let body = self.json();
        for member in ["error", "description"] {
            assert!(
                body[member].as_str().is_some_and(|text| !text.is_empty()),
                "{self:?}"
            );
        }
        body
    }
}
