//! `statements` on PostgreSQL, with a service that only this test has.

mod mariadb;

use crate::contract::{self, Bound, Kit, Server, Session, grant, settle};
use crate::postgres::{PgSession, run};
use crate::services::Service;
use crate::support::Postgres;
use async_trait::async_trait;
use chandler::domain::catalog::Sources;
use chandler::ports::{CredentialMechanism, NewUser, PortErrorKind, Target};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

const OFFERING: &str = "\
id: 0d6c2b0e-2f0e-4e57-8c5f-6f0a3b0c1d01
name: ledger
description: PostgreSQL by statements
runs_on: [kubernetes]
";
const PLAN: &str = "\
id: 0d6c2b0e-2f0e-4e57-8c5f-6f0a3b0c1d02
name: only
description: One server
";
const CREATE: &str = r#"{"$schema": "http://json-schema.org/draft-04/schema#", "type": "object",
 "additionalProperties": false, "properties": {"database": {"type": "string", "default": "app",
 "minLength": 1, "maxLength": 50}}}"#;
const BIND: &str = r#"{"$schema": "http://json-schema.org/draft-04/schema#", "type": "object",
 "additionalProperties": false, "properties": {"label": {"type": "string", "default": "none"},
 "connections": {"type": "integer", "default": 10}}}"#;
const BINDING: &str = include_str!("ledger.yaml");

fn sources(binding: &str) -> Sources {
    [
        ("catalog/ledger/offering.yaml", OFFERING),
        ("catalog/ledger/create.schema.json", CREATE),
        ("catalog/ledger/bind.schema.json", BIND),
        ("catalog/ledger/binding.yaml", binding),
        ("plans/ledger/only.yaml", PLAN),
    ]
    .into_iter()
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .collect()
}

struct Ledger {
    running: Postgres,
    service: Service,
    database: String,
}

impl Ledger {
    fn start(database: &str) -> Self {
        Self::with(BINDING, database)
    }

    fn with(binding: &str, database: &str) -> Self {
        let service = Service::load(&sources(binding), "ledger", &json!({"database": database}));
        Self {
            running: Postgres::start(service.admin.text("password")),
            service,
            database: database.to_owned(),
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
        PgConnection::connect_with(&options)
            .await
            .map_err(|e| e.to_string())
    }

    async fn superuser(&self) -> PgConnection {
        self.connect("chandler", &self.running.password, "postgres")
            .await
            .unwrap()
    }

    async fn tenant(&self, bound: &Bound) -> PgConnection {
        let password = bound.user.secret.text("password");
        self.connect(&bound.user.handle, password, &self.database)
            .await
            .unwrap()
    }
}

#[async_trait]
impl Server for Ledger {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &self.service.mechanism
    }

    fn target(&self) -> Target {
        self.service.target(self.running.port)
    }

    async fn login(&self, user: &NewUser) -> Result<Box<dyn Session>, String> {
        // With nothing but what the binding hands out.
        let credentials = self.service.credentials(&self.target(), user);
        let text = |name: &str| credentials[name].as_str().unwrap().to_owned();
        let connection = self
            .connect(&text("username"), &text("password"), &text("database"))
            .await?;
        Ok(Box::new(PgSession(connection)))
    }
}

async fn text(connection: &mut PgConnection, query: &str) -> String {
    let row: (String,) = sqlx::query_as(AssertSqlSafe(query.to_owned()))
        .fetch_one(connection)
        .await
        .unwrap();
    row.0
}

async fn prepared(server: &Ledger) -> Kit<'_> {
    let kit = Kit::new(server);
    let target = kit.target();
    settle("prepare", || server.mechanism().prepare(&target)).await;
    kit
}

#[tokio::test]
async fn statements_on_postgres_keep_the_contract() {
    let server = Ledger::start("app");
    contract::whole_life(&server).await;
    let kit = Kit::new(&server);
    let bound = kit.bind(grant("logged", "owner")).await;
    let log = server.running.log();
    assert!(
        !log.contains(bound.user.secret.text("password")),
        "the password is in the log"
    );
    assert!(log.contains("SCRAM-SHA-256$4096:"));
}

/// A name that would end every kind of quote there is does nothing but name things.
#[tokio::test]
async fn the_administrator_gets_new_credentials() {
    let server = Ledger::start("app");
    contract::administrator_rotates(&server, true).await;
    let former = server.service.admin.text("password");
    assert!(!server.running.log().contains(former));
}

#[tokio::test]
async fn statements_that_do_not_exchange_the_password_are_told() {
    let change = "ALTER ROLE {user:identifier} PASSWORD {verifier:literal}";
    for (other, said) in [
        (
            "SELECT {verifier:literal} WHERE {user:literal} = ''",
            PortErrorKind::Denied,
        ),
        ("CREATE ROLE {password:identifier}", PortErrorKind::Denied),
    ] {
        assert!(BINDING.contains(change));
        let server = Ledger::with(&BINDING.replace(change, other), "app");
        let target = server.target();
        let next = server.mechanism().generate_admin(&target.settings).unwrap();
        let error = server.mechanism().rotate_admin(&target, &next).await.unwrap_err();
        assert_eq!(error.kind, said, "{error} ({})", error.detail);
        assert!(!error.detail.contains(next.text("password")), "{}", error.detail);
        settle("list", || server.mechanism().list(&target)).await;
    }
    // And where nothing says how, nothing is changed.
    let at = BINDING.find("  rotate_admin:").unwrap();
    let end = BINDING.find("endpoint: client").unwrap();
    let without = format!("{}{}", &BINDING[..at], &BINDING[end..]);
    let server = Ledger::with(&without, "app");
    let target = server.target();
    assert!(!server.mechanism().rotates_admin(&target.settings));
    let next = server.mechanism().generate_admin(&target.settings).unwrap();
    let error = server.mechanism().rotate_admin(&target, &next).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Invalid);
    settle("list", || server.mechanism().list(&target)).await;
}

