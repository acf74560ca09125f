//! Users on SQL servers that speak PostgreSQL's protocol: the order of steps, shared by both dialects.
//!
//! The statements themselves are in `sql_postgres` and `sql_cockroach`, one reviewable place each. What
//! must stay true here:
//! - everything a binding makes belongs to one NOLOGIN owner role, so that its user can go without its data;
//! - a tenant owns its database and may have planted anything in it: our own sessions pin every setting
//!   that could be turned against them, and call nothing a tenant made;
//! - revoking first shuts the door (no login, no membership), then ends sessions, then tidies up. A tenant
//!   may hold locks or come back in a loop; the few repeats below are for that, all other repeats are the engine's;
//! - the clear password never becomes SQL text.

use super::common::{administrator, is_user, not_this_bindings, own_name};
use super::password;
use super::sql_settings::{Names, Settings};
use super::sql_text::{Ident, Verifier, timestamp};
use crate::domain::instance::Millis;
use crate::domain::names;
use crate::domain::secret::Secret;
use crate::ports::{CredentialMechanism, Grant, NewUser, PortError, PortErrorKind, PortResult, Target};
use async_trait::async_trait;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection, FromRow};
use std::future::Future;
use std::time::Duration;

/// Where statements about the whole server run. Tenants are kept out of it, so they cannot take our locks there.
const MAINTENANCE_DATABASE: &str = "postgres";

const CONNECT_TIME: Duration = Duration::from_secs(5);
const ISSUE_TIME: Duration = Duration::from_secs(30);
const VERIFY_TIME: Duration = Duration::from_secs(10);
const PREPARE_TIME: Duration = Duration::from_mins(1);
const REVOKE_TIME: Duration = Duration::from_mins(1);

/// What the administrator is on this server; decides which statements it may say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// Superuser, or merely CREATEROLE and CREATEDB.
    pub superuser: bool,
    /// `server_version_num`, such as 150004; 0 where there is none.
    pub version: i32,
}

/// The whole state of one binding's user.
pub(super) struct Login<'a> {
    pub user: &'a Ident,
    pub group: &'a Ident,
    pub verifier: &'a Verifier,
    /// A literal; `None` = for ever.
    pub valid_until: Option<&'a str>,
    pub connection_limit: u16,
}

/// Statements of one kind of server. Lists run in one transaction where the dialect is [`atomic`](Self::atomic).
pub(super) trait Dialect: Send + Sync {
    /// Whether role and privilege statements may share a transaction.
    fn atomic(&self) -> bool;
    /// Ends every other session of the administrator; none where its password is not ours to exchange.
    fn cut_own(&self) -> Option<&'static str>;
    /// Settings every administrator's session starts with; they win over what a tenant set for its database.
    fn session(&self, version: i32) -> Vec<(&'static str, &'static str)>;
    /// One row: the members of [`Facts`].
    fn facts(&self) -> &'static str;
    /// Makes workers that act on the same thing take turns, until the session ends.
    fn lock(&self, key: i64) -> Option<String>;
    /// Owner, readwrite and readonly roles.
    fn groups(&self, names: &Names, facts: Facts) -> Vec<String>;
    /// The tenant's database; runs alone.
    fn create_database(&self, names: &Names) -> String;
    /// One number: not 0 when an owner keeps members of the group out of its database.
    fn shut(&self, names: &Names, group: &Ident) -> String;
    /// Undoes what an owner can do to keep others, even an administrator, out of its database.
    fn reopen(&self, names: &Names, facts: Facts) -> Vec<String>;
    /// Who may connect to which database.
    fn fence(&self, names: &Names, facts: Facts) -> Vec<String>;
    /// Inside the tenant's database: default privileges and extensions.
    fn inside(&self, names: &Names, facts: Facts, extensions: &[Ident]) -> Vec<String>;
    /// The user with all attributes stated, since a leftover one would break a repeated run.
    fn login(&self, names: &Names, facts: Facts, login: &Login<'_>) -> Vec<String>;
    /// Who the user is after logging in.
    fn acts_as<'a>(&self, names: &'a Names, user: &'a Ident, group: &'a Ident) -> &'a Ident;
    /// What an administrator that is no superuser needs before it may act for the user.
    fn borrow(&self, user: &Ident, facts: Facts) -> Vec<String>;
    /// No login and none of the `groups` (found on the server) any more. Must give up soon when a tenant holds locks.
    fn bar(&self, user: &Ident, groups: &[String]) -> Vec<String>;
    /// Ends the user's sessions.
    fn cut(&self, user: &Ident) -> String;
    /// One number: the user's sessions.
    fn sessions(&self, user: &Ident) -> String;
    /// Rows (database, two statements to run there in turn) that undo transactions the user left prepared.
    fn prepared(&self, user: &Ident) -> Option<String>;
    /// Names of databases, other than the maintenance one, in which the user owns or may do something.
    fn involved(&self, user: &Ident) -> String;
    /// In a database: hands some of the user's things to the owner; and the number of those left, as a query.
    fn move_some(&self, names: &Names, user: &Ident) -> Option<(String, String)>;
    /// In a database: hands the rest to the owner and takes all privileges away.
    fn move_rest(&self, names: &Names, user: &Ident) -> Vec<String>;
    /// Removes the user.
    fn drop_user(&self, user: &Ident) -> String;
    /// Ends sessions whose user is gone: they passed the door just before it shut.
    fn cut_orphans(&self, facts: Facts) -> Option<String>;
}

