//! Thousands of live bindings of one instance, made past the broker: rows, secrets, users, clients, all really there.

use crate::bare::{self, Bare, reference};
use crate::broker::database;
use crate::place::Place;
use crate::rows::guid;
use anyhow::{Context, Result};
use chandler::domain::names::backend_user;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};
use std::ops::Range;

/// Clients made side by side; more do not make Keycloak faster.
const CLIENTS_AT_ONCE: usize = 4;
/// Secrets written side by side.
const SECRETS_AT_ONCE: usize = 16;
/// Roles made by one statement.
const ROLES_AT_ONCE: usize = 500;

/// All of them, by the broker's names. Number 0 is a binding that the broker made, the pattern for the others' rows.
pub struct Many(Vec<String>);

impl Many {
    /// Names for `total` bindings; nothing is made yet.
    pub fn plan(total: u64) -> Self {
        Self((0..total).map(|n| reference(&guid(n)).bid).collect())
    }

    /// Makes those with these numbers; 0 is there already.
    pub fn make(&self, place: &Place, bare: &mut Bare, numbers: Range<u64>) -> Result<()> {
        let (keycloak, vault) = bare.adapters();
        let runtime = &place.servers.runtime;
        runtime.block_on(async {
            futures::stream::iter(numbers.clone())
                .map(|n| {
                    let keycloak = keycloak.clone();
                    async move { bare::client(&keycloak, &reference(&guid(n))).await }
                })
                .buffer_unordered(CLIENTS_AT_ONCE)
                .try_collect::<()>()
                .await
                .context("clients")?;
            futures::stream::iter(numbers.clone())
                .map(|n| {
                    let vault = vault.clone();
                    async move { bare::secret(&vault, &reference(&guid(n))).await }
                })
                .buffer_unordered(SECRETS_AT_ONCE)
                .try_collect::<()>()
                .await
                .context("secrets")?;
            self.users(bare, numbers.clone()).await.context("users")?;
            self.rows(place, numbers).await.context("rows")
        })
    }

    fn some(&self, numbers: Range<u64>) -> Result<&[String]> {
        let range = usize::try_from(numbers.start)?..usize::try_from(numbers.end)?;
        self.0.get(range).context("more than were planned")
    }

    /// Roles like the first binding's, without a password: nobody logs in with them.
    async fn users(&self, bare: &mut Bare, numbers: Range<u64>) -> Result<()> {
        let pattern = backend_user(self.0.first().context("none")?);
        let group = sqlx::query(
            "SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid \
             JOIN pg_roles u ON u.oid = m.member WHERE u.rolname = $1",
        )
        .bind(pattern)
        .fetch_one(&mut bare.admin)
        .await?;
        let group: String = group.try_get(0)?;
        for some in self.some(numbers)?.chunks(ROLES_AT_ONCE) {
            let statements: Vec<String> = some
                .iter()
                .map(|bid| format!("CREATE ROLE {} LOGIN IN ROLE \"{group}\"", backend_user(bid)))
                .collect();
            bare.admin
                .execute(sqlx::raw_sql(AssertSqlSafe(statements.join(";"))))
                .await?;
        }
        Ok(())
    }

    /// Rows like the first binding's, in the broker's database, while no broker runs.
    async fn rows(&self, place: &Place, numbers: Range<u64>) -> Result<()> {
        let url = format!("sqlite://{}", database(&place.dir).display());
        let mut connection = url.parse::<SqliteConnectOptions>()?.connect().await?;
        let mut transaction = connection.begin().await?;
        for (n, bid) in numbers.clone().zip(self.some(numbers)?) {
            sqlx::query(
                "INSERT INTO bindings (bid, iid, platform, binding_id, attributes, requested, state, handle, residue, \
                 created_at, updated_at, delivery, generation, rotations) \
                 SELECT $1, iid, platform, $2, attributes, requested, state, $3, residue, \
                 created_at, updated_at, delivery, generation, rotations FROM bindings WHERE bid = $4",
            )
            .bind(bid)
            .bind(json!(guid(n)).to_string())
            .bind(backend_user(bid))
            .bind(self.0.first())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        connection.close().await?;
        Ok(())
    }
}
