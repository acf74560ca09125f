//! No secret anywhere but where it belongs.
//!
//! A full run with all that can be logged switched on: create, bind, use, rotate, unbind, delete on all three services,
//! failures among it. Every secret that was ever made is then looked for in every log line, every row and the raw
//! bytes of the database, arguments and environment of every process there was, error bodies, metrics and what the
//! operators' commands print. It may be in the answers to the platform that asked, and in files of the service that only
//! the service's user can read.

use crate::support::audit::State;
use crate::support::clients::{self, Access};
use crate::support::home::{Home, processes_below, signal};
use crate::support::leaks::{self, Known, Watch};
use crate::support::platform::{End, Platform, Service, bind_body, binding, instance, provision_body};
use crate::support::process::{self, Broker, text};
use crate::support::until;
use base64::Engine as _;
use chandler::ports::SecretStore;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Everything the sealed store holds now.
async fn learn(state: &State, known: &mut Known) {
    for name in state.sealed.list("").await.unwrap() {
        if let Some(secret) = state.sealed.get(&name).await.unwrap() {
            let what = name
                .split_once('/')
                .unwrap()
                .1
                .split('/')
                .next()
                .unwrap()
                .to_owned();
            known.add_all(&what, &Value::Object(secret.expose().clone()));
        }
    }
}

/// Files below a directory, links not followed.
fn files(dir: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), into);
        } else if kind.is_file() {
            into.push(entry.path());
        }
    }
}