/// A session that ends with this value; every call in it is bounded by the session's own settings.
struct Session {
    connection: PgConnection,
    atomic: bool,
}

impl Session {
    async fn open(options: &PgConnectOptions, atomic: bool) -> PortResult<Self> {
        let connection = tokio::time::timeout(CONNECT_TIME, PgConnection::connect_with(options))
            .await
            .map_err(|_| PortError::transient("The database server does not answer."))?
            .map_err(explain)?;
        Ok(Self { connection, atomic })
    }

    /// Runs statements, all or none where the dialect can.
    async fn run(&mut self, statements: &[String]) -> PortResult<()> {
        if statements.is_empty() {
            return Ok(());
        }
        if !self.atomic {
            for statement in statements {
                self.run_alone(statement).await?;
            }
            return Ok(());
        }
        let result = self
            .run_alone(&format!("BEGIN;\n{};\nCOMMIT", statements.join(";\n")))
            .await;
        if result.is_err() {
            // The session is in a failed transaction; if this fails too the session is of no use anyway.
            drop(self.run_alone("ROLLBACK").await);
        }
        result
    }

    /// Runs one statement outside a transaction.
    async fn run_alone(&mut self, statement: &str) -> PortResult<()> {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(explain)
    }

    async fn rows<T>(&mut self, query: &str) -> PortResult<Vec<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        sqlx::query_as(AssertSqlSafe(query.to_owned()))
            .persistent(false)
            .fetch_all(&mut self.connection)
            .await
            .map_err(explain)
    }

    async fn count(&mut self, query: &str) -> PortResult<i64> {
        let rows: Vec<(i64,)> = self.rows(query).await?;
        Ok(rows.first().map_or(0, |row| row.0))
    }

    async fn close(self) {
        // Saying goodbye is a courtesy; the server notices a closed socket as well.
        drop(self.connection.close().await);
    }
}

/// The administrator at work on one instance.
struct Admin<'a> {
    target: &'a Target,
    settings: Settings,
    server: Session,
    facts: Facts,
}

