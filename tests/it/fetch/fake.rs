//! Keycloak and Vault in the three requests of `chandler fetch`, strict in what real ones are strict in: the form and its
//! type, who logs in how, a signed log-in once, the role, the token, the namespace.

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, rt, web};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

pub const CLIENT: &str = "osb-b-aaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const SECRET: &str = "Client-secret_0123456789";
pub const DATA_PATH: &str = "v1/osb/data/tenant/iiiiiiiiiiiiiiiiiiiiiiiiii/osb-b-aaaaaaaaaaaaaaaaaaaaaaaaaa";
const LOGIN: &str = "/v1/auth/osb-jwt/login";
const TOKEN: &str = "/realms/osb-bindings/protocol/openid-connect/token";

/// Which of the three requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    Token,
    Login,
    Read,
}

/// How the client proves who it is.
#[derive(Clone)]
pub enum Client {
    Secret,
    /// Signed log-ins; what they are signed with is left to a real Keycloak.
    Key,
    /// This token.
    Token(String),
}

/// What both servers hold.
pub struct State {
    pub client: Client,
    pub enabled: bool,
    pub namespace: Option<String>,
    pub data: Value,
    /// None once the path is gone.
    pub version: Option<u64>,
    pub deletion_time: String,
    /// Seconds that a token of Vault lives.
    pub lease: u64,
    /// Answers that come before the right one.
    pub faults: BTreeMap<Ask, VecDeque<(u16, Value)>>,
    /// What was asked, in order.
    pub asked: Vec<Ask>,
    used: BTreeSet<String>,
    jwts: BTreeSet<String>,
    tokens: BTreeMap<String, Instant>,
}

/// Both servers at one address; they end with this value.
pub struct Fake {
    pub port: u16,
    pub state: Arc<Mutex<State>>,
    handle: ServerHandle,
}

impl Fake {
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State {
            client: Client::Secret,
            enabled: true,
            namespace: None,
            data: secret("b_one", "Password0123456789one"),
            version: Some(1),
            deletion_time: String::new(),
            lease: 900,
            faults: BTreeMap::new(),
            asked: Vec::new(),
            used: BTreeSet::new(),
            jwts: BTreeSet::new(),
            tokens: BTreeMap::new(),
        }));
        let shared = state.clone();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    let state = shared.clone();
                    App::new().default_service(web::to(move |request: HttpRequest, body: web::Bytes| {
                        let (status, answer) = state.lock().unwrap().answer(&request, &body);
                        let mut response = HttpResponse::build(status.try_into().unwrap());
                        async move { response.json(answer) }
                    }))
                })
                .workers(1)
                .disable_signals()
                .bind(("127.0.0.1", 0))
                .unwrap();
                let port = server.addrs()[0].port();
                let server = server.run();
                sender.send((port, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (port, handle) = receiver.recv().unwrap();
        Self { port, state, handle }
    }

    /// What the platform got when it bound: delivery `reference`.
    pub fn credentials(&self) -> Value {
        let address = format!("http://127.0.0.1:{}", self.port);
        let mut all = json!({
            "type": "postgresql", "credential_mode": "reference", "host": "db.example", "port": 5432,
            "keycloak": {"issuer": format!("{address}/realms/osb-bindings"), "token_uri": format!("{address}{TOKEN}"),
                         "client_id": CLIENT, "client_secret": SECRET, "grant_type": "client_credentials",
                         "audience": "osb-vault"},
            "vault": {"address": address, "auth_path": "osb-jwt", "role": "binding", "kv_mount": "osb",
                      "kv_path": DATA_PATH.trim_start_matches("v1/osb/data/"), "data_path": DATA_PATH},
        });
        if let Some(namespace) = &self.state.lock().unwrap().namespace {
            all["vault"]["namespace"] = json!(namespace);
        }
        all
    }

    /// Changes what the servers hold.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Puts answers before the right one.
    pub fn fail(&self, ask: Ask, answers: &[(u16, Value)]) {
        self.change(|state| {
            state
                .faults
                .entry(ask)
                .or_default()
                .extend(answers.iter().cloned())
        });
    }

    /// How often something was asked.
    pub fn asked(&self, ask: Ask) -> usize {
        self.state
            .lock()
            .unwrap()
            .asked
            .iter()
            .filter(|a| **a == ask)
            .count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

/// A binding's credentials.
pub fn secret(username: &str, password: &str) -> Value {
    json!({
        "type": "postgresql", "host": "db.example", "port": 5432, "username": username, "password": password,
        "jdbcUrl": format!("jdbc:postgresql://db.example:5432/app?user={username}&password={password}"), "tls": false,
    })
}

fn header<'a>(request: &'a HttpRequest, name: &str) -> &'a str {
    request
        .headers()
        .get(name)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
}

fn errors(status: u16, text: &str) -> (u16, Value) {
    (status, json!({"errors": [text]}))
}

