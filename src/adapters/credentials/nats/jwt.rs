//! NATS JWT v2: the signed documents operator mode is made of. Pure: no clock, no network.
//!
//! The server trusts whatever carries a signature of a key it trusts, so [`decode`] hands out
//! nothing whose signature does not fit the issuer named inside it. Whether that issuer is the
//! right one is for the caller to ask.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use nkeys::KeyPair;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512_256};

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// What a token says about its subject.
#[derive(Clone, PartialEq)]
pub(super) struct Claims {
    /// Public key of who it is about.
    pub sub: String,
    /// A name for people.
    pub name: String,
    /// Issued at, seconds since the Unix epoch.
    pub iat: i64,
    /// Not valid after this second.
    pub exp: Option<i64>,
    /// The part that depends on the kind: limits, permissions, revocations.
    pub nats: Map<String, Value>,
}

/// Why a token could not be made or read. Holds no part of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum JwtError {
    /// The issuer's key cannot sign.
    #[error("the issuer's key has no seed")]
    NoSeed,
    /// Not three parts of base64url holding JSON objects.
    #[error("not a token")]
    Malformed,
    /// Another header than that of a NATS JWT v2.
    #[error("not a NATS JWT of version 2")]
    Header,
    /// The signature is not that of the issuer the token names.
    #[error("the signature does not fit")]
    Signature,
}

/// Signs `claims` as `issuer`.
///
/// The id (`jti`) is the hash of everything else: two tokens that differ have different ids.
pub(super) fn encode(claims: &Claims, issuer: &KeyPair) -> Result<String, JwtError> {
    let mut body = json!({
        "iss": issuer.public_key(),
        "sub": claims.sub,
        "name": claims.name,
        "iat": claims.iat,
        "nats": claims.nats,
    });
    if let Some(exp) = claims.exp {
        body["exp"] = exp.into();
    }
    body["jti"] = BASE32_NOPAD
        .encode(&Sha512_256::digest(body.to_string().as_bytes()))
        .into();
    let signed = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(HEADER.as_bytes()),
        BASE64URL_NOPAD.encode(body.to_string().as_bytes())
    );
    let signature = issuer.sign(signed.as_bytes()).map_err(|_| JwtError::NoSeed)?;
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
}

/// Reads a token and checks its signature; returns the issuer's public key with what it says.
pub(super) fn decode(token: &str) -> Result<(String, Claims), JwtError> {
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
    let (header, body) = signed.split_once('.').ok_or(JwtError::Malformed)?;
    let header = object(header)?;
    let is = |member: &str, word: &str| header.get(member).and_then(Value::as_str) == Some(word);
    if !is("typ", "JWT") || !is("alg", "ed25519-nkey") {
        return Err(JwtError::Header);
    }
    let mut body = object(body)?;
    let text = |member: &str| body.get(member).and_then(Value::as_str).map(str::to_owned);
    let issuer = text("iss").ok_or(JwtError::Malformed)?;
    let signature = BASE64URL_NOPAD
        .decode(signature.as_bytes())
        .map_err(|_| JwtError::Malformed)?;
    KeyPair::from_public_key(&issuer)
        .and_then(|key| key.verify(signed.as_bytes(), &signature))
        .map_err(|_| JwtError::Signature)?;
    let claims = Claims {
        sub: text("sub").ok_or(JwtError::Malformed)?,
        name: text("name").unwrap_or_default(),
        iat: body
            .get("iat")
            .and_then(Value::as_i64)
            .ok_or(JwtError::Malformed)?,
        exp: body.get("exp").and_then(Value::as_i64),
        nats: match body.remove("nats") {
            Some(Value::Object(nats)) => nats,
            _ => return Err(JwtError::Malformed),
        },
    };
    Ok((issuer, claims))
}

fn object(part: &str) -> Result<Map<String, Value>, JwtError> {
    let bytes = BASE64URL_NOPAD
        .decode(part.as_bytes())
        .map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwtError::Malformed)
}

