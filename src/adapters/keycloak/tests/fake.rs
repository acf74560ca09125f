//! A small, strict Keycloak for faults that a real one does not give on demand.
//!
//! It knows the calls the adapter makes and no other, refuses what a real server of version 26.7 was seen to refuse, and
//! counts. A fault is given for the next requests that match it.

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(super) const SECRET: &str = "broker-secret-0123456789-0123456789-0123456789";
const REALM: &str = "/admin/realms/osb-bindings";
const TOKEN: &str = "/realms/osb-bindings/protocol/openid-connect/token";

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// This status, and nothing was done.
    Status(u16),
    /// It was done and the answer is lost.
    Lost,
    /// It was done and the answer comes after this time.
    Slow(Duration),
    /// Somebody else makes the same client first.
    Overtaken,
}

#[derive(Default)]
pub(super) struct State {
    pub clients: BTreeMap<String, Value>,
    pub seen: Vec<String>,
    pub wrong: Vec<String>,
    tokens: Vec<String>,
    pub token_life: u64,
    faults: VecDeque<(String, Fault)>,
}

#[derive(Clone)]
pub(super) struct Fake {
    pub state: Arc<Mutex<State>>,
    pub url: String,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    bearer: String,
    body: Vec<u8>,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            state: Arc::new(Mutex::new(State {
                token_life: 300,
                ..State::default()
            })),
            url: format!("http://{}", listener.local_addr().unwrap()),
        };
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        fake
    }

    /// The next request whose `METHOD /path?query` contains `part` meets this fault.
    pub fn fault(&self, part: &str, fault: Fault) {
        self.state
            .lock()
            .unwrap()
            .faults
            .push_back((part.to_owned(), fault));
    }

    /// No token that was given counts any more.
    pub fn forget_tokens(&self) {
        self.state.lock().unwrap().tokens.clear();
    }

    pub fn put(&self, client: Value) {
        let id = client["id"].as_str().unwrap().to_owned();
        self.state.lock().unwrap().clients.insert(id, client);
    }

    pub fn client(&self, client_id: &str) -> Option<Value> {
        let state = self.state.lock().unwrap();
        state
            .clients
            .values()
            .find(|client| client["clientId"] == client_id)
            .cloned()
    }

    /// How many requests contained `part`; an empty part counts all.
    pub fn count(&self, part: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.seen.iter().filter(|line| line.contains(part)).count()
    }

    pub fn forget_requests(&self) {
        self.state.lock().unwrap().seen.clear();
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(request) = read(&mut stream, &mut buffer).await {
            let query: Vec<String> = request.query.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let line = format!("{} {}?{}", request.method, request.path, query.join("&"));
            let fault = {
                let mut state = self.state.lock().unwrap();
                state.seen.push(line.clone());
                let at = state.faults.iter().position(|(part, _)| line.contains(part));
                at.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault)
            };
            if let Some(Fault::Overtaken) = fault {
                self.state.lock().unwrap().answer(&request);
            }
            let (status, body) = match fault {
                Some(Fault::Status(status)) => (status, json!({"error": "fault"})),
                _ => self.state.lock().unwrap().answer(&request),
            };
            match fault {
                Some(Fault::Lost) => return,
                Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
                _ => {}
            }
            let body = if status == 204 {
                String::new()
            } else {
                body.to_string()
            };
            let text = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            if stream.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..head_end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let method = first.next().unwrap().to_owned();
    let target = first.next().unwrap().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    while buffer.len() < head_end + 4 + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[head_end + 4..head_end + 4 + length].to_vec();
    buffer.drain(..head_end + 4 + length);
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let bearer = headers.get("authorization").map_or("", String::as_str);
    Some(Request {
        method,
        path: path.to_owned(),
        query: pairs(query),
        bearer: bearer.trim_start_matches("Bearer ").to_owned(),
        body,
    })
}

fn pairs(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| {
            let value = percent_encoding::percent_decode_str(value).decode_utf8().unwrap();
            (name.to_owned(), value.into_owned())
        })
        .collect()
}

impl State {
    pub fn forget_faults(&mut self) {
        self.faults.clear();
    }

    fn answer(&mut self, request: &Request) -> (u16, Value) {
        let (method, path) = (request.method.as_str(), request.path.as_str());
        if path == TOKEN && method == "POST" {
            return self.grant(&pairs(&String::from_utf8(request.body.clone()).unwrap()));
        }
        if !self.tokens.contains(&request.bearer) {
            return (401, json!({"error": "HTTP 401 Unauthorized"}));
        }
        let Some(below) = path
            .strip_prefix(REALM)
            .and_then(|rest| rest.strip_prefix("/clients"))
        else {
            self.wrong
                .push(format!("{method} {path}: the broker has no business there"));
            return (403, json!({"error": "HTTP 403 Forbidden"}));
        };
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        match (method, below.trim_start_matches('/')) {
            ("POST", "") => self.make(body),
            ("GET", "") => (200, self.list(&request.query)),
            ("GET", id) if id.ends_with("/client-secret") => {
                match self.clients.get(id.trim_end_matches("/client-secret")) {
                    Some(client) => (200, json!({"type": "secret", "value": client["secret"]})),
                    None => missing(),
                }
            }
            ("GET", id) => self
                .clients
                .get(id)
                .map_or_else(missing, |client| (200, client.clone())),
            ("PUT", id) => self.change(id, &body),
            ("DELETE", id) => self
                .clients
                .remove(id)
                .map_or_else(missing, |_| (204, Value::Null)),
            _ => {
                self.wrong.push(format!("{method} {path}"));
                (405, Value::Null)
            }
        }
    }

