//! `sql` on PostgreSQL: the contract, and tenants who do not want to leave.

use crate::contract::{self, Bound, Kit, Server, Session, dies, grant, now, settle};
use crate::support::{Postgres, endpoint};
use async_trait::async_trait;
use chandler::adapters::credentials::sql::Sql;
use chandler::domain::secret::Secret;
use chandler::ports::{CredentialMechanism, NewUser, PortErrorKind, Target};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const DATABASE: &str = "app";

struct Pg {
    running: Postgres,
    admin: Secret,
    settings: Value,
}

impl Pg {
    fn start() -> Self {
        let settings =
            json!({"dialect": "postgres", "database": DATABASE, "extensions": ["pgcrypto", "uuid-ossp"]});
        let admin = Sql.generate_admin(settings.as_object().unwrap()).unwrap();
        assert_eq!(admin.text("username"), "chandler");
        let running = Postgres::start(admin.text("password"));
        Self {
            running,
            admin,
            settings,
        }
    }

    async fn connect(&self, user: &str, password: &str, database: &str) -> Result<PgConnection, String> {
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.running.port)
            .username(user)
            .password(password)
            .database(database)
            .disable_statement_logging();
        let connecting = tokio::time::timeout(Duration::from_secs(10), PgConnection::connect_with(&options));
        connecting
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|e| e.to_string())
    }

    async fn superuser(&self, database: &str) -> PgConnection {
        self.connect("chandler", &self.running.password, database)
            .await
            .unwrap()
    }

    /// As the binding, in the tenant's database.
    async fn tenant(&self, bound: &Bound) -> PgConnection {
        let user = &bound.user;
        self.connect(&user.handle, user.secret.text("password"), DATABASE)
            .await
            .unwrap()
    }
}

/// Runs statements.
pub async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await;
    done.map(drop).map_err(|e| e.to_string())
}

async fn ok(connection: &mut PgConnection, sql: &str) {
    run(connection, sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    let row: (i64,) = sqlx::query_as(AssertSqlSafe(sql.to_owned()))
        .fetch_one(connection)
        .await
        .unwrap();
    row.0
}

/// An application that keeps its things in the table `kit`.
pub struct PgSession(pub PgConnection);

#[async_trait]
impl Session for PgSession {
    async fn write(&mut self, key: &str, value: &str) -> Result<(), String> {
        let upsert = format!(
            "INSERT INTO kit (k, v) VALUES ('{key}', '{value}') ON CONFLICT (k) DO UPDATE SET v = excluded.v"
        );
        match run(&mut self.0, &upsert).await {
            Err(e) if e.contains("does not exist") => {
                run(
                    &mut self.0,
                    "CREATE TABLE kit (k text PRIMARY KEY, v text, n serial)",
                )
                .await?;
                run(&mut self.0, &upsert).await
            }
            result => result,
        }
    }

    async fn read(&mut self, key: &str) -> Result<Option<String>, String> {
        let query = format!("SELECT v FROM kit WHERE k = '{key}'");
        let row = sqlx::query_as(AssertSqlSafe(query))
            .fetch_optional(&mut self.0)
            .await;
        row.map(|row: Option<(String,)>| row.map(|row| row.0))
            .map_err(|e| e.to_string())
    }

    async fn alive(&mut self) -> bool {
        run(&mut self.0, "SELECT 1").await.is_ok()
    }
}

#[async_trait]
impl Server for Pg {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &Sql
    }

    fn target(&self) -> Target {
        let endpoint = endpoint("client", self.running.port);
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: self.settings.as_object().unwrap().clone(),
            admin: self.admin.clone(),
            revoked: Vec::new(),
        }
    }

    async fn login(&self, user: &NewUser) -> Result<Box<dyn Session>, String> {
        let password = user.secret.text("password");
        let connection = self
            .connect(user.secret.text("username"), password, DATABASE)
            .await?;
        Ok(Box::new(PgSession(connection)))
    }
}

