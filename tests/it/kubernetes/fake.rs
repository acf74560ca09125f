//! An API server in this process: a map of objects behind real HTTP on loopback, with faults on demand.
//!
//! It knows what the adapter relies on: server-side apply with fields that go when they are applied no more, generations,
//! finalizers, namespaces that take their content along, pages, watches with history, metadata-only answers. What
//! controllers do happens when [`Fake::settle`] is called, or by itself after every write once [`Fake::automatic`] was.

use serde_json::{Map, Value, json};
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

struct Planned {
    method: &'static str,
    part: String,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    applied: BTreeMap<Key, Value>,
    version: u64,
    /// Version, word, key, object.
    history: Vec<(u64, &'static str, Key, Value)>,
    /// Watches from before this version have expired.
    oldest: u64,
    planned: Vec<Planned>,
    log: Vec<String>,
    custom: BTreeMap<String, Vec<(String, String)>>,
    /// Namespaces stay until [`Fake::settle`] when set.
    linger: bool,
    /// Deleted pods stay until told otherwise when set.
    pods_stay: bool,
    /// What pods become when controllers make them.
    pods_fail: Option<Value>,
}

/// The server; it goes when the last handle does.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    cut: Arc<watch::Sender<u64>>,
    automatic: Arc<AtomicBool>,
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

struct Reply {
    status: u16,
    body: Value,
    after: Option<u64>,
}

fn reply(status: u16, body: Value) -> Reply {
    Reply {
        status,
        body,
        after: None,
    }
}

/// A refusal as the API server writes it.
fn status(code: u16, reason: &str, message: &str) -> Reply {
    reply(
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}),
    )
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
        self.state().controllers(true);
        self.tell();
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
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
                hit.map(|planned| {
                    planned.times -= 1;
                    planned.fault.clone()
                })
            };
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
            write.write_all(head.as_bytes()).await?;
            write.write_all(text.as_bytes()).await?;
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

/// Version, plural, namespace and name of a path.
fn route(path: &str) -> Option<Key> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let text = |part: &str| part.to_owned();
    match rest {
        ["namespaces", namespace, plural] => Some((version, text(plural), text(namespace), String::new())),
        ["namespaces", namespace, plural, name] => Some((version, text(plural), text(namespace), text(name))),
        [plural] => Some((version, text(plural), String::new(), String::new())),
        [plural, name] => Some((version, text(plural), String::new(), text(name))),
        _ => None,
    }
}

/// Label selectors as the adapter writes them: `a=b`, `a`, `!a`.
fn selected(object: &Value, selector: &str) -> bool {
    let label = |name: &str| object["metadata"]["labels"].get(name).and_then(Value::as_str);
    selector
        .split(',')
        .filter(|part| !part.is_empty())
        .all(|part| match part.split_once('=') {
            Some((name, value)) => label(name) == Some(value),
            None => match part.strip_prefix('!') {
                Some(name) => label(name).is_none(),
                None => label(part).is_some(),
            },
        })
}

fn merge(into: &mut Value, from: &Value, drop_null: bool) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                if drop_null && value.is_null() {
                    into.remove(name);
                } else {
                    merge(into.entry(name).or_insert(Value::Null), value, drop_null);
                }
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Takes away what was applied before and is applied no more.
fn unapply(object: &mut Value, before: &Value, now: &Value) {
    let (Value::Object(object), Value::Object(before)) = (object, before) else {
        return;
    };
    for (name, old) in before {
        match now.get(name) {
            None => {
                object.remove(name);
            }
            Some(new) => unapply(object.entry(name).or_insert(Value::Null), old, new),
        }
    }
}

