//! A strict vault that fails on demand: what a real one does not do when a test needs it.
//!
//! It refuses everything the client has no business with (a path, a method, a body it does not know), so that a change of
//! the client's calls is noticed here first. The real servers' tests say whether it behaves as they do.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What goes wrong with one request.
#[derive(Clone)]
pub enum Fault {
    /// This is answered and nothing is done.
    Answer(u16, Value),
    /// It is done, and the connection ends without an answer.
    Lost,
    /// It is answered after this time.
    Slow(Duration),
    /// Somewhere else is to be asked.
    Elsewhere(String),
    /// Refused, with all that was sent in the reason.
    Echo,
}

/// A secret with its versions.
#[derive(Default, Clone)]
pub struct Entry {
    pub versions: Vec<Value>,
    pub metadata: Value,
}

pub struct State {
    /// Every request as `METHOD path`, without health.
    pub seen: Vec<String>,
    /// The namespace of each request, by the first part of its path.
    pub namespaces: BTreeMap<String, String>,
    /// The next requests that contain the text fail, once each.
    pub faults: VecDeque<(String, Fault)>,
    pub health: Value,
    pub secrets: BTreeMap<String, Entry>,
    /// Valid tokens with their end.
    pub tokens: BTreeMap<String, Instant>,
    /// What a log-in grants.
    pub life: u64,
    pub renewable: bool,
    /// What a renewal grants.
    pub renewed_life: u64,
    pub secret_ids: BTreeSet<String>,
    /// Wrapping tokens that were not used: what is in them, and where it came from.
    pub wrapped: BTreeMap<String, (String, String)>,
    /// Entities by their alias.
    pub entities: BTreeMap<String, String>,
    /// Prefixes of paths that the policy does not allow.
    pub denied: Vec<String>,
    made: u64,
}

#[derive(Clone)]
pub struct Fake {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            state: Arc::new(Mutex::new(State {
                seen: Vec::new(),
                namespaces: BTreeMap::new(),
                faults: VecDeque::new(),
                health: json!({"initialized": true, "sealed": false, "standby": false, "version": "2.6.2"}),
                secrets: BTreeMap::new(),
                tokens: BTreeMap::new(),
                life: 3600,
                renewable: true,
                renewed_life: 3600,
                secret_ids: BTreeSet::from(["the-secret-id".to_owned()]),
                wrapped: BTreeMap::new(),
                entities: BTreeMap::new(),
                denied: Vec::new(),
                made: 0,
            })),
        };
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = serving.clone();
                tokio::spawn(async move { fake.serve(stream).await });
            }
        });
        fake
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn fail(&self, request: &str, fault: Fault) {
        self.state().faults.push_back((request.to_owned(), fault));
    }

    /// What was asked since the last look.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.state().seen)
    }

    /// Ends all tokens, as a restart of a vault in memory does.
    pub fn revoke_all(&self) {
        self.state().tokens.clear();
    }

    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut read = Vec::new();
        loop {
            let (head, body) = request(&mut stream, &mut read).await?;
            let (status, more, answer) = self.answer(&head, &body).await?;
            let text = if answer.is_null() {
                String::new()
            } else {
                answer.to_string()
            };
            let length = text.len();
            let response = format!("HTTP/1.1 {status} x\r\n{more}content-length: {length}\r\n\r\n{text}");
            stream.write_all(response.as_bytes()).await.ok()?;
        }
    }

    /// The answer; none where the connection is to end.
    async fn answer(&self, head: &Head, body: &[u8]) -> Option<(u16, String, Value)> {
        let line = format!("{} {}", head.method, head.path);
        let fault = {
            let mut state = self.state();
            let first = head.path.split(['/', '?']).next().unwrap().to_owned();
            state.namespaces.insert(first, head.namespace.clone());
            if !head.path.starts_with("sys/health") {
                state.seen.push(line.clone());
            }
            let hit = state
                .faults
                .iter()
                .position(|(text, _)| line.contains(text.as_str()));
            hit.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault)
        };
        let value = serde_json::from_slice(body).unwrap_or(Value::Null);
        match fault {
            None => {}
            Some(Fault::Answer(status, answer)) => return Some((status, String::new(), answer)),
            Some(Fault::Elsewhere(to)) => return Some((307, format!("location: {to}\r\n"), Value::Null)),
            Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
            Some(Fault::Echo) => {
                let said = format!("{} {}", head.token, String::from_utf8_lossy(body));
                return Some((400, String::new(), json!({"errors": [said]})));
            }
            Some(Fault::Lost) => {
                self.state().act(head, &value);
                return None;
            }
        }
        let (status, answer) = self.state().act(head, &value);
        Some((status, String::new(), answer))
    }
}