impl<'a> Admin<'a> {
    /// Logs in and waits its turn behind other workers that act on the same `thing`.
    async fn open(target: &'a Target, thing: &str) -> PortResult<Self> {
        let settings = Settings::of(target)?;
        let options = settings
            .connect_options(target, &target.admin, MAINTENANCE_DATABASE)
            .options(settings.dialect.session(0));
        let mut server = Session::open(&options, settings.dialect.atomic()).await?;
        if let Some(lock) = settings.dialect.lock(lock_key(thing)) {
            server.run_alone(&lock).await?;
        }
        let facts: Vec<(bool, i32)> = server.rows(settings.dialect.facts()).await?;
        let &(superuser, version) = facts
            .first()
            .ok_or_else(|| PortError::denied("The database server does not know its administrator."))?;
        let facts = Facts { superuser, version };
        Ok(Self {
            target,
            settings,
            server,
            facts,
        })
    }

    async fn inside(&self, database: &str) -> PortResult<Session> {
        let dialect = self.settings.dialect;
        let options = self
            .settings
            .connect_options(self.target, &self.target.admin, database)
            .options(dialect.session(self.facts.version));
        Session::open(&options, dialect.atomic()).await
    }

    async fn database_exists(&mut self) -> PortResult<bool> {
        let name = self.settings.names.database.literal();
        let query = format!("SELECT count(*) FROM pg_database WHERE datname = {name}");
        Ok(self.server.count(&query).await? > 0)
    }

    async fn user_exists(&mut self, user: &Ident) -> PortResult<bool> {
        let query = format!("SELECT count(*) FROM pg_roles WHERE rolname = {}", user.literal());
        Ok(self.server.count(&query).await? > 0)
    }

    /// Roles the user is a member of.
    async fn memberships(&mut self, user: &Ident) -> PortResult<Vec<String>> {
        let query = format!(
            "SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid \
             JOIN pg_roles u ON u.oid = m.member WHERE u.rolname = {}",
            user.literal()
        );
        let rows: Vec<(String,)> = self.server.rows(&query).await?;
        Ok(rows.into_iter().map(|row| row.0).collect())
    }

    async fn prepare(&mut self) -> PortResult<()> {
        let dialect = self.settings.dialect;
        let names = &self.settings.names;
        self.server.run(&dialect.groups(names, self.facts)).await?;
        if !self.database_exists().await? {
            let names = &self.settings.names;
            self.server.run_alone(&dialect.create_database(names)).await?;
        }
        let names = &self.settings.names;
        self.server.run(&dialect.reopen(names, self.facts)).await?;
        self.server.run(&dialect.fence(names, self.facts)).await?;
        let mut inside = self.inside(names.database.name()).await?;
        let statements = dialect.inside(names, self.facts, &self.settings.extensions);
        inside.run(&statements).await?;
        inside.close().await;
        Ok(())
    }

    async fn issue(&mut self, grant: &Grant, user: &Ident, verifier: &Verifier) -> PortResult<()> {
        let group = self.settings.names.group(&grant.role)?.clone();
        let valid_until = grant.expires_at.map(timestamp).transpose()?;
        let held = self.memberships(user).await?;
        if held.iter().any(|held| held != group.name()) {
            // Open sessions would keep acting as the old role, and what the user made there is not its own.
            self.bar(user).await?;
            self.hand_over(user).await?;
        }
        let (dialect, names) = (self.settings.dialect, &self.settings.names);
        if self.server.count(&dialect.shut(names, &group)).await? > 0 {
            // Left behind by an earlier binding; this one must get in.
            self.server.run(&dialect.reopen(names, self.facts)).await?;
            self.server.run(&dialect.fence(names, self.facts)).await?;
        }
        let login = Login {
            user,
            group: &group,
            verifier,
            valid_until: valid_until.as_deref(),
            connection_limit: self.settings.connection_limit,
        };
        self.server.run(&dialect.login(names, self.facts, &login)).await
    }

