//! Sealed secrets kept as rows of the store: the glue between two rooms that do not know each other.

use crate::adapters::sealed::Rows;
use crate::ports::{Clock, PortError, PortErrorKind, PortResult};
use crate::store::{Fail, Store};
use async_trait::async_trait;
use std::sync::Arc;

/// The `secrets` table.
pub struct SqlRows {
    store: Store,
    clock: Arc<dyn Clock>,
}

impl SqlRows {
    /// Rows of `store`, dated by `clock`.
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock }
    }
}

fn unavailable(fail: Fail) -> PortError {
    PortError::transient("The broker's database cannot be used at the moment.").with_detail(fail)
}

#[async_trait]
impl Rows for SqlRows {
    async fn insert_absent(&self, name: &str, sealed: &str) -> PortResult<String> {
        let now = self.clock.now();
        self.store
            .secret_insert(name, sealed, now)
            .await
            .map_err(|fail| match fail {
                Fail::Refused(error) => PortError::new(PortErrorKind::Gone, error.description),
                fail @ Fail::Db(_) => unavailable(fail),
            })
    }

    async fn get(&self, name: &str) -> PortResult<Option<String>> {
        self.store.secret_get(name).await.map_err(unavailable)
    }

    async fn delete(&self, name: &str) -> PortResult<()> {
        self.store.secret_delete(name).await.map_err(unavailable)
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<String>> {
        self.store.secret_list(prefix).await.map_err(unavailable)
    }

    async fn page(&self, after: &str, limit: u32) -> PortResult<Vec<(String, String)>> {
        self.store
            .secret_page(after, i64::from(limit))
            .await
            .map_err(unavailable)
    }

    async fn replace(&self, name: &str, old: &str, new: &str) -> PortResult<bool> {
        let now = self.clock.now();
        self.store
            .secret_replace(name, old, new, now)
            .await
            .map_err(unavailable)
    }
}
