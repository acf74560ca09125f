//! What a binding's client looks like at Keycloak: its name, its id and everything that is set in it. No call is made here.
//!
//! What must stay true: a name exists only as [`ClientName`], which is made in one place and checked there. The vault's
//! policy is filled in with that name, and Keycloak accepts any: a client called `osb-b-*` could read every binding.

use crate::domain::delivery::ClientAuth;
use crate::domain::names;
use crate::ports::{IdentitySpec, PortError, PortResult};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// Longest name or description, in bytes: beyond 255 Keycloak fails with 500.
const LONGEST: usize = 255;

/// Longest key set of an application, in bytes of JSON.
const LARGEST_KEY_SET: usize = 16 * 1024;

/// Most keys in it.
const MOST_KEYS: usize = 10;

/// What the ids of clients derive from, together with the realm: Keycloak's ids are unique in all its realms.
const NAMESPACE: Uuid = Uuid::from_u128(0xfa3e_91fe_16f2_4ecd_a2ad_7cc1_434b_c614);

/// The attribute by which the broker knows its own clients.
pub(super) const MANAGED: &str = "osb.managed";

/// Scopes that a binding's client has: the one it is given, and the one Keycloak gives every service account.
pub(super) const SCOPES: [&str; 2] = ["basic", "service_account"];

/// The name of a binding's client: `osb-b-` and 26 characters of `a-z2-7`, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientName(String);

