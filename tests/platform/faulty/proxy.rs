//! A proxy on loopback between the broker and a real server, which spoils chosen requests.
//!
//! It knows which binding a request is for (by the client's name in path or body, or an id that was seen with it), so many
//! bindings can be worked on at once, each with a fault of its own at the n-th of its requests. What is spoilt is said
//! by [`Kind`]; everything else is handed on unchanged.

use crate::realm::web;
use futures::future::BoxFuture;
use reqwest::Client;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How long a slow request is held: longer than the broker waits (`request_seconds: 2`).
const HELD: Duration = Duration::from_millis(2600);
/// How long a stuck one is: until nobody waits for it any more.
const STUCK: Duration = Duration::from_secs(3);
/// Largest request.
const LARGEST: usize = 1 << 20;

/// What happens to a request.
#[derive(Clone)]
pub enum Kind {
    /// The connection ends before the server hears of it.
    Cut,
    /// It is answered 500 before the server hears of it.
    Error,
    /// It is handed on when the broker has given up already.
    Slow,
    /// It is never answered and the server never hears of it.
    Stuck,
    /// It is handed on, and the connection ends instead of an answer.
    Lost,
    /// Something is done to the server first, then it is handed on.
    After(Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>),
}

impl Kind {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Error => "500",
            Self::Slow => "slow",
            Self::Stuck => "stuck",
            Self::Lost => "lost",
            Self::After(_) => "after",
        }
    }
}

/// Requests of one binding that are spoilt.
#[derive(Clone)]
pub struct Fault {
    /// The first one, counted from 0 at both servers together.
    pub from: usize,
    /// How many.
    pub most: usize,
    pub kind: Kind,
    /// How many were.
    pub met: usize,
    /// Where the first one was: only that server fails.
    place: Option<&'static str>,
}

impl Fault {
    pub fn new(from: usize, most: usize, kind: Kind) -> Self {
        Self {
            from,
            most,
            kind,
            met: 0,
            place: None,
        }
    }
}

/// What both proxies know together.
#[derive(Default)]
struct Book {
    /// Ids that mean a binding, beside its client's name.
    ids: BTreeMap<String, String>,
    /// Requests by client, and those for no binding by themselves.
    seen: BTreeMap<String, Vec<String>>,
    faults: BTreeMap<String, Fault>,
    /// Log-in headers and all that was sent and answered, once somebody listens.
    heard: Option<Vec<Value>>,
}

/// Requests of the broker and their faults, shared by the proxies of all servers.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Book>>);

impl Faults {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap()
    }

    /// Begins to count anew, with these faults by client.
    pub fn begin(&self, faults: impl IntoIterator<Item = (String, Fault)>) {
        let mut book = self.book();
        book.seen.clear();
        book.faults = faults.into_iter().collect();
    }

    /// Ends all faults; how many requests of each client were spoilt.
    pub fn lift(&self) -> BTreeMap<String, usize> {
        let faults = std::mem::take(&mut self.book().faults);
        faults
            .into_iter()
            .map(|(client, fault)| (client, fault.met))
            .collect()
    }

    /// How many requests of this client were spoilt.
    pub fn met(&self, client: &str) -> usize {
        self.book().faults.get(client).map_or(0, |fault| fault.met)
    }

    /// What was asked for a client, or for none (`""`), since the count began.
    pub fn seen(&self, client: &str) -> Vec<String> {
        self.book().seen.get(client).cloned().unwrap_or_default()
    }

    /// Keeps all that passes from now on; what was kept.
    pub fn listen_in(&self) -> Vec<Value> {
        self.book().heard.replace(Vec::new()).unwrap_or_default()
    }

    fn hear(&self, parts: impl IntoIterator<Item = Value>) {
        if let Some(heard) = &mut self.book().heard {
            heard.extend(parts);
        }
    }

    /// Writes a request down; what is to become of it.
    fn take(&self, server: &'static str, request: &Request) -> (String, Option<Kind>) {
        let mut book = self.book();
        let client = request.client().or_else(|| {
            let last = request.path.split(['/', '?']).find_map(|part| book.ids.get(part));
            last.cloned()
        });
        let client = client.unwrap_or_else(|| {
            let logs_in = request.path.ends_with("/login") || request.path.ends_with("/openid-connect/token");
            if logs_in { log_in(server) } else { String::new() }
        });
        if let (Some(id), Some(_)) = (request.body["id"].as_str(), request.body["clientId"].as_str()) {
            book.ids.insert(id.to_owned(), client.clone());
        }
        let seen = book.seen.entry(client.clone()).or_default();
        let number = seen.len();
        seen.push(format!("{server} {} {}", request.method, request.path));
        let kind = book.faults.get_mut(&client).and_then(|fault| {
            let here = number == fault.from || number > fault.from && fault.place == Some(server);
            (here && fault.met < fault.most).then(|| {
                fault.place = Some(server);
                fault.met += 1;
                fault.kind.clone()
            })
        });
        (client, kind)
    }

    /// Remembers that this id of the server's own means that client.
    fn learn(&self, client: &str, answer: &[u8]) {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        if let (false, Some(id)) = (client.is_empty(), answer["data"]["id"].as_str()) {
            self.book().ids.insert(id.to_owned(), client.to_owned());
        }
    }
}

/// What stands for a client where the broker itself logs in.
pub fn log_in(server: &str) -> String {
    format!("the broker at {server}")
}

