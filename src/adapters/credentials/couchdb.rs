//! Users on Apache CouchDB 3: one document in `_users` per binding, rights by roles of the database.
//!
//! A database has three roles, `<database>_owner`, `_readwrite` and `_readonly`. What must stay true here:
//! - binding and unbinding touch nothing but the user's own document. The database's `_security` names roles only: it has no
//!   revisions, so two workers that both wrote names into it would lose one;
//! - members of a database can always write; a validation function in a design document refuses those who may only read;
//! - `_users` is closed to everybody but administrators, or a binding could make users that outlive it;
//! - owners administer their database and may change `_security` and the design document: both are stated anew at each issue;
//! - a user whose password works is not written again, because that would end its cookie sessions.
//!
//! Cookie sessions end with the user's document. A continuous `_changes` feed that is open stays open until its connection
//! ends: the server offers nothing against it. Members may also write `_local` documents, which are never
//! replicated and which no validation sees. The server knows no expiry for users.
//!
//! Settings: `database`; `tls` (optional, false).

use super::common::{administrator, not_this_bindings, own_handle, within};
use super::password;
use super::web::{self, Answer, Base, Request, Web};
use crate::domain::instance::Millis;
use crate::domain::secret::Secret;
use crate::ports::{CredentialMechanism, Grant, NewUser, PortError, PortErrorKind, PortResult, Target};
use async_trait::async_trait;
use data_encoding::BASE64;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Roles a binding can have, the first of which administers the database.
const ROLES: &[&str] = &["owner", "readwrite", "readonly"];

/// The design document that keeps readers from writing.
const DESIGN: &str = "_design/chandler_roles";

/// What ids of user documents start with.
const USER_PREFIX: &str = "org.couchdb.user:";

/// Bounds a call of several requests.
const CALLS_TIME: Duration = Duration::from_secs(45);

/// The mechanism `couchdb`.
pub struct CouchDb(Web);

impl CouchDb {
    /// A mechanism with connections of its own.
    pub fn new() -> Self {
        Self(Web::new())
    }

    fn server<'a>(&'a self, target: &'a Target) -> PortResult<Server<'a>> {
        let database = database(&target.settings).map_err(|errors| {
            PortError::invalid("The settings of this service's bindings are wrong; tell its operator.")
                .with_detail(errors.join("; "))
        })?;
        Ok(Server {
            web: &self.0,
            base: Base::of(target),
            login: &target.admin,
            database,
        })
    }
}

impl Default for CouchDb {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads settings, of which the database's name is all that stays to be known; every error at once.
fn database(settings: &Map<String, Value>) -> Result<&str, Vec<String>> {
    let mut errors = Vec::new();
    let known = ["database", "tls"];
    for key in settings.keys().filter(|key| !known.contains(&key.as_str())) {
        errors.push(format!("{key}: unknown; known are {}", known.join(", ")));
    }
    let name = settings
        .get("database")
        .and_then(Value::as_str)
        .unwrap_or_default();
    // A subset of what the server takes: it stands in a path, in names of roles and in a script.
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if !first || name.len() > 128 || !name.bytes().all(inner) {
        errors.push("database: must match ^[a-z][a-z0-9_-]{0,127}$".to_owned());
    }
    errors.extend(web::check_tls(settings));
    if errors.is_empty() { Ok(name) } else { Err(errors) }
}

/// The role of the server that stands for a binding's role.
fn group(database: &str, role: &str) -> PortResult<String> {
    if ROLES.contains(&role) {
        Ok(format!("{database}_{role}"))
    } else {
        Err(PortError::invalid(format!(
            "There is no role {role:?}: use owner, readwrite or readonly."
        )))
    }
}

/// Who administers a database and who may use it.
fn security(database: &str) -> Value {
    let roles: Vec<_> = ROLES.iter().map(|role| format!("{database}_{role}")).collect();
    json!({
        "admins": {"names": [], "roles": [roles[0]]},
        "members": {"names": [], "roles": roles},
    })
}

/// The design document's content.
fn design(database: &str) -> Value {
    let writers = json!([
        "_admin",
        format!("{database}_owner"),
        format!("{database}_readwrite")
    ]);
    let function = format!(
        "function (changed, before, user) {{ var writers = {writers}; \
         for (var i = 0; i < writers.length; i++) {{ if (user.roles.indexOf(writers[i]) !== -1) {{ return; }} }} \
         throw({{forbidden: 'This binding may only read.'}}); }}"
    );
    json!({"_id": DESIGN, "language": "javascript", "validate_doc_update": function})
}

/// Whether a security object admits administrators and nobody else.
fn admins_only(security: &Value) -> bool {
    ["admins", "members"].iter().all(|part| {
        let part = &security[part];
        let no_names = part.get("names").is_none_or(|names| *names == json!([]));
        no_names && part["roles"] == json!(["_admin"])
    })
}

/// One server, as somebody who logs in sees it.
struct Server<'a> {
    web: &'a Web,
    base: Base,
    login: &'a Secret,
    database: &'a str,
}

