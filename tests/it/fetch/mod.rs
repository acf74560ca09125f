//! `chandler fetch` as an application runs it: the built program against strict fakes of both servers. Real ones:
//! `tests/platform/fetch.rs`.

mod examples;
mod fake;
mod programs;

use fake::{Ask, CLIENT, Client, DATA_PATH, Fake, SECRET, secret};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A fake, and a directory with the binding's description.
struct Place {
    fake: Fake,
    dir: TempDir,
}

/// The secrets that nobody may find in what the program says.
const SECRETS: [&str; 4] = [
    SECRET,
    "Password0123456789",
    "jwt-of-keycloak",
    "hvb.token-of-vault",
];

impl Place {
    fn new() -> Self {
        let place = Self {
            fake: Fake::start(),
            dir: tempfile::tempdir().unwrap(),
        };
        place.describe(&place.fake.credentials());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn describe(&self, credentials: &Value) {
        fs::write(self.path("binding.json"), credentials.to_string()).unwrap();
    }

    /// The program without anything of this machine's environment that it would look at.
    fn bare(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chandler"));
        command
            .arg("fetch")
            .env_remove("VCAP_SERVICES")
            .env_remove("SERVICE_BINDING_ROOT");
        command
    }

    fn program(&self) -> Command {
        let mut command = self.bare();
        command.arg("--from").arg(self.path("binding.json"));
        command
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }
}

/// Runs to the end; whatever it says on standard error holds no secret.
fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    quiet(&output.stderr);
    output
}

