//! How an application gets its credentials: environment lines, a directory, a JSON document, or its own environment.
//!
//! What must stay true: files are mode 0600 in directories of mode 0700 and appear whole; a directory changes in one
//! step, by a link `..data` as Kubernetes does it, so nobody reads half of the old and half of the new; no name can
//! leave the directory, or take over a variable on which the program's start hangs.

use super::{Code, Failure, Shape, texts};
use crate::app::random_token;
use crate::domain::names::is_name;
use crate::domain::secret::Secret;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The link that says which directory is the present one.
const DATA: &str = "..data";

/// Variables on which the start of a program hangs.
const NOT_OURS: [&str; 8] = ["BASH_ENV", "ENV", "HOME", "IFS", "PATH", "PS4", "SHELL", "USER"];
const NOT_OURS_EITHER: [&str; 3] = ["DYLD_", "GLIBC_", "LD_"];

/// Where credentials go.
pub(super) struct Output {
    shape: Shape,
    to: Option<PathBuf>,
    prefix: String,
    command: Vec<String>,
}

impl Output {
    /// Checks that the arguments fit together.
    pub fn new(
        shape: Shape,
        to: Option<PathBuf>,
        prefix: String,
        command: Vec<String>,
    ) -> Result<Self, Failure> {
        if shape == Shape::Files && to.is_none() {
            return Err(Failure::input("--as files needs --to DIR."));
        }
        if !command.is_empty() && shape != Shape::Env {
            return Err(Failure::input(
                "A program gets its credentials in its environment: leave --as out.",
            ));
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !prefix.chars().all(word) || prefix.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(Failure::input(
                "--prefix must be letters, digits and `_`, no digit first.",
            ));
        }
        Ok(Self {
            shape,
            to,
            prefix,
            command,
        })
    }

    /// Hands the credentials over. Does not return when it becomes a program.
    pub fn write(&self, data: &Secret) -> Result<(), Failure> {
        if let Some((program, arguments)) = self.command.split_first() {
            let variables = self.variables(data)?;
            let error = Command::new(program).args(arguments).envs(variables).exec();
            return Err(Failure::new(
                Code::Output,
                format!("{program} cannot be started ({error})."),
            ));
        }
        match self.shape {
            Shape::Files => {
                let dir = self.to.as_deref().unwrap_or(Path::new("."));
                let mut files = BTreeMap::new();
                for (name, text) in texts(data) {
                    if !is_file_name(&name) {
                        return Err(unwritable(dir, &format!("`{name}` cannot be the name of a file")));
                    }
                    files.insert(name, text);
                }
                replace_tree(dir, &files).map_err(|error| unwritable(dir, &error.to_string()))
            }
            Shape::Env => {
                let lines = self.variables(data)?;
                let lines = lines
                    .iter()
                    .map(|(name, value)| format!("{name}={}\n", quoted(value)));
                self.put(&lines.collect::<String>())
            }
            Shape::Json => self.put(&format!("{:#}\n", Value::Object(data.expose().clone()))),
        }
    }

    fn put(&self, text: &str) -> Result<(), Failure> {
        match &self.to {
            Some(file) => replace_file(file, text).map_err(|error| unwritable(file, &error.to_string())),
            None => {
                let mut out = io::stdout().lock();
                let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                done.map_err(|error| unwritable(Path::new("standard output"), &error.to_string()))
            }
        }
    }

    /// Names of variables and their values.
    fn variables(&self, data: &Secret) -> Result<BTreeMap<String, String>, Failure> {
        let mut all = BTreeMap::new();
        for (entry, value) in texts(data) {
            let sign = |c: char| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_uppercase()
                } else {
                    '_'
                }
            };
            let name = format!("{}{}", self.prefix, entry.chars().map(sign).collect::<String>());
            let trouble = if name.starts_with(|c: char| c.is_ascii_digit()) {
                Some("would begin with a digit")
            } else if NOT_OURS.contains(&name.as_str())
                || NOT_OURS_EITHER.iter().any(|start| name.starts_with(start))
            {
                Some("would take the place of a variable on which programs hang")
            } else if value.contains('\0') {
                Some("holds a character that no variable can")
            } else {
                None
            };
            if let Some(trouble) = trouble {
                let message = format!("The entry `{entry}` {trouble}: use --prefix, or --as files.");
                return Err(Failure::new(Code::Output, message));
            }
            if all.insert(name.clone(), value).is_some() {
                let message = format!("Two entries would both be the variable {name}: use --as files.");
                return Err(Failure::new(Code::Output, message));
            }
        }
        Ok(all)
    }
}

