//! Reading: the catalog and last_operation, against a minimal handler that sends the same bytes.

use crate::accept::rested;
use crate::broker::{Broker, Process, Setup, database, minimal_handler};
use crate::client::{self, Load};
use crate::report::{Limit, Report, median};
use crate::rows::{self, Wanted};
use anyhow::{Context, Result, bail};
use chandler::domain::instance::InstanceState;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Connections that ask.
const CLIENTS: usize = 64;
/// Rounds; in each every contestant runs once.
const ROUNDS: u64 = 9;
/// Instances in the store.
pub const INSTANCES: u64 = 100_000;
const WARM: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_millis(1500);

/// Measures and reports.
pub fn run(dir: &Path, report: &mut Report) -> Result<()> {
    let broker = filled(&dir.join("reads"), INSTANCES, InstanceState::Ready, "http")?;
    let catalog = broker.call("GET", "/v2/catalog", "")?.body;
    let last = broker.call("GET", &last_operation_path(7), "")?;
    if last.status != 200 {
        bail!("last_operation answered {}", last.status);
    }
    let same_catalog = minimal_handler(dir, &catalog)?;
    let same_last = minimal_handler(dir, &last.body)?;

    let (mut catalogs, mut lasts) = (Pair::default(), Pair::default());
    let mut of_catalog_handler = Vec::new();
    for round in 0..ROUNDS {
        let ask = |at: SocketAddr, path: fn(u64) -> String| {
            let authorization = broker.authorization.clone();
            client::load(at, CLIENTS, WARM, MEASURED, 200, move |n, text| {
                let n = scattered(n + round * 0x0010_0001);
                text.push_str(&client::request("GET", &path(n), &authorization, ""));
            })
        };
        let catalog_path: fn(u64) -> String = |_| "/v2/catalog".to_owned();
        let catalog_handler = ask(same_catalog.address, catalog_path)?;
        catalogs.add(
            &broker.process,
            || ask(broker.process.address, catalog_path),
            &catalog_handler,
        )?;
        let last_handler = ask(same_last.address, last_operation_path)?;
        lasts.add(
            &broker.process,
            || ask(broker.process.address, last_operation_path),
            &last_handler,
        )?;
        let newest = lasts.rates.last().copied().context("a rate")?;
        of_catalog_handler.push(newest / catalog_handler.rate);
    }
    report.add(
        format!(
            "GET /v2/catalog ({} bytes), of a minimal handler with the same bytes",
            catalog.len()
        ),
        catalogs.found(),
        median(&catalogs.ratios),
        "",
        Limit::AtLeast(0.5),
    );
    report.add(
        "last_operation with 100,000 instances, of the minimal handler with the catalog's bytes",
        format!("{:.0}/s", median(&lasts.rates)),
        median(&of_catalog_handler),
        "",
        Limit::AtLeast(0.2),
    );
    report.add(
        "last_operation with 100,000 instances, of a minimal handler with its own few bytes",
        lasts.found(),
        median(&lasts.ratios),
        "",
        Limit::AtLeast(0.2),
    );
    let (p50, p99) = (median(&lasts.p50), median(&lasts.p99));
    report.add(
        "last_operation with 100,000 instances, p99 of median",
        format!("{p99:.1} ms of {p50:.1} ms, {CLIENTS} clients"),
        p99 / p50,
        "",
        Limit::AtMost(5.0),
    );
    report.add(
        "resident memory after these reads, idle again",
        "role http, 100,000 instances",
        rested(&broker)?,
        " MB",
        Limit::AtMost(80.0),
    );
    Ok(())
}

/// A broker on the directory `dir`, its store filled with `count` instances at the first call.
pub fn filled(dir: &Path, count: u64, state: InstanceState, role: &'static str) -> Result<Broker> {
    let setup = Setup {
        role,
        group_commit: true,
    };
    if !dir.exists() {
        std::fs::create_dir(dir)?;
        // One start with nothing in the store tells which offering and plan the rows are of.
        let empty = Broker::serve(
            dir,
            Setup {
                role: "http",
                ..setup
            },
        )?;
        let wanted = Wanted::of(&empty.call("GET", "/v2/catalog", "")?.body, "postgres")?;
        drop(empty);
        rows::fill(&database(dir), &wanted, count, state)?;
    }
    Broker::serve(dir, setup)
}

/// The poll of a platform that keeps the operation's token.
fn last_operation_path(n: u64) -> String {
    format!(
        "/v2/service_instances/{}/last_operation?operation={}",
        rows::guid(n),
        rows::token(n)
    )
}

/// One of all instances, far from the one before.
fn scattered(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % INSTANCES
}

/// The broker's runs with those of its comparison.
#[derive(Default)]
struct Pair {
    rates: Vec<f64>,
    handler: Vec<f64>,
    ratios: Vec<f64>,
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Pair {
    fn add(&mut self, process: &Process, run: impl FnOnce() -> Result<Load>, handler: &Load) -> Result<()> {
        let before = process.cpu()?;
        let load = run()?;
        let answered = load.rate * (WARM + MEASURED).as_secs_f64();
        self.cpu.push((process.cpu()? - before) * 1e6 / answered);
        self.rates.push(load.rate);
        self.handler.push(handler.rate);
        self.ratios.push(load.rate / handler.rate);
        self.p50.push(load.millis(0.5));
        self.p99.push(load.millis(0.99));
        Ok(())
    }

    fn found(&self) -> String {
        format!(
            "{:.0}/s of {:.0}/s; {:.0} µs CPU each",
            median(&self.rates),
            median(&self.handler),
            median(&self.cpu)
        )
    }
}