    async fn revoke(&mut self, user: &Ident) -> PortResult<()> {
        let dialect = self.settings.dialect;
        // A session that slips in at the last moment can still make things; then the drop is refused and we tidy again.
        for round in 1..=3 {
            if !self.user_exists(user).await? {
                break;
            }
            self.bar(user).await?;
            self.hand_over(user).await?;
            self.end_sessions(user).await?;
            match self.server.run_alone(&dialect.drop_user(user)).await {
                Err(e) if e.kind == PortErrorKind::Conflict && round < 3 => {}
                result => result?,
            }
        }
        if let Some(cut) = dialect.cut_orphans(self.facts) {
            self.server.run_alone(&cut).await?;
        }
        Ok(())
    }

    /// Shuts the user out and ends its sessions. Its own transactions may hold the very rows that must change,
    /// so they are ended first, as often as it takes.
    async fn bar(&mut self, user: &Ident) -> PortResult<()> {
        const TRIES: usize = 20;
        let dialect = self.settings.dialect;
        for round in 1..=TRIES {
            self.server.run(&dialect.borrow(user, self.facts)).await?;
            self.server.run_alone(&dialect.cut(user)).await?;
            self.undo_prepared(user).await?;
            let groups = self.memberships(user).await?;
            match self.server.run(&dialect.bar(user, &groups)).await {
                Ok(()) => break,
                Err(e) if may_pass(&e) && round < TRIES => {}
                Err(e) => return Err(e),
            }
        }
        self.end_sessions(user).await
    }

    async fn end_sessions(&mut self, user: &Ident) -> PortResult<()> {
        let dialect = self.settings.dialect;
        for _ in 0..200 {
            if self.server.count(&dialect.sessions(user)).await? == 0 {
                return Ok(());
            }
            self.server.run_alone(&dialect.cut(user)).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(PortError::transient(
            "Sessions of this binding do not end yet; it can make no new ones.",
        ))
    }

    async fn undo_prepared(&mut self, user: &Ident) -> PortResult<()> {
        let Some(query) = self.settings.dialect.prepared(user) else {
            return Ok(());
        };
        let left: Vec<(String, String, String)> = self.server.rows(&query).await?;
        if !left.is_empty() {
            self.reopen().await?;
        }
        for (database, become_its_owner, undo) in left {
            let mut inside = self.inside(&database).await?;
            inside.run_alone(&become_its_owner).await?;
            inside.run_alone(&undo).await?;
            inside.close().await;
        }
        Ok(())
    }

    async fn reopen(&mut self) -> PortResult<()> {
        if self.database_exists().await? {
            let statements = self.settings.dialect.reopen(&self.settings.names, self.facts);
            self.server.run(&statements).await?;
        }
        Ok(())
    }

    /// Gives what the user made to the owner role, in every database; the user keeps nothing, not even a privilege.
    async fn hand_over(&mut self, user: &Ident) -> PortResult<()> {
        let dialect = self.settings.dialect;
        let involved: Vec<(String,)> = self.server.rows(&dialect.involved(user)).await?;
        if !involved.is_empty() {
            self.reopen().await?;
        }
        let names = &self.settings.names;
        for (database,) in involved {
            let mut inside = self.inside(&database).await?;
            if let Some((step, left)) = dialect.move_some(names, user) {
                // One transaction for all would need a lock for each, and a tenant can make more things than there are locks.
                let mut before = i64::MAX;
                loop {
                    let now = inside.count(&left).await?;
                    if now == 0 || now >= before {
                        break;
                    }
                    before = now;
                    inside.run(std::slice::from_ref(&step)).await?;
                }
            }
            inside.run(&dialect.move_rest(names, user)).await?;
            inside.close().await;
        }
        // Here for what no database holds: privileges on databases and parameters.
        if self.database_exists().await? {
            let names = &self.settings.names;
            self.server.run(&dialect.move_rest(names, user)).await?;
        }
        Ok(())
    }
}

/// The mechanism `sql`.
///
/// Settings: `dialect` (`postgres` or `cockroachdb`), `database`; optionally `extensions`, `connection_limit`,
/// `sslmode` (`disable`) and `sslrootcert` (path of a PEM file).
#[derive(Debug, Clone, Copy, Default)]
pub struct Sql;

#[async_trait]
impl CredentialMechanism for Sql {
    fn name(&self) -> &'static str {
        "sql"
    }

    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String> {
        Settings::parse(settings).err().unwrap_or_default()
    }