    fn grant(&mut self, fields: &BTreeMap<String, String>) -> (u16, Value) {
        let wanted = [
            ("client_id", "osb-broker"),
            ("client_secret", SECRET),
            ("grant_type", "client_credentials"),
        ];
        if wanted
            .iter()
            .any(|(name, value)| fields.get(*name).map(String::as_str) != Some(value))
        {
            let why = json!({"error": "unauthorized_client", "error_description": "Invalid client or Invalid client credentials"});
            return (401, why);
        }
        let token = format!("token-{}", self.seen.len());
        self.tokens.push(token.clone());
        (
            200,
            json!({"access_token": token, "expires_in": self.token_life, "token_type": "Bearer"}),
        )
    }

    fn make(&mut self, mut client: Value) -> (u16, Value) {
        if let Some(refusal) = self.refusal(&client) {
            return refusal;
        }
        let (id, name) = (
            client["id"].as_str().unwrap().to_owned(),
            client["clientId"].clone(),
        );
        if self.clients.contains_key(&id) || self.clients.values().any(|other| other["clientId"] == name) {
            return (
                409,
                json!({"errorMessage": format!("Client {name} already exists")}),
            );
        }
        // Keycloak adds things of its own.
        client["defaultClientScopes"]
            .as_array_mut()
            .unwrap()
            .push(json!("service_account"));
        client["attributes"]["client.secret.creation.time"] = json!("1790000000");
        client["nodeReRegistrationTimeout"] = json!(-1);
        self.clients.insert(id, client);
        (201, Value::Null)
    }

    fn change(&mut self, id: &str, change: &Value) -> (u16, Value) {
        if let Some(refusal) = self.refusal(change) {
            return refusal;
        }
        let Some(client) = self.clients.get_mut(id) else {
            return missing();
        };
        if change.get("id").is_some_and(|other| other != id) {
            return (400, json!({"error": "the body means another client"}));
        }
        for (member, value) in change.as_object().unwrap() {
            match (client[member.as_str()].as_object_mut(), value) {
                (Some(present), Value::Object(new)) => present.extend(new.clone()),
                _ => client[member.as_str()] = value.clone(),
            }
        }
        (204, Value::Null)
    }

    /// What Keycloak refuses about a client that is made or changed.
    fn refusal(&mut self, client: &Value) -> Option<(u16, Value)> {
        let known = [
            "id",
            "clientId",
            "name",
            "protocol",
            "enabled",
            "publicClient",
            "bearerOnly",
            "consentRequired",
            "serviceAccountsEnabled",
            "standardFlowEnabled",
            "implicitFlowEnabled",
            "directAccessGrantsEnabled",
            "fullScopeAllowed",
            "redirectUris",
            "webOrigins",
            "defaultClientScopes",
            "optionalClientScopes",
            "attributes",
            "protocolMappers",
            "clientAuthenticatorType",
            "secret",
        ];
        let members = client.as_object().cloned().unwrap_or_else(Map::new);
        if let Some(strange) = members.keys().find(|member| !known.contains(&member.as_str())) {
            self.wrong.push(format!("unknown member {strange}"));
            return Some((400, json!({"error": "unrecognized_field"})));
        }
        let long = ["name", "secret", "clientId"].iter().any(|member| {
            client[*member]
                .as_str()
                .is_some_and(|text| text.chars().count() > 255)
        });
        long.then(|| {
            self.wrong.push("a text longer than 255 characters".to_owned());
            (500, json!({"error": "unknown_error"}))
        })
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Value {
        let wanted = query.get("clientId").cloned().unwrap_or_default();
        let search = query.get("search").is_some_and(|search| search == "true");
        let mut all: Vec<&Value> = self
            .clients
            .values()
            .filter(|client| {
                let name = client["clientId"].as_str().unwrap();
                name == wanted || (search && name.contains(&wanted))
            })
            .collect();
        all.sort_by_key(|client| client["clientId"].as_str().unwrap().to_owned());
        let number = |name: &str, usual: usize| query.get(name).map_or(usual, |text| text.parse().unwrap());
        let some = all
            .into_iter()
            .skip(number("first", 0))
            .take(number("max", usize::MAX));
        Value::Array(some.cloned().collect())
    }
}

fn missing() -> (u16, Value) {
    (404, json!({"error": "Could not find client"}))
}
