//! Whom a service runs as, and whether that user can reach what it needs.
//!
//! A broker that is root never runs a service as root: it takes the first unprivileged user that
//! exists. A broker that is not root runs everything as itself.

use crate::ports::{PortError, PortResult};
use nix::unistd::{AccessFlags, User, getegid, geteuid};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Account {
    /// Login name, for messages.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

/// The account for a service: `run_as` when set, else the first of `candidates` that exists, else `nobody`.
///
/// Errors: `Denied` when `run_as` cannot be had or is root.
pub(super) fn choose(run_as: Option<&str>, candidates: &[String]) -> PortResult<Account> {
    let me = geteuid();
    if !me.is_root() {
        let name = User::from_uid(me)
            .ok()
            .flatten()
            .map_or_else(|| me.to_string(), |u| u.name);
        return match run_as {
            Some(other) if other != name => Err(PortError::denied(format!(
                "The broker runs as {name} and cannot start services as {other}: start it as root or leave `run_as` out."
            ))),
            _ => Ok(Account {
                name,
                uid: me.as_raw(),
                gid: getegid().as_raw(),
            }),
        };
    }
    let wanted: Vec<&str> = match run_as {
        Some(name) => vec![name],
        None => candidates.iter().map(String::as_str).chain(["nobody"]).collect(),
    };
    wanted
        .iter()
        .filter_map(|name| User::from_name(name).ok().flatten())
        .find(|user| !user.uid.is_root())
        .map(|user| Account {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        })
        .ok_or_else(|| {
            PortError::denied(format!(
                "No unprivileged user to run the service as (looked for {}): add one, or set `run_as`.",
                wanted.join(", ")
            ))
        })
}

/// The first directory on the way to `path` (itself included) that `account` may not enter.
pub(super) fn closed_directory(path: &Path, account: &Account) -> Option<PathBuf> {
    let mut dirs: Vec<&Path> = path.ancestors().collect();
    dirs.reverse();
    dirs.into_iter()
        .find(|dir| dir.exists() && !may_execute(dir, account))
        .map(Path::to_path_buf)
}

/// Whether `account` may run the file, or enter the directory, at `path`; directories above are not looked at.
pub(super) fn may_execute(path: &Path, account: &Account) -> bool {
    if !geteuid().is_root() {
        return nix::unistd::access(path, AccessFlags::X_OK).is_ok();
    }
    // Services run without supplementary groups, so these three cases are all there is.
    let Ok(meta) = std::fs::metadata(path) else {
        return false;
    };
    let bit = if meta.uid() == account.uid {
        0o100
    } else if meta.gid() == account.gid {
        0o010
    } else {
        0o001
    };
    meta.mode() & bit != 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn never_root() {
        if !geteuid().is_root() {
            return;
        }
        assert_eq!(
            choose(None, &["no-such-user".into(), "root".into()])
                .unwrap()
                .name,
            "nobody"
        );
        assert_eq!(
            choose(None, &["postgres".into(), "nobody".into()]).unwrap().name,
            "postgres"
        );
        assert!(choose(Some("root"), &[]).is_err());
        assert!(choose(Some("no-such-user"), &["nobody".into()]).is_err());
    }

    #[test]
    fn names_the_closed_directory() {
        if !geteuid().is_root() {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(tmp.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let account = choose(None, &[]).unwrap();
        let deep = tmp.path().join("a");
        std::fs::create_dir(&deep).unwrap();
        assert_eq!(closed_directory(&deep, &account).unwrap(), tmp.path());
        std::fs::set_permissions(tmp.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(closed_directory(&deep, &account), None);
    }
}
