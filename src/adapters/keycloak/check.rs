//! Whether the realm is as the broker needs it, seen with the broker's own rights: `chandler doctor`.
//!
//! What must stay true: nothing is changed, and no finding shows a secret or a token. The one request that is no reading
//! asks for a client whose address cannot be one, so that even a server that lets strangers register makes none.

use super::http::{Body, encoded};
use super::setup::ROLE;
use super::{Found, Keycloak, PAGE};
use crate::domain::names::{CLIENT_PREFIX, bid_of_client};
use crate::ports::{Finding, PortError, PortResult};
use data_encoding::BASE64URL_NOPAD;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

/// Clients that every realm has.
const BUILT_IN: [&str; 6] = [
    "account",
    "account-console",
    "admin-cli",
    "broker",
    "realm-management",
    "security-admin-console",
];

/// Most clients that are named one by one.
const NAMED: usize = 10;

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Whether the broker can do its work: three requests.
    Quick,
    /// At every client of the realm, too, and at what else might be wrong.
    Whole,
}

fn failed(what: &str, error: &PortError) -> Finding {
    let mut found = Finding::failure(error);
    found.text = format!("{what}: {}", found.text);
    found
}

/// Whether `version` is below `wanted`, number by number; what is no number counts as 0.
pub(super) fn older(version: &str, wanted: &str) -> bool {
    let numbers = |text: &str| -> Vec<u64> {
        let parts = text.split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or(0)
        });
        parts.chain(std::iter::repeat(0)).take(4).collect()
    };
    numbers(version) < numbers(wanted)
}

impl Keycloak {
    /// Looks at what the broker can see of its realm.
    pub async fn check(&self, look: Look) -> Vec<Finding> {
        let mut found = Vec::new();
        if !self.check_discovery(&mut found).await {
            return found;
        }
        let logged_in = self.check_token(&mut found).await;
        if look == Look::Whole {
            found.push(self.check_registration().await);
            if logged_in {
                self.check_clients(&mut found).await;
                self.check_server(&mut found).await;
            }
        }
        found
    }

    async fn check_discovery(&self, found: &mut Vec<Finding>) -> bool {
        let realm = encoded(&self.settings.realm);
        let path = format!("/realms/{realm}/.well-known/openid-configuration");
        let answer = match self.admin.http().send("GET", &path, None, Body::Nothing).await {
            Ok(answer) => answer,
            Err(error) => {
                found.push(failed("Keycloak", &error));
                return false;
            }
        };
        if answer.status == 404 {
            found.push(Finding::error(format!(
                    "Keycloak has no realm {}: run `chandler bootstrap keycloak`, or correct `keycloak.realm` and `keycloak.url`.",
                    self.settings.realm
                ),
            ));
            return false;
        }
        if answer.status != 200 {
            found.push(failed(
                "Keycloak",
                &answer.refused("read the realm's description", &[]),
            ));
            return false;
        }
        let told = answer.json::<Value>().unwrap_or_default();
        let expected = self.settings.issuer();
        match told["issuer"].as_str() {
            Some(issuer) if issuer == expected => {
                found.push(Finding::good(format!("The realm's issuer is {issuer}.")));
            }
            // Keycloak without a fixed `hostname` names itself by the address it is asked at.
            Some(issuer) if issuer == format!("{}/realms/{realm}", self.settings.url.trim_end_matches('/')) => {
                found.push(Finding::warning(format!(
                    "The realm calls itself {issuer} here and is expected to call itself {expected} towards applications: set Keycloak's `hostname`, so that it has one name."
                )));
            }
            other => found.push(Finding::error(format!(
                    "The realm calls itself {}, the configuration says {expected}: no token would be believed. Correct `keycloak.public_url` or Keycloak's `hostname`.",
                    other.unwrap_or("nothing")
                ),
            )),
        }
        true
    }

    /// Whether strangers may register clients: each such client could get a token for the vault.
    async fn check_registration(&self) -> Finding {
        let realm = encoded(&self.settings.realm);
        let path = format!("/realms/{realm}/clients-registrations/openid-connect");
        // Policies are asked before the address is looked at, and it can never be one.
        let body = json!({"redirect_uris": ["http://[no address"]});
        let answer = self
            .admin
            .http()
            .send("POST", &path, None, Body::Json(&body))
            .await;
        match answer.map(|answer| answer.status) {
            Ok(401 | 403) => Finding::good("Nobody can register clients without a log-in."),
            Ok(404 | 405) => Finding::good("This server has no registration of clients."),
            Ok(400 | 201) => Finding::error(
                "ANYBODY can register clients in this realm, and each gets tokens: run `chandler bootstrap keycloak`.",
            ),
            Ok(status) => Finding::warning(format!(
                "Whether strangers can register clients could not be seen (status {status})."
            )),
            Err(error) => failed("Registration of clients", &error),
        }
    }

