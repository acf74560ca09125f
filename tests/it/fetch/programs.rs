//! How the examples of `examples/fetch` are run, where this machine has what they are written in.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Makes the command of an example anew for each run.
pub type Program = Box<dyn Fn() -> Command>;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("examples/fetch")
        .join(name)
}

/// Whether a program is here; said loudly when it is not.
fn have(program: &str) -> bool {
    let there = Command::new("sh")
        .args(["-c", "command -v \"$1\"", "sh", program])
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .success();
    if !there {
        eprintln!("NOT RUN: this machine has no {program}, so the example for it was not tried");
    }
    there
}

/// One that an interpreter reads.
fn read_by(interpreter: &'static str, name: &'static str) -> Option<Program> {
    have(interpreter).then(|| {
        let command = move || {
            let mut command = Command::new(interpreter);
            command.arg(file(name));
            command
        };
        Box::new(command) as Program
    })
}

/// With curl and jq.
pub fn shell() -> Option<Program> {
    (have("jq") && have("curl")).then(|| read_by("bash", "shell/fetch.sh"))?
}

/// With Python's own library.
pub fn python() -> Option<Program> {
    read_by("python3", "python/fetch.py")
}

/// With Node's own fetch.
pub fn node() -> Option<Program> {
    read_by("node", "node/fetch.mjs")
}

/// With Go's own library; built once.
pub fn go() -> Option<Program> {
    if !have("go") {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("fetch");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(file("go/main.go"))
        .env("GOFLAGS", "-mod=mod")
        .env("GOPROXY", "off")
        .env("CGO_ENABLED", "0")
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    Some(Box::new(move || {
        // The directory lives as long as the program.
        debug_assert!(dir.path().exists());
        Command::new(&program)
    }))
}
