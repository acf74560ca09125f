//! Which of a service's binaries are on this machine.
//!
//! A candidate is a name looked up in PATH or an absolute path with at most one `*`, of whose
//! matches the highest version wins. What the service's user may not run does not count as found.

use super::users::{self, Account};
use std::cmp::Ordering;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What every service gets as PATH, and where binaries are looked for after the broker's own PATH.
pub(super) const BARE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The first candidate that exists and that `account` may run.
pub(super) fn find(candidates: &[String], account: &Account) -> Option<PathBuf> {
    candidates
        .iter()
        .flat_map(|candidate| expand(candidate))
        .find(|path| runnable(path, account))
}

/// The paths a candidate stands for, best first.
#[expect(
    clippy::disallowed_methods,
    reason = "where programs are is a fact of the machine, not a setting"
)]
fn expand(candidate: &str) -> Vec<PathBuf> {
    if !candidate.starts_with('/') {
        if candidate.is_empty() || candidate.contains('/') {
            return Vec::new();
        }
        let own = std::env::var("PATH").unwrap_or_default();
        return own
            .split(':')
            .chain(BARE_PATH.split(':'))
            .filter(|dir| dir.starts_with('/'))
            .map(|dir| Path::new(dir).join(candidate))
            .collect();
    }
    let Some((before, after)) = candidate.split_once('*') else {
        return vec![PathBuf::from(candidate)];
    };
    let Some((dir, prefix)) = before.rsplit_once('/') else {
        return Vec::new();
    };
    let (suffix, rest) = after.split_once('/').map_or((after, None), |(s, r)| (s, Some(r)));
    let dir = if dir.is_empty() { "/" } else { dir };
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name.len() >= prefix.len() + suffix.len() && name.starts_with(prefix) && name.ends_with(suffix)
        })
        .collect();
    names.sort_by(|a, b| by_version(b, a));
    names
        .into_iter()
        .map(|name| {
            rest.map_or_else(
                || Path::new(dir).join(&name),
                |rest| Path::new(dir).join(&name).join(rest),
            )
        })
        .collect()
}

/// Compares names so that `9.6 < 15 < 15.2`.
fn by_version(a: &str, b: &str) -> Ordering {
    chunks(a).cmp(&chunks(b))
}

fn chunks(name: &str) -> Vec<(u64, String)> {
    let mut chunks: Vec<(u64, String)> = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            chunks.push((rest[..digits].parse().unwrap_or(u64::MAX), String::new()));
            rest = &rest[digits..];
        } else {
            let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            chunks.push((0, rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    chunks
}

fn runnable(path: &Path, account: &Account) -> bool {
    let Ok(real) = path.canonicalize() else {
        return false;
    };
    let reachable = |p: &Path| {
        p.parent()
            .is_none_or(|dir| users::closed_directory(dir, account).is_none())
    };
    real.is_file() && users::may_execute(&real, account) && reachable(path) && reachable(&real)
}

/// The first line of `<binary> --version`, run as `account` for at most two seconds.
pub(super) fn version(binary: &Path, account: &Account) -> Option<String> {
    let mut command = Command::new(binary);
    command
        .arg("--version")
        .env_clear()
        .env("PATH", BARE_PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    if nix::unistd::geteuid().is_root() {
        command.uid(account.uid).gid(account.gid);
    }
    super::start::keep_descriptors_ours();
    let mut child = command.spawn().ok()?;
    for _ in 0..200 {
        if child.try_wait().ok()?.is_some() {
            let mut text = Vec::new();
            child.stdout.take()?.take(2048).read_to_end(&mut text).ok()?;
            let line: String = String::from_utf8_lossy(&text)
                .lines()
                .next()?
                .chars()
                .filter(|c| !c.is_control())
                .take(100)
                .collect();
            return (!line.is_empty()).then_some(line);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn executable(path: &Path, mode: u32) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "#!/bin/sh\necho tool 1.2.3\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn highest_version_that_can_be_run() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(tmp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let account = users::choose(None, &[]).unwrap();
        for version in ["9.6", "15", "16"] {
            executable(&tmp.path().join(format!("pg/{version}/bin/tool")), 0o755);
        }
        executable(&tmp.path().join("pg/17/bin/tool"), 0o644);
        std::fs::create_dir_all(tmp.path().join("pg/18/bin/tool")).unwrap();
        let root = tmp.path().display();
        let find = |candidate: String| find(&[candidate], &account);
        assert_eq!(
            find(format!("{root}/pg/*/bin/tool")).unwrap(),
            tmp.path().join("pg/16/bin/tool")
        );
        assert_eq!(find(format!("{root}/pg/1*6x/bin/tool")), None);
        assert_eq!(
            find(format!("{root}/pg/9*/bin/tool")).unwrap(),
            tmp.path().join("pg/9.6/bin/tool")
        );
        assert_eq!(
            find(format!("{root}/pg/16/bin/to*l")).unwrap(),
            tmp.path().join("pg/16/bin/tool")
        );
        assert_eq!(find(format!("{root}/nothing/*/tool")), None);
        assert_eq!(find("no-such-binary-anywhere".into()), None);
        assert_eq!(find("../bin/sh".into()), None);
        assert!(find("sh".into()).is_some());
        assert_eq!(
            version(&tmp.path().join("pg/16/bin/tool"), &account).unwrap(),
            "tool 1.2.3"
        );
    }

    #[test]
    fn a_binary_behind_a_closed_door_is_not_found() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(tmp.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        executable(&tmp.path().join("tool"), 0o755);
        let account = users::choose(None, &[]).unwrap();
        assert_eq!(
            find(&[tmp.path().join("tool").display().to_string()], &account),
            None
        );
    }

    #[test]
    fn versions_order() {
        assert_eq!(by_version("9.6", "15"), Ordering::Less);
        assert_eq!(by_version("15", "15.2"), Ordering::Less);
        assert_eq!(by_version("v24.1", "v24.10"), Ordering::Less);
    }
}
