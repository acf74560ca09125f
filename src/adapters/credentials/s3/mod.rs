//! The `s3` mechanism: MinIO and the servers that took over its admin interface, one access key per binding.
//!
//! A binding is a user of the server's own, with a policy of its own; both are named `b_<bid>`. What must stay true here:
//! - policy, user and their link are stated whole each time, and in that order: a user can do nothing until the last step;
//! - the secret key travels encrypted to MinIO even without TLS; RustFS takes it in clear, on its own path;
//! - removing the user ends everything derived from it (its service accounts, its temporary keys); requests are
//!   signed one by one, so there is no session to end;
//! - no object of an application is read or written, here or to verify.
//!
//! Settings: `bucket`; `region` (optional, `us-east-1`; the server's own, it refuses signatures for another);
//! `admin_api` (optional, `minio`, or `rustfs` for that server's own path with plain bodies); `tls` (optional,
//! false). A binding's parameter `prefix` limits it to objects whose keys start so. The server knows no expiry for users.

mod envelope;
mod policy;
mod sigv4;

use super::common::{administrator, not_this_bindings, own_handle, within};
use super::password;
use super::web::{self, Answer, Base, Request, Web};
use crate::domain::instance::Millis;
use crate::domain::secret::Secret;
use crate::ports::{
    Clock, CredentialMechanism, Grant, NewUser, PortError, PortErrorKind, PortResult, Target,
};
use async_trait::async_trait;
use envelope::Broken;
use serde_json::{Map, Value, json};
use sigv4::Signer;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Bounds a call of several requests.
const CALLS_TIME: Duration = Duration::from_secs(45);

/// The mechanism `s3`.
pub struct S3 {
    clock: Arc<dyn Clock>,
    web: Web,
}

impl S3 {
    /// A mechanism that dates its signatures by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let web = Web::new();
        Self { clock, web }
    }

    fn server<'a>(&'a self, target: &'a Target) -> PortResult<Server<'a>> {
        let settings = Settings::parse(&target.settings).map_err(|errors| {
            PortError::invalid("The settings of this service's bindings are wrong; tell its operator.")
                .with_detail(errors.join("; "))
        })?;
        Ok(Server {
            mechanism: self,
            base: Base::of(target),
            admin: Keys {
                id: target.admin.text("username"),
                secret: target.admin.text("password"),
            },
            settings,
        })
    }
}

/// What `binding.yaml` says about the server, checked.
struct Settings {
    bucket: String,
    region: String,
    plain_admin: bool,
}

impl Settings {
    /// Reads settings; every error at once.
    fn parse(settings: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let known = ["bucket", "region", "admin_api", "tls"];
        for key in settings.keys().filter(|key| !known.contains(&key.as_str())) {
            errors.push(format!("{key}: unknown; known are {}", known.join(", ")));
        }
        let text = |key: &str| settings.get(key).map(|v| v.as_str().unwrap_or_default());
        let bucket = text("bucket").unwrap_or_default();
        if !is_bucket(bucket) {
            errors.push(
                "bucket: must be 3 to 63 characters of a to z, 0 to 9, - and ., starting and ending with a letter or digit"
                    .to_owned(),
            );
        }
        let region = text("region").unwrap_or("us-east-1");
        let in_region = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if !(1..=64).contains(&region.len()) || !region.bytes().all(in_region) {
            errors.push("region: must be letters, digits and -".to_owned());
        }
        let admin_api = text("admin_api").unwrap_or("minio");
        if !["minio", "rustfs"].contains(&admin_api) {
            errors.push("admin_api: must be minio or rustfs".to_owned());
        }
        errors.extend(web::check_tls(settings));
        if errors.is_empty() {
            Ok(Self {
                bucket: bucket.to_owned(),
                region: region.to_owned(),
                plain_admin: admin_api == "rustfs",
            })
        } else {
            Err(errors)
        }
    }
}

/// Stands in a path, so nothing in it may need encoding or lead anywhere else.
fn is_bucket(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    let inner = |b: &u8| edge(Some(b)) || *b == b'-' || *b == b'.';
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(inner)
        && edge(bytes.first())
        && edge(bytes.last())
        && !name.contains("..")
}

#[derive(Clone, Copy)]
struct Keys<'a> {
    id: &'a str,
    secret: &'a str,
}

/// One server, as its administrator sees it.
struct Server<'a> {
    mechanism: &'a S3,
    base: Base,
    admin: Keys<'a>,
    settings: Settings,
}