async fn prepared(server: &Pg) -> Kit<'_> {
    let kit = Kit::new(server);
    let target = kit.target();
    settle("prepare", || Sql.prepare(&target)).await;
    kit
}

/// The broker's own log-in gets another password: the former one is refused, no tenant notices, a repeat is success.
#[tokio::test]
async fn the_administrator_gets_new_credentials() {
    let server = Pg::start();
    contract::administrator_rotates(&server, true).await;
    // Nobody but the server's operator knows it now, and the log tells nothing of it.
    let former = server.admin.text("password");
    assert!(server.connect("chandler", former, "postgres").await.is_err());
    assert!(!server.running.log().contains(former));
    let cockroach = json!({"dialect": "cockroachdb", "database": DATABASE});
    assert!(
        !Sql.rotates_admin(cockroach.as_object().unwrap()),
        "not tried there"
    );
}

/// A server whose administrator is no superuser.
async fn limited() -> Pg {
    let mut server = Pg::start();
    let mut superuser = server.superuser("postgres").await;
    ok(
        &mut superuser,
        "CREATE ROLE limited LOGIN CREATEROLE CREATEDB PASSWORD 'limited'",
    )
    .await;
    server.admin = Secret::from_pairs([("username", "limited"), ("password", "limited")]);
    server
}

#[tokio::test]
async fn an_administrator_who_is_no_superuser_rotates_itself() {
    let server = limited().await;
    let target = server.target();
    let next = Secret::from_pairs([("username", "limited"), ("password", "Other1")]);
    settle("rotate", || Sql.rotate_admin(&target, &next)).await;
    assert!(server.connect("limited", "limited", "postgres").await.is_err());
    let somebody = Secret::from_pairs([("username", "chandler"), ("password", "Other1")]);
    let refused = Sql.rotate_admin(&target, &somebody).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Invalid, "nobody else's is changed");
}

#[tokio::test]
async fn postgres_keeps_the_contract() {
    let server = Pg::start();
    contract::whole_life(&server).await;

    // Passwords reach the server as verifiers only, and nothing of ours is left.
    let kit = Kit::new(&server);
    let bound = kit.bind(grant("logged", "owner")).await;
    let password = bound.user.secret.text("password");
    assert!(
        !server.running.log().contains(password),
        "the password is in the log"
    );
    assert!(server.running.log().contains("SCRAM-SHA-256$4096:"));
    let mut superuser = server.superuser("postgres").await;
    let hashed =
        "SELECT count(*) FROM pg_authid WHERE rolcanlogin AND rolpassword LIKE 'SCRAM-SHA-256$4096:%'";
    assert_eq!(number(&mut superuser, hashed).await, 2);
}

#[tokio::test]
async fn an_administrator_who_is_no_superuser_suffices() {
    let server = limited().await;
    contract::whole_life(&server).await;

    // A tenant's own things move without superuser rights too.
    let mut kit = Kit::new(&server);
    let bound = kit.bind(grant("own things", "owner")).await;
    let mut tenant = server.tenant(&bound).await;
    ok(
        &mut tenant,
        "SET ROLE NONE; CREATE SCHEMA mine; CREATE TABLE mine.t (n serial); INSERT INTO mine.t DEFAULT VALUES; \
         CREATE FUNCTION mine.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE TYPE mine.e AS ENUM ('a'); \
         SELECT lo_create(4711); ALTER DATABASE app CONNECTION LIMIT 0; \
         REVOKE ALL ON DATABASE app FROM app_owner",
    )
    .await;
    kit.revoke(&bound).await;
    let next = kit.bind(grant("next", "readwrite")).await;
    let mut tenant = server.tenant(&next).await;
    ok(&mut tenant, "INSERT INTO mine.t DEFAULT VALUES; SELECT mine.f()").await;
    kit.revoke(&next).await;
    kit.exist(&[]).await;
}