impl<'a> Server<'a> {
    /// The same server seen by another user.
    fn seen_by(self, login: &'a Secret) -> Self {
        Self { login, ..self }
    }

    async fn send(&self, method: &'static str, path: &str, body: Option<&Value>) -> PortResult<Answer> {
        let (username, password) = (self.login.text("username"), self.login.text("password"));
        let basic = BASE64.encode(format!("{username}:{password}").as_bytes());
        let mut headers = vec![
            ("authorization".into(), format!("Basic {basic}")),
            ("accept".into(), "application/json".to_owned()),
        ];
        if body.is_some() {
            headers.push(("content-type".into(), "application/json".to_owned()));
        }
        let request = Request {
            method,
            path_and_query: path.to_owned(),
            headers,
            body: body.map(Value::to_string).unwrap_or_default().into_bytes(),
        };
        self.web.send(&self.base, request).await
    }

    /// What lies at a path, if anything does.
    async fn read(&self, path: &str) -> PortResult<Option<Value>> {
        let answer = self.send("GET", path, None).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        parse(&answer).map(Some)
    }

    async fn write(&self, path: &str, body: &Value) -> PortResult<()> {
        succeed(&self.send("PUT", path, Some(body)).await?)
    }

    async fn ensure_database(&self, name: &str) -> PortResult<()> {
        let answer = self.send("PUT", &format!("/{name}"), None).await?;
        // 412: it is there.
        if answer.status == 412 {
            Ok(())
        } else {
            succeed(&answer)
        }
    }

    /// Makes sure that bindings cannot make users.
    async fn close_users(&self) -> PortResult<()> {
        let path = "/_users/_security";
        let found = self.read(path).await?.unwrap_or_default();
        if admins_only(&found) {
            return Ok(());
        }
        let closed = json!({
            "admins": {"names": [], "roles": ["_admin"]},
            "members": {"names": [], "roles": ["_admin"]},
        });
        let answer = self.send("PUT", path, Some(&closed)).await?;
        if [400, 401, 403, 405].contains(&answer.status) {
            return Err(PortError::invalid(
                "Everybody may read or make users on this server, so a revoked binding could come back; \
                 restrict _users/_security to administrators.",
            ));
        }
        succeed(&answer)
    }

    /// States what owners can change and bindings rely on.
    async fn restate(&self) -> PortResult<()> {
        let path = format!("/{}/_security", self.database);
        let wanted = security(self.database);
        if self.read(&path).await?.as_ref() != Some(&wanted) {
            self.write(&path, &wanted).await?;
        }
        let path = format!("/{}/{DESIGN}", self.database);
        let mut wanted = design(self.database);
        let mut found = self.read(&path).await?.unwrap_or_default();
        if let Some(revision) = found.as_object_mut().and_then(|found| found.remove("_rev")) {
            if found == wanted {
                return Ok(());
            }
            wanted["_rev"] = revision;
        }
        self.write(&path, &wanted).await
    }

    async fn prepare(&self) -> PortResult<()> {
        self.ensure_database("_users").await?;
        self.close_users().await?;
        self.ensure_database(self.database).await?;
        self.restate().await
    }

    async fn issue(self, role: &str, user: &NewUser) -> PortResult<()> {
        self.restate().await?;
        let group = group(self.database, role)?;
        let path = user_path(&user.handle);
        let found = self.read(&path).await?;
        let mut document = json!({
            "_id": format!("{USER_PREFIX}{}", user.handle),
            "type": "user",
            "name": user.handle,
            "roles": [group],
            "password": user.secret.text("password"),
        });
        if let Some(found) = found {
            let same = ["type", "name", "roles"]
                .iter()
                .all(|member| found[member] == document[member]);
            let admin = self.login;
            let seen = self.seen_by(&user.secret);
            if same && seen.send("GET", "/_session", None).await?.is_success() {
                return Ok(());
            }
            document["_rev"] = found["_rev"].clone();
            let written = seen.seen_by(admin).write(&path, &document).await;
            wipe(document);
            return written;
        }
        let written = self.write(&path, &document).await;
        wipe(document);
        written
    }

