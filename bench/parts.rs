//! What all benchmarks do: choose parts by words, work in a directory of their own, print one table, leave nothing behind.

use crate::broker;
use crate::report::Report;
use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// A part of a benchmark: its word, and what it does in a directory that goes when all is over.
pub type Part = (&'static str, fn(&Path, &mut Report) -> Result<()>);

/// Lines of a broker's log that are shown when something failed.
const LAST_WORDS: usize = 15;

/// Runs the parts that are `chosen` by their words, or all. `name` = what the directory's name begins with; `clean` removes
/// what they made outside of it, and may be called at any moment and twice.
pub fn run(name: &str, parts: &[Part], chosen: &[String], clean: fn(&Path)) -> Result<()> {
    // Cargo adds `--bench` of its own.
    let chosen: Vec<&str> = chosen
        .iter()
        .map(String::as_str)
        .filter(|a| *a != "--bench")
        .collect();
    if let Some(unknown) = chosen
        .iter()
        .find(|word| parts.iter().all(|(name, _)| name != *word))
    {
        let names: Vec<_> = parts.iter().map(|(name, _)| *name).collect();
        bail!("there is no part {unknown:?}; there are {}", names.join(", "));
    }
    chandler::app::install_tls_provider();
    let started = Instant::now();
    let dir = tempfile::Builder::new()
        .prefix(name)
        .tempdir()
        .context("no temporary directory; set TMPDIR to one on a disk")?;
    // Services run as other users and must be able to pass through.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
    on_interrupt(dir.path(), clean)?;
    let mut report = Report::default();
    let measured = measure(dir.path(), parts, &chosen, &mut report);
    clean(dir.path());
    measured?;
    println!("{}", report.table());
    println!(
        "Took {:.0} s on {} cores.",
        started.elapsed().as_secs_f64(),
        std::thread::available_parallelism()?
    );
    Ok(())
}

fn measure(dir: &Path, parts: &[Part], chosen: &[&str], report: &mut Report) -> Result<()> {
    for (name, part) in parts {
        if chosen.is_empty() || chosen.contains(name) {
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
    let Ok(text) = std::fs::read_to_string(log) else {
        return;
    };
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LAST_WORDS);
    eprintln!("the broker's last words:\n{}", lines[from..].join("\n"));
}

/// Leaves nothing behind when somebody stops the benchmark.
fn on_interrupt(dir: &Path, clean: fn(&Path)) -> Result<()> {
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
            clean(&dir);
            let _ = std::fs::remove_dir_all(&dir);
            std::process::exit(130);
        }
    });
    Ok(())
}