#[tokio::test]
async fn roles_allow_what_they_say_and_no_more() {
    let server = Pg::start();
    let mut kit = prepared(&server).await;
    let owner = kit.bind(grant("owner", "owner")).await;
    let writer = kit.bind(grant("writer", "readwrite")).await;
    let reader = kit.bind(grant("reader", "readonly")).await;

    let mut connection = server.tenant(&owner).await;
    ok(
        &mut connection,
        "CREATE SCHEMA s; CREATE TABLE s.t (n serial, v text); CREATE VIEW s.w AS SELECT v FROM s.t; \
         CREATE SEQUENCE s.q; INSERT INTO s.t (v) VALUES ('x'); SELECT gen_random_uuid(), uuid_generate_v4()",
    )
    .await;
    let mut connection = server.tenant(&writer).await;
    ok(
        &mut connection,
        "INSERT INTO s.t (v) VALUES ('y'); UPDATE s.t SET v = 'z'; DELETE FROM s.t WHERE v = 'q'; \
         SELECT nextval('s.q'); SELECT * FROM s.w",
    )
    .await;
    for refused in [
        "CREATE TABLE t (n int)",
        "DROP TABLE s.t",
        "ALTER TABLE s.t ADD x int",
        "CREATE SCHEMA x",
    ] {
        assert!(
            run(&mut connection, refused).await.is_err(),
            "readwrite may {refused}"
        );
    }
    let mut connection = server.tenant(&reader).await;
    ok(
        &mut connection,
        "SELECT * FROM s.t; SELECT * FROM s.w; SELECT last_value FROM s.q",
    )
    .await;
    for refused in [
        "INSERT INTO s.t (v) VALUES ('a')",
        "UPDATE s.t SET v = 'a'",
        "DELETE FROM s.t",
        "TRUNCATE s.t",
        "SELECT nextval('s.q')",
        "CREATE TABLE t (n int)",
        "CREATE TEMP TABLE t (n int)",
    ] {
        assert!(
            run(&mut connection, refused).await.is_err(),
            "readonly may {refused}"
        );
    }

    for bound in [&owner, &writer, &reader] {
        let mut connection = server.tenant(bound).await;
        for refused in [
            "CREATE ROLE evil SUPERUSER",
            "CREATE DATABASE evil",
            "ALTER ROLE CURRENT_USER VALID UNTIL 'infinity'",
            "ALTER ROLE app_owner LOGIN",
            "SET ROLE chandler",
            "SELECT rolpassword FROM pg_authid",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('/etc/passwd')",
            "ALTER SYSTEM SET fsync = off",
            "CREATE EXTENSION plpython3u",
            "CREATE EXTENSION dblink",
        ] {
            assert!(
                run(&mut connection, refused).await.is_err(),
                "{} may {refused}",
                bound.grant.role
            );
        }
        for elsewhere in ["postgres", "template1"] {
            let user = &bound.user;
            let login = server
                .connect(&user.handle, user.secret.text("password"), elsewhere)
                .await;
            assert!(login.is_err(), "{} gets into {elsewhere}", bound.grant.role);
        }
    }

    // Issued again with another role, the old one is gone, for open sessions too, and so is what it owned.
    let mut session = PgSession(server.tenant(&owner).await);
    ok(&mut session.0, "SET ROLE NONE; CREATE TABLE own (n int)").await;
    let lesser = Bound {
        grant: grant("owner", "readonly"),
        user: owner.user.clone(),
    };
    kit.issue(&lesser).await;
    dies(&mut session).await;
    let mut connection = server.tenant(&lesser).await;
    ok(&mut connection, "SELECT * FROM s.t; SELECT * FROM own").await;
    for refused in [
        "SET ROLE app_owner",
        "INSERT INTO own VALUES (1)",
        "DROP TABLE own",
        "CREATE TABLE t (n int)",
    ] {
        assert!(
            run(&mut connection, refused).await.is_err(),
            "the old role still may {refused}"
        );
    }
    kit.revoke(&lesser).await;

    // The server itself refuses an expired login.
    let mut expired = grant("expired", "owner");
    expired.expires_at = Some(now() - 1000);
    let expired = kit.generate(expired);
    let target = kit.target();
    settle("issue", || Sql.issue(&target, &expired.grant, &expired.user)).await;
    kit.refused(&expired).await;
    let mut lasting = expired.grant.clone();
    lasting.expires_at = Some(now() + 60_000);
    let user = expired.user.clone();
    kit.issue(&Bound { grant: lasting, user }).await;
}

