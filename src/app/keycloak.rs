//! The Keycloak a configuration means: its client, and a look at it while the broker runs.

use crate::adapters::keycloak::{Keycloak, KeycloakSettings, Look, Proof, ReadSecret};
use crate::config::{self, Config, read_secret};
use crate::engine::Engine;
use crate::ports::{Clock, Finding, Grade};
use anyhow::{Context, anyhow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How often a Keycloak is looked at that is not in order.
const OFTEN: Duration = Duration::from_secs(15);
/// How often one in order is looked at.
const SELDOM: Duration = Duration::from_mins(10);

/// Bindings' clients at the configured Keycloak; none where none is configured. Nothing is asked of it yet.
pub fn keycloak(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Option<Arc<Keycloak>>> {
    let Some(section) = &config.keycloak else {
        return Ok(None);
    };
    let settings = keycloak_settings(section)?;
    let keycloak = Keycloak::new(settings, clock.clone())
        .map_err(|why| anyhow!("keycloak: {} ({})", why.message, why.detail))?;
    Ok(Some(Arc::new(keycloak)))
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
        refuse_older: section.refuse_older,
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

/// Looks whether Keycloak is as the broker needs it while the broker runs.
///
/// What the broker cannot work with makes it not ready, with one sentence; a Keycloak that does not answer does not,
/// because operations wait for it and all else goes on.
pub(super) async fn watch(keycloak: Arc<Keycloak>, engine: Arc<Engine>, stop: CancellationToken) {
    let mut told: Vec<Finding> = Vec::new();
    loop {
        let found = keycloak.check(Look::Quick).await;
        if found != told {
            tell(&found);
        }
        let why = found.iter().find(|finding| finding.grade == Grade::Error);
        engine.hold_back(
            "keycloak",
            why.map(|finding| format!("Keycloak is not as the broker needs it. {}", finding.text)),
        );
        let sound = found.iter().all(|finding| finding.grade <= Grade::Warning);
        told = found;
        tokio::select! {
            () = tokio::time::sleep(if sound { SELDOM } else { OFTEN }) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn tell(found: &[Finding]) {
    for finding in found {
        match finding.grade {
            Grade::Good => info!("keycloak: {}", finding.text),
            Grade::Warning | Grade::Unknown => warn!("keycloak: {}", finding.text),
            Grade::Error => error!("keycloak: {}", finding.text),
        }
    }
}
