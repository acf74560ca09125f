//! The `cassandra` mechanism: Apache Cassandra 4.1 and newer, one role per binding, rights by group roles.
//!
//! Each keyspace has three roles that cannot log in, `<keyspace>_owner`, `_readwrite` and `_readonly`; a binding's role is
//! a member of one. What must stay true here:
//! - the server starts with a superuser whose password everybody knows: it is shut out before anything else is made,
//!   and a server on which somebody was before us is not taken over;
//! - rights are on tables, not on the keyspace, so that no binding can drop or change the keyspace itself;
//! - who makes a table gets rights on it of its own. So leaving the group is not enough: only `DROP ROLE` ends those;
//! - only a password's hash becomes part of a statement, and of names only those an `Ident` holds;
//! - users' data are read and written at local quorum, so with one replica of `system_auth` for each of the
//!   keyspace a lost node shuts nobody out.
//!
//! The server cannot end a session: a revoked role's stays open and may do nothing. Every node remembers roles, passwords and rights
//! for a while. The one we speak to is told to forget, so there a revocation holds at once; on the others of a cluster
//! log-ins and sessions end when what they remember is too old (`credentials_validity`, `roles_validity`,
//! `permissions_validity`; the catalog sets 2 s). The server knows no expiry for roles. Connections are made without TLS.
//!
//! Settings: `keyspace`; `datacenter` and `replication` (1 to 9), how it is replicated.

mod session;

use super::common::{administrator, is_user, not_this_bindings, own_name, within};
use super::password;
use super::sql_text::Ident;
use crate::domain::instance::Millis;
use crate::domain::secret::Secret;
use crate::ports::{CredentialMechanism, Grant, NewUser, PortError, PortErrorKind, PortResult, Target};
use async_trait::async_trait;
use bcrypt::Version;
use scylla::value::{CqlValue, Row};
use serde_json::{Map, Value};
use session::Session;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Name and password of the superuser every new server has.
const WELL_KNOWN: &str = "cassandra";

const PREPARE_TIME: Duration = Duration::from_mins(1);
const CALL_TIME: Duration = Duration::from_secs(40);

/// The least the server takes. Each log-in costs it this much work, and the passwords are random: more would protect nothing.
const BCRYPT_COST: u32 = 4;

/// Per role of a binding: what its group may do, and on what of the keyspace.
const GROUPS: &[(&str, &[(&str, &str)])] = &[
    (
        "owner",
        &[
            ("CREATE", "KEYSPACE"),
            ("ALTER", "ALL TABLES IN KEYSPACE"),
            ("DROP", "ALL TABLES IN KEYSPACE"),
            ("SELECT", "ALL TABLES IN KEYSPACE"),
            ("MODIFY", "ALL TABLES IN KEYSPACE"),
        ],
    ),
    (
        "readwrite",
        &[
            ("SELECT", "ALL TABLES IN KEYSPACE"),
            ("MODIFY", "ALL TABLES IN KEYSPACE"),
        ],
    ),
    ("readonly", &[("SELECT", "ALL TABLES IN KEYSPACE")]),
];

/// The mechanism `cassandra`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cassandra;

/// What `binding.yaml` says about the server, checked.
struct Settings {
    keyspace: Ident,
    datacenter: String,
    replication: u64,
}

impl Settings {
    /// Reads settings; every error at once.
    fn parse(settings: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let known = ["keyspace", "datacenter", "replication"];
        for key in settings.keys().filter(|key| !known.contains(&key.as_str())) {
            errors.push(format!("{key}: unknown; known are {}", known.join(", ")));
        }
        let text = |key: &str| settings.get(key).and_then(Value::as_str).unwrap_or_default();
        let name = text("keyspace");
        let keyspace = Ident::parse(name)
            .ok()
            .filter(|_| name.len() <= 48 && !name.contains('-') && !name.starts_with("system"));
        if keyspace.is_none() {
            errors.push("keyspace: must match ^[a-z_][a-z0-9_]{0,47}$ and not start with system".to_owned());
        }
        let datacenter = text("datacenter");
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
        if !(1..=64).contains(&datacenter.len()) || !datacenter.bytes().all(plain) {
            errors.push("datacenter: must be letters, digits and _ - .".to_owned());
        }
        let replication = settings
            .get("replication")
            .and_then(Value::as_u64)
            .filter(|n| (1..=9).contains(n));
        if replication.is_none() {
            errors.push("replication: must be a number from 1 to 9".to_owned());
        }
        match (keyspace, replication) {
            (Some(keyspace), Some(replication)) if errors.is_empty() => Ok(Self {
                keyspace,
                datacenter: datacenter.to_owned(),
                replication,
            }),
            _ => Err(errors),
        }
    }

