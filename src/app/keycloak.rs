//! The configuration's Keycloak as the adapter takes it.

use crate::adapters::keycloak::{Keycloak, KeycloakSettings, Proof, ReadSecret};
use crate::config::{self, Config, read_secret};
use crate::ports::{BindingIdentity, Clock};
use anyhow::{Context, anyhow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bindings' clients at the configured Keycloak; none where none is configured. Nothing is asked of it yet.
pub fn keycloak(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Option<Keycloak>> {
    let Some(section) = &config.keycloak else {
        return Ok(None);
    };
    let settings = keycloak_settings(section)?;
    let keycloak = Keycloak::new(settings, clock.clone())
        .map_err(|why| anyhow!("keycloak: {} ({})", why.message, why.detail))?;
    Ok(Some(keycloak))
}

/// The same, as the engine takes it.
pub(super) fn identity(
    config: &Config,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Option<Arc<dyn BindingIdentity>>> {
    let keycloak = keycloak(config, clock)?;
    Ok(keycloak.map(|keycloak| Arc::new(keycloak) as Arc<dyn BindingIdentity>))
}

/// The configuration's section as the adapter takes it.
pub fn keycloak_settings(section: &config::Keycloak) -> anyhow::Result<KeycloakSettings> {
    let proof = match (&section.client_secret_file, &section.private_key_file) {
        (Some(file), None) => Proof::Secret(kept_in(file)),
        (None, Some(file)) => Proof::PrivateKey(kept_in(file)),
        _ => {
            return Err(anyhow!(
                "keycloak: give one of `client_secret_file` and `private_key_file`."
            ));
        }
    };
    Ok(KeycloakSettings {
        url: section.url.clone(),
        public_url: section.public_url.clone().unwrap_or_else(|| section.url.clone()),
        ca_pem: authorities(section.ca_file.as_deref())?,
        realm: section.realm.clone(),
        client_id: section.client_id.clone(),
        proof,
        audience: section.audience.clone(),
        token_seconds: section.token_seconds,
        kubernetes_provider: section.kubernetes_provider.clone(),
        request_time: Duration::from_secs(section.request_seconds),
        min_version: section.min_version.clone(),
    })
}

/// The file of trusted authorities, when one is named.
fn authorities(file: Option<&Path>) -> anyhow::Result<Option<Vec<u8>>> {
    file.map(|file| {
        std::fs::read(file).with_context(|| format!("keycloak.ca_file: {} cannot be read", file.display()))
    })
    .transpose()
}

/// Reads the file each time it is asked: whoever changes it need not restart the broker.
fn kept_in(file: &Path) -> ReadSecret {
    let file: PathBuf = file.to_owned();
    Arc::new(move || read_secret(&file).map(|read| read.content))
}
