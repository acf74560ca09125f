//! Reading files that hold secrets, and refusing those that others can read too.

use secrecy::SecretString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Largest file taken for a secret, in bytes.
const LARGEST: u64 = 64 * 1024;

/// A secret file's content with what should be said about the file.
pub struct SecretFile {
    /// The content without the line break at its end.
    pub content: SecretString,
    /// Set when other members of the file's group can read it too, and need not for us to read it.
    pub warning: Option<String>,
}

/// Reads a secret from a file; refuses one that every user can reach or others can change.
///
/// The mode is that of the opened file, so it cannot be exchanged between look and read.
pub fn read_secret(path: &Path) -> Result<SecretFile, String> {
    let shown = path.display();
    let mut file = File::open(path)
        .map_err(|error| format!("{shown} cannot be opened ({error}); make the file, or correct the path"))?;
    let meta = file
        .metadata()
        .map_err(|error| format!("{shown} cannot be looked at ({error})"))?;
    if !meta.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(format!(
            "{shown} is open to other users (mode {mode:04o}); run `chmod 600 {shown}`, and replace the secret if anybody may have read it"
        ));
    }
    if meta.len() > LARGEST {
        return Err(format!(
            "{shown} is larger than 64 KiB, so it is not a secret; correct the path"
        ));
    }
    let mut text = String::new();
    if file.read_to_string(&mut text).is_err() {
        return Err(format!("{shown} is not text"));
    }
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    if text.is_empty() {
        return Err(format!("{shown} is empty"));
    }
    // A file that is somebody else's can only be read through its group: Kubernetes mounts Secrets so.
    let ours = meta.uid() == nix::unistd::geteuid().as_raw();
    let warning = (mode & 0o040 != 0 && ours).then(|| {
        format!("{shown} can be read by its group too (mode {mode:04o}); mode 0600 or 0400 is safer")
    });
    Ok(SecretFile {
        content: text.into(),
        warning,
    })
}
