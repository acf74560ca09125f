//! An S3 client for tests, written apart from the mechanism's: a shared mistake in signing would show nowhere.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use data_encoding::HEXLOWER;
use std::time::Duration;
use time::OffsetDateTime;
use time::macros::format_description;

/// Keys as an application has them.
#[derive(Clone)]
pub struct Client {
    /// `127.0.0.1:port`.
    pub authority: String,
    /// The region the server is in.
    pub region: String,
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: String,
    /// Of temporary keys.
    pub token: Option<String>,
}

impl Client {
    /// Sends a request; `query` sorted and encoded. Answers status and body.
    pub async fn send(&self, method: &str, path: &str, query: &str, body: impl AsRef<[u8]>) -> (u16, String) {
        self.send_to("s3", method, path, query, body).await
    }

    /// Like [`send`](Self::send), signed for another service.
    pub async fn send_to(
        &self,
        service: &str,
        method: &str,
        path: &str,
        query: &str,
        body: impl AsRef<[u8]>,
    ) -> (u16, String) {
        let body = body.as_ref();
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let at = OffsetDateTime::now_utc().format(format).unwrap();
        let hash = |bytes: &[u8]| HEXLOWER.encode(digest(&SHA256, bytes).as_ref());
        let mut headers = vec![
            ("host", self.authority.clone()),
            ("x-amz-content-sha256", hash(body)),
            ("x-amz-date", at.clone()),
        ];
        headers.extend(self.token.clone().map(|token| ("x-amz-security-token", token)));
        let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = headers
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        let canonical = [method, path, query, &lines, &names, &hash(body)].join("\n");
        let scope = format!("{}/{}/{service}/aws4_request", &at[..8], self.region);
        let text = ["AWS4-HMAC-SHA256", &at, &scope, &hash(canonical.as_bytes())].join("\n");
        let mut key = format!("AWS4{}", self.secret).into_bytes();
        for part in scope.split('/').chain([text.as_str()]) {
            key = sign(&Key::new(HMAC_SHA256, &key), part.as_bytes())
                .as_ref()
                .to_vec();
        }
        let signature = HEXLOWER.encode(&key);
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.id
        );
        let separator = if query.is_empty() { "" } else { "?" };
        let url = format!("http://{}{path}{separator}{query}", self.authority);
        let mut request = reqwest::Client::builder()
            .timeout(Duration::from_secs(10))
            .no_proxy()
            .build()
            .unwrap()
            .request(method.parse().unwrap(), url)
            .header("authorization", authorization)
            .body(body.to_vec());
        if service == "sts" {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        for (name, value) in &headers[1..] {
            request = request.header(*name, value);
        }
        let response = request.send().await.unwrap();
        (
            response.status().as_u16(),
            response.text().await.unwrap_or_default(),
        )
    }
}
