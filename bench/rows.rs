//! The rows an accepted request writes, made without a broker: to measure the store alone, and to fill one.

use anyhow::{Context, Result};
use chandler::domain::instance::{Instance, InstanceAttributes, InstanceState};
use chandler::domain::names;
use chandler::domain::operation::OperationKind;
use chandler::store::{NewOperation, Store, StoreOptions};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Instances written in one go when a store is filled.
const BATCH: u64 = 500;

/// Which offering and plan the instances are of, as the catalog has them.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Name of the offering.
    pub offering: String,
    /// Its id.
    pub service_id: String,
    /// Id of its smallest plan.
    pub plan_id: String,
}

impl Wanted {
    /// Looks an offering up in the body of GET /v2/catalog.
    pub fn of(catalog: &[u8], offering: &str) -> Result<Self> {
        let catalog: Value = serde_json::from_slice(catalog)?;
        let services = catalog["services"].as_array().context("services")?;
        let found = services
            .iter()
            .find(|s| s["name"] == offering)
            .with_context(|| format!("the catalog offers no {offering} on this machine"))?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("an id");
        Ok(Self {
            offering: offering.to_owned(),
            service_id: text(&found["id"])?,
            plan_id: text(&found["plans"][0]["id"])?,
        })
    }

    /// The body of PUT instance, as Cloud Foundry sends it.
    pub fn body(&self) -> String {
        json!({
            "service_id": self.service_id,
            "plan_id": self.plan_id,
            "organization_guid": ORGANIZATION,
            "space_guid": SPACE,
            "context": context(),
        })
        .to_string()
    }
}

const ORGANIZATION: &str = "6b1d3f0e-5f0b-4c7c-9a37-0b9b7f0c2a11";
const SPACE: &str = "0c2d7a5e-3b0f-4f8d-8d25-7f6f1f0d9b22";

fn context() -> Value {
    json!({
        "platform": "cloudfoundry",
        "organization_guid": ORGANIZATION,
        "organization_name": "system",
        "space_guid": SPACE,
        "space_name": "development",
        "instance_name": "my-database",
    })
}

/// The platform's id of the `n`th instance: a guid, like those platforms make.
pub fn guid(n: u64) -> String {
    format!("00000000-0000-4000-8000-{n:012x}")
}

/// The token of the `n`th instance's operation.
pub fn token(n: u64) -> String {
    format!("{n:032x}")
}

/// The rows the accept path writes for the `n`th instance.
pub fn rows(wanted: &Wanted, n: u64) -> (Instance, NewOperation) {
    let now = 1_700_000_000_000;
    let iid = names::iid("bench", &guid(n));
    let operation = NewOperation {
        id: token(n),
        kind: OperationKind::Provision,
        iid: iid.clone(),
        bid: None,
        offering: wanted.offering.clone(),
        target: None,
        step: "check",
        description: "Accepted.",
        now,
        deadline_at: now + 3_600_000,
        request_id: None,
    };
    let instance = Instance {
        iid,
        platform: "bench".into(),
        instance_id: guid(n),
        attributes: InstanceAttributes {
            service_id: wanted.service_id.clone(),
            plan_id: wanted.plan_id.clone(),
            organization_guid: ORGANIZATION.into(),
            space_guid: SPACE.into(),
            parameters: Map::new(),
        },
        state: InstanceState::Provisioning,
        usable: true,
        context: Some(context()),
        maintenance_version: Some("1.0.0".into()),
        dashboard_url: None,
        facts: Map::new(),
        endpoints: Vec::new(),
        created_at: now,
        updated_at: now,
        retained_until: None,
    };
    (instance, operation)
}

/// Opens a store as the broker does.
pub async fn open(database: &Path) -> Result<Store> {
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(database)?;
    let store = Store::open(&StoreOptions::new(format!("sqlite://{}", database.display()))).await?;
    store.migrate().await?;
    Ok(store)
}

/// Fills a store with `count` instances whose provision ended, in the state `state`.
pub fn fill(database: &Path, wanted: &Wanted, count: u64, state: InstanceState) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let store = open(database).await?;
        for first in (0..count).step_by(usize::try_from(BATCH)?) {
            let wanted = wanted.clone();
            let written = store.write(move |tx| {
                let batch: Vec<_> = (first..(first + BATCH).min(count))
                    .map(|n| rows(&wanted, n))
                    .collect();
                Box::pin(async move {
                    for (mut instance, operation) in batch {
                        instance.state = state;
                        tx.insert_instance(&instance).await?;
                        tx.insert_operation(&operation).await?;
                    }
                    Ok(())
                })
            });
            written.await.map_err(|fail| anyhow::anyhow!("{fail}"))?;
        }
        store.close().await;
        finish(database).await
    })
}

/// Ends every operation, with a few lines of history each, as the worker leaves them.
async fn finish(database: &Path) -> Result<()> {
    use sqlx::ConnectOptions as _;
    let url = format!("sqlite://{}", database.display());
    let mut connection = url.parse::<sqlx::any::AnyConnectOptions>()?.connect().await?;
    for statement in [
        "UPDATE operations SET state = 'succeeded', description = 'The instance is ready.', finished_at = created_at + 2000",
        "INSERT INTO operation_events (operation, seq, at, step, outcome, message) \
         SELECT id, 1, created_at, 'apply', 'done', '' FROM operations",
        "INSERT INTO operation_events (operation, seq, at, step, outcome, message) \
         SELECT id, 2, created_at, 'ready', 'done', 'The instance is ready.' FROM operations",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ] {
        sqlx::query(statement).execute(&mut connection).await?;
    }
    sqlx::Connection::close(connection).await?;
    Ok(())
}