/// The life of one instance, with trouble in it; what secrets there were, and what an operator was told.
async fn life(service: Service, platform: &Platform, home: &Home, state: &State) -> (Known, String) {
    let (mut known, mut told) = (Known::default(), String::new());
    let (id, iid) = (service.name(), state.iid(service.name()));
    let asked = platform.ask_instance(service, id, json!({})).await;
    if service == Service::Postgres {
        // An initialisation that fails once, in the middle of handling the administrator's password.
        let init = until("initdb runs", Duration::from_secs(60), || async {
            home.leader(&iid)
        })
        .await;
        signal(init, Signal::SIGKILL);
    }
    assert_eq!(platform.ended(&asked, &instance(id)).await, End::Succeeded);
    let first = platform.bind(service, id, "first").await;
    clients::write(service, &first, "key", "value").await;
    known.add_all("credentials", &first);
    learn(state, &mut known).await;

    // A rotation, and the end of the old one.
    let more = json!({"predecessor_binding_id": "first"});
    let answer = platform.ask_binding(service, id, "second", more).await;
    assert_eq!(
        platform.ended(&answer, &binding(id, "second")).await,
        End::Succeeded
    );
    let second = platform.credentials(id, "second").await;
    known.add_all("credentials", &second);
    learn(state, &mut known).await;
    platform.unbind(service, id, "first").await;
    clients::comes_to(service, &first, Access::Refused).await;
    platform.update(service, id, &service.change(7)).await;
    clients::comes_to(service, &second, Access::In).await;

    // A bind that fails: its server does not answer, and the operator gives up. Then the server dies.
    let server = home.leader(&iid).unwrap();
    let all = processes_below(&home.instances().join(&iid));
    all.iter()
        .for_each(|process| signal(process.pid, Signal::SIGSTOP));
    let answer = platform.ask_binding(service, id, "third", json!({})).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    learn(state, &mut known).await;
    if let Some(operation) = answer.operation() {
        // One attempt comes to its end first, so that it is logged why.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let words = [
            "operations",
            "cancel",
            operation,
            "--data-dir",
            home.data().to_str().unwrap(),
        ]
        .map(str::to_owned);
        let output =
            tokio::task::spawn_blocking(move || process::run(&words.each_ref().map(String::as_str))).await;
        told.push_str(&text(&output.unwrap()));
    }
    signal(server, Signal::SIGKILL);
    all.iter()
        .for_each(|process| signal(process.pid, Signal::SIGCONT));
    platform.ended(&answer, &binding(id, "third")).await;
    clients::comes_to(service, &second, Access::In).await;
    (known, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_anywhere_but_where_it_belongs() {
    let home = Home::new();
    let mut broker = Broker::dev_with(&home, &["--log", "trace"]);
    let watch = {
        let dir = home.path().to_owned();
        Watch::start(move || processes_below(&dir).into_iter().map(|found| found.pid).collect())
    };
    let platform = Platform::dev(&broker, &home);
    let state = State::dev(&home).await;
    let mut known = Known::default();
    let password = std::fs::read_to_string(home.data().join("dev-password")).unwrap();
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("dev:{}", password.trim()));
    let key = std::fs::read_to_string(home.data().join("seal.key")).unwrap();
    known.add("dev password", password.trim());
    known.add("Authorization header", &basic);
    known.add("seal key", key.trim());
    // Platforms send secrets of their own where none belong.
    known.add("secret sent as a parameter", "OopsMySecretParameter1");
    known.add("secret sent as a password", "OopsMySecretPassword22");
    let mut told = String::new();

    let lives = Service::ALL.map(|service| life(service, &platform, &home, &state));
    for (learnt, said) in futures::future::join_all(lives).await {
        known.0.extend(learnt.0);
        told.push_str(&said);
    }
    state.idle().await;
    errors(&platform, &home, &broker, &mut told).await;
    let data = home.data();
    for words in [
        vec!["operations", "list"],
        vec!["instances", "list"],
        vec!["doctor"],
        vec!["secrets", "rekey"],
    ] {
        let words: Vec<&str> = words
            .into_iter()
            .chain(["--data-dir", data.to_str().unwrap()])
            .collect();
        told.push_str(&text(&tokio::task::block_in_place(|| process::run(&words))));
    }
    for row in state.store.operations_list(None, 100).await.unwrap() {
        let words = [
            "operations",
            "show",
            &row.operation.id,
            "--data-dir",
            data.to_str().unwrap(),
        ];
        told.push_str(&text(&tokio::task::block_in_place(|| process::run(&words))));
    }
    println!("{} secrets are looked for", known.0.len());
    assert!(known.0.len() > 30);

    let (rows, raw) = leaks::database(&home.data().join("chandler.db")).await;
    known.nowhere_in("a row", rows.as_bytes());
    known.nowhere_in("the database's files", &raw);
    only_where_they_belong(&home, &known);
    for service in Service::ALL {
        platform.delete(service, service.name()).await;
    }
    state.idle().await;
    let wrong = state.audit(&home.instances(), &[]).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    let (rows, raw) = leaks::database(&home.data().join("chandler.db")).await;
    known.nowhere_in("a row after the end", rows.as_bytes());
    known.nowhere_in("the database's files after the end", &raw);

    let said = broker.said.lock().unwrap().clone();
    assert_eq!(
        known.found_in(said.as_bytes()).into_iter().collect::<Vec<_>>(),
        ["dev password"],
        "the welcome tells one thing"
    );
    state.store.close().await;
    assert!(broker.stop().success());
    let processes = watch.end();
    println!("{} arguments and environments were seen", processes.len());
    for program in ["initdb", "redis-server", "nats-server", "HOME="] {
        let seen = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).contains(program);
        assert!(processes.iter().any(seen), "{program} was seen");
    }
    for bytes in &processes {
        known.nowhere_in("a process's arguments or environment", bytes);
    }
    known.nowhere_in("what was answered to nobody's questions", told.as_bytes());
    let log = home.logged();
    println!("{} log lines", log.lines().count());
    assert!(
        log.contains("\"level\":\"DEBUG\"") && log.contains("will try again"),
        "the log is talkative and met trouble"
    );
    for line in log.lines() {
        let found = known.found_in(line.as_bytes());
        assert!(
            found.is_empty(),
            "a log line holds {found:?}; it begins {:?}",
            line.chars().take(60).collect::<String>()
        );
    }
}