/// Connects again and again, each time doing what hinders a revocation most, until told to stop.
async fn come_back(server: &Pg, bound: &Bound, stop: &AtomicBool, entered: &AtomicUsize) {
    let user = &bound.user;
    let mut held = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut connection) = server
            .connect(&user.handle, user.secret.text("password"), DATABASE)
            .await
        {
            let nth = entered.fetch_add(1, Ordering::Relaxed);
            let hinder = format!(
                "SET ROLE NONE; CREATE TABLE late_{nth} (n int); BEGIN; ALTER ROLE CURRENT_USER PASSWORD 'mine'"
            );
            // It fails as soon as it is cut, and one waits for the other.
            let _ = run(&mut connection, &hinder).await;
            held.push(connection);
        }
    }
}

#[tokio::test]
async fn a_hostile_owner_neither_blocks_nor_survives_its_revocation() {
    let server = Pg::start();
    let mut kit = prepared(&server).await;
    let evil = kit.bind(grant("evil", "owner")).await;
    let peer = kit.bind(grant("peer", "readonly")).await;

    // Things of its own instead of the owner's, and traps for whoever comes to tidy up.
    let mut things = server.tenant(&evil).await;
    ok(
        &mut things,
        "SET ROLE NONE; CREATE SCHEMA mine; CREATE TABLE mine.t (n serial PRIMARY KEY, \"odd \"\"name\" text); \
         CREATE TABLE \"odd '; DROP ROLE chandler; --\" (n int); CREATE SEQUENCE mine.q; \
         INSERT INTO mine.t (\"odd \"\"name\") VALUES ('kept'); CREATE MATERIALIZED VIEW mine.m AS SELECT 1 AS one; \
         CREATE TYPE mine.e AS ENUM ('a'); CREATE DOMAIN mine.d AS int; CREATE TYPE mine.c AS (a int); \
         CREATE FUNCTION mine.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 7'; \
         CREATE AGGREGATE mine.agg(int) (sfunc = int4pl, stype = int); \
         CREATE TABLE part (n int) PARTITION BY RANGE (n); \
         CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (9); \
         CREATE PUBLICATION pub FOR TABLE mine.t; \
         CREATE OPERATOR mine.@@@ (function = int4pl, leftarg = int, rightarg = int); \
         CREATE TEXT SEARCH CONFIGURATION mine.ts (copy = pg_catalog.simple); \
         CREATE COLLATION mine.co FROM \"C\"; CREATE STATISTICS mine.st ON n, \"odd \"\"name\" FROM mine.t; \
         SELECT lo_from_bytea(4711, 'blob'); \
         ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC; \
         ALTER DEFAULT PRIVILEGES IN SCHEMA mine GRANT ALL ON FUNCTIONS TO app_readonly; \
         CREATE POLICY p ON mine.t TO CURRENT_USER USING (true); ALTER TABLE mine.t ENABLE ROW LEVEL SECURITY",
    )
    .await;
    ok(
        &mut things,
        &format!(
            "RESET ROLE; CREATE TABLE theirs (n int); GRANT ALL ON theirs TO {user} WITH GRANT OPTION; \
             GRANT ALL ON DATABASE app TO {user}; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {user}; \
             ALTER DATABASE app SET role = 'app_readonly'; \
             ALTER DATABASE app SET local_preload_libraries = 'nowhere'; ALTER DATABASE app SET exit_on_error = on; \
             ALTER DATABASE app SET default_transaction_read_only = on; ALTER DATABASE app SET search_path = mine; \
             ALTER DATABASE app SET statement_timeout = 1; ALTER DATABASE app SET idle_session_timeout = 1; \
             SET ROLE NONE; ALTER ROLE {user} SET role = 'none'",
            user = evil.user.handle
        ),
    )
    .await;
    // Undo what would keep this very test's tenant connections out.
    let reset = "ALTER DATABASE app RESET local_preload_libraries; \
                 ALTER DATABASE app RESET idle_session_timeout; ALTER DATABASE app RESET statement_timeout";

    // Sessions that hold what the revocation needs.
    let target = kit.target();
    let mut held = vec![things];
    let mut superuser = server.superuser("postgres").await;
    ok(&mut superuser, reset).await;
    for hold in [
        "BEGIN; SET LOCAL ROLE NONE; LOCK TABLE mine.t IN ACCESS EXCLUSIVE MODE",
        "BEGIN; SET LOCAL ROLE NONE; CREATE TABLE pending (n int)",
        "LISTEN news",
        "SELECT pg_advisory_lock(1)",
        "CREATE TEMP TABLE scratch (n int)",
    ] {
        let mut session = server.tenant(&evil).await;
        let read_write =
            "SET default_transaction_read_only = off; SET search_path = public; SET exit_on_error = off";
        ok(&mut session, read_write).await;
        ok(&mut session, hold).await;
        held.push(session);
    }
    // Transactions without a session, two of them under the owner's name.
    for transaction in [
        "LOCK TABLE public.part1; PREPARE TRANSACTION 'one'",
        "CREATE TABLE public.ghost (n int); SET LOCAL ROLE app_owner; PREPARE TRANSACTION 'two''; --\\'",
        "ALTER ROLE CURRENT_USER PASSWORD 'mine'; SET LOCAL ROLE app_owner; PREPARE TRANSACTION 'three'",
    ] {
        let mut session = server.tenant(&evil).await;
        ok(
            &mut session,
            "SET ROLE NONE; SET default_transaction_read_only = off",
        )
        .await;
        ok(&mut session, &format!("BEGIN; {transaction}")).await;
    }
    assert_eq!(
        number(&mut superuser, "SELECT count(*) FROM pg_prepared_xacts").await,
        3
    );
    ok(
        &mut superuser,
        "ALTER DATABASE app SET local_preload_libraries = 'nowhere'; \
         ALTER DATABASE app SET idle_session_timeout = 1; ALTER DATABASE app SET statement_timeout = 1",
    )
    .await;
    // The last thing an owner can do to keep others out.
    ok(
        held.last_mut().unwrap(),
        "ALTER DATABASE app CONNECTION LIMIT 0; REVOKE ALL ON DATABASE app FROM app_owner, app_readwrite, app_readonly",
    )
    .await;

    let began = Instant::now();
    kit.revoke(&evil).await;
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "revoking took {:?}",
        began.elapsed()
    );
    for session in held {
        dies(&mut PgSession(session)).await;
    }
    kit.exist(&[&peer]).await;
    assert_eq!(
        number(&mut superuser, "SELECT count(*) FROM pg_prepared_xacts").await,
        0
    );

    // Its things survive, the owner's now, and the next binding may do with them what it likes.
    ok(&mut superuser, "ALTER DATABASE app RESET ALL").await;
    kit.refused(&evil).await;
    let next = kit.bind(grant("next", "owner")).await;
    let mut session = server.tenant(&next).await;
    assert_eq!(number(&mut session, "SELECT count(*) FROM mine.t").await, 1);
    ok(
        &mut session,
        "ALTER TABLE mine.t ADD extra int; SELECT nextval('mine.q'); REFRESH MATERIALIZED VIEW mine.m; \
         SELECT mine.f(), mine.agg(1); DROP FUNCTION mine.f(); DROP TYPE mine.e; SELECT lo_get(4711); \
         SELECT lo_unlink(4711); INSERT INTO part VALUES (1); DROP TABLE part; DROP PUBLICATION pub; \
         DROP TABLE \"odd '; DROP ROLE chandler; --\"; INSERT INTO theirs VALUES (1); \
         DROP SCHEMA mine CASCADE; CREATE TABLE after (n int)",
    )
    .await;
    let left = "SELECT count(*) FROM pg_shdepend s WHERE s.refclassid = 'pg_authid'::regclass \
                AND NOT EXISTS (SELECT FROM pg_authid a WHERE a.oid = s.refobjid)";
    assert_eq!(number(&mut superuser, left).await, 0, "dependencies on nobody");
    kit.revoke(&next).await;
    kit.revoke(&peer).await;
    kit.exist(&[]).await;
    let error = Sql.verify(&target, &evil.grant, &evil.user).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Denied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coming_back_in_a_loop_does_not_help() {
    let server = Arc::new(Pg::start());
    let mut kit = prepared(&server).await;
    let evil = Arc::new(kit.bind(grant("evil", "owner")).await);
    let stop = Arc::new(AtomicBool::new(false));
    let entered = Arc::new(AtomicUsize::new(0));
    let loops: Vec<_> = (0..4)
        .map(|_| {
            let (server, evil) = (server.clone(), evil.clone());
            let (stop, entered) = (stop.clone(), entered.clone());
            tokio::spawn(async move { come_back(&server, &evil, &stop, &entered).await })
        })
        .collect();
    while entered.load(Ordering::Relaxed) < 4 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    kit.revoke(&evil).await;
    let then = entered.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let inside = entered.load(Ordering::Relaxed) - then;
    stop.store(true, Ordering::Relaxed);
    for task in loops {
        task.await.unwrap();
    }
    assert_eq!(inside, 0, "it got in after its revocation");
    let mut superuser = server.superuser("postgres").await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'";
    assert_eq!(number(&mut superuser, sessions).await, 0);
    kit.exist(&[]).await;
}