impl Server<'_> {
    async fn send(
        &self,
        keys: Keys<'_>,
        method: &'static str,
        path: String,
        pairs: &[(&str, &str)],
        body: Vec<u8>,
    ) -> PortResult<Answer> {
        let query = sigv4::query(pairs);
        let signer = Signer {
            id: keys.id,
            secret: keys.secret,
            region: &self.settings.region,
            service: "s3",
        };
        let now = self.mechanism.clock.now();
        let headers = signer.headers(method, &self.base.authority, &path, &query, &body, now)?;
        let path_and_query = if query.is_empty() {
            path
        } else {
            format!("{path}?{query}")
        };
        let request = Request {
            method,
            path_and_query,
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.into(), value))
                .collect(),
            body,
        };
        self.mechanism.web.send(&self.base, request).await
    }

    /// A call of the admin interface.
    async fn manage(
        &self,
        method: &'static str,
        call: &str,
        pairs: &[(&str, &str)],
        body: Vec<u8>,
    ) -> PortResult<Answer> {
        let lineage = if self.settings.plain_admin {
            "rustfs"
        } else {
            "minio"
        };
        let path = format!("/{lineage}/admin/v3/{call}");
        self.send(self.admin, method, path, pairs, body).await
    }

    async fn prepare(&self) -> PortResult<()> {
        let body = if self.settings.region == "us-east-1" {
            Vec::new()
        } else {
            format!(
                "<CreateBucketConfiguration><LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>",
                self.settings.region
            )
            .into_bytes()
        };
        let path = format!("/{}", self.settings.bucket);
        let answer = self.send(self.admin, "PUT", path, &[], body).await?;
        let exists = ["BucketAlreadyOwnedByYou", "BucketAlreadyExists"].contains(&code(&answer).as_str());
        if answer.is_success() || answer.status == 409 && exists {
            Ok(())
        } else {
            Err(explain(&answer))
        }
    }

    async fn issue(&self, grant: &Grant, handle: &str, secret_key: &str) -> PortResult<()> {
        let document = policy::document(&self.settings.bucket, grant)?;
        let name = [("name", handle)];
        succeed(
            &self
                .manage(
                    "PUT",
                    "add-canned-policy",
                    &name,
                    document.to_string().into_bytes(),
                )
                .await?,
        )?;
        let user = zeroize::Zeroizing::new(
            json!({"secretKey": secret_key, "status": "enabled"})
                .to_string()
                .into_bytes(),
        );
        let body = if self.settings.plain_admin {
            user.to_vec()
        } else {
            envelope::seal(self.admin.secret, &user).map_err(broken)?
        };
        succeed(
            &self
                .manage("PUT", "add-user", &[("accessKey", handle)], body)
                .await?,
        )?;
        let link = [
            ("policyName", handle),
            ("userOrGroup", handle),
            ("isGroup", "false"),
        ];
        let answer = self
            .manage("PUT", "set-user-or-group-policy", &link, Vec::new())
            .await?;
        if answer.status == 404 {
            // Both were there a moment ago: somebody revokes this very binding.
            return Err(PortError::new(
                PortErrorKind::Conflict,
                "The user went while it was being made.",
            ));
        }
        succeed(&answer)
    }

    async fn revoke(&self, handle: &str) -> PortResult<()> {
        let user = [("accessKey", handle)];
        // Asked first because RustFS answers "internal error" when a user that is not there is removed.
        let found = self.manage("GET", "user-info", &user, Vec::new()).await?;
        if found.status != 404 {
            succeed(&found)?;
            let answer = self.manage("DELETE", "remove-user", &user, Vec::new()).await?;
            if answer.status != 404 {
                succeed(&answer)?;
            }
        }
        let answer = self
            .manage("DELETE", "remove-canned-policy", &[("name", handle)], Vec::new())
            .await?;
        if answer.status == 404 {
            Ok(())
        } else {
            succeed(&answer)
        }
    }

    async fn list(&self) -> PortResult<Vec<String>> {
        let answer = self.manage("GET", "list-users", &[], Vec::new()).await?;
        succeed(&answer)?;
        let users = if self.settings.plain_admin {
            answer.body
        } else {
            let secret_key = zeroize::Zeroizing::new(self.admin.secret.to_owned());
            tokio::task::spawn_blocking(move || envelope::open(&secret_key, &answer.body))
                .await
                .map_err(|e| PortError::transient("The list of users could not be read.").with_detail(e))?
                .map_err(broken)?
                .to_vec()
        };
        let users: BTreeMap<String, Value> = serde_json::from_slice(&users).map_err(|_| {
            PortError::invalid("The server's list of users is not understood; tell its operator.")
        })?;
        Ok(users
            .into_keys()
            .filter(|user| own_handle(user).is_ok())
            .collect())
    }
}

