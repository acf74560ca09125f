//! How an application gets to its credentials, and how it proves who it is on the way (docs/security.md).
//!
//! The choice is made once, when a bind is accepted: the parameter `delivery`, else what the plan, the platform or the
//! broker name first, always within what is allowed and there. The broker's own parameters ([`PARAMETERS`]) are taken
//! out before a plan's schema judges the rest; where nothing of this is configured they do not exist.

use super::error::Error;
use super::names;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fmt;

#[cfg(test)]
mod tests;

/// The bind parameters that are the broker's own. No plan's schema may use these names.
pub const PARAMETERS: [&str; 3] = ["delivery", "client_auth", "secret_namespace"];
/// Most bytes of a JSON Web Key Set, as text: an identity provider keeps it in one attribute.
const MAX_JWKS: usize = 5_000;
/// Most keys in one: the present one and those it is exchanged with.
const MAX_KEYS: usize = 8;
/// Members of a key that only its owner may know, and those that lead to keys elsewhere.
const NOT_IN_A_PUBLIC_KEY: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "x5u"];

/// What the answer to a bind carries. Stored as the lower-case word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Where the secret is and how to fetch it: no password of the instance.
    Reference,
    /// The credentials themselves.
    #[default]
    Inline,
    /// The name of a Secret in the application's own namespace (servicebinding.io).
    Secret,
}

impl Delivery {
    /// All, the most careful first.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Secret, Self::Inline];

    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Inline => "inline",
            Self::Secret => "secret",
        }
    }

    /// The delivery a word means.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.as_str() == word)
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an application proves to the identity provider that it is the binding's owner.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "method")]
pub enum ClientAuth {
    /// With a secret that the broker makes and the bind answers.
    #[default]
    ClientSecret,
    /// With assertions signed by the application's own key: nothing secret is handed out at all.
    PrivateKeyJwt {
        /// The public keys, a JSON Web Key Set.
        jwks: Value,
    },
    /// With the token of a Kubernetes service account, one for each binding.
    Kubernetes {
        /// Namespace of the service account.
        namespace: String,
        /// Its name.
        service_account: String,
    },
}

/// A binding as servers around the instance know it: every outside name derives from this alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BindingRef {
    /// Whose it is: the platform's name.
    pub tenant: String,
    /// The instance.
    pub iid: String,
    /// The binding.
    pub bid: String,
}

impl BindingRef {
    /// Its client at the identity provider, and the last part of its path in the vault.
    pub fn client_id(&self) -> String {
        names::client_id(&self.bid)
    }
}

/// What of all this a platform may have here.
#[expect(
    clippy::struct_excessive_bools,
    reason = "four independent facts about what is configured"
)]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    /// Ways it may use, its usual one first.
    pub allowed: Vec<Delivery>,
    /// There is an identity provider.
    pub identity: bool,
    /// There is a vault.
    pub vault: bool,
    /// Secrets can be put into namespaces.
    pub projection: bool,
    /// An application may prove itself with the token of its service account.
    pub service_accounts: bool,
    /// Namespaces this platform's Secrets may be put into.
    pub namespaces: Vec<String>,
}

/// How one binding's credentials are handed over.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Handing {
    /// What the answer carries.
    pub delivery: Delivery,
    /// How the application proves who it is, where that matters.
    pub auth: ClientAuth,
    /// Where the Secret goes (`secret`).
    pub namespace: Option<String>,
}

impl Handing {
    /// The service account that stands for the application, `<namespace>/<name>`: no two bindings may share one.
    pub fn service_account(&self) -> Option<String> {
        match &self.auth {
            ClientAuth::Kubernetes {
                namespace,
                service_account,
            } => Some(format!("{namespace}/{service_account}")),
            _ => None,
        }
    }
}

impl Ways {
    /// Whether a bind parameter of this name is the broker's own here.
    pub fn knows(&self, parameter: &str) -> bool {
        match parameter {
            "delivery" => self.identity || self.vault || self.projection,
            "client_auth" => self.identity,
            "secret_namespace" => self.projection,
            _ => false,
        }
    }

