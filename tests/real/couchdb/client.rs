//! A CouchDB-like server and an application that uses it, for the fake and for real ones.

use crate::contract::{Server, Session};
use crate::services::Service;
use crate::support::endpoint;
use async_trait::async_trait;
use chandler::adapters::credentials::couchdb::CouchDb;
use chandler::domain::secret::Secret;
use chandler::ports::{CredentialMechanism, NewUser, Target};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// A server whose database is `app`.
pub struct Couch {
    /// Where it listens.
    pub port: u16,
    /// The mechanism under test.
    pub mechanism: CouchDb,
    /// Its administrator.
    pub admin: Secret,
}

/// Somebody who logs in for each request.
#[derive(Clone)]
pub struct Client {
    port: u16,
    username: String,
    password: String,
}

/// An administrator's secret, for starting a server with it.
pub fn admin() -> Secret {
    CouchDb::new().generate_admin(&Map::new()).unwrap()
}

impl Couch {
    /// The server at `port`.
    pub fn at(port: u16, admin: Secret) -> Self {
        let mechanism = CouchDb::new();
        Self {
            port,
            mechanism,
            admin,
        }
    }

    /// Somebody who logs in.
    pub fn client(&self, login: &Secret) -> Client {
        Client::new(self.port, login.text("username"), login.text("password"))
    }
}

impl Client {
    /// Somebody who logs in to the server at `port`.
    pub fn new(port: u16, username: &str, password: &str) -> Self {
        let (username, password) = (username.to_owned(), password.to_owned());
        Self {
            port,
            username,
            password,
        }
    }

    /// Sends a request; answers status and JSON.
    pub async fn send(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(10))
            .no_proxy()
            .build()
            .unwrap();
        let mut request = client
            .request(method.parse().unwrap(), url)
            .basic_auth(&self.username, Some(&self.password));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or_default())
    }

    /// Writes a document over what is there.
    pub async fn put(&self, path: &str, mut document: Value) -> Result<(), String> {
        let (_, found) = self.send("GET", path, None).await;
        if let Some(revision) = found.get("_rev") {
            document["_rev"] = revision.clone();
        }
        match self.send("PUT", path, Some(document)).await {
            (200..300, _) => Ok(()),
            (status, answer) => Err(format!("{status} {answer}")),
        }
    }
}

#[async_trait]
impl Session for Client {
    async fn write(&mut self, key: &str, value: &str) -> Result<(), String> {
        self.put(&format!("/app/{key}"), json!({"value": value})).await
    }

    async fn read(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.send("GET", &format!("/app/{key}"), None).await {
            (200, document) => Ok(document["value"].as_str().map(str::to_owned)),
            (404, _) => Ok(None),
            (status, answer) => Err(format!("{status} {answer}")),
        }
    }

    async fn alive(&mut self) -> bool {
        self.send("GET", "/app", None).await.0 == 200
    }
}

#[async_trait]
impl Server for Couch {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &self.mechanism
    }

    fn target(&self) -> Target {
        let endpoint = endpoint("client", self.port);
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: json!({"database": "app"}).as_object().unwrap().clone(),
            admin: self.admin.clone(),
            revoked: Vec::new(),
        }
    }

    async fn login(&self, user: &NewUser) -> Result<Box<dyn Session>, String> {
        let mut client = self.client(&user.secret);
        if client.alive().await {
            Ok(Box::new(client))
        } else {
            Err("the login is refused".to_owned())
        }
    }
}

/// The service of `examples/services`, which speaks to such a server by requests that are data.
pub struct Documents {
    /// The service.
    pub service: Service,
    /// Where its server listens.
    pub port: u16,
}

#[async_trait]
impl Server for Documents {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &self.service.mechanism
    }

    fn target(&self) -> Target {
        self.service.target(self.port)
    }

    async fn login(&self, user: &NewUser) -> Result<Box<dyn Session>, String> {
        let credentials = self.service.credentials(&self.target(), user);
        let text = |name: &str| credentials[name].as_str().unwrap().to_owned();
        let mut client = Client::new(self.port, &text("username"), &text("password"));
        if client.alive().await {
            Ok(Box::new(client))
        } else {
            Err("the login is refused".to_owned())
        }
    }
}
