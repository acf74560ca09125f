//! Trouble around the broker: a locked database, a full disk, a dying server, an end in the middle of work, a crowd.

use crate::support::audit::{Expected, State};
use crate::support::clients::{self, Access};
use crate::support::home::{Home, signal};
use crate::support::platform::{
    Answer, End, Platform, Service, bind_body, binding, ids, instance, provision_body,
};
use crate::support::process::Broker;
use crate::support::served::Served;
use crate::support::{Dice, seed, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, SqliteConnection};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

fn expected(service: Service, id: &str, bindings: &[&str]) -> Expected {
    Expected {
        service,
        id: id.into(),
        bindings: bindings.iter().map(ToString::to_string).collect(),
    }
}

async fn nothing_wrong(state: &State, home: &Home, expected: &[Expected]) {
    state.idle().await;
    let wrong = state.audit(&home.instances(), expected).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A request that must be refused for now, in the form the platform is promised.
fn refused(answer: &Answer) {
    assert!(
        (500..600).contains(&answer.status),
        "{} {}",
        answer.status,
        answer.text
    );
    assert!(
        !answer.body["description"].as_str().unwrap_or_default().is_empty(),
        "{}",
        answer.text
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_database_refuses_and_leaves_nothing_half_done() {
    let home = Home::new();
    let served = Served::sqlite(&home);
    let mut broker = Broker::serve(&home, &served.file, "all");
    let platform = Served::platform(&broker);
    let state = served.state().await;
    platform.create(Service::Redis, "before").await;
    let kept = platform.bind(Service::Redis, "before", "b").await;

    let url = format!("sqlite://{}", home.path().join("broker.db").display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    // Accepted a moment before: its work is under way when the lock falls.
    let working = platform.ask_instance(Service::Nats, "working", json!({})).await;
    other.execute("PRAGMA busy_timeout = 10000").await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();

    let create = provision_body(Service::Redis, json!({}));
    let bind = bind_body(Service::Redis, json!({}));
    let change = json!({"service_id": Service::Redis.ids().0, "parameters": Service::Redis.change(1)});
    let (put, new, patch, away) = (
        format!("{}?accepts_incomplete=true", instance("refused")),
        format!("{}?accepts_incomplete=true", binding("before", "refused")),
        format!("{}?accepts_incomplete=true", instance("before")),
        format!("{}?{}", binding("before", "b"), ids(Service::Redis)),
    );
    let begun = Instant::now();
    let answers = tokio::join!(
        platform.send("PUT", &put, Some(&create)),
        platform.send("PUT", &new, Some(&bind)),
        platform.send("PATCH", &patch, Some(&change)),
        platform.send("DELETE", &away, None),
    );
    for answer in [answers.0, answers.1, answers.2, answers.3] {
        refused(&answer.unwrap());
    }
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "refused only after {:?}",
        begun.elapsed()
    );
    // What needs no write goes on.
    for path in ["/v2/catalog", &instance("before")] {
        assert_eq!(
            platform.send("GET", path, None).await.unwrap().status,
            200,
            "{path}"
        );
    }
    // Credentials are not given out unrecorded (ADR 0019).
    refused(&platform.send("GET", &binding("before", "b"), None).await.unwrap());
    other.execute("ROLLBACK").await.unwrap();
    other.close().await.unwrap();

    assert_eq!(
        platform.ended(&working, &instance("working")).await,
        End::Succeeded
    );
    assert_eq!(platform.get(&instance("refused")).await.status, 404);
    assert_eq!(platform.get(&binding("before", "refused")).await.status, 404);
    clients::comes_to(Service::Redis, &kept, Access::In).await;
    state.idle().await;
    let both = [
        expected(Service::Redis, "before", &["b"]),
        expected(Service::Nats, "working", &[]),
    ];
    let wrong = state.audit(&home.path().join("instances"), &both).await;
    assert!(wrong.is_empty(), "{wrong:#?}");

    // The same requests again, now that they can be served.
    platform.create(Service::Redis, "refused").await;
    platform.bind(Service::Redis, "before", "refused").await;
    platform.unbind(Service::Redis, "before", "b").await;
    clients::comes_to(Service::Redis, &kept, Access::Refused).await;
    state.store.close().await;
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_service_comes_back_with_the_space() {
    let mut home = Home::new();
    if !nix::unistd::geteuid().is_root() || !home.mount_small_data(48) {
        println!("left out: mounting a small file system takes root and CAP_SYS_ADMIN");
        return;
    }
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let state = State::dev(&home).await;
    platform.create(Service::Redis, "before").await;
    let kept = platform.bind(Service::Redis, "before", "b").await;
    clients::write(Service::Redis, &kept, "key", "value").await;

    let filler = home.data().join("filler");
    fill(&filler);
    let (mut accepted, mut refusals) = (Vec::new(), 0);
    let end = Instant::now() + LONG;
    // The log of the database may have some room left, so the first requests may still be taken; those are promises.
    for n in 0.. {
        let id = format!("i{n}");
        let body = provision_body(Service::Redis, json!({}));
        let answer = platform
            .send(
                "PUT",
                &format!("{}?accepts_incomplete=true", instance(&id)),
                Some(&body),
            )
            .await
            .unwrap();
        if answer.status == 202 {
            accepted.push((id, answer));
        } else {
            refused(&answer);
            refusals += 1;
            assert_eq!(platform.get(&instance(&id)).await.status, 404, "{id}");
        }
        if refusals >= 5 {
            break;
        }
        assert!(
            Instant::now() < end,
            "the disk is full and everything is accepted: {n}"
        );
        fill(&filler);
    }
    println!("accepted {}, refused {refusals}", accepted.len());
    let unbind = platform
        .send(
            "DELETE",
            &format!("{}?{}", binding("before", "b"), ids(Service::Redis)),
            None,
        )
        .await
        .unwrap();
    refused(&unbind);
    assert_eq!(
        platform.send("GET", "/v2/catalog", None).await.unwrap().status,
        200
    );
    clients::comes_to(Service::Redis, &kept, Access::In).await;

    std::fs::remove_file(&filler).unwrap();
    let mut all = vec![expected(Service::Redis, "before", &["b", "again"])];
    for (id, answer) in &accepted {
        assert_eq!(
            platform.ended(answer, &instance(id)).await,
            End::Succeeded,
            "{id}"
        );
        all.push(expected(Service::Redis, id, &[]));
    }
    platform.bind(Service::Redis, "before", "again").await;
    assert_eq!(
        clients::read(Service::Redis, &kept, "key").await.as_deref(),
        Some("value")
    );
    nothing_wrong(&state, &home, &all).await;
    for one in &all {
        platform.delete(Service::Redis, &one.id).await;
    }
    nothing_wrong(&state, &home, &[]).await;
    state.store.close().await;
    assert!(broker.stop().success());
}

/// Appends until nothing goes any more.
fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![0; size];
        while file.write_all(&block).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_during_a_bind_leaves_a_binding_or_nothing() {
    let seed = seed();
    println!("seed {seed}");
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let state = State::dev(&home).await;
    let lives = Service::ALL.map(|service| {
        let dice = Dice::new(seed.wrapping_add(service as u64));
        killed_while_it_binds(service, dice, &platform, &home, &state)
    });
    let expected = futures::future::join_all(lives).await;
    nothing_wrong(&state, &home, &expected).await;
    for one in &expected {
        platform.delete(one.service, &one.id).await;
    }
    nothing_wrong(&state, &home, &[]).await;
    state.store.close().await;
    assert!(broker.stop().success());
}

async fn killed_while_it_binds(
    service: Service,
    mut dice: Dice,
    platform: &Platform,
    home: &Home,
    state: &State,
) -> Expected {
    let id = service.name();
    platform.create(service, id).await;
    let first = platform.bind(service, id, "first").await;
    clients::write(service, &first, "key", "value").await;
    // What was acknowledged a second ago is on disk with every service's own settings.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut there = vec!["first"];
    // A server that dies again and again is given a rest, so it dies no more than three times.
    for binding_id in ["one", "two", "three"] {
        let leader = home.leader(&state.iid(id)).expect("the server runs");
        let asking = platform.clone();
        let asked = tokio::spawn(async move { asking.ask_binding(service, id, binding_id, json!({})).await });
        tokio::time::sleep(Duration::from_millis(dice.below(70))).await;
        signal(leader, Signal::SIGKILL);
        let answer = asked.await.unwrap();
        match platform.ended(&answer, &binding(id, binding_id)).await {
            End::Succeeded => {
                let credentials = platform.credentials(id, binding_id).await;
                clients::comes_to(service, &credentials, Access::In).await;
                there.push(binding_id);
            }
            End::Failed(why) => {
                println!("{id} {binding_id}: {why}");
                assert_eq!(platform.get(&binding(id, binding_id)).await.status, 404);
            }
        }
        clients::comes_to(service, &first, Access::In).await;
        assert_eq!(
            clients::read(service, &first, "key").await.as_deref(),
            Some("value"),
            "{id}"
        );
    }
    println!("{id}: {there:?}");
    expected(service, id, &there)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_the_middle_of_work_reaches_a_record_and_leaves_no_lease() {
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let state = State::dev(&home).await;
    platform.create(Service::Redis, "kept").await;
    let mut asked = Vec::new();
    for (round, wait) in [0_u64, 15, 60, 200].into_iter().enumerate() {
        for service in Service::ALL {
            if service == Service::Postgres && round % 2 == 1 {
                continue;
            }
            let id = format!("{}{round}", service.name());
            asked.push((
                service,
                id.clone(),
                platform.ask_instance(service, &id, json!({})).await,
            ));
        }
        let made = platform
            .ask_binding(Service::Redis, "kept", &format!("b{round}"), json!({}))
            .await;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let begun = Instant::now();
        let ended = tokio::task::block_in_place(|| broker.stop());
        assert!(ended.success(), "{ended}");
        assert!(
            begun.elapsed() < Duration::from_secs(35),
            "took {:?}",
            begun.elapsed()
        );
        let leased = leases(&home).await;
        assert!(leased.is_empty(), "leases are left: {leased:?}");
        tokio::task::block_in_place(|| broker.again());
        // No lease has to run out: what was open goes on at once.
        let begun = Instant::now();
        assert_eq!(
            platform
                .ended(&made, &binding("kept", &format!("b{round}")))
                .await,
            End::Succeeded
        );
        for (_, id, answer) in &asked {
            assert_eq!(
                platform.ended(answer, &instance(id)).await,
                End::Succeeded,
                "{id}"
            );
        }
        assert!(
            begun.elapsed() < Duration::from_secs(25),
            "went on only after {:?}",
            begun.elapsed()
        );
    }
    let mut all: Vec<Expected> = asked
        .iter()
        .map(|(service, id, _)| expected(*service, id, &[]))
        .collect();
    all.push(expected(Service::Redis, "kept", &["b0", "b1", "b2", "b3"]));
    nothing_wrong(&state, &home, &all).await;
    state.store.close().await;
    assert!(broker.stop().success());
}

/// Open operations that somebody still holds.
async fn leases(home: &Home) -> Vec<(String, String)> {
    let url = format!("sqlite://{}", home.data().join("chandler.db").display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query_as("SELECT kind, step FROM operations WHERE state = 'open' AND lease_until > 0")
        .fetch_all(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_on_one_instance() {
    let seed = seed();
    println!("seed {seed}");
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let state = State::dev(&home).await;

    // All the same request: one instance, one operation, whoever was first.
    let body = provision_body(Service::Redis, json!({}));
    let path = format!("{}?accepts_incomplete=true", instance("same"));
    let answers = crowd(&platform, |_| ("PUT", path.clone(), Some(body.clone()))).await;
    let operations: Vec<&str> = answers.iter().filter_map(Answer::operation).collect();
    assert!(
        answers.iter().all(|a| matches!(a.status, 200 | 202)),
        "{answers:?}"
    );
    assert!(
        operations.windows(2).all(|two| two[0] == two[1]),
        "{operations:?}"
    );
    assert_eq!(
        platform
            .end_of(&format!("{}/last_operation", instance("same")))
            .await,
        End::Succeeded
    );

    // All different: one is taken, all others are told that the id is.
    let path = format!("{}?accepts_incomplete=true", instance("other"));
    let answers = crowd(&platform, |n| {
        (
            "PUT",
            path.clone(),
            Some(provision_body(Service::Redis, json!({"idle_timeout_seconds": n}))),
        )
    })
    .await;
    let taken = answers.iter().filter(|a| a.status == 202).count();
    assert!(
        taken == 1 && answers.iter().all(|a| matches!(a.status, 202 | 409)),
        "{answers:?}"
    );
    assert_eq!(
        platform
            .end_of(&format!("{}/last_operation", instance("other")))
            .await,
        End::Succeeded
    );

    // All want the same binding.
    let path = format!("{}?accepts_incomplete=true", binding("same", "b"));
    let body = bind_body(Service::Redis, json!({}));
    let answers = crowd(&platform, |_| ("PUT", path.clone(), Some(body.clone()))).await;
    assert!(
        answers.iter().all(|a| matches!(a.status, 200..=202)),
        "{answers:?}"
    );
    assert_eq!(
        platform
            .end_of(&format!("{}/last_operation", binding("same", "b")))
            .await,
        End::Succeeded
    );
    let credentials = platform.credentials("same", "b").await;
    for told in answers
        .iter()
        .map(|a| &a.body["credentials"])
        .filter(|c| !c.is_null())
    {
        assert_eq!(told, &credentials);
    }
    nothing_wrong(
        &state,
        &home,
        &[
            expected(Service::Redis, "same", &["b"]),
            expected(Service::Redis, "other", &[]),
        ],
    )
    .await;

    // Everybody wants something else, for a while.
    let mut dice = Dice::new(seed);
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..12 {
        let wishes: Vec<_> = (0..16).map(|_| wish(&mut dice)).collect();
        let answers = crowd(&platform, |n| {
            let (method, path, body) = &wishes[n];
            (*method, path.clone(), body.clone())
        })
        .await;
        for ((method, path, _), answer) in wishes.iter().zip(&answers) {
            allowed(method, path, answer);
            *seen
                .entry(format!("{method} {} {}", answer.status, answer.error()))
                .or_default() += 1;
        }
    }
    for (what, times) in &seen {
        println!("{what:<34} {times}");
    }
    state.idle().await;
    // Whatever came of it, rows, servers and users tell the same story.
    let mut there = vec![
        expected(Service::Redis, "same", &["b"]),
        expected(Service::Redis, "other", &[]),
    ];
    if platform.get(&instance("crowd")).await.status == 200 {
        let mut bindings = Vec::new();
        for id in ["one", "two"] {
            if platform.get(&binding("crowd", id)).await.status == 200 {
                clients::comes_to(
                    Service::Redis,
                    &platform.credentials("crowd", id).await,
                    Access::In,
                )
                .await;
                bindings.push(id);
            }
        }
        there.push(expected(Service::Redis, "crowd", &bindings));
    }
    nothing_wrong(&state, &home, &there).await;
    for one in &there {
        platform.delete(Service::Redis, &one.id).await;
    }
    nothing_wrong(&state, &home, &[]).await;
    state.store.close().await;
    assert!(broker.stop().success());
}

type Wish = (&'static str, String, Option<Value>);

/// Sixteen requests at the same moment.
async fn crowd(platform: &Platform, wish: impl Fn(usize) -> Wish) -> Vec<Answer> {
    let all = (0..16).map(|n| {
        let (platform, (method, path, body)) = (platform.clone(), wish(n));
        async move { platform.send(method, &path, body.as_ref()).await.unwrap() }
    });
    futures::future::join_all(all).await
}

fn wish(dice: &mut Dice) -> Wish {
    let service = Service::Redis;
    let at = instance("crowd");
    let id = *dice.pick(&["one", "two"]);
    let idle = dice.below(2);
    match dice.below(10) {
        0..=3 => (
            "PUT",
            format!("{at}?accepts_incomplete=true"),
            Some(provision_body(service, json!({"idle_timeout_seconds": idle}))),
        ),
        4 => ("DELETE", format!("{at}?{}", ids(service)), None),
        5 => {
            let body =
                json!({"service_id": service.ids().0, "parameters": {"idle_timeout_seconds": 2 + idle}});
            ("PATCH", format!("{at}?accepts_incomplete=true"), Some(body))
        }
        6 | 7 => {
            let role = ["readwrite", "readonly"][usize::try_from(idle).unwrap()];
            let body = bind_body(service, json!({"parameters": {"role": role}}));
            (
                "PUT",
                format!("{}?accepts_incomplete=true", binding("crowd", id)),
                Some(body),
            )
        }
        8 => (
            "DELETE",
            format!("{}?{}", binding("crowd", id), ids(service)),
            None,
        ),
        _ => ("GET", at, None),
    }
}

/// Nothing but what the specification has for this request.
fn allowed(method: &str, path: &str, answer: &Answer) {
    let of_binding = path.contains("service_bindings");
    let good: &[u16] = match (method, of_binding) {
        ("PUT", false) => &[200, 202, 409, 422],
        ("PUT", true) => &[200, 201, 202, 400, 404, 409, 422],
        ("PATCH", _) => &[200, 202, 400, 404, 422],
        ("DELETE", false) => &[202, 410, 422],
        ("DELETE", true) => &[200, 202, 410, 422],
        _ => &[200, 404, 422],
    };
    assert!(
        good.contains(&answer.status),
        "{method} {path}: {} {}",
        answer.status,
        answer.text
    );
    if answer.status == 422 {
        assert_eq!(
            answer.error(),
            "ConcurrencyError",
            "{method} {path}: {}",
            answer.text
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_during_the_create_leaves_nothing() {
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let state = State::dev(&home).await;
    let mut gone = Vec::new();
    for (n, wait) in [0_u64, 10, 25, 50, 90, 160, 300, 600].into_iter().enumerate() {
        for service in Service::ALL {
            let id = format!("{}{n}", service.name());
            let platform = platform.clone();
            gone.push(async move {
                platform.ask_instance(service, &id, json!({})).await;
                tokio::time::sleep(Duration::from_millis(wait)).await;
                platform.delete(service, &id).await;
                assert_eq!(platform.get(&instance(&id)).await.status, 404);
            });
        }
    }
    // A few at a time: this is about the moment, not about load.
    futures::StreamExt::for_each_concurrent(futures::stream::iter(gone), 4, |one| one).await;
    nothing_wrong(&state, &home, &[]).await;
    // And the ids can be used again.
    platform.create(Service::Redis, "redis0").await;
    platform.delete(Service::Redis, "redis0").await;
    nothing_wrong(&state, &home, &[]).await;
    until("nothing of the servers runs", LONG, || async {
        crate::support::home::processes_below(&home.instances())
            .is_empty()
            .then_some(())
    })
    .await;
    state.store.close().await;
    assert!(broker.stop().success());
}
