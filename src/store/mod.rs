//! The broker's own state in SQL: one text for SQLite and PostgreSQL (design §5).
//!
//! What must stay true: every write goes through [`Store::write`], the one door that knows how to
//! begin a transaction on each database and where group commit lives. Rows are the truth; nothing
//! is cached here.

mod audit;
mod operations;
mod reconcile;
mod resources;
mod rows;
mod secrets;
mod users;
mod write;

pub use operations::{Advance, Claimed, Finish, Lease, LookAgain, NewOperation, OperationRow, Progress};
pub use reconcile::KnownBinding;
pub use users::UserChange;
pub use write::{Fail, Tx, TxFuture};

use crate::domain::error::Error;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyPool, AssertSqlSafe, ConnectOptions, Executor};
use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

/// Which database, and the three strings in which they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Embedded default.
    Sqlite,
    /// Production: PostgreSQL or a server that speaks like it.
    Postgres,
}

impl Dialect {
    /// The database's own clock in milliseconds since the epoch; leases go by it alone.
    pub(crate) fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(unixepoch('subsec') * 1000 AS BIGINT)",
            Self::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }

    /// Row locks: SQLite has one writer at a time and needs none.
    pub(crate) fn for_update(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => " FOR UPDATE",
        }
    }

    /// Lets replicas share the queue instead of waiting for each other.
    pub(crate) fn skip_locked(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => " FOR UPDATE SKIP LOCKED",
        }
    }

    fn begin(self) -> &'static str {
        match self {
            // The default (deferred) BEGIN fails read-then-write transactions with "database is locked".
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }
}

/// Page cache of SQLite's writing connection, in KiB.
const WRITER_CACHE: u32 = 4000;
/// Page cache of each of its reading connections: the upper levels of the trees. The rest is in the system's cache, which all share.
const READER_CACHE: u32 = 1000;
/// Most reading connections on SQLite, a thread each: more of them only take turns on the processors.
const READERS: u32 = 8;

/// How to open the store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// `sqlite:///path`, `sqlite::memory:` is not supported; or `postgres://…`.
    pub url: String,
    /// Connections for reading (SQLite) or for everything (PostgreSQL).
    pub max_connections: u32,
    /// SQLite: many waiting writes share one commit. Off only to measure what it brings.
    pub group_commit: bool,
    /// Longest wait for a connection or a lock before a request is answered with 503.
    pub busy_timeout: Duration,
}

impl StoreOptions {
    /// Defaults for `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 4,
            group_commit: true,
            busy_timeout: Duration::from_secs(5),
        }
    }
}

/// The open store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    dialect: Dialect,
    reads: AnyPool,
    writes: write::Door,
}

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "start", include_str!("../../migrations/0001_start.sql")),
    (
        2,
        "kept_volumes",
        include_str!("../../migrations/0002_kept_volumes.sql"),
    ),
    (3, "delivery", include_str!("../../migrations/0003_delivery.sql")),
    (4, "audit", include_str!("../../migrations/0004_audit.sql")),
    (5, "failures", include_str!("../../migrations/0005_failures.sql")),
];

fn migrator() -> Migrator {
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, name, sql)| {
            Migration::new(
                *version,
                Cow::Borrowed(*name),
                MigrationType::Simple,
                sqlx::SqlStr::from_static(sql),
                false,
            )
        })
        .collect::<Vec<_>>();
    Migrator::with_migrations(migrations)
}

