//! The examples of `examples/fetch`, run as they are written. The one for Spring is a build of its own:
//! `tests/platform/fetch.rs`.

use super::Place;
use super::fake::secret;
use super::programs::{self, Program};
use std::process::Stdio;

/// Runs an example for two versions of a secret, and once when Vault refuses.
fn works(program: Option<Program>) {
    let Some(program) = program else { return };
    let place = Place::new();
    let run = |place: &Place| {
        let mut command = program();
        command.env("BINDING", place.path("binding.json"));
        for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
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
    works(programs::shell());
}

#[test]
fn the_one_for_python() {
    works(programs::python());
}

#[test]
fn the_one_for_node() {
    works(programs::node());
}

#[test]
fn the_one_for_go() {
    works(programs::go());
}