#[tokio::test]
async fn a_hostile_name_is_only_a_name() {
    let name = "x\"; DROP ROLE y; --'); $$ \\' {user:literal}";
    let server = Ledger::start(name);
    contract::whole_life(&server).await;
    let mut superuser = server.superuser().await;
    let found = text(
        &mut superuser,
        "SELECT datname::text FROM pg_database WHERE datname LIKE 'x%'",
    )
    .await;
    assert_eq!(found, name);
}

#[tokio::test]
async fn a_hostile_parameter_is_only_a_text() {
    let server = Ledger::start("app");
    let kit = prepared(&server).await;
    for label in [
        "'; ALTER ROLE chandler NOLOGIN; --",
        "\\'; SELECT 1",
        "${plan} {password:literal}",
        "ä\"$do$",
    ] {
        let mut grant = grant(label, "readwrite");
        grant.params.insert("label".to_owned(), json!(label));
        let bound = kit.bind(grant).await;
        let mut tenant = server.tenant(&bound).await;
        let seen = text(&mut tenant, "SELECT current_setting('application_name')").await;
        // The server itself shows other characters as `?`, or hex from 15 on.
        let plain = label.replace('ä', "\\xc3\\xa4");
        assert!(seen == plain || seen == label.replace('ä', "??"), "{seen}");
    }
    for connections in [json!("5 NOLOGIN"), json!([1]), json!(true), json!({})] {
        let mut grant = grant("limit", "owner");
        grant.params.insert("connections".to_owned(), connections);
        let user = server
            .mechanism()
            .generate_user(&kit.target(), &grant, contract::now());
        assert_eq!(user.unwrap_err().kind, PortErrorKind::Invalid);
    }
}

#[tokio::test]
async fn what_an_owner_presets_for_its_database_does_not_keep_it() {
    let server = Ledger::start("app");
    let mut kit = prepared(&server).await;
    let bound = kit.bind(grant("sly", "owner")).await;
    let mut tenant = server.tenant(&bound).await;
    for sql in [
        "CREATE TABLE mine (n int)",
        "ALTER DATABASE app SET search_path TO evil, pg_catalog",
        "ALTER DATABASE app SET default_transaction_read_only TO on",
        "ALTER DATABASE app SET standard_conforming_strings TO off",
        "SET ROLE NONE; CREATE TABLE IF NOT EXISTS pg_temp.x (n int)",
    ] {
        run(&mut tenant, sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
    kit.revoke(&bound).await;
    kit.refused(&bound).await;
    kit.exist(&[]).await;
}

#[tokio::test]
async fn a_refusal_names_the_entry_and_quotes_no_password() {
    let broken = BINDING.replace(
        "VALID UNTIL {expires_at:literal}",
        "VALID UNTIL {password:literal}",
    );
    assert_ne!(broken, BINDING);
    let server = Ledger::with(&broken, "app");
    let kit = prepared(&server).await;
    let bound = kit.generate(grant("one", "owner"));
    let target = kit.target();
    let error = server
        .mechanism()
        .issue(&target, &bound.grant, &bound.user)
        .await
        .unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Invalid);
    assert!(error.detail.starts_with("issue[5]: "), "{}", error.detail);
    assert!(!format!("{error:?}").contains(bound.user.secret.text("password")));
}

#[tokio::test]
async fn what_does_not_come_about_is_tried_again_later() {
    let never = BINDING.replace(
        "    - until: SELECT FROM pg_roles WHERE",
        "    - until: SELECT FROM pg_roles WHERE false AND",
    );
    assert_ne!(never, BINDING);
    let server = Ledger::with(&never, "app");
    let kit = prepared(&server).await;
    let bound = kit.generate(grant("one", "owner"));
    let (mechanism, target) = (server.mechanism(), kit.target());
    settle("issue", || mechanism.issue(&target, &bound.grant, &bound.user)).await;
    let error = mechanism
        .verify(&target, &bound.grant, &bound.user)
        .await
        .unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient);
    assert!(error.detail.starts_with("verify[0]: "), "{}", error.detail);
}

/// Whatever the schema of a service lets through, a catalog with SQL in expressions is not loaded.
#[test]
fn an_expression_in_a_statement_is_refused_when_the_catalog_is_loaded() {
    let injected = BINDING.replace(
        "CREATE DATABASE {database:identifier}",
        "CREATE DATABASE ${params.database}",
    );
    let loaded = std::panic::catch_unwind(|| {
        Service::load(&sources(&injected), "ledger", &Value::Object(Default::default()))
    });
    let told = *loaded.err().unwrap().downcast::<String>().unwrap();
    assert!(
        told.contains("settings.prepare[3].sql") && told.contains("must hold no"),
        "{told}"
    );
}