    /// The settings of an instance, which were checked when the catalog was loaded.
    fn of(target: &Target) -> PortResult<Self> {
        Self::parse(&target.settings).map_err(|errors| {
            PortError::invalid("The settings of this service's bindings are wrong; tell its operator.")
                .with_detail(errors.join("; "))
        })
    }

    /// The role whose member a binding becomes.
    fn group(&self, role: &str) -> PortResult<Ident> {
        if GROUPS.iter().any(|(name, _)| *name == role) {
            Ident::parse(&format!("{}_{role}", self.keyspace.name()))
        } else {
            Err(PortError::invalid(format!(
                "There is no role {role:?}: use owner, readwrite or readonly."
            )))
        }
    }

    fn replication(&self) -> String {
        format!(
            "{{'class': 'NetworkTopologyStrategy', '{}': '{}'}}",
            self.datacenter, self.replication
        )
    }

    /// Whether a keyspace is replicated so already, as the server describes it.
    fn is_replication(&self, described: &BTreeMap<String, String>) -> bool {
        let class = described
            .get("class")
            .is_some_and(|c| c.ends_with("NetworkTopologyStrategy"));
        let copies = described.get(&self.datacenter) == Some(&self.replication.to_string());
        class && copies && described.len() == 2
    }
}

/// What the server stores instead of a password; displays as a string literal.
struct Hash(String);

impl Hash {
    /// Hashes a password of letters and digits with a fresh salt, in the one variant the server takes.
    fn new(password: &str) -> PortResult<Self> {
        if password.is_empty() || !password.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(PortError::invalid(
                "The stored password of this binding is damaged; make a new binding.",
            ));
        }
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt)
            .map_err(|_| PortError::transient("The system gives no random numbers; try again."))?;
        bcrypt::non_truncating_hash_with_salt(password, BCRYPT_COST, salt)
            .map(|hash| Self(hash.format_for_version(Version::TwoA)))
            .map_err(|e| PortError::invalid("The password of this binding cannot be hashed.").with_detail(e))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0)
    }
}

/// A row of the server's table of roles. Null is not so.
type RoleRow = (Option<bool>, Option<bool>, Option<Vec<String>>);

/// A role as the server has it.
struct Role {
    can_login: bool,
    is_superuser: bool,
    member_of: Vec<String>,
}

/// The administrator at work.
struct Admin(Session);

impl Admin {
    async fn open(target: &Target) -> PortResult<Self> {
        let (username, password) = (target.admin.text("username"), target.admin.text("password"));
        Session::open(target, username, password).await.map(Self)
    }

    async fn role(&self, role: &Ident) -> PortResult<Option<Role>> {
        let query = format!(
            "SELECT can_login, is_superuser, member_of FROM system_auth.roles WHERE role = {}",
            role.literal()
        );
        let rows: Vec<RoleRow> = self.0.rows(&query).await?;
        Ok(rows.into_iter().next().map(|(login, superuser, member_of)| Role {
            can_login: login == Some(true),
            is_superuser: superuser == Some(true),
            member_of: member_of.unwrap_or_default(),
        }))
    }

    async fn roles(&self) -> PortResult<Vec<String>> {
        let rows: Vec<(String,)> = self.0.rows("SELECT role FROM system_auth.roles").await?;
        Ok(rows.into_iter().map(|row| row.0).collect())
    }

