//! The credentials the broker itself needs of an instance, on a store of their own that no application reads: `<iid>/<what>`.
//!
//! What must stay true: the first value made for a name wins, whoever asks; what is read is kept in memory for a minute at
//! most, because each step of an operation reads it again and each read of the vault is a line in its audit log.

use super::Vault;
use super::kv::{Kv, Written, conflict};
use crate::domain::names;
use crate::domain::secret::Secret;
use crate::ports::{PortError, PortResult, SecretStore, secret_name};
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a secret that was read is used without another look.
const MEMORY_TIME: Duration = Duration::from_mins(1);
/// Most secrets in memory.
const MOST_REMEMBERED: usize = 1000;

/// Secrets of instances in the vault's internal store.
pub struct InstanceSecrets {
    vault: Arc<Vault>,
    read: Mutex<HashMap<String, (Instant, Secret)>>,
}

impl InstanceSecrets {
    /// Kept by `vault`.
    pub fn new(vault: Arc<Vault>) -> Self {
        Self {
            vault,
            read: Mutex::default(),
        }
    }

    fn store(&self) -> Kv<'_> {
        Kv {
            session: &self.vault.session,
            mount: &self.vault.settings.internal_mount,
        }
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, Secret)>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, name: &str, secret: &Secret) {
        let now = Instant::now();
        let mut read = self.remembered();
        if read.len() >= MOST_REMEMBERED {
            read.retain(|_, (until, _)| *until > now);
        }
        if read.len() < MOST_REMEMBERED {
            read.insert(name.to_owned(), (now + MEMORY_TIME, secret.clone()));
        }
    }
}

/// The two parts of a name.
fn parts(name: &str) -> PortResult<[&str; 2]> {
    match name.split_once('/') {
        Some((iid, what)) if names::is_name(iid) => Ok([iid, what]),
        _ => Err(
            PortError::invalid("This name cannot be kept in the vault; tell the broker's operator.")
                .with_detail("an instance's secret with a name that the broker never gives"),
        ),
    }
}

#[async_trait]
impl SecretStore for InstanceSecrets {
    async fn create(&self, name: &str, value: &Secret) -> PortResult<Secret> {
        let place = parts(name)?;
        let stored = match self.store().write(&place, 0, value).await? {
            Written::Done => value.clone(),
            Written::Refused(why) => match self.store().read(&place).await? {
                Some(stored) => stored,
                // Refused because of something that cannot be read any more, or for another reason.
                None if self.store().version(&place).await?.is_some() => {
                    return Err(conflict(format!(
                        "{}: a version of it was deleted by hand",
                        why.detail
                    )));
                }
                None => return Err(why),
            },
        };
        self.remember(name, &stored);
        Ok(stored)
    }

    async fn get(&self, name: &str) -> PortResult<Option<Secret>> {
        let now = Instant::now();
        if let Some((_, secret)) = self.remembered().get(name).filter(|(until, _)| *until > now) {
            return Ok(Some(secret.clone()));
        }
        let found = self.store().read(&parts(name)?).await?;
        match &found {
            Some(secret) => self.remember(name, secret),
            None => drop(self.remembered().remove(name)),
        }
        Ok(found)
    }

    async fn destroy(&self, name: &str) -> PortResult<()> {
        self.remembered().remove(name);
        self.store().erase(&parts(name)?).await?;
        // Somebody may have read it meanwhile.
        self.remembered().remove(name);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<String>> {
        if let Some(iid) = prefix.strip_suffix('/') {
            let leaves = self.store().leaves(&[iid]).await?;
            return Ok(leaves.into_iter().map(|what| format!("{iid}/{what}")).collect());
        }
        // One list instead of one more for each instance: the contract allows names that may be there.
        let iids = self.store().folders(&[]).await?;
        let iids = iids.into_iter().filter(|iid| names::is_name(iid));
        Ok(iids
            .flat_map(|iid| secret_name::OF_INSTANCE.map(|what| format!("{iid}/{what}")))
            .filter(|name| name.starts_with(prefix))
            .collect())
    }
}
