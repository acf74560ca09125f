//! Vault and OpenBao: where applications fetch their bindings' secrets, and where the broker keeps those of instances.
//!
//! An own client of some fifteen calls that both servers have. What must stay true: no secret gets into an error, a log or
//! `Debug`; every call is bounded in time and size; the broker's rights are those in `policy` and no more, so `bindings`
//! never reads what it wrote.

mod bindings;
mod check;
mod fault;
mod http;
mod kv;
mod login;
mod policy;
mod secrets;
mod session;
mod setup;
#[cfg(test)]
mod tests;

pub use check::{Looker, Minimum};
pub use fault::{Health, Product};
pub use login::{LogIn, ReadSecret};
pub use secrets::InstanceSecrets;
pub use setup::{BrokerLogIn, Change, Setup, Step};

use crate::ports::{Clock, PortResult};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How a vault is reached and what its parts are called. Mounts are paths without a slash at either end.
#[derive(Debug, Clone)]
pub struct VaultSettings {
    /// Its address, as the broker reaches it.
    pub address: String,
    /// Its address, as applications reach it.
    pub public_address: String,
    /// Namespace, where the server has them.
    pub namespace: Option<String>,
    /// Certificate authorities (PEM) that are trusted beside the system's.
    pub ca: Option<Vec<u8>>,
    /// How the broker logs in.
    pub login: LogIn,
    /// Reads the files of the log-in that hold secrets.
    pub read_secret: ReadSecret,
    /// Store of bindings' secrets.
    pub kv_mount: String,
    /// Store of instances' secrets.
    pub internal_mount: String,
    /// Whether the latter is used.
    pub instance_secrets: bool,
    /// Log-in of applications.
    pub jwt_mount: String,
    /// Its role.
    pub jwt_role: String,
    /// Longest time one request may take.
    pub request_limit: Duration,
    /// Versions below which there are known holes.
    pub minimum: Minimum,
}

/// One vault, as the broker uses it.
pub struct Vault {
    session: session::Session,
    settings: VaultSettings,
    clock: Arc<dyn Clock>,
    accessor: bindings::Accessor,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("address", &self.settings.address)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// A client; nothing is asked of the server yet. An error names the setting that cannot be used.
    pub fn new(settings: VaultSettings, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let http = http::Http::new(
            &settings.address,
            settings.namespace.as_deref(),
            settings.ca.as_deref(),
            settings.request_limit,
        )?;
        let entrance = login::Entrance::new(settings.login.clone(), settings.read_secret);
        Ok(Self {
            session: session::Session::new(http, entrance),
            settings,
            clock,
            accessor: bindings::Accessor::default(),
        })
    }

    /// Logs in if that is due, so that a token that is renewed for ever does not end while nobody needs it.
    pub async fn keep_logged_in(&self) -> PortResult<()> {
        self.session.token().await.map(drop)
    }
}
