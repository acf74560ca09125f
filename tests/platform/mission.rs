//! The whole sentence: from the catalog to a database, to credentials that belong to one application, rotate and end.
//!
//! The program as an operator runs it (`bootstrap`, `serve`, `fetch`, `audit`, `reconcile`), its local provisioner with a
//! real PostgreSQL, and the testbed's Keycloak and Vault. `scripts/demo-platform.sh` tells the same story with pods.

use crate::realm::{Place, post_form, variable, web};
use crate::support::{Process, free_port};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Long enough for the grace after a rotation and the broker's next look.
const LONG: Duration = Duration::from_secs(90);

/// A broker, with a realm and mounts of its own that go with it.
struct Mission {
    name: String,
    dir: tempfile::TempDir,
    url: String,
    vault: String,
    keycloak: Place,
    broker: Option<Process>,
}

fn chandler() -> Command {
    Command::new(env!("CARGO_BIN_EXE_chandler"))
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn secret_file(path: &Path, content: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

impl Mission {
    async fn begin() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("chandler-mission-")
            .tempdir()
            .unwrap();
        let port = free_port();
        let mission = Self {
            name: format!("mission-{}", std::process::id()),
            url: format!("http://127.0.0.1:{port}"),
            vault: variable("VAULT_ADDR"),
            keycloak: Place::testbed(),
            broker: None,
            dir,
        };
        let name = &mission.name;
        let config = json!({
            "http": {"listen": format!("127.0.0.1:{port}")},
            "store": {"url": format!("sqlite://{}/chandler.db", mission.dir.path().display())},
            "secrets": {"keys": [{"label": "test", "file": "seal.key"}]},
            "platforms": [{"name": "cf", "credentials": [{"username": "cf", "password_file": "password"}]}],
            "provisioner": {"kind": "local", "local": {"dir": "instances"}},
            "vault": {
                "address": mission.vault, "kv_mount": name, "internal_mount": format!("{name}-int"),
                "jwt_mount": format!("{name}-jwt"),
                "login": {
                    "kind": "approle", "mount": format!("{name}-approle"), "role_id_file": "role-id",
                    "secret_id_file": "secret-id", "wrapped": true,
                },
            },
            "keycloak": {"url": mission.keycloak.url, "realm": name, "client_secret_file": "keycloak-secret"},
            "bindings": {"rotation_grace_seconds": 2},
        });
        std::fs::write(mission.dir.path().join("broker.json"), config.to_string()).unwrap();
        secret_file(&mission.dir.path().join("password"), "a-password-for-this-test");
        let key = mission.dir.path().join("seal.key");
        let made = chandler()
            .args(["secrets", "new-key"])
            .arg(&key)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        mission
    }

    /// A command of the program on this configuration.
    fn run(&self, words: &[&str]) -> Output {
        let mut command = chandler();
        command
            .args(words)
            .arg("--config")
            .arg(self.dir.path().join("broker.json"))
            .env("VAULT_TOKEN", variable("VAULT_TOKEN"))
            .env("KEYCLOAK_ADMIN_PASSWORD", &self.keycloak.password);
        command.output().unwrap()
    }

    /// What the vault answers its administrator, or whoever has `token`.
    async fn vault(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let token = token.map_or_else(|| variable("VAULT_TOKEN"), str::to_owned);
        let mut request = web(None)
            .request(method.parse().unwrap(), format!("{}/v1/{path}", self.vault))
            .header("x-vault-token", token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// What an operator does once, and again without harm.
    async fn set_up(&self) {
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
    async fn admit(&self) {
        let name = &self.name;
        let (_, roles) = self
            .vault(None, "LIST", &format!("auth/{name}-approle/role"), None)
            .await;
        let role = roles["data"]["keys"][0].as_str().unwrap();
        let wrapped = web(None)
            .post(format!(
                "{}/v1/auth/{name}-approle/role/{role}/secret-id",
                self.vault
            ))
            .header("x-vault-token", variable("VAULT_TOKEN"))
            .header("x-vault-wrap-ttl", "5m")
            .send()
            .await
            .unwrap();
        let wrapped: Value = wrapped.json().await.unwrap();
        let file = self.dir.path().join("secret-id");
        secret_file(&file, wrapped["wrap_info"]["token"].as_str().unwrap());
    }

    async fn serve(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("broker.log")).unwrap();
        let mut command = chandler();
        command
            .args(["serve", "--config"])
            .arg(self.dir.path().join("broker.json"))
            .stderr(log);
        self.broker = Some(Process::start(&mut command, Signal::SIGTERM));
        until("the broker is ready", async || {
            let answer = web(None).get(format!("{}/readyz", self.url)).send().await;
            answer.is_ok_and(|a| a.status() == 200)
        })
        .await;
    }

    async fn osb(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let answer = web(None)
            .request(method.parse().unwrap(), format!("{}{path}", self.url))
            .basic_auth("cf", Some("a-password-for-this-test"))
            .header("x-broker-api-version", "2.17")
            .json(&body)
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// Waits until the instance's operation has succeeded.
    async fn done(&self, instance: &str) {
        until("the operation succeeds", async || {
            let path = format!("/v2/service_instances/{instance}/last_operation");
            let (status, told) = self.osb("GET", &path, json!({})).await;
            assert_eq!(status, 200, "{told}");
            assert_ne!(told["state"], "failed", "{told}");
            told["state"] == "succeeded"
        })
        .await;
    }

    async fn bind(&self, ids: &Value, binding: &str) -> Value {
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
    fn fetch(&self, credentials: &Value) -> Result<Value, String> {
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
    async fn token(&self, credentials: &Value) -> Option<String> {
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
    async fn enter(&self, jwt: &str) -> (u16, String) {
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

    async fn read(&self, token: &str, credentials: &Value) -> u16 {
        let path = credentials["vault"]["data_path"].as_str().unwrap();
        self.vault(Some(token), "GET", path.trim_start_matches("v1/"), None)
            .await
            .0
    }

    async fn end(mut self) {
        drop(self.broker.take());
        for path in [
            format!("sys/mounts/{}", self.name),
            format!("sys/mounts/{}-int", self.name),
            format!("sys/auth/{}-jwt", self.name),
            format!("sys/auth/{}-approle", self.name),
        ] {
            self.vault(None, "DELETE", &path, None).await;
        }
        self.admin("DELETE", "").await;
    }

    /// What Keycloak answers its administrator about the realm.
    async fn admin(&self, method: &str, path: &str) -> Value {
        let place = &self.keycloak;
        let fields = [
            ("grant_type", "password"),
            ("client_id", "admin-cli"),
            ("username", place.admin.as_str()),
            ("password", place.password.as_str()),
        ];
        let url = format!("{}/realms/master/protocol/openid-connect/token", place.url);
        let (_, token) = post_form(&web(None), &url, &fields).await;
        let answer = web(None)
            .request(
                method.parse().unwrap(),
                format!("{}/admin/realms/{}{path}", place.url, self.name),
            )
            .bearer_auth(token["access_token"].as_str().unwrap())
            .send()
            .await
            .unwrap();
        answer.json().await.unwrap_or_default()
    }
}

async fn until(what: &str, mut there: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !there().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn connect(credentials: &Value) -> Result<PgConnection, sqlx::Error> {
    PgConnection::connect(credentials["uri"].as_str().unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_catalog_to_the_last_refusal() {
    let mut mission = Mission::begin().await;
    mission.set_up().await;
    mission.serve().await;
    mission.admit().await;
    let doctor = mission.run(&["doctor"]);
    assert!(doctor.status.success(), "{}", said(&doctor));

    // Catalog and instance.
    let (_, catalog) = mission.osb("GET", "/v2/catalog", json!({})).await;
    let services = catalog["services"].as_array().unwrap();
    let postgres = services.iter().find(|s| s["name"] == "postgres").unwrap();
    let small = postgres["plans"].as_array().unwrap();
    let small = small.iter().find(|p| p["name"] == "small").unwrap();
    let ids = json!({
        "service_id": postgres["id"], "plan_id": small["id"], "organization_guid": "o", "space_guid": "s",
    });
    let query = format!(
        "service_id={}&plan_id={}",
        postgres["id"].as_str().unwrap(),
        small["id"].as_str().unwrap()
    );
    let path = "/v2/service_instances/db?accepts_incomplete=true";
    assert_eq!(mission.osb("PUT", path, ids.clone()).await.0, 202);
    mission.done("db").await;

    // Two applications, each with a client of its own.
    let bound = json!({"service_id": ids["service_id"], "plan_id": ids["plan_id"]});
    let (web_app, other) = (
        mission.bind(&bound, "web").await,
        mission.bind(&bound, "other").await,
    );
    let first = mission.fetch(&web_app).unwrap();
    let mut session = connect(&first).await.unwrap();
    sqlx::query("CREATE TABLE orders (what TEXT)")
        .execute(&mut session)
        .await
        .unwrap();
    let jwt = mission.token(&web_app).await.unwrap();
    let (_, web_token) = mission.enter(&jwt).await;
    let (_, other_token) = mission.enter(&mission.token(&other).await.unwrap()).await;
    assert_eq!(mission.read(&web_token, &web_app).await, 200);
    assert_eq!(mission.read(&other_token, &web_app).await, 403);

    // At rest the broker has no password of a binding: neither in its database nor by its own log-in.
    let database = std::fs::read(mission.dir.path().join("chandler.db")).unwrap();
    let password = first["password"].as_str().unwrap().as_bytes();
    assert!(!database.windows(password.len()).any(|w| w == password));

    // Rotation: the session that is open goes on, whoever connects anew does so with the newer credentials.
    let (status, told) = mission
        .osb("POST", "/api/v1/bindings/web/rotate", json!({}))
        .await;
    assert_eq!(status, 200, "{told}");
    let second = mission.fetch(&web_app).unwrap();
    assert_ne!(first["password"], second["password"]);
    let mut newer = connect(&second).await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('rope')")
        .execute(&mut newer)
        .await
        .unwrap();
    until("the former credentials are refused", async || {
        connect(&first).await.is_err()
    })
    .await;
    sqlx::query("INSERT INTO orders VALUES ('tar')")
        .execute(&mut newer)
        .await
        .unwrap();

    // The administrator, too: the former credentials are in the broker's memory, and what follows works all the same.
    let internal = format!("{}-int/metadata/", mission.name);
    let (_, instances) = mission.vault(None, "LIST", &internal, None).await;
    let kept = format!("{internal}{}", instances["data"]["keys"][0].as_str().unwrap());
    let names = async || mission.vault(None, "LIST", &kept, None).await.1["data"]["keys"].clone();
    assert_eq!(names().await, json!(["admin"]));
    mission.admit().await;
    let done = mission.run(&["credentials", "rotate", "--all"]);
    assert!(
        done.status.success() && said(&done).contains("1 under way"),
        "{}",
        said(&done)
    );
    until("the administrator has new credentials", async || {
        names().await == json!(["admin-1"])
    })
    .await;
    sqlx::query("INSERT INTO orders VALUES ('sail')")
        .execute(&mut newer)
        .await
        .unwrap();

    // Unbind: every way in is closed, at once.
    let path = format!("/v2/service_instances/db/service_bindings/web?{query}");
    let began = Instant::now();
    let (status, told) = mission.osb("DELETE", &path, json!({})).await;
    assert_eq!(status, 200, "{told}");
    println!("unbound in {:?}", began.elapsed());
    assert!(connect(&second).await.is_err());
    assert!(
        sqlx::query("SELECT 1").execute(&mut newer).await.is_err(),
        "its session goes on"
    );
    assert!(mission.token(&web_app).await.is_none());
    assert!(matches!(mission.read(&web_token, &web_app).await, 403 | 404));
    // A token from before still logs in for its short life, and finds nothing.
    let (status, late) = mission.enter(&jwt).await;
    if status == 200 {
        assert!(matches!(mission.read(&late, &web_app).await, 403 | 404));
    }
    assert!(mission.fetch(&web_app).is_err());
    // The other application noticed nothing.
    connect(&mission.fetch(&other).unwrap()).await.unwrap();

    for check in [&["audit", "verify"][..], &["reconcile"]] {
        mission.admit().await;
        let done = mission.run(check);
        assert!(done.status.success(), "{check:?}: {}", said(&done));
    }

    // Delete, with a binding still there: nothing is left anywhere.
    let path = format!("/v2/service_instances/db?accepts_incomplete=true&{query}");
    assert_eq!(mission.osb("DELETE", &path, json!({})).await.0, 202);
    mission.done("db").await;
    for mount in [mission.name.clone(), format!("{}-int", mission.name)] {
        let left = mission
            .vault(None, "LIST", &format!("{mount}/metadata/"), None)
            .await;
        assert_eq!(left.0, 404, "{}", left.1);
    }
    let clients = mission.admin("GET", "/clients?clientId=osb-b-&search=true").await;
    assert_eq!(clients, json!([]));
    assert!(connect(&second).await.is_err());
    mission.end().await;
}
