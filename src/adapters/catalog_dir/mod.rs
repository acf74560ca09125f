//! Reads catalog folders into texts, and notices when they change.
//!
//! Whoever drops a folder in while we read must not be able to make us fail or hang: files are
//! bounded in number and size, hidden files (editors' and Kubernetes' own) are passed over, and a
//! reload is taken only when two looks in a row saw the same.

mod shipped;

pub use shipped::embedded;

use crate::domain::catalog::Sources;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Largest file in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most files in all.
const MAX_FILES: usize = 5_000;
/// How deep files may lie below a root: `catalog/<service>/objects/<file>`.
const MAX_DEPTH: usize = 4;

/// Reads the `catalog/` and `plans/` folders of each root into one set of sources.
///
/// A file of a later root takes the place of one with the same path in an earlier root; in this way a folder of one's
/// own adds a plan to a shipped service, or changes one. Errors name the path: a root that is missing or has neither
/// folder, a file that is no UTF-8 text or too large, too many files.
pub fn read(dirs: &[PathBuf]) -> io::Result<Sources> {
    let mut sources = Sources::new();
    for (path, file) in list(dirs)? {
        sources.insert(path, text(&file)?);
    }
    Ok(sources)
}

fn text(file: &Path) -> io::Result<String> {
    let length = at(file, fs::metadata(file))?.len();
    if length > MAX_FILE {
        return Err(invalid(
            file,
            &format!("has {length} bytes; a catalog file may have {MAX_FILE}"),
        ));
    }
    let bytes = at(file, fs::read(file))?;
    String::from_utf8(bytes).map_err(|_| invalid(file, "is not UTF-8 text"))
}

/// Path within the catalog → file, over all roots.
fn list(dirs: &[PathBuf]) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for root in dirs {
        let mut found = false;
        for top in ["catalog", "plans"] {
            let dir = root.join(top);
            if dir.is_dir() {
                found = true;
                walk(&dir, top, 1, &mut files)?;
            }
        }
        if !found {
            return Err(invalid(root, "has no folder `catalog` or `plans`"));
        }
    }
    Ok(files)
}

fn walk(dir: &Path, prefix: &str, depth: usize, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in at(dir, fs::read_dir(dir))? {
        let path = at(dir, entry)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(invalid(&path, "has a name that is not UTF-8"));
        };
        // `..data` and its like are how Kubernetes mounts a ConfigMap; the files beside it are links into it.
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        let within = format!("{prefix}/{name}");
        let kind = match fs::metadata(&path) {
            Ok(kind) => kind,
            // Gone between the listing and now: an editor's temporary file.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return at(&path, Err(e)),
        };
        if kind.is_dir() && depth < MAX_DEPTH {
            walk(&path, &within, depth + 1, files)?;
        } else if kind.is_file() {
            if files.len() >= MAX_FILES && !files.contains_key(&within) {
                return Err(invalid(
                    &path,
                    &format!("is one too many: a catalog may have {MAX_FILES} files"),
                ));
            }
            files.insert(within, path);
        }
    }
    Ok(())
}

fn at<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn invalid(path: &Path, message: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{} {message}", path.display()),
    )
}

/// Path → length and time of change: cheap to take, different when something was written.
type Stamp = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// Notices changes of catalog folders.
#[derive(Debug)]
pub struct Watch {
    dirs: Vec<PathBuf>,
    /// As of the last look.
    stamp: Option<Stamp>,
    /// Of the last contents that were given out.
    given: Option<[u8; 32]>,
    /// The last look found a change that the next one must confirm.
    moving: bool,
}

impl Watch {
    /// Watches `dirs`; `sources` is what was read from them at start.
    pub fn new(dirs: Vec<PathBuf>, sources: &Sources) -> Self {
        Self {
            dirs,
            stamp: None,
            given: Some(hash(sources)),
            moving: true,
        }
    }

    /// New contents when they changed since the last time any were given, else `None`.
    ///
    /// Meant to be called every few seconds: lengths and times are compared, and only when those moved and have come to
    /// rest are files read. Contents that turn out invalid are given once, not again and again. Errors: as [`read`].
    pub fn poll(&mut self) -> io::Result<Option<Sources>> {
        let stamp = stamp(&self.dirs)?;
        if self.stamp.as_ref() != Some(&stamp) {
            self.stamp = Some(stamp);
            self.moving = true;
            return Ok(None);
        }
        if !self.moving {
            return Ok(None);
        }
        let sources = read(&self.dirs)?;
        self.moving = false;
        let hash = hash(&sources);
        if self.given == Some(hash) {
            return Ok(None);
        }
        self.given = Some(hash);
        Ok(Some(sources))
    }
}

fn stamp(dirs: &[PathBuf]) -> io::Result<Stamp> {
    let mut stamp = Stamp::new();
    for path in list(dirs)?.into_values() {
        let Ok(kind) = fs::metadata(&path) else {
            continue;
        };
        stamp.insert(path, (kind.len(), kind.modified().ok()));
    }
    Ok(stamp)
}

fn hash(sources: &Sources) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (path, text) in sources {
        for part in [path, text] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
