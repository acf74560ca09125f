//! The audit trail in the database: appended with the change it tells of, read in pages, never changed or deleted here.
//!
//! What must stay true: an event is committed with the change it tells of or neither is. Events wait in the
//! transaction and are appended as its very last statements, because appending locks the one row that says where the
//! chain ends: so the lock is held for a moment only, and always taken after every other one.

use super::Store;
use super::operations::Claimed;
use super::write::{Fail, Tx};
use crate::domain::audit::{ACCEPTED, Action, Cause, Event, Head, Record, SUCCEEDED};
use crate::domain::instance::Millis;
use crate::domain::request::Caller;
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

const EVENT: &str = "at, action, outcome, cause, platform, origin, request_id, instance, binding, instance_id, \
     binding_id, operation, predecessor";
const RECORD: &str = "seq, previous, hash, at, action, outcome, cause, platform, origin, request_id, instance, \
     binding, instance_id, binding_id, operation, predecessor";
/// How many there are in [`RECORD`].
const COLUMNS: usize = 16;
/// Rows of one statement: few different numbers, because each is a statement of its own to prepare.
const AT_ONCE: [usize; 3] = [16, 4, 1];

fn event(row: &AnyRow, at: usize) -> Result<Event, sqlx::Error> {
    Ok(Event {
        at: row.try_get(at)?,
        action: row.try_get(at + 1)?,
        outcome: row.try_get(at + 2)?,
        cause: row.try_get(at + 3)?,
        platform: row.try_get(at + 4)?,
        origin: row.try_get(at + 5)?,
        request_id: row.try_get(at + 6)?,
        instance: row.try_get(at + 7)?,
        binding: row.try_get(at + 8)?,
        instance_id: row.try_get(at + 9)?,
        binding_id: row.try_get(at + 10)?,
        operation: row.try_get(at + 11)?,
        predecessor: row.try_get(at + 12)?,
    })
}

fn record(row: &AnyRow) -> Result<Record, sqlx::Error> {
    Ok(Record {
        seq: row.try_get(0)?,
        previous: row.try_get(1)?,
        hash: row.try_get(2)?,
        event: event(row, 3)?,
    })
}

fn head(row: &AnyRow) -> Result<Head, sqlx::Error> {
    Ok(Head {
        seq: row.try_get(0)?,
        hash: row.try_get(1)?,
    })
}

fn insert(rows: usize) -> String {
    let row = |n: usize| {
        let places: Vec<_> = (1..=COLUMNS).map(|i| format!("${}", n * COLUMNS + i)).collect();
        format!("({})", places.join(", "))
    };
    let rows: Vec<_> = (0..rows).map(row).collect();
    format!("INSERT INTO audit_events ({RECORD}) VALUES {}", rows.join(", "))
}