    /// As the user: that the server takes it for whom it is, with its role, and lets it into the database.
    async fn verify(&self, role: &str, handle: &str) -> PortResult<()> {
        let session = parse(&self.send("GET", "/_session", None).await?)?;
        let user = &session["userCtx"];
        if user["name"] != *handle || user["roles"] != json!([group(self.database, role)?]) {
            return Err(PortError::denied(
                "The server takes the new user for somebody else.",
            ));
        }
        succeed(&self.send("GET", &format!("/{}", self.database), None).await?)
    }

    async fn revoke(&self, handle: &str) -> PortResult<()> {
        let path = user_path(handle);
        let Some(found) = self.read(&path).await? else {
            return Ok(());
        };
        let revision = found["_rev"].as_str().unwrap_or_default();
        let revision = utf8_percent_encode(revision, NON_ALPHANUMERIC);
        let answer = self
            .send("DELETE", &format!("{path}?rev={revision}"), None)
            .await?;
        if answer.status == 404 {
            Ok(())
        } else {
            succeed(&answer)
        }
    }

    async fn list(&self) -> PortResult<Vec<String>> {
        let key = |end: &str| {
            let key = json!(format!("{USER_PREFIX}b_{end}")).to_string();
            utf8_percent_encode(&key, NON_ALPHANUMERIC).to_string()
        };
        let path = format!("/_users/_all_docs?startkey={}&endkey={}", key(""), key("~"));
        let found = parse(&self.send("GET", &path, None).await?)?;
        let rows = found["rows"].as_array().ok_or_else(not_understood)?;
        Ok(rows
            .iter()
            .filter_map(|row| row["id"].as_str()?.strip_prefix(USER_PREFIX))
            .filter(|name| own_handle(name).is_ok())
            .map(str::to_owned)
            .collect())
    }
}

fn user_path(handle: &str) -> String {
    format!("/_users/{USER_PREFIX}{handle}")
}

/// Overwrites the password in memory.
fn wipe(document: Value) {
    if let Value::Object(members) = document {
        drop(Secret::new(members));
    }
}

