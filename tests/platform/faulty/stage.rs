//! A whole broker whose way to Keycloak and Vault leads through proxies, with one PostgreSQL instance; applications and
//! the tests ask the servers themselves.

use super::proxy::{Faults, Proxy};
use crate::realm::Place;
use crate::whole::{LONG, Mission, VaultPlace, connect, said, until};
use chandler::domain::names;
use futures::{StreamExt, stream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Client;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Log-ins to the database at a time.
const AT_ONCE: usize = 8;

/// The work whose requests are spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Bind,
    Rotate,
    Unbind,
}

pub const ALL: [Work; 3] = [Work::Bind, Work::Rotate, Work::Unbind];

pub struct Stage {
    pub mission: Mission,
    pub faults: Faults,
    pub vault: Arc<Proxy>,
    pub keycloak: Arc<Proxy>,
    pub ids: Value,
    /// The same as a query.
    query: String,
    web: Client,
}

/// The client of a binding of the one instance.
pub fn client(binding: &str) -> String {
    names::client_id(&names::bid("cf", "db", binding))
}

/// What an application has in hand.
pub struct Held {
    pub credentials: Value,
    pub jwt: String,
    pub token: String,
    /// What lay in the vault.
    pub secret: Value,
}

/// What is there of bindings, by client.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub struct There {
    /// Keycloak's clients, and whether each is enabled.
    pub clients: BTreeMap<String, bool>,
    /// The vault's secrets, and the newest version of each.
    pub secrets: BTreeMap<String, u64>,
    /// How many users of the database.
    pub users: BTreeMap<String, usize>,
}

impl Stage {
    /// Everything set up, a broker that runs, and an instance `db`.
    pub async fn begin(label: &str, vault: VaultPlace) -> Self {
        let mut stage = Self::prepare(label, vault).await;
        stage.mission.serve().await;
        stage.provision().await;
        stage
    }

