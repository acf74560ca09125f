//! Operations: insert, claim, heartbeat, record (design §6).
//!
//! What must stay true: everything a worker writes is guarded by `id AND attempt AND state = 'open'`,
//! so a worker that lost its lease, or whose operation was superseded, writes nothing. Leases go by
//! the database's clock, everything else by the `Clock` port.

use super::Store;
use super::rows::{self, OPERATION, to_json};
use super::users::UserChange;
use super::write::{Fail, Tx};
use crate::domain::binding::{Binding, BindingState};
use crate::domain::instance::{Endpoint, Instance, Millis};
use crate::domain::operation::{Operation, OperationEvent, OperationKind, OperationState, UpdateTarget};
use crate::domain::request::LastOperation;
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Row};

/// An operation about to be accepted.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// Token, unique.
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// Its instance.
    pub iid: String,
    /// Its binding, for binding operations.
    pub bid: Option<String>,
    /// Bounds concurrency.
    pub offering: String,
    /// For an update.
    pub target: Option<UpdateTarget>,
    /// First step.
    pub step: &'static str,
    /// First progress text.
    pub description: &'static str,
    /// Accepted at, and due at once.
    pub now: Millis,
    /// Fails when not done by then.
    pub deadline_at: Millis,
    /// For the log.
    pub request_id: Option<String>,
}

/// A row with what only operators see of it.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationRow {
    /// The operation.
    pub operation: Operation,
    /// The worker that holds or last held it.
    pub owner: Option<String>,
}

/// What one claim brings: the operation with the rows it works on.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// With the attempt number this claim gave it.
    pub operation: Operation,
    /// Its instance.
    pub instance: Instance,
    /// Its binding.
    pub binding: Option<Binding>,
}

/// What a step adds to the rows when it is recorded.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Replaces the instance's facts.
    pub facts: Option<Map<String, Value>>,
    /// Replaces the instance's endpoints.
    pub endpoints: Option<Vec<Endpoint>>,
    /// What the backend knows the binding by.
    pub handle: Option<String>,
    /// From now on the binding's users are on the list of those not to be let in.
    pub revoked: bool,
    /// What becomes of a user that is being rotated in or out.
    pub user: Option<UserChange>,
}

/// Where an operation goes after a step.
#[derive(Debug, Clone)]
pub struct Advance {
    /// Next step (may be the same).
    pub step: &'static str,
    /// Due then; at once when not after now.
    pub due_at: Millis,
    /// How often that step ran without being done.
    pub tries: i64,
    /// Its transient failures since it last worked.
    pub failures: i64,
    /// Progress text for people.
    pub description: String,
    /// Reason of the undo, once it is being undone.
    pub failing: Option<String>,
    /// A later deadline, for an undo.
    pub deadline_at: Millis,
    /// What to keep.
    pub progress: Progress,
    /// A line of history: step, outcome word, message. `None` when it would repeat the last one.
    pub event: Option<(String, &'static str, String)>,
    /// What happens to the lease.
    pub lease: Lease,
}

/// What becomes of a worker's claim when a step is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It goes on: the same worker runs the next step at once.
    Keep,
    /// It is given back: whoever comes first takes the operation when it is due.
    Free,
    /// It is given back, and the others go first: this worker may be the one that cannot get through.
    StepBack,
}

/// Whether and when the sweep looks at a binding again after an operation on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LookAgain {
    /// As it was.
    #[default]
    AsBefore,
    /// Then.
    At(Millis),
    /// There is no need any more.
    Never,
}

impl LookAgain {
    fn at(self) -> Option<Millis> {
        match self {
            Self::At(at) => Some(at),
            Self::AsBefore | Self::Never => None,
        }
    }
}

/// How an operation ends.
#[derive(Debug, Clone)]
pub struct Finish {
    /// `Succeeded` or `Failed`.
    pub state: OperationState,
    /// For people.
    pub description: String,
    /// E-04.
    pub instance_usable: Option<bool>,
    /// E-04.
    pub update_repeatable: Option<bool>,
    /// The instance as it is from now on (instance operations).
    pub instance: Option<Instance>,
    /// State and residue of the binding from now on (binding operations).
    pub binding: Option<(BindingState, bool)>,
    /// The instance is gone, and so are all its bindings.
    pub bindings_gone: bool,
    /// Whether and when the binding, or all that are gone with the instance, are looked at again.
    pub look_again: LookAgain,
    /// What the last step adds.
    pub progress: Progress,
    /// Name of the last step.
    pub step: String,
}

