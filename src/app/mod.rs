//! The composition root: the only place that names concrete adapters, and the broker's start and end.

pub mod catalog;
mod clock;
mod keycloak;
mod platforms;
mod provisioner;
mod rows;
mod secrets;
mod server;
mod vault;

pub use clock::{SystemClock, random_token};
pub use keycloak::{keycloak, keycloak_settings};
pub use provisioner::{kubernetes_provisioner, kubernetes_settings, local_provisioner};
pub use rows::SqlRows;
pub use secrets::RoutedSecrets;
pub use server::serve;
pub use vault::{VaultSetupOptions, vault, vault_settings, vault_setup};

use crate::adapters::credentials::cassandra::Cassandra;
use crate::adapters::credentials::couchdb::CouchDb;
use crate::adapters::credentials::http::Http;
use crate::adapters::credentials::nats::Nats;
use crate::adapters::credentials::redis::Redis;
use crate::adapters::credentials::s3::S3;
use crate::adapters::credentials::sql::Sql;
use crate::adapters::credentials::statements::Statements;
use crate::adapters::keycloak::Keycloak;
use crate::adapters::sealed::{Keys, SealedStore};
use crate::adapters::vault::{InstanceSecrets, Vault};
use crate::config::{self, Config, DeprovisionWithBindings, ProvisionerKind, SecretsKind};
use crate::domain::delivery::Delivery;
use crate::engine::{Drift, Engine, PlatformWays, Ports, Settings};
use crate::ports::{BindingIdentity, BindingVault, Clock, CredentialMechanism, SecretStore};
use crate::store::{Store, StoreOptions};
use anyhow::{Context, anyhow};
use secrecy::ExposeSecret;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Which part of the broker a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Answers requests; somebody else runs the operations.
    Http,
    /// Runs operations; answers only probes.
    Worker,
    /// Both.
    All,
}

impl Role {
    /// Whether it answers platforms.
    pub fn serves(self) -> bool {
        self != Self::Worker
    }

    /// Whether it runs operations.
    pub fn works(self) -> bool {
        self != Self::Http
    }
}

/// Everything one process is made of.
pub struct Assembled {
    /// The engine, with its catalog loaded.
    pub engine: Arc<Engine>,
    /// The provisioner, for what only its kind needs.
    provisioner: provisioner::Chosen,
    /// The secret store, for `secrets rekey`.
    pub sealed: Arc<SealedStore<SqlRows>>,
    /// The vault, where one is configured.
    pub vault: Option<Arc<Vault>>,
    /// Keycloak, where one is configured.
    pub keycloak: Option<Arc<Keycloak>>,
}

/// Makes one TLS provider the process's own; must run before any TLS is spoken.
pub fn install_tls_provider() {
    // A second call finds the first one's: that is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Opens the store and brings its schema to this version.
pub async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let url = config.store.connection_url().map_err(|why| anyhow!(why))?;
    let mut url = url.expose_secret().to_owned();
    if let Some(path) = url.strip_prefix("sqlite://") {
        let path = Path::new(path.split('?').next().unwrap_or_default());
        make_private_file(path).with_context(|| format!("the database {} cannot be made", path.display()))?;
    } else if !url.contains("application_name") {
        url.push_str(if url.contains('?') { "&" } else { "?" });
        url.push_str("application_name=chandler");
    }
    let options = StoreOptions {
        max_connections: config.store.max_connections,
        group_commit: config.store.sqlite_group_commit,
        ..StoreOptions::new(url)
    };
    let store = Store::open(&options)
        .await
        .context("the database cannot be opened")?;
    store
        .migrate()
        .await
        .context("the database's schema cannot be brought to this version")?;
    Ok(store)
}

/// The database holds sealed secrets and everybody's parameters: nobody else reads it.
fn make_private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(drop)
}

/// Credential mechanisms by name.
pub type Mechanisms = BTreeMap<String, Arc<dyn CredentialMechanism>>;

/// The credential mechanisms there are.
pub fn mechanisms(clock: &Arc<dyn Clock>) -> Mechanisms {
    let all: [Arc<dyn CredentialMechanism>; 8] = [
        Arc::new(Sql),
        Arc::new(Redis),
        Arc::new(Nats::new(clock.clone())),
        Arc::new(S3::new(clock.clone())),
        Arc::new(Cassandra),
        Arc::new(CouchDb::new()),
        Arc::new(Statements),
        Arc::new(Http::new()),
    ];
    all.into_iter().map(|m| (m.name().to_owned(), m)).collect()
}