#[tokio::test]
async fn a_tenant_with_more_tables_than_the_server_has_locks_is_revoked() {
    let server = Pg::start();
    let mut kit = prepared(&server).await;
    let evil = kit.bind(grant("evil", "owner")).await;
    let mut session = server.tenant(&evil).await;
    for batch in 0..30 {
        ok(
            &mut session,
            &format!(
                "SET ROLE NONE; DO $$ BEGIN FOR i IN 1..100 LOOP \
                 EXECUTE format('CREATE TABLE t_%s_%s (n int)', {batch}, i); END LOOP; END $$"
            ),
        )
        .await;
    }
    ok(&mut session, "SELECT lo_create(0) FROM generate_series(1, 2000)").await;
    // In one transaction it would not go.
    let mut superuser = server.superuser(DATABASE).await;
    let at_once = format!("REASSIGN OWNED BY {} TO app_owner", evil.user.handle);
    let refused = run(&mut superuser, &at_once).await.unwrap_err();
    assert!(refused.contains("out of shared memory"), "{refused}");
    kit.revoke(&evil).await;
    kit.exist(&[]).await;
    let owned = "SELECT count(*) FROM pg_class WHERE relowner = 'app_owner'::regrole AND relkind = 'r'";
    assert_eq!(number(&mut superuser, owned).await, 3000);
}