impl Store {
    /// Opens the store, without changing its schema.
    ///
    /// Errors: the address cannot be parsed or reached within the busy time-out.
    pub async fn open(options: &StoreOptions) -> Result<Self, sqlx::Error> {
        sqlx::any::install_default_drivers();
        let dialect = if options.url.starts_with("sqlite:") {
            Dialect::Sqlite
        } else {
            Dialect::Postgres
        };
        let mut connect = AnyConnectOptions::from_str(&options.url)?;
        connect = connect.log_statements(tracing::log::LevelFilter::Off);
        let busy = options.busy_timeout;
        let pool = |max: u32, cache: u32| {
            AnyPoolOptions::new()
                .max_connections(max)
                .acquire_timeout(busy)
                .test_before_acquire(dialect == Dialect::Postgres)
                .after_connect(move |connection, _| {
                    Box::pin(async move {
                        for statement in session_setup(dialect, busy, cache) {
                            connection.execute(AssertSqlSafe(statement)).await?;
                        }
                        Ok(())
                    })
                })
        };
        let (reads, writer) = match dialect {
            Dialect::Sqlite => {
                let writer = pool(1, WRITER_CACHE)
                    .idle_timeout(None)
                    .max_lifetime(None)
                    .connect_with(connect.clone())
                    .await?;
                let reads = pool(options.max_connections.min(READERS), READER_CACHE)
                    .idle_timeout(None)
                    .max_lifetime(None)
                    .connect_with(connect)
                    .await?;
                (reads, writer)
            }
            Dialect::Postgres => {
                let all = pool(options.max_connections, 0).connect_with(connect).await?;
                (all.clone(), all)
            }
        };
        Ok(Self {
            dialect,
            reads,
            writes: write::Door::new(dialect, writer, options.group_commit),
        })
    }

    /// Brings the schema to this version; safe when several replicas start at once.
    pub async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        let mut tries = 0;
        loop {
            match migrator().run(self.writes.pool()).await {
                // PostgreSQL has a lock for this; on SQLite the slower of two processes finds the work done by the other.
                Err(_) if self.dialect == Dialect::Sqlite && tries < 5 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(50 * tries)).await;
                }
                result => return result,
            }
        }
    }

    /// Which database it is.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Runs `work` in a transaction and answers when it is durable.
    ///
    /// `work` may run more than once (a group that fails is repeated one by one; a race that was lost is decided
    /// again), so it must have no effect but its statements, and it must refuse before it writes. Once handed in it
    /// runs to its end even if the caller goes away.
    pub async fn write<T, F>(&self, work: F) -> Result<T, Fail>
    where
        T: Send + 'static,
        F: for<'t> Fn(&'t mut Tx) -> TxFuture<'t, T> + Send + Sync + 'static,
    {
        self.writes.write(work).await
    }

    pub(crate) async fn reader(&self) -> Result<PoolConnection<Any>, Fail> {
        Ok(self.reads.acquire().await?)
    }

    /// One cheap statement, for the readiness probe.
    pub async fn ping(&self) -> Result<(), Error> {
        let mut connection = self.reader().await?;
        sqlx::query("SELECT 1")
            .execute(&mut *connection)
            .await
            .map_err(Fail::from)?;
        Ok(())
    }

    /// Ends open connections; writes handed in before are finished first.
    pub async fn close(&self) {
        // The queue is first come, first served: when this one is done, so are all before it.
        let _ = self.write(|_| Box::pin(async { Ok(()) })).await;
        self.writes.close().await;
        self.reads.close().await;
    }
}

fn session_setup(dialect: Dialect, busy: Duration, cache: u32) -> Vec<String> {
    match dialect {
        Dialect::Sqlite => vec![
            format!("PRAGMA busy_timeout = {}", busy.as_millis()),
            "PRAGMA journal_mode = WAL".into(),
            // An accepted request survives a power cut: 202 is a promise.
            "PRAGMA synchronous = FULL".into(),
            "PRAGMA foreign_keys = ON".into(),
            "PRAGMA temp_store = MEMORY".into(),
            format!("PRAGMA cache_size = -{cache}"),
        ],
        Dialect::Postgres => vec![
            format!("SET lock_timeout = {}", busy.as_millis()),
            "SET statement_timeout = 30000".into(),
            "SET idle_in_transaction_session_timeout = 60000".into(),
        ],
    }
}