impl State {
    fn store(&mut self, key: Key, mut object: Value) -> Value {
        let before = self.objects.get(&key);
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        let keep = |name: &str| {
            before
                .map(|b| b["metadata"][name].clone())
                .filter(|v| !v.is_null())
        };
        let uid = keep("uid").unwrap_or_else(|| format!("uid-{}", self.version + 1).into());
        metadata.insert("uid".into(), uid);
        let created = keep("creationTimestamp").unwrap_or_else(|| "2026-11-21T12:00:00Z".into());
        metadata.insert("creationTimestamp".into(), created);
        let generation = before
            .and_then(|b| b["metadata"]["generation"].as_i64())
            .unwrap_or(0);
        metadata.insert("generation".into(), generation.into());
        if before.is_none_or(|b| b["spec"] != object["spec"] || generation == 0) {
            object["metadata"]["generation"] = (generation + 1).into();
        }
        if let Some(before) = before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if *before == object {
                return object;
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let word = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.history
            .push((self.version, word, key.clone(), object.clone()));
        self.objects.insert(key, object.clone());
        object
    }

    fn gone(&mut self, key: &Key) {
        self.applied.remove(key);
        let Some(mut object) = self.objects.remove(key) else {
            return;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.history.push((self.version, "DELETED", key.clone(), object));
        if key.1 == "namespaces" {
            let inside: Vec<Key> = self.objects.keys().filter(|k| k.2 == key.3).cloned().collect();
            for key in inside {
                self.gone(&key);
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Reply {
        if request.path == "/version" {
            return reply(200, json!({"gitVersion": "v1.34.1-fake"}));
        }
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        if let ["apis", group, version] = parts.as_slice() {
            return match self.custom.get(&format!("{group}/{version}")) {
                None => status(
                    404,
                    "NotFound",
                    "the server could not find the requested resource",
                ),
                Some(kinds) => {
                    let resources: Vec<Value> = kinds
                        .iter()
                        .map(|(kind, plural)| json!({"name": plural, "kind": kind, "namespaced": true}))
                        .collect();
                    reply(200, json!({"kind": "APIResourceList", "resources": resources}))
                }
            };
        }
        let Some(key) = route(&request.path) else {
            return status(404, "NotFound", "no such path");
        };
        if request.method == "GET" && key.3.is_empty() {
            return self.list(&key, request);
        }
        match request.method.as_str() {
            "GET" => match self.objects.get(&key) {
                Some(object) => reply(200, object.clone()),
                None => status(404, "NotFound", "not found"),
            },
            "PATCH" => self.patch(&key, request),
            "DELETE" => self.remove(&key, request),
            _ => status(405, "MethodNotAllowed", "no"),
        }
    }

    fn list(&self, key: &Key, request: &Request) -> Reply {
        let empty = String::new();
        let selector = request.query.get("labelSelector").unwrap_or(&empty);
        let limit: usize = request
            .query
            .get("limit")
            .and_then(|l| l.parse().ok())
            .unwrap_or(usize::MAX);
        let skip: usize = request
            .query
            .get("continue")
            .and_then(|c| c.parse().ok())
            .unwrap_or(0);
        let all: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(k, _)| k.0 == key.0 && k.1 == key.1 && (key.2.is_empty() || k.2 == key.2))
            .map(|(_, object)| object)
            .filter(|object| selected(object, selector))
            .collect();
        let page: Vec<&Value> = all.iter().skip(skip).take(limit).copied().collect();
        let next = if skip + page.len() < all.len() {
            (skip + page.len()).to_string()
        } else {
            String::new()
        };
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": next});
        reply(200, json!({"kind": "List", "metadata": metadata, "items": page}))
    }

    fn patch(&mut self, key: &Key, request: &Request) -> Reply {
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            return status(400, "BadRequest", "no JSON");
        };
        if !key.2.is_empty() {
            let home = (
                "v1".to_owned(),
                "namespaces".to_owned(),
                String::new(),
                key.2.clone(),
            );
            match self.objects.get(&home) {
                None => return status(404, "NotFound", &format!("namespaces \"{}\" not found", key.2)),
                Some(home)
                    if home["metadata"].get("deletionTimestamp").is_some()
                        && !self.objects.contains_key(key) =>
                {
                    let text = format!(
                        "{} \"{}\" is forbidden: unable to create new content in namespace {} because it is being terminated",
                        key.1, key.3, key.2
                    );
                    return status(403, "Forbidden", &text);
                }
                Some(_) => {}
            }
        }
        let there = self.objects.get(key).cloned();
        let mut object = there.clone().unwrap_or(json!({}));
        if request.content.contains("apply-patch") {
            if let Some(refused) = unchangeable(key, there.as_ref(), &body) {
                return refused;
            }
            if let Some(before) = self.applied.get(key) {
                unapply(&mut object, before, &body);
            }
            merge(&mut object, &body, false);
        } else if there.is_none() {
            return status(404, "NotFound", "not found");
        } else {
            merge(&mut object, &body, true);
        }
        if request.query.get("dryRun").is_some() {
            return reply(200, object);
        }
        if request.content.contains("apply-patch") {
            self.applied.insert(key.clone(), body);
        }
        let created = there.is_none();
        let stored = self.store(key.clone(), object);
        reply(if created { 201 } else { 200 }, stored)
    }

    fn remove(&mut self, key: &Key, request: &Request) -> Reply {
        let Some(mut object) = self.objects.get(key).cloned() else {
            return status(404, "NotFound", "not found");
        };
        let params: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        if let Some(uid) = params.pointer("/preconditions/uid")
            && *uid != object["metadata"]["uid"]
        {
            return status(409, "Conflict", "the UID in the precondition differs");
        }
        let policy = params["propagationPolicy"]
            .as_str()
            .unwrap_or("Background")
            .to_owned();
        let held = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty());
        let waits = match key.1.as_str() {
            "namespaces" => true,
            "statefulsets" | "deployments" | "jobs" => policy == "Foreground" || policy == "Orphan",
            _ => held,
        };
        if policy != "Orphan" {
            self.end_pods(key);
        }
        if waits || held {
            object["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:01Z".into();
            object["metadata"]["deletedBy"] = policy.into();
            let object = self.store(key.clone(), object);
            if key.1 == "namespaces" && !self.linger {
                self.controllers(false);
            }
            return reply(200, object);
        }
        self.gone(key);
        reply(200, json!({"kind": "Status", "status": "Success"}))
    }

    /// Deletes the pods a set made.
    fn end_pods(&mut self, key: &Key) {
        let pods: Vec<Key> = self
            .objects
            .iter()
            .filter(|(k, pod)| k.1 == "pods" && k.2 == key.2 && pod["madeBy"] == key.3.as_str())
            .map(|(k, _)| k.clone())
            .collect();
        for pod in pods {
            if self.pods_stay {
                let mut object = self.objects[&pod].clone();
                object["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:01Z".into();
                self.store(pod, object);
            } else {
                self.gone(&pod);
            }
        }
    }

    /// What controllers would do now.
    fn controllers(&mut self, make: bool) {
        for (key, object) in self.objects.clone() {
            let going = object["metadata"].get("deletionTimestamp").is_some();
            let held = object["metadata"]["finalizers"]
                .as_array()
                .is_some_and(|f| !f.is_empty());
            let pods = self
                .objects
                .values()
                .any(|pod| pod["madeBy"] == key.3.as_str() && pod["metadata"]["namespace"] == key.2.as_str());
            match key.1.as_str() {
                "namespaces" if going && !held => self.gone(&key),
                "statefulsets" | "deployments" | "jobs" if going => {
                    if !pods || object["metadata"]["deletedBy"] == "Orphan" {
                        self.gone(&key);
                    }
                }
                "pods" if going && !self.pods_stay => self.gone(&key),
                "statefulsets" if make => self.play_set(&key, &object),
                "jobs" if make => {
                    let mut done = object.clone();
                    done["status"] =
                        json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]});
                    self.store(key, done);
                }
                "resourcequotas" if make => {
                    let mut counted = object.clone();
                    counted["status"] = json!({"hard": counted["spec"]["hard"]});
                    self.store(key, counted);
                }
                "persistentvolumeclaims" if make => {
                    let mut bound = object.clone();
                    let size = bound["spec"]["resources"]["requests"]["storage"].clone();
                    bound["status"] = json!({"phase": "Bound", "capacity": {"storage": size}});
                    self.store(key, bound);
                }
                _ => {}
            }
        }
    }

    fn play_set(&mut self, key: &Key, set: &Value) {
        let replicas = set["spec"]["replicas"].as_i64().unwrap_or(1);
        for n in 0..replicas {
            for template in set["spec"]["volumeClaimTemplates"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let name = format!("{}-{}-{n}", template["metadata"]["name"].as_str().unwrap(), key.3);
                let volume = (
                    "v1".to_owned(),
                    "persistentvolumeclaims".to_owned(),
                    key.2.clone(),
                    name.clone(),
                );
                if self.objects.contains_key(&volume) {
                    continue;
                }
                let mut spec = template["spec"].clone();
                if spec.get("storageClassName").is_none() {
                    spec["storageClassName"] = "standard".into();
                }
                let size = spec["resources"]["requests"]["storage"].clone();
                let object = json!({
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "metadata": {"name": name, "namespace": key.2, "labels": template["metadata"]["labels"]},
                    "spec": spec, "status": {"phase": "Bound", "capacity": {"storage": size}},
                });
                self.store(volume, object);
            }
            let name = format!("{}-{n}", key.3);
            let pod = ("v1".to_owned(), "pods".to_owned(), key.2.clone(), name.clone());
            let status = self.pods_fail.clone().unwrap_or_else(|| {
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "main", "ready": true, "restartCount": 0, "state": {"running": {}}}]})
            });
            let mut object = self.objects.get(&pod).cloned().unwrap_or_else(|| {
                json!({
                    "apiVersion": "v1", "kind": "Pod", "madeBy": key.3,
                    "metadata": {"name": name, "namespace": key.2, "labels": set["spec"]["template"]["metadata"]["labels"]},
                    "spec": set["spec"]["template"]["spec"],
                })
            });
            object["status"] = status;
            self.store(pod, object);
        }
        let ready = if self.pods_fail.is_some() { 0 } else { replicas };
        let mut object = set.clone();
        object["status"] = json!({
            "observedGeneration": set["metadata"]["generation"], "replicas": replicas, "readyReplicas": ready,
            "updatedReplicas": replicas, "availableReplicas": ready, "currentReplicas": replicas,
            "currentRevision": "r1", "updateRevision": "r1",
        });
        self.store(key.clone(), object);
    }
}

/// What the real server does not let anybody change.
fn unchangeable(key: &Key, there: Option<&Value>, wanted: &Value) -> Option<Reply> {
    let there = there?;
    let differs = |pointer: &str| there.pointer(pointer) != wanted.pointer(pointer);
    let immutable = match key.1.as_str() {
        "jobs" => differs("/spec/template"),
        "statefulsets" => {
            differs("/spec/volumeClaimTemplates") || differs("/spec/selector") || differs("/spec/serviceName")
        }
        _ => false,
    };
    immutable.then(|| {
        let text = format!(
            "{} \"{}\" is invalid: spec: Forbidden: updates to these fields are forbidden",
            key.1, key.3
        );
        status(422, "Invalid", &text)
    })
}

/// A map from pairs, for labels in tests.
pub fn labels(pairs: &[(&str, &str)]) -> Value {
    let map: Map<String, Value> = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).into()))
        .collect();
    Value::Object(map)
}
