//! One worker at a time: a lock on a file, across threads and processes.
//!
//! The kernel drops the lock when its holder dies, so a crash never leaves one behind, and the
//! descriptor is close-on-exec, so a service never holds one. A child between `fork` and `exec`
//! does share it: should the broker be killed in that instant, the lock is held until the child
//! has its own program and directory, and nobody can look too early and start a second one.
//! The file is unlinked when its instance is removed, therefore whoever gets a lock checks that
//! the file still has its name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A held lock; released when dropped.
#[derive(Debug)]
pub(super) struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock, or `None` when somebody else holds it.
    pub fn attempt(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
                .open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(e),
            }
            let held = file.metadata()?;
            match std::fs::symlink_metadata(path) {
                Ok(named) if named.ino() == held.ino() && named.dev() == held.dev() => {
                    return Ok(Some(Self {
                        file,
                        path: path.to_path_buf(),
                    }));
                }
                // Unlinked by a removal while we waited: the name means another file by now.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes the lock within `tries` × 5 ms, blocking the thread.
    pub fn wait(path: &Path, tries: u32) -> io::Result<Option<Self>> {
        for _ in 0..tries {
            if let Some(lock) = Self::attempt(path)? {
                return Ok(Some(lock));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }

    /// Removes the file while its lock is held.
    pub fn unlink(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Explicit: another thread's fork may hold a copy of the descriptor for a moment longer.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn one_holder_even_when_the_file_is_unlinked() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..20 {
                        let lock = loop {
                            if let Some(lock) = FileLock::attempt(&path).unwrap() {
                                break lock;
                            }
                            std::thread::yield_now();
                        };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        if round % 3 == 0 {
                            lock.unlink().unwrap();
                        }
                    }
                });
            }
        });
    }
}
