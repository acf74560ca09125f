//! Real services with real pods, one after the other: what a provision asks of the API server, and how soon a person is
//! told that it is done.

use crate::report::{Limit, Report, median};
use crate::room::{Room, Tenancy};
use crate::rows::Wanted;
use crate::work::{self, Instance};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// Instances made of each service.
const ROUNDS: u64 = 5;
/// Between two looks at last_operation: a person would not notice a shorter one.
const POLL: Duration = Duration::from_millis(10);

/// Measures and reports.
pub fn run(dir: &Path, report: &mut Report) -> Result<()> {
    let room = Room::open(dir, "provisions", Tenancy::Own, None)?;
    let broker = room.broker()?;
    let catalog = broker.call("GET", "/v2/catalog", "")?.body;
    let mut apart = Vec::new();
    for (number, offering) in ["postgres", "redis", "nats"].into_iter().enumerate() {
        let wanted = Wanted::of(&catalog, offering)?;
        let (mut requests, mut delays, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (id, own) = room.instance(u64::try_from(number)? * ROUNDS + round);
            let instance = Instance::new(&id, &wanted);
            let pods = room.admin.pods(&format!("osb-{own}"));
            let before = room.counts(&broker)?;
            let began = std::time::Instant::now();
            work::accepted(&broker, &instance.put)?;
            let ended = work::ended(&broker, &instance, POLL)?;
            let after = room.counts(&broker)?;
            let ready = pods.last_ready().context("no pod was seen to get ready")?;
            // The broker may be told of the pod before this program is.
            delays.push(ended.saturating_duration_since(ready).as_secs_f64());
            whole.push(ended.duration_since(began).as_secs_f64());
            requests.push(after.broker - before.broker);
            apart.push(after.apart(&before));
            work::accepted(&broker, &instance.delete)?;
            work::ended(&broker, &instance, POLL)?;
        }
        report.add(
            format!("requests to the API server per provision, {offering} small"),
            format!("most of {ROUNDS}; median {:.0}", median(&requests)),
            requests.iter().copied().fold(0.0, f64::max),
            "",
            Limit::AtMost(40.0),
        );
        report.add(
            format!("last pod ready to succeeded, {offering} small"),
            format!(
                "median of {ROUNDS}, {:.2} to {:.2} s; whole provision {:.1} s",
                delays.iter().copied().fold(f64::INFINITY, f64::min),
                delays.iter().copied().fold(0.0, f64::max),
                median(&whole)
            ),
            median(&delays),
            " s",
            Limit::AtMost(1.5),
        );
    }
    report.add(
        "requests on which broker and API server disagree, per provision",
        format!("median of {}, tunnels to pods left out", apart.len()),
        median(&apart),
        "",
        Limit::AtMost(0.0),
    );
    Ok(())
}