impl State {
    fn answer(&mut self, request: &HttpRequest, body: &[u8]) -> (u16, Value) {
        let ask = match (request.method().as_str(), request.path()) {
            ("POST", TOKEN) => Ask::Token,
            ("POST", LOGIN) => Ask::Login,
            ("GET", path) if path.trim_start_matches('/') == DATA_PATH => Ask::Read,
            _ => return errors(404, "no handler for route"),
        };
        self.asked.push(ask);
        if let Some(fault) = self.faults.get_mut(&ask).and_then(VecDeque::pop_front) {
            return fault;
        }
        match ask {
            Ask::Token => self.token(request, body),
            Ask::Login => self.login(request, body),
            Ask::Read => self.read(request),
        }
    }

    fn token(&mut self, request: &HttpRequest, body: &[u8]) -> (u16, Value) {
        let refuse = |status, error: &str| (status, json!({"error": error, "error_description": "words"}));
        if !header(request, "content-type").starts_with("application/x-www-form-urlencoded") {
            return refuse(415, "unsupported");
        }
        let text = std::str::from_utf8(body).unwrap();
        let form: BTreeMap<String, String> = web::Query::<BTreeMap<String, String>>::from_query(text)
            .unwrap()
            .into_inner();
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if field("grant_type") != "client_credentials" {
            return refuse(400, "unsupported_grant_type");
        }
        let basic = header(request, "authorization")
            .strip_prefix("Basic ")
            .and_then(|basic| String::from_utf8(BASE64.decode(basic.as_bytes()).ok()?).ok());
        let basic = basic.as_deref().and_then(|both| both.split_once(':'));
        // Both are percent-encoded there (RFC 6749).
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8()
                .unwrap()
                .into_owned()
        };
        let by_secret = basic.map_or_else(
            || (field("client_id").to_owned(), field("client_secret").to_owned()),
            |(id, secret)| (decoded(id), decoded(secret)),
        );
        let is_assertion =
            field("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        let assertion = field("client_assertion");
        let known = match &self.client {
            Client::Secret => by_secret == (CLIENT.to_owned(), SECRET.to_owned()),
            Client::Token(token) => is_assertion && assertion == token,
            Client::Key => is_assertion && self.signed(request, assertion),
        };
        if !known || !self.enabled {
            return refuse(
                401,
                if self.enabled {
                    "unauthorized_client"
                } else {
                    "invalid_client"
                },
            );
        }
        let jwt = format!("jwt-of-keycloak-{}", self.jwts.len());
        self.jwts.insert(jwt.clone());
        (
            200,
            json!({"access_token": jwt, "expires_in": 120, "token_type": "Bearer"}),
        )
    }

    fn signed(&mut self, request: &HttpRequest, assertion: &str) -> bool {
        let claims = assertion
            .split('.')
            .nth(1)
            .and_then(|part| BASE64URL_NOPAD.decode(part.as_bytes()).ok())
            .and_then(|part| serde_json::from_slice::<Value>(&part).ok())
            .unwrap_or_default();
        let issuer = format!("http://{}/realms/osb-bindings", header(request, "host"));
        let jti = claims["jti"].as_str().unwrap_or_default().to_owned();
        claims["iss"] == CLIENT && claims["sub"] == CLIENT && claims["aud"] == issuer && self.used.insert(jti)
    }

    fn in_namespace(&self, request: &HttpRequest) -> bool {
        header(request, "x-vault-namespace") == self.namespace.as_deref().unwrap_or_default()
    }

    fn login(&mut self, request: &HttpRequest, body: &[u8]) -> (u16, Value) {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        if !self.in_namespace(request) {
            return errors(403, "permission denied");
        }
        if asked["role"] != "binding" {
            return errors(400, "role could not be found");
        }
        if !asked["jwt"].as_str().is_some_and(|jwt| self.jwts.contains(jwt)) {
            return errors(400, "error validating token: invalid audience (aud) claim");
        }
        let token = format!("hvb.token-of-vault-{}", self.tokens.len());
        self.tokens
            .insert(token.clone(), Instant::now() + Duration::from_secs(self.lease));
        (
            200,
            json!({"auth": {"client_token": token, "lease_duration": self.lease, "renewable": false}}),
        )
    }

    fn read(&self, request: &HttpRequest) -> (u16, Value) {
        let until = self.tokens.get(header(request, "x-vault-token"));
        let ended = until.is_none_or(|until| *until <= Instant::now());
        if ended || !self.in_namespace(request) {
            return errors(403, "permission denied");
        }
        let Some(version) = self.version else {
            return (404, json!({"errors": []}));
        };
        let metadata = json!({
            "version": version, "created_time": "2026-11-21T10:00:00Z", "deletion_time": self.deletion_time,
            "destroyed": false, "custom_metadata": null,
        });
        (
            200,
            json!({"lease_duration": 0, "data": {"data": self.data, "metadata": metadata}}),
        )
    }
}
