//! AWS signature version 4 for requests whose body is at hand: what S3 and MinIO's admin interface ask for.
//!
//! Own code because it is little and all of it is needed to be sure what is signed: the crates that do it bring a
//! tree of a cloud's SDK with them. The vectors below are those of the S3 documentation.

use crate::domain::instance::Millis;
use crate::ports::{PortError, PortResult};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use time::OffsetDateTime;
use time::macros::format_description;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The headers that are signed; sorted, as they must be.
const SIGNED_HEADERS: &str = "host;x-amz-content-sha256;x-amz-date";

/// All but the characters that RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Who signs and for where.
pub(super) struct Signer<'a> {
    /// Access key id.
    pub id: &'a str,
    /// Secret access key.
    pub secret: &'a str,
    /// Region the server says it is in.
    pub region: &'a str,
    /// Name of the service, `s3` for all calls here.
    pub service: &'a str,
}

/// A query string in canonical form, which is also the form it is sent in: sorted, everything encoded.
pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    let encode = |text| utf8_percent_encode(text, RESERVED).to_string();
    let mut pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
        .collect();
    pairs.sort();
    pairs.join("&")
}

impl Signer<'_> {
    /// The headers that make a request this signer's; `path` and `query` as they are sent.
    ///
    /// The server refuses a request that it sees 15 minutes after `now` or more.
    pub fn headers(
        &self,
        method: &str,
        authority: &str,
        path: &str,
        query: &str,
        body: &[u8],
        now: Millis,
    ) -> PortResult<Vec<(&'static str, String)>> {
        let instant = instant(now)?;
        let day = &instant[..8];
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let content = hash(body);
        let request = format!(
            "{method}\n{path}\n{query}\nhost:{authority}\nx-amz-content-sha256:{content}\nx-amz-date:{instant}\n\n\
             {SIGNED_HEADERS}\n{content}"
        );
        let to_sign = format!("{ALGORITHM}\n{instant}\n{scope}\n{}", hash(request.as_bytes()));
        let mut key = mac(format!("AWS4{}", self.secret).as_bytes(), day);
        for part in [self.region, self.service, "aws4_request"] {
            key = mac(key.as_ref(), part);
        }
        let signature = HEXLOWER.encode(mac(key.as_ref(), &to_sign).as_ref());
        let authorization = format!(
            "{ALGORITHM} Credential={}/{scope},SignedHeaders={SIGNED_HEADERS},Signature={signature}",
            self.id
        );
        Ok(vec![
            ("x-amz-date", instant),
            ("x-amz-content-sha256", content),
            ("authorization", authorization),
        ])
    }
}

fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

fn mac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

fn instant(now: Millis) -> PortResult<String> {
    OffsetDateTime::from_unix_timestamp(now.div_euclid(1000))
        .ok()
        .and_then(|at| {
            let format = format_description!("[year][month][day]T[hour][minute][second]Z");
            at.format(format).ok()
        })
        .ok_or_else(|| PortError::invalid("The machine's clock is out of range; set it right."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// 24 May 2013, 00:00:00 UTC.
    const THEN: Millis = 1_369_353_600_000;

    fn signature(query: &str) -> String {
        let signer = Signer {
            id: "AKIAIOSFODNN7EXAMPLE",
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            region: "us-east-1",
            service: "s3",
        };
        let headers = signer
            .headers("GET", "examplebucket.s3.amazonaws.com", "/", query, b"", THEN)
            .unwrap();
        assert_eq!(headers[0], ("x-amz-date", "20130524T000000Z".to_owned()));
        let authorization = headers.iter().find(|(name, _)| *name == "authorization").unwrap();
        authorization.1.rsplit('=').next().unwrap().to_owned()
    }

    #[test]
    fn signatures_are_those_of_the_documentation() {
        assert_eq!(
            signature(&query(&[("lifecycle", "")])),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signature(&query(&[("prefix", "J"), ("max-keys", "2")])),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn queries_are_sorted_and_hold_no_plain_separator() {
        assert_eq!(
            query(&[("prefix", "a/b c&d=e+ä"), ("list-type", "2"), ("a-b_c.d~e", "")]),
            "a-b_c.d~e=&list-type=2&prefix=a%2Fb%20c%26d%3De%2B%C3%A4"
        );
    }

    #[test]
    fn a_clock_out_of_range_is_an_error() {
        assert!(instant(Millis::MAX).is_err());
    }
}
