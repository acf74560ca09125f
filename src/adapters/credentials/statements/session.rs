//! A session on a server of either dialect, which ends with its value.
//!
//! What must stay true: a tenant may own the database a session is in, so whatever it could preset against us is stated
//! when the session starts; statements go as text in one piece, because most of them take no bind parameters.

use super::text::Dialect;
use crate::adapters::credentials::sql::{self, Dialect as _};
use crate::adapters::credentials::sql_postgres::Postgres;
use crate::adapters::credentials::sql_settings::Tls;
use crate::domain::secret::Secret;
use crate::ports::{PortError, PortErrorKind, PortResult, Target};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlSslMode};
use sqlx::postgres::{PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use std::time::Duration;

const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Seconds to wait for a lock.
const LOCK_SECONDS: u8 = 3;

/// Where and as whom to log in.
pub(super) struct Place<'a> {
    pub dialect: Dialect,
    pub target: &'a Target,
    pub login: &'a Secret,
    pub tls: &'a Tls,
    /// None for no database, where the dialect knows that.
    pub database: Option<&'a str>,
}

/// A session that ends with this value.
pub(super) enum Session {
    Postgres(PgConnection),
    MySql(MySqlConnection),
}

impl Session {
    /// Logs in. `version` is that of the server, once a session has told it.
    pub async fn open(place: &Place<'_>, version: i32) -> PortResult<Self> {
        let late = || PortError::transient("The database server does not answer.");
        match place.dialect {
            Dialect::Postgres => {
                let database = place.database.unwrap_or("postgres");
                let options = place.tls.postgres(place.target, place.login, database);
                let options = options.options(Postgres.session(version));
                let opening = tokio::time::timeout(CONNECT_TIME, PgConnection::connect_with(&options));
                let opened = opening.await.map_err(|_| late())?;
                opened.map(Self::Postgres).map_err(sql::explain)
            }
            Dialect::MySql => {
                let options = mysql_options(place);
                let opening = tokio::time::timeout(CONNECT_TIME, MySqlConnection::connect_with(&options));
                let opened = opening.await.map_err(|_| late())?.map_err(explain_mysql)?;
                let mut session = Self::MySql(opened);
                // Backslashes escape and double quotes hold texts, as `text` has read the statements.
                session
                    .run(
                        "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
                         SESSION lock_wait_timeout = 3, SESSION autocommit = 1",
                        &[],
                    )
                    .await?;
                Ok(session)
            }
        }
    }

    /// The server's version as PostgreSQL counts it, such as 150004; 0 elsewhere.
    pub fn version(&self) -> i32 {
        match self {
            Self::Postgres(connection) => connection
                .server_version_num()
                .and_then(|version| i32::try_from(version).ok())
                .unwrap_or(0),
            Self::MySql(_) => 0,
        }
    }

    /// Makes workers that act on the same thing take turns, until the session ends.
    pub async fn lock(&mut self, thing: &str) -> PortResult<()> {
        let key = sql::lock_key(thing);
        if let Self::Postgres(_) = self {
            return self.run(&format!("SELECT pg_advisory_lock({key})"), &[]).await;
        }
        let got = self
            .column(&format!("SELECT GET_LOCK('chandler {key}', {LOCK_SECONDS})"))
            .await?;
        if got == ["1"] {
            Ok(())
        } else {
            Err(PortError::transient(
                "Another session works on the same binding; it is tried again.",
            ))
        }
    }

    /// Runs a text of one or more statements. A refusal with one of the codes in `ignore` is success.
    pub async fn run(&mut self, text: &str, ignore: &[String]) -> PortResult<()> {
        let statement = sqlx::raw_sql(AssertSqlSafe(text.to_owned()));
        let done = match self {
            Self::Postgres(connection) => statement.execute(connection).await.map(drop),
            Self::MySql(connection) => statement.execute(connection).await.map(drop),
        };
        match done {
            Err(error) if codes(&error).iter().any(|code| ignore.contains(code)) => Ok(()),
            done => done.map_err(|error| self.explain(error)),
        }
    }

    /// Whether a query answers a row.
    pub async fn any(&mut self, query: &str) -> PortResult<bool> {
        let query = sqlx::raw_sql(AssertSqlSafe(query.to_owned()));
        let found = match self {
            Self::Postgres(connection) => query.fetch_all(connection).await.map(|rows| !rows.is_empty()),
            Self::MySql(connection) => query.fetch_all(connection).await.map(|rows| !rows.is_empty()),
        };
        found.map_err(|error| self.explain(error))
    }

