//! `make bench`: speed and memory of the broker, as ratios within one run.
//!
//! The broker is a release build in a process of its own; this program is the load beside it and the
//! comparison. Compared runs alternate and medians are taken, because machines are noisy. Everything
//! happens on loopback, below one temporary directory, and is removed at the end. `README.md` tells
//! the method; the words `accept`, `reads`, `start` and `services` choose parts of it.

mod accept;
#[expect(dead_code, reason = "shared with the other benchmark, which uses the rest")]
mod broker;
mod client;
mod reads;
mod report;
mod rows;
mod services;
mod start;

use anyhow::{Context, Result, bail};
use report::Report;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// A part of the benchmark: its word, and what it does.
type Part = (&'static str, fn(&Path, &mut Report) -> Result<()>);

const PARTS: &[Part] = &[
    ("accept", accept::run),
    ("reads", reads::run),
    ("start", start::run),
    ("services", services::run),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, file, address] = arguments.as_slice()
        && word == broker::SERVE_BYTES
    {
        return actix_web::rt::System::new().block_on(broker::serve_bytes(file, address));
    }
    // Cargo adds `--bench` of its own.
    let chosen: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|a| *a != "--bench")
        .collect();
    if let Some(unknown) = chosen
        .iter()
        .find(|word| PARTS.iter().all(|(name, _)| name != *word))
    {
        let names: Vec<_> = PARTS.iter().map(|(name, _)| *name).collect();
        bail!("there is no part {unknown:?}; there are {}", names.join(", "));
    }
    let started = Instant::now();
    let dir = tempfile::Builder::new()
        .prefix("chandler-bench-")
        .tempdir()
        .context("no temporary directory; set TMPDIR to one on a disk")?;
    // Services run as other users and must be able to pass through.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
    on_interrupt(dir.path())?;
    let mut report = Report::default();
    for (name, part) in PARTS {
        if chosen.is_empty() || chosen.contains(name) {
            eprintln!("{name}:");
            part(dir.path(), &mut report).with_context(|| format!("the part {name}"))?;
        }
    }
    println!("{}", report.table());
    println!(
        "Took {:.0} s on {} cores.",
        started.elapsed().as_secs_f64(),
        std::thread::available_parallelism()?
    );
    Ok(())
}

/// Leaves nothing behind when somebody stops the benchmark.
fn on_interrupt(dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        let interrupted = runtime.block_on(async {
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! {
                _ = terminate.recv() => Ok(()),
                end = tokio::signal::ctrl_c() => end,
            }
        });
        if interrupted.is_ok() {
            eprintln!("interrupted; ending what was started");
            broker::end_all();
            // What a broker gets to end in, before its instances are stopped without it.
            std::thread::sleep(Duration::from_secs(2));
            let data = services::data_dir(&dir);
            if data.exists() {
                services::stop_instances(&data);
            }
            let _ = std::fs::remove_dir_all(&dir);
            std::process::exit(130);
        }
    });
    Ok(())
}
