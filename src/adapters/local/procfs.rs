//! What `/proc` says about the processes of an instance: the only truth about what runs (Linux only).
//!
//! Pid files lie: a crash between start and write loses the pid, and pids are used again. Here a
//! process belongs to an instance when its working directory is the instance's directory or
//! below, which the kernel keeps for as long as the process lives and every child inherits. A
//! person's shell standing in that directory is told apart by its terminal: what we start has
//! `/dev/null` as standard input, and so have its children.
//!
//! Time here is time since boot: it never jumps, survives a restart of the broker, and means
//! nothing after a reboot, which is exactly how long a process can live.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leader {
    /// Process id.
    pub pid: i32,
    /// Clock ticks after boot at which it started.
    pub start: u64,
}

/// One living process of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// Process id.
    pub pid: i32,
    /// Its parent's process id.
    pub parent: i32,
    /// Clock ticks after boot at which it started.
    pub start: u64,
}

/// Milliseconds since boot; 0 when `/proc` cannot be read.
pub(super) fn uptime_ms() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let mut parts = text.split([' ', '.']);
    let seconds: u64 = parts.next().and_then(|s| s.parse().ok()).unwrap_or(0);
    let hundredths: u64 = parts.next().and_then(|s| s.parse().ok()).unwrap_or(0);
    seconds * 1000 + hundredths * 10
}

/// A word that changes with every boot.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Whether we may see the working directories of other users' processes (`CAP_SYS_PTRACE`).
///
/// A container's root often may not, and would start a second server beside the one it cannot see.
pub(super) fn may_see_other_users() -> bool {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    std::fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps & CAP_SYS_PTRACE != 0)
}

/// The process with this pid unless it is gone or a zombie.
pub(super) fn look(pid: i32) -> Option<Process> {
    let (state, process) = stat(pid)?;
    (!matches!(state, b'Z' | b'X')).then_some(process)
}

/// When the process with this pid started, a zombie included.
pub(super) fn started(pid: i32) -> Option<u64> {
    stat(pid).map(|(_, process)| process.start)
}

/// Whether exactly this process still lives.
pub(super) fn lives(leader: Leader) -> bool {
    look(leader.pid).is_some_and(|process| process.start == leader.start)
}

/// `/proc/<pid>/stat`: the name in brackets may hold anything, so fields are counted after the last `)`.
fn stat(pid: i32) -> Option<(u8, Process)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = text.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let process = Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    };
    Some((*fields.first()?.as_bytes().first()?, process))
}

/// Living processes whose working directory is one of `dirs` or below, without ourselves and without terminals.
///
/// Errors: `/proc` cannot be listed; "nothing runs" is never concluded from that.
pub(super) fn family(dirs: &[&Path]) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for pid in pids()? {
        let Some(cwd) = cwd_of(pid) else { continue };
        if dirs.iter().any(|dir| below(&cwd, dir).is_some())
            && !at_terminal(pid)
            && let Some(process) = look(pid)
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// First path segments below `root` in which some process has its working directory.
pub(super) fn occupied(root: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for pid in pids()? {
        let Some(cwd) = cwd_of(pid) else { continue };
        if let Some(rest) = below(&cwd, root)
            && let Some(first) = rest.split(|&b| b == b'/').find(|s| !s.is_empty())
            && let Ok(name) = std::str::from_utf8(first)
            && !at_terminal(pid)
        {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

/// Processes of a family whose parent is not in it: where signals that ask go to.
pub(super) fn roots(family: &[Process]) -> Vec<Process> {
    let pids: BTreeSet<i32> = family.iter().map(|p| p.pid).collect();
    let mut roots: Vec<Process> = family
        .iter()
        .filter(|p| !pids.contains(&p.parent))
        .copied()
        .collect();
    roots.sort_by_key(|p| (p.start, p.pid));
    roots
}

fn pids() -> io::Result<Vec<i32>> {
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok())
            && pid > 1
            && pid != me
        {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// The working directory as the kernel shows it, without the mark of a deleted one. A zombie has none.
fn cwd_of(pid: i32) -> Option<Vec<u8>> {
    let link = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let bytes = link.as_os_str().as_bytes();
    Some(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes).to_vec())
}

/// What follows `dir` in `path`, when `path` is `dir` or below.
fn below<'a>(path: &'a [u8], dir: &Path) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(dir.as_os_str().as_bytes())?;
    (rest.is_empty() || rest[0] == b'/').then_some(rest)
}

fn at_terminal(pid: i32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|link| {
        let name: &OsStr = link.as_os_str();
        let bytes = name.as_bytes();
        bytes.starts_with(b"/dev/pts/") || bytes.starts_with(b"/dev/tty") || bytes == b"/dev/console"
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn below_keeps_to_segments() {
        let dir = Path::new("/a/b");
        assert_eq!(below(b"/a/b", dir), Some(&b""[..]));
        assert_eq!(below(b"/a/b/c", dir), Some(&b"/c"[..]));
        assert_eq!(below(b"/a/bc", dir), None);
        assert_eq!(below(b"/a", dir), None);
    }

    #[test]
    fn finds_by_directory_even_when_it_is_deleted_and_ignores_zombies() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().canonicalize().unwrap().join("x");
        std::fs::create_dir(&dir).unwrap();
        let mut child = Command::new("/bin/sleep")
            .arg("60")
            .current_dir(&dir)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(family(&[&dir]).unwrap().len(), 1);
        assert!(occupied(dir.parent().unwrap()).unwrap().contains("x"));
        std::fs::remove_dir(&dir).unwrap();
        let found = family(&[&dir]).unwrap();
        assert_eq!(found.len(), 1);
        let leader = Leader {
            pid,
            start: found[0].start,
        };
        assert!(lives(leader));
        assert!(!lives(Leader {
            pid,
            start: leader.start + 1
        }));
        child.kill().unwrap();
        for _ in 0..200 {
            if !lives(leader) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // Not waited for yet: a zombie, which must not count.
        assert!(!lives(leader));
        assert!(family(&[&dir]).unwrap().is_empty());
        assert_eq!(started(pid), Some(leader.start));
        child.wait().unwrap();
    }

    #[test]
    fn time_since_boot_moves() {
        let before = uptime_ms();
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(before > 0 && uptime_ms() > before);
        assert!(boot_id().len() > 10);
    }
}
