//! No secret anywhere but where it belongs, in a full run with a real Keycloak and Vault.
//!
//! A broker that logs all it can and may write cores: bind, fetch, rotate, unbind, with servers that fail in between, and
//! questions it refuses. The proxies in front of both servers hear every secret that passes. All of them are then looked
//! for in log, database, arguments and environments of processes, answers, metrics, audit export, what the operator's commands
//! print, and what a killed broker leaves. `tests/faults/secrets.rs` does the same without both servers.

use crate::faulty::proxy::{Fault, Kind};
use crate::faulty::stage::{Held, Stage, Work, client};
use crate::leaks::{Known, Watch, cores, database, usual_core};
use crate::realm::{variable, web};
use crate::whole::{PASSWORD, VaultPlace, connect, said, until, without_operators};
use chandler::domain::names;
use data_encoding::BASE64;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Members that are secrets wherever they pass.
const SECRET: [&str; 9] = [
    "password",
    "secret",
    "client_secret",
    "access_token",
    "client_token",
    "secret_id",
    "x-vault-token",
    "authorization",
    "token",
];

/// Learns what is secret in something that passed.
fn learn(known: &mut Known, value: &Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text) if SECRET.contains(&name.as_str()) => {
                        let text = text.strip_prefix("Bearer ").unwrap_or(text);
                        known.add(name, text);
                        // Its signature alone is as much as a token is worth.
                        if let Some((_, signature)) = text.rsplit_once('.') {
                            known.add(&format!("signature of {name}"), signature);
                        }
                    }
                    Value::String(text) if name == "value" && members["type"] == "secret" => {
                        known.add("client's secret", text);
                    }
                    _ => learn(known, value),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| learn(known, item)),
        _ => {}
    }
}

/// Processes that work in this directory or are told of it.
fn concerned(dir: &Path) -> Vec<i32> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let told = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let told = String::from_utf8_lossy(&told).contains(dir.to_str().unwrap());
        let works = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        if (told || works) && pid.unsigned_abs() != own {
            found.push(pid);
        }
    }
    found
}

/// A broker whose secret id lies open in its file, which logs everything and may write cores of any size in `crash`.
async fn serve(stage: &mut Stage, crash: &Path) {
    let mission = &stage.mission;
    mission.configure(|config| {
        config["vault"]["login"]["wrapped"] = json!(false);
        config["log"] = json!({"level": "trace"});
    });
    let (_, roles) = mission
        .vault(None, "LIST", &format!("auth/{}-approle/role", mission.name), None)
        .await;
    let role = roles["data"]["keys"][0].as_str().unwrap();
    let path = format!("auth/{}-approle/role/{role}/secret-id", mission.name);
    let (_, made) = mission.vault(None, "POST", &path, None).await;
    fs::write(
        mission.dir.path().join("secret-id"),
        made["data"]["secret_id"].as_str().unwrap(),
    )
    .unwrap();
    let mut command = without_operators(Command::new("sh"));
    command
        .args([
            "-c",
            "ulimit -c $(ulimit -H -c) && exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_chandler"),
        ])
        .current_dir(crash);
    stage.mission.serve_by(command).await;
}

/// Bind, fetch, rotate, fetch, unbind, each with trouble at the servers; what was held.
async fn life(stage: &Stage, known: &mut Known, binding: &str) -> Held {
    let mut held = None;
    for (work, from, kind) in [
        (Work::Bind, 1, Kind::Lost),
        (Work::Rotate, 3, Kind::Error),
        (Work::Unbind, 2, Kind::Cut),
    ] {
        stage.faults.begin([(client(binding), Fault::new(from, 2, kind))]);
        assert_eq!(stage.carry_out(work, binding).await, "succeeded", "{work:?}");
        assert!(stage.faults.lift()[&client(binding)] > 0);
        if work == Work::Unbind {
            break;
        }
        let now = stage.enters(binding).await;
        let told = stage.mission.fetch(&now.credentials).unwrap();
        assert_eq!(told["password"], now.secret["password"]);
        for value in [
            &now.credentials,
            &now.secret,
            &json!({"token": now.jwt}),
            &json!({"token": now.token}),
        ] {
            learn(known, value);
        }
        held = Some(now);
    }
    held.unwrap()
}