    /// The parameters that are the plan's: all but the broker's own.
    pub fn of_the_plan(&self, parameters: &Map<String, Value>) -> Map<String, Value> {
        let plans = parameters.iter().filter(|(name, _)| !self.knows(name));
        plans.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn is_there(&self, delivery: Delivery) -> bool {
        match delivery {
            Delivery::Reference => self.vault && self.identity,
            Delivery::Secret => self.projection && !self.namespaces.is_empty(),
            Delivery::Inline => true,
        }
    }

    /// Decides how a binding is handed over. `plan` = the plan's ways, the usual one first, none = it does not care;
    /// `before` = that of the binding it follows.
    ///
    /// Errors: 400 naming the parameter at fault.
    pub fn decide(
        &self,
        plan: &[Delivery],
        before: Option<Delivery>,
        parameters: &Map<String, Value>,
    ) -> Result<Handing, Error> {
        let usual = if plan.is_empty() { &self.allowed } else { plan };
        let open: Vec<Delivery> = usual
            .iter()
            .copied()
            .filter(|way| self.allowed.contains(way) && self.is_there(*way))
            .collect();
        let asked = parameters.get("delivery").filter(|_| self.knows("delivery"));
        let delivery = match asked {
            None => before
                .filter(|way| open.contains(way))
                .or_else(|| open.first().copied())
                .ok_or_else(|| bad("delivery", "nothing this plan and this platform both allow can be had here; the operator has to look"))?,
            Some(asked) => asked
                .as_str()
                .and_then(Delivery::parse)
                .filter(|way| open.contains(way))
                .ok_or_else(|| {
                    let words: Vec<&str> = open.iter().map(|way| way.as_str()).collect();
                    bad("delivery", &format!("choose one of {}", words.join(", ")))
                })?,
        };
        let auth = if self.knows("client_auth") {
            client_auth(parameters)?
        } else {
            ClientAuth::ClientSecret
        };
        if matches!(auth, ClientAuth::Kubernetes { .. }) && !self.service_accounts {
            return Err(bad(
                "client_auth.method",
                "service accounts are not set up here; choose client_secret or private_key_jwt",
            ));
        }
        if delivery == Delivery::Secret && parameters.contains_key("client_auth") {
            return Err(bad(
                "client_auth",
                "means nothing with the delivery secret: whoever may read the Secret has the credentials",
            ));
        }
        Ok(Handing {
            namespace: self.namespace(delivery, parameters)?,
            delivery,
            auth,
        })
    }

    fn namespace(
        &self,
        delivery: Delivery,
        parameters: &Map<String, Value>,
    ) -> Result<Option<String>, Error> {
        let asked = parameters
            .get("secret_namespace")
            .filter(|_| self.knows("secret_namespace"));
        match (delivery, asked, self.namespaces.as_slice()) {
            (Delivery::Secret, None, [only]) => Ok(Some(only.clone())),
            (Delivery::Secret, asked, namespaces) => namespaces
                .iter()
                .find(|namespace| asked == Some(&json!(namespace)))
                .map(|namespace| Some(namespace.clone()))
                .ok_or_else(|| {
                    bad(
                        "secret_namespace",
                        &format!("choose one of {}", namespaces.join(", ")),
                    )
                }),
            (_, None, _) => Ok(None),
            (way, Some(_), _) => Err(bad(
                "secret_namespace",
                &format!("means nothing with the delivery {way}"),
            )),
        }
    }

    /// What a catalog's bind schemas say of the broker's own parameters; empty where there are none.
    pub fn schema(&self) -> Map<String, Value> {
        let ways: Vec<&str> = Delivery::ALL
            .into_iter()
            .filter(|way| match way {
                // Which namespaces are open is said for each platform, and the catalog is one for all.
                Delivery::Secret => self.projection,
                way => self.is_there(*way),
            })
            .map(Delivery::as_str)
            .collect();
        let name = json!({"type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"});
        let mut methods = vec!["client_secret", "private_key_jwt"];
        if self.service_accounts {
            methods.push("kubernetes");
        }
        let own = [
            (
                "delivery",
                json!({"type": "string", "enum": ways, "description": "What the answer carries: where to fetch the credentials, the name of a Secret, or the credentials themselves"}),
            ),
            (
                "client_auth",
                json!({
                    "type": "object", "additionalProperties": false, "required": ["method"],
                    "description": "How the application proves who it is when it fetches its credentials",
                    "properties": {
                        "method": {"type": "string", "enum": methods},
                        "jwks": {
                            "type": "object", "additionalProperties": false, "required": ["keys"],
                            "description": "With private_key_jwt: the application's public keys, a JSON Web Key Set",
                            "properties": {"keys": {"type": "array", "minItems": 1, "maxItems": MAX_KEYS, "items": {"type": "object"}}}
                        },
                        "namespace": name.clone(),
                        "service_account": name.clone(),
                    }
                }),
            ),
            (
                "secret_namespace",
                json!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
                    "description": "With the delivery secret: the namespace it goes to"}),
            ),
        ];
        own.into_iter()
            .filter(|(name, _)| self.knows(name))
            .map(|(name, schema)| (name.to_owned(), schema))
            .collect()
    }
}