/// The text of a `.creds` file, which every NATS client reads.
pub(super) fn creds_file(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\
         NKEYs are sensitive and should be treated as secrets.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n\
         *************************************************************\n"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn claims() -> Claims {
        Claims {
            sub: KeyPair::new_user().public_key(),
            name: "b_x".into(),
            iat: 1_700_000_000,
            exp: Some(1_700_000_600),
            nats: json!({"type": "user", "version": 2}).as_object().unwrap().clone(),
        }
    }

    #[test]
    fn what_was_signed_is_read_back() {
        let issuer = KeyPair::new_account();
        for exp in [None, Some(7)] {
            let claims = Claims { exp, ..claims() };
            let (who, read) = decode(&encode(&claims, &issuer).unwrap()).unwrap();
            assert_eq!(who, issuer.public_key());
            assert!(read == claims);
        }
    }

    #[test]
    fn header_and_id_are_as_the_server_wants_them() {
        let issuer = KeyPair::new_account();
        let token = encode(&claims(), &issuer).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(parts.len(), 3);
        // The header every NATS tool writes, byte for byte.
        assert_eq!(parts[0], "eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ");
        let mut body = object(parts[1]).unwrap();
        let id = body.remove("jti").unwrap();
        let hash = Sha512_256::digest(Value::Object(body.clone()).to_string().as_bytes());
        assert_eq!(id, BASE32_NOPAD.encode(&hash));
        assert_eq!(id.as_str().unwrap().len(), 52);

        let later = Claims {
            iat: claims().iat + 1,
            ..claims()
        };
        let other = object(encode(&later, &issuer).unwrap().split('.').nth(1).unwrap()).unwrap();
        assert_ne!(other["jti"], id);
    }

    /// The signature covers header and body (version 1 covered the body alone).
    #[test]
    fn a_change_anywhere_breaks_it() {
        let issuer = KeyPair::new_account();
        let token = encode(&claims(), &issuer).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let join = |a: &str, b: &str, c: &str| format!("{a}.{b}.{c}");
        let forged_body = |change: &dyn Fn(&mut Map<String, Value>)| {
            let mut body = object(parts[1]).unwrap();
            change(&mut body);
            BASE64URL_NOPAD.encode(Value::Object(body).to_string().as_bytes())
        };
        let other_header = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());

        let longer = forged_body(&|b| {
            b.insert("exp".into(), 9_999_999_999_i64.into());
        });
        let other_issuer = forged_body(&|b| {
            b.insert("iss".into(), KeyPair::new_account().public_key().into());
        });
        let no_issuer = forged_body(&|b| {
            b.remove("iss");
        });
        let reordered = other_header(r#"{"alg":"ed25519-nkey","typ":"JWT"}"#);
        let unsigned = other_header(r#"{"typ":"JWT","alg":"none"}"#);
        for (token, error) in [
            (join(parts[0], &longer, parts[2]), JwtError::Signature),
            (join(parts[0], &other_issuer, parts[2]), JwtError::Signature),
            (join(parts[0], &no_issuer, parts[2]), JwtError::Malformed),
            (join(&reordered, parts[1], parts[2]), JwtError::Signature),
            (join(&unsigned, parts[1], parts[2]), JwtError::Header),
            (join(parts[0], parts[1], ""), JwtError::Signature),
            (join(parts[0], parts[1], "!"), JwtError::Malformed),
            (format!("{token}.x"), JwtError::Malformed),
            (parts[1].to_owned(), JwtError::Malformed),
            (String::new(), JwtError::Malformed),
            ("..".to_owned(), JwtError::Malformed),
        ] {
            assert_eq!(decode(&token).err(), Some(error), "{token}");
        }
    }

    #[test]
    fn a_public_key_alone_cannot_sign() {
        let public = KeyPair::from_public_key(&KeyPair::new_account().public_key()).unwrap();
        assert_eq!(encode(&claims(), &public), Err(JwtError::NoSeed));
    }

    #[test]
    fn clients_read_the_creds_file() {
        let user = KeyPair::new_user();
        let text = creds_file("a.b.c", &user.seed().unwrap());
        async_nats::ConnectOptions::with_credentials(&text).unwrap();
        assert!(text.contains("\na.b.c\n"));
    }
}
