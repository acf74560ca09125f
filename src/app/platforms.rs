//! Platforms from the configuration, their password files read again when they change.

use crate::config::{Config, Proof};
use crate::http::auth::{self, Credential, Platform, Platforms};
use anyhow::{Context, anyhow};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Hashes made in this process, by password: argon2 costs 20 ms and files rarely change.
type Hashed = Mutex<HashMap<String, String>>;

/// Reads every platform's log-ins.
fn read(config: &Config, hashed: &Hashed) -> anyhow::Result<Vec<Platform>> {
    let mut platforms = Vec::new();
    for platform in &config.platforms {
        let mut credentials = Vec::new();
        for credential in &platform.credentials {
            let proof = credential
                .proof()
                .map_err(|why| anyhow!("platform {}: {why}", platform.name))?;
            let hash = match proof {
                Proof::Hash(hash) => hash.expose().trim().to_owned(),
                Proof::Password(password) => hash_once(password.expose(), hashed)?,
            };
            credentials.push(Credential {
                username: credential.username.clone(),
                hash,
            });
        }
        platforms.push(Platform {
            name: platform.name.clone(),
            credentials,
        });
    }
    Ok(platforms)
}

fn hash_once(password: &str, hashed: &Hashed) -> anyhow::Result<String> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, password.as_bytes());
    let key = data_encoding::HEXLOWER.encode(digest.as_ref());
    if let Some(hash) = hashed.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return Ok(hash.clone());
    }
    let hash = auth::hash_password(password).map_err(|why| anyhow!(why))?;
    hashed
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(key, hash.clone());
    Ok(hash)
}

/// The platforms, and a task that keeps them like their files until `stop`.
pub(super) fn watched(config: &Config, stop: CancellationToken) -> anyhow::Result<Arc<Platforms>> {
    let hashed = Hashed::default();
    let mut present = read(config, &hashed)?;
    let platforms = Platforms::new(present.clone())
        .map_err(|errors| anyhow!(errors.join("; ")))
        .context("platforms")?;
    let platforms = Arc::new(platforms);
    let (watched, config) = (platforms.clone(), config.clone());
    tokio::spawn(async move {
        let mut complained = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
                () = stop.cancelled() => return,
            }
            match read(&config, &hashed) {
                Ok(read) if read == present => complained = false,
                Ok(read) => match watched.replace(read.clone()) {
                    Ok(()) => {
                        present = read;
                        complained = false;
                        info!("the platforms' log-ins were read again");
                    }
                    Err(errors) => warn!(
                        error = errors.join("; "),
                        "the changed log-ins cannot be used; the old ones stay"
                    ),
                },
                Err(error) if !complained => {
                    complained = true;
                    warn!(
                        error = format!("{error:#}"),
                        "the platforms' log-ins cannot be read; the old ones stay"
                    );
                }
                Err(_) => {}
            }
        }
    });
    Ok(platforms)
}
