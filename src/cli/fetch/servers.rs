//! The three requests: a token of Keycloak, a log-in to Vault with it, the secret.
//!
//! What must stay true: no redirect is followed and no proxy asked, as each request carries something meant for one
//! server; answers are bounded; of an answer only its words of refusal get into an error, and not if they hold a secret.

use super::proof::{ASSERTION_TYPE, Shown};
use super::source::Coordinates;
use super::{Code, Failure};
use crate::app::{self, SystemClock};
use crate::domain::secret::Secret;
use crate::ports::Clock;
use data_encoding::BASE64;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, RequestBuilder};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Longest time one request may take, its answer included.
const CALL_TIME: Duration = Duration::from_secs(15);

/// Most bytes of an answer: Vault keeps at most 1 MiB under one path.
const LARGEST_ANSWER: usize = 2 << 20;

/// Longest text of a server that gets into an error, in characters.
const MAX_WORDS: usize = 160;

/// A secret as it was read.
pub(super) struct Fetched {
    /// What the application gets.
    pub data: Secret,
    /// Which version, and when it was made: a number alone begins again when a path is made anew.
    pub version: (u64, String),
    /// When Vault forgets it, if so.
    pub gone_at: Option<OffsetDateTime>,
}

impl Fetched {
    /// How long the secret stays in Vault.
    pub fn left(&self) -> Option<Duration> {
        let gone_at = self.gone_at?.unix_timestamp() * 1000;
        let left = u64::try_from(gone_at - SystemClock.now()).unwrap_or_default();
        Some(Duration::from_millis(left))
    }

    /// What was read, in words.
    pub fn news(&self) -> String {
        let until = self.gone_at.and_then(|at| at.format(&Rfc3339).ok());
        let until = until.map(|at| format!(", valid until {at}")).unwrap_or_default();
        format!("version {} is written{until}.", self.version.0)
    }
}

/// A log-in to Vault that is still good.
struct Login {
    /// For which description of the binding.
    coordinates: Coordinates,
    token: SecretString,
    until: Instant,
}

/// Both servers, and the log-in that is kept between looks.
pub(super) struct Servers {
    client: Client,
    login: Option<Login>,
}

/// An answer, whatever its status.
struct Answer {
    status: u16,
    body: Value,
    /// What the server asks to wait, in seconds.
    retry_after: Option<u64>,
}

impl Answer {
    /// Takes a value out; null where there is none, whatever the answer is.
    fn take(&mut self, pointer: &str) -> Value {
        self.body
            .pointer_mut(pointer)
            .map(Value::take)
            .unwrap_or_default()
    }
}

/// Which server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Keycloak,
    Vault,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Keycloak => "Keycloak",
            Self::Vault => "Vault",
        }
    }

    fn refuses(self, message: String) -> Failure {
        let code = match self {
            Self::Keycloak => Code::Keycloak,
            Self::Vault => Code::Vault,
        };
        Failure::new(code, message)
    }
}

