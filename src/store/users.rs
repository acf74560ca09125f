//! Users of a binding beside its present one: the one being rotated in, former ones, revoked ones.
//!
//! What must stay true: a user is written down before a server hears of it, and a revoked one stays written down as
//! long as its instance lives: mechanisms that state the whole list of revocations need it. A row goes when its name is
//! the present user's again.

use super::Store;
use super::rows;
use super::write::{Fail, Tx};
use crate::domain::binding::{Binding, OtherUser};
use crate::domain::instance::Millis;
use sqlx::Row;

/// What a step of a rotation writes down about the binding's users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserChange {
    /// This one is about to be made.
    Next {
        /// What the backend will know it by.
        handle: String,
        /// Of which generation its credentials are.
        generation: u32,
    },
    /// Applications may read its credentials from here on.
    Shown,
    /// It is the present one; the one before is let in until then.
    Adopted {
        /// What the backend knows it by.
        handle: String,
        /// Of which generation its credentials are.
        generation: u32,
        /// When the former one is to be taken away.
        former_until: Millis,
    },
    /// It is not to be let in.
    Refused,
    /// Nothing of it lets anybody in any more.
    Discarded,
    /// Former ones whose revocation was begun let nobody in any more.
    Retired,
}

impl Tx {
    /// Dates a binding's revocation, from when on no list of valid users may hold any of its users.
    pub async fn mark_revoked(&mut self, binding: &Binding, now: Millis) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query("UPDATE bindings SET revoked_at = $2 WHERE bid = $1 AND revoked_at IS NULL")
            .bind(&binding.bid)
            .bind(now)
            .execute(&mut *self.connection)
            .await?;
        if binding.rotations > 0 {
            sqlx::query(
                "UPDATE binding_users SET state = 'revoked', due_at = NULL, revoked_at = COALESCE(revoked_at, $2) WHERE bid = $1",
            )
            .bind(&binding.bid)
            .bind(now)
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(())
    }

