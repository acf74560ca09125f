//! Keycloak: every binding gets a client of its own, in a realm that is for nothing else (docs/security.md).
//!
//! What must stay true here:
//! - a binding's client is found by its name, which derives from the binding; making it again finds the first one and sets
//!   it to the whole desired state, so a lost answer or a second worker does no harm;
//! - a client of such a name that the broker did not make is never taken over, but it is closed and removed with the
//!   binding: in this realm the names are the broker's;
//! - nothing is sent twice except after a token was not taken; whether to try again is the engine's decision;
//! - lists hold every client's secret in clear: they are never logged, and wiped after reading.
//!
//! `http` alone sends requests, `token` keeps the broker's log-in, `client` says what a client looks like, `setup` makes
//! the realm ready, `check` looks whether it is.

mod admin;
mod check;
mod client;
mod http;
mod setup;
#[cfg(test)]
mod tests;
mod token;

pub use check::Look;
pub use setup::{BrokerProof, Done, Operator, Plan, Setup, Step};
pub use token::{Key, Proof, ReadSecret};

use crate::domain::delivery::{BindingRef, ClientAuth};
use crate::domain::names::{CLIENT_PREFIX, bid_of_client};
use crate::domain::secret::Secret;
use crate::ports::{
    BindingIdentity, Clock, FoundIdentity, IdentitySpec, Page, PortError, PortErrorKind, PortResult,
};
use admin::{Admin, realm_path};
use async_trait::async_trait;
use client::{ClientName, Common};
use data_encoding::BASE64URL_NOPAD;
use http::{Http, encoded};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use token::LogIn;
use zeroize::{Zeroize, Zeroizing};

/// Clients on one page of a list.
const PAGE: usize = 100;

/// Where Keycloak is and what bindings' clients are like there.
#[derive(Clone)]
pub struct KeycloakSettings {
    /// Its address for the broker, with its base path.
    pub url: String,
    /// Its address for applications: what the realm's issuer starts with.
    pub public_url: String,
    /// Authorities to trust beside the system's, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Realm of the bindings' clients.
    pub realm: String,
    /// The broker's own client there.
    pub client_id: String,
    /// How that client proves who it is.
    pub proof: Proof,
    /// Audience of bindings' tokens.
    pub audience: String,
    /// Seconds that a binding's token lives.
    pub token_seconds: u32,
    /// Alias of the identity provider for service accounts of a Kubernetes cluster.
    pub kubernetes_provider: Option<String>,
    /// Longest time of one request.
    pub request_time: Duration,
    /// Lowest version without a warning, such as `26.6`.
    pub min_version: String,
    /// An older one is an error instead of a warning.
    pub refuse_older: bool,
}

impl KeycloakSettings {
    /// The issuer of the realm's tokens, compared by applications and vault letter by letter.
    pub fn issuer(&self) -> String {
        format!(
            "{}/realms/{}",
            self.public_url.trim_end_matches('/'),
            encoded(&self.realm)
        )
    }
}

/// Bindings' clients in one realm.
pub struct Keycloak {
    settings: KeycloakSettings,
    admin: Admin,
    clients: String,
}

/// What is read of a client; never its secret.
#[derive(Deserialize)]
struct Found {
    id: String,
    #[serde(rename = "clientId")]
    client_id: String,
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    attributes: Attributes,
    #[serde(default, rename = "defaultClientScopes")]
    default_scopes: Vec<String>,
    #[serde(default, rename = "optionalClientScopes")]
    optional_scopes: Vec<String>,
}

#[derive(Deserialize, Default)]
struct Attributes {
    /// [`client::MANAGED`].
    #[serde(rename = "osb.managed")]
    managed: Option<String>,
}

/// A scope of the realm.
#[derive(Deserialize)]
struct Scope {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct ClientSecret {
    #[serde(default)]
    value: String,
}

impl Keycloak {
    /// Bindings' clients as `settings` say; nothing is asked yet.
    pub fn new(settings: KeycloakSettings, clock: Arc<dyn Clock>) -> PortResult<Self> {
        let http = Http::new(&settings.url, settings.ca_pem.as_deref(), settings.request_time)?;
        let log_in = LogIn::Client {
            client_id: settings.client_id.clone(),
            issuer: settings.issuer(),
            proof: settings.proof.clone(),
            clock,
        };
        Ok(Self {
            admin: Admin::new(http, &settings.realm, log_in),
            clients: format!("{}/clients", realm_path(&settings.realm)),
            settings,
        })
    }

    fn common(&self) -> Common<'_> {
        Common {
            realm: &self.settings.realm,
            audience: &self.settings.audience,
            token_seconds: self.settings.token_seconds,
            kubernetes_provider: self.settings.kubernetes_provider.as_deref(),
        }
    }

    /// The path of a client by Keycloak's own id.
    fn path(&self, id: &str) -> String {
        format!("{}/{}", self.clients, encoded(id))
    }

