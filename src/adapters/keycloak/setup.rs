//! Makes a realm ready for the broker, with the rights of an administrator who is asked once: `chandler bootstrap keycloak`.
//!
//! What must stay true: what is printed for review and what is sent are made by the same functions; everything may be
//! repeated and changes only what differs; the broker's client ends up with exactly one role, whatever it had before; a
//! realm in which people live is left alone.

use super::admin::{Admin, realm_path};
use super::check::older;
use super::http::{Http, encoded};
use super::token::{LogIn, ReadSecret};
use crate::ports::{PortError, PortResult};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The client in every realm that stands for its administration.
const ADMINISTRATION: &str = "realm-management";

/// The one role the broker gets.
pub(super) const ROLE: &str = "manage-clients";

/// Kind of component that bounds clients' own registration.
const REGISTRATION: &str = "org.keycloak.services.clientregistration.policy.ClientRegistrationPolicy";

/// Who may register clients: without any log-in, and with an initial token.
const REGISTRANTS: [&str; 2] = ["anonymous", "authenticated"];

/// How the administrator logs in.
pub enum Operator {
    /// With name and password.
    Person {
        /// Name.
        username: String,
        /// Password.
        password: ReadSecret,
    },
    /// With an access token made elsewhere.
    Token(ReadSecret),
}

/// How the broker will prove who it is.
pub enum BrokerProof {
    /// With this secret.
    Secret(SecretString),
    /// With the private half of these keys.
    Keys(Value),
}

/// What is to be there.
pub struct Plan {
    /// Realm of the bindings' clients.
    pub realm: String,
    /// The broker's client.
    pub client_id: String,
    /// How it proves who it is.
    pub proof: BrokerProof,
    /// Alias and issuer of a Kubernetes cluster whose service accounts applications may log in with.
    pub kubernetes: Option<(String, String)>,
    /// Lowest version without a warning.
    pub min_version: String,
    /// An older one is refused instead.
    pub refuse_older: bool,
}

/// One step of a [`Plan`] on a server that has nothing of it yet.
pub struct Step {
    /// What it does and why, for people.
    pub title: String,
    /// `POST`.
    pub method: &'static str,
    /// Path; names in braces stand for ids that the server gives.
    pub path: String,
    /// What is sent.
    pub body: Value,
}

/// What [`Setup::apply`] did, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// It was so already.
    Had(String),
    /// It is new, or different now.
    Changed(String),
    /// Somebody should look at it.
    Warning(String),
}

impl Plan {
    /// Every step, in order.
    pub fn steps(&self) -> Vec<Step> {
        let realm = realm_path(&self.realm);
        let role = json!([{"id": "{manage-clients}", "name": ROLE}]);
        let mut steps = vec![Step {
            title: "A realm for the bindings' clients and nothing else: no registration, no people.".into(),
            method: "POST",
            path: "/admin/realms".into(),
            body: self.new_realm(),
        }];
        for who in REGISTRANTS {
            steps.push(Step {
                title: format!(
                    "Nobody registers clients there ({who}): each could get a token the vault believes."
                ),
                method: "POST",
                path: format!("{realm}/components"),
                body: no_registration(who),
            });
        }
        steps.push(Step {
            title: "The broker's own client.".into(),
            method: "POST",
            path: format!("{realm}/clients"),
            body: self.broker(),
        });
        steps.push(Step {
            title: format!("Its tokens may carry the role {ROLE} and no other."),
            method: "POST",
            path: format!("{realm}/clients/{{broker}}/scope-mappings/clients/{{{ADMINISTRATION}}}"),
            body: role.clone(),
        });
        steps.push(Step {
            title: "It has that role. This amounts to administrator of this realm: who may make clients may give them any role of it.".into(),
            method: "POST",
            path: format!("{realm}/users/{{service account of broker}}/role-mappings/clients/{{{ADMINISTRATION}}}"),
            body: role,
        });
        if let Some((alias, issuer)) = &self.kubernetes {
            steps.push(Step {
                title: "The cluster whose service accounts applications may log in with.".into(),
                method: "POST",
                path: format!("{realm}/identity-provider/instances"),
                body: cluster(alias, issuer),
            });
        }
        steps
    }