    /// Makes the row of a reused id valid again; the user it had stays revoked.
    pub async fn reuse_binding(&mut self, bid: &str, now: Millis) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query(
            "INSERT INTO binding_users (bid, handle, iid, generation, state, shown, due_at, revoked_at) \
             SELECT bid, handle, iid, generation, 'revoked', 1, NULL, COALESCE(revoked_at, $2) FROM bindings \
             WHERE bid = $1 AND handle <> '' \
             ON CONFLICT (bid, handle) DO UPDATE SET state = 'revoked', due_at = NULL, revoked_at = excluded.revoked_at",
        )
        .bind(bid)
        .bind(now)
        .execute(&mut *self.connection)
        .await?;
        sqlx::query("UPDATE bindings SET revoked_at = NULL, handle = '' WHERE bid = $1")
            .bind(bid)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// Notes what the backend knows a binding by.
    pub(super) async fn set_binding_handle(&mut self, binding: &Binding, handle: &str) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query("UPDATE bindings SET handle = $2 WHERE bid = $1")
            .bind(&binding.bid)
            .bind(handle)
            .execute(&mut *self.connection)
            .await?;
        if binding.rotations > 0 {
            self.forget_user(&binding.bid, handle).await?;
        }
        Ok(())
    }

    async fn forget_user(&mut self, bid: &str, handle: &str) -> Result<(), Fail> {
        sqlx::query("DELETE FROM binding_users WHERE bid = $1 AND handle = $2")
            .bind(bid)
            .bind(handle)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// Counts a rotation that begins and lets no former user in any more.
    pub async fn begin_rotation(&mut self, bid: &str, now: Millis) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query("UPDATE bindings SET rotations = rotations + 1 WHERE bid = $1")
            .bind(bid)
            .execute(&mut *self.connection)
            .await?;
        self.refuse_users(bid, "former", now).await
    }

    /// Lets former users whose grace is over in no more. False when there are none.
    pub async fn retire_users(&mut self, bid: &str, now: Millis) -> Result<bool, Fail> {
        self.wrote = true;
        let done = sqlx::query(
            "UPDATE binding_users SET revoked_at = COALESCE(revoked_at, $2) WHERE bid = $1 AND state = 'former' AND due_at <= $2",
        )
        .bind(bid)
        .bind(now)
        .execute(&mut *self.connection)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Puts off when the sweep looks after users of a binding that are due.
    pub async fn rest_users(&mut self, bid: &str, now: Millis, until: Millis) -> Result<(), Fail> {
        self.wrote = true;
        sqlx::query("UPDATE binding_users SET due_at = $3 WHERE bid = $1 AND due_at <= $2")
            .bind(bid)
            .bind(now)
            .bind(until)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    async fn refuse_users(&mut self, bid: &str, state: &str, now: Millis) -> Result<(), Fail> {
        sqlx::query(
            "UPDATE binding_users SET revoked_at = $3 WHERE bid = $1 AND state = $2 AND revoked_at IS NULL",
        )
        .bind(bid)
        .bind(state)
        .bind(now)
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    async fn end_users(&mut self, bid: &str, state: &str) -> Result<(), Fail> {
        sqlx::query(
            "UPDATE binding_users SET state = 'revoked', due_at = NULL \
             WHERE bid = $1 AND state = $2 AND revoked_at IS NOT NULL",
        )
        .bind(bid)
        .bind(state)
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    pub(super) async fn change_user(
        &mut self,
        binding: &Binding,
        change: &UserChange,
        now: Millis,
    ) -> Result<(), Fail> {
        self.wrote = true;
        let bid = &binding.bid;
        match change {
            UserChange::Next { handle, generation } => {
                sqlx::query(
                    "INSERT INTO binding_users (bid, handle, iid, generation, state, shown, due_at, revoked_at) \
                     VALUES ($1, $2, $3, $4, 'next', 0, $5, NULL) ON CONFLICT (bid, handle) DO UPDATE SET \
                     shown = CASE WHEN binding_users.state = 'next' AND binding_users.generation = excluded.generation \
                     THEN binding_users.shown ELSE 0 END, \
                     generation = excluded.generation, state = 'next', due_at = excluded.due_at, revoked_at = NULL",
                )
                .bind(bid)
                .bind(handle)
                .bind(&binding.iid)
                .bind(i64::from(*generation))
                .bind(now)
                .execute(&mut *self.connection)
                .await?;
            }
            UserChange::Shown => {
                sqlx::query("UPDATE binding_users SET shown = 1 WHERE bid = $1 AND state = 'next'")
                    .bind(bid)
                    .execute(&mut *self.connection)
                    .await?;
            }
            UserChange::Adopted {
                handle,
                generation,
                former_until,
            } => {
                self.forget_user(bid, handle).await?;
                sqlx::query(
                    "INSERT INTO binding_users (bid, handle, iid, generation, state, shown, due_at, revoked_at) \
                     SELECT bid, handle, iid, generation, 'former', 1, CAST($2 AS BIGINT), NULL FROM bindings WHERE bid = $1 \
                     ON CONFLICT (bid, handle) DO UPDATE SET generation = excluded.generation, state = 'former', \
                     due_at = excluded.due_at, revoked_at = NULL",
                )
                .bind(bid)
                .bind(*former_until)
                .execute(&mut *self.connection)
                .await?;
                sqlx::query(
                    "UPDATE bindings SET handle = $2, generation = $3, updated_at = $4 WHERE bid = $1",
                )
                .bind(bid)
                .bind(handle)
                .bind(i64::from(*generation))
                .bind(now)
                .execute(&mut *self.connection)
                .await?;
            }
            UserChange::Refused => self.refuse_users(bid, "next", now).await?,
            UserChange::Discarded => self.end_users(bid, "next").await?,
            UserChange::Retired => self.end_users(bid, "former").await?,
        }
        Ok(())
    }
}

impl Store {
    /// Every user a binding has or had beside its present one.
    pub async fn other_users(&self, bid: &str) -> Result<Vec<OtherUser>, Fail> {
        let mut connection = self.reader().await?;
        let rows = sqlx::query(
            "SELECT handle, generation, state, shown, due_at, revoked_at FROM binding_users WHERE bid = $1 ORDER BY generation, handle",
        )
        .bind(bid)
        .fetch_all(&mut *connection)
        .await?;
        Ok(rows.iter().map(rows::other_user).collect::<Result<_, _>>()?)
    }

    /// Handles that must not be let in at an instance, with when that was asked for.
    pub async fn revoked_handles(&self, iid: &str) -> Result<Vec<(String, Millis)>, Fail> {
        let mut connection = self.reader().await?;
        let rows = sqlx::query(
            "SELECT handle, revoked_at FROM bindings WHERE iid = $1 AND revoked_at IS NOT NULL AND handle <> '' \
             UNION SELECT handle, revoked_at FROM binding_users WHERE iid = $1 AND revoked_at IS NOT NULL ORDER BY 1, 2",
        )
        .bind(iid)
        .fetch_all(&mut *connection)
        .await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect()
    }
}
