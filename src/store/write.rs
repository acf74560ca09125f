//! The one door for writes, and group commit behind it (design §5).
//!
//! On SQLite one task owns the only writing connection. It takes every write that waits, runs them
//! one after the other inside one transaction and answers them all after the one commit, because a
//! flush to disk costs more than the statements. If any of them fails after it wrote, the group is
//! rolled back and repeated one by one, so no write can take its neighbours down.
//! On PostgreSQL writes run side by side, each in its own transaction, and are repeated when the
//! server says they lost a race.
//!
//! What must stay true: nobody is answered before the commit that holds his write; a write runs to
//! its end whether or not its caller still waits.

use super::Dialect;
use crate::domain::audit::Event;
use crate::domain::error::Error;
use crate::telemetry;
use futures::FutureExt;
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyPool};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use tokio::sync::{mpsc, oneshot};

/// Most writes that share one commit: bounds how long the first of a group waits for the last.
const GROUP: usize = 64;
/// Writes that may wait for the writer before callers are held back.
const QUEUE: usize = 1024;
/// How often a write is repeated after the database called it the loser of a race.
const RACES: u32 = 5;

/// Why a write did not happen.
#[derive(Debug)]
pub enum Fail {
    /// The rules say no; nothing was written.
    Refused(Error),
    /// The database failed; nothing was written.
    Db(sqlx::Error),
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<sqlx::Error> for Fail {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error)
    }
}

impl From<Fail> for Error {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Refused(error) => error,
            Fail::Db(error) => Error::unavailable(
                "The broker's database cannot be used at the moment. Nothing was changed; send the same request again later.",
            )
            .with_internal(error.to_string()),
        }
    }
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "{error}"),
            Self::Db(error) => write!(f, "database: {error}"),
        }
    }
}

/// What a write's closure returns.
pub type TxFuture<'t, T> = Pin<Box<dyn Future<Output = Result<T, Fail>> + Send + 't>>;

/// An open transaction.
pub struct Tx {
    pub(super) connection: PoolConnection<Any>,
    pub(super) dialect: Dialect,
    /// Set by every statement that may change something: a failure afterwards needs a rollback.
    pub(super) wrote: bool,
    /// What is put into the audit trail right before the commit.
    pub(super) events: Vec<Event>,
}

type Work<T> = dyn for<'t> Fn(&'t mut Tx) -> TxFuture<'t, T> + Send + Sync;

/// One waiting write, its result type hidden.
trait Job: Send {
    /// Runs the work; true when it may be committed.
    fn run<'a>(&'a mut self, tx: &'a mut Tx) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
    /// Answers the caller. `commit` is the failure of the commit, if it failed.
    fn answer(self: Box<Self>, commit: Option<&sqlx::Error>);
    /// Answers without having run.
    fn refuse(self: Box<Self>, error: &sqlx::Error);
}

struct Pending<T> {
    work: Box<Work<T>>,
    result: Option<Result<T, Fail>>,
    reply: oneshot::Sender<Result<T, Fail>>,
}

impl<T: Send + 'static> Job for Pending<T> {
    fn run<'a>(&'a mut self, tx: &'a mut Tx) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async move {
            let result = guarded(&self.work, tx).await;
            let good = result.is_ok();
            self.result = Some(result);
            good
        })
    }

    fn answer(self: Box<Self>, commit: Option<&sqlx::Error>) {
        let result = match (self.result, commit) {
            (Some(Ok(_)) | None, Some(error)) => Err(Fail::Db(copy(error))),
            (Some(result), _) => result,
            (None, None) => Err(Fail::Db(sqlx::Error::WorkerCrashed)),
        };
        // The caller may have gone away; the write stands all the same.
        let _ = self.reply.send(result);
    }

    fn refuse(self: Box<Self>, error: &sqlx::Error) {
        let _ = self.reply.send(Err(Fail::Db(copy(error))));
    }
}

/// A panic in a write must not kill the writer: it becomes a failure of that write.
async fn guarded<T>(work: &Work<T>, tx: &mut Tx) -> Result<T, Fail> {
    match AssertUnwindSafe(work(tx)).catch_unwind().await {
        Ok(result) => result,
        Err(_) => {
            tx.wrote = true;
            Err(Fail::Refused(Error::internal("a write panicked")))
        }
    }
}

/// `sqlx::Error` cannot be cloned, and a failed commit has many to tell.
fn copy(error: &sqlx::Error) -> sqlx::Error {
    sqlx::Error::Protocol(error.to_string())
}

#[derive(Clone)]
pub(super) struct Door {
    dialect: Dialect,
    pool: AnyPool,
    queue: Option<mpsc::Sender<Box<dyn Job>>>,
}