const OWNED: &str = "id = $1 AND attempt = $2 AND state = 'open'";

impl Tx {
    /// Inserts an operation. The unique index allows one open operation per subject; losing that race fails the write.
    pub async fn insert_operation(&mut self, o: &NewOperation) -> Result<(), Fail> {
        self.wrote = true;
        let subject = o.bid.as_ref().unwrap_or(&o.iid);
        sqlx::query(
            "INSERT INTO operations (id, seq, subject, kind, iid, bid, offering, target, state, step, failing, attempt, \
             tries, due_at, deadline_at, owner, lease_until, description, request_id, created_at) \
             VALUES ($1, (SELECT COALESCE(MAX(seq), 0) + 1 FROM operations WHERE subject = $2), $2, $3, $4, $5, $6, $7, \
             'open', $8, NULL, 0, 0, $9, $10, NULL, 0, $11, $12, $9)",
        )
        .bind(&o.id)
        .bind(subject)
        .bind(o.kind.as_str())
        .bind(&o.iid)
        .bind(o.bid.as_deref())
        .bind(&o.offering)
        .bind(o.target.as_ref().map(to_json).transpose()?)
        .bind(o.step)
        .bind(o.now)
        .bind(o.deadline_at)
        .bind(o.description)
        .bind(o.request_id.as_deref())
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Records an operation that was done within its request, so that polls without a token tell of it (L-07).
    pub async fn insert_done(&mut self, o: &NewOperation) -> Result<(), Fail> {
        self.insert_operation(o).await?;
        sqlx::query("UPDATE operations SET state = 'succeeded', finished_at = $2 WHERE id = $1")
            .bind(&o.id)
            .bind(o.now)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// Closes an open operation because a DELETE takes over; its worker is fenced off from here on.
    pub async fn supersede(&mut self, id: &str, why: &str, now: Millis) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query(
            "UPDATE operations SET state = 'superseded', description = $2, finished_at = $3, attempt = attempt + 1, \
             lease_until = 0 WHERE id = $1 AND state = 'open'",
        )
        .bind(id)
        .bind(why)
        .bind(now)
        .execute(&mut *self.connection)
        .await?;
        self.audit_end(id, OperationState::Superseded.as_str(), now)
            .await?;
        self.event(id, now, "", "superseded", why).await
    }

    async fn event(
        &mut self,
        id: &str,
        at: Millis,
        step: &str,
        outcome: &str,
        message: &str,
    ) -> Result<(), Fail> {
        sqlx::query(
            "INSERT INTO operation_events (operation, seq, at, step, outcome, message) \
             VALUES ($1, (SELECT COALESCE(MAX(seq), 0) + 1 FROM operation_events WHERE operation = $1), $2, $3, $4, $5)",
        )
        .bind(id)
        .bind(at)
        .bind(step)
        .bind(outcome)
        .bind(message)
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Instance row first, operation row second: every transaction that needs both takes them in this order.
    pub(super) async fn lock_instance(&mut self, iid: &str) -> Result<(), Fail> {
        let lock = self.dialect.for_update();
        if !lock.is_empty() {
            sqlx::query(AssertSqlSafe(format!(
                "SELECT 1 FROM instances WHERE iid = $1{lock}"
            )))
            .bind(iid)
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(())
    }

    async fn progress(&mut self, claimed: &Claimed, progress: &Progress, now: Millis) -> Result<(), Fail> {
        let iid = &claimed.instance.iid;
        if let Some(facts) = &progress.facts {
            sqlx::query("UPDATE instances SET facts = $2 WHERE iid = $1")
                .bind(iid)
                .bind(to_json(facts)?)
                .execute(&mut *self.connection)
                .await?;
        }
        if let Some(endpoints) = &progress.endpoints {
            sqlx::query("UPDATE instances SET endpoints = $2 WHERE iid = $1")
                .bind(iid)
                .bind(to_json(endpoints)?)
                .execute(&mut *self.connection)
                .await?;
        }
        if let Some(binding) = &claimed.binding {
            if let Some(handle) = &progress.handle {
                self.set_binding_handle(binding, handle).await?;
            }
            if progress.revoked {
                self.mark_revoked(binding, now).await?;
            }
            if let Some(change) = &progress.user {
                self.change_user(binding, change, now).await?;
            }
        }
        Ok(())
    }
}

impl Store {
    /// Takes up to `most` operations that are due, open and not leased, leaving out `busy` offerings.
    ///
    /// An operation from which `owner` itself stepped back it gets only `stepped_back_ms` later than others would.
    pub async fn claim(
        &self,
        owner: &str,
        now: Millis,
        lease_ms: i64,
        most: i64,
        stepped_back_ms: i64,
        busy: &[String],
    ) -> Result<Vec<Claimed>, Fail> {
        let place = |i: usize| format!("${}", i + 6);
        let busy_sql = if busy.is_empty() {
            String::new()
        } else {
            let list: Vec<_> = (0..busy.len()).map(place).collect();
            format!(" AND offering NOT IN ({})", list.join(", "))
        };
        let clock = self.dialect().now();
        let sql = format!(
            // Materialized: the planner must not run the locking part more than once.
            "WITH due AS MATERIALIZED (SELECT id AS due_id FROM operations \
             WHERE state = 'open' AND due_at <= $3 AND lease_until <= {clock}{busy_sql} \
             AND (owner IS NULL OR owner <> $1 OR due_at <= $3 - $5) ORDER BY due_at LIMIT $4{}) \
             UPDATE operations SET owner = $1, attempt = attempt + 1, lease_until = {clock} + $2 \
             WHERE id IN (SELECT due_id FROM due) RETURNING {OPERATION}",
            self.dialect().skip_locked()
        );
        let numbers = vec![now, most, stepped_back_ms];
        self.claim_with(sql, owner, lease_ms, numbers, busy).await
    }

    /// Takes one operation by its id, if it is open and not leased: for a request that waits for its own operation.
    pub async fn claim_one(&self, owner: &str, lease_ms: i64, id: &str) -> Result<Option<Claimed>, Fail> {
        let clock = self.dialect().now();
        let sql = format!(
            "UPDATE operations SET owner = $1, attempt = attempt + 1, lease_until = {clock} + $2 \
             WHERE id = $3 AND state = 'open' AND lease_until <= {clock} RETURNING {OPERATION}"
        );
        let ids = [id.to_owned()];
        Ok(self
            .claim_with(sql, owner, lease_ms, Vec::new(), &ids)
            .await?
            .pop())
    }

    async fn claim_with(
        &self,
        sql: String,
        owner: &str,
        lease_ms: i64,
        numbers: Vec<i64>,
        texts: &[String],
    ) -> Result<Vec<Claimed>, Fail> {
        let (owner, texts) = (owner.to_owned(), texts.to_vec());
        self.write(move |tx| {
            let (sql, owner, texts, numbers) = (sql.clone(), owner.clone(), texts.clone(), numbers.clone());
            Box::pin(async move {
                tx.wrote = true;
                let mut query = sqlx::query(AssertSqlSafe(sql)).bind(owner).bind(lease_ms);
                for number in numbers {
                    query = query.bind(number);
                }
                for text in texts {
                    query = query.bind(text);
                }
                let rows = query.fetch_all(&mut *tx.connection).await?;
                let mut claimed = Vec::with_capacity(rows.len());
                for row in &rows {
                    let operation = rows::operation(row)?.operation;
                    let instance = tx.instance_peek(&operation.iid).await?.ok_or_else(|| {
                        Fail::Db(sqlx::Error::Decode(
                            format!("operation {} has no instance row", operation.id).into(),
                        ))
                    })?;
                    let binding = match &operation.bid {
                        Some(bid) => tx.binding_now(bid).await?.map(|now| now.binding),
                        None => None,
                    };
                    claimed.push(Claimed {
                        operation,
                        instance,
                        binding,
                    });
                }
                Ok(claimed)
            })
        })
        .await
    }

    /// Renews a lease; false when it is lost, and the work must stop.
    pub async fn heartbeat(&self, id: &str, attempt: i64, lease_ms: i64) -> Result<bool, Fail> {
        let sql = format!(
            "UPDATE operations SET lease_until = {} + $3 WHERE {OWNED}",
            self.dialect().now()
        );
        let id = id.to_owned();
        self.write(move |tx| {
            let (sql, id) = (sql.clone(), id.clone());
            Box::pin(async move {
                tx.wrote = true;
                let done = sqlx::query(AssertSqlSafe(sql))
                    .bind(id)
                    .bind(attempt)
                    .bind(lease_ms)
                    .execute(&mut *tx.connection)
                    .await?;
                Ok(done.rows_affected() == 1)
            })
        })
        .await
    }

    /// Records a step. False when the lease was lost: then nothing was written.
    pub async fn advance(&self, claimed: &Claimed, advance: Advance, now: Millis) -> Result<bool, Fail> {
        let claimed = claimed.clone();
        self.write(move |tx| {
            let (claimed, a) = (claimed.clone(), advance.clone());
            Box::pin(async move {
                tx.wrote = true;
                if a.progress.facts.is_some() || a.progress.endpoints.is_some() {
                    tx.lock_instance(&claimed.instance.iid).await?;
                }
                let lease = match a.lease {
                    Lease::Keep => "",
                    Lease::Free => ", lease_until = 0, owner = NULL",
                    // `claim` lets an operation's last worker wait longer than the others.
                    Lease::StepBack => ", lease_until = 0",
                };
                let sql = format!(
                    "UPDATE operations SET step = $3, due_at = $4, tries = $5, description = $6, failing = $7, \
                     deadline_at = $8, failures = $9{lease} WHERE {OWNED}"
                );
                let done = sqlx::query(AssertSqlSafe(sql))
                    .bind(&claimed.operation.id)
                    .bind(claimed.operation.attempt)
                    .bind(a.step)
                    .bind(a.due_at)
                    .bind(a.tries)
                    .bind(&a.description)
                    .bind(a.failing.as_deref())
                    .bind(a.deadline_at)
                    .bind(a.failures)
                    .execute(&mut *tx.connection)
                    .await?;
                if done.rows_affected() == 0 {
                    return Ok(false);
                }
                tx.progress(&claimed, &a.progress, now).await?;
                if let Some((step, outcome, message)) = &a.event {
                    tx.event(&claimed.operation.id, now, step, outcome, message)
                        .await?;
                }
                Ok(true)
            })
        })
        .await
    }

    /// Ends an operation and moves its subject, in one transaction. False when the lease was lost.
    pub async fn finish(&self, claimed: &Claimed, finish: Finish, now: Millis) -> Result<bool, Fail> {
        let claimed = claimed.clone();
        self.write(move |tx| {
            let (claimed, f) = (claimed.clone(), finish.clone());
            Box::pin(async move {
                tx.wrote = true;
                tx.lock_instance(&claimed.instance.iid).await?;
                let sql = format!(
                    "UPDATE operations SET state = $3, description = $4, instance_usable = $5, update_repeatable = $6, \
                     finished_at = $7, lease_until = 0, step = $8 WHERE {OWNED}"
                );
                let done = sqlx::query(AssertSqlSafe(sql))
                    .bind(&claimed.operation.id)
                    .bind(claimed.operation.attempt)
                    .bind(f.state.as_str())
                    .bind(&f.description)
                    .bind(f.instance_usable.map(i64::from))
                    .bind(f.update_repeatable.map(i64::from))
                    .bind(now)
                    .bind(&f.step)
                    .execute(&mut *tx.connection)
                    .await?;
                if done.rows_affected() == 0 {
                    return Ok(false);
                }
                if let Some(instance) = &f.instance {
                    tx.save_instance(instance).await?;
                }
                tx.progress(&claimed, &f.progress, now).await?;
                if let Some(bid) = &claimed.operation.bid {
                    match f.binding {
                        Some((state, false)) if state.is_over() => {
                            tx.end_binding(bid, state, f.look_again.at(), now).await?;
                        }
                        Some((state, residue)) => tx.set_binding_state(bid, state, residue, now).await?,
                        None if f.look_again == LookAgain::AsBefore => {}
                        None => tx.set_look_again(bid, f.look_again.at()).await?,
                    }
                }
                if f.bindings_gone {
                    tx.audit_all_ended(&claimed, now).await?;
                    tx.bindings_gone(&claimed.instance.iid, f.look_again.at(), now)
                        .await?;
                }
                if !matches!(claimed.operation.kind, OperationKind::Provision | OperationKind::Update) {
                    tx.audit_end(&claimed.operation.id, f.state.as_str(), now).await?;
                }
                tx.event(&claimed.operation.id, now, &f.step, "finished", &f.description)
                    .await?;
                Ok(true)
            })
        })
        .await
    }

    /// Gives leases of a worker back at once, at shutdown.
    pub async fn release_all(&self, owner: &str) -> Result<u64, Fail> {
        let owner = owner.to_owned();
        self.write(move |tx| {
            let owner = owner.clone();
            Box::pin(async move {
                tx.wrote = true;
                let done = sqlx::query(
                    "UPDATE operations SET lease_until = 0, attempt = attempt + 1 WHERE owner = $1 AND state = 'open' AND lease_until > 0",
                )
                .bind(owner)
                .execute(&mut *tx.connection)
                .await?;
                Ok(done.rows_affected())
            })
        })
        .await
    }

    /// One indexed read, on any replica, and no outside call: the operation named, else the latest (L-07, L-13).
    ///
    /// What we do by ourselves is not the platform's: what it was told last stays what it is told (L-06, K-08). A rotation
    /// in place is told of when it is named.
    pub async fn last_operation(
        &self,
        subject: &str,
        operation: Option<&str>,
    ) -> Result<Option<LastOperation>, Fail> {
        let mut connection = self.reader().await?;
        let row = sqlx::query(
            "SELECT state, description, instance_usable, update_repeatable, kind FROM operations \
             WHERE subject = $1 AND kind NOT IN ('revoke', 'retire', 'settle', 'credentials') AND (kind <> 'rotate' OR id = $2) ORDER BY CASE WHEN id = $2 THEN 0 ELSE 1 END, seq DESC LIMIT 1",
        )
        .bind(subject)
        .bind(operation.unwrap_or_default())
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let state: String = row.try_get(0)?;
        let kind: String = row.try_get(4)?;
        let state = OperationState::parse(&state)
            .ok_or_else(|| sqlx::Error::Decode(format!("operation state {state}").into()))?;
        let flag = |column: usize| -> Result<Option<bool>, sqlx::Error> {
            Ok(row.try_get::<Option<i64>, _>(column)?.map(|n| n != 0))
        };
        Ok(Some(LastOperation {
            state,
            description: row.try_get(1)?,
            instance_usable: flag(2)?,
            update_repeatable: flag(3)?,
            deleted: state == OperationState::Succeeded
                && matches!(
                    OperationKind::parse(&kind),
                    Some(OperationKind::Deprovision | OperationKind::Unbind)
                ),
            retry_after: 1,
        }))
    }

    /// An operation with its history.
    pub async fn operation(&self, id: &str) -> Result<Option<(OperationRow, Vec<OperationEvent>)>, Fail> {
        let mut connection = self.reader().await?;
        let sql = format!("SELECT {OPERATION} FROM operations WHERE id = $1");
        let Some(row) = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(&mut *connection)
            .await?
        else {
            return Ok(None);
        };
        let events = sqlx::query(
            "SELECT seq, at, step, outcome, message FROM operation_events WHERE operation = $1 ORDER BY seq",
        )
        .bind(id)
        .fetch_all(&mut *connection)
        .await?;
        let events = events
            .iter()
            .map(|e| {
                Ok(OperationEvent {
                    seq: e.try_get(0)?,
                    at: e.try_get(1)?,
                    step: e.try_get(2)?,
                    outcome: e.try_get(3)?,
                    message: e.try_get(4)?,
                })
            })
            .collect::<Result<_, sqlx::Error>>()?;
        Ok(Some((rows::operation(&row)?, events)))
    }

    /// The newest operations, open ones first; `state` narrows it.
    pub async fn operations_list(
        &self,
        state: Option<OperationState>,
        most: i64,
    ) -> Result<Vec<OperationRow>, Fail> {
        let mut connection = self.reader().await?;
        let sql = format!(
            "SELECT {OPERATION} FROM operations WHERE ($1 = '' OR state = $1) \
             ORDER BY CASE WHEN state = 'open' THEN 0 ELSE 1 END, created_at DESC, id LIMIT $2"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(state.map_or("", OperationState::as_str))
            .bind(most)
            .fetch_all(&mut *connection)
            .await?;
        Ok(rows.iter().map(rows::operation).collect::<Result<_, _>>()?)
    }

    /// How many operations are open, and when the next of them is due.
    pub async fn open_operations(&self) -> Result<(i64, Option<Millis>), Fail> {
        let mut connection = self.reader().await?;
        let row = sqlx::query("SELECT COUNT(*), MIN(due_at) FROM operations WHERE state = 'open'")
            .fetch_one(&mut *connection)
            .await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }

    /// Makes an open operation due now, whatever back-off or lease holds it. False when it is not open.
    pub async fn operation_retry(&self, id: &str, now: Millis) -> Result<bool, Fail> {
        let id = id.to_owned();
        self.write(move |tx| {
            let id = id.clone();
            Box::pin(async move {
                tx.wrote = true;
                let done = sqlx::query(
                    "UPDATE operations SET due_at = $2, tries = 0, failures = 0, lease_until = 0, owner = NULL, attempt = attempt + 1 \
                     WHERE id = $1 AND state = 'open'",
                )
                .bind(&id)
                .bind(now)
                .execute(&mut *tx.connection)
                .await?;
                Ok(done.rows_affected() == 1)
            })
        })
        .await
    }

    /// Makes the open operation of an instance due now, when it only waits for what is outside. False when there is none.
    pub async fn operation_hasten(&self, iid: &str, now: Millis) -> Result<bool, Fail> {
        let iid = iid.to_owned();
        self.write(move |tx| {
            let iid = iid.clone();
            Box::pin(async move {
                tx.wrote = true;
                let done = sqlx::query(
                    "UPDATE operations SET due_at = $2, owner = CASE WHEN lease_until = 0 THEN NULL ELSE owner END \
                     WHERE iid = $1 AND bid IS NULL AND state = 'open' AND due_at > $2 AND step IN ('ready', 'remove', 'forget')",
                )
                .bind(&iid)
                .bind(now)
                .execute(&mut *tx.connection)
                .await?;
                Ok(done.rows_affected() > 0)
            })
        })
        .await
    }

    /// Makes an open operation end as failed at its next step, by moving its deadline to now. False when it is not open.
    pub async fn operation_cancel(&self, id: &str, why: &str, now: Millis) -> Result<bool, Fail> {
        let (id, why) = (id.to_owned(), why.to_owned());
        self.write(move |tx| {
            let (id, why) = (id.clone(), why.clone());
            Box::pin(async move {
                tx.wrote = true;
                let done = sqlx::query(
                    "UPDATE operations SET due_at = $2, deadline_at = $2, description = $3, lease_until = 0, \
                     attempt = attempt + 1 WHERE id = $1 AND state = 'open' AND failing IS NULL",
                )
                .bind(&id)
                .bind(now)
                .bind(&why)
                .execute(&mut *tx.connection)
                .await?;
                Ok(done.rows_affected() == 1)
            })
        })
        .await
    }

    /// Lets every lease run out now: for who knows that no other worker lives. One that does all the same cannot record
    /// once its operation is claimed again.
    pub async fn expire_leases(&self) -> Result<(), Fail> {
        self.write(move |tx| {
            Box::pin(async move {
                tx.wrote = true;
                sqlx::query("UPDATE operations SET lease_until = 0 WHERE state = 'open'")
                    .execute(&mut *tx.connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }
}
