//! Instances as real server processes on this machine (Linux only: it reads `/proc`).
//!
//! Each instance is one server with its own directory, loopback ports and unprivileged user. What
//! must stay true:
//! - a server outlives the broker and is found again by its working directory (`procfs`); no pid
//!   file is trusted, and after any crash the next call goes on from what is really there;
//! - calls for one instance run one after the other across threads and processes: a lock file per
//!   instance (`lock`) is taken before and held until the blocking work has ended, even when
//!   the caller gave up waiting, so a later `remove` always sees a finished `apply`;
//! - no call waits for a server to become ready or to stop; each bounds its own time;
//! - nothing the service's user can write is trusted (`files`, `state`).
//!
//! ```text
//! <root>/<iid>/            the instance, 0700, owned by the service's user; log/process.log is its output
//! <root>/.trash-<iid>/     the same while it is being erased
//! <root>/.state/<iid>.*    facts, run and lock, ours alone
//! <root>/.ports/<port>     a reservation: a link whose target is the iid
//! ```

mod binaries;
mod files;
mod host;
mod lock;
mod ports;
mod procfs;
mod start;
mod state;
#[cfg(test)]
mod tests;
mod users;
mod words;

use crate::domain::catalog::{Offering, Plan, ProcessTemplate};
use crate::domain::manifest::Desired;
use crate::domain::names;
use crate::ports::{
    InstanceRef, Observation, PortError, PortErrorKind, PortResult, Provisioner, Removal, Volumes,
};
use async_trait::async_trait;
use host::Host;
use lock::FileLock;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use users::Account;

/// The word in a plan's `runs_on`.
const NAME: &str = "local";
/// How long a binary that was found, or not found, is believed: milliseconds.
const BELIEVED_MS: u64 = 10_000;

/// Settings of the local provisioner.
#[derive(Debug, Clone)]
pub struct LocalSettings {
    /// Absolute path of the directory that holds the instances.
    pub root: PathBuf,
    /// Ports handed out on 127.0.0.1.
    pub port_range: RangeInclusive<u16>,
    /// The user every service runs as, instead of those the catalog names.
    pub run_as: Option<String>,
}

impl LocalSettings {
    /// Settings for `root` with the default ports, 20000 to 29999: below those the kernel hands out by itself.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            port_range: 20000..=29999,
            run_as: None,
        }
    }
}

/// Whether an offering can run here, for `chandler doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoctorRow {
    /// Name of the offering.
    pub offering: String,
    /// Whether instances can be made here.
    pub available: bool,
    /// What the offering needs, in name order.
    pub binaries: Vec<FoundBinary>,
    /// What is missing and what to do; empty when nothing is.
    pub advice: String,
}

/// A binary an offering needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundBinary {
    /// The name `process.yaml` gives it.
    pub name: String,
    /// Where it is, when found.
    pub path: Option<PathBuf>,
    /// First line of its `--version`, when it answers that quickly.
    pub version: Option<String>,
}

/// A candidate list and a user, with when and where it was found.
type Believed = HashMap<(Vec<String>, Account), (u64, Option<PathBuf>)>;

/// Runs instances as processes on this machine.
pub struct LocalProvisioner {
    host: Arc<Host>,
    believed: Mutex<Believed>,
}

impl LocalProvisioner {
    /// Opens (or makes) the directory of the instances and finishes what a crash left half erased.
    ///
    /// Errors: the root is not an absolute path, belongs to somebody else, or may be written by others.
    pub fn new(settings: LocalSettings) -> PortResult<Self> {
        let root = open_root(&settings.root)?;
        let memory = state::Memory {
            dir: root.join(".state"),
        };
        let ports = ports::Ports {
            dir: root.join(".ports"),
            range: settings.port_range,
        };
        for dir in [&memory.dir, &ports.dir] {
            make_dir(dir, 0o700).map_err(|e| trouble("make the broker's own directories", &e))?;
            only_ours(dir)?;
        }
        procfs::family(&[&root]).map_err(|e| trouble("read /proc", &e))?;
        let host = Host {
            root,
            memory,
            ports,
            run_as: settings.run_as,
            children: Mutex::new(HashMap::new()),
        };
        host.sweep_trash();
        Ok(Self {
            host: Arc::new(host),
            believed: Mutex::new(HashMap::new()),
        })
    }

