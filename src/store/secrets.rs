//! Rows of sealed text. This module never sees a secret in clear: sealing is an adapter's work.

use super::Store;
use super::write::{Fail, Tx};
use crate::domain::error::Error;
use crate::domain::instance::Millis;
use sqlx::{AssertSqlSafe, Row};

/// Everything of an instance lies below its iid (`ports::secret_name`).
fn instance_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

impl Tx {
    async fn refuse_late_secret(&mut self, name: &str) -> Result<(), Fail> {
        // Locked, so that a DELETE accepted at the same moment comes before or after the whole of this write.
        self.lock_instance(instance_of(name)).await?;
        // A binding's secrets are made while it is made; those of a rotation while that is at work.
        let at_work = match name.split('/').nth(1) {
            Some("n") => {
                "state = 'ready' AND EXISTS (SELECT 1 FROM operations WHERE subject = $2 AND state = 'open' AND kind = 'rotate')"
            }
            _ => "state = 'creating'",
        };
        let sql = format!(
            "SELECT 1 FROM instances WHERE iid = $1 AND state IN ('deprovisioning', 'gone') \
             UNION ALL SELECT 1 FROM bindings WHERE bid = $2 AND NOT ({at_work})"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(instance_of(name))
            .bind(name.split('/').nth(2).unwrap_or_default())
            .fetch_optional(&mut *self.connection)
            .await?;
        match row {
            Some(_) => Err(Error::gone("What this secret was for is being deleted.").into()),
            None => Ok(()),
        }
    }
}

impl Store {
    /// Inserts unless the name is taken; returns what is stored afterwards.
    ///
    /// Refused once the instance is being deleted, or the binding is no longer being made: a worker that a DELETE overtook
    /// must not leave a secret behind after the last step of that DELETE has looked.
    pub async fn secret_insert(&self, name: &str, sealed: &str, now: Millis) -> Result<String, Fail> {
        let (name, sealed) = (name.to_owned(), sealed.to_owned());
        self.write(move |tx| {
            let (name, sealed) = (name.clone(), sealed.clone());
            Box::pin(async move {
                tx.refuse_late_secret(&name).await?;
                tx.wrote = true;
                sqlx::query("INSERT INTO secrets (name, iid, sealed, updated_at) VALUES ($1, $4, $2, $3) ON CONFLICT (name) DO NOTHING")
                    .bind(&name)
                    .bind(&sealed)
                    .bind(now)
                    .bind(instance_of(&name))
                    .execute(&mut *tx.connection)
                    .await?;
                let row = sqlx::query("SELECT sealed FROM secrets WHERE name = $1")
                    .bind(&name)
                    .fetch_one(&mut *tx.connection)
                    .await?;
                Ok(row.try_get(0)?)
            })
        })
        .await
    }

    /// The sealed text under a name.
    pub async fn secret_get(&self, name: &str) -> Result<Option<String>, Fail> {
        let mut connection = self.reader().await?;
        let row = sqlx::query("SELECT sealed FROM secrets WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *connection)
            .await?;
        Ok(row.map(|r| r.try_get(0)).transpose()?)
    }

    /// Deletes a row; an absent one is success.
    pub async fn secret_delete(&self, name: &str) -> Result<(), Fail> {
        let name = name.to_owned();
        self.write(move |tx| {
            let name = name.clone();
            Box::pin(async move {
                tx.wrote = true;
                sqlx::query("DELETE FROM secrets WHERE name = $1")
                    .bind(name)
                    .execute(&mut *tx.connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Names below an instance (`<iid>/`), or all of them for an empty prefix.
    pub async fn secret_list(&self, prefix: &str) -> Result<Vec<String>, Fail> {
        let mut connection = self.reader().await?;
        let rows = sqlx::query("SELECT name FROM secrets WHERE $1 = '' OR iid = $1 ORDER BY name")
            .bind(instance_of(prefix))
            .fetch_all(&mut *connection)
            .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// At most `most` rows of name and sealed text whose name comes after `after`, in that order.
    pub async fn secret_page(&self, after: &str, most: i64) -> Result<Vec<(String, String)>, Fail> {
        let mut connection = self.reader().await?;
        let rows = sqlx::query("SELECT name, sealed FROM secrets WHERE name > $1 ORDER BY name LIMIT $2")
            .bind(after)
            .bind(most)
            .fetch_all(&mut *connection)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect()
    }

    /// Replaces the sealed text if it is still `old`; false when somebody was faster.
    pub async fn secret_replace(&self, name: &str, old: &str, new: &str, now: Millis) -> Result<bool, Fail> {
        let (name, old, new) = (name.to_owned(), old.to_owned(), new.to_owned());
        self.write(move |tx| {
            let (name, old, new) = (name.clone(), old.clone(), new.clone());
            Box::pin(async move {
                tx.wrote = true;
                let done = sqlx::query(
                    "UPDATE secrets SET sealed = $3, updated_at = $4 WHERE name = $1 AND sealed = $2",
                )
                .bind(name)
                .bind(old)
                .bind(new)
                .bind(now)
                .execute(&mut *tx.connection)
                .await?;
                Ok(done.rows_affected() == 1)
            })
        })
        .await
    }
}
