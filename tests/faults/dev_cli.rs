//! The program as people meet it: `chandler dev`, operators' commands, keys, passwords, TLS, roles.

use crate::support::audit::{Expected, State};
use crate::support::clients::{self, Access};
use crate::support::home::{Home, processes_below, signal};
use crate::support::platform::{End, Platform, Service, binding, instance};
use crate::support::process::{self, Broker, text};
use crate::support::served::{PASSWORD, Served};
use crate::support::until;
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn expected(service: Service, id: &str, bindings: &[&str]) -> Expected {
    Expected {
        service,
        id: id.into(),
        bindings: bindings.iter().map(ToString::to_string).collect(),
    }
}

/// Addresses a process listens on, as `/proc/net` writes them.
fn listening(pid: i32) -> Vec<String> {
    let inodes: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|fd| std::fs::read_link(fd.path()).ok()?.to_str().map(str::to_owned))
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        for line in std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))
            .unwrap_or_default()
            .lines()
            .skip(1)
        {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" && inodes.contains(fields[9]) {
                found.push(fields[1].to_owned());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_welcome_is_all_one_needs_and_nobody_else_can_come_in() {
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let said = broker.said.lock().unwrap().clone();
    let line = |word: &str| {
        let line = said
            .lines()
            .find(|l| l.trim_start().starts_with(word))
            .unwrap_or_else(|| panic!("{word}: {said}"));
        line.trim().trim_start_matches(word).trim().to_owned()
    };
    let password = line("password").split_whitespace().next().unwrap().to_owned();
    let kept = home.data().join("dev-password");
    assert_eq!(std::fs::read_to_string(&kept).unwrap().trim(), password);
    assert!(password.len() >= 32, "{password}");
    for name in ["dev-password", "seal.key", "chandler.db"] {
        assert_eq!(Home::mode(&home.data().join(name)), 0o600, "{name}");
    }
    // The line that shows the catalog, as it was printed.
    let curl = line("catalog").replace("PASSWORD", &password);
    if Command::new("curl").arg("--version").output().is_ok() {
        let shown = Command::new("sh").args(["-c", &curl]).output().unwrap();
        assert!(
            String::from_utf8_lossy(&shown.stdout).contains("\"services\""),
            "{curl}: {shown:?}"
        );
    }
    let platform = Platform::new(&broker.address, &line("user"), &password);
    assert_eq!(platform.get("/v2/catalog").await.status, 200);

    let open = listening(broker.pid());
    assert!(
        !open.is_empty() && open.iter().all(|a| a.starts_with("0100007F:")),
        "{open:?}"
    );

    let second = process::run(&["dev", "--port", "0", "--data-dir", home.data().to_str().unwrap()]);
    assert!(!second.status.success());
    assert!(
        text(&second).contains("Another chandler runs on the data directory"),
        "{}",
        text(&second)
    );
    assert_eq!(platform.get("/v2/catalog").await.status, 200);

    assert!(broker.stop().success());
    tokio::task::block_in_place(|| broker.again());
    assert_eq!(
        platform.get("/v2/catalog").await.status,
        200,
        "the password stays"
    );
    assert!(broker.stop().success());

    let data = home.data();
    let arguments = ["dev", "--port", "0", "--data-dir", data.to_str().unwrap()];
    let mut broker = Broker::start(
        &home,
        &arguments,
        &[("CHANDLER_DEV_PASSWORD", "a word of my own choosing")],
    );
    let said = broker.said.lock().unwrap().clone();
    assert!(
        !said.contains("my own choosing") && !said.contains(&password),
        "{said}"
    );
    let own = Platform::new(&broker.address, "dev", "a word of my own choosing");
    assert_eq!(own.get("/v2/catalog").await.status, 200);
    let old = Platform::new(&broker.address, "dev", &password);
    assert_eq!(old.get("/v2/catalog").await.status, 401);
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_live_on_without_the_broker() {
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let state = State::dev(&home).await;
    let services = [Service::Redis, Service::Nats];
    let mut all = Vec::new();
    for service in services {
        platform.create(service, service.name()).await;
        let credentials = platform.bind(service, service.name(), "b").await;
        clients::write(service, &credentials, "key", "value").await;
        all.push((service, credentials));
    }
    let pids = || services.map(|s| home.leader(&state.iid(s.name())));
    let well = || async {
        for (service, credentials) in &all {
            clients::comes_to(*service, credentials, Access::In).await;
            assert_eq!(
                clients::read(*service, credentials, "key").await.as_deref(),
                Some("value")
            );
        }
    };
    let before = pids();
    assert!(before.iter().all(Option::is_some));

    broker.kill9();
    well().await;
    tokio::task::block_in_place(|| broker.again());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(pids(), before, "adopted after a kill");
    assert!(broker.stop().success());
    well().await;
    tokio::task::block_in_place(|| broker.again());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(pids(), before, "adopted after a stop");
    well().await;

    // A server that dies is started again; what it had on disk is there.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for pid in before.into_iter().flatten() {
        signal(pid, Signal::SIGKILL);
    }
    until("both are started again", LONG, || async {
        pids()
            .iter()
            .zip(&before)
            .all(|(now, then)| now.is_some() && now != then)
            .then_some(())
    })
    .await;
    well().await;

    // `dev stop` only without a broker, which would start them again.
    let data = home.data();
    let stop = ["dev", "stop", "--data-dir", data.to_str().unwrap()];
    let refused = process::run(&stop);
    assert!(
        !refused.status.success() && text(&refused).contains("stop it first"),
        "{}",
        text(&refused)
    );
    assert!(pids().iter().all(Option::is_some));
    assert!(broker.stop().success());
    let stopped = process::run(&stop);
    assert!(
        stopped.status.success() && text(&stopped).contains("Stopped 2 instance(s)"),
        "{}",
        text(&stopped)
    );
    assert!(processes_below(&home.instances()).is_empty());
    tokio::task::block_in_place(|| broker.again());
    until("both run again", LONG, || async {
        pids().iter().all(Option::is_some).then_some(())
    })
    .await;
    well().await;

    state.idle().await;
    let both = [
        expected(Service::Redis, "redis", &["b"]),
        expected(Service::Nats, "nats", &["b"]),
    ];
    let wrong = state.audit(&home.instances(), &both).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    for service in services {
        platform.delete(service, service.name()).await;
    }
    let wrong = state.audit(&home.instances(), &[]).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    state.store.close().await;
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_see_retry_and_cancel_work() {
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let state = State::dev(&home).await;
    let ask = |words: &[&str]| process::operator(&home, words);
    let created = platform.ask_instance(Service::Redis, "cache", json!({})).await;
    platform.ended(&created, &instance("cache")).await;
    let iid = state.iid("cache");

    let (good, shown) = ask(&["instances", "list"]);
    let line = shown
        .lines()
        .find(|l| l.contains(&iid))
        .unwrap_or_else(|| panic!("{shown}"));
    assert!(
        good && line.contains("ready") && line.contains("redis/small") && line.contains("cache"),
        "{line}"
    );
    let operation = created.operation().unwrap();
    let (good, shown) = ask(&["operations", "list"]);
    assert!(
        good && shown.contains(operation) && shown.contains("provision"),
        "{shown}"
    );
    let (good, shown) = ask(&["operations", "show", operation]);
    assert!(good, "{shown}");
    for word in [
        "provision of redis",
        "succeeded",
        "place",
        "apply",
        "ready",
        "prepare",
        "ended",
    ] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    for words in [
        ["operations", "show"],
        ["operations", "retry"],
        ["operations", "cancel"],
    ] {
        let (good, shown) = ask(&[words[0], words[1], "nosuchoperation"]);
        assert!(!good && shown.contains("nosuchoperation"), "{shown}");
    }
    let (good, shown) = ask(&["operations", "retry", operation]);
    assert!(!good && shown.contains("not open"), "{shown}");

    let server = home.leader(&iid).unwrap();
    signal(server, Signal::SIGSTOP);
    let cancelled = platform
        .ask_binding(Service::Redis, "cache", "cancelled", json!({}))
        .await;
    let id = cancelled
        .operation()
        .expect("the server does not answer")
        .to_owned();
    let (good, shown) = ask(&["operations", "list", "--open"]);
    assert!(
        good && shown.contains(&id) && !shown.contains(operation),
        "{shown}"
    );
    let (good, shown) = ask(&["operations", "cancel", &id]);
    assert!(good && shown.contains("ends as failed"), "{shown}");
    signal(server, Signal::SIGCONT);
    match platform.ended(&cancelled, &binding("cache", "cancelled")).await {
        End::Failed(why) => assert!(why.starts_with("Cancelled by an operator"), "{why}"),
        End::Succeeded => panic!("a cancelled bind succeeded"),
    }
    assert_eq!(platform.get(&binding("cache", "cancelled")).await.status, 404);
    state.idle().await;
    assert!(
        state.users(Service::Redis, "cache").await.is_empty(),
        "a cancelled bind leaves no user"
    );

    signal(server, Signal::SIGSTOP);
    let retried = platform
        .ask_binding(Service::Redis, "cache", "retried", json!({}))
        .await;
    let id = retried.operation().unwrap().to_owned();
    signal(server, Signal::SIGCONT);
    let (good, shown) = ask(&["operations", "retry", &id]);
    // It may have gone on by itself already.
    assert!(good || shown.contains("not open"), "{shown}");
    assert_eq!(
        platform.ended(&retried, &binding("cache", "retried")).await,
        End::Succeeded
    );
    clients::comes_to(
        Service::Redis,
        &platform.credentials("cache", "retried").await,
        Access::In,
    )
    .await;

    let (good, shown) = ask(&["doctor"]);
    assert!(good, "{shown}");
    for service in Service::ALL {
        let line = shown
            .lines()
            .find(|l| l.trim().starts_with(service.name()))
            .unwrap_or_else(|| panic!("{shown}"));
        assert!(line.trim().ends_with("yes"), "{line}");
    }
    platform.delete(Service::Redis, "cache").await;
    let (_, shown) = ask(&["instances", "list"]);
    assert!(!shown.contains(&iid), "{shown}");
    let (_, shown) = ask(&["instances", "list", "--all"]);
    assert!(shown.contains(&iid) && shown.contains("gone"), "{shown}");
    state.store.close().await;
    assert!(broker.stop().success());
}

#[test]
fn a_wrong_configuration_is_told_whole() {
    let home = Home::new();
    let mut served = Served::sqlite(&home);
    let good = process::run(&["config", "check", "--config", served.file()]);
    assert!(good.status.success(), "{}", text(&good));
    let shown = process::run(&["config", "show", "--config", served.file()]);
    assert!(shown.status.success(), "{}", text(&shown));
    let key = std::fs::read_to_string(home.path().join("seal.key")).unwrap();
    for secret in [PASSWORD, key.trim()] {
        assert!(!text(&shown).contains(secret), "{}", text(&shown));
    }
    assert!(text(&shown).contains("lease_seconds"), "{}", text(&shown));

    let open = home.path().join("open-password");
    std::fs::write(&open, "a password that everybody reads").unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    served.settings["http"]["listen"] = json!("0.0.0.0:8080");
    served.settings["engine"]["lease_seconds"] = json!(1);
    served.settings["engine"]["leese"] = json!(1);
    served.settings["store"]["url"] = json!("mysql://x");
    served.settings["platforms"][0]["credentials"][0]["password_file"] = json!(open);
    served.write();
    let bad = process::run(&["config", "check", "--config", served.file()]);
    assert_eq!(bad.status.code(), Some(1));
    let told = text(&bad);
    for path in [
        "http.listen",
        "engine.lease_seconds",
        "engine.leese",
        "store.url",
        "platforms.0.credentials.0",
    ] {
        assert!(told.contains(path), "{path}: {told}");
    }
    assert!(!told.contains("everybody reads"), "{told}");
    let started = process::run(&["serve", "--config", served.file()]);
    assert!(
        !started.status.success() && text(&started).contains("engine.leese"),
        "{}",
        text(&started)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_exchanged_while_the_broker_runs() {
    let home = Home::new();
    let mut served = Served::sqlite(&home);
    let (first, second) = (home.path().join("seal.key"), home.path().join("second.key"));
    let made = process::run(&["secrets", "new-key", second.to_str().unwrap()]);
    assert!(made.status.success(), "{}", text(&made));
    assert_eq!(Home::mode(&second), 0o600);
    assert!(
        !process::run(&["secrets", "new-key", second.to_str().unwrap()])
            .status
            .success(),
        "never over another"
    );
    served.settings["secrets"] = json!({"primary": "first", "keys": [{"label": "first", "file": first}, {"label": "second", "file": second}]});
    served.write();
    let mut broker = Broker::serve(&home, &served.file, "all");
    let platform = Served::platform(&broker);
    platform.create(Service::Redis, "i").await;
    let kept = platform.bind(Service::Redis, "i", "kept").await;

    // Applications go on binding while everything is sealed anew, more than once.
    let busy = platform.clone();
    let binding_on = tokio::spawn(async move {
        for n in 0..8 {
            let id = format!("b{n}");
            let told = busy.bind(Service::Redis, "i", &id).await;
            clients::comes_to(Service::Redis, &told, Access::In).await;
            assert_eq!(busy.credentials("i", &id).await, told);
        }
    });
    served.settings["secrets"]["primary"] = json!("second");
    served.write();
    while !binding_on.is_finished() {
        let done =
            tokio::task::block_in_place(|| process::run(&["secrets", "rekey", "--config", served.file()]));
        assert!(done.status.success(), "{}", text(&done));
    }
    binding_on.await.unwrap();
    assert_eq!(platform.credentials("i", "kept").await, kept);

    assert!(broker.stop().success());
    tokio::task::block_in_place(|| broker.again());
    let done = process::run(&["secrets", "rekey", "--config", served.file()]);
    assert!(
        done.status.success() && !text(&done).contains("could not"),
        "{}",
        text(&done)
    );
    // Now the first key is needed by nobody.
    assert!(broker.stop().success());
    std::fs::remove_file(&first).unwrap();
    served.settings["secrets"] = json!({"keys": [{"label": "second", "file": second}]});
    served.write();
    tokio::task::block_in_place(|| broker.again());
    assert_eq!(platform.credentials("i", "kept").await, kept);
    for n in 0..8 {
        platform.unbind(Service::Redis, "i", &format!("b{n}")).await;
    }
    clients::comes_to(Service::Redis, &kept, Access::In).await;
    platform.delete(Service::Redis, "i").await;
    let state = served.state().await;
    let wrong = state.audit(&home.path().join("instances"), &[]).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    state.store.close().await;
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_served_directly() {
    let home = Home::new();
    let (key, certificate) = (home.path().join("tls.key"), home.path().join("tls.crt"));
    // Debian's postgresql brings openssl along.
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    match made {
        Ok(output) => assert!(output.status.success(), "{}", text(&output)),
        Err(error) => {
            return println!("left out: openssl, which makes the certificate, cannot be run: {error}");
        }
    }
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut served = Served::sqlite(&home);
    served.settings["http"]["tls"] = json!({"cert_file": certificate, "key_file": key});
    served.write();
    let mut broker = Broker::serve(&home, &served.file, "all");
    let plain = Served::platform(&broker);
    assert!(
        plain.send("GET", "/v2/catalog", None).await.is_err(),
        "no plain HTTP where TLS is served"
    );

    let url = broker
        .address
        .read()
        .unwrap()
        .replace("http://127.0.0.1", "https://localhost");
    let secure = crate::support::process::Address::default();
    *secure.write().unwrap() = url;
    let root = reqwest::Certificate::from_pem(&std::fs::read(&certificate).unwrap()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([root]);
    let trusting = Platform::with(client, &secure, "cf", PASSWORD);
    assert_eq!(trusting.get("/v2/catalog").await.status, 200);
    let strange = Platform::new(&secure, "cf", PASSWORD);
    assert!(
        strange.send("GET", "/v2/catalog", None).await.is_err(),
        "nobody trusts a certificate of our own making"
    );
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platforms_password_changes_without_a_gap() {
    let home = Home::new();
    let mut served = Served::sqlite(&home);
    let next = home.private("cf-next", "the first of the second slot");
    served.settings["platforms"][0]["credentials"] = json!([
        {"username": "cf", "password_file": home.path().join("cf-password")},
        {"username": "cf-next", "password_file": next},
    ]);
    served.write();
    let mut broker = Broker::serve(&home, &served.file, "all");
    let present = Served::platform(&broker);
    let as_next = |password: &str| Platform::new(&broker.address, "cf-next", password);
    let (old, new) = (
        as_next("the first of the second slot"),
        as_next("a new one for the second slot"),
    );
    assert_eq!(old.get("/v2/catalog").await.status, 200);
    assert_eq!(new.get("/v2/catalog").await.status, 401);
    home.private("cf-next", "a new one for the second slot");
    until("the new password is taken", LONG, || async {
        // The platform's present log-in works all the time.
        assert_eq!(present.get("/v2/catalog").await.status, 200);
        tokio::time::sleep(Duration::from_secs(1)).await;
        (old.get("/v2/catalog").await.status == 401).then_some(())
    })
    .await;
    assert_eq!(new.get("/v2/catalog").await.status, 200);
    // What one slot made, the other sees: they are one platform.
    present.create(Service::Redis, "i").await;
    assert_eq!(new.get(&instance("i")).await.status, 200);
    new.delete(Service::Redis, "i").await;
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_accepts_and_another_works() {
    let home = Home::new();
    let served = Served::sqlite(&home);
    let mut front = Broker::serve(&home, &served.file, "http");
    let platform = Served::platform(&front);
    let state = served.state().await;
    let asked = platform.ask_instance(Service::Redis, "i", json!({})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let path = format!("{}/last_operation", instance("i"));
    assert_eq!(platform.get(&path).await.body["state"], "in progress");
    assert!(
        processes_below(&home.path().join("instances")).is_empty(),
        "it only accepts"
    );

    let mut worker = Broker::serve(&home, &served.file, "worker");
    assert_eq!(platform.ended(&asked, &instance("i")).await, End::Succeeded);
    let credentials = platform.bind(Service::Redis, "i", "b").await;
    clients::comes_to(Service::Redis, &credentials, Access::In).await;
    // A platform that wants its answer at once gets it, although another process does the work.
    let body = crate::support::platform::bind_body(Service::Redis, json!({}));
    let at_once = platform
        .send("PUT", &binding("i", "now"), Some(&body))
        .await
        .unwrap();
    assert_eq!(at_once.status, 201, "{}", at_once.text);
    clients::comes_to(Service::Redis, &at_once.body["credentials"], Access::In).await;
    // The worker answers probes and no platform.
    let open: Vec<String> = listening(worker.pid());
    assert!(open.iter().all(|a| a.starts_with("0100007F:")), "{open:?}");
    for at in &open {
        let port = u16::from_str_radix(at.split(':').nth(1).unwrap(), 16).unwrap();
        let address = crate::support::process::Address::default();
        *address.write().unwrap() = format!("http://127.0.0.1:{port}");
        let probe = Served::platform_at(&address);
        assert_eq!(probe.get("/livez").await.status, 200);
        assert_eq!(probe.get("/v2/catalog").await.status, 404);
    }
    platform.delete(Service::Redis, "i").await;
    state.idle().await;
    let wrong = state.audit(&home.path().join("instances"), &[]).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    state.store.close().await;
    assert!(front.stop().success() && worker.stop().success());
}

/// What a killed broker held is taken up at once by the next one, which the lock says is alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_the_work_goes_on_at_once() {
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let asked = platform.ask_instance(Service::Postgres, "db", json!({})).await;
    until("the database is being made", LONG, || async {
        (!processes_below(&home.instances()).is_empty()).then_some(())
    })
    .await;
    broker.kill9();
    tokio::task::block_in_place(|| broker.again());
    let begun = std::time::Instant::now();
    assert_eq!(platform.ended(&asked, &instance("db")).await, End::Succeeded);
    // A lease is 30 seconds.
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "took {:?}",
        begun.elapsed()
    );
    platform.delete(Service::Postgres, "db").await;
    assert!(broker.stop().success());
}
