//! The vault a configuration means: its client, what must be set up in it, and a look at it while the broker runs.

use crate::adapters::vault::{BrokerLogIn, LogIn, Looker, Minimum, Setup, Vault, VaultSettings};
use crate::config::{self, Config, VaultLoginKind};
use crate::engine::Engine;
use crate::ports::{Clock, Finding, Grade};
use anyhow::{Context, anyhow};
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Where a cluster puts the token of a pod's service account.
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// What `/readyz` says of a vault that the broker cannot work with.
const UNFIT: &str =
    "The vault is not as the broker needs it; the broker's log and `chandler doctor` say what is missing.";
/// How often the token is looked after, and a vault that is not in order.
const OFTEN: Duration = Duration::from_secs(15);
/// How often a vault in order is looked at.
const SELDOM: Duration = Duration::from_mins(10);

/// The vault of a configuration, if it names one; nothing is asked of it yet.
pub fn vault(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<Option<Arc<Vault>>> {
    let Some(section) = &config.vault else {
        return Ok(None);
    };
    let vault = Vault::new(vault_settings(section)?, clock).map_err(|why| anyhow!("vault: {why}"))?;
    Ok(Some(Arc::new(vault)))
}

/// The configuration's section as the adapter takes it.
pub fn vault_settings(section: &config::Vault) -> anyhow::Result<VaultSettings> {
    let ca = section.ca_file.as_deref().map(read_ca).transpose()?;
    Ok(VaultSettings {
        address: section.address.clone(),
        public_address: section
            .public_address
            .clone()
            .unwrap_or_else(|| section.address.clone()),
        namespace: section.namespace.clone(),
        ca,
        login: log_in(section),
        read_secret,
        kv_mount: section.kv_mount.clone(),
        internal_mount: section.internal_mount.clone(),
        instance_secrets: section.instance_secrets,
        jwt_mount: section.jwt_mount.clone(),
        jwt_role: section.jwt_role.clone(),
        request_limit: Duration::from_secs(section.request_seconds),
        minimum: Minimum {
            vault: section.min_vault.clone(),
            openbao: section.min_openbao.clone(),
            refuse_older: section.refuse_older,
        },
    })
}

fn read_ca(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("ca_file {} cannot be read", file.display()))
}

fn read_secret(file: &Path) -> Result<SecretString, String> {
    config::read_secret(file).map(|read| read.content)
}

fn log_in(section: &config::Vault) -> LogIn {
    let login = &section.login;
    let file = |file: &Option<PathBuf>| file.clone().unwrap_or_default();
    match login.kind {
        VaultLoginKind::Kubernetes => LogIn::Kubernetes {
            mount: mount(section),
            role: login.role.clone(),
            token_file: login.token_file.clone().unwrap_or_else(|| POD_TOKEN.into()),
        },
        VaultLoginKind::AppRole => LogIn::AppRole {
            mount: mount(section),
            role_id_file: file(&login.role_id_file),
            secret_id_file: file(&login.secret_id_file),
            wrapped: login.wrapped,
        },
        VaultLoginKind::Token => LogIn::TokenFile(file(&login.token_file)),
    }
}

/// Mount of the broker's log-in: what is configured, else its kind's own name.
fn mount(section: &config::Vault) -> String {
    let usual = match section.login.kind {
        VaultLoginKind::Kubernetes => "kubernetes",
        VaultLoginKind::AppRole => "approle",
        VaultLoginKind::Token => "token",
    };
    section.login.mount.clone().unwrap_or_else(|| usual.to_owned())
}

/// What `chandler bootstrap vault` needs to know beside the configuration.
#[derive(Debug, Clone)]
pub struct VaultSetupOptions {
    /// Namespace and name of the broker's service account.
    pub service_account: (String, String),
    /// Audience of that account's token; none = a projected token is for `vault`, the pod's own for anything.
    pub audience: Option<String>,
    /// Address of the cluster, as the vault reaches it.
    pub cluster: String,
    /// The cluster's authority, where the vault runs outside.
    pub cluster_ca_file: Option<PathBuf>,
    /// Networks the broker may log in from by AppRole; empty = any.
    pub cidrs: Vec<String>,
}

