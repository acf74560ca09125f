//! The only way a value gets into SQL text: through the types below, checked first and quoted then.
//!
//! Role, database and password statements take no bind parameters, so their text is built. What must
//! stay true: an [`Ident`] holds neither quote nor backslash, a [`Verifier`] holds no clear password.

use super::common::own_handle;
use crate::domain::instance::Millis;
use crate::ports::{PortError, PortResult};
use aws_lc_rs::{digest, hmac, pbkdf2};
use data_encoding::BASE64;
use std::fmt;
use std::num::NonZeroU32;
use time::OffsetDateTime;
use time::macros::format_description;

/// An identifier that is safe in quotes: `[a-z_][a-z0-9_-]*`, at most 63 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ident(String);

impl Ident {
    /// Checks a name that comes from settings.
    pub fn parse(name: &str) -> PortResult<Self> {
        let mut bytes = name.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if first && rest && name.len() <= 63 {
            Ok(Self(name.to_owned()))
        } else {
            Err(PortError::invalid(format!(
                "{name:?} cannot be a name in the database: use a to z, 0 to 9 and _, at most 63 characters."
            )))
        }
    }

    /// Checks the name of a binding's user, so that nobody else's role can be touched by way of a handle.
    pub fn user(handle: &str) -> PortResult<Self> {
        own_handle(handle).map(|handle| Self(handle.to_owned()))
    }

    /// The bare name, for comparisons and bind parameters.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// As a string literal: `'name'`.
    pub fn literal(&self) -> String {
        format!("'{}'", self.0)
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// Quotes a name that was read from the server, whatever is in it.
pub fn quote_found(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What a server stores instead of a password (RFC 5802, RFC 7677); displays as a string literal.
pub struct Verifier(String);

/// PostgreSQL's own default; the passwords are random, so more rounds would protect nothing.
const ITERATIONS: NonZeroU32 = match NonZeroU32::new(4096) {
    Some(rounds) => rounds,
    None => NonZeroU32::MIN,
};

impl Verifier {
    /// Computes the verifier of a password of letters and digits, with a fresh salt.
    pub fn new(password: &str) -> PortResult<Self> {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt)
            .map_err(|_| PortError::transient("The system gives no random numbers; try again."))?;
        // Other characters would have to go through SASLprep first.
        if password.is_empty() || !password.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(PortError::invalid(
                "The stored password of this binding is damaged; make a new binding.",
            ));
        }
        Ok(Self::salted(password, &salt))
    }

    fn salted(password: &str, salt: &[u8]) -> Self {
        let mut salted_password = [0; 32];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            ITERATIONS,
            salt,
            password.as_bytes(),
            &mut salted_password,
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, &salted_password);
        let client_key = hmac::sign(&key, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let server_key = hmac::sign(&key, b"Server Key");
        Self(format!(
            "SCRAM-SHA-256${ITERATIONS}:{}${}:{}",
            BASE64.encode(salt),
            BASE64.encode(stored_key.as_ref()),
            BASE64.encode(server_key.as_ref()),
        ))
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0)
    }
}

/// A point in time as a literal.
pub fn timestamp(at: Millis) -> PortResult<String> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000)
        .ok()
        .and_then(|at| {
            let format = format_description!(
                "'[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]+00'"
            );
            at.format(format).ok()
        })
        .ok_or_else(|| PortError::invalid("The time this binding expires at is out of range."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::names;

    #[test]
    fn only_plain_names_become_identifiers() {
        for good in ["app", "_a", "db_2x", "uuid-ossp", &"a".repeat(63)] {
            assert_eq!(Ident::parse(good).unwrap().to_string(), format!("\"{good}\""));
        }
        let long = "a".repeat(64);
        for bad in [
            "", "1a", "A", "a b", "a\"b", "a'b", "a\\b", "a;b", "a\0", "ä", "-a", "a\n", &long,
        ] {
            assert!(Ident::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_binding_users_become_users() {
        let good = names::backend_user(&names::bid("p", "i", "b"));
        assert_eq!(Ident::user(&good).unwrap().literal(), format!("'{good}'"));
        for bad in [
            "postgres",
            "chandler",
            "app_owner",
            "b_",
            "b_short",
            &good[2..],
            &good.to_uppercase(),
        ] {
            assert!(Ident::user(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_verifier_is_the_one_of_rfc_7677() {
        let salt = BASE64.decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(
            Verifier::salted("pencil", &salt).to_string(),
            "'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
             wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU='"
        );
        for bad in ["", "a b", "pass'word", "pässword"] {
            assert!(Verifier::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(
            timestamp(1_700_000_000_123).unwrap(),
            "'2023-11-14 22:13:20.123+00'"
        );
        assert!(timestamp(Millis::MAX).is_err());
    }
}