    fn new_realm(&self) -> Value {
        let mut realm = realm_settings();
        realm["realm"] = json!(self.realm);
        realm
    }

    fn broker(&self) -> Value {
        let mut client = json!({
            "clientId": self.client_id,
            "name": "chandler",
            "description": "The service broker: makes and removes the clients of bindings.",
            "protocol": "openid-connect",
            "enabled": true,
            "publicClient": false,
            "bearerOnly": false,
            "serviceAccountsEnabled": true,
            "standardFlowEnabled": false,
            "implicitFlowEnabled": false,
            "directAccessGrantsEnabled": false,
            "fullScopeAllowed": false,
            "redirectUris": [],
            "webOrigins": [],
            "defaultClientScopes": ["basic", "roles"],
            "optionalClientScopes": [],
            "attributes": {"access.token.lifespan": "300"},
        });
        match &self.proof {
            BrokerProof::Secret(secret) => {
                client["clientAuthenticatorType"] = json!("client-secret");
                client["secret"] = json!(secret.expose_secret());
            }
            BrokerProof::Keys(keys) => {
                let keys = keys.as_str().map_or_else(|| keys.to_string(), str::to_owned);
                client["clientAuthenticatorType"] = json!("client-jwt");
                client["attributes"]["use.jwks.string"] = json!("true");
                client["attributes"]["use.jwks.url"] = json!("false");
                client["attributes"]["jwks.string"] = json!(keys);
            }
        }
        client
    }
}

fn realm_settings() -> Value {
    json!({
        "enabled": true,
        "registrationAllowed": false,
        "registrationEmailAsUsername": false,
        "resetPasswordAllowed": false,
        "rememberMe": false,
        "bruteForceProtected": true,
        "accessTokenLifespan": 300,
        // What the vault's log-in is told to expect.
        "defaultSignatureAlgorithm": "RS256",
        // Who changed what, for 90 days, without what it was changed to: that may be a secret.
        "adminEventsEnabled": true,
        "adminEventsDetailsEnabled": false,
        "attributes": {"adminEventsExpiration": "7776000"},
    })
}

fn no_registration(who: &str) -> Value {
    json!({
        "name": format!("chandler: none ({who})"),
        "providerId": "max-clients",
        "providerType": REGISTRATION,
        "subType": who,
        "config": {"max-clients": ["0"]},
    })
}

fn cluster(alias: &str, issuer: &str) -> Value {
    json!({
        "alias": alias,
        "providerId": "kubernetes",
        "enabled": true,
        "hideOnLogin": true,
        "config": {"issuer": issuer},
    })
}

/// Whether everything in `wanted` is in `present` too; Keycloak adds things of its own.
fn covers(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, wanted)| present.get(name).is_some_and(|present| covers(present, wanted))),
        (Value::Array(present), Value::Array(wanted)) => {
            present.len() >= wanted.len() && wanted.iter().all(|wanted| present.contains(wanted))
        }
        _ => present == wanted,
    }
}

/// An administrator at work.
pub struct Setup {
    admin: Admin,
}

impl Setup {
    /// At the server `url`, logged in at `operator_realm`; nothing is asked yet.
    pub fn new(
        url: &str,
        ca_pem: Option<&[u8]>,
        request_time: Duration,
        operator_realm: &str,
        operator: Operator,
    ) -> PortResult<Self> {
        let http = Http::new(url, ca_pem, request_time)?;
        let log_in = match operator {
            Operator::Person { username, password } => LogIn::Person { username, password },
            Operator::Token(read) => LogIn::Token(read),
        };
        Ok(Self {
            admin: Admin::new(http, operator_realm, log_in),
        })
    }

    /// Makes everything of `plan` that is not there and sets right what differs; tells each thing as it is done.
    pub async fn apply(&self, plan: &Plan, mut tell: impl FnMut(Done)) -> PortResult<()> {
        let realm = realm_path(&plan.realm);
        self.version(plan, &mut tell).await?;
        self.realm(plan, &realm, &mut tell).await?;
        for who in REGISTRANTS {
            self.registration(&realm, who, &mut tell).await?;
        }
        let broker = self.broker(plan, &realm, &mut tell).await?;
        self.rights(plan, &realm, &broker, &mut tell).await?;
        if let Some((alias, issuer)) = &plan.kubernetes {
            self.cluster(&realm, alias, issuer, &mut tell).await?;
        }
        Ok(())
    }

