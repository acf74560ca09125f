//! How an application proves to Keycloak that it is its binding's client: a secret, a key of its own, or the token of
//! its service account.
//!
//! What must stay true: a file is read each time it is needed, because platforms replace it; what it holds is in no
//! `Debug` and no error.

use super::source::read;
use super::{Failure, From};
use crate::app::SystemClock;
use crate::config;
use crate::ports::Clock;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;

/// Seconds that a signed log-in is good for.
const ASSERTION_SECONDS: i64 = 60;

/// What says that the parameter `client_assertion` is a JWT (RFC 7523).
pub(super) const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How a client proves who it is.
#[derive(Clone)]
pub(super) enum Proof {
    /// With the secret itself.
    Secret(SecretString),
    /// With the secret in this file.
    SecretFile(PathBuf),
    /// With log-ins signed by the key in this file.
    Key {
        /// PEM.
        file: PathBuf,
        /// The key's id in the client's key set.
        id: Option<String>,
    },
    /// With the service account's token in this file.
    Token(PathBuf),
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret(_) | Self::SecretFile(_) => "Proof(secret)",
            Self::Key { .. } => "Proof(key)",
            Self::Token(_) => "Proof(token)",
        })
    }
}

impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Secret(a), Self::Secret(b)) => a.expose_secret() == b.expose_secret(),
            (Self::SecretFile(a), Self::SecretFile(b)) | (Self::Token(a), Self::Token(b)) => a == b,
            (Self::Key { file: a, id: i }, Self::Key { file: b, id: j }) => a == b && i == j,
            _ => false,
        }
    }
}

impl Eq for Proof {}

/// What is added to the request for a token.
pub(super) enum Shown {
    /// Name and password of the client.
    Secret(SecretString),
    /// A signed statement.
    Assertion(SecretString),
}

impl Proof {
    /// The proof that arguments name, else the secret of the binding's description.
    pub fn of(from: &From, keycloak: &Value) -> Result<Self, Failure> {
        if let Some(file) = &from.private_key_file {
            let id = from.key_id.clone();
            return Ok(Self::Key {
                file: file.clone(),
                id,
            });
        }
        if let Some(file) = &from.token_file {
            return Ok(Self::Token(file.clone()));
        }
        if let Some(file) = &from.client_secret_file {
            return Ok(Self::SecretFile(file.clone()));
        }
        if let Some(name) = &from.client_secret_env {
            return match config::variable(name) {
                Some(secret) if !secret.is_empty() => Ok(Self::Secret(secret.into())),
                _ => Err(Failure::input(format!(
                    "The environment holds no {name}, which should be the client's secret."
                ))),
            };
        }
        match keycloak["client_secret"].as_str() {
            Some(secret) if !secret.is_empty() => Ok(Self::Secret(secret.into())),
            _ => Err(Failure::input(
                "The binding's description holds no client secret: give --client-secret-file, --private-key-file or \
                 --token-file, whichever the binding was made with.",
            )),
        }
    }

    /// What to send now, for a client of the realm `audience`.
    pub fn show(&self, client_id: &str, audience: &str) -> Result<Shown, Failure> {
        Ok(match self {
            Self::Secret(secret) => Shown::Secret(secret.clone()),
            Self::SecretFile(file) => Shown::Secret(content(file)?),
            Self::Token(file) => Shown::Assertion(content(file)?),
            Self::Key { file, id } => {
                let key = content(file)?;
                let signed = sign(key.expose_secret(), id.as_deref(), client_id, audience);
                Shown::Assertion(signed.ok_or_else(|| {
                    let shown = file.display();
                    Failure::input(format!(
                        "{shown} holds no private key (PEM, PKCS #8: RSA, P-256 or Ed25519)."
                    ))
                })?)
            }
        })
    }
}

fn content(file: &std::path::Path) -> Result<SecretString, Failure> {
    let text = read(file)?;
    match text.trim() {
        "" => Err(Failure::input(format!("{} is empty.", file.display()))),
        text => Ok(text.into()),
    }
}