#[async_trait]
impl CredentialMechanism for CouchDb {
    fn name(&self) -> &'static str {
        "couchdb"
    }

    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String> {
        database(settings).err().unwrap_or_default()
    }

    /// Makes `username` and `password` for the section `[admins]` of the server's configuration.
    fn generate_admin(&self, _settings: &Map<String, Value>) -> PortResult<Secret> {
        administrator()
    }

    fn generate_user(&self, target: &Target, grant: &Grant, _now: Millis) -> PortResult<NewUser> {
        group(self.server(target)?.database, &grant.role)?;
        let handle = grant.user();
        own_handle(&handle)?;
        let secret = Secret::from_pairs([("username", handle.clone()), ("password", password::generate()?)]);
        Ok(NewUser { handle, secret })
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        within(CALLS_TIME, async { self.server(target)?.prepare().await }).await
    }

    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALLS_TIME, async {
            let handle = own_handle(&user.handle)?;
            if handle != grant.user() || user.secret.text("password").is_empty() {
                return Err(not_this_bindings());
            }
            self.server(target)?.issue(&grant.role, user).await
        })
        .await
    }

    async fn verify(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALLS_TIME, async {
            let server = self.server(target)?.seen_by(&user.secret);
            server.verify(&grant.role, &user.handle).await
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

fn parse(answer: &Answer) -> PortResult<Value> {
    succeed(answer)?;
    serde_json::from_slice(&answer.body).map_err(|_| not_understood())
}

fn not_understood() -> PortError {
    PortError::invalid("The server's answer is not understood; tell its operator.")
}

fn succeed(answer: &Answer) -> PortResult<()> {
    if answer.is_success() {
        Ok(())
    } else {
        Err(explain(answer))
    }
}

/// Sorts a refusal. Of the answer only its one word goes into the log: its sentence may quote what was sent.
fn explain(answer: &Answer) -> PortError {
    use PortErrorKind::{Conflict, Denied, Gone, Invalid, Transient};
    let (kind, message) = match answer.status {
        401 => (Denied, "The server refuses the log-in."),
        403 => (Denied, "The server does not allow this."),
        404 => (Gone, "The database does not exist on the server."),
        409 => (
            Conflict,
            "Somebody else changes the same document at this moment.",
        ),
        408 | 429 | 500.. => (Transient, "The server cannot do this at the moment."),
        _ => (
            Invalid,
            "The server does not understand what it was asked; tell its operator.",
        ),
    };
    let answered: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let word: String = answered["error"]
        .as_str()
        .unwrap_or_default()
        .chars()
        .take_while(|c| c.is_ascii_lowercase() || *c == '_')
        .take(64)
        .collect();
    PortError::new(kind, message).with_detail(format!("{message} ({} {word})", answer.status))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::catalog::{admin_members, user_members};
    use crate::domain::names::{self, backend_user};

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
            settings: json!({"database": "app"}).as_object().unwrap().clone(),
            admin: CouchDb::new().generate_admin(&Map::new()).unwrap(),
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

    #[test]
    fn settings_are_checked_all_at_once() {
        let check = |value: Value| CouchDb::new().check_settings(value.as_object().unwrap());
        assert!(check(json!({"database": "a-b_2", "tls": true})).is_empty());
        assert_eq!(
            check(json!({"database": "A", "tls": "yes", "user": "x"})).len(),
            3
        );
        let long = "a".repeat(129);
        for bad in [
            "", "_users", "1a", "a/b", "a b", "a\"", "a'", "../a", "a+b", "ä", &long,
        ] {
            assert_eq!(check(json!({"database": bad})).len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn security_names_roles_and_nobody() {
        assert_eq!(
            security("app"),
            json!({
                "admins": {"names": [], "roles": ["app_owner"]},
                "members": {"names": [], "roles": ["app_owner", "app_readwrite", "app_readonly"]},
            })
        );
        let function = design("app")["validate_doc_update"].as_str().unwrap().to_owned();
        assert!(function.contains(r#"["_admin","app_owner","app_readwrite"]"#));
        assert!(!function.contains("readonly"));
        assert!(group("app", "_admin").is_err());
    }

    #[test]
    fn only_administrators_is_told_from_anybody() {
        let admins = json!({"roles": ["_admin"]});
        assert!(admins_only(&json!({"admins": admins, "members": admins})));
        assert!(admins_only(&security_of(&["_admin"], &[])));
        for open in [
            json!({}),
            json!({"admins": admins}),
            json!({"admins": admins, "members": {"roles": []}}),
            security_of(&["_admin", "app_owner"], &[]),
            security_of(&["_admin"], &["b_x"]),
        ] {
            assert!(!admins_only(&open), "{open}");
        }
    }

    fn security_of(roles: &[&str], names: &[&str]) -> Value {
        let part = json!({"roles": roles, "names": names});
        json!({"admins": part, "members": part})
    }

    #[test]
    fn secrets_have_the_members_the_catalog_expects() {
        let mechanism = CouchDb::default();
        let user = mechanism.generate_user(&target(), &grant("readonly"), 0).unwrap();
        for (secret, members) in [
            (&target().admin, admin_members("couchdb")),
            (&user.secret, user_members("couchdb")),
        ] {
            assert_eq!(secret.expose().len(), members.len());
            assert!(members.iter().all(|member| !secret.text(member).is_empty()));
        }
        assert!(mechanism.generate_user(&target(), &grant("_admin"), 0).is_err());
    }

    #[tokio::test]
    async fn only_users_of_bindings_are_touched() {
        let mechanism = CouchDb::new();
        for bad in ["chandler", "b_", "b_x/../y", "_design/x"] {
            let error = mechanism.revoke(&target(), bad).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Invalid, "{bad}");
        }
        let mut user = mechanism.generate_user(&target(), &grant("owner"), 0).unwrap();
        user.handle = backend_user(&names::bid("p", "i", "other"));
        let error = mechanism
            .issue(&target(), &grant("owner"), &user)
            .await
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid);
    }

    #[test]
    fn refusals_are_sorted_and_quote_only_the_word() {
        use PortErrorKind::{Conflict, Denied, Gone, Invalid, Transient};
        for (status, kind) in [
            (401, Denied),
            (403, Denied),
            (404, Gone),
            (409, Conflict),
            (500, Transient),
            (429, Transient),
            (400, Invalid),
            (302, Invalid),
        ] {
            let error = explain(&Answer {
                status,
                body: br#"{"error":"some_word","reason":"s3cret"}"#.to_vec(),
            });
            assert_eq!(error.kind, kind, "{status}");
            assert!(error.detail.contains("some_word") && !error.detail.contains("s3cret"));
        }
    }
}
