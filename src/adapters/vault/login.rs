//! How the broker gets a token of the vault: by its pod's token, by a role id and secret id, or from a file.
//!
//! What must stay true: files are read at each log-in, so that what is exchanged there is used; a wrapped secret id is
//! unwrapped once and then lives in memory alone; a wrapping token that somebody else used first is told as the alarm it is.

use super::fault;
use super::http::{Answer, Http, Request};
use crate::ports::{PortError, PortErrorKind, PortResult};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Mutex;
use tracing::error;
use zeroize::Zeroizing;

/// Reads a file that holds a secret, and refuses one that other users can read; the error names the file and what to do.
pub type ReadSecret = fn(&Path) -> Result<SecretString, String>;

/// A way to log in. Mounts are paths below `auth/`.
#[derive(Debug, Clone)]
pub enum LogIn {
    /// With the token of the broker's service account.
    Kubernetes {
        /// Mount of the log-in.
        mount: String,
        /// Its role.
        role: String,
        /// File that the cluster keeps a fresh token in; pods' files are readable by all of the pod.
        token_file: PathBuf,
    },
    /// With a role id and a secret id.
    AppRole {
        /// Mount of the log-in.
        mount: String,
        /// File with the role id, which is no secret.
        role_id_file: PathBuf,
        /// File with the secret id, or with a wrapping token around it.
        secret_id_file: PathBuf,
        /// It is a wrapping token.
        wrapped: bool,
    },
    /// With a token that somebody else renews.
    TokenFile(PathBuf),
}

/// A token that was handed out.
pub(super) struct Granted {
    pub secret: SecretString,
    /// How long it lives; none for one that never ends, or whose end somebody else sees to.
    pub life: Option<Duration>,
    /// Whether its life can be made longer.
    pub renewable: bool,
}

/// A secret id in memory, with the wrapping token it came in.
struct Unwrapped {
    wrapping: SecretString,
    secret_id: SecretString,
}

/// The way in.
pub(super) struct Entrance {
    way: LogIn,
    read_secret: ReadSecret,
    unwrapped: Mutex<Option<Unwrapped>>,
}

impl Entrance {
    pub fn new(way: LogIn, read_secret: ReadSecret) -> Self {
        Self {
            way,
            read_secret,
            unwrapped: Mutex::default(),
        }
    }

    /// Whether logging in uses up what only one process can use.
    pub fn is_single_use(&self) -> bool {
        matches!(self.way, LogIn::AppRole { wrapped: true, .. })
    }

    /// Logs in.
    pub async fn log_in(&self, http: &Http) -> PortResult<Granted> {
        match &self.way {
            LogIn::Kubernetes {
                mount,
                role,
                token_file,
            } => {
                let token = read_plain(token_file)?;
                let body = json!({"role": role, "jwt": token.expose_secret()});
                ask(http, &format!("auth/{mount}/login"), body).await
            }
            LogIn::AppRole {
                mount,
                role_id_file,
                secret_id_file,
                wrapped,
            } => {
                let role_id = read_plain(role_id_file)?;
                let secret_id = if *wrapped {
                    self.unwrapped(http, mount, secret_id_file).await?
                } else {
                    self.read_secret(secret_id_file)?
                };
                let body =
                    json!({"role_id": role_id.expose_secret(), "secret_id": secret_id.expose_secret()});
                ask(http, &format!("auth/{mount}/login"), body).await
            }
            LogIn::TokenFile(file) => Ok(Granted {
                secret: self.read_secret(file)?,
                life: None,
                renewable: false,
            }),
        }
    }

    fn read_secret(&self, file: &Path) -> PortResult<SecretString> {
        (self.read_secret)(file).map_err(unreadable)
    }

    /// The secret id: from memory while the file holds the wrapping token it came in, or nothing any more.
    async fn unwrapped(&self, http: &Http, mount: &str, file: &Path) -> PortResult<SecretString> {
        let mut kept = self.unwrapped.lock().await;
        let wrapping = self.read_secret(file);
        if let Some(kept) = kept.as_ref() {
            let same = wrapping.as_ref().map_or(true, |wrapping| {
                wrapping.expose_secret() == kept.wrapping.expose_secret()
            });
            if same {
                return Ok(kept.secret_id.clone());
            }
        }
        let wrapping = wrapping?;
        let secret_id = unwrap(http, mount, &wrapping).await?;
        *kept = Some(Unwrapped {
            wrapping,
            secret_id: secret_id.clone(),
        });
        Ok(secret_id)
    }
}