fn unwritable(place: &Path, why: &str) -> Failure {
    Failure::new(
        Code::Output,
        format!("{} cannot be written ({why}).", place.display()),
    )
}

/// A value as a shell reads it back: in quotes unless it is plain.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,:/@%+=".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', "'\\''"))
    }
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// Writes a file that only we can read, to its end.
fn write_private(file: &Path, text: &str) -> io::Result<()> {
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()
}

/// Puts a file in place of the one that is there.
fn replace_file(file: &Path, text: &str) -> io::Result<()> {
    let name = file
        .file_name()
        .ok_or_else(|| io::Error::other("it is not a file"))?;
    let beside = file.with_file_name(format!(".{}.new", name.to_string_lossy()));
    // What an earlier run left when it was killed.
    remove(&beside)?;
    write_private(&beside, text)?;
    fs::rename(&beside, file)
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Puts a link in place of the one that is there.
fn replace_link(link: &Path, target: &Path) -> io::Result<()> {
    let beside = link.with_file_name(format!(
        "{}_new",
        link.file_name().unwrap_or_default().to_string_lossy()
    ));
    remove(&beside)?;
    symlink(target, &beside)?;
    fs::rename(&beside, link)
}

/// Whether a directory is a version of ours: `..` and what [`random_token`] gives.
fn is_version(name: &str) -> bool {
    name.strip_prefix("..").is_some_and(is_name)
}

/// Makes a directory hold exactly these files, all of them at the same moment.
fn replace_tree(dir: &Path, files: &BTreeMap<String, String>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // A file of somebody else's is not taken away, nor hidden.
    for name in files.keys() {
        match fs::symlink_metadata(dir.join(name)) {
            Ok(meta) if !meta.is_symlink() => {
                return Err(io::Error::other(format!(
                    "there is a file `{name}` that is not ours"
                )));
            }
            _ => {}
        }
    }
    let version = format!("..{}", random_token());
    let made = dir.join(&version);
    DirBuilder::new().mode(0o700).create(&made)?;
    let written = files
        .iter()
        .try_for_each(|(name, text)| write_private(&made.join(name), text));
    let swapped = written.and_then(|()| replace_link(&dir.join(DATA), Path::new(&version)));
    if swapped.is_err() {
        drop(fs::remove_dir_all(&made));
    }
    swapped?;
    for name in files.keys() {
        let target = Path::new(DATA).join(name);
        if fs::read_link(dir.join(name)).ok().as_deref() != Some(&target) {
            replace_link(&dir.join(name), &target)?;
        }
    }
    // What was of former versions: their directories, and links to entries that are no more.
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if is_version(&name) && name != version {
            fs::remove_dir_all(&path)?;
        } else if !files.contains_key(&name)
            && fs::read_link(&path).is_ok_and(|to| to == Path::new(DATA).join(&name))
        {
            remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn secret(value: &Value) -> Secret {
        Secret::new(value.as_object().unwrap().clone())
    }

    fn output(shape: Shape, to: &Path) -> Output {
        Output::new(shape, Some(to.to_owned()), String::new(), Vec::new()).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn lines_mean_the_same_to_a_shell() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        let values = json!({
            "uri": "postgresql://u:p@h:1/d?sslmode=disable", "pass-word": "it's $HOME `x` \"y\" \\", "port": 5432,
            "tls": false, "servers": ["a", "b"], "lines": "a\nb", "empty": "",
        });
        let prefixed = Output::new(Shape::Env, Some(file.clone()), "DB_".to_owned(), Vec::new()).unwrap();
        prefixed.write(&secret(&values)).unwrap();
        assert_eq!(mode(&file), 0o600);
        let script = "set -eu; set -a; . \"$1\"; printf '%s|' \"$DB_URI\" \"$DB_PASS_WORD\" \"$DB_PORT\" \"$DB_TLS\" \
                      \"$DB_SERVERS\" \"$DB_LINES\" \"$DB_EMPTY\"";
        let shell = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(shell.stdout).unwrap(),
            "postgresql://u:p@h:1/d?sslmode=disable|it's $HOME `x` \"y\" \\|5432|false|[\"a\",\"b\"]|a\nb||"
        );
    }

    #[test]
    fn no_entry_takes_over_a_variable_programs_hang_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        for entry in ["path", "ld_preload", "ld-library-path", "9lives", "bash.env"] {
            let failure = output(Shape::Env, &file)
                .write(&secret(&json!({entry: "hunter2"})))
                .unwrap_err();
            assert_eq!(failure.code, Code::Output);
            assert!(failure.message.contains(entry) && !failure.message.contains("hunter2"));
            assert!(!file.exists());
        }
        let failure = output(Shape::Env, &file)
            .write(&secret(&json!({"a-b": "x", "a.b": "y"})))
            .unwrap_err();
        assert!(failure.message.contains("A_B"), "{}", failure.message);
    }

    #[test]
    fn a_document_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("binding.json");
        for n in [1, 2] {
            // What a run that was killed left.
            fs::write(dir.path().join(".binding.json.new"), "half").unwrap();
            output(Shape::Json, &file)
                .write(&secret(&json!({"n": n})))
                .unwrap();
            let read: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
            assert_eq!(read, json!({"n": n}));
        }
        assert_eq!(
            (mode(&file), fs::read_dir(dir.path()).unwrap().count()),
            (0o600, 1)
        );
    }

    #[test]
    fn a_directory_changes_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("binding");
        let read = |name: &str| fs::read_to_string(tree.join(name)).ok();
        output(Shape::Files, &tree)
            .write(&secret(&json!({"username": "a", "old": 1})))
            .unwrap();
        let first = fs::read_link(tree.join(DATA)).unwrap();
        let held = fs::canonicalize(tree.join(DATA)).unwrap();
        assert_eq!(
            (read("username"), read("old")),
            (Some("a".into()), Some("1".into()))
        );
        output(Shape::Files, &tree)
            .write(&secret(&json!({"username": "b", "list": [1]})))
            .unwrap();
        assert_ne!(fs::read_link(tree.join(DATA)).unwrap(), first);
        assert_eq!(
            (read("username"), read("old"), read("list")),
            (Some("b".into()), None, Some("[1]".into()))
        );
        assert!(!held.exists(), "the former version is gone");
        let mut names: Vec<_> = fs::read_dir(&tree)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !is_version(name));
        names.sort();
        assert_eq!(names, [DATA, "list", "username"]);
        assert_eq!(
            (mode(&tree), mode(&tree.join(DATA)), mode(&tree.join("username"))),
            (0o700, 0o700, 0o600)
        );
    }

    #[test]
    fn what_is_somebody_elses_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("username"), "mine").unwrap();
        let failure = output(Shape::Files, dir.path())
            .write(&secret(&json!({"username": "x"})))
            .unwrap_err();
        assert!(failure.message.contains("not ours"), "{}", failure.message);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for name in ["../x", ".x", "..data", "a/b", "", "ä"] {
            let tree = dir.path().join("tree");
            assert!(
                output(Shape::Files, &tree)
                    .write(&secret(&json!({name: "x"})))
                    .is_err(),
                "{name}"
            );
            assert!(!tree.exists());
        }
    }

    #[test]
    fn arguments_must_fit_together() {
        let command = || vec!["true".to_owned()];
        for (shape, to, prefix, command) in [
            (Shape::Files, None, "", Vec::new()),
            (Shape::Json, None, "", command()),
            (Shape::Env, None, "1A", Vec::new()),
            (Shape::Env, None, "A=", Vec::new()),
        ] {
            assert!(Output::new(shape, to, prefix.to_owned(), command).is_err());
        }
        let absent = Output::new(
            Shape::Env,
            None,
            String::new(),
            vec!["/absent/program".to_owned()],
        )
        .unwrap();
        let failure = absent.write(&secret(&json!({"a": "hunter2"}))).unwrap_err();
        assert!(failure.code == Code::Output && !failure.message.contains("hunter2"));
    }
}
