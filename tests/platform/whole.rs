//! A whole broker: the program as an operator runs it (`bootstrap`, `serve`, `fetch`, `audit`, `reconcile`), its local
//! provisioner with a real PostgreSQL, and a real Keycloak and Vault, usually the testbed's.

use crate::realm::{Place, post_form, variable, web};
use crate::support::{Process, free_port};
use nix::sys::signal::Signal;
use reqwest::Client;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The platform's password.
pub const PASSWORD: &str = "a-password-for-this-test";

/// Long enough for the grace after a rotation and the broker's next look.
pub const LONG: Duration = Duration::from_secs(90);

/// A broker, with a realm and mounts of its own that go with it.
pub struct Mission {
    pub name: String,
    pub dir: tempfile::TempDir,
    pub url: String,
    pub vault: VaultPlace,
    pub keycloak: Place,
    pub broker: Option<Process>,
    web: Client,
}

/// Where a vault is, and its root token.
#[derive(Clone)]
pub struct VaultPlace {
    pub address: String,
    pub root: String,
    pub ca: Option<Vec<u8>>,
}

impl VaultPlace {
    /// The testbed's.
    pub fn testbed() -> Self {
        Self {
            address: variable("VAULT_ADDR"),
            root: variable("VAULT_TOKEN"),
            ca: None,
        }
    }
}

pub fn chandler() -> Command {
    without_operators(Command::new(env!("CARGO_BIN_EXE_chandler")))
}

/// Takes what an operator may do out of a command's environment: the testbed's variables say it.
pub fn without_operators(mut command: Command) -> Command {
    for (name, _) in std::env::vars().filter(|(name, _)| name.contains("TOKEN") || name.contains("PASSWORD"))
    {
        command.env_remove(name);
    }
    command
}

pub fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

