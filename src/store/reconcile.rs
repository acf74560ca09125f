//! What a comparison with the world outside asks of the rows: many bindings in one statement.

use super::Store;
use super::rows::{self, BINDING, BINDING_COLUMNS};
use super::write::Fail;
use crate::domain::binding::Binding;
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

/// A binding, and whether an operation on it or on its instance is open.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownBinding {
    /// The row.
    pub binding: Binding,
    /// Something is at work on it.
    pub busy: bool,
}

const BUSY: &str =
    "(SELECT COUNT(*) FROM operations o WHERE o.subject IN (b.bid, b.iid) AND o.state = 'open')";

fn known(row: &AnyRow) -> Result<KnownBinding, sqlx::Error> {
    Ok(KnownBinding {
        binding: rows::binding(row)?,
        busy: row.try_get::<i64, _>(BINDING_COLUMNS)? > 0,
    })
}

impl Store {
    /// Those of these bindings that there are, in any order.
    pub async fn bindings_among(&self, bids: &[String]) -> Result<Vec<KnownBinding>, Fail> {
        if bids.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.reader().await?;
        let places: Vec<_> = (1..=bids.len()).map(|n| format!("${n}")).collect();
        let sql = format!(
            "SELECT {BINDING}, {BUSY} FROM bindings b WHERE b.bid IN ({})",
            places.join(", ")
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for bid in bids {
            query = query.bind(bid);
        }
        let rows = query.fetch_all(&mut *connection).await?;
        Ok(rows.iter().map(known).collect::<Result<_, _>>()?)
    }

    /// Users beside the present ones of these bindings: bid, name, and whether they are let in.
    pub async fn other_users_among(&self, bids: &[String]) -> Result<Vec<(String, String, bool)>, Fail> {
        if bids.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.reader().await?;
        let places: Vec<_> = (1..=bids.len()).map(|n| format!("${n}")).collect();
        let sql = format!(
            "SELECT bid, handle, revoked_at FROM binding_users WHERE bid IN ({})",
            places.join(", ")
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for bid in bids {
            query = query.bind(bid);
        }
        let rows = query.fetch_all(&mut *connection).await?;
        rows.iter()
            .map(|row| {
                let revoked: Option<i64> = row.try_get(2)?;
                Ok((row.try_get(0)?, row.try_get(1)?, revoked.is_none()))
            })
            .collect()
    }

    /// At most `most` valid bindings behind `after`, in the order of their bids; of one instance, or of all.
    pub async fn valid_bindings(
        &self,
        after: &str,
        iid: Option<&str>,
        most: i64,
    ) -> Result<Vec<KnownBinding>, Fail> {
        let mut connection = self.reader().await?;
        let of_instance = if iid.is_some() { " AND b.iid = $3" } else { "" };
        let sql = format!(
            "SELECT {BINDING}, {BUSY} FROM bindings b WHERE b.bid > $1 AND b.state = 'ready'{of_instance} ORDER BY b.bid LIMIT $2"
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(after).bind(most);
        if let Some(iid) = iid {
            query = query.bind(iid);
        }
        let rows = query.fetch_all(&mut *connection).await?;
        Ok(rows.iter().map(known).collect::<Result<_, _>>()?)
    }
}
