//! The application on a real listener, and a client that sends exactly the bytes it is given.

use super::world;
use actix_web::web::ServiceConfig;
use actix_web::{App, HttpServer};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chandler::engine::{Engine, Runner};
use chandler::http::{self, Settings, State, auth};
use serde_json::Value;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const VERSION: (&str, &str) = ("X-Broker-API-Version", "2.17");

pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// A running application.
pub struct Server {
    pub address: SocketAddr,
    pub engine: Arc<Engine>,
    handle: actix_web::dev::ServerHandle,
    _dir: tempfile::TempDir,
}

impl Server {
    pub async fn start(settings: Settings) -> Self {
        Self::with(settings, http::configure).await
    }

    pub async fn with(settings: Settings, configure: fn(&mut ServiceConfig, Arc<State>)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = world::engine(dir.path()).await;
        let hash = auth::hash_password("secret").unwrap();
        let credential = auth::Credential {
            username: "dev".into(),
            hash,
        };
        let platform = auth::Platform {
            name: "dev".into(),
            credentials: vec![credential],
        };
        let platforms = Arc::new(auth::Platforms::new(vec![platform]).unwrap());
        let metrics: http::MetricsText = Arc::new(|| "up 1\n".to_owned());
        let state = Arc::new(State::new(engine.clone(), settings, platforms, metrics));
        let server = HttpServer::new(move || {
            let state = Arc::clone(&state);
            App::new().configure(move |config| configure(config, state))
        })
        .workers(1)
        .disable_signals()
        .shutdown_timeout(1)
        .bind(("127.0.0.1", 0))
        .unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Self {
            address,
            engine,
            handle,
            _dir: dir,
        }
    }

    pub async fn stop(self) {
        self.handle.stop(false).await;
        self.engine.store().close().await;
    }

    /// Does everything that is due.
    pub async fn work(&self) {
        let runner = Runner::new(self.engine.clone());
        for _ in 0..50 {
            if runner.run_due().await == 0 {
                return;
            }
        }
        panic!("the work does not end");
    }

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
        let authorization = basic("dev", "secret");
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
