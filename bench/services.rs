//! Real servers on this machine: how long creating and binding take a person who waits.

use crate::broker::{Broker, stop_instances};
use crate::report::{Limit, Report, median};
use crate::rows::{Wanted, guid};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Instances made of each service, one after the other.
const INSTANCES: u64 = 5;
/// Bindings made of the first Postgres.
const BINDINGS: u64 = 25;
/// Between two looks at last_operation; platforms look far less often.
const POLL: Duration = Duration::from_millis(10);
/// Longest wait for an operation.
const PATIENCE: Duration = Duration::from_mins(1);

/// Measures and reports.
pub fn run(dir: &Path, report: &mut Report) -> Result<()> {
    let data = data_dir(dir);
    let broker = Broker::dev(&data)?;
    let stop = StopInstances {
        data,
        broker: Some(broker),
    };
    let broker = stop.broker.as_ref().context("the broker")?;
    let catalog = broker.call("GET", "/v2/catalog", "")?.body;
    for (number, (offering, limit)) in [("postgres", 5.0), ("redis", 1.0), ("nats", 1.0)]
        .into_iter()
        .enumerate()
    {
        let wanted = Wanted::of(&catalog, offering)?;
        let first = u64::try_from(number)? * 1000;
        let mut times = Vec::new();
        for n in first..first + INSTANCES {
            let started = Instant::now();
            let answer = broker.call(
                "PUT",
                &format!("{}?accepts_incomplete=true", instance(n)),
                &wanted.body(),
            )?;
            expect(202, answer.status, &answer.body)?;
            wait(broker, n)?;
            times.push(started.elapsed().as_secs_f64());
        }
        report.add(
            format!("create {offering}, request to succeeded"),
            format!("median of {INSTANCES}; {}", range(&times, " s")),
            median(&times),
            " s",
            Limit::AtMost(limit),
        );
        if offering == "postgres" {
            bind(broker, &wanted, first, report)?;
        }
        for n in first..first + INSTANCES {
            let path = format!(
                "{}?accepts_incomplete=true&service_id={}&plan_id={}",
                instance(n),
                wanted.service_id,
                wanted.plan_id
            );
            let answer = broker.call("DELETE", &path, "")?;
            expect(202, answer.status, &answer.body)?;
            wait(broker, n)?;
        }
    }
    Ok(())
}

fn bind(broker: &Broker, wanted: &Wanted, n: u64, report: &mut Report) -> Result<()> {
    let body = json!({"service_id": wanted.service_id, "plan_id": wanted.plan_id}).to_string();
    let mut times = Vec::new();
    for binding in 0..BINDINGS {
        let path = format!("{}/service_bindings/{}", instance(n), guid(binding));
        let started = Instant::now();
        let answer = broker.call("PUT", &path, &body)?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        expect(201, answer.status, &answer.body)?;
    }
    report.add(
        "bind Postgres: user made, verified, stored",
        format!("median of {BINDINGS}; {}", range(&times, " ms")),
        median(&times),
        " ms",
        Limit::AtMost(60.0),
    );
    Ok(())
}

fn instance(n: u64) -> String {
    format!("/v2/service_instances/{}", guid(n))
}

/// Polls until the instance's last operation succeeded.
fn wait(broker: &Broker, n: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = broker.call("GET", &format!("{}/last_operation", instance(n)), "")?;
        expect(200, answer.status, &answer.body)?;
        let body: Value = serde_json::from_slice(&answer.body)?;
        match body["state"].as_str() {
            Some("succeeded") => return Ok(()),
            Some("in progress") if Instant::now() < end => std::thread::sleep(POLL),
            _ => bail!("an operation did not succeed: {body}"),
        }
    }
}

fn expect(status: u16, found: u16, body: &[u8]) -> Result<()> {
    if status != found {
        bail!(
            "status {found} where {status} was expected: {}",
            String::from_utf8_lossy(body)
        );
    }
    Ok(())
}

fn range(times: &[f64], unit: &str) -> String {
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = times.iter().copied().fold(0.0, f64::max);
    format!("{least:.2} to {most:.2}{unit}")
}

/// Instances are processes of their own that outlive their broker: whatever happens here, they are stopped.
struct StopInstances {
    data: PathBuf,
    broker: Option<Broker>,
}

impl Drop for StopInstances {
    fn drop(&mut self) {
        drop(self.broker.take());
        stop_instances(&self.data);
    }
}

/// The data directory of `chandler dev` below the benchmark's.
pub fn data_dir(dir: &Path) -> PathBuf {
    dir.join("dev")
}