    async fn replicate(&self, keyspace: &Ident, settings: &Settings) -> PortResult<()> {
        let query = format!(
            "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = {}",
            keyspace.literal()
        );
        let rows: Vec<(BTreeMap<String, String>,)> = self.0.rows(&query).await?;
        let replication = settings.replication();
        match rows.first() {
            Some((described,)) if settings.is_replication(described) => return Ok(()),
            Some(_) => {
                let statement = format!("ALTER KEYSPACE {keyspace} WITH replication = {replication}");
                self.0.run(&statement).await?;
            }
            None => {
                let statement =
                    format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication}");
                self.0.run(&statement).await?;
            }
        }
        self.0.agreed().await
    }

    async fn prepare(&self, settings: &Settings) -> PortResult<()> {
        let well_known = Ident::parse(WELL_KNOWN)?;
        let role = self.role(&well_known).await?;
        if role.is_some_and(|role| role.can_login || role.is_superuser) {
            let statement = format!("ALTER ROLE {well_known} WITH SUPERUSER = false AND LOGIN = false");
            self.0.run(&statement).await?;
            self.forget(&well_known).await?;
        }
        let keyspace = &settings.keyspace;
        self.replicate(keyspace, settings).await?;
        for (role, rights) in GROUPS {
            let group = settings.group(role)?;
            self.0
                .run(&format!("CREATE ROLE IF NOT EXISTS {group} WITH LOGIN = false"))
                .await?;
            for (right, on) in *rights {
                let granted = self
                    .0
                    .run(&format!("GRANT {right} ON {on} {keyspace} TO {group}"))
                    .await;
                granted.map_err(|e| match e.kind {
                    // Another worker makes it at this moment: it is in the tables, and not yet in use.
                    PortErrorKind::Invalid if e.detail.contains("doesn't exist") => {
                        PortError::transient("The keyspace is still being made.").with_detail(e.detail)
                    }
                    _ => e,
                })?;
            }
        }
        Ok(())
    }

    async fn issue(&self, user: &Ident, group: &Ident, hash: &Hash) -> PortResult<()> {
        self.0
            .run(&format!("CREATE ROLE IF NOT EXISTS {user} WITH LOGIN = false"))
            .await?;
        let held = self
            .role(user)
            .await?
            .map(|role| role.member_of)
            .unwrap_or_default();
        for other in held.iter().filter(|held| *held != group.name()) {
            self.leave(user, other).await?;
        }
        if !held.iter().any(|held| held == group.name()) {
            self.0
                .run_unless("is a member", &format!("GRANT {group} TO {user}"))
                .await?;
        }
        let statement =
            format!("ALTER ROLE {user} WITH HASHED PASSWORD = {hash} AND LOGIN = true AND SUPERUSER = false");
        self.0.run(&statement).await?;
        self.forget(user).await
    }

    /// Empties what the node remembers of a user; other nodes forget when their caches are old enough.
    async fn forget(&self, user: &Ident) -> PortResult<()> {
        let name = user.literal();
        let mut statements = vec![
            format!("DELETE FROM system_views.credentials_cache_keys WHERE role = {name}"),
            format!("DELETE FROM system_views.roles_cache_keys WHERE role = {name}"),
        ];
        let remembered: Vec<(String, String)> = self
            .0
            .rows("SELECT role, resource FROM system_views.permissions_cache_keys")
            .await?;
        let of_user = remembered.iter().filter(|(role, _)| role == user.name());
        statements.extend(of_user.map(|(_, resource)| {
            let resource = resource.replace('\'', "''");
            format!(
                "DELETE FROM system_views.permissions_cache_keys WHERE role = {name} AND resource = '{resource}'"
            )
        }));
        for statement in statements {
            self.0.run(&statement).await?;
        }
        Ok(())
    }

    async fn leave(&self, user: &Ident, group: &str) -> PortResult<()> {
        let group = super::sql_text::quote_found(group);
        self.0
            .run_unless("is not a member", &format!("REVOKE {group} FROM {user}"))
            .await
    }

    async fn revoke(&self, user: &Ident) -> PortResult<()> {
        let Some(role) = self.role(user).await? else {
            return self.forget(user).await;
        };
        // Another worker may be a step ahead: a role that went meanwhile is what is wanted.
        self.0
            .run_unless("doesn't exist", &format!("ALTER ROLE {user} WITH LOGIN = false"))
            .await?;
        for group in &role.member_of {
            match self.leave(user, group).await {
                Err(e) if e.kind == PortErrorKind::Invalid && self.role(user).await?.is_none() => {}
                left => left?,
            }
        }
        self.0.run(&format!("DROP ROLE IF EXISTS {user}")).await?;
        self.forget(user).await
    }
}

