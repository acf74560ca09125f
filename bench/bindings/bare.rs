//! The three things every bind needs, done alone: a client at Keycloak, a secret in the vault, a role in PostgreSQL.
//!
//! No operation, no rows, no log-in with what was made: what is left is what the servers themselves take.

use crate::place::{Place, instance};
use anyhow::{Context, Result, anyhow};
use chandler::adapters::keycloak::Keycloak;
use chandler::adapters::vault::Vault;
use chandler::app::{self, SystemClock};
use chandler::domain::delivery::{BindingRef, ClientAuth};
use chandler::domain::names;
use chandler::domain::secret::Secret;
use chandler::ports::{BindingIdentity, BindingVault, Clock, IdentitySpec, PortError};
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _};
use std::sync::Arc;
use std::time::Instant;

/// The adapters, logged in, and the instance's administrator.
pub struct Bare {
    keycloak: Arc<Keycloak>,
    vault: Arc<Vault>,
    /// A session of the instance's administrator.
    pub admin: PgConnection,
}

/// Milliseconds that each took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// Making the client.
    pub keycloak: f64,
    /// Writing the secret and what stands beside it.
    pub vault: f64,
    /// Making the role, with a password.
    pub postgres: f64,
}

impl Took {
    /// All three, one after the other.
    pub fn sum(self) -> f64 {
        self.keycloak + self.vault + self.postgres
    }
}

/// An error of an adapter, with what only an operator is told.
pub fn told(why: &PortError) -> anyhow::Error {
    anyhow!("{} ({})", why.message, why.detail)
}

impl Bare {
    /// Connects past the proxies. `credentials` = a binding's, to know where the server is.
    pub fn open(place: &Place, credentials: &Value) -> Result<Self> {
        let config = place.config()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let iid = iid();
        let path = format!("{}-int/data/{iid}/admin", place.name);
        let (_, read) = place.servers.vault("GET", &path, None)?;
        let admin = &read["data"]["data"];
        let text = |value: &Value, what: &str| {
            let found = value[what].as_str().map(str::to_owned);
            found.with_context(|| format!("no {what} there"))
        };
        let options = text(credentials, "uri")?
            .parse::<PgConnectOptions>()?
            .username(&text(admin, "username")?)
            .password(&text(admin, "password")?);
        let admin = place.servers.runtime.block_on(options.connect())?;
        Ok(Self {
            keycloak: app::keycloak(&config, &clock)?.context("Keycloak")?,
            vault: app::vault(&config, clock)?.context("the vault")?,
            admin,
        })
    }

    /// Does all three for a binding of this id.
    pub async fn all(&mut self, id: &str) -> Result<Took> {
        let binding = reference(id);
        let began = Instant::now();
        client(&self.keycloak, &binding).await?;
        let made = Instant::now();
        secret(&self.vault, &binding).await?;
        let written = Instant::now();
        let role = names::backend_user(&binding.bid);
        let statement = format!("CREATE ROLE {role} LOGIN PASSWORD '{}'", binding.bid);
        self.admin.execute(sqlx::query(AssertSqlSafe(statement))).await?;
        let millis = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1000.0;
        Ok(Took {
            keycloak: millis(began, made),
            vault: millis(made, written),
            postgres: millis(written, Instant::now()),
        })
    }

    /// The adapters, for many at once.
    pub fn adapters(&self) -> (Arc<Keycloak>, Arc<Vault>) {
        (self.keycloak.clone(), self.vault.clone())
    }
}

/// The broker's name of the one instance.
pub fn iid() -> String {
    names::iid("bench", instance().rsplit('/').next().unwrap_or_default())
}

/// What a binding of this id is to the servers.
pub fn reference(id: &str) -> BindingRef {
    let instance = instance();
    BindingRef {
        tenant: "bench".into(),
        iid: iid(),
        bid: names::bid("bench", instance.rsplit('/').next().unwrap_or_default(), id),
    }
}

/// Makes a binding's client.
pub async fn client(keycloak: &Keycloak, binding: &BindingRef) -> Result<()> {
    let auth = ClientAuth::ClientSecret;
    let spec = IdentitySpec {
        binding: binding.clone(),
        label: "postgres/small".into(),
        secret: keycloak.generate(&auth).map_err(|why| told(&why))?,
        auth,
    };
    keycloak.ensure(&spec).await.map_err(|why| told(&why))
}

/// Writes a binding's secret, as large as a real one.
pub async fn secret(vault: &Vault, binding: &BindingRef) -> Result<()> {
    let filler = "x".repeat(120);
    let secret = Secret::from_pairs([
        ("username", names::backend_user(&binding.bid)),
        ("password", filler[..40].to_owned()),
        ("uri", filler.clone()),
        ("jdbcUrl", filler),
    ]);
    let notes = [("offering", "postgres".to_owned()), ("plan", "small".to_owned())];
    let written = vault.publish(binding, 0, &secret, &notes, None).await;
    written.map_err(|why| told(&why))
}
