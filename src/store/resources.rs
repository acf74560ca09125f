//! Instances and bindings: what commands read and write, in as few statements as they need
//! (each costs a hop to the database's thread, which is most of what accepting a request costs).

use super::Store;
use super::rows::{self, BINDING, BINDING_COLUMNS, INSTANCE, INSTANCE_COLUMNS, to_json};
use super::write::{Fail, Tx};
use crate::domain::binding::{Binding, BindingState};
use crate::domain::decide::{BindingNow, InstanceNow, OpenOperation};
use crate::domain::instance::{Instance, InstanceState, Millis};
use crate::domain::operation::OperationKind;
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

fn now_row(row: &AnyRow) -> Result<InstanceNow, sqlx::Error> {
    let c = INSTANCE_COLUMNS;
    Ok(InstanceNow {
        instance: rows::instance(row)?,
        open: open_operation(row, c)?,
        open_on_bindings: row.try_get(c + 3)?,
        bindings: row.try_get(c + 4)?,
    })
}

fn open_operation(row: &AnyRow, at: usize) -> Result<Option<OpenOperation>, sqlx::Error> {
    let Some(id) = row.try_get::<Option<String>, _>(at)? else {
        return Ok(None);
    };
    let kind: String = row.try_get(at + 1)?;
    let target: Option<String> = row.try_get(at + 2)?;
    Ok(Some(OpenOperation {
        id,
        kind: OperationKind::parse(&kind)
            .ok_or_else(|| sqlx::Error::Decode(format!("operation kind {kind}").into()))?,
        target: target
            .map(|t| serde_json::from_str(&t).map_err(|e| sqlx::Error::Decode(e.into())))
            .transpose()?,
    }))
}

fn instance_now_sql() -> String {
    format!(
        "SELECT {INSTANCE}, o.id, o.kind, o.target, \
         (SELECT COUNT(*) FROM operations p WHERE p.iid = i.iid AND p.state = 'open' AND p.bid IS NOT NULL \
         AND p.kind NOT IN ('retire', 'settle')), \
         (SELECT COUNT(*) FROM bindings b WHERE b.iid = i.iid AND b.state NOT IN ('gone', 'failed', 'expired')) \
         FROM instances i LEFT JOIN operations o ON o.subject = i.iid AND o.state = 'open' \
         WHERE i.iid = $1"
    )
}

fn binding_now_sql() -> String {
    format!(
        "SELECT {BINDING}, o.id, o.kind, o.target \
         FROM bindings b LEFT JOIN operations o ON o.subject = b.bid AND o.state = 'open' WHERE b.bid = $1"
    )
}

fn binding_now_row(row: &AnyRow) -> Result<BindingNow, sqlx::Error> {
    Ok(BindingNow {
        binding: rows::binding(row)?,
        open: open_operation(row, BINDING_COLUMNS)?,
    })
}

impl Tx {
    /// The instance, locked against other deciders until this transaction ends.
    pub async fn instance_now(&mut self, iid: &str) -> Result<Option<InstanceNow>, Fail> {
        // A statement of its own: one that locked and read at once would, after waiting for the lock, see the
        // instance as it is now and the operations as they were when it began to wait.
        self.lock_instance(iid).await?;
        let sql = instance_now_sql();
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(iid)
            .fetch_optional(&mut *self.connection)
            .await?;
        Ok(row.as_ref().map(now_row).transpose()?)
    }

