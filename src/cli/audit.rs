//! `chandler audit`: the audit trail as a file, and whether its chain holds.
//!
//! What must stay true: both work in pages, so the length of the trail does not matter; both look no further than the
//! head they read first, so they may run beside the broker.

use super::{Where, exit};
use crate::app;
use crate::domain::audit::{Broken, FileCheck, Head, HeadLine};
use crate::store::Store;
use anyhow::{Context, anyhow, bail};
use clap::Subcommand;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Records read at once.
const PAGE: i64 = 500;

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Print the events as JSON lines, the last line telling where the chain ends.
    Export {
        #[command(flatten)]
        place: Where,
        /// Only events with higher numbers.
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        after: i64,
    },
    /// Check that no event was changed, left out, put in or moved: in the database, or in an exported file.
    Verify {
        #[command(flatten)]
        place: Where,
        /// An exported file instead of the database; `-` is standard input.
        #[arg(long)]
        file: Option<PathBuf>,
        /// Where the chain begins, as an earlier export told its end: for what goes on after an archived part.
        #[arg(long, value_name = "NUMBER:HASH", value_parser = head)]
        after: Option<Head>,
        /// An end that an earlier export told: the chain must still go through it.
        #[arg(long, value_name = "NUMBER:HASH", value_parser = head)]
        head: Option<Head>,
    },
}

fn head(text: &str) -> Result<Head, String> {
    Head::parse(text).ok_or_else(|| {
        "not a number, a colon and 64 hexadecimal digits, as `chandler audit export` prints them".to_owned()
    })
}

pub(super) async fn run(command: AuditCommand) -> anyhow::Result<()> {
    match command {
        AuditCommand::Export { place, after } => {
            let store = app::open_store(&place.config()?).await?;
            let mut out = BufWriter::new(std::io::stdout().lock());
            let (count, head) = export(&store, after, &mut out).await?;
            out.flush()?;
            eprintln!("{count} events. The chain ends at {head}: keep this where the broker cannot write.");
            Ok(())
        }
        AuditCommand::Verify {
            place,
            file,
            after,
            head,
        } => {
            let checked = match file {
                Some(file) => verify_file(&file, after, head.as_ref())?,
                None => {
                    let store = app::open_store(&place.config()?).await?;
                    verify_rows(&store, after.unwrap_or_else(Head::start), head.as_ref()).await?
                }
            };
            match checked {
                Ok((first, last)) => {
                    println!(
                        "The chain holds: {} events, from behind {first} to {last}.",
                        last.seq - first.seq
                    );
                    Ok(())
                }
                Err(broken) => {
                    println!("The chain is broken. {broken}");
                    exit(1)
                }
            }
        }
    }
}

/// Writes the events behind `after` and then the head they lead to; returns how many, and the head.
async fn export(store: &Store, after: i64, out: &mut impl Write) -> anyhow::Result<(u64, Head)> {
    let head = store.audit_head().await.map_err(|e| anyhow!("{e}"))?;
    if after > head.seq {
        bail!(
            "The chain ends with event {}: there is none after {after}.",
            head.seq
        );
    }
    let (mut at, mut count) = (after, 0);
    while at < head.seq {
        let page = store.audit_page(at, PAGE).await.map_err(|e| anyhow!("{e}"))?;
        let Some(last) = page.last() else { break };
        at = last.seq;
        for record in page.iter().filter(|record| record.seq <= head.seq) {
            serde_json::to_writer(&mut *out, record)?;
            out.write_all(b"\n")?;
            count += 1;
        }
    }
    serde_json::to_writer(&mut *out, &HeadLine { head: head.clone() })?;
    out.write_all(b"\n")?;
    Ok((count, head))
}

/// Where the checked part begins and ends, or its first broken link.
type Checked = Result<(Head, Head), Broken>;

/// Whether a chain at `at` still goes through `known`, a head from outside.
fn passes(at: &Head, known: Option<&Head>) -> Result<(), Broken> {
    match known {
        Some(known) if known.seq == at.seq => at.ends_at(known),
        _ => Ok(()),
    }
}

/// A head from outside that lies behind the end tells that the end was cut off.
fn reaches(first: &Head, last: &Head, known: Option<&Head>) -> anyhow::Result<Result<(), Broken>> {
    match known {
        Some(known) if known.seq < first.seq => bail!(
            "Event {} of --head lies before what is checked, which begins behind event {}.",
            known.seq,
            first.seq
        ),
        Some(known) if known.seq > last.seq => Ok(last.ends_at(known)),
        _ => Ok(Ok(())),
    }
}