impl Door {
    pub(super) fn new(dialect: Dialect, pool: AnyPool, group_commit: bool) -> Self {
        let queue = (dialect == Dialect::Sqlite).then(|| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let most = if group_commit { GROUP } else { 1 };
            tokio::spawn(writer(pool.clone(), receiver, most));
            sender
        });
        Self { dialect, pool, queue }
    }

    pub(super) fn pool(&self) -> &AnyPool {
        &self.pool
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, Fail>
    where
        T: Send + 'static,
        F: for<'t> Fn(&'t mut Tx) -> TxFuture<'t, T> + Send + Sync + 'static,
    {
        let crashed = || Fail::Db(sqlx::Error::WorkerCrashed);
        match &self.queue {
            Some(queue) => {
                let (reply, answer) = oneshot::channel();
                let job = Box::new(Pending {
                    work: Box::new(work),
                    result: None,
                    reply,
                });
                queue.send(job).await.map_err(|_| crashed())?;
                answer.await.map_err(|_| crashed())?
            }
            None => {
                let (pool, dialect) = (self.pool.clone(), self.dialect);
                // A task of its own: a caller that goes away must not leave a connection inside a transaction.
                tokio::spawn(async move { side_by_side(&pool, dialect, &work).await })
                    .await
                    .map_err(|_| crashed())?
            }
        }
    }
}

async fn writer(pool: AnyPool, mut queue: mpsc::Receiver<Box<dyn Job>>, most: usize) {
    while let Some(first) = queue.recv().await {
        let mut group = vec![first];
        while group.len() < most {
            match queue.try_recv() {
                Ok(job) => group.push(job),
                Err(_) => break,
            }
        }
        telemetry::store_group(u32::try_from(group.len()).unwrap_or(u32::MAX));
        if let Some(failed) = commit_group(&pool, group).await {
            for job in failed {
                commit_group(&pool, vec![job]).await;
            }
        }
    }
}

/// Commits a group and answers it. Returns the jobs, unanswered, when they must be repeated one by one.
async fn commit_group(pool: &AnyPool, mut group: Vec<Box<dyn Job>>) -> Option<Vec<Box<dyn Job>>> {
    let mut tx = match begin(pool, Dialect::Sqlite).await {
        Ok(tx) => tx,
        Err(error) => {
            for job in group {
                job.refuse(&error);
            }
            return None;
        }
    };
    for i in 0..group.len() {
        tx.wrote = false;
        let told = tx.events.len();
        if group[i].run(&mut tx).await {
            continue;
        }
        tx.events.truncate(told);
        if tx.wrote {
            end(&mut tx, "ROLLBACK").await.ok();
            if group.len() > 1 {
                return Some(group);
            }
            for job in group {
                job.answer(None);
            }
            return None;
        }
    }
    let committed = match tx.append_events().await {
        Ok(()) => end(&mut tx, "COMMIT").await,
        Err(error) => Err(error),
    };
    if committed.is_err() {
        // A commit that failed for want of space leaves the transaction open.
        end(&mut tx, "ROLLBACK").await.ok();
    }
    for job in group {
        job.answer(committed.as_ref().err());
    }
    None
}

async fn side_by_side<T>(pool: &AnyPool, dialect: Dialect, work: &Work<T>) -> Result<T, Fail> {
    let mut race = 0;
    loop {
        let mut tx = begin(pool, dialect).await?;
        let worked = match guarded(work, &mut tx).await {
            Ok(value) => tx.append_events().await.map(|()| value).map_err(Fail::Db),
            Err(fail) => Err(fail),
        };
        let result = match worked {
            Ok(value) => end(&mut tx, "COMMIT").await.map(|()| value).map_err(Fail::Db),
            Err(fail) => {
                if end(&mut tx, "ROLLBACK").await.is_err() {
                    // Never hand a connection back that may still be inside a transaction.
                    tx.connection.close_on_drop();
                }
                Err(fail)
            }
        };
        match result {
            Err(Fail::Db(error)) if race < RACES && lost_race(&error) => race += 1,
            other => return other,
        }
    }
}

/// Unique violation, serialization failure, deadlock: decide again against the winner.
fn lost_race(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| matches!(code.as_ref(), "23505" | "40001" | "40P01"))
}

async fn begin(pool: &AnyPool, dialect: Dialect) -> Result<Tx, sqlx::Error> {
    let mut tx = Tx {
        connection: pool.acquire().await?,
        dialect,
        wrote: false,
        events: Vec::new(),
    };
    end(&mut tx, dialect.begin()).await?;
    Ok(tx)
}

async fn end(tx: &mut Tx, statement: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(statement).execute(&mut *tx.connection).await?;
    Ok(())
}
