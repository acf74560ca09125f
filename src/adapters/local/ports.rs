//! Loopback ports, each reserved for one instance for as long as it exists.
//!
//! A reservation is a symbolic link `<dir>/<port>` whose target is the iid: making one is a single
//! step that fails when the name is taken, so a crash cannot leave half a reservation. Choosing
//! happens under one file lock, so threads and processes on the same data directory never get the
//! same port; a bind proves that nobody outside uses it. The search starts at a place derived
//! from the directory and the instance, so two brokers on one machine rarely meet.

use super::lock::FileLock;
use super::trouble;
use crate::domain::names;
use crate::ports::{PortError, PortResult};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// The reservations of one broker.
pub(super) struct Ports {
    /// Holds one link per reservation; belongs to us alone.
    pub dir: PathBuf,
    /// What may be handed out.
    pub range: RangeInclusive<u16>,
}

impl Ports {
    /// Adds to `have` a reserved port for each of `names` that has none.
    ///
    /// `exists(iid)` tells whether the instance a reservation names is still there; others are taken over.
    /// Errors: `Transient` when no port is free.
    pub fn reserve(
        &self,
        iid: &str,
        names: &[String],
        have: &mut BTreeMap<String, u16>,
        exists: &dyn Fn(&str) -> bool,
    ) -> PortResult<()> {
        let _lock = self.lock()?;
        for port in have.values() {
            // A reservation lost with the disk's last moments is made again; its port is ours by the facts.
            match self.owner(*port) {
                Some(owner) if owner != iid && exists(&owner) => {
                    return Err(PortError::invalid(
                        "A port of this instance is reserved for another one: delete the instance and create it again.",
                    )
                    .with_detail(format!("port {port} of {iid} is reserved for {owner}")));
                }
                Some(owner) if owner == iid => {}
                _ => self.take(iid, *port)?,
            }
        }
        for name in names {
            if !have.contains_key(name) {
                let port = self.pick(iid, name, have, exists)?;
                have.insert(name.clone(), port);
            }
        }
        Ok(())
    }

    fn pick(
        &self,
        iid: &str,
        name: &str,
        have: &BTreeMap<String, u16>,
        exists: &dyn Fn(&str) -> bool,
    ) -> PortResult<u16> {
        let all: Vec<u16> = self.range.clone().collect();
        let start = self.offset(iid, name, all.len());
        for port in all[start..].iter().chain(&all[..start]).copied() {
            let other = self
                .owner(port)
                .is_some_and(|owner| owner != iid && exists(&owner));
            // The listener made to find out is closed at once; nothing ever connected, so the port is free again.
            if !other && !have.values().any(|p| *p == port) && TcpListener::bind(("127.0.0.1", port)).is_ok()
            {
                self.take(iid, port)?;
                return Ok(port);
            }
        }
        Err(PortError::transient(
            "No free port is left on this machine for another instance: delete one, or ask the operator to widen the port range.",
        ))
    }

    fn offset(&self, iid: &str, name: &str, len: usize) -> usize {
        let mut hash = Sha256::new();
        hash.update(self.dir.as_os_str().as_encoded_bytes());
        for part in [iid, name] {
            hash.update([0]);
            hash.update(part.as_bytes());
        }
        let number = hash
            .finalize()
            .iter()
            .take(4)
            .fold(0_usize, |n, b| n << 8 | usize::from(*b));
        number.checked_rem(len).unwrap_or(0)
    }

    /// Makes the reservation, over a stale one if need be. Only under the lock.
    fn take(&self, iid: &str, port: u16) -> PortResult<()> {
        let link = self.dir.join(port.to_string());
        let made = match std::fs::remove_file(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => std::os::unix::fs::symlink(iid, &link),
        };
        made.map_err(|e| trouble("reserve a port", &e))
    }

    fn owner(&self, port: u16) -> Option<String> {
        let target = std::fs::read_link(self.dir.join(port.to_string())).ok()?;
        target.to_str().map(str::to_owned)
    }

    /// Gives back every port of an instance.
    pub fn release(&self, iid: &str) -> PortResult<()> {
        let _lock = self.lock()?;
        for (port, owner) in self.all()? {
            if owner == iid {
                match std::fs::remove_file(self.dir.join(port.to_string())) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(trouble("release a port", &e));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Instances that have a reservation.
    pub fn owners(&self) -> PortResult<BTreeSet<String>> {
        Ok(self
            .all()?
            .into_values()
            .filter(|owner| names::is_name(owner))
            .collect())
    }

    fn all(&self) -> PortResult<BTreeMap<u16, String>> {
        let entries = std::fs::read_dir(&self.dir).map_err(|e| trouble("list the reserved ports", &e))?;
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|port| Some((port, self.owner(port)?)))
            .collect())
    }

    fn lock(&self) -> PortResult<FileLock> {
        FileLock::wait(&self.dir.join(".lock"), 1000)
            .map_err(|e| trouble("lock the reserved ports", &e))?
            .ok_or_else(|| PortError::transient("The list of reserved ports is busy; try again."))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn iid(n: usize) -> String {
        names::iid("test", &n.to_string())
    }

    #[test]
    fn racing_threads_and_ranges() {
        let tmp = tempfile::tempdir().unwrap();
        let ports = Ports {
            dir: tmp.path().into(),
            range: 23400..=23431,
        };
        let got: Vec<u16> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..16)
                .map(|n| {
                    let ports = &ports;
                    scope.spawn(move || {
                        let mut have = BTreeMap::new();
                        ports
                            .reserve(&iid(n), &["a".into(), "b".into()], &mut have, &|_| true)
                            .unwrap();
                        have.into_values().collect::<Vec<_>>()
                    })
                })
                .collect();
            all.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), 32);
        assert_eq!(ports.owners().unwrap().len(), 16);

        let mut none = BTreeMap::new();
        assert!(
            ports
                .reserve(&iid(16), &["a".into()], &mut none, &|_| true)
                .is_err()
        );
        // What is reserved for an instance that does not exist any more may be taken.
        ports
            .reserve(&iid(16), &["a".into()], &mut none, &|owner| owner != iid(3))
            .unwrap();

        ports.release(&iid(5)).unwrap();
        ports.release(&iid(5)).unwrap();
        assert!(!ports.owners().unwrap().contains(&iid(5)));
        let mut again = BTreeMap::new();
        ports
            .reserve(&iid(17), &["a".into(), "b".into()], &mut again, &|_| true)
            .unwrap();
    }

    #[test]
    fn a_port_in_use_is_passed_over_and_a_kept_one_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let ports = Ports {
            dir: tmp.path().into(),
            range: port..=port,
        };
        let mut have = BTreeMap::new();
        assert!(
            ports
                .reserve(&iid(0), &["a".into()], &mut have, &|_| true)
                .is_err()
        );
        // Ours already: that it is in use now is no reason to lose it.
        have.insert("a".into(), port);
        ports
            .reserve(&iid(0), &["a".into()], &mut have, &|_| true)
            .unwrap();
        assert_eq!(have["a"], port);
        assert!(ports.reserve(&iid(1), &[], &mut have, &|_| true).is_err());
    }
}