    /// The client of this very name, whatever its id.
    async fn find(&self, name: &ClientName) -> PortResult<Option<Found>> {
        let path = format!("{}?clientId={}", self.clients, encoded(name.as_str()));
        let answer = self.admin.call("GET", &path, None).await?;
        if answer.status != 200 {
            return Err(answer.refused("find a binding's client", &[]));
        }
        let found: Vec<Found> = answer.json()?;
        Ok(found.into_iter().find(|client| client.client_id == name.as_str()))
    }

    /// Sets the client that is there already to the desired state.
    async fn adopt(&self, name: &ClientName, mut wanted: Value, secret: &str) -> PortResult<()> {
        let Some(found) = self.find(name).await? else {
            // Gone again since, or the id is taken in another realm.
            return Err(PortError::new(
                PortErrorKind::Conflict,
                "The identity provider says that this binding's client exists and does not show it.",
            ));
        };
        if found.attributes.managed.as_deref() != Some("true") {
            return Err(PortError::denied(
                "The identity provider has a client of this binding's name that the broker did not make; tell its operator.",
            )
            .with_detail(format!(
                "ALARM: somebody else made the client {} in the realm {}",
                name.as_str(),
                self.settings.realm
            )));
        }
        // Before the client is enabled again, what it must not have is taken away.
        self.scopes(&found).await?;
        wanted["id"] = json!(found.id);
        let answer = self
            .admin
            .call("PUT", &self.path(&found.id), Some(&wanted))
            .await?;
        match answer.status {
            200 | 204 => Ok(()),
            404 => Err(PortError::new(
                PortErrorKind::Conflict,
                "This binding's client at the identity provider went away meanwhile.",
            )),
            _ => Err(answer.refused("set a binding's client", &[secret])),
        }
    }

    /// Scopes are the one thing that Keycloak leaves as it is when a client is set.
    async fn scopes(&self, found: &Found) -> PortResult<()> {
        let surplus: Vec<(&str, &String)> = found
            .default_scopes
            .iter()
            .filter(|scope| !client::SCOPES.contains(&scope.as_str()))
            .map(|scope| ("default", scope))
            .chain(found.optional_scopes.iter().map(|scope| ("optional", scope)))
            .collect();
        for kind in ["default", "optional"] {
            if !surplus.iter().any(|(of, _)| *of == kind) {
                continue;
            }
            let path = format!("{}/{kind}-client-scopes", self.path(&found.id));
            let answer = self.admin.call("GET", &path, None).await?;
            if answer.status != 200 {
                return Err(answer.refused("read the scopes of a binding's client", &[]));
            }
            let scopes: Vec<Scope> = answer.json()?;
            for scope in scopes {
                if !surplus.contains(&(kind, &scope.name)) {
                    continue;
                }
                let path = format!("{path}/{}", encoded(&scope.id));
                let answer = self.admin.call("DELETE", &path, None).await?;
                if !matches!(answer.status, 200 | 204 | 404) {
                    return Err(answer.refused("take a scope from a binding's client", &[]));
                }
            }
        }
        Ok(())
    }

    /// Refuses a service account that another binding has: Keycloak takes both, and then lets neither in.
    async fn alone(&self, name: &ClientName, auth: &ClientAuth) -> PortResult<()> {
        let (Some(subject), Some(provider)) = (client::subject(auth), &self.settings.kubernetes_provider)
        else {
            return Ok(());
        };
        let search = format!("jwt.credential.issuer:\"{provider}\" jwt.credential.sub:\"{subject}\"");
        let path = format!("{}?max={PAGE}&q={}", self.clients, encoded(&search));
        let answer = self.admin.call("GET", &path, None).await?;
        if answer.status != 200 {
            return Err(answer.refused("look for a service account", &[]));
        }
        let found: Vec<Found> = answer.json()?;
        if found.iter().all(|other| other.client_id == name.as_str()) {
            return Ok(());
        }
        Err(PortError::invalid(
            "client_auth: another binding has this service account; make one for each binding.",
        ))
    }

