//! The examples of `examples/fetch`, run as they are written where this machine has what they are written in. The one for
//! Spring is a build of its own: `tests/platform/fetch.rs`.

use super::Place;
use super::fake::secret;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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
        eprintln!("NOT RUN: this machine has no {program}, so its example was not tried");
    }
    there
}

/// Runs an example for two versions of a secret, and once when Vault refuses.
fn works(mut command: impl FnMut() -> Command) {
    let place = Place::new();
    let mut run = |place: &Place| {
        let output = command()
            .env("BINDING", place.path("binding.json"))
            .env_remove("http_proxy")
            .env_remove("HTTP_PROXY")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        super::quiet(&output.stderr);
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
            said,
        )
    };
    let (fine, shown, said) = run(&place);
    assert!(fine, "{said}");
    assert_eq!(shown, "postgresql at db.example:5432 as b_one, version 1\n");
    place.fake.change(|state| {
        state.data = secret("b_two", "Password0123456789two");
        state.version = Some(2);
        state.namespace = Some("team".to_owned());
    });
    place.describe(&place.fake.credentials());
    assert_eq!(
        run(&place).1,
        "postgresql at db.example:5432 as b_two, version 2\n"
    );
    place.fake.change(|state| state.version = None);
    let (fine, shown, said) = run(&place);
    assert!(!fine && shown.is_empty(), "{shown}{said}");
}

#[test]
fn the_one_for_a_shell() {
    if have("jq") && have("curl") {
        works(|| Command::new(file("shell/fetch.sh")));
    }
}

#[test]
fn the_one_for_python() {
    if have("python3") {
        works(|| {
            let mut command = Command::new("python3");
            command.arg(file("python/fetch.py"));
            command
        });
    }
}

#[test]
fn the_one_for_node() {
    if have("node") {
        works(|| {
            let mut command = Command::new("node");
            command.arg(file("node/fetch.mjs"));
            command
        });
    }
}

#[test]
fn the_one_for_go() {
    if have("go") {
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
        works(|| Command::new(&program));
    }
}
