//! The chain: what comes next, and whether records handed over are the ones that were recorded.
//!
//! What must stay true: everything here looks at one record at a time, so the length of a chain does not matter.

use super::{Event, Record, sha256};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a chain ends: enough to go on with it, and to tell later that nothing was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Number of the last record; 0 when there is none.
    pub seq: i64,
    /// Its hash.
    pub hash: String,
}

impl Head {
    /// Before the first record.
    pub fn start() -> Self {
        Self {
            seq: 0,
            hash: "0".repeat(64),
        }
    }

    /// Reads `<seq>:<hash>`, as [`Display`](fmt::Display) writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let (seq, hash) = text.trim().split_once(':')?;
        let seq = seq.parse().ok().filter(|seq| *seq >= 0)?;
        let good = hash.len() == 64
            && hash
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        good.then(|| Self {
            seq,
            hash: hash.to_owned(),
        })
    }

    /// Gives an event its place behind this head, which moves on.
    pub fn append(&mut self, event: Event) -> Record {
        let mut record = Record {
            seq: self.seq + 1,
            event,
            previous: self.hash.clone(),
            hash: String::new(),
        };
        record.hash = sha256(&record.canonical());
        self.seq = record.seq;
        self.hash.clone_from(&record.hash);
        record
    }

    /// Checks that a record is the next one, unchanged; then the head moves on.
    pub fn follow(&mut self, record: &Record) -> Result<(), Broken> {
        let (seq, next) = (record.seq, self.seq.saturating_add(1));
        if seq > next {
            return Err(Broken::Missing {
                first: next,
                last: seq - 1,
            });
        }
        if seq < next {
            return Err(Broken::Misplaced { seq, after: self.seq });
        }
        if record.previous != self.hash {
            return Err(Broken::Unlinked { seq });
        }
        if record.hash != sha256(&record.canonical()) {
            return Err(Broken::Changed { seq });
        }
        self.seq = seq;
        self.hash.clone_from(&record.hash);
        Ok(())
    }

    /// Checks that the chain, followed up to here, ends where `expected` says.
    pub fn ends_at(&self, expected: &Self) -> Result<(), Broken> {
        if self == expected {
            return Ok(());
        }
        Err(if self.seq < expected.seq {
            Broken::Missing {
                first: self.seq.saturating_add(1),
                last: expected.seq,
            }
        } else {
            Broken::OtherEnd {
                seq: self.seq,
                expected: expected.seq,
            }
        })
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

/// The first place where a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// Records are not there.
    Missing {
        /// The first of them.
        first: i64,
        /// The last of them.
        last: i64,
    },
    /// A record is there twice, or out of its order.
    Misplaced {
        /// Its number.
        seq: i64,
        /// The number it comes after.
        after: i64,
    },
    /// A record names another predecessor than the one that is there.
    Unlinked {
        /// Its number.
        seq: i64,
    },
    /// A record is not what was recorded.
    Changed {
        /// Its number.
        seq: i64,
    },
    /// The chain goes past the expected end, or has another record there.
    OtherEnd {
        /// Where it ends.
        seq: i64,
        /// Where it was to end.
        expected: i64,
    },
    /// A line of an exported file is neither a record nor a head.
    Unreadable {
        /// Its number in the file, the first is 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// An exported file does not end with a head.
    NoHead,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { first, last } if first == last => write!(f, "Event {first} is missing."),
            Self::Missing { first, last } => write!(f, "Events {first} to {last} are missing."),
            Self::Misplaced { seq, after } => {
                write!(
                    f,
                    "Event {seq} comes after event {after}: it is there twice, or was moved."
                )
            }
            Self::Unlinked { seq } => write!(
                f,
                "Event {seq} does not belong behind event {}: one of the two was replaced.",
                seq - 1
            ),
            Self::Changed { seq } => write!(f, "Event {seq} is not what was recorded: it was changed."),
            Self::OtherEnd { seq, expected } if seq == expected => {
                write!(
                    f,
                    "Event {seq} is another one than the head says: it was replaced."
                )
            }
            Self::OtherEnd { seq, expected } => write!(
                f,
                "The chain ends with event {seq}, its head says {expected}: events were put in behind it, or the head was set back."
            ),
            Self::Unreadable { line, why } => {
                write!(
                    f,
                    "Line {line} is neither an event nor a head as they were exported: {why}."
                )
            }
            Self::NoHead => f.write_str("The file does not end with a head: it was cut off."),
        }
    }
}

impl std::error::Error for Broken {}

/// Last line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadLine {
    /// Where the chain ended when it was exported.
    pub head: Head,
}

/// Follows an exported file line by line; several files one after the other are one longer file.
#[derive(Debug)]
pub struct FileCheck {
    /// Where the file begins; none until the first line.
    begins: Option<Head>,
    at: Head,
    lines: usize,
    /// The line before was a head that fits.
    closed: bool,
}

impl FileCheck {
    /// A file that goes on behind `after`; none = behind whatever its first line says.
    pub fn new(after: Option<Head>) -> Self {
        Self {
            at: after.clone().unwrap_or_else(Head::start),
            begins: after,
            lines: 0,
            closed: false,
        }
    }

    /// Checks the next line.
    pub fn line(&mut self, text: &str) -> Result<(), Broken> {
        self.lines += 1;
        let unreadable = |error: serde_json::Error| Broken::Unreadable {
            line: self.lines,
            why: error.to_string(),
        };
        if text.starts_with(r#"{"head""#) {
            let line: HeadLine = serde_json::from_str(text).map_err(unreadable)?;
            self.begin(|| line.head.clone());
            self.at.ends_at(&line.head)?;
            self.closed = true;
            return Ok(());
        }
        let record: Record = serde_json::from_str(text).map_err(unreadable)?;
        self.begin(|| Head {
            seq: record.seq.saturating_sub(1),
            hash: record.previous.clone(),
        });
        self.closed = false;
        self.at.follow(&record)
    }

    /// How far the file was followed.
    pub fn at(&self) -> &Head {
        &self.at
    }

    fn begin(&mut self, first: impl FnOnce() -> Head) {
        if self.begins.is_none() {
            self.at = first();
            self.begins = Some(self.at.clone());
        }
    }

    /// Ends the check: where the file begins and where it ends.
    pub fn end(self) -> Result<(Head, Head), Broken> {
        if !self.closed {
            return Err(Broken::NoHead);
        }
        Ok((self.begins.unwrap_or_else(Head::start), self.at))
    }
}