/// Puts our administrator in the place of the superuser everybody knows.
///
/// Nobody else can have used the server yet: applications are let in after this. Until it is done the server may still be making
/// that superuser, or be between two states of its own tables; then it is tried again.
async fn take_over(target: &Target, settings: &Settings) -> PortResult<()> {
    let not_yet = |e: PortError| match e.kind {
        PortErrorKind::Denied => {
            PortError::transient("The server does not let its administrator in yet.").with_detail(e.detail)
        }
        _ => e,
    };
    let name = Ident::parse(target.admin.text("username"))?;
    let hash = Hash::new(target.admin.text("password"))?;
    let server = Admin(
        Session::open(target, WELL_KNOWN, WELL_KNOWN)
            .await
            .map_err(not_yet)?,
    );
    let found = server.roles().await.map_err(not_yet)?;
    if let Some(stranger) = found
        .iter()
        .find(|role| *role != WELL_KNOWN && *role != name.name())
    {
        return Err(PortError::denied(
            "Somebody used this server before the broker could close it; delete the instance and make a new one.",
        )
        .with_detail(format!("role {stranger:?} is there besides {WELL_KNOWN:?}")));
    }
    if settings.replication > 1 {
        // First of all, so that everything below is written to as many nodes as are asked later.
        let statement = format!(
            "ALTER KEYSPACE system_auth WITH replication = {}",
            settings.replication()
        );
        server.0.run(&statement).await.map_err(not_yet)?;
        server.0.agreed().await.map_err(not_yet)?;
    }
    for statement in [
        format!("CREATE ROLE IF NOT EXISTS {name} WITH LOGIN = false"),
        format!("ALTER ROLE {name} WITH HASHED PASSWORD = {hash} AND LOGIN = true AND SUPERUSER = true"),
    ] {
        server.0.run(&statement).await.map_err(not_yet)?;
    }
    Ok(())
}

