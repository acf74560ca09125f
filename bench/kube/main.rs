//! `make bench-kube`: what the broker costs a cluster, and what a cluster lets it do.
//!
//! The broker is a release build in a process of its own; it and this program run inside the network of the testbed's
//! node (`bench/kube.sh` sees to that), the broker under an account of its own with the rights `chandler rbac` prints.
//! `README.md` tells the method; the words `provisions` and `fleet` choose parts of it.

#![expect(
    clippy::disallowed_methods,
    reason = "where the testbed is comes from the environment, and a clock to stamp with"
)]

#[path = "../broker.rs"]
#[expect(dead_code, reason = "shared with the other benchmark, which uses the rest")]
mod broker;
#[path = "../client.rs"]
#[expect(dead_code, reason = "shared with the other benchmark, which uses the rest")]
mod client;
mod cluster;
mod fleet;
mod provisions;
#[path = "../report.rs"]
mod report;
mod room;
#[path = "../rows.rs"]
#[expect(dead_code, reason = "shared with the other benchmark, which uses the rest")]
mod rows;
mod work;

use anyhow::{Context, Result, bail};
use report::Report;
use std::path::Path;
use std::time::{Duration, Instant};

/// A part of the benchmark: its word, and what it does.
type Part = (&'static str, fn(&Path, &mut Report) -> Result<()>);

/// Lines of a broker's log that are shown when something failed.
const LAST_WORDS: usize = 15;

const PARTS: &[Part] = &[("provisions", provisions::run), ("fleet", fleet::run)];

fn main() -> Result<()> {
    // Cargo adds `--bench` of its own.
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    if let Some(unknown) = chosen
        .iter()
        .find(|word| PARTS.iter().all(|(name, _)| name != word))
    {
        let names: Vec<_> = PARTS.iter().map(|(name, _)| *name).collect();
        bail!("there is no part {unknown:?}; there are {}", names.join(", "));
    }
    chandler::app::install_tls_provider();
    let started = Instant::now();
    let dir = tempfile::Builder::new()
        .prefix("chandler-bench-kube-")
        .tempdir()
        .context("no temporary directory; set TMPDIR to one on a disk")?;
    on_interrupt(dir.path())?;
    let mut report = Report::default();
    let measured = measure(dir.path(), &chosen, &mut report);
    room::clean();
    measured?;
    println!("{}", report.table());
    println!(
        "Took {:.0} s on {} cores.",
        started.elapsed().as_secs_f64(),
        std::thread::available_parallelism()?
    );
    Ok(())
}

fn measure(dir: &Path, chosen: &[String], report: &mut Report) -> Result<()> {
    for (name, part) in PARTS {
        if chosen.is_empty() || chosen.iter().any(|word| word == name) {
            eprintln!("{name}:");
            part(dir, report)
                .inspect_err(|_| last_words(&dir.join(format!("{name}.log"))))
                .with_context(|| format!("the part {name}"))?;
        }
    }
    Ok(())
}

/// Shows how a broker's log ends, which goes with the directory.
fn last_words(log: &Path) {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LAST_WORDS);
    eprintln!("the broker's last words:\n{}", lines[from..].join("\n"));
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
            // What a broker gets to end in, before its instances are removed without it.
            std::thread::sleep(Duration::from_secs(2));
            room::clean();
            let _ = std::fs::remove_dir_all(&dir);
            std::process::exit(130);
        }
    });
    Ok(())
}