/// A statement of the client about itself, with which it logs in once.
fn sign(pem: &str, key_id: Option<&str>, client_id: &str, audience: &str) -> Option<SecretString> {
    let pem = pem.as_bytes();
    let (algorithm, key) = EncodingKey::from_rsa_pem(pem)
        .map(|key| (Algorithm::RS256, key))
        .or_else(|_| EncodingKey::from_ec_pem(pem).map(|key| (Algorithm::ES256, key)))
        .or_else(|_| EncodingKey::from_ed_pem(pem).map(|key| (Algorithm::EdDSA, key)))
        .ok()?;
    let now = SystemClock.now() / 1000;
    let claims = json!({
        "iss": client_id, "sub": client_id, "aud": audience, "iat": now, "exp": now + ASSERTION_SECONDS,
        "jti": uuid::Uuid::new_v4().to_string(),
    });
    let header = Header {
        kid: key_id.map(str::to_owned),
        ..Header::new(algorithm)
    };
    jsonwebtoken::encode(&header, &claims, &key)
        .ok()
        .map(SecretString::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use data_encoding::BASE64URL_NOPAD;
    use std::path::Path;
    use std::process::Command;

    /// A fresh key in PEM, made by the tool people use for it.
    fn key(dir: &Path, arguments: &[&str]) -> PathBuf {
        let file = dir.join(arguments[1].replace(':', "-"));
        let made = Command::new("openssl")
            .arg("genpkey")
            .args(arguments)
            .arg("-out")
            .arg(&file)
            .output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        file
    }

    #[test]
    fn usual_keys_sign() {
        let dir = tempfile::tempdir().unwrap();
        for (arguments, algorithm) in [
            (
                &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"][..],
                "RS256",
            ),
            (
                &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
                "ES256",
            ),
            (&["-algorithm", "ED25519"], "EdDSA"),
        ] {
            let file = key(dir.path(), arguments);
            let proof = Proof::Key {
                file,
                id: Some("k1".to_owned()),
            };
            let Shown::Assertion(signed) = proof.show("osb-b-x", "https://kc/realms/r").unwrap() else {
                unreachable!("a key signs")
            };
            let part = |n: usize| -> Value {
                let text = signed.expose_secret().split('.').nth(n).unwrap();
                serde_json::from_slice(&BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()).unwrap()
            };
            assert_eq!(
                (part(0)["alg"].as_str(), part(0)["kid"].as_str()),
                (Some(algorithm), Some("k1"))
            );
            let claims = part(1);
            assert_eq!(claims["iss"], "osb-b-x");
            assert_eq!(claims["sub"], "osb-b-x");
            assert_eq!(claims["aud"], "https://kc/realms/r");
            assert_eq!(
                claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
                ASSERTION_SECONDS
            );
            let Shown::Assertion(again) = proof.show("osb-b-x", "https://kc/realms/r").unwrap() else {
                unreachable!("a key signs")
            };
            assert_ne!(
                signed.expose_secret(),
                again.expose_secret(),
                "each log-in is used once"
            );
        }
    }

    #[test]
    fn what_cannot_prove_anything_is_told_without_quoting_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        for (content, said) in [("", "is empty"), ("hunter2hunter2", "holds no private key")] {
            std::fs::write(&file, content).unwrap();
            let proof = Proof::Key {
                file: file.clone(),
                id: None,
            };
            let failure = proof.show("x", "y").err().unwrap();
            assert!(failure.message.contains(said), "{}", failure.message);
            assert!(!format!("{failure:?}{proof:?}").contains("hunter2"));
        }
        let token = Proof::Token(dir.path().join("absent"));
        assert!(
            token
                .show("x", "y")
                .err()
                .unwrap()
                .message
                .contains("cannot be read")
        );
        // Read anew each time.
        std::fs::write(&file, "one\n").unwrap();
        let proof = Proof::Token(file.clone());
        for content in ["one", "two"] {
            std::fs::write(&file, content).unwrap();
            let Ok(Shown::Assertion(shown)) = proof.show("x", "y") else {
                unreachable!("a token is shown")
            };
            assert_eq!(shown.expose_secret(), content);
        }
    }
}