#[tokio::test]
async fn names_and_settings_cannot_inject() {
    let server = Pg::start();
    let kit = prepared(&server).await;
    let bound = kit.bind(grant("good", "owner")).await;
    let target = kit.target();
    let kind = |result: Result<(), chandler::ports::PortError>| result.unwrap_err().kind;

    for handle in [
        "chandler",
        "app_owner",
        "b_",
        "b_x\"; DROP ROLE chandler; --",
        "b_'||'",
        "pg_monitor",
        "",
    ] {
        assert_eq!(
            kind(Sql.revoke(&target, handle).await),
            PortErrorKind::Invalid,
            "{handle}"
        );
        let user = NewUser {
            handle: handle.to_owned(),
            secret: bound.user.secret.clone(),
        };
        assert_eq!(
            kind(Sql.issue(&target, &bound.grant, &user).await),
            PortErrorKind::Invalid
        );
        assert_eq!(
            kind(Sql.verify(&target, &bound.grant, &user).await),
            PortErrorKind::Invalid
        );
    }
    for (bid, role) in [
        ("x'; --", "owner"),
        (&bound.grant.bid[..], "superuser"),
        (&bound.grant.bid[..], "chandler"),
    ] {
        let mut grant = bound.grant.clone();
        (grant.bid, grant.role) = (bid.to_owned(), role.to_owned());
        assert_eq!(
            kind(Sql.generate_user(&target, &grant, 0).map(drop)),
            PortErrorKind::Invalid
        );
        assert_eq!(
            kind(Sql.issue(&target, &grant, &bound.user).await),
            PortErrorKind::Invalid
        );
    }
    for database in ["app\"; --", "postgres", "app_owner'", "a b", ""] {
        let mut target = kit.target();
        target.settings.insert("database".to_owned(), json!(database));
        assert_eq!(
            kind(Sql.prepare(&target).await),
            PortErrorKind::Invalid,
            "{database}"
        );
        assert_eq!(
            kind(Sql.revoke(&target, &bound.user.handle).await),
            PortErrorKind::Invalid
        );
    }
    let mut damaged = bound.user.clone();
    damaged.secret.insert("password", json!("x' SUPERUSER --"));
    assert_eq!(
        kind(Sql.issue(&target, &bound.grant, &damaged).await),
        PortErrorKind::Invalid
    );
    kit.exist(&[&bound]).await;
}

