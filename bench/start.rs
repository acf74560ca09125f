//! Starting, and memory at rest, with nothing, 10,000 and 100,000 instances in the store.

use crate::reads::{INSTANCES, filled};
use crate::report::{Limit, Report, median};
use anyhow::Result;
use chandler::domain::instance::InstanceState;
use std::path::Path;
use std::time::Duration;

/// Starts of each.
const REPEATS: usize = 5;
/// Instances in the store that most are compared with.
const FEW: u64 = 10_000;
/// What a broker gets to settle before its memory is read: longer than its first rounds of everything.
const SETTLE: Duration = Duration::from_secs(8);
/// What 90,000 instances more may add before it counts as growing, in MB: less than 60 bytes for each.
const NOISE: f64 = 5.0;

/// Measures and reports.
pub fn run(dir: &Path, report: &mut Report) -> Result<()> {
    // With role `all` the instances are such that failed: ready ones are started again when they do not run,
    // and there is no machine for 100,000 local databases.
    for (role, state) in [
        ("http", InstanceState::Ready),
        ("all", InstanceState::ProvisionFailed),
    ] {
        let start = |count: u64| filled(&dir.join(format!("{role}-{count}")), count, state, role);
        let (mut ready, mut resident) = (Vec::new(), Vec::new());
        for count in [0, FEW, INSTANCES] {
            drop(start(count)?);
            let mut times = Vec::new();
            for _ in 1..REPEATS {
                times.push(start(count)?.ready_after.as_secs_f64());
            }
            let broker = start(count)?;
            times.push(broker.ready_after.as_secs_f64());
            std::thread::sleep(SETTLE);
            ready.push(median(&times));
            resident.push(broker.process.resident()?);
        }
        report.add(
            format!("start to ready, 100,000 instances, role {role}"),
            format!("median of {REPEATS}; {:.2} s with none", ready[0]),
            ready[2],
            " s",
            Limit::AtMost(1.0),
        );
        report.add(
            format!("resident memory idle, 100,000 instances, role {role}"),
            format!("{:.1} MB with none", resident[0]),
            resident[2],
            " MB",
            Limit::AtMost(80.0),
        );
        report.add(
            format!("resident memory that 90,000 instances more add, role {role}"),
            format!("{:.1} MB with 10,000", resident[1]),
            resident[2] - resident[1],
            " MB",
            Limit::AtMost(NOISE),
        );
    }
    Ok(())
}
