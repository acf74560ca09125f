//! The broker's own log-in at Keycloak: one access token, kept until shortly before it ends.
//!
//! What must stay true: however many calls need a token at once, one log-in is under way; a log-in that failed fails
//! everybody who waited for it, so that nobody waits for a row of time limits; secret and key are read for each log-in,
//! so that a changed file counts without a restart; each assertion has a number of its own, because Keycloak refuses a
//! repeated one.

use super::http::{Body, Http, encoded};
use crate::domain::instance::Millis;
use crate::ports::{Clock, PortError, PortResult};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// How long before its end a token is not used any more.
const MARGIN: Duration = Duration::from_secs(10);

/// How long an assertion is valid, in seconds: for one request, with some room for clocks.
const ASSERTION_LIFE: Millis = 60;

/// Reads a secret where it is kept; an error says what is wrong with that place, never a part of the secret.
pub type ReadSecret = Arc<dyn Fn() -> Result<SecretString, String> + Send + Sync>;

/// How the broker's client proves who it is.
#[derive(Clone)]
pub enum Proof {
    /// With a shared secret.
    Secret(ReadSecret),
    /// With assertions signed by a private key: PEM, PKCS #8, of the kinds RSA, P-256, P-384 or Ed25519.
    PrivateKey(ReadSecret),
}

/// Who logs in.
pub(super) enum LogIn {
    /// A client with a service account.
    Client {
        client_id: String,
        /// Issuer of the realm, which assertions are meant for.
        issuer: String,
        proof: Proof,
        clock: Arc<dyn Clock>,
    },
    /// A person, for setting up.
    Person { username: String, password: ReadSecret },
    /// Nobody: somebody else did and left the token here.
    Token(ReadSecret),
}

/// A token with its number; a higher number is newer.
#[derive(Clone)]
pub(super) struct Token {
    pub text: Arc<SecretString>,
    pub number: u64,
}

struct Current {
    token: Token,
    until: Instant,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    failed: Option<(Instant, PortError)>,
    last_number: u64,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: u64,
}

/// The tokens of one log-in at one realm.
pub(super) struct Tokens {
    realm: String,
    log_in: LogIn,
    state: Mutex<State>,
}

impl Tokens {
    pub fn new(realm: &str, log_in: LogIn) -> Self {
        Self {
            realm: realm.to_owned(),
            log_in,
            state: Mutex::default(),
        }
    }