    fn generate_admin(&self, _settings: &Map<String, Value>) -> PortResult<Secret> {
        administrator()
    }

    fn generate_user(&self, target: &Target, grant: &Grant, _now: Millis) -> PortResult<NewUser> {
        if !names::is_name(&grant.bid) {
            return Err(PortError::invalid(format!(
                "{:?} is not the name of a binding.",
                grant.bid
            )));
        }
        Settings::of(target)?.names.group(&grant.role)?;
        let handle = grant.user();
        let secret = Secret::from_pairs([("username", handle.clone()), ("password", password::generate()?)]);
        Ok(NewUser { handle, secret })
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        within(PREPARE_TIME, async {
            let database = Settings::of(target)?.names.database;
            let mut admin = Admin::open(target, &format!("prepare {}", database.name())).await?;
            admin.prepare().await?;
            admin.server.close().await;
            Ok(())
        })
        .await
    }

    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(ISSUE_TIME, async {
            let name = own_user(grant, user)?;
            let verifier = Verifier::new(user.secret.text("password"))?;
            let mut admin = Admin::open(target, name.name()).await?;
            admin.issue(grant, &name, &verifier).await?;
            admin.server.close().await;
            Ok(())
        })
        .await
    }

    async fn verify(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(VERIFY_TIME, async {
            let name = own_user(grant, user)?;
            let settings = Settings::of(target)?;
            let group = settings.names.group(&grant.role)?;
            let options = settings
                .connect_options(target, &user.secret, settings.names.database.name())
                .options([("search_path", "pg_catalog"), ("statement_timeout", "5000")]);
            let mut session = Session::open(&options, settings.dialect.atomic()).await?;
            let query = format!(
                "SELECT count(*) FROM pg_roles WHERE session_user = {} AND current_user = {} AND rolname = {} \
                 AND pg_has_role(session_user, oid, 'MEMBER')",
                name.literal(),
                settings.dialect.acts_as(&settings.names, &name, group).literal(),
                group.literal()
            );
            let member = session.count(&query).await?;
            session.close().await;
            if member == 1 {
                Ok(())
            } else {
                Err(PortError::new(
                    PortErrorKind::Conflict,
                    "The new user can log in but does not have its role yet.",
                ))
            }
        })
        .await
    }

    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()> {
        within(REVOKE_TIME, async {
            let user = Ident::user(handle)?;
            let mut admin = Admin::open(target, user.name()).await?;
            admin.revoke(&user).await?;
            admin.server.close().await;
            Ok(())
        })
        .await
    }

    fn rotates_admin(&self, settings: &Map<String, Value>) -> bool {
        Settings::parse(settings).is_ok_and(|settings| settings.dialect.cut_own().is_some())
    }

    async fn rotate_admin(&self, target: &Target, next: &Secret) -> PortResult<()> {
        within(ISSUE_TIME, async {
            let name = Ident::parse(own_name(target, next)?)?;
            let Some(cut) = Settings::of(target)?.dialect.cut_own() else {
                return Err(PortError::invalid(
                    "The broker cannot exchange the administrator's credentials of this database server.",
                ));
            };
            let after = target.with_admin(next);
            match Admin::open(target, name.name()).await {
                Ok(mut admin) => {
                    // Nothing but the verifier crosses the network and can reach the server's log.
                    let verifier = Verifier::new(next.text("password"))?;
                    let change = format!("ALTER ROLE {name} PASSWORD {verifier}");
                    admin.server.run_alone(&change).await?;
                    admin.server.close().await;
                }
                // An earlier try got so far: then the next ones let in.
                Err(error) if error.kind == PortErrorKind::Denied => {}
                Err(error) => return Err(error),
            }
            let mut admin = Admin::open(&after, name.name()).await?;
            // Whoever logged in with the former ones would stay.
            admin.server.run_alone(cut).await?;
            admin.server.close().await;
            Ok(())
        })
        .await
    }

    async fn list(&self, target: &Target) -> PortResult<Vec<String>> {
        within(VERIFY_TIME, async {
            let mut admin = Admin::open(target, "list").await?;
            let rows: Vec<(String,)> = admin.server.rows("SELECT rolname::text FROM pg_roles").await?;
            admin.server.close().await;
            Ok(rows
                .into_iter()
                .map(|row| row.0)
                .filter(|role| is_user(role))
                .collect())
        })
        .await
    }
}

