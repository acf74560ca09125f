//! How an application gets to its credentials, and how it proves who it is on the way (docs/security.md).

use super::names;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

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