    /// Sends one call about a client to its own id, and when that is not there, to the id the name has.
    ///
    /// None when there is no client of this name.
    async fn about(
        &self,
        name: &ClientName,
        (method, below, body): (&str, &str, Option<&Value>),
    ) -> PortResult<Option<http::Answer>> {
        let usual = name.id(&self.settings.realm);
        let path = format!("{}{below}", self.path(&usual));
        let answer = self.admin.call(method, &path, body).await?;
        if answer.status != 404 {
            return Ok(Some(answer));
        }
        // A realm that was moved by hand may know it under another id.
        match self.find(name).await? {
            Some(found) if found.id != usual => {
                let path = format!("{}{below}", self.path(&found.id));
                let answer = self.admin.call(method, &path, body).await?;
                Ok(Some(answer).filter(|answer| answer.status != 404))
            }
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl BindingIdentity for Keycloak {
    fn coordinates(&self, binding: &BindingRef, auth: &ClientAuth) -> Map<String, Value> {
        let issuer = self.settings.issuer();
        let mut told = Map::from_iter([
            ("client_id".to_owned(), json!(binding.client_id())),
            (
                "token_uri".to_owned(),
                json!(format!("{issuer}/protocol/openid-connect/token")),
            ),
            ("grant_type".to_owned(), json!("client_credentials")),
            ("audience".to_owned(), json!(self.settings.audience)),
        ]);
        let method = match auth {
            ClientAuth::ClientSecret => "client_secret",
            ClientAuth::PrivateKeyJwt { .. } => "private_key_jwt",
            ClientAuth::Kubernetes { .. } => "kubernetes",
        };
        told.insert("client_auth".to_owned(), json!(method));
        if *auth != ClientAuth::ClientSecret {
            // What the application's assertion must be meant for: one value alone.
            told.insert("assertion_audience".to_owned(), json!(issuer));
        }
        told.insert("issuer".to_owned(), json!(issuer));
        told
    }

    fn generate(&self, auth: &ClientAuth) -> PortResult<Secret> {
        client::check_auth(auth, self.settings.kubernetes_provider.as_deref())?;
        if *auth != ClientAuth::ClientSecret {
            return Ok(Secret::default());
        }
        let mut random = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(random.as_mut())
            .map_err(|_| PortError::transient("The system gives no random numbers; try again."))?;
        Ok(Secret::from_pairs([(
            "client_secret",
            BASE64URL_NOPAD.encode(random.as_ref()),
        )]))
    }

    async fn ensure(&self, spec: &IdentitySpec) -> PortResult<()> {
        let name = ClientName::of(&spec.binding.bid)?;
        let wanted = client::desired(&name, spec, &self.common())?;
        let secret = spec.secret.text("client_secret");
        self.alone(&name, &spec.auth).await?;
        let answer = self.admin.call("POST", &self.clients, Some(&wanted)).await?;
        match answer.status {
            200 | 201 => {}
            409 => self.adopt(&name, wanted, secret).await?,
            _ => return Err(answer.refused("make a binding's client", &[secret])),
        }
        // Two binds at the same moment see each other here at the latest, and both end.
        self.alone(&name, &spec.auth).await
    }

    async fn proof(&self, binding: &BindingRef, auth: &ClientAuth) -> PortResult<Option<Secret>> {
        let name = ClientName::of(&binding.bid)?;
        let with_secret = *auth == ClientAuth::ClientSecret;
        let below = if with_secret { "/client-secret" } else { "" };
        let Some(answer) = self.about(&name, ("GET", below, None)).await? else {
            return Ok(None);
        };
        if answer.status != 200 {
            return Err(answer.refused("read a binding's client", &[]));
        }
        if !with_secret {
            return Ok(Some(Secret::default()));
        }
        let mut read: ClientSecret = answer.json()?;
        let secret = Secret::from_pairs([("client_secret", read.value.clone())]);
        read.value.zeroize();
        if secret.text("client_secret").is_empty() {
            return Err(PortError::denied(
                "The identity provider does not show the secret of this binding's client; tell the broker's operator.",
            ));
        }
        Ok(Some(secret))
    }

    async fn disable(&self, bid: &str) -> PortResult<()> {
        let name = ClientName::of(bid)?;
        // Only what is sent is changed.
        let off = json!({"clientId": name.as_str(), "enabled": false});
        match self.about(&name, ("PUT", "", Some(&off))).await? {
            None => Ok(()),
            Some(answer) if matches!(answer.status, 200 | 204) => Ok(()),
            Some(answer) => Err(answer.refused("disable a binding's client", &[])),
        }
    }

    async fn delete(&self, bid: &str) -> PortResult<()> {
        let name = ClientName::of(bid)?;
        match self.about(&name, ("DELETE", "", None)).await? {
            None => Ok(()),
            Some(answer) if matches!(answer.status, 200 | 204) => Ok(()),
            Some(answer) => Err(answer.refused("remove a binding's client", &[])),
        }
    }

    /// `next` is how many were looked at; a client that is removed meanwhile may move another one to a page that was
    /// read already, where the next sweep finds it.
    async fn page(&self, after: Option<&str>) -> PortResult<Page<FoundIdentity>> {
        let first: usize = after.unwrap_or("0").parse().map_err(|_| {
            PortError::invalid("A list of the identity provider is asked for from a place it never gave.")
        })?;
        let path = format!(
            "{}?clientId={}&search=true&first={first}&max={PAGE}",
            self.clients,
            encoded(CLIENT_PREFIX)
        );
        let answer = self.admin.call("GET", &path, None).await?;
        if answer.status != 200 {
            return Err(answer.refused("list the bindings' clients", &[]));
        }
        let found: Vec<Found> = answer.json()?;
        let next = (found.len() == PAGE).then(|| (first + PAGE).to_string());
        let items = found
            .into_iter()
            // The server looks for the text anywhere in the name.
            .filter(|client| client.client_id.starts_with(CLIENT_PREFIX))
            .map(|client| FoundIdentity {
                bid: bid_of_client(&client.client_id).map(str::to_owned),
                client_id: client.client_id,
                enabled: client.enabled,
            })
            .collect();
        Ok(Page { items, next })
    }
}