/// Questions that are refused, with secrets where none belong, and what everybody may read.
async fn questions(stage: &Stage) -> String {
    let mut told = String::new();
    let secret = json!({"password": "OopsMySecretParameter1"});
    let mut body = stage.ids.clone();
    body["parameters"] = secret.clone();
    let bindings = "/v2/service_instances/db/service_bindings";
    for (method, path, body) in [
        ("PUT", format!("{bindings}/x?accepts_incomplete=true"), body),
        (
            "PUT",
            format!("{bindings}/kept?accepts_incomplete=true"),
            json!({"service_id": "x", "plan_id": "y"}),
        ),
        ("GET", format!("{bindings}/none"), json!({})),
        ("POST", "/api/v1/bindings/none/rotate".into(), secret),
    ] {
        let (status, answer) = stage.ask(method, &path, body).await;
        assert!((400..500).contains(&status), "{method} {path}: {status} {answer}");
        told.push_str(&answer.to_string());
    }
    // The answer to a GET that cannot be put together.
    stage
        .faults
        .begin([(client("kept"), Fault::new(0, 1, Kind::Error))]);
    let (status, answer) = stage.ask("GET", &format!("{bindings}/kept"), json!({})).await;
    assert_eq!(status, 503, "{answer}");
    told.push_str(&answer.to_string());
    stage.faults.lift();
    for path in ["/v2/catalog", "/metrics", "/readyz", "/livez", "/nowhere"] {
        for (user, password) in [("cf", PASSWORD), ("cf", "OopsMySecretPassword22")] {
            let asked = web(None)
                .get(format!("{}{path}", stage.mission.url))
                .basic_auth(user, Some(password));
            let answer = asked.header("x-broker-api-version", "2.17").send().await.unwrap();
            told.push_str(&answer.text().await.unwrap());
        }
    }
    assert!(
        told.contains("chandler_http_requests_total"),
        "the metrics were read"
    );
    told
}

/// What the operator's commands print.
fn commands(stage: &Stage) -> String {
    let mut told = String::new();
    for words in [
        &["operations", "list"][..],
        &["instances", "list"],
        &["doctor"],
        &["reconcile"],
        &["audit", "verify"],
        &["audit", "export"],
        &["config", "show"],
    ] {
        let done = stage.mission.run(words);
        assert!(done.status.success(), "{words:?}: {}", said(&done));
        told.push_str(&said(&done));
    }
    let list = said(&stage.mission.run(&["operations", "list"]));
    for line in list.lines().skip(1) {
        let operation = line.split_whitespace().next().unwrap();
        told.push_str(&said(&stage.mission.run(&["operations", "show", operation])));
    }
    told
}