    /// Removes the realm with everything in it, and with it every binding's way to its secret.
    pub async fn remove_realm(&self, realm: &str) -> PortResult<()> {
        match self.admin.call("DELETE", &realm_path(realm), None).await? {
            answer if matches!(answer.status, 200 | 204 | 404) => Ok(()),
            answer => Err(answer.refused("remove the realm", &[])),
        }
    }

    /// The server's version, for those who may see it.
    async fn version(&self, plan: &Plan, tell: &mut impl FnMut(Done)) -> PortResult<()> {
        let info = self.admin.call("GET", "/admin/serverinfo", None).await?;
        if info.status != 200 {
            return Ok(());
        }
        let info: Value = info.json()?;
        if let Some(version) = info["systemInfo"]["version"].as_str() {
            if !older(version, &plan.min_version) {
                tell(Done::Had(format!("Keycloak {version}")));
                return Ok(());
            }
            let why = format!(
                "Keycloak {version} is older than {}; update it before bindings depend on it.",
                plan.min_version
            );
            if plan.refuse_older {
                return Err(PortError::invalid(why));
            }
            tell(Done::Warning(why));
        }
        Ok(())
    }

    async fn get(&self, path: &str, what: &str) -> PortResult<Option<Value>> {
        let answer = self.admin.call("GET", path, None).await?;
        match answer.status {
            200 => answer.json().map(Some),
            404 => Ok(None),
            _ => Err(answer.refused(what, &[])),
        }
    }

    async fn read(&self, path: &str, what: &str) -> PortResult<Value> {
        self.get(path, what)
            .await?
            .ok_or_else(|| PortError::invalid(format!("Keycloak does not know what was asked for: {what}.")))
    }

    async fn write(&self, method: &str, path: &str, body: &Value, what: &str) -> PortResult<()> {
        let answer = self.admin.call(method, path, Some(body)).await?;
        if (200..300).contains(&answer.status) {
            return Ok(());
        }
        let secret = body["secret"].as_str().unwrap_or_default();
        Err(answer.refused(what, &[secret]))
    }