#[async_trait]
impl CredentialMechanism for S3 {
    fn name(&self) -> &'static str {
        "s3"
    }

    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String> {
        Settings::parse(settings).err().unwrap_or_default()
    }

    /// Makes `username` and `password`: access key id and secret access key of the server's root user.
    fn generate_admin(&self, _settings: &Map<String, Value>) -> PortResult<Secret> {
        administrator()
    }

    fn generate_user(&self, target: &Target, grant: &Grant, _now: Millis) -> PortResult<NewUser> {
        policy::document(&self.server(target)?.settings.bucket, grant)?;
        let handle = grant.user();
        own_handle(&handle)?;
        let secret = Secret::from_pairs([
            ("access_key_id", handle.clone()),
            ("secret_access_key", password::generate()?),
        ]);
        Ok(NewUser { handle, secret })
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        within(CALLS_TIME, async { self.server(target)?.prepare().await }).await
    }

    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALLS_TIME, async {
            let handle = own_handle(&user.handle)?;
            let secret_key = user.secret.text("secret_access_key");
            if handle != grant.user() || secret_key.is_empty() {
                return Err(not_this_bindings());
            }
            self.server(target)?.issue(grant, handle, secret_key).await
        })
        .await
    }

    /// Lists at most one key where the binding may list, which every role can.
    async fn verify(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALLS_TIME, async {
            let server = self.server(target)?;
            let keys = Keys {
                id: user.secret.text("access_key_id"),
                secret: user.secret.text("secret_access_key"),
            };
            let path = format!("/{}", server.settings.bucket);
            let query = [
                ("list-type", "2"),
                ("max-keys", "1"),
                ("prefix", policy::prefix(grant)?),
            ];
            succeed(&server.send(keys, "GET", path, &query, Vec::new()).await?)
        })
        .await
    }

    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()> {
        within(CALLS_TIME, async {
            self.server(target)?.revoke(own_handle(handle)?).await
        })
        .await
    }

    async fn list(&self, target: &Target) -> PortResult<Vec<String>> {
        within(CALLS_TIME, async { self.server(target)?.list().await }).await
    }
}

fn succeed(answer: &Answer) -> PortResult<()> {
    if answer.is_success() {
        Ok(())
    } else {
        Err(explain(answer))
    }
}

/// The server's own word for what is wrong: `Code` of its JSON or XML, letters and digits only.
fn code(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    let after = |mark: &str| text.split_once(mark).map(|(_, rest)| rest.trim_start());
    let found = after("<Code>").or_else(|| after("\"Code\":").map(|rest| rest.trim_start_matches('"')));
    found
        .unwrap_or_default()
        .chars()
        .take_while(char::is_ascii_alphanumeric)
        .take(64)
        .collect()
}

/// Sorts a refusal. Of the answer only its code goes into the log.
fn explain(answer: &Answer) -> PortError {
    use PortErrorKind::{Conflict, Denied, Gone, Invalid, Transient};
    let code = code(answer);
    let (kind, message) = match (answer.status, code.as_str()) {
        (_, "RequestTimeTooSkewed") => (
            Denied,
            "The clocks of broker and object store differ by more than 15 minutes; tell the broker's operator.",
        ),
        (_, "XMinioServerNotInitialized" | "SlowDown" | "XMinioIAMNotInitialized") => {
            (Transient, "The object store is still starting.")
        }
        (401 | 403, _) => (
            Denied,
            "The object store refuses the access key or does not allow this.",
        ),
        (404, _) => (Gone, "The object store does not have what this binding needs."),
        (409 | 412, _) => (
            Conflict,
            "Something else changes the object store at this moment.",
        ),
        (408 | 429 | 500.., _) => (Transient, "The object store cannot do this at the moment."),
        _ => (
            Invalid,
            "The object store does not understand what it was asked; tell its operator.",
        ),
    };
    PortError::new(kind, message).with_detail(format!("{message} ({} {code})", answer.status))
}