impl ClientName {
    /// The one place where names are made and checked.
    pub fn of(bid: &str) -> PortResult<Self> {
        let name = names::client_id(bid);
        if names::bid_of_client(&name) == Some(bid) {
            Ok(Self(name))
        } else {
            Err(
                PortError::invalid("This binding's name is not one the broker gives; tell its operator.")
                    .with_detail(
                        "no client is made with a name other than osb-b- and 26 characters of a-z2-7",
                    ),
            )
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Keycloak's own id of the client, the same whenever and by whomever it is made.
    pub fn id(&self, realm: &str) -> String {
        Uuid::new_v5(&NAMESPACE, format!("{realm}\n{}", self.0).as_bytes()).to_string()
    }
}

/// What all clients of bindings have in common.
pub(super) struct Common<'a> {
    pub realm: &'a str,
    pub audience: &'a str,
    pub token_seconds: u32,
    pub kubernetes_provider: Option<&'a str>,
}

/// Whether an application can prove who it is in this way; the error is for the application's developer.
pub(super) fn check_auth(auth: &ClientAuth, kubernetes_provider: Option<&str>) -> PortResult<()> {
    let wrong = |why: &str| Err(PortError::invalid(format!("client_auth: {why}")));
    match auth {
        ClientAuth::ClientSecret => Ok(()),
        ClientAuth::PrivateKeyJwt { jwks } => check_keys(jwks).or_else(wrong),
        ClientAuth::Kubernetes {
            namespace,
            service_account,
        } => {
            if kubernetes_provider.is_none() {
                return wrong(
                    "this broker's identity provider knows no Kubernetes cluster; use another method.",
                );
            }
            if !is_label(namespace)
                || !service_account.split('.').all(is_label)
                || service_account.len() > 253
            {
                return wrong("namespace and service_account must be names as Kubernetes has them.");
            }
            if service_account == "default" {
                return wrong(
                    "every pod of the namespace has the service account `default`; make one for this binding.",
                );
            }
            Ok(())
        }
    }
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Public keys for signatures and nothing else: Keycloak would keep a private one, too, and show it to administrators.
fn check_keys(jwks: &Value) -> Result<(), &'static str> {
    let keys = match jwks.get("keys").and_then(Value::as_array) {
        Some(keys) if (1..=MOST_KEYS).contains(&keys.len()) => keys,
        _ => return Err("jwks must be a JSON Web Key Set with one to ten keys: {\"keys\": [...]}."),
    };
    if jwks.to_string().len() > LARGEST_KEY_SET {
        return Err("jwks is larger than 16 KiB.");
    }
    for key in keys {
        let has = |member: &str| key.get(member).is_some_and(Value::is_string);
        if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"]
            .iter()
            .any(|member| key.get(*member).is_some())
        {
            return Err(
                "jwks holds a private or shared key. Give public keys only, and replace that one: it has been seen.",
            );
        }
        let complete = match key["kty"].as_str() {
            Some("RSA") => has("n") && has("e"),
            Some("EC") => has("crv") && has("x") && has("y"),
            Some("OKP") => has("crv") && has("x"),
            _ => false,
        };
        if !complete {
            return Err("each key in jwks must be a whole public key of kind RSA, EC or OKP.");
        }
        if key.get("use").is_some_and(|used| used != "sig") {
            return Err("each key in jwks must be one for signatures (\"use\": \"sig\").");
        }
    }
    Ok(())
}

/// Everything that is set in a binding's client, as it is sent to make it and to set it right.
pub(super) fn desired(name: &ClientName, spec: &IdentitySpec, common: &Common<'_>) -> PortResult<Value> {
    check_auth(&spec.auth, common.kubernetes_provider)?;
    let mut client = json!({
        "id": name.id(common.realm),
        "clientId": name.as_str(),
        "name": cut(&spec.label),
        "protocol": "openid-connect",
        "enabled": true,
        "publicClient": false,
        "bearerOnly": false,
        "consentRequired": false,
        "serviceAccountsEnabled": true,
        "standardFlowEnabled": false,
        "implicitFlowEnabled": false,
        "directAccessGrantsEnabled": false,
        "fullScopeAllowed": false,
        "redirectUris": [],
        "webOrigins": [],
        // `basic` gives `sub`; any other would bring roles, and with them an audience of Keycloak's own.
        "defaultClientScopes": ["basic"],
        "optionalClientScopes": [],
        "attributes": {
            MANAGED: "true",
            "osb.tenant": spec.binding.tenant,
            "osb.instance": spec.binding.iid,
            "access.token.lifespan": common.token_seconds.to_string(),
            "client_credentials.use_refresh_token": "false",
            "standard.token.exchange.enabled": "false",
            "oauth2.device.authorization.grant.enabled": "false",
            "oidc.ciba.grant.enabled": "false",
            // A short token leaves out what mappers put in.
            "client.use.lightweight.access.token.enabled": "false",
        },
        "protocolMappers": [
            audience(common.audience),
            claim("osb_kind", "binding"),
            claim("osb_tenant", &spec.binding.tenant),
            claim("osb_instance", &spec.binding.iid),
        ],
    });
    let (authenticator, extra) = proof(spec, common)?;
    client["clientAuthenticatorType"] = json!(authenticator);
    if let Some(attributes) = client["attributes"].as_object_mut() {
        attributes.extend(extra);
    }
    if spec.auth == ClientAuth::ClientSecret {
        client["secret"] = json!(spec.secret.text("client_secret"));
    }
    Ok(client)
}

/// Whose tokens a cluster's service account carries; none for the other proofs.
pub(super) fn subject(auth: &ClientAuth) -> Option<String> {
    match auth {
        ClientAuth::Kubernetes {
            namespace,
            service_account,
        } => Some(format!("system:serviceaccount:{namespace}:{service_account}")),
        _ => None,
    }
}

/// The word for how the client proves who it is, and the attributes that belong to it.
fn proof(spec: &IdentitySpec, common: &Common<'_>) -> PortResult<(&'static str, Map<String, Value>)> {
    let attributes = |pairs: &[(&str, String)]| {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect()
    };
    Ok(match &spec.auth {
        ClientAuth::ClientSecret => {
            let length = spec.secret.text("client_secret").len();
            if !(32..=LONGEST).contains(&length) {
                return Err(PortError::invalid(
                    "This binding's stored client secret is damaged; tell the broker's operator.",
                ));
            }
            ("client-secret", Map::new())
        }
        ClientAuth::PrivateKeyJwt { jwks } => {
            let pairs = [
                ("use.jwks.string", "true".to_owned()),
                ("use.jwks.url", "false".to_owned()),
                ("jwks.string", jwks.to_string()),
            ];
            ("client-jwt", attributes(&pairs))
        }
        ClientAuth::Kubernetes { .. } => {
            let subject = subject(&spec.auth).unwrap_or_default();
            let provider = common.kubernetes_provider.unwrap_or_default().to_owned();
            let pairs = [
                ("jwt.credential.issuer", provider),
                ("jwt.credential.sub", subject),
            ];
            ("federated-jwt", attributes(&pairs))
        }
    })
}

fn audience(audience: &str) -> Value {
    json!({
        "name": "osb-audience",
        "protocol": "openid-connect",
        // A custom audience: that of a client would be left out silently while that client is disabled.
        "protocolMapper": "oidc-audience-mapper",
        "config": {
            "included.custom.audience": audience,
            "access.token.claim": "true",
            "id.token.claim": "false",
            "introspection.token.claim": "true",
        },
    })
}

fn claim(name: &str, value: &str) -> Value {
    json!({
        "name": name.replace('_', "-"),
        "protocol": "openid-connect",
        "protocolMapper": "oidc-hardcoded-claim-mapper",
        "config": {
            "claim.name": name,
            "claim.value": value,
            "jsonType.label": "String",
            "access.token.claim": "true",
            "id.token.claim": "false",
            "userinfo.token.claim": "false",
            "introspection.token.claim": "true",
        },
    })
}

/// As much of a text as Keycloak has room for.
fn cut(text: &str) -> &str {
    let mut end = LONGEST.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::domain::delivery::BindingRef;
    use crate::domain::secret::Secret;
    use crate::ports::PortErrorKind;

    fn spec(auth: ClientAuth) -> IdentitySpec {
        IdentitySpec {
            binding: BindingRef {
                tenant: "cf".into(),
                iid: "i".repeat(26),
                bid: "b".repeat(26),
            },
            label: "postgres/small".into(),
            auth,
            secret: Secret::from_pairs([("client_secret", "s".repeat(43))]),
        }
    }

    fn common(provider: Option<&str>) -> Common<'_> {
        Common {
            realm: "osb-bindings",
            audience: "osb-vault",
            token_seconds: 120,
            kubernetes_provider: provider,
        }
    }