/// A request as it came.
struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    raw: Vec<u8>,
    body: Value,
}

impl Request {
    /// The binding's client that it names.
    fn client(&self) -> Option<String> {
        let text = format!("{} {}", self.path, self.body);
        let at = text.find("osb-b-")?;
        let name = text.get(at..at + 32)?;
        chandler::domain::names::bid_of_client(name).map(|_| name.to_owned())
    }
}

/// A running proxy; its connections end with it.
pub struct Proxy {
    server: &'static str,
    upstream: String,
    web: Client,
    faults: Faults,
    address: SocketAddr,
    listening: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Proxy {
    /// One in front of `upstream`.
    pub async fn start(
        server: &'static str,
        upstream: &str,
        ca: Option<&[u8]>,
        faults: &Faults,
    ) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Arc::new(Self {
            server,
            upstream: upstream.to_owned(),
            web: web(ca),
            faults: faults.clone(),
            address: listener.local_addr().unwrap(),
            listening: Mutex::default(),
        });
        proxy.listen(listener);
        proxy
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn listen(self: &Arc<Self>, listener: TcpListener) {
        let proxy = self.clone();
        *self.listening.lock().unwrap() = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(proxy.clone().serve(connection));
            }
        }));
    }

    /// As if the server had ended: connections end, new ones are refused.
    pub async fn stop(&self) {
        let listening = self.listening.lock().unwrap().take();
        if let Some(listening) = listening {
            listening.abort();
            drop(listening.await);
        }
    }

    /// Listens again.
    pub async fn go_on(self: &Arc<Self>) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        self.listen(socket.listen(128).unwrap());
    }

    async fn serve(self: Arc<Self>, mut connection: TcpStream) {
        let mut unread = Vec::new();
        while let Some(request) = read(&mut connection, &mut unread).await {
            let (client, kind) = self.faults.take(self.server, &request);
            let log_ins = request
                .headers
                .iter()
                .filter(|(name, _)| LOG_IN.contains(&name.as_str()));
            let log_ins: Vec<Value> = log_ins
                .map(|(name, value)| json!({(name.as_str()): value}))
                .collect();
            self.faults
                .hear(log_ins.into_iter().chain([request.body.clone()]));
            match &kind {
                Some(Kind::Cut) => return,
                Some(Kind::Error) => {
                    let text = "HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\ncontent-length: 29\r\n\r\n\
                                {\"errors\":[\"internal error\"]}";
                    if connection.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                    continue;
                }
                Some(Kind::Slow) => tokio::time::sleep(HELD).await,
                Some(Kind::Stuck) => {
                    tokio::time::sleep(STUCK).await;
                    return;
                }
                Some(Kind::After(what)) => what().await,
                Some(Kind::Lost) | None => {}
            }
            let Some(answer) = self.hand_on(request, &client).await else {
                return;
            };
            if matches!(kind, Some(Kind::Lost)) || connection.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    /// Asks the server; its answer as bytes, none when it gave none.
    async fn hand_on(&self, request: Request, client: &str) -> Option<Vec<u8>> {
        let method = request.method.parse::<reqwest::Method>().unwrap();
        let mut asked = self
            .web
            .request(method, format!("{}{}", self.upstream, request.path));
        for (name, value) in &request.headers {
            asked = asked.header(name, value);
        }
        let answer = asked.body(request.raw).send().await.ok()?;
        let mut head = format!("HTTP/1.1 {} X\r\n", answer.status().as_u16());
        for (name, value) in answer.headers() {
            if !OWN.contains(&name.as_str()) {
                head.push_str(&format!("{name}: {}\r\n", value.to_str().ok()?));
            }
        }
        let body = answer.bytes().await.ok()?;
        self.faults.learn(client, &body);
        self.faults.hear(serde_json::from_slice(&body));
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        Some([head.as_bytes(), &body].concat())
    }
}

/// Headers that are each connection's own.
const OWN: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "keep-alive",
];

/// Headers by which the broker is let in.
const LOG_IN: &[&str] = &["authorization", "x-vault-token"];

/// Reads one request; none when the connection ended.
async fn read(connection: &mut TcpStream, unread: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(at) = unread.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        more(connection, unread).await?;
    };
    let head = String::from_utf8(unread[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let mut headers = Vec::new();
    let mut length = 0;
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        assert_ne!(
            name, "transfer-encoding",
            "the broker says how long its requests are"
        );
        if name == "content-length" {
            length = value.parse().unwrap();
        }
        if !OWN.contains(&name.as_str()) {
            headers.push((name, value.to_owned()));
        }
    }
    assert!(length < LARGEST);
    let begin = end + 4;
    while unread.len() < begin + length {
        more(connection, unread).await?;
    }
    let raw = unread[begin..begin + length].to_vec();
    unread.drain(..begin + length);
    Some(Request {
        method,
        path,
        headers,
        body: serde_json::from_slice(&raw).unwrap_or_default(),
        raw,
    })
}

async fn more(connection: &mut TcpStream, unread: &mut Vec<u8>) -> Option<()> {
    let mut bytes = [0; 8192];
    match connection.read(&mut bytes).await {
        Ok(0) | Err(_) => None,
        Ok(read) => {
            unread.extend_from_slice(&bytes[..read]);
            Some(())
        }
    }
}
