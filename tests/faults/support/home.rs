//! A directory of a test's own, and what lives in it. However the test ends, nothing of it stays.

use super::platform::Service;
use super::process::repository;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A process that works somewhere below a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    pub pid: i32,
    pub parent: i32,
    /// Where it works, relative to the directory that was asked about.
    pub at: PathBuf,
}

/// Processes whose working directory is `dir` or below, zombies left out.
pub fn processes_below(dir: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(cwd) = std::fs::read_link(entry.path().join("cwd")) else {
            continue;
        };
        let cwd = PathBuf::from(cwd.to_str().unwrap_or_default().trim_end_matches(" (deleted)"));
        let Ok(at) = cwd.strip_prefix(dir) else { continue };
        let Some((state, parent)) = stat(pid) else {
            continue;
        };
        if !matches!(state, 'Z' | 'X') {
            found.push(Found {
                pid,
                parent,
                at: at.to_owned(),
            });
        }
    }
    found.sort();
    found
}

/// State letter and parent of a process.
pub fn stat(pid: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = &text[text.rfind(')')? + 2..];
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Sends a signal; a process that is gone is fine.
pub fn signal(pid: i32, signal: Signal) {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(e) => panic!("signal {signal} to {pid}: {e}"),
    }
}

/// The directory, with the broker's data directory in it.
pub struct Home {
    dir: tempfile::TempDir,
    mounts: Vec<PathBuf>,
    logs: AtomicUsize,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("chandler-faults-")
            .tempdir()
            .unwrap();
        // Services run as users of their own and must be able to pass through.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        // The services that are tested and no others: a broker that starts hundreds of times reads them hundreds of times.
        for service in Service::ALL {
            for top in ["catalog", "plans"] {
                let to = dir.path().join("offers").join(top).join(service.name());
                std::fs::create_dir_all(&to).unwrap();
                for file in std::fs::read_dir(repository().join(top).join(service.name()))
                    .unwrap()
                    .flatten()
                {
                    if file.file_type().unwrap().is_file() {
                        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
                    }
                }
            }
        }
        Self {
            dir,
            mounts: Vec::new(),
            logs: AtomicUsize::new(0),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A directory with the catalog and the plans of the services that are tested.
    pub fn offers(&self) -> PathBuf {
        self.path().join("offers")
    }

    /// The data directory of a `chandler dev`.
    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Where the instances of a `chandler dev` are.
    pub fn instances(&self) -> PathBuf {
        self.data().join("instances")
    }

    /// A log file for one more broker.
    pub fn new_log(&self) -> PathBuf {
        let n = self.logs.fetch_add(1, Ordering::Relaxed);
        self.path().join(format!("broker-{n}.log"))
    }

    /// All that brokers of this home have logged.
    pub fn logged(&self) -> String {
        let mut all = String::new();
        for n in 0..self.logs.load(Ordering::Relaxed) {
            let log = std::fs::read(self.path().join(format!("broker-{n}.log"))).unwrap_or_default();
            all.push_str(&String::from_utf8_lossy(&log));
        }
        all
    }

    /// Writes a file of mode 0600 and gives its path.
    pub fn private(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Makes the data directory a file system of its own of so many MiB; false when we may not.
    pub fn mount_small_data(&mut self, mib: u32) -> bool {
        let at = self.data();
        std::fs::create_dir_all(&at).unwrap();
        let done = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=711"), "tmpfs"])
            .arg(&at)
            .output()
            .is_ok_and(|o| o.status.success());
        if done {
            self.mounts.push(at);
        }
        done
    }

    /// The process of an instance that the others of it descend from.
    pub fn leader(&self, iid: &str) -> Option<i32> {
        let all = processes_below(&self.instances().join(iid));
        let pids: BTreeSet<i32> = all.iter().map(|p| p.pid).collect();
        all.iter().find(|p| !pids.contains(&p.parent)).map(|p| p.pid)
    }

    /// Permission bits of a file.
    pub fn mode(path: &Path) -> u32 {
        std::fs::metadata(path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            .mode()
            & 0o7777
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.logged();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(80);
            eprintln!(
                "--- the last of the broker's log ---\n{}",
                lines[from..].join("\n")
            );
        }
        for _ in 0..200 {
            let left = processes_below(self.path());
            if left.is_empty() {
                break;
            }
            for process in left {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for mount in &self.mounts {
            let _ = std::process::Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}