    fn made(auth: ClientAuth, provider: Option<&str>) -> PortResult<Value> {
        let spec = spec(auth);
        desired(
            &ClientName::of(&spec.binding.bid).unwrap(),
            &spec,
            &common(provider),
        )
    }

    #[test]
    fn only_names_the_broker_gives_become_clients() {
        let good = "abcdefghijklmnopqrstuvwxyz".to_owned();
        let name = ClientName::of(&good).unwrap();
        assert_eq!(name.as_str(), format!("osb-b-{good}"));
        assert_ne!(name.id("one"), name.id("other"), "ids are unique in all realms");
        assert_eq!(name.id("one"), ClientName::of(&good).unwrap().id("one"));
        let long = "a".repeat(27);
        let short = "a".repeat(25);
        for bad in [
            "*",
            "",
            "+",
            "..",
            &long,
            &short,
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            "abcdefghijklmnopqrstuvwxy*",
            "abcdefghijklmnopqrstuvwxy/",
            "abcdefghijklmnopqrstuvwxy1",
            "abcdefghijklmnopqrstuvwxy{",
            "abcdefghijklmnopqrstuvwxy\n",
            "abcdefghijklmnopqrstuvwxé",
        ] {
            let refused = ClientName::of(bad).unwrap_err();
            assert_eq!(refused.kind, PortErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn a_client_can_do_nothing_but_get_its_own_token() {
        let client = made(ClientAuth::ClientSecret, None).unwrap();
        for off in [
            "publicClient",
            "bearerOnly",
            "consentRequired",
            "standardFlowEnabled",
            "implicitFlowEnabled",
            "directAccessGrantsEnabled",
            "fullScopeAllowed",
        ] {
            assert_eq!(client[off], false, "{off}");
        }
        assert_eq!(client["enabled"], true);
        assert_eq!(client["serviceAccountsEnabled"], true);
        assert_eq!(client["defaultClientScopes"], json!(["basic"]));
        assert_eq!(client["clientAuthenticatorType"], "client-secret");
        assert_eq!(client["secret"], "s".repeat(43));
        assert_eq!(client["attributes"]["access.token.lifespan"], "120");
        let claims: Vec<_> = client["protocolMappers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mapper| {
                (
                    mapper["config"]["claim.name"].as_str(),
                    mapper["config"]["claim.value"].as_str(),
                )
            })
            .collect();
        let iid = "i".repeat(26);
        assert_eq!(
            claims,
            [
                (None, None),
                (Some("osb_kind"), Some("binding")),
                (Some("osb_tenant"), Some("cf")),
                (Some("osb_instance"), Some(iid.as_str())),
            ]
        );
    }

    #[test]
    fn the_other_proofs_hand_out_no_secret() {
        let jwks = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "eA", "y": "eQ"}]});
        let client = made(ClientAuth::PrivateKeyJwt { jwks: jwks.clone() }, None).unwrap();
        assert_eq!(client["clientAuthenticatorType"], "client-jwt");
        assert_eq!(client["attributes"]["jwks.string"], jwks.to_string());
        assert!(client.get("secret").is_none());
        let auth = ClientAuth::Kubernetes {
            namespace: "shop".into(),
            service_account: "orders.v2".into(),
        };
        let client = made(auth.clone(), Some("cluster")).unwrap();
        assert_eq!(client["clientAuthenticatorType"], "federated-jwt");
        assert_eq!(client["attributes"]["jwt.credential.issuer"], "cluster");
        assert_eq!(
            client["attributes"]["jwt.credential.sub"],
            "system:serviceaccount:shop:orders.v2"
        );
        assert!(client.get("secret").is_none());
        assert!(
            made(auth, None)
                .unwrap_err()
                .message
                .contains("no Kubernetes cluster")
        );
    }

    #[test]
    fn key_sets_that_are_not_public_keys_are_refused() {
        let private = json!({"kty": "RSA", "n": "a", "e": "b", "d": "c"});
        for (jwks, said) in [
            (json!(null), "Key Set"),
            (json!({"keys": []}), "Key Set"),
            (json!({"keys": vec![json!({}); 11]}), "Key Set"),
            (json!({"keys": [private]}), "private"),
            (json!({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}), "shared"),
            (json!({"keys": [{"kty": "RSA", "n": "a"}]}), "whole"),
            (json!({"keys": [{"kty": "RSA", "n": 1, "e": 2}]}), "whole"),
            (json!({"keys": ["RSA"]}), "whole"),
            (
                json!({"keys": [{"kty": "RSA", "n": "a", "e": "b", "use": "enc"}]}),
                "signatures",
            ),
            (
                json!({"keys": [{"kty": "RSA", "n": "a".repeat(17_000), "e": "b"}]}),
                "larger",
            ),
        ] {
            let refused = made(ClientAuth::PrivateKeyJwt { jwks }, None).unwrap_err();
            assert_eq!(refused.kind, PortErrorKind::Invalid);
            assert!(refused.message.contains(said), "{}", refused.message);
            assert!(!refused.message.contains("c2VjcmV0"));
        }
    }

    #[test]
    fn a_service_account_is_one_applications_own() {
        for (namespace, service_account) in [
            ("", "a"),
            ("a", ""),
            ("a:b", "c"),
            ("a", "b:c"),
            ("A", "b"),
            ("a", "-b"),
            ("a.b", "c"),
            ("a", "default"),
        ] {
            let auth = ClientAuth::Kubernetes {
                namespace: namespace.into(),
                service_account: service_account.into(),
            };
            assert!(
                made(auth, Some("cluster")).is_err(),
                "{namespace}:{service_account}"
            );
        }
    }

    #[test]
    fn long_labels_are_cut_and_missing_secrets_are_not_sent() {
        let mut long = spec(ClientAuth::ClientSecret);
        long.label = "ü".repeat(300);
        let name = ClientName::of(&long.binding.bid).unwrap();
        let client = desired(&name, &long, &common(None)).unwrap();
        assert_eq!(client["name"].as_str().unwrap().len(), 254);
        long.secret = Secret::default();
        assert!(desired(&name, &long, &common(None)).is_err());
    }
}