fn broken(why: Broken) -> PortError {
    match why {
        Broken::Machine => {
            PortError::transient("The broker's machine cannot encrypt at the moment; try again.")
        }
        Broken::Form | Broken::Seal => PortError::invalid(
            "The server's answer cannot be decrypted with its administrator's key; tell its operator.",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::catalog::{admin_members, user_members};
    use crate::domain::names;

    struct Never;

    impl Clock for Never {
        fn now(&self) -> Millis {
            0
        }
    }

    fn mechanism() -> S3 {
        S3::new(Arc::new(Never))
    }

    fn target() -> Target {
        let endpoint = crate::domain::instance::Endpoint {
            name: "client".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 1,
        };
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: json!({"bucket": "data"}).as_object().unwrap().clone(),
            admin: mechanism().generate_admin(&Map::new()).unwrap(),
            revoked: Vec::new(),
        }
    }

    fn grant(role: &str) -> Grant {
        Grant {
            bid: names::bid("p", "i", "b"),
            second: false,
            role: role.to_owned(),
            params: Map::new(),
            expires_at: None,
        }
    }

    fn errors(settings: &Value) -> Vec<String> {
        mechanism().check_settings(settings.as_object().unwrap())
    }

    #[test]
    fn settings_are_checked_all_at_once() {
        for good in [
            json!({"bucket": "data"}),
            json!({"bucket": "a.b-c", "region": "eu-central-1", "admin_api": "rustfs", "tls": true}),
        ] {
            assert_eq!(errors(&good), Vec::<String>::new());
        }
        let found =
            errors(&json!({"bucket": "..", "region": "a b", "admin_api": "x", "tls": "no", "host": 1}));
        for key in ["bucket", "region", "admin_api", "tls", "host"] {
            assert!(
                found.iter().any(|e| e.starts_with(key)),
                "{key} is missing in {found:?}"
            );
        }
    }

    #[test]
    fn a_bucket_cannot_leave_its_place_in_the_path() {
        let long = "a".repeat(64);
        for bad in [
            "", "ab", "../etc", "a/b", "a?b", "A-b", "-ab", "ab-", "a..b", "a%b", "a b", ".ab", &long,
        ] {
            assert!(!is_bucket(bad), "{bad:?}");
        }
    }

    #[test]
    fn secrets_have_the_members_the_catalog_expects() {
        let admin = mechanism().generate_admin(&Map::new()).unwrap();
        let user = mechanism()
            .generate_user(&target(), &grant("readonly"), 0)
            .unwrap();
        for (secret, members) in [(&admin, admin_members("s3")), (&user.secret, user_members("s3"))] {
            assert_eq!(secret.expose().len(), members.len());
            assert!(members.iter().all(|member| !secret.text(member).is_empty()));
        }
        // The server takes ids of 3 to 100 characters without `=` and `,`, and secrets of 8 to 40.
        assert_eq!(user.handle.len(), 28);
        assert_eq!(user.secret.text("secret_access_key").len(), 32);
        assert!(mechanism().generate_user(&target(), &grant("root"), 0).is_err());
    }

    #[tokio::test]
    async fn only_users_of_bindings_are_touched() {
        for bad in ["chandler", "b_", "b_x", "", "b_a&accessKey=x"] {
            let error = mechanism().revoke(&target(), bad).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Invalid, "{bad}");
        }
        let (mine, other) = (grant("owner"), "b_".to_owned() + &names::bid("p", "i", "other"));
        let mut user = mechanism().generate_user(&target(), &mine, 0).unwrap();
        user.handle = other;
        let error = mechanism().issue(&target(), &mine, &user).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid);
    }

    #[test]
    fn refusals_are_sorted_and_quote_only_the_code() {
        use PortErrorKind::{Conflict, Denied, Gone, Invalid, Transient};
        let answer = |status, body: &str| Answer {
            status,
            body: body.as_bytes().to_vec(),
        };
        for (status, body, kind, shown) in [
            (
                403,
                "<Error><Code>AccessDenied</Code><Message>m4</Message>",
                Denied,
                "AccessDenied",
            ),
            (
                404,
                "{\"Code\":\"XMinioAdminNoSuchUser\",\"Message\":\"m4\"}",
                Gone,
                "XMinioAdminNoSuchUser",
            ),
            (
                503,
                "{\"Code\": \"XMinioServerNotInitialized\"}",
                Transient,
                "XMinioServerNotInitialized",
            ),
            (409, "<Code>OperationAborted</Code>", Conflict, "OperationAborted"),
            (400, "<Code>Bad<script>", Invalid, "400 Bad)"),
            (500, "m4", Transient, "500 "),
            (307, "", Invalid, "307 "),
        ] {
            let error = explain(&answer(status, body));
            assert_eq!(error.kind, kind, "{status}");
            assert!(
                error.detail.contains(shown) && !error.detail.contains("m4"),
                "{}",
                error.detail
            );
        }
    }
}