impl Tx {
    /// Puts an event into the audit trail when this transaction commits.
    pub fn audit(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Tells how an operation ended whose beginning was told. Nothing for one whose beginning was not.
    pub(super) async fn audit_end(&mut self, operation: &str, outcome: &str, at: Millis) -> Result<(), Fail> {
        if let Some(accepted) = self.accepted(operation).await? {
            self.events.push(accepted.ended(outcome, at));
        }
        Ok(())
    }

    async fn accepted(&mut self, operation: &str) -> Result<Option<Event>, Fail> {
        // On SQLite the transaction may hold a neighbour's write, whose event waits here like ours.
        let of_this =
            |event: &&Event| event.outcome == ACCEPTED && event.operation.as_deref() == Some(operation);
        if let Some(waiting) = self.events.iter().find(of_this) {
            return Ok(Some(waiting.clone()));
        }
        let sql = format!(
            "SELECT {EVENT} FROM audit_events WHERE operation = $1 AND outcome = 'accepted' ORDER BY seq LIMIT 1"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(operation)
            .fetch_optional(&mut *self.connection)
            .await?;
        Ok(row.as_ref().map(|row| event(row, 0)).transpose()?)
    }

    /// Tells that every binding which could let somebody in has ended with its instance; before the rows say so.
    pub(super) async fn audit_all_ended(&mut self, claimed: &Claimed, at: Millis) -> Result<(), Fail> {
        let sql = format!(
            "SELECT {} FROM bindings b WHERE b.iid = $1 \
             AND (b.state NOT IN ('gone', 'failed', 'expired') OR b.residue = 1) ORDER BY b.bid",
            super::rows::BINDING
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(&claimed.instance.iid)
            .fetch_all(&mut *self.connection)
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        let operation = &claimed.operation;
        let accepted = self.accepted(&operation.id).await?;
        let caller = Caller {
            platform: claimed.instance.platform.clone(),
            originating: None,
            request_id: operation.request_id.clone(),
        };
        let instance_id = &claimed.instance.instance_id;
        for row in &rows {
            let binding = super::rows::binding(row)?;
            let event = Event::asked(&caller, Action::Revoke, instance_id, &binding.binding_id, at);
            self.events.push(Event {
                outcome: SUCCEEDED.to_owned(),
                cause: Cause::Deprovision.as_str().to_owned(),
                origin: accepted.as_ref().and_then(|accepted| accepted.origin.clone()),
                ..event.by(&operation.id)
            });
        }
        Ok(())
    }

    /// Gives the waiting events their places in the chain. The last statements before the commit.
    pub(super) async fn append_events(&mut self) -> Result<(), sqlx::Error> {
        if self.events.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "SELECT seq, hash FROM audit_head WHERE id = 1{}",
            self.dialect.for_update()
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .fetch_one(&mut *self.connection)
            .await?;
        let mut head = head(&row)?;
        let records: Vec<_> = self.events.drain(..).map(|event| head.append(event)).collect();
        let mut rest = records.as_slice();
        while !rest.is_empty() {
            let size = AT_ONCE.into_iter().find(|size| *size <= rest.len()).unwrap_or(1);
            let (now, later) = rest.split_at(size);
            let mut query = sqlx::query(AssertSqlSafe(insert(size)));
            for Record {
                seq,
                event,
                previous,
                hash,
            } in now
            {
                query = query
                    .bind(*seq)
                    .bind(previous)
                    .bind(hash)
                    .bind(event.at)
                    .bind(&event.action)
                    .bind(&event.outcome)
                    .bind(&event.cause)
                    .bind(&event.platform)
                    .bind(event.origin.as_deref())
                    .bind(event.request_id.as_deref())
                    .bind(&event.instance)
                    .bind(&event.binding)
                    .bind(&event.instance_id)
                    .bind(&event.binding_id)
                    .bind(event.operation.as_deref())
                    .bind(event.predecessor.as_deref());
            }
            query.execute(&mut *self.connection).await?;
            rest = later;
        }
        sqlx::query("UPDATE audit_head SET seq = $1, hash = $2 WHERE id = 1")
            .bind(head.seq)
            .bind(head.hash)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }
}

impl Store {
    /// Records an event that changes nothing else; returns when it is durable.
    pub async fn audit(&self, event: Event) -> Result<(), Fail> {
        self.write(move |tx| {
            let event = event.clone();
            Box::pin(async move {
                tx.audit(event);
                Ok(())
            })
        })
        .await
    }

    /// Where the chain ends.
    pub async fn audit_head(&self) -> Result<Head, Fail> {
        let mut connection = self.reader().await?;
        let row = sqlx::query("SELECT seq, hash FROM audit_head WHERE id = 1")
            .fetch_one(&mut *connection)
            .await?;
        Ok(head(&row)?)
    }

    /// At most `most` records behind number `after`, in their order.
    pub async fn audit_page(&self, after: i64, most: i64) -> Result<Vec<Record>, Fail> {
        let mut connection = self.reader().await?;
        let sql = format!("SELECT {RECORD} FROM audit_events WHERE seq > $1 ORDER BY seq LIMIT $2");
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(after)
            .bind(most)
            .fetch_all(&mut *connection)
            .await?;
        Ok(rows.iter().map(record).collect::<Result<_, _>>()?)
    }
}