/// Answers that are no answers, and what everybody may read.
async fn errors(platform: &Platform, home: &Home, broker: &Broker, told: &mut String) {
    let service = Service::Redis;
    let secret = json!({"password": "OopsMySecretParameter1"});
    let tries = [
        (
            "PUT",
            format!("{}?accepts_incomplete=true", instance("x")),
            Some(provision_body(service, secret.clone())),
        ),
        ("PUT", instance("x"), Some(provision_body(service, json!({})))),
        (
            "PUT",
            format!("{}?accepts_incomplete=true", binding("redis", "x")),
            Some(bind_body(service, json!({"parameters": secret}))),
        ),
        (
            "PUT",
            format!("{}?accepts_incomplete=true", instance("redis")),
            Some(provision_body(Service::Nats, secret.clone())),
        ),
        (
            "PUT",
            format!("{}?accepts_incomplete=true", binding("redis", "second")),
            Some(bind_body(service, json!({}))),
        ),
        (
            "PATCH",
            format!("{}?accepts_incomplete=true", instance("redis")),
            Some(json!({"service_id": service.ids().0, "parameters": secret})),
        ),
        ("DELETE", instance("redis"), None),
        (
            "GET",
            binding("redis", "OopsMySecretPassword22x").replace("OopsMySecretPassword22x", "none"),
            None,
        ),
        ("POST", "/v2/catalog".into(), Some(secret.clone())),
    ];
    for (method, path, body) in tries {
        let answer = platform.send(method, &path, body.as_ref()).await.unwrap();
        assert!(
            (400..500).contains(&answer.status),
            "{method} {path}: {} {}",
            answer.status,
            answer.text
        );
        told.push_str(&answer.text);
    }
    let stranger = Platform::new(&broker.address, "dev", "OopsMySecretPassword22");
    for path in ["/v2/catalog", "/metrics", "/readyz", "/livez", "/nowhere"] {
        told.push_str(&stranger.send("GET", path, None).await.unwrap().text);
        told.push_str(&platform.send("GET", path, None).await.unwrap().text);
    }
    assert!(
        told.contains("chandler_http_requests_total"),
        "the metrics were read"
    );
    for entry in std::fs::read_dir(home.instances().join(".state"))
        .unwrap()
        .flatten()
    {
        told.push_str(&std::fs::read_to_string(entry.path()).unwrap());
    }
}

/// Files of the services may hold secrets; then nobody but the service's user may read them. Ours hold none.
fn only_where_they_belong(home: &Home, known: &Known) {
    let mut all = Vec::new();
    files(&home.data(), &mut all);
    let mut holding = 0;
    for file in all {
        let Ok(bytes) = std::fs::read(&file) else { continue };
        let found = known.found_in(&bytes);
        if found.is_empty() {
            continue;
        }
        holding += 1;
        let mode = std::fs::metadata(&file).unwrap().mode();
        let at = file.strip_prefix(home.data()).unwrap().display().to_string();
        // What a server writes by itself has the mode it likes, behind a door that is shut; what we write is shut itself.
        let ours = !at.starts_with("instances/") || at.ends_with(".conf");
        let shut = file
            .ancestors()
            .take_while(|dir| *dir != home.data())
            .any(|dir| Home::mode(dir) & 0o077 == 0);
        assert!(
            mode & 0o077 == 0 || !ours && shut,
            "{at} holds {found:?} and has mode {mode:o}"
        );
        let of_a_service =
            at.starts_with("instances/") && !at.contains("/log/") && !at.starts_with("instances/.");
        assert!(
            of_a_service || at == "dev-password" || at == "seal.key",
            "{at} holds {found:?}"
        );
        assert!(!at.ends_with("/password"), "{at} is for the initialisation only");
        println!("{at} ({:o}) holds {found:?}", mode & 0o777);
    }
    assert!(holding >= 4, "{holding}");
}