impl Servers {
    /// A sender that trusts the machine's authorities and those in `ca_file`.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, Failure> {
        app::install_tls_provider();
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_TIME)
            .timeout(CALL_TIME)
            .redirect(Policy::none())
            .no_proxy()
            .http1_only();
        if let Some(file) = ca_file {
            let shown = file.display();
            let pem = std::fs::read(file)
                .map_err(|error| Failure::input(format!("{shown} cannot be read ({error}).")))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| Failure::input(format!("{shown} holds no certificate in PEM form.")))?;
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder
            .build()
            .map_err(|_| Failure::input("TLS cannot be set up on this machine."))?;
        Ok(Self { client, login: None })
    }

    /// Reads the secret, logging in first where that is needed.
    pub async fn fetch(&mut self, coordinates: &Coordinates) -> Result<Fetched, Failure> {
        let kept = self
            .login
            .take_if(|login| login.coordinates != *coordinates || login.until <= Instant::now());
        drop(kept);
        if let Some(login) = &self.login {
            match self.read(coordinates, &login.token).await {
                // The token may have ended before its time, with a restart of the server.
                Err(failure) if failure.code == Code::Vault => self.login = None,
                read => return read,
            }
        }
        let jwt = self.token(coordinates).await?;
        let login = self.log_in(coordinates, &jwt).await?;
        let read = self.read(coordinates, &login.token).await;
        self.login = Some(login);
        read
    }

    /// A token of Keycloak, which says whose binding this is.
    async fn token(&self, coordinates: &Coordinates) -> Result<SecretString, Failure> {
        let audience = coordinates.issuer.as_deref().unwrap_or(&coordinates.token_uri);
        let shown = coordinates.proof.show(&coordinates.client_id, audience)?;
        let mut form = "grant_type=client_credentials".to_owned();
        let mut request = self.client.post(&coordinates.token_uri);
        let (secret, what) = match &shown {
            Shown::Secret(secret) => {
                let (name, password) = (encode(&coordinates.client_id), encode(secret.expose_secret()));
                let basic = BASE64.encode(format!("{name}:{password}").as_bytes());
                request = request.header("authorization", sensitive(&format!("Basic {basic}"))?);
                (secret, "client secret")
            }
            Shown::Assertion(assertion) => {
                let (kind, value) = (encode(ASSERTION_TYPE), encode(assertion.expose_secret()));
                form = format!("{form}&client_assertion_type={kind}&client_assertion={value}");
                (assertion, "signed log-in")
            }
        };
        let request = request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        let at = format!("Keycloak at {}", origin(&coordinates.token_uri));
        let mut answer = send(request, Who::Keycloak, &at).await?;
        let client = &coordinates.client_id;
        let why = words(&answer.body["error"], &[secret]);
        match answer.status {
            200 => {}
            401 => {
                return Err(Who::Keycloak.refuses(format!(
                    "{at} refuses the client {client}{why}: its {what} is wrong, or it was unbound. Read the binding's \
                     credentials from the platform again, or bind again."
                )));
            }
            400 => {
                return Err(Who::Keycloak.refuses(format!(
                    "{at} does not accept a {what} of the client {client}{why}. Prove it in the way the binding was made \
                     with (`client_auth`)."
                )));
            }
            404 => {
                return Err(Who::Keycloak.refuses(format!(
                    "{at} gives out no tokens at `keycloak.token_uri`. Is that the address of the binding's realm?"
                )));
            }
            _ => return Err(other(Who::Keycloak, &at, &answer, &why)),
        }
        match answer.take("/access_token") {
            Value::String(token) if !token.is_empty() => Ok(token.into()),
            _ => Err(not_understood(Who::Keycloak, &at)),
        }
    }

    /// A token of Vault, for the binding's secret alone.
    async fn log_in(&self, coordinates: &Coordinates, jwt: &SecretString) -> Result<Login, Failure> {
        let Coordinates {
            vault,
            auth_path,
            role,
            ..
        } = coordinates;
        let body = json!({"role": role, "jwt": jwt.expose_secret()});
        let request = self
            .client
            .post(format!("{vault}/v1/auth/{auth_path}/login"))
            .header("content-type", "application/json")
            .body(body.to_string());
        drop(Secret::new(body.as_object().cloned().unwrap_or_default()));
        let at = format!("Vault at {}", origin(vault));
        let mut answer = send(for_vault(request, coordinates), Who::Vault, &at).await?;
        let why = words(&answer.body["errors"][0], &[jwt]);
        match answer.status {
            200 => {}
            // It could not ask Keycloak for its keys.
            400 if why.contains("fetching keys") || why.contains("oidc discovery") => {
                return Err(Failure::new(
                    Code::Unavailable,
                    format!("{at} cannot check Keycloak's tokens at the moment{why}."),
                ));
            }
            400 | 403 | 404 => {
                return Err(Who::Vault.refuses(format!(
                    "{at} refuses Keycloak's token at the log-in `{auth_path}` with the role `{role}`{why}. Are the \
                     binding's credentials those of this Vault and this Keycloak, and the clocks right?"
                )));
            }
            _ => return Err(other(Who::Vault, &at, &answer, &why)),
        }
        let seconds = answer.body["auth"]["lease_duration"].as_u64().unwrap_or_default();
        match answer.take("/auth/client_token") {
            Value::String(token) if !token.is_empty() => Ok(Login {
                coordinates: coordinates.clone(),
                token: token.into(),
                // Before it ends: what is asked with it takes time too.
                until: Instant::now() + Duration::from_secs(seconds) * 2 / 3,
            }),
            _ => Err(not_understood(Who::Vault, &at)),
        }
    }

    async fn read(&self, coordinates: &Coordinates, token: &SecretString) -> Result<Fetched, Failure> {
        let Coordinates { vault, data_path, .. } = coordinates;
        let request = self
            .client
            .get(format!("{vault}/{data_path}"))
            .header("x-vault-token", sensitive(token.expose_secret())?);
        let at = format!("Vault at {}", origin(vault));
        let mut answer = send(for_vault(request, coordinates), Who::Vault, &at).await?;
        let why = words(&answer.body["errors"][0], &[token]);
        match answer.status {
            200 => {}
            403 => {
                return Err(Who::Vault.refuses(format!(
                    "{at} lets this binding in but not to `{data_path}`{why}. Are `client_id` and `data_path` of the same \
                     binding?"
                )));
            }
            404 => {
                let gone = answer.body["data"]["metadata"]["deletion_time"]
                    .as_str()
                    .unwrap_or_default();
                let how = if gone.is_empty() {
                    "it was unbound"
                } else {
                    "it has expired"
                };
                return Err(Who::Vault.refuses(format!(
                    "{at} holds no secret of this binding at `{data_path}`: {how}. Bind again."
                )));
            }
            _ => return Err(other(Who::Vault, &at, &answer, &why)),
        }
        let metadata = answer.take("/data/metadata");
        let data = match answer.take("/data/data") {
            Value::Object(data) => Secret::new(data),
            _ => return Err(not_understood(Who::Vault, &at)),
        };
        let text = |member: &str| metadata[member].as_str().unwrap_or_default().to_owned();
        Ok(Fetched {
            version: (
                metadata["version"].as_u64().unwrap_or_default(),
                text("created_time"),
            ),
            gone_at: OffsetDateTime::parse(&text("deletion_time"), &Rfc3339).ok(),
            data,
        })
    }
}