    /// Stops every process and keeps the data; waits until they have ended, each within its own grace time.
    ///
    /// Returns how many instances had something running. A broker that is at work would start them again.
    pub async fn stop_all(&self) -> PortResult<usize> {
        let host = Arc::clone(&self.host);
        let running: Vec<String> = blocking(move || {
            let found = procfs::occupied(&host.root).map_err(|e| trouble("list the processes", &e))?;
            Ok(found.into_iter().filter(|name| names::is_name(name)).collect())
        })
        .await?;
        let count = running.len();
        let stops = running.iter().map(|iid| self.stop_one(iid));
        futures::future::try_join_all(stops).await?;
        Ok(count)
    }

    async fn stop_one(&self, iid: &str) -> PortResult<()> {
        // Twice the longest grace, with the half second each look takes.
        for _ in 0..2400 {
            if self.locked(iid, 400, Host::stop).await?.unwrap_or(false) {
                return Ok(());
            }
        }
        Err(PortError::transient(format!(
            "The processes of {iid} do not end."
        )))
    }

    /// What can run here and what to install for the rest. Runs each found binary with `--version`, so it may take seconds.
    pub fn doctor(&self, offerings: &[Arc<Offering>]) -> Vec<DoctorRow> {
        offerings.iter().map(|offering| self.examine(offering)).collect()
    }

    fn examine(&self, offering: &Offering) -> DoctorRow {
        let mut row = DoctorRow {
            offering: offering.name.clone(),
            available: false,
            binaries: Vec::new(),
            advice: String::new(),
        };
        let Some(template) = &offering.process else {
            row.advice = "It is not described as a local process.".into();
            return row;
        };
        if let Ok(account) = self.host.account(template) {
            row.binaries = template
                .binaries
                .iter()
                .map(|(name, candidates)| {
                    let path = binaries::find(candidates, &account);
                    let version = path.as_deref().and_then(|path| binaries::version(path, &account));
                    FoundBinary {
                        name: name.clone(),
                        path,
                        version,
                    }
                })
                .collect();
        }
        match self.runnable(template) {
            Ok(()) => row.available = true,
            Err(advice) => row.advice = advice,
        }
        row
    }

    /// Whether everything a service needs is here, else one sentence.
    fn runnable(&self, template: &ProcessTemplate) -> Result<(), String> {
        let account = self.host.account(template).map_err(|e| e.message)?;
        if let Some(obstacle) = self.host.obstacle(&account) {
            return Err(obstacle);
        }
        let missing: Vec<&str> = template
            .binaries
            .iter()
            .filter(|(_, candidates)| !self.found(candidates, &account))
            .map(|(name, _)| name.as_str())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!("{} not found: {}", missing.join(", "), template.install))
    }

    fn found(&self, candidates: &[String], account: &Account) -> bool {
        let key = (candidates.to_vec(), account.clone());
        let now = procfs::uptime_ms();
        let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, path)) = believed.get(&key)
            && now.saturating_sub(*at) < BELIEVED_MS
        {
            return path.is_some();
        }
        let path = binaries::find(candidates, account);
        believed.retain(|_, (at, _)| now.saturating_sub(*at) < BELIEVED_MS);
        believed.entry(key).or_insert((now, path)).1.is_some()
    }

    /// Runs blocking work under the instance's lock; `None` when the lock was not free within about `tries` × 25 ms.
    ///
    /// The lock moves into the work, so it is held to the work's end even if this future is dropped.
    async fn locked<T: Send + 'static>(
        &self,
        iid: &str,
        tries: u32,
        work: impl FnOnce(&Host, &str) -> PortResult<T> + Send + 'static,
    ) -> PortResult<Option<T>> {
        if !names::is_name(iid) {
            return Err(
                PortError::invalid("The instance's name does not have the form of one.")
                    .with_detail(format!("not a name: {iid:?}")),
            );
        }
        let path = self.host.memory.lock(iid);
        for attempt in 0..tries {
            // Opening and trying is a matter of microseconds; only waiting must not block.
            let lock = FileLock::attempt(&path).map_err(|e| trouble("lock the instance", &e))?;
            if let Some(lock) = lock {
                let (host, iid) = (Arc::clone(&self.host), iid.to_owned());
                return blocking(move || {
                    let done = work(&host, &iid);
                    if !host.exists(&iid) {
                        // Last act under the lock: nothing of a removed (or never known) instance stays.
                        lock.unlink()
                            .map_err(|e| trouble("remove the instance's lock", &e))?;
                    }
                    done
                })
                .await
                .map(Some);
            }
            tokio::time::sleep(Duration::from_millis(if attempt < 4 { 5 } else { 25 })).await;
        }
        Ok(None)
    }
}