/// What is to be set up in the vault of a configuration.
pub fn vault_setup(config: &Config, options: VaultSetupOptions) -> anyhow::Result<Setup> {
    let (Some(section), Some(keycloak)) = (&config.vault, &config.keycloak) else {
        return Err(anyhow!(
            "The configuration names no vault and Keycloak; both are needed, under `vault` and `keycloak`."
        ));
    };
    let login = &section.login;
    let broker = match login.kind {
        VaultLoginKind::Kubernetes => {
            let (namespace, service_account) = options.service_account;
            let projected = login.token_file.is_some().then(|| "vault".to_owned());
            BrokerLogIn::Kubernetes {
                mount: mount(section),
                role: login.role.clone(),
                namespace,
                service_account,
                audience: options.audience.or(projected),
                host: options.cluster,
                ca: options.cluster_ca_file.as_deref().map(read_pem).transpose()?,
            }
        }
        VaultLoginKind::AppRole => BrokerLogIn::AppRole {
            mount: mount(section),
            role: login.role.clone(),
            cidrs: options.cidrs,
        },
        VaultLoginKind::Token => BrokerLogIn::Token,
    };
    Ok(Setup {
        settings: vault_settings(section)?,
        provider: provider(keycloak)?,
        audience: keycloak.audience.clone(),
        broker,
    })
}

fn read_pem(file: &Path) -> anyhow::Result<String> {
    String::from_utf8(read_ca(file)?).with_context(|| format!("{} is no text", file.display()))
}

/// How the vault learns the realm's keys: by discovery, or, when it reaches Keycloak by another address than applications do,
/// straight from the keys' own address, because discovery insists that issuer and address are one.
fn provider(keycloak: &config::Keycloak) -> anyhow::Result<Map<String, Value>> {
    let realm = |base: &str| format!("{}/realms/{}", base.trim_end_matches('/'), keycloak.realm);
    let own = realm(&keycloak.url);
    let issuer = keycloak.public_url.as_deref().map_or_else(|| own.clone(), realm);
    let ca = keycloak.ca_file.as_deref().map(read_pem).transpose()?;
    let mut body = Map::new();
    let (address, ca_member) = if issuer == own {
        (("oidc_discovery_url", own), "oidc_discovery_ca_pem")
    } else {
        (
            ("jwks_url", format!("{own}/protocol/openid-connect/certs")),
            "jwks_ca_pem",
        )
    };
    body.insert(address.0.to_owned(), address.1.into());
    if let Some(ca) = ca {
        body.insert(ca_member.to_owned(), ca.into());
    }
    body.insert("bound_issuer".to_owned(), issuer.into());
    body.insert("jwt_supported_algs".to_owned(), json!(["RS256"]));
    Ok(body)
}

/// Looks after the vault while the broker runs: its token, and whether all is as the broker needs it.
///
/// What the broker cannot work with makes it not ready, with one sentence; a vault that does not answer does not, because
/// operations wait for it and all else goes on.
pub(super) async fn watch(vault: Arc<Vault>, engine: Arc<Engine>, stop: CancellationToken) {
    let mut told: Vec<Finding> = Vec::new();
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next {
            let found = vault.check(Looker::Broker).await;
            let worst = found
                .iter()
                .map(|finding| finding.grade)
                .max()
                .unwrap_or(Grade::Good);
            if found != told {
                tell(&found);
            }
            // Everybody may ask whether the broker is ready: what exactly is missing stands in the log.
            let unfit = found.iter().any(|finding| finding.grade == Grade::Error);
            engine.hold_back("vault", unfit.then(|| UNFIT.to_owned()));
            told = found;
            next = Instant::now() + if worst <= Grade::Warning { SELDOM } else { OFTEN };
        } else if let Err(why) = vault.keep_logged_in().await {
            // What is wrong is found and told by the next look.
            warn!(detail = %why.detail, "{}", why.message);
            next = Instant::now();
        }
        tokio::select! {
            () = tokio::time::sleep(OFTEN) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn tell(found: &[Finding]) {
    for finding in found {
        match finding.grade {
            Grade::Good => info!("vault: {}", finding.text),
            Grade::Warning | Grade::Unknown => warn!("vault: {}", finding.text),
            Grade::Error => error!("vault: {}", finding.text),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn keys_come_by_discovery_unless_the_address_differs() {
        let mut keycloak = config::Keycloak {
            url: "https://kc.internal/".to_owned(),
            ..config::Keycloak::default()
        };
        let body = provider(&keycloak).unwrap();
        assert_eq!(
            body["oidc_discovery_url"],
            "https://kc.internal/realms/osb-bindings"
        );
        assert_eq!(body["bound_issuer"], "https://kc.internal/realms/osb-bindings");
        assert_eq!(body["jwt_supported_algs"], json!(["RS256"]));
        keycloak.public_url = Some("https://login.example.com/kc".to_owned());
        let body = provider(&keycloak).unwrap();
        assert_eq!(
            body["jwks_url"],
            "https://kc.internal/realms/osb-bindings/protocol/openid-connect/certs"
        );
        assert_eq!(
            body["bound_issuer"],
            "https://login.example.com/kc/realms/osb-bindings"
        );
        assert!(!body.contains_key("oidc_discovery_url"));
    }
}
