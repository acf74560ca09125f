//! A realm and mounts of the benchmark's own on the testbed's servers, a data directory beside them, and their end.
//!
//! What must stay true: whatever is made is noted before it is made, so that [`clean`] finds it whenever it is called; the
//! operator's credentials are the testbed's, used for setting up, looking and cleaning, never by the broker.

use crate::broker::{self, Broker, program};
use crate::rows::{Wanted, guid};
use anyhow::{Context, Result, bail};
use chandler::config::{self, Config};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Longest time of one request: removing a realm with a thousand clients takes a while.
const PATIENCE: Duration = Duration::from_mins(5);
/// Between two looks at last_operation.
const POLL: Duration = Duration::from_millis(50);

/// What was made and is still there.
static MADE: Mutex<Vec<(String, PathBuf)>> = Mutex::new(Vec::new());

fn made() -> MutexGuard<'static, Vec<(String, PathBuf)>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every realm and mount that is still there, and stops the instances. Says what it could not remove.
pub fn clean() {
    loop {
        // Taken out one by one: an interrupt may come while this runs.
        let Some((name, dir)) = made().pop() else { return };
        if dir.join("instances").exists() {
            broker::stop_instances(&dir);
        }
        if let Err(why) = Servers::open().and_then(|servers| servers.remove(&name)) {
            eprintln!("warning: something called {name} is left in Keycloak or the vault: {why:#}");
        }
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set; `bench/bindings.sh` starts the testbed"))
}

/// The testbed's Keycloak and vault, as their operator.
pub struct Servers {
    /// Runs what is asked of them.
    pub runtime: Runtime,
    web: reqwest::Client,
    /// The vault's address.
    pub vault: String,
    vault_token: String,
    /// Keycloak's address.
    pub keycloak: String,
    admin: String,
    password: String,
}

impl Servers {
    /// Reads from the environment where they are.
    pub fn open() -> Result<Self> {
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?,
            web: web()?,
            vault: variable("VAULT_ADDR")?,
            vault_token: variable("VAULT_TOKEN")?,
            keycloak: variable("KEYCLOAK_URL")?,
            admin: variable("KEYCLOAK_ADMIN")?,
            password: variable("KEYCLOAK_ADMIN_PASSWORD")?,
        })
    }

    /// What the vault answers its operator.
    pub fn vault(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        self.runtime.block_on(ask_vault(
            &self.web,
            &self.vault,
            &self.vault_token,
            (method, path),
            body,
        ))
    }

    /// What Keycloak answers its operator.
    pub fn realm(&self, method: &str, below: &str) -> Result<(u16, Value)> {
        self.runtime.block_on(async {
            let fields = [
                ("grant_type", "password"),
                ("client_id", "admin-cli"),
                ("username", self.admin.as_str()),
                ("password", self.password.as_str()),
            ];
            let url = format!("{}/realms/master/protocol/openid-connect/token", self.keycloak);
            let (_, granted) = post_form(&self.web, &url, &fields).await?;
            let token = granted["access_token"]
                .as_str()
                .context("Keycloak does not let its administrator in")?;
            let url = format!("{}/admin/realms/{below}", self.keycloak);
            let request = self.web.request(method.parse()?, url).bearer_auth(token);
            let answer = request.send().await?;
            let status = answer.status().as_u16();
            Ok((status, answer.json().await.unwrap_or_default()))
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        for path in [
            format!("sys/mounts/{name}"),
            format!("sys/mounts/{name}-int"),
            format!("sys/auth/{name}-jwt"),
            format!("sys/auth/{name}-approle"),
            format!("sys/policies/acl/{name}-binding"),
            format!("sys/policies/acl/{name}-broker"),
        ] {
            self.vault("DELETE", &path, None)?;
        }
        let (status, told) = self.realm("DELETE", name)?;
        if !matches!(status, 204 | 404) {
            bail!("removing the realm was answered {status}: {told}");
        }
        Ok(())
    }

    /// The operator's token of the vault.
    pub fn operator(&self) -> &str {
        &self.vault_token
    }
}

/// A client without surprises: no redirects, no proxy, bounded.
pub fn web() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only()
        .build()?)
}

/// Asks a vault; the status with the answer.
pub async fn ask_vault(
    web: &reqwest::Client,
    address: &str,
    token: &str,
    (method, path): (&str, &str),
    body: Option<&Value>,
) -> Result<(u16, Value)> {
    let mut request = web
        .request(method.parse()?, format!("{address}/v1/{path}"))
        .header("x-vault-token", token);
    if let Some(body) = body {
        request = request.json(body);
    }
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    Ok((status, answer.json().await.unwrap_or_default()))
}

/// Sends a form, as a token endpoint wants it.
pub async fn post_form(web: &reqwest::Client, url: &str, fields: &[(&str, &str)]) -> Result<(u16, Value)> {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)))
        .collect();
    let answer = web
        .post(url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(fields.join("&"))
        .send()
        .await?;
    let status = answer.status().as_u16();
    Ok((status, answer.json().await.unwrap_or_default()))
}

/// A realm, mounts and a data directory for one part of the benchmark.
pub struct Place {
    /// Of the realm, and what the mounts' names begin with.
    pub name: String,
    /// The data directory.
    pub dir: PathBuf,
    /// The servers.
    pub servers: Servers,
    /// Where the broker listens.
    address: SocketAddr,
}