/// Takes the secret id out of its wrapping, after a look at where that came from: anybody can wrap something of his own.
async fn unwrap(http: &Http, mount: &str, wrapping: &SecretString) -> PortResult<SecretString> {
    let body = bytes(json!({"token": wrapping.expose_secret()}))?;
    let request = Request::post("sys/wrapping/lookup", &body);
    let answer = http.send(request).await?;
    if !answer.is_success() {
        return Err(no_wrapping(http, &request, &answer).await);
    }
    let origin = answer.data("creation_path").as_str().unwrap_or_default();
    if !(origin.starts_with(&format!("auth/{mount}/role/")) && origin.ends_with("/secret-id")) {
        error!(
            origin,
            "ALARM: the wrapping token for the broker's secret id does not come from its AppRole"
        );
        return Err(PortError::denied(
            "What is wrapped in the broker's wrapping token was not made by its AppRole: somebody exchanged it, so it was not used. Find out who could, and give the broker a new one.",
        ));
    }
    let empty = bytes(json!({}))?;
    let request = Request::post("sys/wrapping/unwrap", &empty).with(wrapping);
    let answer = http.send(request).await?;
    if !answer.is_success() {
        return Err(no_wrapping(http, &request, &answer).await);
    }
    let secret_id = answer.data("secret_id").as_str().unwrap_or_default();
    if secret_id.is_empty() {
        return Err(PortError::denied(
            "The broker's wrapping token holds no secret id; give the broker a new one.",
        ));
    }
    Ok(SecretString::from(secret_id))
}

/// A wrapping token that is not good any more was used: by this broker before it was started again, or by a thief.
async fn no_wrapping(http: &Http, request: &Request<'_>, answer: &Answer) -> PortError {
    if !matches!(answer.status, 400 | 403 | 404) {
        return fault::refusal(http, request, answer).await;
    }
    error!("ALARM: the wrapping token for the broker's secret id was used before or has run out");
    PortError::denied(
        "The wrapping token for the broker's secret id was used before, or has run out. If this broker was not started with it before, somebody else has the secret id: destroy it in the vault. Give the broker a new one.",
    )
    .with_detail(fault::told(request, answer))
}

/// Logs in at `path`. A refusal may pass: whoever mends the log-in, or the cluster that checks it, need not ask again for
/// every operation that waits.
async fn ask(http: &Http, path: &str, body: Value) -> PortResult<Granted> {
    let body = bytes(body)?;
    let request = Request::post(path, &body);
    let answer = http.send(request).await?;
    if !answer.is_success() {
        let refusal = fault::refusal(http, &request, &answer).await;
        return Err(if refusal.kind == PortErrorKind::Transient {
            refusal
        } else {
            PortError::transient(
                "The vault does not let the broker in; its operator finds the reason in the broker's log and with `chandler doctor`.",
            )
            .with_detail(refusal.detail)
        });
    }
    granted(&answer).ok_or_else(|| {
        PortError::transient("The vault's log-in gave the broker no token.").with_detail(request.line())
    })
}

/// What a log-in or a renewal gave.
pub(super) fn granted(answer: &Answer) -> Option<Granted> {
    let auth = &answer.body["auth"];
    let secret = auth["client_token"].as_str().filter(|token| !token.is_empty())?;
    let seconds = fault::number(&auth["lease_duration"]).unwrap_or_default();
    Some(Granted {
        secret: SecretString::from(secret),
        life: (seconds > 0).then(|| Duration::from_secs(seconds)),
        renewable: auth["renewable"].as_bool().unwrap_or_default(),
    })
}

/// A body that is wiped after use.
pub(super) fn bytes(mut body: Value) -> PortResult<Zeroizing<Vec<u8>>> {
    let bytes = serde_json::to_vec(&body).map(Zeroizing::new);
    if let Value::Object(members) = &mut body {
        // Their texts are copies of secrets.
        drop(crate::domain::secret::Secret::new(std::mem::take(members)));
    }
    bytes.map_err(|_| {
        PortError::invalid("A request to the vault cannot be written; tell the broker's operator.")
    })
}

/// A file whose content is no secret, or is kept by the cluster with a mode of its choice.
fn read_plain(file: &Path) -> PortResult<SecretString> {
    let text = std::fs::read_to_string(file).map(Zeroizing::new);
    let text = text.map_err(|error| unreadable(format!("{} cannot be read: {error}", file.display())))?;
    match text.trim() {
        "" => Err(unreadable(format!("{} is empty", file.display()))),
        text => Ok(SecretString::from(text)),
    }
}

/// May pass: a file that is being exchanged is there again a moment later.
fn unreadable(why: String) -> PortError {
    PortError::transient(
        "The broker cannot log in to the vault: a file it needs for that cannot be used; tell its operator.",
    )
    .with_detail(why)
}