    async fn realm(&self, plan: &Plan, path: &str, tell: &mut impl FnMut(Done)) -> PortResult<()> {
        let name = format!("realm {}", plan.realm);
        let Some(present) = self.get(path, "read the realm").await? else {
            self.write("POST", "/admin/realms", &plan.new_realm(), "make the realm")
                .await?;
            // The rights to a new realm are in a new token only.
            self.admin.renew().await?;
            tell(Done::Changed(format!("{name}: made")));
            return Ok(());
        };
        let people = self
            .read(&format!("{path}/users?max=3"), "look for users")
            .await?;
        if people.as_array().is_some_and(|people| !people.is_empty()) {
            return Err(PortError::denied(format!(
                "The {name} has users. Give the bindings a realm of their own: the broker will be able to do everything in it.",
            )));
        }
        let wanted = realm_settings();
        let differing: Map<String, Value> = wanted
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(member, wanted)| !covers(&present[member.as_str()], wanted))
            .map(|(member, wanted)| (member.clone(), wanted.clone()))
            .collect();
        if differing.is_empty() {
            tell(Done::Had(name.clone()));
        } else {
            let names: Vec<_> = differing.keys().cloned().collect();
            self.write("PUT", path, &Value::Object(differing), "set the realm")
                .await?;
            tell(Done::Changed(format!("{name}: {}", names.join(", "))));
        }
        let providers = self
            .read(
                &format!("{path}/identity-provider/instances"),
                "look for identity providers",
            )
            .await?;
        for provider in providers.as_array().into_iter().flatten() {
            if provider["providerId"] != "kubernetes" {
                tell(Done::Warning(format!(
                    "{name}: has the identity provider {}; nobody should log in to this realm from elsewhere.",
                    provider["alias"]
                )));
            }
        }
        Ok(())
    }

    async fn registration(&self, realm: &str, who: &str, tell: &mut impl FnMut(Done)) -> PortResult<()> {
        let name = format!("registration of clients ({who})");
        let path = format!("{realm}/components");
        let all = self
            .read(
                &format!("{path}?type={REGISTRATION}"),
                "look at the registration of clients",
            )
            .await?;
        let wanted = no_registration(who);
        let limits: Vec<&Value> = all
            .as_array()
            .into_iter()
            .flatten()
            .filter(|policy| policy["providerId"] == "max-clients" && policy["subType"] == who)
            .collect();
        if limits.iter().any(|limit| limit["config"] == wanted["config"]) {
            tell(Done::Had(format!("{name}: off")));
            return Ok(());
        }
        match limits.first() {
            Some(limit) => {
                let mut changed = (*limit).clone();
                changed["config"] = wanted["config"].clone();
                let id = encoded(limit["id"].as_str().unwrap_or_default());
                self.write("PUT", &format!("{path}/{id}"), &changed, "turn off registration")
                    .await?;
            }
            None => {
                self.write("POST", &path, &wanted, "turn off registration")
                    .await?;
            }
        }
        tell(Done::Changed(format!("{name}: turned off")));
        Ok(())
    }

    /// Keycloak's id of a client.
    async fn client(&self, realm: &str, client_id: &str) -> PortResult<Option<Value>> {
        let path = format!("{realm}/clients?clientId={}", encoded(client_id));
        let found = self.read(&path, "look for a client").await?;
        let found = found.as_array().into_iter().flatten();
        Ok(found
            .into_iter()
            .find(|client| client["clientId"] == client_id)
            .cloned())
    }

    async fn broker(&self, plan: &Plan, realm: &str, tell: &mut impl FnMut(Done)) -> PortResult<String> {
        let name = format!("client {}", plan.client_id);
        let wanted = plan.broker();
        let path = format!("{realm}/clients");
        match self.client(realm, &plan.client_id).await? {
            None => {
                self.write("POST", &path, &wanted, "make the broker's client")
                    .await?;
                tell(Done::Changed(format!("{name}: made")));
            }
            Some(present) if covers(&present, &wanted) => tell(Done::Had(name.clone())),
            Some(present) => {
                let path = format!("{path}/{}", encoded(id_of(&present)?));
                self.write("PUT", &path, &wanted, "set the broker's client")
                    .await?;
                tell(Done::Changed(format!("{name}: set as it should be")));
            }
        }
        let made = self.client(realm, &plan.client_id).await?;
        let made =
            made.ok_or_else(|| PortError::transient(format!("The {name} went away meanwhile; try again.")))?;
        id_of(&made).map(str::to_owned)
    }

    /// Exactly the one role: in what its tokens may carry, and in what its service account has.
    async fn rights(
        &self,
        plan: &Plan,
        realm: &str,
        broker: &str,
        tell: &mut impl FnMut(Done),
    ) -> PortResult<()> {
        let administration = self.client(realm, ADMINISTRATION).await?.ok_or_else(|| {
            PortError::invalid(format!(
                "The realm has no client {ADMINISTRATION}; it is damaged."
            ))
        })?;
        let administration = id_of(&administration)?.to_owned();
        let broker = format!("{realm}/clients/{}", encoded(broker));
        let role = self
            .read(
                &format!("{realm}/clients/{}/roles/{ROLE}", encoded(&administration)),
                "find the role",
            )
            .await?;
        let account = self
            .read(
                &format!("{broker}/service-account-user"),
                "find the service account",
            )
            .await?;
        let account = format!("{realm}/users/{}/role-mappings", encoded(id_of(&account)?));
        let holders = [
            (
                format!("tokens of {}", plan.client_id),
                format!("{broker}/scope-mappings"),
            ),
            (format!("service account of {}", plan.client_id), account),
        ];
        for (name, path) in holders {
            self.exactly(&role, &administration, &name, &path, tell).await?;
        }
        Ok(())
    }

    async fn exactly(
        &self,
        role: &Value,
        administration: &str,
        name: &str,
        path: &str,
        tell: &mut impl FnMut(Done),
    ) -> PortResult<()> {
        let present = self.read(path, "read the broker's roles").await?;
        let mut had = false;
        let mut surplus: Vec<(String, String, Vec<Value>)> = Vec::new();
        let realm_roles = present["realmMappings"].as_array().cloned().unwrap_or_default();
        if !realm_roles.is_empty() {
            surplus.push(("realm".into(), format!("{path}/realm"), realm_roles));
        }
        for (client, mappings) in present["clientMappings"].as_object().into_iter().flatten() {
            let (wanted, others): (Vec<Value>, Vec<Value>) = mappings["mappings"]
                .as_array()
                .cloned()
                .unwrap_or_default()
                .into_iter()
                .partition(|found| found["id"] == role["id"]);
            had |= !wanted.is_empty();
            if !others.is_empty() {
                let path = format!("{path}/clients/{}", encoded(id_of(mappings)?));
                surplus.push((client.clone(), path, others));
            }
        }
        if !had {
            let path = format!("{path}/clients/{}", encoded(administration));
            self.write("POST", &path, &json!([role]), "give the broker its role")
                .await?;
            tell(Done::Changed(format!("{name}: {ROLE} given")));
        }
        for (of, path, roles) in &surplus {
            let names: Vec<_> = roles.iter().filter_map(|role| role["name"].as_str()).collect();
            self.write(
                "DELETE",
                path,
                &json!(roles),
                "take surplus roles from the broker",
            )
            .await?;
            tell(Done::Changed(format!(
                "{name}: taken away: {} ({of})",
                names.join(", ")
            )));
        }
        if had && surplus.is_empty() {
            tell(Done::Had(format!("{name}: {ROLE} and nothing else")));
        }
        Ok(())
    }

    async fn cluster(
        &self,
        realm: &str,
        alias: &str,
        issuer: &str,
        tell: &mut impl FnMut(Done),
    ) -> PortResult<()> {
        let name = format!("identity provider {alias}");
        let path = format!("{realm}/identity-provider/instances");
        let own = format!("{path}/{}", encoded(alias));
        let wanted = cluster(alias, issuer);
        match self.get(&own, "read the identity provider").await? {
            None => {
                self.write("POST", &path, &wanted, "make the identity provider")
                    .await?;
                tell(Done::Changed(format!("{name}: made, for {issuer}")));
            }
            Some(present) if covers(&present, &wanted) => tell(Done::Had(name)),
            Some(present) if present["providerId"] == "kubernetes" => {
                self.write("PUT", &own, &wanted, "set the identity provider")
                    .await?;
                tell(Done::Changed(format!("{name}: set to {issuer}")));
            }
            Some(_) => {
                return Err(PortError::denied(format!(
                    "There is an {name} of another kind; name another alias in `keycloak.kubernetes_provider`.",
                )));
            }
        }
        Ok(())
    }
}