    /// The first column of each row as text; NULLs are left out.
    pub async fn column(&mut self, query: &str) -> PortResult<Vec<String>> {
        let query = sqlx::raw_sql(AssertSqlSafe(query.to_owned()));
        // Everything comes as text in this protocol, whatever its type.
        let found: Result<Vec<Option<String>>, sqlx::Error> = match self {
            Self::Postgres(connection) => query
                .fetch_all(connection)
                .await
                .and_then(|rows| rows.iter().map(|row| row.try_get_unchecked(0)).collect()),
            Self::MySql(connection) => query
                .fetch_all(connection)
                .await
                .and_then(|rows| rows.iter().map(|row| row.try_get_unchecked(0)).collect()),
        };
        let found = found.map_err(|error| self.explain(error))?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Says goodbye; a courtesy, as the server notices a closed socket as well.
    pub async fn close(self) {
        match self {
            Self::Postgres(connection) => drop(connection.close().await),
            Self::MySql(connection) => drop(connection.close().await),
        }
    }

    fn explain(&self, error: sqlx::Error) -> PortError {
        match self {
            Self::Postgres(_) => sql::explain(error),
            Self::MySql(_) => explain_mysql(error),
        }
    }
}

fn mysql_options(place: &Place<'_>) -> MySqlConnectOptions {
    let mode = match place.tls.mode {
        PgSslMode::VerifyFull => MySqlSslMode::VerifyIdentity,
        PgSslMode::VerifyCa => MySqlSslMode::VerifyCa,
        PgSslMode::Require => MySqlSslMode::Required,
        _ => MySqlSslMode::Disabled,
    };
    let mut options = MySqlConnectOptions::new()
        .host(&place.target.endpoint.host)
        .port(place.target.endpoint.port)
        .username(place.login.text("username"))
        .password(place.login.text("password"))
        .ssl_mode(mode)
        .disable_statement_logging();
    if let Some(database) = place.database {
        options = options.database(database);
    }
    if let Some(path) = &place.tls.root {
        options = options.ssl_ca(path);
    }
    options
}

/// The words by which a refusal can be named in `ignore`: its SQLSTATE, and MySQL's own number.
fn codes(error: &sqlx::Error) -> Vec<String> {
    let sqlx::Error::Database(error) = error else {
        return Vec::new();
    };
    let mut codes: Vec<String> = error
        .code()
        .into_iter()
        .map(std::borrow::Cow::into_owned)
        .collect();
    if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
        codes.push(error.number().to_string());
    }
    codes
}

/// Sorts a refusal of MySQL or MariaDB by its number: the SQLSTATE is the same for most.
fn explain_mysql(error: sqlx::Error) -> PortError {
    use PortErrorKind::{Conflict, Denied, Gone, Invalid, Transient};
    let number = match &error {
        sqlx::Error::Database(error) => error
            .try_downcast_ref::<MySqlDatabaseError>()
            .map(MySqlDatabaseError::number),
        _ => None,
    };
    let Some(number) = number else {
        // The rest is the same for both dialects.
        return sql::explain(error);
    };
    let (kind, message) = match number {
        1044 | 1045 | 1142 | 1143 | 1227 | 1370 | 1410 | 1698 | 3118 => {
            (Denied, "The database server does not allow this.")
        }
        1040 | 1203 | 1226 => (Transient, "The database has too many connections; close some."),
        1205 | 1213 => (
            Transient,
            "Another session holds what must change; it is tried again.",
        ),
        1037 | 1038 | 1041 | 1053 | 1077..=1079 | 1290 | 1836 | 3024 | 1969 => {
            (Transient, "The database server cannot do this at the moment.")
        }
        1396 | 1007 | 1008 | 1020 | 1062 => (Conflict, "Somebody else changed the same thing."),
        1049 | 1141 => (Gone, "The database of this instance is not there."),
        _ => (
            Invalid,
            "The database server does not understand what it was asked; tell its operator.",
        ),
    };
    // A syntax error quotes the statement.
    let text = match error {
        sqlx::Error::Database(ref error) if number != 1064 => error.message().to_owned(),
        _ => String::new(),
    };
    PortError::new(kind, message).with_detail(format!("error {number} {text}"))
}
