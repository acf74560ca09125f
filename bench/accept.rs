//! Accepting: durable asynchronous PUTs, against the store alone and against one commit per request.

use crate::broker::{Broker, Setup, database};
use crate::client::{self, Load};
use crate::report::{Limit, Report, median};
use crate::rows::{self, Wanted};
use anyhow::Result;
use chandler::store::Store;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Clients, and tasks in the loop over the store alone.
const CLIENTS: usize = 64;
/// Rounds; in each every contestant runs once.
const ROUNDS: usize = 9;
const WARM: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_millis(1500);

/// Measures and reports.
pub fn run(dir: &Path, report: &mut Report) -> Result<()> {
    let (grouped_dir, single_dir, alone_dir) = (dir.join("grouped"), dir.join("single"), dir.join("alone"));
    for made in [&grouped_dir, &single_dir, &alone_dir] {
        std::fs::create_dir(made)?;
    }
    let start = |dir: &Path, group_commit| {
        Broker::serve(
            dir,
            Setup {
                role: "http",
                group_commit,
            },
        )
    };
    let grouped = start(&grouped_dir, true)?;
    let single = start(&single_dir, false)?;
    let wanted = Wanted::of(&grouped.call("GET", "/v2/catalog", "")?.body, "postgres")?;
    let alone = Alone::new(&alone_dir, wanted.clone())?;

    let (mut through, mut one_each, mut store) = (Vec::new(), Vec::new(), Vec::new());
    let (mut of_store, mut of_single, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let before = grouped.process.cpu()?;
        let load = put(&grouped, &wanted, round)?;
        #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
        let answered = load.rate * (WARM + MEASURED).as_secs_f64();
        cpu.push((grouped.process.cpu()? - before) * 1e6 / answered);
        let rate_single = put(&single, &wanted, round)?.rate;
        let rate_store = alone.rate()?;
        of_store.push(load.rate / rate_store);
        of_single.push(load.rate / rate_single);
        p50.push(load.millis(0.5));
        p99.push(load.millis(0.99));
        through.push(load.rate);
        one_each.push(rate_single);
        store.push(rate_store);
    }
    let (through, store) = (median(&through), median(&store));
    report.add(
        "durable async PUT instance, of the store alone",
        format!("{through:.0}/s of {store:.0}/s; {:.0} µs CPU each", median(&cpu)),
        median(&of_store),
        "",
        Limit::AtLeast(0.5),
    );
    report.add(
        "durable async PUT instance, of one commit per request",
        format!("{through:.0}/s of {:.0}/s", median(&one_each)),
        median(&of_single),
        "",
        Limit::AtLeast(1.5),
    );
    let (p50, p99) = (median(&p50), median(&p99));
    report.add(
        "durable async PUT instance, p99 of median",
        format!("{p99:.1} ms of {p50:.1} ms, {CLIENTS} clients"),
        p99 / p50,
        "",
        Limit::AtMost(10.0),
    );
    let idle = rested(&grouped)?;
    report.add(
        "resident memory after these PUTs, idle again",
        "role http",
        idle,
        " MB",
        Limit::AtMost(80.0),
    );
    Ok(())
}

/// Resident memory once the load is over for a while.
pub fn rested(broker: &Broker) -> Result<f64> {
    std::thread::sleep(Duration::from_secs(6));
    broker.process.resident()
}

/// One run of PUTs with ids no other run uses.
fn put(broker: &Broker, wanted: &Wanted, round: usize) -> Result<Load> {
    let body = wanted.body();
    let authorization = broker.authorization.clone();
    let first = u64::try_from(round)? << 32;
    client::load(
        broker.process.address,
        CLIENTS,
        WARM,
        MEASURED,
        202,
        move |n, text| {
            let path = format!(
                "/v2/service_instances/{}?accepts_incomplete=true",
                rows::guid(first + n)
            );
            text.push_str(&client::request("PUT", &path, &authorization, &body));
        },
    )
}

/// The store without a broker around it.
struct Alone {
    runtime: tokio::runtime::Runtime,
    store: Store,
    wanted: Arc<Wanted>,
    next: Arc<AtomicU64>,
}

impl Alone {
    fn new(dir: &Path, wanted: Wanted) -> Result<Self> {
        // As the broker's own runtime.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let store = runtime.block_on(rows::open(&database(dir)))?;
        Ok(Self {
            runtime,
            store,
            wanted: Arc::new(wanted),
            next: Arc::default(),
        })
    }

    /// Writes a second, [`CLIENTS`] of them waiting at any time.
    fn rate(&self) -> Result<f64> {
        let start = Instant::now() + WARM;
        let end = start + MEASURED;
        self.runtime.block_on(async {
            let tasks: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let (store, wanted, next) = (self.store.clone(), self.wanted.clone(), self.next.clone());
                    tokio::spawn(async move {
                        let mut written = 0_u32;
                        loop {
                            let asked = Instant::now();
                            if asked >= end {
                                return Ok(written);
                            }
                            accept(&store, &wanted, next.fetch_add(1, Ordering::Relaxed)).await?;
                            written += u32::from(asked >= start && Instant::now() < end);
                        }
                    })
                })
                .collect();
            let mut written = 0;
            for task in tasks {
                written += task
                    .await?
                    .map_err(|fail: chandler::store::Fail| anyhow::anyhow!("{fail}"))?;
            }
            Ok(f64::from(written) / MEASURED.as_secs_f64())
        })
    }
}

/// What accepting a provision writes.
async fn accept(store: &Store, wanted: &Wanted, n: u64) -> Result<(), chandler::store::Fail> {
    let (instance, operation) = rows::rows(wanted, n);
    store
        .write(move |tx| {
            let (instance, operation) = (instance.clone(), operation.clone());
            Box::pin(async move {
                tx.insert_instance(&instance).await?;
                tx.insert_operation(&operation).await
            })
        })
        .await
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.runtime.block_on(self.store.close());
    }
}
