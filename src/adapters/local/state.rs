//! What the broker remembers about an instance beside its directory.
//!
//! Kept in a directory of our own, not in the instance's: what the service's user can write must
//! not decide which program we start or which port we log in to. `facts` are chosen once and
//! synced to disk; `run` describes the current process and may be lost at any time, because
//! `/proc` knows better. Neither holds a secret: of files and commands only hashes are kept.

use super::procfs::{self, Leader};
use super::trouble;
use super::users::Account;
use crate::domain::manifest::{ProcessSpec, StopSpec};
use crate::ports::PortResult;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What [`place`](crate::ports::Provisioner::place) chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Name of the offering, for messages.
    pub offering: String,
    /// Whom the service runs as.
    pub account: Account,
    /// Port name → port.
    pub ports: BTreeMap<String, u16>,
    /// Binary name → path.
    pub bin: BTreeMap<String, PathBuf>,
}

/// Where the process of an instance stands. Written before every act that it describes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Not started, or stopped by us.
    #[default]
    Idle,
    /// `init` runs: what `/proc` shows is not the service.
    Init,
    /// About to be started: what `/proc` shows is the service, although we may not have learnt its pid.
    Starting,
    /// Started.
    Running(Leader),
    /// Ended by itself.
    Exited,
}

/// The current process of an instance.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Run {
    /// The boot to which all times (milliseconds since boot) belong.
    pub boot: String,
    /// Where it stands.
    pub phase: Phase,
    /// When we asked it to stop.
    pub stopping: Option<u64>,
    /// Set once removal has begun: nothing is started here any more.
    pub removing: bool,
    /// Hash of program, arguments and environment it was started with.
    pub command: String,
    /// Hash of the files it was started (or last reloaded) with.
    pub files: String,
    /// How it wants to be stopped.
    pub stop: StopSpec,
    /// When it was started.
    pub started: u64,
    /// Whether it has answered since then.
    pub ready: bool,
    /// How often in a row it ended by itself.
    pub crashes: u32,
    /// When we noticed the last of these.
    pub exited: u64,
    /// How it ended, when we were its parent: `exit code 1`.
    pub ending: String,
    /// Where its lines begin in the log.
    pub log_from: u64,
}

/// After this long up and answering, earlier crashes are forgotten.
const STABLE_MS: u64 = 30_000;

impl Run {
    /// Takes note that the process is not there: a crash unless we stopped it.
    pub fn note_end(&mut self, now: u64) {
        if let Phase::Running(_) = self.phase {
            if self.stopping.is_some() {
                self.phase = Phase::Idle;
                self.crashes = 0;
            } else {
                self.phase = Phase::Exited;
                self.crashes = self.crashes.saturating_add(1);
                self.exited = now;
            }
        }
        self.stopping = None;
    }

    /// Takes note that it answers.
    pub fn note_ready(&mut self, now: u64) {
        self.ready = true;
        if now.saturating_sub(self.started) >= STABLE_MS {
            self.crashes = 0;
        }
    }

    /// Whether starting it again at once makes no sense: it ended by itself three times in a row without ever
    /// answering (five times when it had answered). Pauses grow from ten seconds to five minutes.
    pub fn given_up(&self, now: u64) -> bool {
        let limit = if self.ready { 5 } else { 3 };
        if self.phase != Phase::Exited || self.crashes < limit {
            return false;
        }
        let pause = (10_000_u64 << (self.crashes - limit).min(5)).min(300_000);
        now.saturating_sub(self.exited) < pause
    }

    /// Whether the time it was given to stop is over.
    pub fn grace_over(&self, now: u64) -> bool {
        let grace = u64::from(self.stop.grace.min(600)) * 1000;
        self.stopping
            .is_some_and(|since| now < since || now - since >= grace)
    }
}

/// Hashes of what a running process depends on: (program, arguments and environment; files).
///
/// Files the process changes itself, and those only `init` reads, do not count.
pub(super) fn hashes(spec: &ProcessSpec) -> (String, String) {
    let files: Vec<(&str, &str)> = spec
        .files
        .iter()
        .filter(|f| !f.keep && !f.init_only)
        .map(|f| (f.path.as_str(), f.content.as_str()))
        .collect();
    (hash(&(&spec.command, &spec.env)), hash(&files))
}

fn hash(value: &impl Serialize) -> String {
    // Serialising plain text cannot fail; if it ever did, an empty hash only means "changed".
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    data_encoding::HEXLOWER.encode(&Sha256::digest(&bytes))
}

/// The files of all instances: `<dir>/<iid>.facts`, `.run` and `.lock`.
pub(super) struct Memory {
    /// Belongs to us alone, mode 0700.
    pub dir: PathBuf,
}

impl Memory {
    /// The lock file of an instance.
    pub fn lock(&self, iid: &str) -> PathBuf {
        self.dir.join(format!("{iid}.lock"))
    }

    /// What was chosen for an instance.
    pub fn facts(&self, iid: &str) -> PortResult<Option<Facts>> {
        self.read(&format!("{iid}.facts"))
            .map_err(|e| trouble("read what was chosen for the instance", &e))
    }

    /// Keeps what was chosen, on disk when this returns.
    pub fn keep_facts(&self, iid: &str, facts: &Facts) -> PortResult<()> {
        self.write(&format!("{iid}.facts"), facts, true)
            .map_err(|e| trouble("keep what was chosen for the instance", &e))
    }