fn for_vault(request: RequestBuilder, coordinates: &Coordinates) -> RequestBuilder {
    let request = request.header("x-vault-request", "true");
    match &coordinates.namespace {
        Some(namespace) => request.header("x-vault-namespace", namespace),
        None => request,
    }
}

/// Sends one request and reads the whole answer.
async fn send(request: RequestBuilder, who: Who, at: &str) -> Result<Answer, Failure> {
    let broken = |error: reqwest::Error| {
        // The error's own text names the address with its path; the reasons behind it are what helps.
        let error = error.without_url();
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(deeper) = source {
            reason = deeper.to_string();
            source = deeper.source();
        }
        if error.is_timeout() {
            "no answer in time".clone_into(&mut reason);
        }
        let what = match who {
            Who::Keycloak => "keycloak.token_uri",
            Who::Vault => "vault.address",
        };
        let message =
            format!("{at} cannot be reached ({reason}). Is `{what}` right from here, and --ca-file?");
        Failure::new(Code::Unavailable, message)
    };
    let mut response = request.send().await.map_err(broken)?;
    let status = response.status().as_u16();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(not_understood(who, at));
        }
        body.extend_from_slice(&chunk);
    }
    let parsed = serde_json::from_slice(&body);
    zeroize::Zeroize::zeroize(&mut body);
    Ok(Answer {
        status,
        body: parsed.unwrap_or(Value::Object(Map::new())),
        retry_after,
    })
}

/// A status that is no answer to the question.
fn other(who: Who, at: &str, answer: &Answer, why: &str) -> Failure {
    let status = answer.status;
    let state = match (who, status) {
        (Who::Vault, 503) => "is sealed or being maintained",
        (Who::Vault, 429 | 472 | 473 | 307) => "is a standby that does not pass requests on",
        (Who::Vault, 501) => "is not set up yet",
        (_, 429) => "has too much to do",
        (_, 408 | 412 | 425 | 500..) => "cannot answer at the moment",
        (_, 300..400) => {
            return who.refuses(format!(
                "{at} is elsewhere by now (status {status}): its address changed."
            ));
        }
        _ => return who.refuses(format!("{at} refuses the request with status {status}{why}.")),
    };
    let wait = answer
        .retry_after
        .map(|s| format!(" and asks for {s} s"))
        .unwrap_or_default();
    Failure::new(
        Code::Unavailable,
        format!("{at} {state}{wait} (status {status}{why})."),
    )
}

fn not_understood(who: Who, at: &str) -> Failure {
    who.refuses(format!(
        "{at} gives an answer that {} does not give. Is the address right?",
        who.name()
    ))
}

/// What a server says about its refusal, as the end of a clause; nothing where it holds a secret.
fn words(text: &Value, secrets: &[&SecretString]) -> String {
    let text = text.as_str().unwrap_or_default();
    let quotes = secrets.iter().any(|secret| text.contains(secret.expose_secret()));
    if text.is_empty() || quotes {
        return String::new();
    }
    let plain: String = text
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { ' ' })
        .take(MAX_WORDS)
        .collect();
    format!(" ({})", plain.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Scheme and host of an address, for people.
fn origin(address: &str) -> String {
    reqwest::Url::parse(address).map_or_else(
        |_| "an unknown address".to_owned(),
        |url| url.origin().ascii_serialization(),
    )
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn sensitive(text: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Failure::input("A secret holds characters that no request can carry."))?;
    value.set_sensitive(true);
    Ok(value)
}