fn id_of(representation: &Value) -> PortResult<&str> {
    representation["id"]
        .as_str()
        .ok_or_else(|| PortError::transient("Keycloak's answer has no id in it."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn present_may_be_more_than_wanted_and_never_less() {
        let present = json!({"a": 1, "list": ["x", "y"], "deep": {"b": "c", "d": 2}});
        for wanted in [
            json!({}),
            json!({"a": 1}),
            json!({"list": ["y"]}),
            json!({"deep": {"b": "c"}}),
        ] {
            assert!(covers(&present, &wanted), "{wanted}");
        }
        for wanted in [
            json!({"a": 2}),
            json!({"e": 1}),
            json!({"list": ["z"]}),
            json!({"deep": {"b": 1}}),
        ] {
            assert!(!covers(&present, &wanted), "{wanted}");
        }
    }

    #[test]
    fn the_steps_say_what_is_sent() {
        let plan = Plan {
            realm: "osb bindings".into(),
            client_id: "osb-broker".into(),
            proof: BrokerProof::Secret("<content of FILE>".into()),
            kubernetes: Some(("cluster".into(), "https://kubernetes.default.svc".into())),
            min_version: "26.6".into(),
            refuse_older: false,
        };
        let steps = plan.steps();
        assert_eq!(steps.len(), 7);
        assert_eq!(steps[0].body["registrationAllowed"], false);
        assert_eq!(steps[3].body["secret"], "<content of FILE>");
        assert_eq!(steps[3].body["fullScopeAllowed"], false);
        assert!(steps.iter().all(|step| step.path.starts_with("/admin/realms")));
        assert!(steps[5].title.contains("amounts to administrator"));
        assert!(steps[1].path.contains("osb%20bindings"));
    }
}