/// Reads the parameter `client_auth`. Errors: 400 naming the member at fault.
pub fn client_auth(parameters: &Map<String, Value>) -> Result<ClientAuth, Error> {
    let Some(asked) = parameters.get("client_auth") else {
        return Ok(ClientAuth::ClientSecret);
    };
    let Some(asked) = asked.as_object() else {
        return Err(bad("client_auth", "must be an object with the member method"));
    };
    let (method, members): (_, &[&str]) = match asked.get("method").and_then(Value::as_str) {
        Some("client_secret") => ("client_secret", &[]),
        Some("private_key_jwt") => ("private_key_jwt", &["jwks"]),
        Some("kubernetes") => ("kubernetes", &["namespace", "service_account"]),
        _ => {
            return Err(bad(
                "client_auth.method",
                "choose one of client_secret, private_key_jwt, kubernetes",
            ));
        }
    };
    if asked
        .keys()
        .any(|name| name != "method" && !members.contains(&name.as_str()))
    {
        let known = ["method"].iter().chain(members).copied().collect::<Vec<_>>();
        return Err(bad(
            "client_auth",
            &format!(
                "with the method {method} it has {} and nothing else",
                known.join(", ")
            ),
        ));
    }
    let name = |member: &str, longest: usize, dots: bool| {
        asked
            .get(member)
            .and_then(Value::as_str)
            .filter(|name| is_object_name(name, longest, dots))
            .map(str::to_owned)
            .ok_or_else(|| {
                bad(
                    &format!("client_auth.{member}"),
                    "must be the name of a Kubernetes object: a-z 0-9 -, not beginning or ending with -",
                )
            })
    };
    Ok(match method {
        "private_key_jwt" => ClientAuth::PrivateKeyJwt {
            jwks: public_keys(asked.get("jwks").unwrap_or(&Value::Null))?,
        },
        "kubernetes" => ClientAuth::Kubernetes {
            namespace: name("namespace", 63, false)?,
            service_account: name("service_account", 253, true)?,
        },
        _ => ClientAuth::ClientSecret,
    })
}

/// A JSON Web Key Set, provided that it is small and holds public keys only: it is stored and shown.
fn public_keys(jwks: &Value) -> Result<Value, Error> {
    let wrong = |why: &str| Err(bad("client_auth.jwks", why));
    let keys = jwks.get("keys").and_then(Value::as_array);
    let Some(keys) = keys.filter(|keys| (1..=MAX_KEYS).contains(&keys.len())) else {
        return wrong(&format!(
            "must be a JSON Web Key Set given in the request itself: an object with 1 to {MAX_KEYS} keys"
        ));
    };
    if jwks.as_object().is_some_and(|members| members.len() > 1) {
        return wrong("has the member keys and nothing else");
    }
    if jwks.to_string().len() > MAX_JWKS {
        return wrong(&format!("is larger than {MAX_JWKS} bytes"));
    }
    for key in keys {
        let Some(members) = key.as_object() else {
            return wrong("every key must be an object");
        };
        // Said without the value: whoever sends a private key has given it away already, and it must not spread.
        if members
            .keys()
            .any(|name| NOT_IN_A_PUBLIC_KEY.contains(&name.as_str()))
        {
            return wrong(
                "holds a private or shared key; send only the public part, and make a new key because this one has been seen",
            );
        }
        if !matches!(
            members.get("kty").and_then(Value::as_str),
            Some("RSA" | "EC" | "OKP")
        ) {
            return wrong("every key needs kty, one of RSA, EC and OKP");
        }
    }
    Ok(jwks.clone())
}

fn is_object_name(name: &str, longest: usize, dots: bool) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.');
    let outside = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= longest
        && outside(bytes.first())
        && outside(bytes.last())
        && bytes.iter().copied().all(inside)
}

fn bad(parameter: &str, why: &str) -> Error {
    Error::bad_request(format!("parameters.{parameter}: {why}."))
}