    /// Whether the broker gets in, and with which rights.
    async fn check_token(&self, found: &mut Vec<Finding>) -> bool {
        let client_id = &self.settings.client_id;
        let token = match self.admin.token().await {
            Ok(token) => token,
            Err(error) => {
                found.push(failed(&format!("The log-in of {client_id}"), &error));
                return false;
            }
        };
        match roles_of(token.text.expose_secret()) {
            Ok(roles) => found.push(judged(client_id, roles)),
            Err(error) => found.push(failed("The broker's token", &error)),
        }
        true
    }

    /// Whether the realm holds anything but the broker and its bindings.
    async fn check_clients(&self, found: &mut Vec<Finding>) {
        let (mut bindings, mut strange, mut others) = (0_usize, Vec::new(), Vec::new());
        let mut first = 0;
        loop {
            let page = match self.clients_from(first).await {
                Ok(page) => page,
                Err(error) => {
                    found.push(failed("The list of clients", &error));
                    return;
                }
            };
            first += page.len();
            let last = page.len() < PAGE;
            for client in page {
                let name = client.client_id;
                if bid_of_client(&name).is_some() {
                    bindings += 1;
                } else if name.starts_with(CLIENT_PREFIX) {
                    strange.push(name);
                } else if name != self.settings.client_id && !BUILT_IN.contains(&name.as_str()) {
                    others.push(name);
                }
            }
            if last {
                break;
            }
        }
        found.push(Finding::good(format!("Clients of bindings: {bindings}.")));
        if !strange.is_empty() {
            found.push(Finding::error(format!(
                    "ALARM: clients named as the broker never names one, which could read other bindings' secrets: {}. Disable them, then find out who made them.",
                    some_of(&strange)
                ),
            ));
        }
        if !others.is_empty() {
            found.push(Finding::warning(format!(
                "The realm has clients that are not the broker's: {}. It should be for bindings alone.",
                some_of(&others)
            )));
        }
    }

    async fn clients_from(&self, first: usize) -> PortResult<Vec<Found>> {
        let path = format!("{}?first={first}&max={PAGE}", self.clients);
        let answer = self.admin.call("GET", &path, None).await?;
        if answer.status != 200 {
            return Err(answer.refused("list the clients", &[]));
        }
        answer.json()
    }

    /// What can be seen of server and realm beside the clients.
    async fn check_server(&self, found: &mut Vec<Finding>) {
        let path = format!("{}-initial-access", self.clients);
        if let Ok(answer) = self.admin.call("GET", &path, None).await
            && answer.status == 200
            && let Ok(Value::Array(tokens)) = answer.json::<Value>()
            && !tokens.is_empty()
        {
            found.push(Finding::warning(format!(
                "Initial access tokens for registering clients exist in this realm: {}. Remove them.",
                tokens.len()
            )));
        }
        let info = match self.admin.call("GET", "/admin/serverinfo", None).await {
            Ok(answer) if answer.status == 200 => answer.json::<Value>().unwrap_or_default(),
            _ => Value::Null,
        };
        let least = &self.settings.min_version;
        found.push(match info["systemInfo"]["version"].as_str() {
            Some(version) if older(version, least) => {
                let text = format!("Keycloak {version} is older than {least}: update it.");
                if self.settings.refuse_older {
                    Finding::error(text)
                } else {
                    Finding::warning(text)
                }
            }
            Some(version) => Finding::good(format!("Keycloak {version}.")),
            None => Finding::warning(format!(
                    "Keycloak does not tell its version to the broker; make sure that it is {least} or later (`chandler bootstrap keycloak` sees it)."
                ),
            ),
        });
        if self.settings.kubernetes_provider.is_some() {
            found.push(federation(&info));
        }
    }
}