/// The keys that open sealed secrets.
pub fn seal_keys(config: &Config) -> anyhow::Result<Keys> {
    let SecretsKind::Sealed = config.secrets.kind;
    let files: Vec<_> = config
        .secrets
        .keys
        .iter()
        .map(|key| (key.label.clone(), key.file.clone()))
        .collect();
    Keys::load(config.secrets.primary_label(), &files)
        .map_err(|errors| anyhow!("secrets: {}", errors.join("; ")))
}

/// Puts the process together, up to a loaded catalog.
pub async fn assemble(config: &Config, role: Role) -> anyhow::Result<Assembled> {
    let store = open_store(config).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let provisioner = provisioner::Chosen::by(config, &clock).await?;
    let sealed = Arc::new(SealedStore::new(
        seal_keys(config)?,
        SqlRows::new(store.clone(), clock.clone()),
    ));
    let vault = vault::vault(config, clock.clone())?;
    let keycloak = keycloak::keycloak(config, &clock)?;
    let in_vault = config
        .vault
        .as_ref()
        .is_some_and(|section| section.instance_secrets);
    let secrets: Arc<dyn SecretStore> = match &vault {
        Some(vault) if in_vault => Arc::new(RoutedSecrets::new(
            sealed.clone(),
            Arc::new(InstanceSecrets::new(vault.clone())),
        )),
        _ => sealed.clone(),
    };
    let ports = Ports {
        provisioner: provisioner.port(),
        identity: keycloak
            .clone()
            .map(|keycloak| keycloak as Arc<dyn BindingIdentity>),
        vault: vault.clone().map(|vault| vault as Arc<dyn BindingVault>),
        projection: provisioner.projection(),
        mechanisms: mechanisms(&clock),
        secrets,
        clock,
        new_id: Arc::new(random_token),
    };
    let engine = Engine::new(store, ports, engine_settings(config, role));
    let loaded = catalog::load(&config.catalog, &engine.ports().mechanisms)?;
    provisioner.prepare(&loaded).await;
    engine.set_catalog(loaded).await?;
    Ok(Assembled {
        engine,
        provisioner,
        sealed,
        vault,
        keycloak,
    })
}

fn engine_settings(config: &Config, role: Role) -> Settings {
    let osb = &config.osb;
    Settings {
        owner: format!("{}-{}", std::process::id(), random_token()),
        runs_work: role.works(),
        workers: config.engine.workers,
        lease: Duration::from_secs(config.engine.lease_seconds),
        poll: Duration::from_millis(config.engine.poll_milliseconds),
        refuse_deprovision_with_bindings: osb.deprovision_with_bindings == DeprovisionWithBindings::Refuse,
        dashboard_url: osb.dashboard_url_template.clone(),
        retention: Duration::from_secs(u64::from(osb.retention_days) * 24 * 3600),
        drift: match (config.provisioner.kind, config.provisioner.kubernetes.drift) {
            (ProvisionerKind::Local, _) | (_, config::Drift::Off) => Drift::Off,
            (_, config::Drift::Repair) => Drift::Repair,
            (_, config::Drift::Report) => Drift::Report,
        },
        drift_every: Duration::from_secs(60 * config.provisioner.kubernetes.drift_minutes),
        delivery: ways(&config.bindings.delivery),
        platforms: config
            .platforms
            .iter()
            .map(|platform| {
                let namespaces = config.bindings.secret_namespaces.get(&platform.name);
                let own = PlatformWays {
                    delivery: ways(&platform.delivery),
                    namespaces: namespaces.cloned().unwrap_or_default(),
                };
                (platform.name.clone(), own)
            })
            .collect(),
        service_accounts: config
            .keycloak
            .as_ref()
            .is_some_and(|keycloak| keycloak.kubernetes_provider.is_some()),
        rotation_grace: config
            .bindings
            .rotation_grace_seconds
            .map_or(Settings::default().rotation_grace, |seconds| {
                Duration::from_secs(u64::from(seconds))
            }),
        ..Settings::default()
    }
}

fn ways(configured: &[config::Delivery]) -> Vec<Delivery> {
    let way = |way: &config::Delivery| match way {
        config::Delivery::Reference => Delivery::Reference,
        config::Delivery::Secret => Delivery::Secret,
        config::Delivery::Inline => Delivery::Inline,
    };
    configured.iter().map(way).collect()
}
