//! The OSB request headers, read from untrusted bytes: version, originating identity, request identity.

use super::error::Refusal;
use super::{MissingVersion, Settings};
use crate::domain::error::{Error, ErrorKind};
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

/// Name of the version header.
pub(super) const VERSION: &str = "x-broker-api-version";
/// Name of the originating identity header.
pub(super) const ORIGINATING_IDENTITY: &str = "x-broker-api-originating-identity";
/// Name of the request identity header.
pub(super) const REQUEST_IDENTITY: &str = "x-broker-api-request-identity";

/// The OSB version this broker implements: the minor of `2.x`.
pub(super) const NEWEST_MINOR: u32 = 17;

/// Longest originating identity that is parsed, in bytes.
const MAX_IDENTITY: usize = 16 * 1024;
/// Longest request identity that reaches the log, in bytes; longer ones are echoed all the same.
const MAX_LOGGED: usize = 256;

/// Base64 with or without padding, as platforms send both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Decodes base64 in the standard or the URL-safe alphabet, padded or not.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let standard: String = text
        .chars()
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            c => c,
        })
        .collect();
    BASE64.decode(standard).ok()
}

/// The announced minor version (H-01, H-02, H-03).
pub(super) fn version(headers: &HeaderMap, settings: &Settings) -> Result<u32, Refusal> {
    let wanted = format!("Send X-Broker-API-Version: 2.{NEWEST_MINOR}.");
    let value = headers
        .get(VERSION)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    if value.is_empty() {
        let refusal = Refusal::from(Error::new(
            ErrorKind::VersionMissing,
            format!("The header X-Broker-API-Version is missing. {wanted}"),
        ));
        return Err(match settings.missing_version {
            MissingVersion::PreconditionFailed => refusal,
            MissingVersion::BadRequest => refusal.with_status(StatusCode::BAD_REQUEST),
        });
    }
    let parsed = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.split_once('.'))
        .and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    let why = match parsed {
        Some((2, minor)) if minor >= settings.min_minor => return Ok(minor),
        Some((2, _)) => format!("This broker serves version 2.{} and later.", settings.min_minor),
        Some(_) => "This broker serves major version 2 only.".to_owned(),
        None => "The header X-Broker-API-Version is not of the form MAJOR.MINOR.".to_owned(),
    };
    Err(Error::new(ErrorKind::VersionUnsupported, format!("{why} {wanted}")).into())
}

/// A decimal number without sign or leading zeros; one too large for us is simply very new.
fn number(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with('0');
    if text.is_empty() || !canonical || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u32::MAX))
}

/// Platform word and JSON object of the originating identity (H-04, H-06). Errors: 400 naming the header.
pub(super) fn originating_identity(headers: &HeaderMap) -> Result<Option<(String, Value)>, Error> {
    let Some(value) = headers.get(ORIGINATING_IDENTITY) else {
        return Ok(None);
    };
    let malformed = |why: &str| {
        Error::bad_request(format!(
            "The header X-Broker-API-Originating-Identity {why}; it must hold a platform word, a space, and a JSON object in base64."
        ))
    };
    if value.len() > MAX_IDENTITY {
        return Err(malformed(&format!("is longer than {MAX_IDENTITY} bytes")));
    }
    let text = value
        .to_str()
        .map_err(|_| malformed("holds bytes that are not ASCII"))?;
    let (platform, encoded) = text
        .split_once(' ')
        .filter(|(platform, _)| !platform.is_empty())
        .ok_or_else(|| malformed("has no space after a platform word"))?;
    let bytes = base64(encoded.trim()).ok_or_else(|| malformed("is not base64 after the platform word"))?;
    match serde_json::from_slice(&bytes) {
        Ok(identity @ Value::Object(_)) => Ok(Some((platform.to_owned(), identity))),
        _ => Err(malformed("holds no JSON object")),
    }
}