#[async_trait]
impl Provisioner for LocalProvisioner {
    fn name(&self) -> &'static str {
        NAME
    }

    fn offers(&self, offering: &Offering, plan: &Plan) -> Result<(), String> {
        if !plan.runs_on.iter().any(|word| word == NAME) {
            return Err(format!("the plan {} does not run as a local process", plan.name));
        }
        match &offering.process {
            Some(template) => self.runnable(template),
            None => Err(format!("{} is not described as a local process", offering.name)),
        }
    }

    async fn place(&self, instance: &InstanceRef, offering: &Offering) -> PortResult<Map<String, Value>> {
        let offering = offering.clone();
        self.locked(&instance.iid, 400, move |host, iid| host.place(iid, &offering))
            .await?
            .ok_or_else(busy)
    }

    async fn apply(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<()> {
        let spec = process(desired)?;
        self.locked(&instance.iid, 400, move |host, iid| host.apply(iid, &spec))
            .await?
            .ok_or_else(busy)
    }

    async fn observe(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<Observation> {
        let spec = process(desired)?;
        let seen = self
            .locked(&instance.iid, 40, move |host, iid| host.observe(iid, &spec))
            .await?;
        Ok(seen
            .unwrap_or_else(|| Observation::Progressing(format!("{} is being worked on", instance.offering))))
    }

    async fn remove(&self, instance: &InstanceRef, _volumes: Volumes) -> PortResult<Removal> {
        let removal = self.locked(&instance.iid, 40, Host::remove).await?;
        Ok(removal.unwrap_or_else(|| Removal::StillGoing("waiting for an earlier step to end".into())))
    }

    async fn list(&self) -> PortResult<Vec<String>> {
        let host = Arc::clone(&self.host);
        blocking(move || host.list()).await
    }

    fn supervises(&self) -> bool {
        true
    }
}

fn process(desired: &Desired) -> PortResult<crate::domain::manifest::ProcessSpec> {
    desired
        .process
        .clone()
        .ok_or_else(|| PortError::invalid("The service is not described as a local process."))
}

fn busy() -> PortError {
    PortError::transient("Another step is still at work on this instance.")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> PortResult<T> + Send + 'static) -> PortResult<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(PortError::transient("A step ended unexpectedly; it is tried again.").with_detail(e))
    })
}

/// Puts a failed system call into words: what we tried goes to the user, the rest to the log.
fn trouble(what: &str, error: &io::Error) -> PortError {
    use nix::libc::{ELOOP, ENOSPC};
    let (kind, why) = match (error.kind(), error.raw_os_error()) {
        (_, Some(ENOSPC)) | (io::ErrorKind::QuotaExceeded, _) => {
            (PortErrorKind::Transient, "the disk is full; free some space")
        }
        (io::ErrorKind::NotADirectory, _) | (_, Some(ELOOP)) => (
            PortErrorKind::Denied,
            "something stands where a directory belongs; delete the instance",
        ),
        (io::ErrorKind::PermissionDenied, _) => (
            PortErrorKind::Denied,
            "permission denied; the broker must run as the user that made the instance, or as root",
        ),
        _ => (
            PortErrorKind::Transient,
            "the machine refused; the log has the reason",
        ),
    };
    PortError::new(kind, format!("The broker could not {what}: {why}."))
        .with_detail(format!("could not {what}: {error}"))
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Makes the root where needed and checks that nobody but us can put anything into it.
fn open_root(path: &Path) -> PortResult<PathBuf> {
    if !path.is_absolute() {
        return Err(PortError::invalid(format!(
            "The directory for instances must be an absolute path, not {}.",
            path.display()
        )));
    }
    let failed = |e: io::Error| trouble("make the directory for instances", &e);
    // Services of other users live below, so what we make ourselves lets them pass, but not look.
    make_dir(path, 0o711).map_err(failed)?;
    // As /proc shows it: without links.
    let root = path.canonicalize().map_err(failed)?;
    only_ours(&root)?;
    let mode = if nix::unistd::geteuid().is_root() {
        0o711
    } else {
        0o700
    };
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(root)
}

fn only_ours(dir: &Path) -> PortResult<()> {
    let meta =
        std::fs::symlink_metadata(dir).map_err(|e| trouble("look at the broker's own directories", &e))?;
    if meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(PortError::denied(format!(
        "{} must be a directory that belongs to the broker's user and that nobody else may write: change its owner and mode, or choose another data directory.",
        dir.display()
    )))
}