/// The user's name, provided it is the one this binding must have.
fn own_user(grant: &Grant, user: &NewUser) -> PortResult<Ident> {
    let name = Ident::user(&user.handle)?;
    if user.handle == grant.user() && user.secret.text("username") == user.handle {
        Ok(name)
    } else {
        Err(not_this_bindings())
    }
}

/// The number of the lock by which workers that act on the same thing take turns.
pub(super) fn lock_key(thing: &str) -> i64 {
    let hash = Sha256::digest(format!("chandler {thing}"));
    hash.iter()
        .take(8)
        .fold(0, |key, byte| (key << 8) | i64::from(*byte))
}

fn may_pass(error: &PortError) -> bool {
    matches!(error.kind, PortErrorKind::Transient | PortErrorKind::Conflict)
}

/// Gives up when the server stops talking in the middle.
async fn within<T>(limit: Duration, work: impl Future<Output = PortResult<T>> + Send) -> PortResult<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(PortError::transient(
            "The database server took too long to answer.",
        ))
    })
}

/// Sorts a failure by SQLSTATE. The server's text goes to the log only, and not where it would quote our statement.
pub(super) fn explain(error: sqlx::Error) -> PortError {
    use PortErrorKind::{Conflict, Denied, Gone, Invalid, Transient};
    let sqlx::Error::Database(error) = error else {
        let message = match &error {
            sqlx::Error::Tls(_) => "No secure connection to the database server comes about.",
            sqlx::Error::Configuration(_) => {
                return PortError::invalid(
                    "The connection settings of this service are wrong; tell its operator.",
                )
                .with_detail(error);
            }
            _ => "The database server does not answer.",
        };
        return PortError::transient(message).with_detail(error);
    };
    let code = error.code().unwrap_or_default().into_owned();
    let (kind, message) = match code.as_str() {
        "57P03" => (Transient, "The database server is still starting."),
        "53300" => (Transient, "The database has too many connections; close some."),
        "55P03" | "40P01" | "55006" => (
            Transient,
            "Another session holds what must change; it is tried again.",
        ),
        "57014" => (Transient, "The database server took too long to answer."),
        "40001" | "42710" | "42P04" | "23505" | "2BP01" => {
            (Conflict, "Somebody else changed the same thing.")
        }
        "XX000" if error.message().contains("concurrently") => {
            (Conflict, "Somebody else changed the same thing.")
        }
        "3D000" => (Gone, "The database of this instance is not there."),
        "42704" => (
            Gone,
            "A role of this instance is missing; it must be prepared again.",
        ),
        "58P01" => (
            Invalid,
            "The database server lacks an extension this plan asks for.",
        ),
        "42501" => (
            Denied,
            "The database server does not allow the broker to do this.",
        ),
        code if code.starts_with("28") => (Denied, "The database server refuses the login."),
        code if ["08", "53", "55", "57", "58", "XX"]
            .iter()
            .any(|class| code.starts_with(class)) =>
        {
            (Transient, "The database server cannot do this at the moment.")
        }
        _ => (
            Invalid,
            "The database server does not understand what it was asked; tell its operator.",
        ),
    };
    let text = if code == "42601" { "" } else { error.message() };
    PortError::new(kind, message).with_detail(format!("SQLSTATE {code} {text}"))
}
