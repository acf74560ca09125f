//! `chandler reconcile` over thousands of live bindings: how long, and whether its memory grows with their number.

use crate::bare::Bare;
use crate::binds::bind;
use crate::broker::{Process, free_port, program};
use crate::many::Many;
use crate::place::{Place, provision};
use crate::proxy::{Proxy, total};
use crate::report::{Limit, Report};
use crate::unbinds;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Bindings, unless `CHANDLER_BENCH_BINDINGS` says another number.
const BINDINGS: u64 = 10_000;
/// The small sweep has one in so many of these.
const SHARE: u64 = 10;
/// Between two looks at the process's memory.
const LOOK: Duration = Duration::from_millis(10);

fn how_many() -> Result<u64> {
    let name = "CHANDLER_BENCH_BINDINGS";
    std::env::var(name).map_or(Ok(BINDINGS), |text| text.parse().context(name))
}

/// Measures and reports.
pub fn run(dir: &Path, report: &mut Report) -> Result<()> {
    let all = how_many()?;
    let few = all / SHARE;
    let many = Many::plan(all);
    let place = Place::make(dir, "sweep")?;
    let keycloak = Proxy::start(&place.servers.keycloak)?;
    let vault = Proxy::start(&place.servers.vault)?;
    let direct = place.dir.join("direct.json");
    let mut bare = {
        // The broker has done its part then; its instance runs on.
        let broker = place.serve(&direct)?;
        let wanted = provision(&broker)?;
        let credentials = bind(&broker, &wanted, 0)?;
        Bare::open(&place, &unbinds::fetch(&place, &credentials)?.data)?
    };
    let config = place.configure("proxied", &keycloak.url(), &vault.url())?;
    let mut peaks = Vec::new();
    for (from, to) in [(1, few), (few, all)] {
        let began = Instant::now();
        many.make(&place, &mut bare, from..to)?;
        eprintln!(
            "  {} bindings made in {:.0} s",
            to - from,
            began.elapsed().as_secs_f64()
        );
        keycloak.taken();
        vault.taken();
        let swept = sweep(&place, &config, to)?;
        let calls = format!(
            "{} calls to Keycloak, {} to the vault",
            total(&keycloak.taken()),
            total(&vault.taken())
        );
        eprintln!(
            "  sweep of {to}: {:.1} s, {calls}, at most {:.1} MB",
            swept.took, swept.peak
        );
        peaks.push(swept.peak);
        if to == all {
            report.add(
                format!("sweep of {all} live bindings, one instance"),
                format!("{calls}; {:.1} s CPU", swept.cpu),
                swept.took,
                " s",
                Limit::AtMost(60.0),
            );
        }
    }
    report.add(
        format!("most resident memory of the sweep, {all} bindings"),
        format!("{:.1} MB with {few}", peaks[0]),
        peaks[1],
        " MB",
        Limit::AtMost(80.0),
    );
    report.add(
        format!(
            "resident memory that {} bindings more add to the sweep",
            all - few
        ),
        "for each binding the name of its user, and of its secret in one list of the vault".to_owned(),
        peaks[1] - peaks[0],
        " MB",
        Limit::AtMost(16.0),
    );
    Ok(())
}

/// What one sweep took.
struct Swept {
    took: f64,
    cpu: f64,
    peak: f64,
}

/// Runs `chandler reconcile` and watches it; everything must agree.
fn sweep(place: &Place, config: &Path, bindings: u64) -> Result<Swept> {
    let (out, log) = (place.dir.join("reconcile.out"), place.dir.with_extension("log"));
    let began = Instant::now();
    let child = program()
        .args(["reconcile", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&log)?)
        .spawn()
        .context("chandler cannot be started")?;
    let mut process = Process::new(child, free_port()?);
    let (mut peak, mut cpu) = (0.0, 0.0);
    let status = loop {
        // In the moment it ends it has no memory to tell of.
        if let Ok(most) = process.peak() {
            (peak, cpu) = (most, process.cpu()?);
        }
        if let Some(status) = process.ended()? {
            break status;
        }
        std::thread::sleep(LOOK);
    };
    let took = began.elapsed().as_secs_f64();
    let said = fs::read_to_string(&out)?;
    let last = said.lines().last().unwrap_or_default();
    let expected = format!("{bindings} clients, {bindings} secrets, {bindings} users");
    if !status.success() || !last.contains("everything agrees") || !last.contains(&expected) {
        bail!("the sweep of {bindings} says: {last}");
    }
    Ok(Swept { took, cpu, peak })
}