async fn verify_rows(store: &Store, first: Head, known: Option<&Head>) -> anyhow::Result<Checked> {
    let last = store.audit_head().await.map_err(|e| anyhow!("{e}"))?;
    let mut at = first.clone();
    if let Err(broken) = passes(&at, known) {
        return Ok(Err(broken));
    }
    loop {
        let page = store.audit_page(at.seq, PAGE).await.map_err(|e| anyhow!("{e}"))?;
        let now: Vec<_> = page.iter().filter(|record| record.seq <= last.seq).collect();
        if now.is_empty() {
            break;
        }
        for record in now {
            if let Err(broken) = at.follow(record).and_then(|()| passes(&at, known)) {
                return Ok(Err(broken));
            }
        }
    }
    if let Err(broken) = at.ends_at(&last) {
        return Ok(Err(broken));
    }
    // An event behind the head is a new one, which has moved the head too, or was put there by somebody else.
    let behind = store.audit_page(at.seq, 1).await.map_err(|e| anyhow!("{e}"))?;
    let now = store.audit_head().await.map_err(|e| anyhow!("{e}"))?;
    if let Some(record) = behind.first().filter(|record| record.seq > now.seq) {
        return Ok(Err(Broken::OtherEnd {
            seq: record.seq,
            expected: now.seq,
        }));
    }
    Ok(reaches(&first, &at, known)?.map(|()| (first, at)))
}

fn verify_file(file: &Path, after: Option<Head>, known: Option<&Head>) -> anyhow::Result<Checked> {
    let opened: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let opened = File::open(file).with_context(|| format!("{} cannot be read", file.display()))?;
        Box::new(BufReader::new(opened))
    };
    let mut check = FileCheck::new(after);
    for line in opened.lines() {
        let line = line.with_context(|| format!("{} cannot be read", file.display()))?;
        if let Err(broken) = check.line(&line).and_then(|()| passes(check.at(), known)) {
            return Ok(Err(broken));
        }
    }
    Ok(match check.end() {
        Err(broken) => Err(broken),
        Ok((first, last)) => reaches(&first, &last, known)?.map(|()| (first, last)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::domain::audit::{Action, Event};
    use crate::domain::request::Caller;
    use crate::store::StoreOptions;

    async fn store(dir: &tempfile::TempDir) -> Store {
        let url = format!("sqlite://{}/audit.db?mode=rwc", dir.path().display());
        let store = Store::open(&StoreOptions::new(url)).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    async fn add(store: &Store, count: i64) {
        let caller = Caller {
            platform: "cf".into(),
            ..Caller::default()
        };
        for n in 0..count {
            let event = Event::asked(&caller, Action::Read, "one", &format!("b{n}"), n);
            store.audit(event).await.unwrap();
        }
    }

    async fn exported(store: &Store, after: i64, dir: &tempfile::TempDir, name: &str) -> (PathBuf, Head) {
        let mut bytes = Vec::new();
        let (count, head) = export(store, after, &mut bytes).await.unwrap();
        assert_eq!(i64::try_from(count).unwrap(), head.seq - after);
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (path, head)
    }

    #[tokio::test]
    async fn what_is_exported_holds_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let (empty, start) = exported(&store, 0, &dir, "empty").await;
        assert_eq!(start, Head::start());
        assert_eq!(
            verify_file(&empty, None, None).unwrap(),
            Ok((start.clone(), start.clone()))
        );

        // More than a page.
        add(&store, PAGE + 10).await;
        let (first, middle) = exported(&store, 0, &dir, "first").await;
        add(&store, 7).await;
        let (second, end) = exported(&store, middle.seq, &dir, "second").await;
        assert_eq!(end.seq, PAGE + 17);
        assert_eq!(
            verify_file(&first, None, None).unwrap(),
            Ok((start.clone(), middle.clone()))
        );
        assert_eq!(
            verify_file(&second, Some(middle.clone()), Some(&end)).unwrap(),
            Ok((middle.clone(), end.clone()))
        );
        for known in [&start, &middle, &end] {
            assert_eq!(
                verify_rows(&store, Head::start(), Some(known)).await.unwrap(),
                Ok((Head::start(), end.clone()))
            );
        }
        assert_eq!(
            verify_rows(&store, middle.clone(), None).await.unwrap(),
            Ok((middle.clone(), end.clone())),
            "what goes on after an archived part"
        );
        assert!(export(&store, end.seq + 1, &mut Vec::new()).await.is_err());
        assert!(
            verify_file(&second, None, Some(&start)).is_err(),
            "a head that lies before the file says nothing about it"
        );
        store.close().await;
    }

    #[tokio::test]
    async fn a_head_noted_elsewhere_tells_of_a_chain_that_was_cut_or_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        add(&store, 5).await;
        let (file, noted) = exported(&store, 0, &dir, "noted").await;
        let later = Head {
            seq: 9,
            hash: "a".repeat(64),
        };
        assert_eq!(
            verify_rows(&store, Head::start(), Some(&later)).await.unwrap(),
            Err(Broken::Missing { first: 6, last: 9 })
        );
        assert_eq!(
            verify_file(&file, None, Some(&later)).unwrap(),
            Err(Broken::Missing { first: 6, last: 9 })
        );
        store.close().await;
        // Another chain, unbroken in itself and longer, in the place of the first.
        let other_dir = tempfile::tempdir().unwrap();
        let other = self::store(&other_dir).await;
        add(&other, 3).await;
        add(&other, 5).await;
        assert!(verify_rows(&other, Head::start(), None).await.unwrap().is_ok());
        assert_eq!(
            verify_rows(&other, Head::start(), Some(&noted)).await.unwrap(),
            Err(Broken::OtherEnd { seq: 5, expected: 5 })
        );
        other.close().await;
    }
}
