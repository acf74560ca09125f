//! Writing into a directory that belongs to somebody less trusted than we are.
//!
//! A broker that is root writes into instance directories that the service's user owns, and that
//! user (or whoever took over the server) may plant symbolic links, pipes or directories there
//! to make root write or give away something else. What holds against it:
//! - every step down is an `openat` with `O_NOFOLLOW` from a directory already held open, so a
//!   path cannot be bent between check and use, and every directory must belong to the service's user;
//! - files are made new (`O_EXCL`) under a temporary name, handed over by descriptor, then renamed:
//!   a rename replaces a planted link instead of following it;
//! - logs are opened without following links and must be plain files with one name;
//! - `std::fs::remove_dir_all`, used by our callers, never follows a link either.

use super::users::Account;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fchown, fsync, unlinkat};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Where half-written files stand until they are renamed.
const TEMPORARY: &str = ".chandler-tmp";

/// A directory held open, and whose it is.
pub(super) struct Dir {
    fd: OwnedFd,
    account: Account,
}

impl Dir {
    /// Makes (when absent) and opens an instance's directory, 0700 and owned by `account`.
    ///
    /// Its parent must belong to us alone: only then is taking over what stands there safe.
    pub fn ensure(path: &Path, account: &Account) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let dir = Self::open(path, account)?;
        dir.own(&dir.fd)?;
        fchmod(&dir.fd, Mode::from_bits_truncate(0o700))?;
        Ok(dir)
    }

    /// Opens a directory without following a link in its last segment.
    pub fn open(path: &Path, account: &Account) -> io::Result<Self> {
        let fd = nix::fcntl::open(path, directory(), Mode::empty())?;
        Ok(Self {
            fd,
            account: account.clone(),
        })
    }

    /// Hands a descriptor over to the service's user; nothing to do when that is ourselves.
    fn own(&self, fd: impl AsFd) -> io::Result<()> {
        if nix::unistd::geteuid().is_root() {
            fchown(fd, Some(self.account.uid.into()), Some(self.account.gid.into()))?;
        }
        Ok(())
    }

    /// Opens the directory `name` in this one, made when absent.
    pub fn sub(&self, name: &str) -> io::Result<Self> {
        for _ in 0..3 {
            let made = match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o700)) {
                Ok(()) => true,
                Err(nix::Error::EEXIST) => false,
                Err(e) => return Err(e.into()),
            };
            let fd = openat(&self.fd, name, directory(), Mode::empty())?;
            if made {
                self.own(&fd)?;
            }
            if fstat(&fd)?.st_uid == self.account.uid {
                return Ok(Self {
                    fd,
                    account: self.account.clone(),
                });
            }
            // Ours from a crash before the hand-over: empty then. Anything else stays and is an error.
            unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)?;
        }
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Opens the directory that holds the last segment of `path`, made when absent.
    fn parent<'a>(&self, path: &'a str) -> io::Result<(Self, &'a str)> {
        let mut at = Self {
            fd: self.fd.try_clone()?,
            account: self.account.clone(),
        };
        let Some((dirs, name)) = path.rsplit_once('/') else {
            return Ok((at, path));
        };
        for segment in dirs.split('/') {
            at = at.sub(segment)?;
        }
        Ok((at, name))
    }

    /// Replaces the file at `path` (checked by [`is_plain`]) whole or not at all: mode 0600, owned by the service's user.
    pub fn write(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let mut file = dir.create(TEMPORARY)?;
        file.write_all(content)?;
        dir.own(&file)?;
        fsync(&file)?;
        renameat(&dir.fd, TEMPORARY, &dir.fd, name)?;
        Ok(())
    }

    /// Makes a new file; whatever stood there is unlinked first, never opened.
    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_WRONLY
            | OFlag::O_APPEND
            | OFlag::O_CREAT
            | OFlag::O_EXCL
            | OFlag::O_NOFOLLOW
            | OFlag::O_CLOEXEC;
        for _ in 0..3 {
            match openat(&self.fd, name, flags, Mode::from_bits_truncate(0o600)) {
                Ok(fd) => return Ok(File::from(fd)),
                Err(nix::Error::EEXIST) => self.unlink_here(name)?,
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn unlink_here(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes the file at `path`; an absent one is success.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        if self.stat(path)?.is_none() {
            return Ok(());
        }
        let (dir, name) = self.parent(path)?;
        dir.unlink_here(name)
    }

    /// What stands at `path`, links not followed; `None` when nothing does.
    pub fn stat(&self, path: &str) -> io::Result<Option<FileStat>> {
        let mut fd = self.fd.try_clone()?;
        let mut segments: Vec<&str> = path.split('/').collect();
        let name = segments.pop().unwrap_or_default();
        for segment in segments {
            fd = match openat(&fd, segment, directory(), Mode::empty()) {
                Ok(next) => next,
                Err(nix::Error::ENOENT) => return Ok(None),
                Err(e) => return Err(e.into()),
            };
        }
        match fstatat(&fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(nix::Error::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a directory stands at `path`. Errors: something else does.
    pub fn has_dir(&self, path: &str) -> io::Result<bool> {
        match self.stat(path)? {
            None => Ok(false),
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => Ok(true),
            Some(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Renames the entry `from` of this directory to `path`, which must be absent.
    pub fn rename(&self, from: &str, path: &str) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        renameat(&self.fd, from, &dir.fd, name)?;
        fsync(&dir.fd)?;
        Ok(())
    }

    /// Opens a log for appending, 0600; one longer than `limit` bytes becomes `<name>.1` first.
    pub fn append(&self, name: &str, limit: u64) -> io::Result<File> {
        // Not blocking: opening a planted pipe for writing would wait for a reader for ever.
        let flags =
            OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let old = openat(&self.fd, name, flags, Mode::empty()).ok().map(File::from);
        if let Some(file) = old {
            let stat = fstat(&file)?;
            if kind(&stat) == SFlag::S_IFREG && stat.st_nlink == 1 && stat.st_uid == self.account.uid {
                if u64::try_from(stat.st_size).unwrap_or(0) <= limit {
                    let blocking = nix::fcntl::FcntlArg::F_SETFL(OFlag::O_APPEND);
                    nix::fcntl::fcntl(&file, blocking)?;
                    return Ok(file);
                }
                renameat(&self.fd, name, &self.fd, format!("{name}.1").as_str())?;
            }
        }
        let file = self.create(name)?;
        self.own(&file)?;
        Ok(file)
    }

    /// At most the last `limit` bytes of the plain file at `path`, counted from byte `from`; empty when there is none.
    pub fn tail(&self, path: &str, from: u64, limit: u64) -> String {
        self.read_tail(path, from, limit).unwrap_or_default()
    }

    fn read_tail(&self, path: &str, from: u64, limit: u64) -> io::Result<String> {
        let mut fd = self.fd.try_clone()?;
        let mut segments: Vec<&str> = path.split('/').collect();
        let name = segments.pop().unwrap_or_default();
        for segment in segments {
            fd = openat(&fd, segment, directory(), Mode::empty())?;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&fd, name, flags, Mode::empty())?);
        let stat = fstat(&file)?;
        // A second name could be a hard link to a file of somebody else: root would read it out.
        if kind(&stat) != SFlag::S_IFREG || stat.st_nlink != 1 {
            return Ok(String::new());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let from = if from > size { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(size.saturating_sub(limit))))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn directory() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Whether a path from the catalog stays inside the instance's directory and out of our own names there.
pub(super) fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 200
        && !path.chars().any(char::is_control)
        && path
            .split('/')
            .all(|s| !s.is_empty() && s != "." && s != ".." && s != TEMPORARY)
        && !matches!(path.split('/').next(), Some("log" | ".init"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::users;
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn service() -> Account {
        users::choose(None, &["nobody".into()]).unwrap()
    }

    #[test]
    fn plain_paths() {
        for good in ["a", "a/b.conf", "data/postgresql.conf", ".hidden"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "./a",
            "a/",
            "a\0b",
            "a\nb",
            "log/process.log",
            ".init",
            ".chandler-tmp",
        ] {
            assert!(!is_plain(bad), "{bad:?}");
        }
        assert!(!is_plain(&"x".repeat(201)));
    }

    #[test]
    fn writes_privately_and_for_the_user() {
        let tmp = tempfile::tempdir().unwrap();
        let account = service();
        let dir = Dir::ensure(&tmp.path().join("i"), &account).unwrap();
        dir.write("conf/a.conf", b"one").unwrap();
        dir.write("conf/a.conf", b"two").unwrap();
        let path = tmp.path().join("i/conf/a.conf");
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o600, account.uid, account.gid)
        );
        let conf = std::fs::metadata(tmp.path().join("i/conf")).unwrap();
        assert_eq!((conf.mode() & 0o7777, conf.uid()), (0o700, account.uid));
        assert_eq!(std::fs::read_dir(tmp.path().join("i/conf")).unwrap().count(), 1);
    }

    #[test]
    fn planted_links_lead_nowhere() {
        let tmp = tempfile::tempdir().unwrap();
        let outside = tmp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let victim = outside.join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        let home = tmp.path().join("i");
        let dir = Dir::ensure(&home, &service()).unwrap();

        symlink(&outside, home.join("conf")).unwrap();
        assert!(dir.write("conf/victim", b"evil").is_err());
        assert!(dir.stat("conf/victim").is_err());
        assert!(dir.sub("conf").is_err());

        symlink(&victim, home.join("file")).unwrap();
        symlink(&victim, home.join(TEMPORARY)).unwrap();
        dir.write("file", b"mine").unwrap();
        assert_eq!(std::fs::read_to_string(home.join("file")).unwrap(), "mine");

        let log = dir.sub("log").unwrap();
        symlink(&victim, home.join("log/process.log")).unwrap();
        log.append("process.log", 100)
            .unwrap()
            .write_all(b"line")
            .unwrap();
        assert_eq!(
            std::fs::read_to_string(home.join("log/process.log")).unwrap(),
            "line"
        );

        std::fs::remove_file(home.join("log/process.log")).unwrap();
        std::fs::hard_link(&victim, home.join("log/process.log")).unwrap();
        assert_eq!(dir.tail("log/process.log", 0, 100), "");
        log.append("process.log", 100)
            .unwrap()
            .write_all(b"line")
            .unwrap();

        std::fs::remove_file(home.join("log/process.log")).unwrap();
        nix::unistd::mkfifo(&home.join("log/process.log"), Mode::from_bits_truncate(0o600)).unwrap();
        log.append("process.log", 100)
            .unwrap()
            .write_all(b"line")
            .unwrap();

        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(
            std::fs::metadata(&victim).unwrap().uid(),
            nix::unistd::geteuid().as_raw()
        );
    }

    #[test]
    fn logs_roll_over() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::ensure(&tmp.path().join("i"), &service()).unwrap();
        let log = dir.sub("log").unwrap();
        log.append("p.log", 10)
            .unwrap()
            .write_all(b"0123456789abc")
            .unwrap();
        log.append("p.log", 10).unwrap().write_all(b"new").unwrap();
        assert_eq!(dir.tail("log/p.log", 0, 100), "new");
        assert_eq!(dir.tail("log/p.log.1", 3, 100), "3456789abc");
        assert_eq!(dir.tail("log/p.log.1", 0, 3), "abc");
        let mode = std::fs::metadata(tmp.path().join("i/log/p.log"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_entered() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::ensure(&tmp.path().join("i"), &service()).unwrap();
        std::fs::create_dir(tmp.path().join("i/half")).unwrap();
        dir.write("half/x", b"1").unwrap();
        std::fs::create_dir(tmp.path().join("i/foreign")).unwrap();
        std::fs::write(tmp.path().join("i/foreign/y"), "2").unwrap();
        assert!(dir.write("foreign/x", b"1").is_err());
    }
}
