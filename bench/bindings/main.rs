//! `make bench-bindings`: what a bind costs with Keycloak, a vault and PostgreSQL, how fast an unbind closes every way in,
//! and what comparing 10,000 bindings with the world takes.
//!
//! The broker is a release build in a process of its own; this program is its platform, the application, and a counting
//! proxy in front of Keycloak and the vault of the testbed (`bench/bindings.sh` sees to them). `README.md` tells the method;
//! the words `binds` and `sweep` choose parts of it.

#![expect(
    clippy::disallowed_methods,
    reason = "where the testbed is comes from the environment"
)]

mod bare;
mod binds;
#[path = "../broker.rs"]
#[expect(dead_code, reason = "shared with the other benchmarks, which use the rest")]
mod broker;
#[path = "../client.rs"]
#[expect(dead_code, reason = "shared with the other benchmarks, which use the rest")]
mod client;
mod many;
mod place;
mod proxy;
#[path = "../report.rs"]
mod report;
#[path = "../rows.rs"]
#[expect(dead_code, reason = "shared with the other benchmarks, which use the rest")]
mod rows;
mod sweep;
mod unbinds;

use anyhow::{Context, Result, bail};
use report::Report;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// A part of the benchmark: its word, and what it does.
type Part = (&'static str, fn(&Path, &mut Report) -> Result<()>);

/// Lines of a broker's log that are shown when something failed.
const LAST_WORDS: usize = 15;

const PARTS: &[Part] = &[("binds", binds::run), ("sweep", sweep::run)];

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
        .prefix("chandler-bench-bindings-")
        .tempdir()
        .context("no temporary directory; set TMPDIR to one on a disk")?;
    // Services run as other users and must be able to pass through.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
    on_interrupt(dir.path())?;
    let mut report = Report::default();
    let measured = measure(dir.path(), &chosen, &mut report);
    place::clean();
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
            eprintln!("interrupted; removing what was made");
            broker::end_all();
            // What a broker gets to end in, before its instances are stopped without it.
            std::thread::sleep(Duration::from_secs(2));
            place::clean();
            let _ = std::fs::remove_dir_all(&dir);
            std::process::exit(130);
        }
    });
    Ok(())
}
