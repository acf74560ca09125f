//! A proxy on loopback in front of a server: it counts every request by what it is for, and hands it on.
//!
//! So nothing the broker says of itself is believed. What it costs is part of what is measured.

use crate::broker::free_port;
use crate::place::web;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web as http};
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Parts of a path that say what a request is for; of several the last.
const WORDS: &[&str] = &[
    "token",
    "client-secret",
    "clients",
    "data",
    "metadata",
    "login",
    "auth",
    "entity",
    "lookup-self",
    "renew-self",
    "capabilities-self",
];

/// Headers that are each connection's own.
const OWN: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "keep-alive",
];

/// Largest request that is handed on.
const LARGEST: usize = 1 << 20;

struct State {
    upstream: String,
    web: reqwest::Client,
    calls: Mutex<BTreeMap<String, u64>>,
}

/// A running proxy; it ends with the program.
pub struct Proxy {
    state: Arc<State>,
    address: SocketAddr,
}

/// How often each kind of request came.
pub type Calls = BTreeMap<String, u64>;

impl Proxy {
    /// Starts one in front of `upstream`.
    pub fn start(upstream: &str) -> Result<Self> {
        let state = Arc::new(State {
            upstream: upstream.to_owned(),
            web: web()?,
            calls: Mutex::default(),
        });
        let (address, shared) = (free_port()?, state.clone());
        let (up, told) = mpsc::channel();
        std::thread::spawn(move || {
            let serving = actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(http::Data::from(shared.clone()))
                        .app_data(http::PayloadConfig::new(LARGEST))
                        .default_service(http::to(hand_on))
                })
                .workers(1)
                .disable_signals()
                .bind(address)?;
                let _ = up.send(());
                server.run().await
            });
            if let Err(why) = serving {
                eprintln!("a proxy ended: {why}");
            }
        });
        told.recv()
            .map_err(|_| anyhow!("a proxy cannot listen on {address}"))?;
        Ok(Self { state, address })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came since this was asked before.
    pub fn taken(&self) -> Calls {
        std::mem::take(&mut *self.state.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn hand_on(
    request: HttpRequest,
    body: http::Bytes,
    state: http::Data<State>,
) -> actix_web::Result<HttpResponse> {
    let path = request.uri().to_string();
    let kind = kind(request.method().as_str(), request.path());
    *state
        .calls
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(kind)
        .or_default() += 1;
    let failed = actix_web::error::ErrorBadGateway::<String>;
    let method = request.method().as_str().parse::<reqwest::Method>();
    let mut sending = state.web.request(
        method.map_err(|why| failed(why.to_string()))?,
        format!("{}{path}", state.upstream),
    );
    for (name, value) in request.headers() {
        if !OWN.contains(&name.as_str()) {
            sending = sending.header(name.as_str(), value.as_bytes());
        }
    }
    let answer = sending
        .body(body)
        .send()
        .await
        .map_err(|why| failed(why.to_string()))?;
    let status = actix_web::http::StatusCode::from_u16(answer.status().as_u16());
    let mut response = HttpResponse::build(status.map_err(|why| failed(why.to_string()))?);
    for (name, value) in answer.headers() {
        if !OWN.contains(&name.as_str()) {
            response.append_header((name.as_str(), value.as_bytes()));
        }
    }
    let bytes = answer.bytes().await.map_err(|why| failed(why.to_string()))?;
    Ok(response.body(bytes))
}

/// What a request is for, in two words.
fn kind(method: &str, path: &str) -> String {
    let word = path.rsplit('/').find(|part| WORDS.contains(part));
    format!("{method} {}", word.unwrap_or("other"))
}

/// All of them together.
pub fn total(calls: &Calls) -> u64 {
    calls.values().sum()
}

/// They in words, for one of `of`.
pub fn shown(calls: &Calls, of: u64) -> Result<String> {
    let of = f64::from(u32::try_from(of).context("a count")?);
    let mut words = Vec::new();
    for (kind, count) in calls {
        words.push(format!("{kind} {:.2}", f64::from(u32::try_from(*count)?) / of));
    }
    Ok(words.join(", "))
}
