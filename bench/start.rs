//! Starting, and memory at rest, with nothing and with 100,000 instances in the store.

use crate::broker::{Broker, Setup};
use crate::reads::{INSTANCES, filled};
use crate::report::{Limit, Report, median};
use anyhow::Result;
use chandler::domain::instance::InstanceState;
use std::path::Path;
use std::time::Duration;

/// Starts of each.
const REPEATS: usize = 5;
/// What a broker gets to settle before its memory is read: longer than its first rounds of everything.
const SETTLE: Duration = Duration::from_secs(8);
/// Resident memory that 100,000 instances may add before it counts as growing, in MB: the database's page caches.
const CACHES: f64 = 10.0;

/// Measures and reports.
pub fn run(dir: &Path, report: &mut Report) -> Result<()> {
    let empty = dir.join("empty");
    std::fs::create_dir(&empty)?;
    // With role `all` the instances are such that failed: ready ones are started again when they do not run,
    // and there is no machine for 100,000 local databases.
    for (role, name, state) in [
        ("http", "reads", InstanceState::Ready),
        ("all", "failed", InstanceState::ProvisionFailed),
    ] {
        drop(filled(dir, name, state, "http")?);
        let mut times = Vec::new();
        for _ in 1..REPEATS {
            times.push(filled(dir, name, state, role)?.ready_after.as_secs_f64());
        }
        let full = filled(dir, name, state, role)?;
        times.push(full.ready_after.as_secs_f64());
        let none = Broker::serve(
            &empty,
            Setup {
                role,
                group_commit: true,
            },
        )?;
        std::thread::sleep(SETTLE);
        let (with, without) = (full.process.resident()?, none.process.resident()?);
        report.add(
            format!("start to ready, {INSTANCES} instances, role {role}"),
            format!(
                "median of {REPEATS}; {:.3} s with none",
                none.ready_after.as_secs_f64()
            ),
            median(&times),
            " s",
            Limit::AtMost(1.0),
        );
        report.add(
            format!("resident memory idle, {INSTANCES} instances, role {role}"),
            format!("{without:.1} MB with none"),
            with,
            " MB",
            Limit::AtMost(80.0),
        );
        report.add(
            format!("resident memory that {INSTANCES} instances add, role {role}"),
            "the database's page caches",
            with - without,
            " MB",
            Limit::AtMost(CACHES),
        );
    }
    Ok(())
}