pub fn secret_file(path: &Path, content: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

impl Mission {
    pub fn begin() -> Self {
        Self::begin_with("mission", VaultPlace::testbed(), |_| {})
    }

    /// One whose names begin with `label`, with a configuration that is changed before it is written.
    pub fn begin_with(label: &str, vault: VaultPlace, change: impl FnOnce(&mut Value)) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("chandler-mission-")
            .tempdir()
            .unwrap();
        let port = free_port();
        let mission = Self {
            name: format!("{label}-{}", std::process::id()),
            url: format!("http://127.0.0.1:{port}"),
            web: web(vault.ca.as_deref()),
            vault,
            keycloak: Place::testbed(),
            broker: None,
            dir,
        };
        let name = &mission.name;
        let mut config = json!({
            "http": {"listen": format!("127.0.0.1:{port}")},
            "store": {"url": format!("sqlite://{}/chandler.db", mission.dir.path().display())},
            "secrets": {"keys": [{"label": "test", "file": "seal.key"}]},
            "platforms": [{"name": "cf", "credentials": [{"username": "cf", "password_file": "password"}]}],
            "provisioner": {"kind": "local", "local": {"dir": "instances"}},
            "vault": {
                "address": mission.vault.address, "kv_mount": name, "internal_mount": format!("{name}-int"),
                "jwt_mount": format!("{name}-jwt"),
                "login": {
                    "kind": "approle", "mount": format!("{name}-approle"), "role_id_file": "role-id",
                    "secret_id_file": "secret-id", "wrapped": true,
                },
            },
            "keycloak": {"url": mission.keycloak.url, "realm": name, "client_secret_file": "keycloak-secret"},
            "bindings": {"rotation_grace_seconds": 2},
        });
        change(&mut config);
        std::fs::write(mission.dir.path().join("broker.json"), config.to_string()).unwrap();
        secret_file(&mission.dir.path().join("password"), PASSWORD);
        let key = mission.dir.path().join("seal.key");
        let made = chandler()
            .args(["secrets", "new-key"])
            .arg(&key)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        mission
    }

    /// Changes the configuration; a broker that runs does not see it.
    pub fn configure(&self, change: impl FnOnce(&mut Value)) {
        let file = self.dir.path().join("broker.json");
        let mut config = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(file, config.to_string()).unwrap();
    }

    /// A command of the program on this configuration.
    pub fn run(&self, words: &[&str]) -> Output {
        let mut command = chandler();
        command
            .args(words)
            .arg("--config")
            .arg(self.dir.path().join("broker.json"));
        if words[0] == "bootstrap" {
            command
                .env("VAULT_TOKEN", &self.vault.root)
                .env("KEYCLOAK_ADMIN_PASSWORD", &self.keycloak.password);
        }
        command.output().unwrap()
    }

    /// What the vault answers its administrator, or whoever has `token`.
    pub async fn vault(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let token = token.unwrap_or(&self.vault.root);
        let mut request = self
            .web
            .request(
                method.parse().unwrap(),
                format!("{}/v1/{path}", self.vault.address),
            )
            .header("x-vault-token", token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// What an operator does once, and again without harm.
    pub async fn set_up(&self) {
        for time in 0..2 {
            for server in ["keycloak", "vault"] {
                let done = self.run(&["bootstrap", server, "--apply"]);
                assert!(done.status.success(), "{}", said(&done));
                let changes = said(&done).lines().filter(|l| l.starts_with("  made")).count();
                assert!(
                    time == 0 || changes == 0,
                    "nothing the second time: {}",
                    said(&done)
                );
            }
        }
        let (name, dir) = (&self.name, self.dir.path());
        let (_, roles) = self
            .vault(None, "LIST", &format!("auth/{name}-approle/role"), None)
            .await;
        let role = roles["data"]["keys"][0].as_str().unwrap();
        let path = format!("auth/{name}-approle/role/{role}/role-id");
        let (_, id) = self.vault(None, "GET", &path, None).await;
        secret_file(&dir.join("role-id"), id["data"]["role_id"].as_str().unwrap());
        self.admit().await;
    }

    /// Lets one process of the broker log in to the vault: it is given a token that unwraps once.
    pub async fn admit(&self) {
        let name = &self.name;
        let (_, roles) = self
            .vault(None, "LIST", &format!("auth/{name}-approle/role"), None)
            .await;
        let role = roles["data"]["keys"][0].as_str().unwrap();
        let wrapped = self
            .web
            .post(format!(
                "{}/v1/auth/{name}-approle/role/{role}/secret-id",
                self.vault.address
            ))
            .header("x-vault-token", &self.vault.root)
            .header("x-vault-wrap-ttl", "5m")
            .send()
            .await
            .unwrap();
        let wrapped: Value = wrapped.json().await.unwrap();
        let file = self.dir.path().join("secret-id");
        secret_file(&file, wrapped["wrap_info"]["token"].as_str().unwrap());
    }

    pub async fn serve(&mut self) {
        self.serve_by(chandler()).await;
    }

    /// The same by a command that is given the arguments of the program.
    pub async fn serve_by(&mut self, mut command: Command) {
        command
            .args(["serve", "--config"])
            .arg(self.dir.path().join("broker.json"));
        let log = self.dir.path().join("broker.log");
        self.broker = Some(Process::start_logging(&mut command, Signal::SIGTERM, &log));
        until("the broker is ready", async || {
            let answer = web(None).get(format!("{}/readyz", self.url)).send().await;
            answer.is_ok_and(|a| a.status() == 200)
        })
        .await;
    }

    pub async fn osb(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.osb_by(&web(None), method, path, body).await
    }

    /// The same by a client of the caller's own.
    pub async fn osb_by(&self, web: &Client, method: &str, path: &str, body: Value) -> (u16, Value) {
        let answer = web
            .request(method.parse().unwrap(), format!("{}{path}", self.url))
            .basic_auth("cf", Some(PASSWORD))
            .header("x-broker-api-version", "2.17")
            .json(&body)
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// Asks for the smallest PostgreSQL, by the name `db`; its ids, and the same as a query.
    pub async fn create_database(&self, parameters: Value) -> (Value, String) {
        let (_, catalog) = self.osb("GET", "/v2/catalog", json!({})).await;
        let named = |list: &Value, name: &str| {
            let mut list = list.as_array().unwrap().iter();
            list.find(|one| one["name"] == name).unwrap().clone()
        };
        let postgres = named(&catalog["services"], "postgres");
        let small = named(&postgres["plans"], "small");
        let ids = json!({"service_id": postgres["id"], "plan_id": small["id"]});
        let text = |value: &Value| value["id"].as_str().unwrap().to_owned();
        let query = format!("service_id={}&plan_id={}", text(&postgres), text(&small));
        let mut body = ids.clone();
        body["organization_guid"] = "o".into();
        body["space_guid"] = "s".into();
        body["parameters"] = parameters;
        let path = "/v2/service_instances/db?accepts_incomplete=true";
        let (status, told) = self.osb("PUT", path, body).await;
        assert_eq!(status, 202, "{told}");
        self.done("db").await;
        (ids, query)
    }

    pub async fn delete_database(&self, query: &str) {
        let path = format!("/v2/service_instances/db?accepts_incomplete=true&{query}");
        assert_eq!(self.osb("DELETE", &path, json!({})).await.0, 202);
        self.done("db").await;
    }

    /// Waits until the instance's operation has succeeded.
    pub async fn done(&self, instance: &str) {
        until("the operation succeeds", async || {
            let path = format!("/v2/service_instances/{instance}/last_operation");
            let (status, told) = self.osb("GET", &path, json!({})).await;
            assert_eq!(status, 200, "{told}");
            assert_ne!(told["state"], "failed", "{told}");
            told["state"] == "succeeded"
        })
        .await;
    }

    pub async fn bind(&self, ids: &Value, binding: &str) -> Value {
        let path = format!("/v2/service_instances/db/service_bindings/{binding}");
        let (status, told) = self.osb("PUT", &path, ids.clone()).await;
        assert_eq!(status, 201, "{told}");
        let credentials = told["credentials"].clone();
        for name in ["username", "password", "uri", "jdbcUrl"] {
            assert!(credentials.get(name).is_none(), "{name} is in the answer");
        }
        let (status, again) = self.osb("GET", &path, json!({})).await;
        assert_eq!((status, &again["credentials"]), (200, &credentials));
        credentials
    }

    /// As an application: `chandler fetch` with nothing but what the bind answered.
    pub fn fetch(&self, credentials: &Value) -> Result<Value, String> {
        let file = self.dir.path().join("binding.json");
        secret_file(&file, &credentials.to_string());
        let mut command = chandler();
        command
            .args(["fetch", "--wait", "0", "--as", "json", "--from"])
            .arg(file);
        let output = command.output().unwrap();
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).unwrap())
        } else {
            Err(said(&output))
        }
    }

    /// The token of the binding's client; none when it is refused.
    pub async fn token(&self, credentials: &Value) -> Option<String> {
        let keycloak = &credentials["keycloak"];
        let text = |name: &str| keycloak[name].as_str().unwrap();
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", text("client_id")),
            ("client_secret", text("client_secret")),
        ];
        let (status, told) = post_form(&web(None), text("token_uri"), &fields).await;
        (status == 200).then(|| told["access_token"].as_str().unwrap().to_owned())
    }

    /// What the vault gives for that token.
    pub async fn enter(&self, jwt: &str) -> (u16, String) {
        let body = json!({"role": "binding", "jwt": jwt});
        let path = format!("auth/{}-jwt/login", self.name);
        let (status, told) = self.vault(Some(""), "POST", &path, Some(body)).await;
        (
            status,
            told["auth"]["client_token"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    }

    pub async fn read(&self, token: &str, credentials: &Value) -> u16 {
        let path = credentials["vault"]["data_path"].as_str().unwrap();
        self.vault(Some(token), "GET", path.trim_start_matches("v1/"), None)
            .await
            .0
    }

    /// What Keycloak answers its administrator about the realm.
    pub async fn admin(&self, method: &str, path: &str) -> Value {
        self.admin_with(method, path, None).await
    }

    /// The same with a body.
    pub async fn admin_with(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let place = &self.keycloak;
        let fields = [
            ("grant_type", "password"),
            ("client_id", "admin-cli"),
            ("username", place.admin.as_str()),
            ("password", place.password.as_str()),
        ];
        let url = format!("{}/realms/master/protocol/openid-connect/token", place.url);
        let (_, token) = post_form(&web(None), &url, &fields).await;
        let mut request = web(None)
            .request(
                method.parse().unwrap(),
                format!("{}/admin/realms/{}{path}", place.url, self.name),
            )
            .bearer_auth(token["access_token"].as_str().unwrap());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        assert!(
            answer.status().is_success(),
            "{method} {path}: {}",
            answer.status()
        );
        answer.json().await.unwrap_or_default()
    }
}

impl Drop for Mission {
    fn drop(&mut self) {
        drop(self.broker.take());
        let (name, vault, keycloak) = (self.name.clone(), self.vault.clone(), self.keycloak.clone());
        // A test that panics is in the middle of its own runtime: this is done beside it.
        let removed = std::thread::spawn(move || {
            tokio::runtime::Runtime::new()
                .unwrap()
                .block_on(async {
                    let web = web(vault.ca.as_deref());
                    for path in [
                        format!("mounts/{name}"),
                        format!("mounts/{name}-int"),
                        format!("auth/{name}-jwt"),
                        format!("auth/{name}-approle"),
                        format!("policies/acl/{name}-binding"),
                        format!("policies/acl/{name}-broker"),
                    ] {
                        let url = format!("{}/v1/sys/{path}", vault.address);
                        web.delete(url)
                            .header("x-vault-token", &vault.root)
                            .send()
                            .await?;
                    }
                    Ok::<(), reqwest::Error>(())
                })
                .map_err(|why| why.to_string())
        });
        let name = self.name.clone();
        let realm = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async { keycloak.operator().remove_realm(&name).await })
        });
        let done = (removed.join(), realm.join());
        if !matches!(done, (Ok(Ok(())), Ok(Ok(_)))) {
            eprintln!("the realm or mounts {} are left behind: {done:?}", self.name);
        }
    }
}

pub async fn until(what: &str, mut there: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !there().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub async fn connect(credentials: &Value) -> Result<PgConnection, sqlx::Error> {
    PgConnection::connect(credentials["uri"].as_str().unwrap()).await
}