fn quiet(said: &[u8]) {
    let said = String::from_utf8_lossy(said);
    for secret in SECRETS {
        assert!(!said.contains(secret), "{said}");
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn fetched(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, said(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn every_shape_holds_the_credentials() {
    let place = Place::new();
    let env = fetched(&run(&mut place.program()));
    assert!(
        env.contains("USERNAME=b_one\n") && env.contains("PASSWORD=Password0123456789one\n"),
        "{env}"
    );
    assert!(env.contains("JDBCURL='jdbc:postgresql://"), "{env}");
    assert_eq!(
        place.fake.state.lock().unwrap().asked,
        [Ask::Token, Ask::Login, Ask::Read]
    );

    let document: Value =
        serde_json::from_str(&fetched(&run(place.program().args(["--as", "json"])))).unwrap();
    assert_eq!(document, secret("b_one", "Password0123456789one"));

    let file = place.path("env");
    assert_eq!(
        fetched(&run(place.program().args(["--prefix", "DB_", "--to"]).arg(&file))),
        ""
    );
    assert!(place.read("env").unwrap().contains("DB_USERNAME=b_one\n"));
    assert_eq!(mode(&file), 0o600);

    let tree = place.path("tree");
    fetched(&run(place.program().args(["--as", "files", "--to"]).arg(&tree)));
    assert_eq!(
        place.read("tree/password").as_deref(),
        Some("Password0123456789one")
    );
    assert_eq!(place.read("tree/port").as_deref(), Some("5432"));
    assert_eq!(mode(&tree.join("password")), 0o600);

    // It becomes the program, with its exit code, and hands on nothing but the credentials.
    let script = "printf '%s %s' \"$DB_USERNAME\" \"$DB_PASSWORD\"; exit 7";
    let output = run(place
        .program()
        .args(["--prefix", "DB_", "--", "sh", "-c", script]));
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "b_one Password0123456789one"
    );
}

#[test]
fn a_binding_is_found_where_platforms_put_it() {
    let place = Place::new();
    place
        .fake
        .change(|state| state.namespace = Some("team/one".to_owned()));
    let credentials = place.fake.credentials();
    let found = |command: &mut Command| {
        let output = run(command);
        assert!(fetched(&output).contains("USERNAME=b_one\n"));
    };
    let vcap = json!({"postgres": [{"name": "db", "credentials": credentials}], "redis": [{"name": "cache", "credentials": {}}]});
    found(place.bare().env("VCAP_SERVICES", vcap.to_string()));

    let root = place.path("bindings");
    fs::create_dir_all(root.join("db")).unwrap();
    for block in ["keycloak", "vault"] {
        for (member, value) in credentials[block].as_object().unwrap() {
            let file = root.join(format!("db/{block}.{}", member.replace('_', "-")));
            fs::write(file, value.as_str().unwrap()).unwrap();
        }
    }
    found(place.bare().env("SERVICE_BINDING_ROOT", &root));
    found(place.bare().arg("--binding").arg(root.join("db")));

    let mut child = place
        .bare()
        .args(["--from", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let answer = json!({"credentials": credentials, "metadata": {}}).to_string();
    child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    assert!(fetched(&child.wait_with_output().unwrap()).contains("USERNAME=b_one\n"));

    // Nothing but arguments; the secret in a file, or in the environment.
    let text = |block: &str, member: &str| credentials[block][member].as_str().unwrap().to_owned();
    let arguments = [
        ("--token-uri", text("keycloak", "token_uri")),
        ("--client-id", text("keycloak", "client_id")),
        ("--vault", text("vault", "address")),
        ("--auth-path", text("vault", "auth_path")),
        ("--role", text("vault", "role")),
        ("--data-path", text("vault", "data_path")),
        ("--namespace", text("vault", "namespace")),
    ];
    let plain = || {
        let mut command = place.bare();
        for (flag, value) in &arguments {
            command.args([flag, value.as_str()]);
        }
        command
    };
    fs::write(place.path("secret"), format!("{SECRET}\n")).unwrap();
    found(plain().arg("--client-secret-file").arg(place.path("secret")));
    found(
        plain()
            .args(["--client-secret-env", "APP_SECRET"])
            .env("APP_SECRET", SECRET),
    );
    assert_eq!(run(&mut plain()).status.code(), Some(2));
}

#[test]
fn a_client_without_a_secret_proves_itself_otherwise() {
    let place = Place::new();
    let mut without = place.fake.credentials();
    without["keycloak"]
        .as_object_mut()
        .unwrap()
        .remove("client_secret");
    place.describe(&without);

    let key = place.path("key.pem");
    let made = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
        ])
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success());
    place.fake.change(|state| state.client = Client::Key);
    for _ in 0..2 {
        fetched(&run(place.program().arg("--private-key-file").arg(&key)));
    }

    place
        .fake
        .change(|state| state.client = Client::Token("token.of.pod".to_owned()));
    fs::write(place.path("token"), "token.of.pod\n").unwrap();
    fetched(&run(place.program().arg("--token-file").arg(place.path("token"))));
    // The proof that does not fit is refused, and said so.
    let output = run(place.program().arg("--private-key-file").arg(&key));
    assert_eq!(output.status.code(), Some(3));
    assert!(
        said(&output).contains("its signed log-in is wrong"),
        "{}",
        said(&output)
    );
}

#[test]
fn refusals_say_who_and_what_to_do_in_one_line() {
    let quoting = json!({"errors": ["what is jwt-of-keycloak-0?"], "error": SECRET});
    let closed = "http://127.0.0.1:1";
    for (name, prepare, code, words) in [
        (
            "wrong secret",
            Box::new(|p: &Place| {
                let mut wrong = p.fake.credentials();
                wrong["keycloak"]["client_secret"] = json!("Password0123456789wrong");
                p.describe(&wrong);
            }) as Box<dyn Fn(&Place)>,
            3,
            vec![
                "Keycloak at http://127.0.0.1:",
                CLIENT,
                "unauthorized_client",
                "bind again",
            ],
        ),
        (
            "unbound",
            Box::new(|p: &Place| p.fake.change(|s| s.enabled = false)),
            3,
            vec!["Keycloak", "invalid_client"],
        ),
        (
            "no realm",
            Box::new(|p: &Place| {
                let mut wrong = p.fake.credentials();
                wrong["keycloak"]["token_uri"] =
                    json!(format!("http://127.0.0.1:{}/realms/x/token", p.fake.port));
                p.describe(&wrong);
            }),
            3,
            vec!["Keycloak", "keycloak.token_uri"],
        ),
        (
            "wrong kind",
            Box::new(|p: &Place| {
                p.fake
                    .fail(Ask::Token, &[(400, json!({"error": "invalid_request"}))])
            }),
            3,
            vec!["Keycloak", "client_auth"],
        ),
        (
            "moved",
            Box::new(|p: &Place| p.fake.fail(Ask::Token, &[(302, json!({}))])),
            3,
            vec!["Keycloak", "elsewhere"],
        ),
        (
            "wrong role",
            Box::new(|p: &Place| {
                let mut wrong = p.fake.credentials();
                wrong["vault"]["role"] = json!("other");
                p.describe(&wrong);
            }),
            4,
            vec!["Vault", "role `other`", "role could not be found"],
        ),
        (
            "wrong audience",
            Box::new(|p: &Place| {
                p.fake
                    .fail(Ask::Token, &[(200, json!({"access_token": "other"}))])
            }),
            4,
            vec!["Vault", "invalid audience"],
        ),
        (
            "no mount",
            Box::new(|p: &Place| {
                let mut wrong = p.fake.credentials();
                wrong["vault"]["auth_path"] = json!("other");
                p.describe(&wrong);
            }),
            4,
            vec!["Vault", "log-in `other`"],
        ),
        (
            "another's path",
            Box::new(|p: &Place| {
                p.fake.fail(
                    Ask::Read,
                    &[(
                        403,
                        json!({"errors": ["1 error occurred:\n\t* permission denied\n\n"]}),
                    )],
                )
            }),
            4,
            vec!["Vault", DATA_PATH, "permission denied", "same binding"],
        ),
        (
            "gone",
            Box::new(|p: &Place| p.fake.change(|s| s.version = None)),
            4,
            vec!["Vault", "it was unbound", "Bind again"],
        ),
        (
            "expired",
            Box::new(|p: &Place| {
                p.fake.fail(Ask::Read, &[(404, json!({"data": {"data": null, "metadata": {"deletion_time": "2026-01-01T00:00:00Z"}}}))])
            }),
            4,
            vec!["Vault", "it has expired"],
        ),
        (
            "not Vault",
            Box::new(|p: &Place| p.fake.fail(Ask::Read, &[(200, json!("hello"))])),
            4,
            vec!["Vault", "Is the address right"],
        ),
        (
            "quoting Keycloak",
            Box::new(|p: &Place| p.fake.fail(Ask::Token, &[(401, quoting.clone())])),
            3,
            vec!["Keycloak"],
        ),
        (
            "quoting Vault",
            Box::new(|p: &Place| p.fake.fail(Ask::Login, &[(400, quoting.clone())])),
            4,
            vec!["Vault"],
        ),
        (
            "Keycloak down",
            Box::new(|p: &Place| {
                let mut wrong = p.fake.credentials();
                wrong["keycloak"]["token_uri"] = json!(format!("{closed}/token"));
                p.describe(&wrong);
            }),
            5,
            vec!["Keycloak at http://127.0.0.1:1 cannot be reached", "refused"],
        ),
        (
            "Vault down",
            Box::new(|p: &Place| {
                let mut wrong = p.fake.credentials();
                wrong["vault"]["address"] = json!(closed);
                p.describe(&wrong);
            }),
            5,
            vec!["Vault at http://127.0.0.1:1 cannot be reached", "refused"],
        ),
        (
            "sealed",
            Box::new(|p: &Place| {
                p.fake
                    .fail(Ask::Login, &[(503, json!({"errors": ["Vault is sealed"]}))])
            }),
            5,
            vec!["Vault", "is sealed"],
        ),
        (
            "standby",
            Box::new(|p: &Place| p.fake.fail(Ask::Read, &[(429, json!({}))])),
            5,
            vec!["Vault", "standby"],
        ),
        (
            "no keys",
            Box::new(|p: &Place| {
                p.fake.fail(
                    Ask::Login,
                    &[(
                        400,
                        json!({"errors": ["error validating token: fetching keys oidc: get keys failed"]}),
                    )],
                )
            }),
            5,
            vec!["Vault", "cannot check"],
        ),
        (
            "no description",
            Box::new(|p: &Place| p.describe(&json!({"uri": format!("x://{SECRET}")}))),
            2,
            vec!["binding.json", "delivery `reference`"],
        ),
    ] {
        let place = Place::new();
        prepare(&place);
        let output = run(place
            .program()
            .args(["--wait", "0", "--as", "json", "--to"])
            .arg(place.path("out")));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{name}: {said}");
        for word in words {
            assert!(said.contains(word), "{name}: {word} is missing in {said}");
        }
        assert_eq!(said.trim_end().lines().count(), 1, "{name}: {said}");
        assert!(said.starts_with("chandler fetch: "), "{said}");
        assert!(!place.path("out").exists(), "{name}");
    }
    let place = Place::new();
    let output = run(place.program().args(["--to", "/proc/no/such/file"]));
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(
        run(place.program().args(["--", "/no/such/program"]))
            .status
            .code(),
        Some(6)
    );
    assert_eq!(run(place.program().args(["--watch"])).status.code(), Some(2));
}

#[test]
fn what_may_pass_is_tried_again_for_as_long_as_said() {
    let place = Place::new();
    place.fake.fail(Ask::Token, &[(503, json!({})), (502, json!({}))]);
    place
        .fake
        .fail(Ask::Login, &[(503, json!({"errors": ["Vault is sealed"]}))]);
    let output = run(place.program().args(["--wait", "30"]));
    fetched(&output);
    assert_eq!(place.fake.asked(Ask::Token), 4, "a log-in begins at Keycloak");
    assert!(
        said(&output)
            .lines()
            .all(|line| line.ends_with("It is tried again.")),
        "{}",
        said(&output)
    );

    let place = Place::new();
    let many: Vec<_> = (0..100).map(|_| (503, json!({}))).collect();
    place.fake.fail(Ask::Token, &many);
    let begun = Instant::now();
    let output = run(place.program().args(["--wait", "2"]));
    assert_eq!(output.status.code(), Some(5));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let asked = place.fake.asked(Ask::Token);
    assert!((2..=5).contains(&asked), "pauses grow: {asked}");
    // The same reason is told once while waiting, and once at the end.
    assert_eq!(said(&output).lines().count(), 2, "{}", said(&output));
}

/// A program that goes on, ended however the test ends.
struct Watching {
    child: Child,
    log: PathBuf,
}

impl Watching {
    fn start(place: &Place, arguments: &[&str]) -> Self {
        let log = place.path("log");
        let child = place
            .program()
            .args(["--as", "files", "--watch", "--to"])
            .arg(place.path("tree"))
            .args(arguments)
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn until(&mut self, what: &str, mut look: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !look() {
            let ended = self.child.try_wait().unwrap();
            let log = fs::read_to_string(&self.log).unwrap();
            assert!(
                Instant::now() < end && ended.is_none(),
                "{what}: {ended:?}: {log}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ended(&mut self) -> (Option<i32>, String) {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                let log = fs::read_to_string(&self.log).unwrap();
                quiet(log.as_bytes());
                return (status.code(), log);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not end");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_newer_version_is_put_in_place_while_it_watches() {
    let place = Place::new();
    let mut watching = Watching::start(&place, &["--every", "1"]);
    watching.until("the first version", || {
        place.read("tree/username").as_deref() == Some("b_one")
    });
    let first = fs::read_link(place.path("tree/..data")).unwrap();
    watching.until("several looks", || place.fake.asked(Ask::Read) >= 3);
    assert_eq!(
        fs::read_link(place.path("tree/..data")).unwrap(),
        first,
        "nothing new, nothing written"
    );
    assert_eq!(place.fake.asked(Ask::Token), 1, "one log-in serves many looks");

    // While a server is away the application keeps what it has.
    place.fake.fail(Ask::Read, &[(503, json!({})), (500, json!({}))]);
    place.fake.change(|state| {
        state.data = secret("b_two", "Password0123456789two");
        state.version = Some(2);
    });
    watching.until("the second version", || {
        place.read("tree/username").as_deref() == Some("b_two")
    });
    assert_eq!(
        place.read("tree/password").as_deref(),
        Some("Password0123456789two")
    );
    watching.signal(Signal::SIGTERM);
    let (code, log) = watching.ended();
    assert_eq!(code, Some(0), "{log}");
    for line in [
        "version 1 is written.",
        "version 2 is written.",
        "It is tried again.",
    ] {
        assert!(log.contains(line), "{log}");
    }
}

#[test]
fn a_log_in_is_renewed_before_it_ends_and_when_it_was_lost() {
    let place = Place::new();
    place.fake.change(|state| state.lease = 3);
    let mut watching = Watching::start(&place, &["--every", "1"]);
    watching.until("log-ins", || place.fake.asked(Ask::Login) >= 3);
    // Vault lost its tokens, as after a restart.
    place.fake.change(|state| state.lease = 900);
    watching.until("a long log-in", || place.fake.asked(Ask::Login) >= 4);
    // A refusal right after a log-in would be meant.
    let reads = place.fake.asked(Ask::Read);
    watching.until("it is read with", || place.fake.asked(Ask::Read) > reads);
    let before = place.fake.asked(Ask::Login);
    place
        .fake
        .fail(Ask::Read, &[(403, json!({"errors": ["permission denied"]}))]);
    watching.until("one more log-in", || place.fake.asked(Ask::Login) > before);
    watching.signal(Signal::SIGINT);
    let (code, log) = watching.ended();
    assert_eq!(code, Some(0));
    assert!(
        !log.contains("permission denied"),
        "the token is renewed without a word: {log}"
    );
}

#[test]
fn a_binding_that_ended_ends_the_watch() {
    let place = Place::new();
    let mut watching = Watching::start(&place, &["--every", "1", "--wait", "2"]);
    watching.until("the first version", || place.read("tree/username").is_some());
    place.fake.change(|state| {
        state.enabled = false;
        state.version = None;
    });
    let (code, log) = watching.ended();
    assert_eq!(code, Some(3), "{log}");
    assert!(log.lines().last().unwrap().contains("it was unbound"), "{log}");
    assert!(
        place.read("tree/username").is_some(),
        "what the application has stays with it"
    );
}

#[test]
fn credentials_that_end_are_looked_at_in_time() {
    let place = Place::new();
    let end = time::OffsetDateTime::now_utc() + time::Duration::seconds(8);
    let end = end
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    place.fake.change(|state| state.deletion_time.clone_from(&end));
    let mut watching = Watching::start(&place, &["--every", "3600"]);
    watching.until("the first version", || place.read("tree/username").is_some());
    place.fake.change(|state| state.version = Some(2));
    watching.until("a look before they end", || place.fake.asked(Ask::Read) >= 2);
    watching.signal(Signal::SIGTERM);
    let (_, log) = watching.ended();
    assert!(log.contains("valid until 20"), "{log}");
}

#[test]
fn one_that_waits_is_ended_by_a_signal() {
    let place = Place::new();
    let many: Vec<_> = (0..1000).map(|_| (503, json!({}))).collect();
    place.fake.fail(Ask::Token, &many);
    let mut watching = Watching::start(&place, &["--wait", "600"]);
    watching.until("it asks", || place.fake.asked(Ask::Token) > 0);
    watching.signal(Signal::SIGTERM);
    assert_eq!(watching.ended().0, Some(0));
}