    /// The instance row, not locked.
    pub async fn instance_peek(&mut self, iid: &str) -> Result<Option<Instance>, Fail> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "SELECT {INSTANCE} FROM instances i WHERE i.iid = $1"
        )))
        .bind(iid)
        .fetch_optional(&mut *self.connection)
        .await?;
        Ok(row.as_ref().map(rows::instance).transpose()?)
    }

    /// Inserts a new instance; false when its iid is taken.
    pub async fn insert_instance(&mut self, i: &Instance) -> Result<bool, Fail> {
        let wrote_before = self.wrote;
        self.wrote = true;
        let done = sqlx::query(
            "INSERT INTO instances (iid, platform, instance_id, attributes, state, usable, context, maintenance_version, \
             dashboard_url, facts, endpoints, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (iid) DO NOTHING",
        )
        .bind(&i.iid)
        .bind(&i.platform)
        .bind(to_json(&i.instance_id)?)
        .bind(to_json(&i.attributes)?)
        .bind(i.state.as_str())
        .bind(i64::from(i.usable))
        .bind(i.context.as_ref().map(to_json).transpose()?)
        .bind(i.maintenance_version.as_deref())
        .bind(i.dashboard_url.as_deref())
        .bind(to_json(&i.facts)?)
        .bind(to_json(&i.endpoints)?)
        .bind(i.created_at)
        .bind(i.updated_at)
        .execute(&mut *self.connection)
        .await?;
        let inserted = done.rows_affected() == 1;
        self.wrote = wrote_before || inserted;
        Ok(inserted)
    }

    /// Writes every changeable column of an instance.
    pub async fn save_instance(&mut self, i: &Instance) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query(
            "UPDATE instances SET attributes = $2, state = $3, usable = $4, context = $5, maintenance_version = $6, \
             dashboard_url = $7, facts = $8, endpoints = $9, created_at = $10, updated_at = $11, retained_until = $12 WHERE iid = $1",
        )
        .bind(&i.iid)
        .bind(to_json(&i.attributes)?)
        .bind(i.state.as_str())
        .bind(i64::from(i.usable))
        .bind(i.context.as_ref().map(to_json).transpose()?)
        .bind(i.maintenance_version.as_deref())
        .bind(i.dashboard_url.as_deref())
        .bind(to_json(&i.facts)?)
        .bind(to_json(&i.endpoints)?)
        .bind(i.created_at)
        .bind(i.updated_at)
        .bind(i.retained_until)
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Moves an instance to another state.
    pub async fn set_instance_state(
        &mut self,
        iid: &str,
        state: InstanceState,
        now: Millis,
    ) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query("UPDATE instances SET state = $2, updated_at = $3 WHERE iid = $1")
            .bind(iid)
            .bind(state.as_str())
            .bind(now)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// The binding with its open operation. Decide on it only after locking its instance.
    pub async fn binding_now(&mut self, bid: &str) -> Result<Option<BindingNow>, Fail> {
        let row = sqlx::query(AssertSqlSafe(binding_now_sql()))
            .bind(bid)
            .fetch_optional(&mut *self.connection)
            .await?;
        Ok(row.as_ref().map(binding_now_row).transpose()?)
    }

    /// Writes a binding, new or not.
    pub async fn save_binding(&mut self, b: &Binding) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query(
            "INSERT INTO bindings (bid, iid, platform, binding_id, attributes, requested, state, handle, residue, \
             expires_at, renew_before, created_at, updated_at, delivery, generation, rotations, service_account, secret_namespace) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
             ON CONFLICT (bid) DO UPDATE SET attributes = excluded.attributes, requested = excluded.requested, \
             state = excluded.state, handle = excluded.handle, residue = excluded.residue, \
             expires_at = excluded.expires_at, renew_before = excluded.renew_before, \
             created_at = excluded.created_at, updated_at = excluded.updated_at, delivery = excluded.delivery, \
             generation = excluded.generation, rotations = excluded.rotations, \
             service_account = excluded.service_account, secret_namespace = excluded.secret_namespace, \
             look_again_at = NULL",
        )
        .bind(&b.bid)
        .bind(&b.iid)
        .bind(&b.platform)
        .bind(to_json(&b.binding_id)?)
        .bind(to_json(&b.attributes)?)
        .bind(to_json(&b.requested)?)
        .bind(b.state.as_str())
        .bind(&b.handle)
        .bind(i64::from(b.residue))
        .bind(b.expires_at)
        .bind(b.renew_before)
        .bind(b.created_at)
        .bind(b.updated_at)
        .bind(b.delivery.as_str())
        .bind(i64::from(b.generation))
        .bind(i64::from(b.rotations))
        .bind(b.service_account.as_deref())
        .bind(b.secret_namespace.as_deref())
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Moves a binding to another state; the first move to `deleting` dates its revocation.
    pub async fn set_binding_state(
        &mut self,
        bid: &str,
        state: BindingState,
        residue: bool,
        now: Millis,
    ) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query("UPDATE bindings SET state = $2, residue = $3, updated_at = $4 WHERE bid = $1")
            .bind(bid)
            .bind(state.as_str())
            .bind(i64::from(residue))
            .bind(now)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// Moves a binding to where nothing of it lets anybody in any more; `look_again` = when to make sure of that.
    pub(super) async fn end_binding(
        &mut self,
        bid: &str,
        state: BindingState,
        look_again: Option<Millis>,
        now: Millis,
    ) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query(
            "UPDATE bindings SET state = $2, residue = 0, updated_at = $3, look_again_at = $4, service_account = NULL \
             WHERE bid = $1",
        )
        .bind(bid)
        .bind(state.as_str())
        .bind(now)
        .bind(look_again)
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// When the sweep is to look at a binding again; none = there is no need any more.
    pub async fn set_look_again(&mut self, bid: &str, at: Option<Millis>) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query("UPDATE bindings SET look_again_at = $2 WHERE bid = $1")
            .bind(bid)
            .bind(at)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// Whether another binding that has not ended has this service account for its identity.
    pub async fn service_account_taken(&mut self, account: &str, bid: &str) -> Result<bool, Fail> {
        let row = sqlx::query("SELECT 1 FROM bindings WHERE service_account = $1 AND bid <> $2")
            .bind(account)
            .bind(bid)
            .fetch_optional(&mut *self.connection)
            .await?;
        Ok(row.is_some())
    }

    /// Bindings of a platform that has them under this id, on whichever instance, and that are not gone.
    pub async fn bindings_named(&mut self, platform: &str, binding_id: &str) -> Result<Vec<Binding>, Fail> {
        let sql = format!(
            "SELECT {BINDING} FROM bindings b WHERE b.platform = $1 AND b.binding_id = $2 AND b.state <> 'gone' ORDER BY b.bid LIMIT 2"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(platform)
            .bind(to_json(binding_id)?)
            .fetch_all(&mut *self.connection)
            .await?;
        Ok(rows.iter().map(rows::binding).collect::<Result<_, _>>()?)
    }

    /// With its instance gone, every binding of it is gone; should its data come back, nobody is to be let in again.
    ///
    /// `look_again` = when to make sure that nothing of them came back outside.
    pub async fn bindings_gone(
        &mut self,
        iid: &str,
        look_again: Option<Millis>,
        now: Millis,
    ) -> Result<(), Fail> {
        self.wrote = true;
        if look_again.is_some() {
            sqlx::query(
                "UPDATE bindings SET look_again_at = $2 WHERE iid = $1 AND state <> 'gone' AND handle <> ''",
            )
            .bind(iid)
            .bind(look_again)
            .execute(&mut *self.connection)
            .await?;
        }
        for sql in [
            "UPDATE bindings SET state = 'gone', residue = 0, updated_at = $2, revoked_at = COALESCE(revoked_at, $2), \
             service_account = NULL WHERE iid = $1 AND state <> 'gone'",
            "UPDATE binding_users SET state = 'revoked', due_at = NULL, revoked_at = COALESCE(revoked_at, $2) WHERE iid = $1",
        ] {
            sqlx::query(sql)
                .bind(iid)
                .bind(now)
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(())
    }

    /// Records the ids a catalog serves; refuses when a name's id changed while instances of it exist.
    pub async fn remember_catalog_ids(&mut self, ids: &[(String, String, String)]) -> Result<(), Fail> {
        self.wrote = true;
        for (id, kind, name) in ids {
            sqlx::query(
                "INSERT INTO catalog_ids (id, kind, name) VALUES ($1, $2, $3) \
                 ON CONFLICT (id) DO UPDATE SET name = excluded.name",
            )
            .bind(id)
            .bind(kind)
            .bind(name)
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(())
    }
}

impl Store {
    /// The instance as it is now.
    pub async fn instance(&self, iid: &str) -> Result<Option<InstanceNow>, Fail> {
        let mut connection = self.reader().await?;
        let row = sqlx::query(AssertSqlSafe(instance_now_sql()))
            .bind(iid)
            .fetch_optional(&mut *connection)
            .await?;
        Ok(row.as_ref().map(now_row).transpose()?)
    }

    /// The binding as it is now.
    pub async fn binding(&self, bid: &str) -> Result<Option<BindingNow>, Fail> {
        let mut connection = self.reader().await?;
        let row = sqlx::query(AssertSqlSafe(binding_now_sql()))
            .bind(bid)
            .fetch_optional(&mut *connection)
            .await?;
        Ok(row.as_ref().map(binding_now_row).transpose()?)
    }

    /// A page of instances whose iid comes after `after`, in that order; `state` narrows it.
    pub async fn instances_page(
        &self,
        after: &str,
        state: Option<InstanceState>,
        most: i64,
    ) -> Result<Vec<Instance>, Fail> {
        let mut connection = self.reader().await?;
        // One of our own words, written out: only so can the partial index on ready ones be used, which the sweep
        // looks through every few seconds.
        let narrowed = state.map_or_else(String::new, |state| {
            format!(" AND i.state = '{}'", state.as_str())
        });
        let sql =
            format!("SELECT {INSTANCE} FROM instances i WHERE i.iid > $1{narrowed} ORDER BY i.iid LIMIT $2");
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(after)
            .bind(most)
            .fetch_all(&mut *connection)
            .await?;
        Ok(rows.iter().map(rows::instance).collect::<Result<_, _>>()?)
    }

    /// Bindings of an instance.
    pub async fn bindings_of(&self, iid: &str) -> Result<Vec<Binding>, Fail> {
        let mut connection = self.reader().await?;
        let sql = format!("SELECT {BINDING} FROM bindings b WHERE b.iid = $1 ORDER BY b.bid");
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(iid)
            .fetch_all(&mut *connection)
            .await?;
        Ok(rows.iter().map(rows::binding).collect::<Result<_, _>>()?)
    }

    /// Valid bindings whose time is over, oldest first.
    pub async fn expired_bindings(&self, now: Millis, most: i64) -> Result<Vec<Binding>, Fail> {
        self.bindings_where(
            "b.state = 'ready' AND b.expires_at <= $1 ORDER BY b.expires_at",
            now,
            most,
        )
        .await
    }

    /// Bindings of which something may be left on the backend, not touched since `before`.
    pub async fn residual_bindings(&self, before: Millis, most: i64) -> Result<Vec<Binding>, Fail> {
        self.bindings_where(
            "b.residue = 1 AND b.updated_at <= $1 AND NOT EXISTS \
             (SELECT 1 FROM operations o WHERE o.subject = b.bid AND o.state = 'open') ORDER BY b.updated_at",
            before,
            most,
        )
        .await
    }

    /// Bindings that ended after `since`, the latest first, and on which nothing is at work.
    pub async fn ended_bindings(&self, since: Millis, most: i64) -> Result<Vec<Binding>, Fail> {
        self.bindings_where(
            "b.state IN ('gone', 'failed', 'expired') AND b.handle <> '' AND b.updated_at > $1 AND NOT EXISTS \
             (SELECT 1 FROM operations o WHERE o.subject = b.bid AND o.state = 'open') ORDER BY b.updated_at DESC",
            since,
            most,
        )
        .await
    }

    /// Bindings that are to be looked at again by now, and on which nothing is at work.
    pub async fn bindings_to_look_at(&self, now: Millis, most: i64) -> Result<Vec<Binding>, Fail> {
        self.bindings_where(
            "b.look_again_at <= $1 AND NOT EXISTS \
             (SELECT 1 FROM operations o WHERE o.subject = b.bid AND o.state = 'open') ORDER BY b.look_again_at",
            now,
            most,
        )
        .await
    }

    /// Valid bindings with a user that somebody has to look after by now, and on which nothing is at work.
    pub async fn bindings_with_users_due(&self, now: Millis, most: i64) -> Result<Vec<Binding>, Fail> {
        self.bindings_where(
            "b.bid IN (SELECT u.bid FROM binding_users u WHERE u.due_at <= $1) AND b.state = 'ready' AND NOT EXISTS \
             (SELECT 1 FROM operations o WHERE o.subject = b.bid AND o.state = 'open') ORDER BY b.bid",
            now,
            most,
        )
        .await
    }

    async fn bindings_where(&self, condition: &str, at: Millis, most: i64) -> Result<Vec<Binding>, Fail> {
        let mut connection = self.reader().await?;
        let sql = format!("SELECT {BINDING} FROM bindings b WHERE {condition} LIMIT $2");
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(at)
            .bind(most)
            .fetch_all(&mut *connection)
            .await?;
        Ok(rows.iter().map(rows::binding).collect::<Result<_, _>>()?)
    }

    /// Deleted instances whose volumes were to be kept until `now` at most.
    pub async fn retained_until(&self, now: Millis, most: i64) -> Result<Vec<Instance>, Fail> {
        let mut connection = self.reader().await?;
        let sql = format!(
            "SELECT {INSTANCE} FROM instances i WHERE i.retained_until <= $1 ORDER BY i.retained_until LIMIT $2"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(now)
            .bind(most)
            .fetch_all(&mut *connection)
            .await?;
        Ok(rows.iter().map(rows::instance).collect::<Result<_, _>>()?)
    }

    /// Removes up to `most` instance tombstones older than `before`, with everything that hung on them.
    ///
    /// Rows of revoked bindings stay as long as their instance lives: mechanisms that state the whole list of
    /// revocations need them. Returns how many instances went.
    pub async fn purge_instances(&self, before: Millis, most: i64) -> Result<usize, Fail> {
        self.write(move |tx| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "SELECT iid FROM instances WHERE state = 'gone' AND retained_until IS NULL AND updated_at <= $1 ORDER BY updated_at LIMIT $2",
                )
                .bind(before)
                .bind(most)
                .fetch_all(&mut *tx.connection)
                .await?;
                for row in &rows {
                    let iid: String = row.try_get(0)?;
                    tx.wrote = true;
                    for sql in [
                        "DELETE FROM operation_events WHERE operation IN (SELECT id FROM operations WHERE iid = $1)",
                        "DELETE FROM operations WHERE iid = $1",
                        "DELETE FROM binding_users WHERE iid = $1",
                        "DELETE FROM bindings WHERE iid = $1",
                        "DELETE FROM instances WHERE iid = $1",
                    ] {
                        sqlx::query(sql)
                            .bind(&iid)
                            .execute(&mut *tx.connection)
                            .await?;
                    }
                }
                Ok(rows.len())
            })
        })
        .await
    }

    /// Removes up to `most` operations that ended before `before`, except each subject's latest. Returns how many went.
    ///
    /// What the broker does by itself is no answer to a platform, so it does not stand for what came before it.
    pub async fn purge_operations(&self, before: Millis, most: i64) -> Result<usize, Fail> {
        self.write(move |tx| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "SELECT o.id FROM operations o WHERE o.finished_at <= $1 AND EXISTS \
                     (SELECT 1 FROM operations l WHERE l.subject = o.subject AND l.seq > o.seq AND \
                     (l.kind NOT IN ('revoke', 'rotate', 'retire', 'settle', 'credentials') OR o.kind IN ('revoke', 'rotate', 'retire', 'settle', 'credentials'))) LIMIT $2",
                )
                .bind(before)
                .bind(most)
                .fetch_all(&mut *tx.connection)
                .await?;
                for row in &rows {
                    let id: String = row.try_get(0)?;
                    tx.wrote = true;
                    for sql in [
                        "DELETE FROM operation_events WHERE operation = $1",
                        "DELETE FROM operations WHERE id = $1",
                    ] {
                        sqlx::query(sql).bind(&id).execute(&mut *tx.connection).await?;
                    }
                }
                Ok(rows.len())
            })
        })
        .await
    }

    /// Ids ever served: id, kind, name.
    pub async fn catalog_ids(&self) -> Result<Vec<(String, String, String)>, Fail> {
        let mut connection = self.reader().await?;
        let rows = sqlx::query("SELECT id, kind, name FROM catalog_ids ORDER BY id")
            .fetch_all(&mut *connection)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
            .collect()
    }
}