/// The head of a request.
struct Head {
    method: String,
    /// Without `/v1/`.
    path: String,
    token: String,
    namespace: String,
}

async fn request(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<(Head, Vec<u8>)> {
    let end = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        let mut some = [0; 4096];
        match stream.read(&mut some).await {
            Ok(n) if n > 0 => read.extend_from_slice(&some[..n]),
            _ => return None,
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).unwrap();
    read.drain(..end + 4);
    let header = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    assert_eq!(header("x-vault-request").as_deref(), Some("true"));
    let length: usize = header("content-length").map_or(0, |length| length.parse().unwrap());
    while read.len() < length {
        let mut some = [0; 4096];
        match stream.read(&mut some).await {
            Ok(n) if n > 0 => read.extend_from_slice(&some[..n]),
            _ => return None,
        }
    }
    let body = read.drain(..length).collect();
    let mut words = head.split(' ');
    let method = words.next().unwrap().to_owned();
    let path = words.next().unwrap().strip_prefix("/v1/").unwrap().to_owned();
    let token = header("x-vault-token").unwrap_or_default();
    let namespace = header("x-vault-namespace").unwrap_or_default();
    Some((
        Head {
            method,
            path,
            token,
            namespace,
        },
        body,
    ))
}

fn errors(text: &str) -> Value {
    json!({"errors": [text]})
}

const NOTHING: fn() -> (u16, Value) = || (404, json!({"errors": []}));

impl State {
    fn act(&mut self, head: &Head, body: &Value) -> (u16, Value) {
        let (method, path) = (head.method.as_str(), head.path.as_str());
        match (method, path.split('?').next().unwrap()) {
            ("GET", "sys/health") => return (200, self.health.clone()),
            ("POST", "auth/approle/login") => {
                let known = body["role_id"] == "the-role-id"
                    && body["secret_id"]
                        .as_str()
                        .is_some_and(|id| self.secret_ids.contains(id));
                return if known {
                    self.grant()
                } else {
                    (400, errors("invalid role or secret ID"))
                };
            }
            ("POST", "auth/kubernetes/login") => {
                let known = body == &json!({"role": "osb-broker", "jwt": "pod-token"});
                return if known {
                    self.grant()
                } else {
                    (403, errors("permission denied"))
                };
            }
            ("POST", "auth/osb-jwt/login") => return (400, errors("error parsing token")),
            ("POST", "sys/wrapping/lookup") => {
                let found = self.wrapped.get(body["token"].as_str().unwrap());
                return match found {
                    Some((_, origin)) => (200, json!({"data": {"creation_path": origin}})),
                    None => (400, errors("wrapping token is not valid or does not exist")),
                };
            }
            ("POST", "sys/wrapping/unwrap") => {
                return match self.wrapped.remove(&head.token) {
                    Some((secret_id, _)) => (200, json!({"data": {"secret_id": secret_id}})),
                    None => (400, errors("wrapping token is not valid or does not exist")),
                };
            }
            _ => {}
        }
        let known = self
            .tokens
            .get(&head.token)
            .is_some_and(|end| *end > Instant::now());
        if !known || self.denied.iter().any(|denied| path.starts_with(denied.as_str())) {
            return (403, errors("permission denied"));
        }
        match (method, path) {
            ("GET", "auth/token/lookup-self") => (200, json!({"data": {}})),
            ("POST", "auth/token/renew-self") if self.renewable => {
                let life = self.renewed_life;
                self.tokens
                    .insert(head.token.clone(), Instant::now() + Duration::from_secs(life));
                (
                    200,
                    json!({"auth": {"client_token": head.token, "lease_duration": life, "renewable": true}}),
                )
            }
            ("GET", "sys/auth") => (200, json!({"data": {"osb-jwt/": {"accessor": "auth_jwt_1"}}})),
            ("POST", "identity/lookup/entity") => {
                assert_eq!(body["alias_mount_accessor"], "auth_jwt_1");
                match self.entities.get(body["alias_name"].as_str().unwrap()) {
                    Some(id) => (200, json!({"data": {"id": id}})),
                    None => (204, Value::Null),
                }
            }
            ("DELETE", path) if path.starts_with("identity/entity/id/") => {
                let id = path.rsplit('/').next().unwrap();
                self.entities.retain(|_, found| found != id);
                (204, Value::Null)
            }
            ("POST", "sys/capabilities-self") => {
                let paths = body["paths"].as_array().unwrap().iter();
                let all = paths.map(|path| (path.as_str().unwrap().to_owned(), json!(["deny"])));
                (200, json!({"data": all.collect::<serde_json::Map<_, _>>()}))
            }
            (_, path) if path.starts_with("osb/") || path.starts_with("osb-int/") => {
                self.kv(method, path, body)
            }
            _ => (
                400,
                errors(&format!("a strict fake does not know {method} {path}")),
            ),
        }
    }

    fn grant(&mut self) -> (u16, Value) {
        self.made += 1;
        let token = format!("hvs.token-number-{}", self.made);
        let end = Instant::now() + Duration::from_secs(self.life);
        self.tokens.insert(token.clone(), end);
        let (life, renewable) = (self.life, self.renewable);
        (
            200,
            json!({"auth": {"client_token": token, "lease_duration": life, "renewable": renewable}}),
        )
    }

    fn kv(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        if let Some(folder) = path.strip_suffix("/?list=true") {
            return self.list(&folder.replacen("/metadata", "", 1));
        }
        let (data, key) = if path.contains("/data/") {
            (true, path.replacen("/data/", "/", 1))
        } else {
            (false, path.replacen("/metadata/", "/", 1))
        };
        match (method, data) {
            ("POST", true) => {
                let entry = self.secrets.entry(key).or_default();
                if body["options"]["cas"].as_u64() != Some(entry.versions.len() as u64) {
                    return (
                        400,
                        errors("check-and-set parameter did not match the current version"),
                    );
                }
                assert!(body["data"].is_object());
                entry.versions.push(body["data"].clone());
                (200, json!({"data": {"version": entry.versions.len()}}))
            }
            ("GET", true) => match self.secrets.get(&key).and_then(|entry| entry.versions.last()) {
                Some(data) => (200, json!({"data": {"data": data}})),
                None => NOTHING(),
            },
            ("POST", false) => {
                let notes = body["custom_metadata"].as_object().unwrap();
                assert!(
                    notes
                        .values()
                        .all(|note| (1..=512).contains(&note.as_str().unwrap().len()))
                );
                self.secrets.entry(key).or_default().metadata = body.clone();
                (204, Value::Null)
            }
            ("GET", false) => match self.secrets.get(&key) {
                Some(entry) => (200, json!({"data": {"current_version": entry.versions.len()}})),
                None => NOTHING(),
            },
            ("DELETE", false) => {
                self.secrets.remove(&key);
                (204, Value::Null)
            }
            _ => (405, errors("unsupported operation")),
        }
    }

    fn list(&self, folder: &str) -> (u16, Value) {
        let folder = format!("{folder}/");
        let below: BTreeSet<String> = self
            .secrets
            .keys()
            .filter_map(|key| key.strip_prefix(&folder))
            .map(|rest| match rest.split_once('/') {
                Some((next, _)) => format!("{next}/"),
                None => rest.to_owned(),
            })
            .collect();
        if below.is_empty() {
            NOTHING()
        } else {
            (200, json!({"data": {"keys": below}}))
        }
    }
}
