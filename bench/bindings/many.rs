//! Thousands of live bindings of one instance, made past the broker: rows, secrets, users, clients.
//!
//! What must stay true: rows, secrets and users are all really there. Clients are the one exception, because Keycloak takes
//! its time to make one: [`Many::real`] of them are, and a page of the list behind those is read from Keycloak once more
//! from the beginning and handed on with other bindings' names in it. So Keycloak does the work of every page.

use crate::bare::{self, Bare, reference};
use crate::broker::database;
use crate::place::Place;
use crate::proxy::{Changed, Rewrite};
use crate::rows::guid;
use anyhow::{Context, Result, bail};
use chandler::domain::names::{CLIENT_PREFIX, LEN, backend_user};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Clients made side by side; more do not make Keycloak faster.
const CLIENTS_AT_ONCE: usize = 4;
/// Secrets written side by side.
const SECRETS_AT_ONCE: usize = 16;
/// Roles made by one statement.
const ROLES_AT_ONCE: usize = 500;

/// All of them. Number 0 is a binding that the broker made, the pattern for the others' rows.
pub struct Many {
    /// The broker's names, by number.
    bids: Vec<String>,
    numbers: HashMap<String, usize>,
    /// Clients that are really there.
    pub real: u64,
    /// How many bindings there are now.
    there: AtomicU64,
}

impl Many {
    /// Names for `total` bindings; nothing is made yet.
    pub fn plan(total: u64, real: u64) -> Result<Arc<Self>> {
        if real == 0 || !real.is_multiple_of(100) || !total.is_multiple_of(real) {
            bail!(
                "{total} bindings with {real} clients: the clients must be whole hundreds, the bindings a multiple of them"
            );
        }
        let bids: Vec<String> = (0..total).map(|n| reference(&guid(n)).bid).collect();
        let numbers = bids.iter().enumerate().map(|(n, bid)| (bid.clone(), n)).collect();
        Ok(Arc::new(Self {
            bids,
            numbers,
            real,
            there: AtomicU64::new(1),
        }))
    }

    /// What the proxy does with requests for a list of clients.
    pub fn rewrite(self: &Arc<Self>) -> Rewrite {
        let many = self.clone();
        Arc::new(move |path| {
            if !path.contains("/clients?") || !path.contains("search=true") {
                return None;
            }
            let (before, rest) = path.split_once("&first=")?;
            let (first, after) = rest.split_once('&')?;
            let first: u64 = first.parse().ok()?;
            let (copy, there) = (first / many.real, many.there.load(Ordering::Relaxed));
            if copy == 0 {
                return None;
            }
            let many = many.clone();
            Some(Changed {
                path: format!("{before}&first={}&{after}", first % many.real),
                body: Box::new(move |body| {
                    if first >= there {
                        b"[]".to_vec()
                    } else {
                        many.renamed(body, copy)
                    }
                }),
            })
        })
    }

    /// The same list with every client's name replaced by that of its `copy`th copy.
    fn renamed(&self, mut body: Vec<u8>, copy: u64) -> Vec<u8> {
        let prefix = CLIENT_PREFIX.as_bytes();
        let mut at = 0;
        while let Some(found) = body[at..].windows(prefix.len()).position(|part| part == prefix) {
            let from = at + found + prefix.len();
            at = from;
            let Some(name) = body.get(from..from + LEN) else {
                break;
            };
            let number = std::str::from_utf8(name)
                .ok()
                .and_then(|bid| self.numbers.get(bid));
            let other = number.and_then(|n| self.bids.get(n + usize::try_from(copy * self.real).ok()?));
            if let Some(other) = other {
                body[from..from + LEN].copy_from_slice(other.as_bytes());
            }
        }
        body
    }

    /// Makes those with these numbers; 0 is there already.
    pub fn make(&self, place: &Place, bare: &mut Bare, numbers: Range<u64>) -> Result<()> {
        let (keycloak, vault) = bare.adapters();
        let runtime = &place.servers.runtime;
        runtime.block_on(async {
            let clients = numbers.clone().filter(|n| *n < self.real);
            futures::stream::iter(clients)
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
            self.rows(place, numbers.clone()).await.context("rows")
        })?;
        self.there.store(numbers.end, Ordering::Relaxed);
        Ok(())
    }

    fn some(&self, numbers: Range<u64>) -> Result<&[String]> {
        let range = usize::try_from(numbers.start)?..usize::try_from(numbers.end)?;
        self.bids.get(range).context("more than were planned")
    }

    /// Roles like the first binding's, without a password: nobody logs in with them.
    async fn users(&self, bare: &mut Bare, numbers: Range<u64>) -> Result<()> {
        let pattern = backend_user(self.bids.first().context("none")?);
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
            .bind(self.bids.first())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        connection.close().await?;
        Ok(())
    }
}