    /// A token to use now; never again one with the number `refused`.
    pub async fn get(&self, http: &Http, refused: Option<u64>) -> PortResult<Token> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(current) = &state.current
            && current.until > Instant::now()
            && Some(current.token.number) != refused
        {
            return Ok(current.token.clone());
        }
        if let Some((at, error)) = &state.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        state.current = None;
        let began = Instant::now();
        match self.log_in(http).await {
            Ok(granted) => {
                state.last_number += 1;
                let life = Duration::from_secs(granted.expires_in);
                let token = Token {
                    text: Arc::new(granted.access_token.into()),
                    number: state.last_number,
                };
                state.failed = None;
                state.current = Some(Current {
                    token: token.clone(),
                    until: began + life.saturating_sub(MARGIN).max(life / 2),
                });
                Ok(token)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn log_in(&self, http: &Http) -> PortResult<Granted> {
        let kept;
        let mut fields = vec![("grant_type", "client_credentials")];
        match &self.log_in {
            LogIn::Token(read) => {
                let access_token = read_secret(read)?.expose_secret().to_owned();
                return Ok(Granted {
                    access_token,
                    expires_in: 60,
                });
            }
            LogIn::Person { username, password } => {
                kept = read_secret(password)?;
                fields = vec![
                    ("grant_type", "password"),
                    ("client_id", "admin-cli"),
                    ("username", username),
                    ("password", kept.expose_secret()),
                ];
            }
            LogIn::Client {
                client_id,
                proof: Proof::Secret(read),
                ..
            } => {
                kept = read_secret(read)?;
                fields.push(("client_id", client_id));
                fields.push(("client_secret", kept.expose_secret()));
            }
            LogIn::Client {
                client_id,
                issuer,
                proof: Proof::PrivateKey(read),
                clock,
            } => {
                kept = Key::read(read)?.assertion(client_id, issuer, clock.now())?.into();
                fields.push(("client_id", client_id));
                fields.push((
                    "client_assertion_type",
                    "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                ));
                fields.push(("client_assertion", kept.expose_secret()));
            }
        }
        let path = format!("/realms/{}/protocol/openid-connect/token", encoded(&self.realm));
        let answer = http.send("POST", &path, None, Body::Form(&fields)).await?;
        match answer.status {
            200 => answer.json(),
            // Keycloak gives one and the same reason several statuses and names: none of them passes by itself.
            400..=404 => {
                let detail = answer.refused("log in", &[kept.expose_secret()]).detail;
                let message = match self.log_in {
                    LogIn::Client { .. } => {
                        "The identity provider does not accept the broker's log-in; tell the broker's operator."
                    }
                    LogIn::Person { .. } | LogIn::Token(_) => {
                        "Keycloak does not accept this name and password."
                    }
                };
                Err(PortError::denied(message).with_detail(detail))
            }
            _ => Err(answer.refused("log in", &[kept.expose_secret()])),
        }
    }
}

fn read_secret(read: &ReadSecret) -> PortResult<SecretString> {
    read().map_err(|why| {
        PortError::denied(
            "The broker's own log-in at the identity provider cannot be read; tell its operator.",
        )
        .with_detail(why)
    })
}

/// A private key that signs assertions.
pub struct Key {
    key: EncodingKey,
    algorithm: Algorithm,
    public: Jwk,
    id: String,
}

impl Key {
    /// A new key in PEM form: P-256, PKCS #8.
    pub fn generate() -> PortResult<String> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map_err(|_| PortError::transient("The system makes no key; try again."))?;
        let text = Zeroizing::new(data_encoding::BASE64.encode(der.as_ref()));
        let mut pem = "-----BEGIN PRIVATE KEY-----\n".to_owned();
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        Ok(pem)
    }

    /// Reads a key in PEM form and finds out its kind.
    pub fn read(read: &ReadSecret) -> PortResult<Self> {
        let pem = read_secret(read)?;
        let pem = pem.expose_secret().as_bytes();
        let kinds = [
            (EncodingKey::from_rsa_pem(pem), Algorithm::RS256),
            (EncodingKey::from_ec_pem(pem), Algorithm::ES256),
            (EncodingKey::from_ec_pem(pem), Algorithm::ES384),
            (EncodingKey::from_ed_pem(pem), Algorithm::EdDSA),
        ];
        kinds
            .into_iter()
            .find_map(|(key, algorithm)| {
                let key = key.ok()?;
                let public = Jwk::from_encoding_key(&key, algorithm).ok()?;
                // A key of another curve is found out only when it signs.
                encode(&Header::new(algorithm), &json!({}), &key).ok()?;
                Some(Self {
                    id: public.thumbprint(ThumbprintHash::SHA256).ok()?,
                    key,
                    algorithm,
                    public,
                })
            })
            .ok_or_else(|| {
                PortError::denied(
                    "The broker's own key for the identity provider is not usable; tell its operator.",
                )
                .with_detail("the file must hold one private key, PEM, PKCS #8: RSA, P-256, P-384 or Ed25519")
            })
    }

    /// The public half as Keycloak keeps it for a client.
    pub fn key_set(&self) -> PortResult<Value> {
        let mut key = serde_json::to_value(&self.public)
            .map_err(|_| PortError::invalid("The broker's public key cannot be written."))?;
        key["use"] = json!("sig");
        key["kid"] = json!(self.id);
        Ok(json!({"keys": [key]}))
    }

    fn assertion(&self, client_id: &str, issuer: &str, now: Millis) -> PortResult<String> {
        let mut number = [0; 16];
        aws_lc_rs::rand::fill(&mut number)
            .map_err(|_| PortError::transient("The system gives no random numbers; try again."))?;
        let now = now / 1000;
        let claims = json!({
            "iss": client_id, "sub": client_id, "aud": issuer,
            "iat": now, "exp": now + ASSERTION_LIFE,
            "jti": data_encoding::HEXLOWER.encode(&number),
        });
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.clone());
        encode(&header, &claims, &self.key)
            .map_err(|_| PortError::denied("The broker's own key for the identity provider does not sign."))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation, decode};
    use std::collections::BTreeSet;

    fn pem(der: &[u8]) -> ReadSecret {
        let text = data_encoding::BASE64.encode(der);
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        Arc::new(move || Ok(pem.clone().into()))
    }

    fn keys() -> Vec<(ReadSecret, Algorithm)> {
        use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
        use aws_lc_rs::rand::SystemRandom;
        use aws_lc_rs::rsa::{KeyPair, KeySize};
        use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, Ed25519KeyPair};
        let random = SystemRandom::new();
        let rsa = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let rsa: Pkcs8V1Der = rsa.as_der().unwrap();
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let p384 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap();
        let ed = Ed25519KeyPair::generate_pkcs8v1(&random).unwrap();
        vec![
            (pem(rsa.as_ref()), Algorithm::RS256),
            (pem(p256.as_ref()), Algorithm::ES256),
            (pem(p384.as_ref()), Algorithm::ES384),
            (pem(ed.as_ref()), Algorithm::EdDSA),
        ]
    }

    #[test]
    fn every_kind_of_key_signs_what_its_public_half_verifies() {
        for (read, algorithm) in keys() {
            let key = Key::read(&read).unwrap();
            let set = key.key_set().unwrap();
            assert!(
                set["keys"][0].get("d").is_none(),
                "{algorithm:?} shows its private half"
            );
            let jwk: Jwk = serde_json::from_value(set["keys"][0].clone()).unwrap();
            let mut validation = Validation::new(algorithm);
            validation.set_audience(&["https://kc/realms/r"]);
            validation.validate_exp = false;
            let mut numbers = BTreeSet::new();
            for _ in 0..3 {
                let text = key
                    .assertion("osb-broker", "https://kc/realms/r", 5_000_000)
                    .unwrap();
                let read =
                    decode::<Value>(&text, &DecodingKey::from_jwk(&jwk).unwrap(), &validation).unwrap();
                assert_eq!(read.header.alg, algorithm);
                assert_eq!(read.header.kid.as_deref(), set["keys"][0]["kid"].as_str());
                assert_eq!(read.claims["iss"], "osb-broker");
                assert_eq!(read.claims["sub"], "osb-broker");
                assert_eq!(
                    (&read.claims["iat"], &read.claims["exp"]),
                    (&json!(5000), &json!(5060))
                );
                numbers.insert(read.claims["jti"].as_str().unwrap().to_owned());
            }
            assert_eq!(numbers.len(), 3);
        }
    }

    #[test]
    fn what_is_no_key_is_told_without_showing_it() {
        let read: ReadSecret = Arc::new(|| Ok("-----BEGIN hunter2".into()));
        let error = Key::read(&read).err().unwrap();
        assert!(!format!("{error:?}").contains("hunter2"));
        let missing: ReadSecret = Arc::new(|| Err("/etc/key cannot be opened".into()));
        let error = Key::read(&missing).err().unwrap();
        assert_eq!(error.detail, "/etc/key cannot be opened");
    }
}