#[async_trait]
impl CredentialMechanism for Cassandra {
    fn name(&self) -> &'static str {
        "cassandra"
    }

    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String> {
        Settings::parse(settings).err().unwrap_or_default()
    }

    /// Makes `username` and `password` of the superuser that [`prepare`](CredentialMechanism::prepare) makes.
    fn generate_admin(&self, _settings: &Map<String, Value>) -> PortResult<Secret> {
        administrator()
    }

    fn generate_user(&self, target: &Target, grant: &Grant, _now: Millis) -> PortResult<NewUser> {
        Settings::of(target)?.group(&grant.role)?;
        let handle = grant.user();
        Ident::user(&handle)?;
        let secret = Secret::from_pairs([("username", handle.clone()), ("password", password::generate()?)]);
        Ok(NewUser { handle, secret })
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        within(PREPARE_TIME, async {
            let settings = Settings::of(target)?;
            let admin = match Admin::open(target).await {
                Err(e) if e.kind == PortErrorKind::Denied => {
                    take_over(target, &settings).await?;
                    Admin::open(target).await?
                }
                opened => opened?,
            };
            admin.prepare(&settings).await
        })
        .await
    }

    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALL_TIME, async {
            let group = Settings::of(target)?.group(&grant.role)?;
            let name = Ident::user(&user.handle)?;
            if user.handle != grant.user() {
                return Err(not_this_bindings());
            }
            let hash = Hash::new(user.secret.text("password"))?;
            Admin::open(target).await?.issue(&name, &group, &hash).await
        })
        .await
    }

    /// Logs in, and sees that the role is in its group.
    async fn verify(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        // A password that was set anew is known to every node when its caches are some seconds older.
        let not_yet = |e: PortError| match e.kind {
            PortErrorKind::Denied => {
                PortError::transient("The server does not let the new user in yet.").with_detail(e.detail)
            }
            _ => e,
        };
        within(CALL_TIME, async {
            let group = Settings::of(target)?.group(&grant.role)?;
            let name = Ident::user(user.secret.text("username"))?;
            let session = Session::open(target, name.name(), user.secret.text("password"))
                .await
                .map_err(not_yet)?;
            let rows: Vec<Row> = session
                .rows(&format!("LIST ROLES OF {name}"))
                .await
                .map_err(not_yet)?;
            let role = |row: &Row| match row.columns.first() {
                Some(Some(CqlValue::Text(role) | CqlValue::Ascii(role))) => role == group.name(),
                _ => false,
            };
            if rows.iter().any(role) {
                Ok(())
            } else {
                Err(PortError::transient(
                    "The server does not know the new user's rights yet.",
                ))
            }
        })
        .await
    }

    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()> {
        within(CALL_TIME, async {
            let user = Ident::user(handle)?;
            Admin::open(target).await?.revoke(&user).await
        })
        .await
    }

    fn rotates_admin(&self, _settings: &Map<String, Value>) -> bool {
        true
    }

    /// The server cannot end sessions: one that was opened with the former password stays until it is closed.
    async fn rotate_admin(&self, target: &Target, next: &Secret) -> PortResult<()> {
        within(CALL_TIME, async {
            let name = Ident::parse(own_name(target, next)?)?;
            // Nodes that we do not speak to remember a password for some seconds.
            let several = Settings::of(target)?.replication > 1;
            let not_yet = |error: PortError| match error.kind {
                PortErrorKind::Denied if several => {
                    PortError::transient("The servers do not let their administrator in yet.")
                        .with_detail(error.detail)
                }
                _ => error,
            };
            match Admin::open(target).await {
                Ok(admin) => {
                    let hash = Hash::new(next.text("password"))?;
                    let change = format!("ALTER ROLE {name} WITH HASHED PASSWORD = {hash}");
                    admin.0.run(&change).await?;
                    admin.forget(&name).await?;
                }
                // An earlier try got so far: then the next ones let in.
                Err(error) if error.kind == PortErrorKind::Denied => {}
                Err(error) => return Err(error),
            }
            let after = target.with_admin(next);
            Admin::open(&after).await.map_err(not_yet)?;
            if target.admin == *next {
                return Ok(());
            }
            match Admin::open(target).await {
                Err(error) if error.kind == PortErrorKind::Denied => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Err(PortError::transient(
                    "The server still lets its administrator in with the former password.",
                )),
            }
        })
        .await
    }

    async fn list(&self, target: &Target) -> PortResult<Vec<String>> {
        within(CALL_TIME, async {
            let roles = Admin::open(target).await?.roles().await?;
            Ok(roles.into_iter().filter(|role| is_user(role)).collect())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::catalog::{admin_members, user_members};
    use crate::domain::names::{self, backend_user};
    use serde_json::json;

    fn settings(settings: &Value) -> Settings {
        Settings::parse(settings.as_object().unwrap()).ok().unwrap()
    }

    fn app() -> Settings {
        settings(&json!({"keyspace": "app", "datacenter": "dc1", "replication": 3}))
    }

    fn target() -> Target {
        let endpoint = crate::domain::instance::Endpoint {
            name: "client".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 1,
        };
        let settings = json!({"keyspace": "app", "datacenter": "dc1", "replication": 1});
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: settings.as_object().unwrap().clone(),
            admin: Cassandra.generate_admin(&Map::new()).unwrap(),
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
        let check = |value: Value| Cassandra.check_settings(value.as_object().unwrap());
        assert!(check(json!({"keyspace": "app", "datacenter": "dc1", "replication": 1})).is_empty());
        let found = check(json!({"keyspace": "a\"b", "datacenter": "dc' OR", "replication": 0, "tls": true}));
        for key in ["keyspace", "datacenter", "replication", "tls"] {
            assert!(
                found.iter().any(|e| e.starts_with(key)),
                "{key} is missing in {found:?}"
            );
        }
        let long = "a".repeat(49);
        for bad in ["", "1a", "A", "a-b", "a b", "system", "system_auth", &long] {
            let found = check(json!({"keyspace": bad, "datacenter": "dc1", "replication": 1}));
            assert_eq!(found.len(), 1, "{bad:?}: {found:?}");
        }
    }

    #[test]
    fn groups_are_named_after_the_keyspace_and_never_drop_it() {
        assert_eq!(app().group("owner").unwrap().to_string(), "\"app_owner\"");
        assert!(app().group("superuser").is_err());
        for (role, rights) in GROUPS {
            let on_keyspace = rights.iter().filter(|(_, on)| *on == "KEYSPACE");
            for (right, _) in on_keyspace {
                assert_eq!((*role, *right), ("owner", "CREATE"));
            }
            assert_eq!(
                rights.iter().any(|(right, _)| *right == "MODIFY"),
                *role != "readonly"
            );
        }
    }

    #[test]
    fn replication_is_compared_as_the_server_describes_it() {
        assert_eq!(
            app().replication(),
            "{'class': 'NetworkTopologyStrategy', 'dc1': '3'}"
        );
        let described = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            app().is_replication(&pairs.collect())
        };
        let class = ("class", "org.apache.cassandra.locator.NetworkTopologyStrategy");
        assert!(described(&[class, ("dc1", "3")]));
        assert!(!described(&[class, ("dc1", "1")]));
        assert!(!described(&[class, ("dc1", "3"), ("dc2", "3")]));
        assert!(!described(&[
            ("class", "SimpleStrategy"),
            ("replication_factor", "3")
        ]));
    }

    #[test]
    fn hashes_are_of_the_variant_the_server_takes() {
        let hash = Hash::new("Password1").unwrap();
        assert!(hash.0.starts_with("$2a$04$"), "{}", hash.0);
        assert_eq!(hash.0.len(), 60);
        assert!(bcrypt::verify("Password1", &hash.0).unwrap());
        assert_ne!(hash.0, Hash::new("Password1").unwrap().0, "the salt is fresh");
        let inner = hash.to_string();
        assert!(!inner[1..inner.len() - 1].contains(['\'', '\\']));
        for bad in ["", "a'b", "a b", "ä"] {
            assert!(Hash::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn secrets_have_the_members_the_catalog_expects() {
        let user = Cassandra.generate_user(&target(), &grant("readonly"), 0).unwrap();
        for (secret, members) in [
            (&target().admin, admin_members("cassandra")),
            (&user.secret, user_members("cassandra")),
        ] {
            assert_eq!(secret.expose().len(), members.len());
            assert!(members.iter().all(|member| !secret.text(member).is_empty()));
        }
        assert!(Cassandra.generate_user(&target(), &grant("root"), 0).is_err());
    }

    #[tokio::test]
    async fn only_users_of_bindings_are_touched() {
        for bad in ["cassandra", "chandler", "app_owner", "b_", "b_x\"; DROP"] {
            let error = Cassandra.revoke(&target(), bad).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Invalid, "{bad}");
        }
        let mut user = Cassandra.generate_user(&target(), &grant("owner"), 0).unwrap();
        user.handle = backend_user(&names::bid("p", "i", "other"));
        let error = Cassandra
            .issue(&target(), &grant("owner"), &user)
            .await
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_transient() {
        let mut target = target();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        target.endpoint.port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = Cassandra.list(&target).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Transient);
        assert!(!error.detail.contains(target.admin.text("password")));
    }
}
