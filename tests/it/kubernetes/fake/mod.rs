//! An API server in this process: a map of objects behind real HTTP on loopback, with faults on demand.
//!
//! It knows what the adapter relies on: server-side apply with fields that go when they are applied no more, generations,
//! finalizers, namespaces that take their content along, pages, watches with history, metadata-only answers. What
//! controllers do happens when [`Fake::settle`] is called, or by itself after every write once [`Fake::automatic`] was.

mod controllers;
mod objects;

use objects::{Planned, Reply, State, reply, route, selected, status};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// `<api version>`, plural, namespace, name.
pub type Key = (String, String, String, String);

/// What happens to a request that a planned fault catches.
#[derive(Clone)]
pub enum Fault {
    /// It is answered so, and not looked at.
    Answer(u16, String),
    /// It is answered 429 with `Retry-After`.
    Throttled(u64),
    /// It is done, and the answer gets lost.
    Lost,
    /// The connection breaks before it is looked at.
    Broken,
    /// It is done after so long.
    Slow(Duration),
}

/// The server; it goes when the last handle does.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    cut: Arc<watch::Sender<u64>>,
    automatic: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
    pub url: String,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    accept: String,
    content: String,
    body: Vec<u8>,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fake = Self {
            state: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
            cut: Arc::new(watch::Sender::new(0)),
            automatic: Arc::default(),
            silent: Arc::default(),
            url,
        };
        let server = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move {
                    let _ = server.serve(stream).await;
                });
            }
        });
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next `times` requests of this method whose path and query hold `part` meet the fault.
    pub fn plan(&self, method: &'static str, part: &str, times: usize, fault: Fault) {
        self.state().planned.push(Planned {
            method,
            part: part.to_owned(),
            times,
            fault,
        });
    }

    /// The `nth` request from now that is no watch meets the fault.
    pub fn plan_nth(&self, nth: usize, fault: Fault) {
        self.state().nth = Some((nth, fault));
    }

    /// Every object with its name, in order, apart from what a new cluster has.
    pub fn objects(&self) -> Vec<(String, Value)> {
        let state = self.state();
        let objects = state.objects.iter().filter(|(key, _)| key.1 != "storageclasses");
        objects
            .map(|(key, object)| (format!("{}/{}", key.1, key.3), object.clone()))
            .collect()
    }

    /// Makes custom kinds known: group and version, kind, plural.
    pub fn knows(&self, api_version: &str, kind: &str, plural: &str) {
        let entry = (kind.to_owned(), plural.to_owned());
        self.state()
            .custom
            .entry(api_version.to_owned())
            .or_default()
            .push(entry);
    }

    /// Controllers act by themselves from now on.
    pub fn automatic(&self) {
        self.automatic.store(true, Ordering::SeqCst);
    }

    /// Controllers act only when told to, from now on.
    pub fn manual(&self) {
        self.automatic.store(false, Ordering::SeqCst);
    }

    /// Namespaces that are deleted stay until [`settle`](Self::settle).
    pub fn linger(&self) {
        self.state().linger = true;
    }

    /// Pods that are deleted stay until [`settle`](Self::settle) after `pods_stay(false)`.
    pub fn pods_stay(&self, stay: bool) {
        self.state().pods_stay = stay;
    }

    /// Pods come up with this status instead of running.
    pub fn pods_fail(&self, status: Value) {
        self.state().pods_fail = Some(status);
    }

    /// Every request so far, as `METHOD path?query`.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// Requests so far that are no watch.
    pub fn requests(&self) -> usize {
        self.log()
            .iter()
            .filter(|line| !line.contains("watch=true"))
            .count()
    }

    /// Cuts every watch off.
    pub fn cut_watches(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    /// From now on, or no more: watches are cut off, and requests are neither looked at nor answered.
    pub fn silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
        self.cut_watches();
    }

    /// Forgets history: whoever watches on from before has to list again.
    pub fn expire(&self) {
        let mut state = self.state();
        state.history.clear();
        state.version += 10;
        state.oldest = state.version;
    }

    /// One object, by plural, namespace and name.
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.state();
        let found = state
            .objects
            .iter()
            .find(|((_, p, ns, n), _)| p == plural && ns == namespace && n == name);
        found.map(|(_, object)| object.clone())
    }

    /// `plural/name` of everything there is, apart from what a new cluster has.
    pub fn all(&self) -> Vec<String> {
        let state = self.state();
        let keys = state.objects.keys();
        keys.filter(|(_, plural, ..)| plural != "storageclasses")
            .map(|(_, plural, _, name)| format!("{plural}/{name}"))
            .collect()
    }

    /// Puts an object there by hand, whoever's it is.
    pub fn put(&self, api_version: &str, plural: &str, object: Value) {
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let key = (
            api_version.to_owned(),
            plural.to_owned(),
            text("namespace"),
            text("name"),
        );
        self.state().store(key, object);
        self.tell();
    }

    /// Changes an object by hand.
    pub fn edit(&self, plural: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        let found = state
            .objects
            .iter()
            .find(|((_, p, ns, n), _)| p == plural && ns == namespace && n == name);
        let (key, mut object) = found
            .map(|(k, o)| (k.clone(), o.clone()))
            .expect("there to be edited");
        change(&mut object);
        state.store(key, object);
        drop(state);
        self.tell();
    }

    /// Removes an object by hand, with what belongs to it when it is a namespace.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        let key = state
            .objects
            .keys()
            .find(|(_, p, ns, n)| p == plural && ns == namespace && n == name)
            .cloned()
            .expect("there to be deleted");
        state.gone(&key);
        drop(state);
        self.tell();
    }

    /// Controllers do what is due.
    pub fn settle(&self) {
        let mut state = self.state();
        state.linger = false;
        // What one does may be what another waits for.
        state.controllers(true);
        state.controllers(true);
        drop(state);
        self.tell();
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        while let Some(request) = head(&mut read).await? {
            let line = format!("{} {}?{}", request.method, request.path, joined(&request.query));
            let fault = {
                let mut state = self.state();
                state.log.push(line.clone());
                let hit = state
                    .planned
                    .iter_mut()
                    .find(|p| p.times > 0 && p.method == request.method && line.contains(&p.part));
                let hit = hit.map(|planned| {
                    planned.times -= 1;
                    planned.fault.clone()
                });
                hit.or_else(|| state.nth(&line))
            };
            if self.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let answer = match fault {
                Some(Fault::Broken) => return Ok(()),
                Some(Fault::Answer(code, message)) => status(code, "Planned", &message),
                Some(Fault::Throttled(after)) => Reply {
                    after: Some(after),
                    ..status(429, "TooManyRequests", "slow down")
                },
                Some(Fault::Lost) => {
                    self.answer(&request);
                    return Ok(());
                }
                other => {
                    if let Some(Fault::Slow(pause)) = other {
                        tokio::time::sleep(pause).await;
                    }
                    if request
                        .query
                        .get("watch")
                        .is_some_and(|w| w == "true" || w == "1")
                    {
                        return self.stream(&request, &mut write).await;
                    }
                    self.answer(&request)
                }
            };
            let text = answer.body.to_string();
            let after = answer
                .after
                .map(|s| format!("Retry-After: {s}\r\n"))
                .unwrap_or_default();
            let head = format!(
                "HTTP/1.1 {} X\r\nContent-Type: application/json\r\n{after}Content-Length: {}\r\n\r\n",
                answer.status,
                text.len()
            );
            write.write_all((head + &text).as_bytes()).await?;
        }
        Ok(())
    }

    /// A watch: changes after a version, until it is cut.
    async fn stream(
        &self,
        request: &Request,
        write: &mut (impl AsyncWriteExt + Unpin),
    ) -> std::io::Result<()> {
        let mut changed = self.changed.subscribe();
        let mut cut = self.cut.subscribe();
        cut.mark_unchanged();
        write
            .write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
            )
            .await?;
        let (version_name, plural, namespace, _) = route(&request.path).expect("a collection");
        let mut from: u64 = request
            .query
            .get("resourceVersion")
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let selector = request.query.get("labelSelector").cloned().unwrap_or_default();
        loop {
            let (expired, lines) = {
                let state = self.state();
                let mut lines = VecDeque::new();
                for (at, word, key, object) in &state.history {
                    let here = key.0 == version_name
                        && key.1 == plural
                        && (namespace.is_empty() || key.2 == namespace)
                        && selected(object, &selector);
                    if *at > from && here {
                        lines.push_back((*at, json!({"type": word, "object": object}).to_string()));
                    }
                }
                (from < state.oldest, lines)
            };
            if expired {
                let gone = json!({"type": "ERROR", "object": status(410, "Expired", "too old").body});
                chunk(write, &gone.to_string()).await?;
                write.write_all(b"0\r\n\r\n").await?;
                return Ok(());
            }
            for (at, line) in lines {
                from = at;
                chunk(write, &line).await?;
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = cut.changed() => return Ok(()),
            }
        }
    }

    fn answer(&self, request: &Request) -> Reply {
        let mut state = self.state();
        let answer = state.answer(request);
        if request.method != "GET" && answer.status < 300 && self.automatic.load(Ordering::SeqCst) {
            state.controllers(true);
        }
        drop(state);
        self.tell();
        if answer.status < 300 && request.accept.contains("PartialObjectMetadata") {
            return reply(answer.status, partial(&answer.body));
        }
        answer
    }
}

async fn chunk(write: &mut (impl AsyncWriteExt + Unpin), line: &str) -> std::io::Result<()> {
    let text = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
    write.write_all(text.as_bytes()).await
}

/// Only what identifies and labels.
fn partial(body: &Value) -> Value {
    let strip = |object: &Value| json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
    match body.get("items").and_then(Value::as_array) {
        Some(items) => {
            let mut list = body.clone();
            list["items"] = items.iter().map(strip).collect();
            list
        }
        None if body["kind"] == "Status" => body.clone(),
        None => strip(body),
    }
}

async fn head(read: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if read.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let (mut length, mut accept, mut content) = (0, String::new(), String::new());
    loop {
        let mut header = String::new();
        read.read_line(&mut header).await?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "accept" => accept = value.trim().to_owned(),
            "content-type" => content = value.trim().to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    read.read_exact(&mut body).await?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let decoded = |text: &str| {
        percent_encoding::percent_decode_str(&text.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned()
    };
    Ok(Some(Request {
        method,
        path: path.to_owned(),
        query: query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (decoded(name), decoded(value)))
            .collect(),
        accept,
        content,
        body,
    }))
}

fn joined(query: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}