/// Files that hold one of them: only those of the instance's server, and the broker's own that its operator made.
fn files_holding(known: &Known, dir: &Path, into: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_holding(known, &entry.path(), into);
        } else if kind.is_file()
            && fs::read(entry.path()).is_ok_and(|bytes| !known.found_in(&bytes).is_empty())
        {
            into.insert(entry.path());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_anywhere_but_where_it_belongs() {
    let mut stage = Stage::prepare("secrets", VaultPlace::testbed()).await;
    let dir = stage.mission.dir.path().to_owned();
    let crash = tempfile::tempdir().unwrap();
    let usual = usual_core(crash.path());
    usual
        .iter()
        .for_each(|name| fs::remove_file(crash.path().join(name)).unwrap());
    stage.faults.listen_in();
    let watch = {
        let dir = dir.clone();
        Watch::start(move || concerned(&dir))
    };
    serve(&mut stage, crash.path()).await;
    stage.provision().await;
    let mut known = Known::default();
    for name in ["seal.key", "secret-id", "keycloak-secret"] {
        known.add(name, fs::read_to_string(dir.join(name)).unwrap().trim());
    }
    known.add("platform's password", PASSWORD);
    known.add(
        "platform's log-in",
        &BASE64.encode(format!("cf:{PASSWORD}").as_bytes()),
    );
    known.add("secret sent as a parameter", "OopsMySecretParameter1");
    known.add("secret sent as a password", "OopsMySecretPassword22");
    known.add("vault's root token", &variable("VAULT_TOKEN"));
    known.add("keycloak's administrator", &variable("KEYCLOAK_ADMIN_PASSWORD"));
    let path = format!("{}-int/data/{}/admin", stage.mission.name, names::iid("cf", "db"));
    let (_, admin) = stage.mission.vault(None, "GET", &path, None).await;
    learn(&mut known, &admin["data"]["data"]);

    let gone = life(&stage, &mut known, "gone").await;
    assert_eq!(stage.carry_out(Work::Bind, "kept").await, "succeeded");
    let kept = stage.enters("kept").await;
    for value in [&kept.credentials, &kept.secret] {
        learn(&mut known, value);
    }
    let told = questions(&stage).await + &commands(&stage);
    for heard in stage.faults.listen_in() {
        learn(&mut known, &heard);
    }
    let kinds: BTreeSet<&str> = known.0.values().map(String::as_str).collect();
    println!(
        "{} secrets of these kinds are looked for: {kinds:?}",
        known.0.len()
    );
    for kind in [
        "password",
        "client's secret",
        "authorization",
        "x-vault-token",
        "secret_id",
        "token",
    ] {
        assert!(kinds.contains(kind), "{kind}");
    }
    assert!(known.0.len() > 20);

    known.nowhere_in("an answer, a metric or what a command prints", told.as_bytes());
    let (rows, raw) = database(&dir.join("chandler.db")).await;
    known.nowhere_in("a row", rows.as_bytes());
    known.nowhere_in("the database's files", &raw);
    let mut holding = BTreeSet::new();
    files_holding(&known, &dir, &mut holding);
    let holding: Vec<_> = holding
        .iter()
        .map(|file| file.strip_prefix(&dir).unwrap().display().to_string())
        .collect();
    println!("{holding:?} hold some");
    for file in &holding {
        // The last is this test's own, for the application.
        let known = [
            "seal.key",
            "secret-id",
            "keycloak-secret",
            "password",
            "binding.json",
        ];
        assert!(known.contains(&file.as_str()), "{file} holds a secret");
    }
    stage.is_out(&gone).await;

    // Killed in the middle of its work, with all it has in memory.
    stage
        .faults
        .begin([(client("late"), Fault::new(1, usize::MAX, Kind::Stuck))]);
    assert_eq!(stage.order(Work::Bind, "late").await.0, 202);
    stage.spoilt("late").await;
    let pid = stage.mission.broker.as_ref().unwrap().id();
    let kill =
        |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), signal);
    kill(Signal::SIGABRT).unwrap();
    until("the broker ended", async || {
        stage.mission.broker.as_mut().unwrap().ended()
    })
    .await;
    assert_eq!(cores(crash.path()), Vec::<String>::new());
    println!(
        "killed by SIGABRT: no core; another program leaves {} there",
        usual.len()
    );
    stage.faults.lift();
    let processes = watch.end();
    println!("{} arguments and environments were seen", processes.len());
    for program in ["chandler\0serve", "chandler\0fetch", "postgres", "HOME="] {
        let seen = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).contains(program);
        assert!(processes.iter().any(seen), "{program} was seen");
    }
    for bytes in &processes {
        known.nowhere_in("a process's arguments or environment", bytes);
    }

    // Another one goes on where it was, and nothing is left.
    serve(&mut stage, crash.path()).await;
    for binding in ["late", "kept"] {
        let (state, why) = stage.ended(binding, None).await;
        assert_eq!(state, "succeeded", "{why}");
        assert_eq!(stage.carry_out(Work::Unbind, binding).await, "succeeded");
    }
    stage.comes_to("at the end", 0, &[]).await;
    assert!(connect(&kept.secret).await.is_err());
    for heard in stage.faults.listen_in() {
        learn(&mut known, &heard);
    }
    let (rows, raw) = database(&dir.join("chandler.db")).await;
    known.nowhere_in("a row at the end", rows.as_bytes());
    known.nowhere_in("the database's files at the end", &raw);
    let log = fs::read_to_string(dir.join("broker.log")).unwrap();
    println!("{} log lines", log.lines().count());
    assert!(
        log.contains("\"level\":\"DEBUG\"") && log.contains("will try again"),
        "it is talkative and met trouble"
    );
    for line in log.lines() {
        let found = known.found_in(line.as_bytes());
        let begins = line.chars().take(60).collect::<String>();
        assert!(
            found.is_empty(),
            "a log line holds {found:?}; it begins {begins:?}"
        );
    }
    stage
        .mission
        .configure(|config| config["vault"]["login"]["wrapped"] = json!(true));
    stage.end().await;
}