    /// The process of an instance; an unreadable or older boot's file counts as none.
    pub fn run(&self, iid: &str) -> Run {
        let boot = procfs::boot_id();
        match self.read::<Run>(&format!("{iid}.run")) {
            Ok(Some(run)) if run.boot == boot => run,
            Ok(Some(old)) => Run {
                boot,
                removing: old.removing,
                ..Run::default()
            },
            _ => Run {
                boot,
                ..Run::default()
            },
        }
    }

    /// Keeps the process of an instance.
    pub fn keep_run(&self, iid: &str, run: &Run) -> PortResult<()> {
        self.write(&format!("{iid}.run"), run, false)
            .map_err(|e| trouble("keep the state of the process", &e))
    }

    /// Forgets everything but the lock.
    pub fn forget(&self, iid: &str) -> PortResult<()> {
        for suffix in ["run.tmp", "facts.tmp", "run", "facts"] {
            match std::fs::remove_file(self.dir.join(format!("{iid}.{suffix}"))) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(trouble("forget the instance", &e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether anything is remembered of an instance.
    pub fn knows(&self, iid: &str) -> bool {
        ["facts", "run"]
            .iter()
            .any(|suffix| self.dir.join(format!("{iid}.{suffix}")).exists())
    }

    /// Instances of which something is remembered.
    pub fn known(&self) -> PortResult<Vec<String>> {
        let entries = std::fs::read_dir(&self.dir).map_err(|e| trouble("list the instances", &e))?;
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| {
                let (iid, suffix) = name.split_once('.')?;
                (suffix != "lock").then(|| iid.to_owned())
            })
            .collect())
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match std::fs::read(self.dir.join(name)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn write(&self, name: &str, value: &impl Serialize, sync: bool) -> io::Result<()> {
        let temporary = self.dir.join(format!("{name}.tmp"));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        if sync {
            file.sync_all()?;
        }
        std::fs::rename(&temporary, self.dir.join(name))?;
        if sync {
            sync_dir(&self.dir)?;
        }
        Ok(())
    }
}

/// Puts the names in a directory on disk.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::manifest::FileSpec;

    fn running() -> Run {
        Run {
            phase: Phase::Running(Leader { pid: 7, start: 8 }),
            ..Run::default()
        }
    }

    #[test]
    fn crashes_in_a_row() {
        let mut run = running();
        for n in 1..=3 {
            run.phase = running().phase;
            run.note_end(1000);
            // Looking twice at one end counts once.
            run.note_end(1001);
            assert_eq!(run.crashes, n);
            assert_eq!(run.given_up(1002), n == 3);
        }
        assert!(!run.given_up(11_001), "the pause is over");
        run.ready = true;
        assert!(!run.given_up(1002), "one that answered gets more tries");
        run.note_ready(10);
        assert_eq!(run.crashes, 3);
        run.note_ready(STABLE_MS);
        assert_eq!(run.crashes, 0);
        run.crashes = u32::MAX;
        assert!(run.given_up(1002));
    }

    #[test]
    fn what_we_stopped_did_not_crash() {
        let mut run = running();
        run.stop.grace = 2;
        run.stopping = Some(500);
        assert!(!run.grace_over(2_400));
        assert!(run.grace_over(2_500));
        assert!(run.grace_over(400), "a time from before cannot hold it up");
        run.note_end(1000);
        assert_eq!((run.phase, run.stopping, run.crashes), (Phase::Idle, None, 0));
    }

    #[test]
    fn hashes_see_what_matters() {
        let spec = ProcessSpec {
            files: vec![FileSpec {
                path: "a".into(),
                content: "1".into(),
                ..FileSpec::default()
            }],
            command: vec!["/bin/x".into()],
            ..ProcessSpec::default()
        };
        let (command, files) = hashes(&spec);
        let mut other = spec.clone();
        other.files.push(FileSpec {
            path: "acl".into(),
            content: "2".into(),
            keep: true,
            ..FileSpec::default()
        });
        other.files.push(FileSpec {
            path: "pw".into(),
            content: "3".into(),
            init_only: true,
            ..FileSpec::default()
        });
        assert_eq!(hashes(&other), (command.clone(), files.clone()));
        other.files[0].content = "x".into();
        other.env.insert("A".into(), "B".into());
        let (command2, files2) = hashes(&other);
        assert!(command2 != command && files2 != files);
    }

    #[test]
    fn memory_survives_and_another_boot_does_not() {
        let tmp = tempfile::tempdir().unwrap();
        let memory = Memory {
            dir: tmp.path().into(),
        };
        assert_eq!(memory.facts("x").unwrap(), None);
        let mut run = memory.run("x");
        run.crashes = 2;
        run.removing = true;
        memory.keep_run("x", &run).unwrap();
        assert!(memory.run("x") == run);
        run.boot = "earlier".into();
        memory.keep_run("x", &run).unwrap();
        let now = memory.run("x");
        assert!(now.removing && now.crashes == 0);
        assert_eq!(memory.known().unwrap(), ["x"]);
        std::fs::write(tmp.path().join("x.run"), "{half").unwrap();
        assert_eq!(memory.run("x").phase, Phase::Idle);
        std::fs::write(tmp.path().join("x.facts"), "{half").unwrap();
        assert!(memory.facts("x").is_err());
        memory.forget("x").unwrap();
        memory.forget("x").unwrap();
        assert!(memory.known().unwrap().is_empty());
    }
}