    /// Everything set up, and no broker yet.
    pub async fn prepare(label: &str, vault: VaultPlace) -> Self {
        let faults = Faults::default();
        let ahead = Proxy::start("vault", &vault.address, vault.ca.as_deref(), &faults).await;
        let keycloak = Proxy::start("keycloak", &Place::testbed().url, None, &faults).await;
        let (ahead_url, keycloak_url) = (ahead.url(), keycloak.url());
        let public = vault.address.clone();
        let mission = Mission::begin_with(label, vault, |config| {
            let vault = config["vault"].as_object_mut().unwrap();
            vault.insert("address".into(), json!(ahead_url));
            vault.insert("public_address".into(), json!(public));
            let keycloak = config["keycloak"].as_object_mut().unwrap();
            let public = keycloak.insert("url".into(), json!(keycloak_url)).unwrap();
            keycloak.insert("public_url".into(), public);
            config["bindings"]["reconcile_minutes"] = json!(0);
            // What the broker does by itself comes without delay, and an operation ends as soon as a plan may say.
            config["engine"] = json!({"workers": 64, "poll_milliseconds": 200});
            config["catalog"] = json!({"dirs": ["offered"]});
        });
        let plan = include_str!("../../../plans/postgres/small.yaml");
        let plans = mission.dir.path().join("offered/plans/postgres");
        fs::create_dir_all(&plans).unwrap();
        let plan = format!("{plan}maximum_polling_duration: 60\n");
        fs::write(plans.join("small.yaml"), plan).unwrap();
        let stage = Self {
            mission,
            faults,
            vault: ahead,
            keycloak,
            ids: Value::Null,
            query: String::new(),
            web: Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(100))
                .build()
                .unwrap(),
        };
        stage.mission.set_up().await;
        stage.mission.configure(|config| {
            for server in ["vault", "keycloak"] {
                config[server]["request_seconds"] = json!(2);
            }
        });
        stage
    }

    /// Makes the instance.
    pub async fn provision(&mut self) {
        (self.ids, self.query) = self
            .mission
            .create_database(json!({"max_connections": 100}))
            .await;
    }

    /// A request of the platform, which waits as long as the broker does.
    pub async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.mission.osb_by(&self.web, method, path, body).await
    }

    pub fn path(&self, binding: &str) -> String {
        let binding = utf8_percent_encode(binding, NON_ALPHANUMERIC);
        format!("/v2/service_instances/db/service_bindings/{binding}")
    }

    /// Asks for a piece of work, as a platform does that takes 202 for an answer.
    pub async fn order(&self, work: Work, binding: &str) -> (u16, Value) {
        let path = self.path(binding);
        match work {
            Work::Bind => {
                self.ask(
                    "PUT",
                    &format!("{path}?accepts_incomplete=true"),
                    self.ids.clone(),
                )
                .await
            }
            Work::Rotate => {
                let binding = utf8_percent_encode(binding, NON_ALPHANUMERIC);
                let path = format!("/api/v1/bindings/{binding}/rotate");
                self.ask("POST", &path, json!({})).await
            }
            Work::Unbind => {
                let path = format!("{path}?accepts_incomplete=true&{}", self.query);
                self.ask("DELETE", &path, json!({})).await
            }
        }
    }

    /// What the platform is told of it.
    pub async fn last(&self, binding: &str, operation: Option<&str>) -> (u16, Value) {
        let mut path = format!("{}/last_operation", self.path(binding));
        if let Some(operation) = operation {
            path.push_str(&format!("?operation={operation}"));
        }
        self.ask("GET", &path, json!({})).await
    }

    /// Waits for the end of the operation: its state and what was told.
    pub async fn ended(&self, binding: &str, operation: Option<&str>) -> (String, String) {
        let deadline = Instant::now() + LONG;
        loop {
            let (status, told) = self.last(binding, operation).await;
            let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
            if status == 410 {
                return ("succeeded".into(), "gone".into());
            }
            assert_eq!(status, 200, "{binding}: {told}");
            if told["state"] != "in progress" {
                return (text("state"), text("description"));
            }
            assert!(Instant::now() < deadline, "{binding} does not end: {told}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// A piece of work from its order to its end; how it ended.
    pub async fn carry_out(&self, work: Work, binding: &str) -> String {
        let (status, told) = self.order(work, binding).await;
        let operation = told["operation"].as_str();
        let end = match status {
            200 | 201 => "succeeded".into(),
            202 => self.ended(binding, operation).await.0,
            // The answer alone could not be put together: what was asked for is done.
            _ => {
                assert_eq!((work, status), (Work::Bind, 503), "{binding}: {told}");
                self.ended(binding, operation).await.0
            }
        };
        if work == Work::Bind && end == "succeeded" {
            until("the answer of the bind", async || {
                let (status, told) = self.ask("GET", &self.path(binding), json!({})).await;
                assert!(matches!(status, 200 | 503), "{binding}: {status} {told}");
                status == 200
            })
            .await;
        }
        end
    }

    /// What the platform gets at a later look: the coordinates and the client's secret.
    pub async fn credentials(&self, binding: &str) -> Value {
        let (status, told) = self.ask("GET", &self.path(binding), json!({})).await;
        assert_eq!(status, 200, "{binding}: {told}");
        told["credentials"].clone()
    }

    /// As the application: from the answer over Keycloak and the vault into the database.
    pub async fn enters(&self, binding: &str) -> Held {
        let credentials = self.credentials(binding).await;
        let jwt = self.mission.token(&credentials).await.expect("a token");
        let (status, token) = self.mission.enter(&jwt).await;
        assert_eq!(status, 200, "{binding} logs in to the vault");
        let mut held = Held {
            credentials,
            jwt,
            token,
            secret: Value::Null,
        };
        held.secret = self.read_as(&held).await;
        let session = connect(&held.secret).await;
        let session = session.unwrap_or_else(|why| panic!("{binding} cannot connect: {why}"));
        session.close().await.unwrap();
        held
    }

    /// The same for all of them.
    pub async fn all_enter(&self, bindings: &[String]) -> Vec<Held> {
        stream::iter(bindings)
            .map(|binding| self.enters(binding))
            .buffered(AT_ONCE)
            .collect()
            .await
    }

    /// None of the old ways in is open.
    pub async fn is_out(&self, held: &Held) {
        assert!(
            self.mission.token(&held.credentials).await.is_none(),
            "a new token"
        );
        let (status, late) = self.mission.enter(&held.jwt).await;
        for token in [&held.token, &late]
            .into_iter()
            .take(1 + usize::from(status == 200))
        {
            let read = self.mission.read(token, &held.credentials).await;
            assert!(matches!(read, 403 | 404), "{read}");
        }
        assert!(connect(&held.secret).await.is_err(), "the database");
    }

    /// As the instance's administrator.
    pub async fn database(&self) -> PgConnection {
        let iid = names::iid("cf", "db");
        let path = format!("{}-int/data/{iid}/admin", self.mission.name);
        let (status, told) = self.mission.vault(None, "GET", &path, None).await;
        assert_eq!(status, 200, "{told}");
        self.database_as(&told["data"]["data"]).await
    }

    /// With an administrator's credentials.
    pub async fn database_as(&self, admin: &Value) -> PgConnection {
        let text = |name: &str| {
            admin[name]
                .as_str()
                .unwrap_or_else(|| panic!("{name}"))
                .to_owned()
        };
        let options = sqlx::postgres::PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port())
            .username(&text("username"))
            .password(&text("password"))
            .database("postgres");
        PgConnection::connect_with(&options).await.unwrap()
    }

    /// The instance's port, as its own files say it.
    fn port(&self) -> u16 {
        let dir = self
            .mission
            .dir
            .path()
            .join("instances")
            .join(names::iid("cf", "db"));
        let mut found = Vec::new();
        files_called("postmaster.pid", &dir, &mut found);
        let lines = fs::read_to_string(&found[0]).unwrap();
        lines.lines().nth(3).unwrap().trim().parse().unwrap()
    }

    /// Asks all three servers what they have of bindings.
    pub async fn there(&self) -> There {
        let mut there = There::default();
        let found = self
            .mission
            .admin("GET", "/clients?clientId=osb-b-&search=true&max=1000")
            .await;
        for one in found.as_array().unwrap() {
            let name = one["clientId"].as_str().unwrap().to_owned();
            there.clients.insert(name, one["enabled"].as_bool().unwrap());
        }
        let folder = format!("{}/metadata/cf/{}", self.mission.name, names::iid("cf", "db"));
        let (status, told) = self.mission.vault(None, "LIST", &folder, None).await;
        assert!(matches!(status, 200 | 404), "{status} {told}");
        for name in told["data"]["keys"].as_array().into_iter().flatten() {
            let name = name.as_str().unwrap();
            let (status, meta) = self
                .mission
                .vault(None, "GET", &format!("{folder}/{name}"), None)
                .await;
            if status == 404 {
                // It went after it was listed.
                continue;
            }
            let version = meta["data"]["current_version"].as_u64().unwrap();
            there.secrets.insert(name.to_owned(), version);
        }
        let mut database = self.database().await;
        let rows = sqlx::query("SELECT rolname::text FROM pg_roles WHERE rolname ~ '^b_'")
            .fetch_all(&mut database)
            .await
            .unwrap();
        for row in rows {
            let user: String = row.get(0);
            let bid = names::bid_of_user(&user).unwrap_or_else(|| panic!("a strange user: {user}"));
            *there.users.entry(names::client_id(bid)).or_default() += 1;
        }
        database.close().await.unwrap();
        there
    }

    /// Waits until the three servers have exactly these bindings: clients enabled, secrets of that version, users.
    pub async fn comes_to(&self, what: &str, version: u64, bindings: &[String]) {
        let there = self.comes_to_any(what, bindings).await;
        for (name, found) in &there.secrets {
            assert_eq!(*found, version, "{what}: {name}");
        }
    }

    /// The same with secrets of any version; what is there.
    pub async fn comes_to_any(&self, what: &str, bindings: &[String]) -> There {
        let names: BTreeSet<String> = bindings.iter().map(|binding| client(binding)).collect();
        let deadline = Instant::now() + LONG;
        loop {
            let there = self.there().await;
            let wanted = There {
                clients: names.iter().map(|name| (name.clone(), true)).collect(),
                users: names.iter().map(|name| (name.clone(), 1)).collect(),
                secrets: there.secrets.clone(),
            };
            if there == wanted && there.secrets.keys().eq(names.iter()) {
                return there;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: there is {there:#?}\nwanted: {names:#?}"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// What the application reads from the vault with the token that it has.
    pub async fn read_as(&self, held: &Held) -> Value {
        let path = held.credentials["vault"]["data_path"].as_str().unwrap();
        let path = path.trim_start_matches("v1/");
        let (status, told) = self.mission.vault(Some(&held.token), "GET", path, None).await;
        assert_eq!(status, 200, "{told}");
        told["data"]["data"].clone()
    }

    /// What the broker itself finds when it compares everything, then the end.
    pub async fn end(self) {
        self.faults.lift();
        for check in [&["audit", "verify"][..], &["reconcile"]] {
            self.mission.admit().await;
            let done = self.mission.run(check);
            assert!(done.status.success(), "{check:?}: {}", said(&done));
        }
        self.mission.delete_database(&self.query).await;
        for mount in [self.mission.name.clone(), format!("{}-int", self.mission.name)] {
            let (status, told) = self
                .mission
                .vault(None, "LIST", &format!("{mount}/metadata/"), None)
                .await;
            assert_eq!(status, 404, "{told}");
        }
    }

    /// Waits until at least one request of this binding was spoilt.
    pub async fn spoilt(&self, binding: &str) {
        let client = client(binding);
        until("a request is spoilt", async || self.faults.met(&client) > 0).await;
    }

    /// The requests that each piece of work makes for one binding, found out by one that nothing happens to.
    pub async fn clean_run(&self) -> BTreeMap<Work, Vec<String>> {
        let mut requests = BTreeMap::new();
        for work in ALL {
            self.faults.begin([]);
            assert_eq!(self.carry_out(work, "clean").await, "succeeded");
            let mut seen = self.faults.seen(&client("clean"));
            if work == Work::Bind {
                // The answer is asked for twice here.
                seen.dedup();
            }
            requests.insert(work, seen);
            if work != Work::Unbind {
                self.enters("clean").await;
            }
        }
        for (work, list) in &requests {
            println!("{work:?}: {}", list.len());
            for request in list {
                println!("  {}", request.replace(&client("clean"), "CLIENT"));
            }
        }
        requests
    }
}

fn files_called(name: &str, dir: &std::path::Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            files_called(name, &entry.path(), into);
        } else if entry.file_name() == name {
            into.push(entry.path());
        }
    }
}