/// The request identity as it may be put into logs: visible ASCII of bounded length, else nothing (H-08).
pub(super) fn loggable_request_identity(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(REQUEST_IDENTITY)?.as_bytes();
    let safe = !value.is_empty() && value.len() <= MAX_LOGGED && value.iter().all(u8::is_ascii_graphic);
    safe.then(|| String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderName;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    use serde_json::json;

    fn with(name: &'static str, value: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_bytes(value).unwrap(),
        );
        headers
    }

    #[test]
    fn h01_missing_version_is_412_or_400_by_setting() {
        let mut settings = Settings::default();
        let refusal = version(&HeaderMap::new(), &settings).unwrap_err();
        assert_eq!(refusal.status(), StatusCode::PRECONDITION_FAILED);
        settings.missing_version = MissingVersion::BadRequest;
        let refusal = version(&HeaderMap::new(), &settings).unwrap_err();
        assert_eq!(refusal.status(), StatusCode::BAD_REQUEST);
        assert!(refusal.to_string().contains("2.17"));
    }

    #[test]
    fn h02_h03_versions() {
        let settings = Settings::default();
        for (text, minor) in [
            ("2.13", 13),
            ("2.17", 17),
            ("2.99", 99),
            ("2.99999999999", u32::MAX),
        ] {
            assert_eq!(
                version(&with(VERSION, text.as_bytes()), &settings).unwrap(),
                minor
            );
        }
        for text in [
            "2.12", "2.0", "1.17", "3.0", "22.1", "2", "2.", ".17", "2.17.1", "v2.17", "2.1x", "2.+7",
            "2.017", "02.17", "latest", "2,17", "\u{e9}",
        ] {
            let refusal = version(&with(VERSION, text.as_bytes()), &settings).unwrap_err();
            assert_eq!(refusal.status(), StatusCode::PRECONDITION_FAILED, "{text}");
            assert!(refusal.to_string().contains("2.17"), "{text}");
        }
        let newer = Settings {
            min_minor: 15,
            ..Settings::default()
        };
        assert!(version(&with(VERSION, b"2.14"), &newer).is_err());
    }

    #[test]
    fn h04_h06_originating_identity() {
        // Long enough that all three padding lengths and both alphabets occur.
        for name in ["a", "ab", "abc", "\u{fb}\u{ff}?>~"] {
            let identity = json!({"user_id": name, "extra": {"x": [1]}});
            let text = identity.to_string();
            for encoded in [
                BASE64_STANDARD.encode(&text),
                BASE64_STANDARD.encode(&text).trim_end_matches('=').to_owned(),
                BASE64_URL_SAFE_NO_PAD.encode(&text),
                base64::prelude::BASE64_URL_SAFE.encode(&text),
            ] {
                let headers = with(ORIGINATING_IDENTITY, format!("cloudfoundry {encoded}").as_bytes());
                assert_eq!(
                    originating_identity(&headers).unwrap(),
                    Some(("cloudfoundry".to_owned(), identity.clone()))
                );
            }
        }
        assert_eq!(originating_identity(&HeaderMap::new()).unwrap(), None, "H-05");
        let huge = format!("cf {}", "e30=".repeat(MAX_IDENTITY));
        for bad in [
            "",
            "cloudfoundry",
            "cloudfoundry ",
            " e30=",
            "cf !!!",
            "cf bm90IGpzb24=",
            "cf W10=",
            "cf bnVsbA==",
            "cf \u{fc}",
            huge.as_str(),
        ] {
            let error = originating_identity(&with(ORIGINATING_IDENTITY, bad.as_bytes())).unwrap_err();
            assert_eq!(error.kind, ErrorKind::BadRequest, "{bad}");
            assert!(error.description.contains("X-Broker-API-Originating-Identity"));
        }
    }

    #[test]
    fn h08_only_harmless_request_identities_are_logged() {
        let log = |value: &[u8]| loggable_request_identity(&with(REQUEST_IDENTITY, value));
        assert_eq!(log(b"26be1b11-cc3e").as_deref(), Some("26be1b11-cc3e"));
        assert_eq!(log(&[b'x'; 256]).map(|s| s.len()), Some(256));
        for bad in [&[b'x'; 257][..], b"", b"a b", b"a\tb", "\u{fc}".as_bytes()] {
            assert_eq!(log(bad), None);
        }
    }
}