impl Place {
    /// Makes everything that the broker needs, as an operator does: `chandler bootstrap`.
    pub fn make(dir: &Path, part: &str) -> Result<Self> {
        let place = Self {
            name: format!("chandler-bench-{}-{part}", std::process::id()),
            dir: dir.join(part),
            servers: Servers::open()?,
            address: broker::free_port()?,
        };
        fs::DirBuilder::new().mode(0o711).create(&place.dir)?;
        made().push((place.name.clone(), place.dir.clone()));
        broker::secrets(&place.dir)?;
        let (vault, keycloak) = (place.servers.vault.clone(), place.servers.keycloak.clone());
        let file = place.configure("direct", &keycloak, &vault)?;
        for server in ["keycloak", "vault"] {
            let done = program()
                .args(["bootstrap", server, "--apply", "--config"])
                .arg(&file)
                .env("VAULT_TOKEN", &place.servers.vault_token)
                .env("KEYCLOAK_ADMIN_PASSWORD", &place.servers.password)
                .output()?;
            if !done.status.success() {
                bail!("bootstrap {server}: {}", String::from_utf8_lossy(&done.stderr));
            }
        }
        place.admit()?;
        Ok(place)
    }

    /// Writes a configuration: default settings, with Keycloak and vault at these addresses for the broker.
    pub fn configure(&self, name: &str, keycloak: &str, vault: &str) -> Result<PathBuf> {
        let (own, servers) = (&self.name, &self.servers);
        let config = json!({
            "http": {"listen": self.address.to_string()},
            "store": {"url": format!("sqlite://{}", broker::database(&self.dir).display())},
            "catalog": {"dirs": [broker::catalog_dir()]},
            "secrets": {"keys": [{"label": "bench", "file": "seal.key"}]},
            "platforms": [{"name": "bench", "credentials": [{"username": "bench", "password_file": "password"}]}],
            "provisioner": {"kind": "local", "local": {"dir": "instances"}},
            "vault": {
                "address": vault, "public_address": servers.vault, "kv_mount": own,
                "internal_mount": format!("{own}-int"), "jwt_mount": format!("{own}-jwt"),
                "login": {
                    "kind": "approle", "mount": format!("{own}-approle"),
                    "role_id_file": "role-id", "secret_id_file": "secret-id",
                },
            },
            "keycloak": {
                "url": keycloak, "public_url": servers.keycloak, "realm": own,
                "client_secret_file": "keycloak-secret",
            },
        });
        let file = self.dir.join(format!("{name}.json"));
        fs::write(&file, config.to_string())?;
        Ok(file)
    }

    /// The configuration without proxies, read.
    pub fn config(&self) -> Result<Config> {
        let loaded = config::load(Some(&self.dir.join("direct.json")), std::iter::empty());
        match loaded.problems.first() {
            None => Ok(loaded.config),
            Some(problem) => bail!("{}: {}", problem.path, problem.message),
        }
    }

    /// Gives the broker what it logs in to the vault with.
    fn admit(&self) -> Result<()> {
        let roles = format!("auth/{}-approle/role", self.name);
        let (_, listed) = self.servers.vault("GET", &format!("{roles}?list=true"), None)?;
        let role = listed["data"]["keys"][0].as_str().context("the broker's role")?;
        let (_, id) = self
            .servers
            .vault("GET", &format!("{roles}/{role}/role-id"), None)?;
        let (_, secret) =
            self.servers
                .vault("POST", &format!("{roles}/{role}/secret-id"), Some(&json!({})))?;
        for (file, text) in [
            ("role-id", &id["data"]["role_id"]),
            ("secret-id", &secret["data"]["secret_id"]),
        ] {
            broker::secret_file(&self.dir.join(file), text.as_str().context(file)?)?;
        }
        Ok(())
    }

    /// Starts `chandler serve` with this configuration.
    pub fn serve(&self, config: &Path) -> Result<Broker> {
        let mut command = program();
        command.args(["serve", "--config"]).arg(config);
        Broker::start(command, &self.dir, self.address, "bench")
    }
}

/// Makes the instance that everything is bound to, a PostgreSQL of the smallest plan, and waits for it.
pub fn provision(broker: &Broker) -> Result<Wanted> {
    let catalog = broker.call("GET", "/v2/catalog", "")?.body;
    let wanted = Wanted::of(&catalog, "postgres")?;
    let path = format!("{}?accepts_incomplete=true", instance());
    let answer = broker.call("PUT", &path, &wanted.body())?;
    if answer.status != 202 {
        bail!("PUT: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = broker.call("GET", &format!("{}/last_operation", instance()), "")?;
        let told: Value = serde_json::from_slice(&answer.body)?;
        match told["state"].as_str() {
            Some("succeeded") => return Ok(wanted),
            Some("in progress") if Instant::now() < end => std::thread::sleep(POLL),
            _ => bail!("the instance did not come: {told}"),
        }
    }
}

/// The path of the one instance.
pub fn instance() -> String {
    format!("/v2/service_instances/{}", guid(0))
}

/// The path of its `n`th binding.
pub fn binding(n: u64) -> String {
    format!("{}/service_bindings/{}", instance(), guid(n))
}

/// What the platform sends to bind.
pub fn bind_body(wanted: &Wanted) -> String {
    json!({"service_id": wanted.service_id, "plan_id": wanted.plan_id}).to_string()
}