/// Whether clients can log in with tokens of a cluster.
fn federation(info: &Value) -> Finding {
    let feature = info["features"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|feature| feature["name"] == "CLIENT_AUTH_FEDERATED");
    match feature.map(|feature| feature["enabled"] == true) {
        Some(true) => {
            Finding::good("Service accounts of the cluster can log in (client-auth-federated is on).")
        }
        Some(false) => Finding::error(
            "`keycloak.kubernetes_provider` is set, but this Keycloak has the feature client-auth-federated off.",
        ),
        None => Finding::warning(
            "Whether this Keycloak has the feature client-auth-federated, which `keycloak.kubernetes_provider` needs, could not be seen.",
        ),
    }
}

/// All roles in a token, as `client/role`; `realm/role` for those of the realm. The token came from the server itself
/// just now, so its signature is not looked at.
fn roles_of(token: &str) -> PortResult<Vec<String>> {
    let claims: Value = token
        .split('.')
        .nth(1)
        .and_then(|part| BASE64URL_NOPAD.decode(part.as_bytes()).ok())
        .and_then(|text| serde_json::from_slice(&text).ok())
        .ok_or_else(|| PortError::invalid("The broker's token cannot be read: it is no JWT."))?;
    let holders = claims["resource_access"].as_object().into_iter().flatten();
    let holders = holders.map(|(client, access)| (client.as_str(), access));
    let holders = holders.chain([("realm", &claims["realm_access"])]);
    Ok(holders
        .flat_map(|(holder, access)| {
            let roles = access["roles"].as_array().into_iter().flatten();
            roles.filter_map(move |role| role.as_str().map(|role| format!("{holder}/{role}")))
        })
        .collect())
}

fn judged(client_id: &str, roles: Vec<String>) -> Finding {
    let wanted = format!("realm-management/{ROLE}");
    if !roles.contains(&wanted) {
        return Finding::error(format!(
            "{client_id} gets in, but may not make clients: it lacks {wanted}. Run `chandler bootstrap keycloak`."
        ));
    }
    let surplus: Vec<_> = roles.into_iter().filter(|role| *role != wanted).collect();
    if surplus.is_empty() {
        Finding::good(format!(
            "{client_id} gets in with the role {ROLE} and no other. That amounts to administrator of this realm, so nothing else may live in it."
        ))
    } else {
        Finding::warning(format!(
            "{client_id} has rights it does not need: {}. `chandler bootstrap keycloak` takes them away.",
            some_of(&surplus)
        ))
    }
}

/// The first few names; those of clients may hold anything.
fn some_of(names: &[String]) -> String {
    let mut text: Vec<String> = names
        .iter()
        .take(NAMED)
        .map(|name| name.escape_debug().take(100).collect())
        .collect();
    if names.len() > NAMED {
        text.push(format!("and {} more", names.len() - NAMED));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::ports::Grade;

    #[test]
    fn versions_are_compared_number_by_number() {
        for (version, wanted, is_older) in [
            ("26.7.0", "26.6", false),
            ("26.6.0", "26.6", false),
            ("26.10.1", "26.6", false),
            ("27.0.0", "26.6", false),
            ("26.5.9", "26.6", true),
            ("25.9", "26", true),
            ("26.6.1.redhat-00002", "26.6.2", true),
            ("999-SNAPSHOT", "26.6", false),
        ] {
            assert_eq!(older(version, wanted), is_older, "{version} {wanted}");
        }
    }

    fn token(claims: &Value) -> String {
        format!(
            "e30.{}.sig",
            BASE64URL_NOPAD.encode(claims.to_string().as_bytes())
        )
    }

    #[test]
    fn the_brokers_rights_are_exactly_one_role() {
        let one = json!({"resource_access": {"realm-management": {"roles": ["manage-clients"]}}});
        let more = json!({
            "resource_access": {"realm-management": {"roles": ["manage-clients", "manage-users"]}},
            "realm_access": {"roles": ["admin"]},
        });
        let none = json!({"realm_access": {"roles": ["manage-clients"]}});
        for (claims, grade, said) in [
            (one, Grade::Good, "amounts to administrator"),
            (more, Grade::Warning, "realm-management/manage-users, realm/admin"),
            (none, Grade::Error, "lacks realm-management/manage-clients"),
        ] {
            let found = judged("osb-broker", roles_of(&token(&claims)).unwrap());
            assert_eq!(found.grade, grade);
            assert!(found.text.contains(said), "{}", found.text);
        }
        assert!(roles_of("opaque").is_err());
    }

    #[test]
    fn a_list_stays_short_and_readable() {
        let names: Vec<_> = (0..12).map(|n| format!("a{n}\n")).collect();
        let text = some_of(&names);
        assert!(text.ends_with("and 2 more") && !text.contains('\n'), "{text}");
    }
}