#[tokio::test]
async fn failures_are_sorted_and_bounded() {
    let server = Pg::start();
    let kit = prepared(&server).await;
    let bound = kit.bind(grant("one", "owner")).await;
    let target = kit.target();

    let mut stranger = kit.target();
    stranger.admin.insert("password", json!("wrong"));
    let denied = Sql.prepare(&stranger).await.unwrap_err();
    assert_eq!(denied.kind, PortErrorKind::Denied);
    assert!(!denied.detail.contains("wrong"), "{}", denied.detail);

    let mut nowhere = kit.target();
    nowhere.endpoint.port = crate::support::free_port();
    let refused = Sql.revoke(&nowhere, &bound.user.handle).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Transient);

    let mut elsewhere = kit.target();
    elsewhere.settings.insert("database".to_owned(), json!("other"));
    let gone = Sql
        .verify(&elsewhere, &bound.grant, &bound.user)
        .await
        .unwrap_err();
    assert_eq!(gone.kind, PortErrorKind::Gone);
    let stray = kit.generate(grant("stray", "owner"));
    let gone = Sql
        .issue(&elsewhere, &stray.grant, &stray.user)
        .await
        .unwrap_err();
    assert_eq!(gone.kind, PortErrorKind::Gone);

    // A peer's lock holds up the tidying, never the shutting out.
    let evil = kit.bind(grant("evil", "owner")).await;
    let mut session = server.tenant(&evil).await;
    ok(
        &mut session,
        "SET ROLE NONE; CREATE TABLE own (n int); GRANT ALL ON own TO app_owner",
    )
    .await;
    let mut peer = server.tenant(&bound).await;
    ok(&mut peer, "BEGIN; SELECT * FROM own").await;
    let held = Sql.revoke(&target, &evil.user.handle).await.unwrap_err();
    assert_eq!(held.kind, PortErrorKind::Transient, "{}", held.detail);
    kit.refused(&evil).await;
    ok(&mut peer, "COMMIT").await;
    settle("revoke", || Sql.revoke(&target, &evil.user.handle)).await;
    kit.exist(&[&bound]).await;

    server.running.process.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let silent = Sql.verify(&target, &bound.grant, &bound.user).await.unwrap_err();
    server.running.process.signal(Signal::SIGCONT);
    assert_eq!(silent.kind, PortErrorKind::Transient);
    assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());
}
