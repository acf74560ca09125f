//! Rotation in place: what is answered, that the former credentials go on for a while, that nobody who reads the secret
//! is ever left with dead ones, and who may ask.

use super::{GRACE, SETTLED, bid, by, choices, full, held, rotate_path};
use crate::support::broker::{Answer, PASSWORD, TestBroker};
use crate::support::flow::{LATER, binding, instance};
use crate::support::world::{Effect, When};
use chandler::domain::binding::UserState;
use chandler::domain::names;
use chandler::domain::operation::OperationKind;
use chandler::ports::PortErrorKind;
use serde_json::{Map, json};
use std::time::Duration;

async fn rotate(broker: &TestBroker, id: &str) -> Answer {
    broker.send(broker.request("POST", &rotate_path(id))).await
}

/// Waits until a request that rotates is waiting for its end, then lets work and time go on.
async fn rotate_and_run(broker: &TestBroker, id: &str) -> Answer {
    let answer = rotate(broker, id).await;
    broker.run_until_idle().await;
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_credentials_and_the_former_ones_for_a_while() {
    for way in ["reference", "secret"] {
        let broker = full().await;
        broker.provisioned("one").await;
        let told = broker.put(&binding("a"), &by(way)).await.expect(201).body["credentials"].clone();
        let first = broker.read("a").unwrap();
        broker.world.calls.lock().unwrap().clear();
        let done = rotate(&broker, "a").await.expect(200);
        assert_eq!(done.body["generation"], 1);
        assert!(done.body["former_valid_until"].as_str().unwrap().ends_with('Z'));
        let calls = broker.world.calls.lock().unwrap().join(" ");
        let expected = if way == "secret" {
            "issue verify project"
        } else {
            "generation issue verify publish"
        };
        assert_eq!(calls, expected);
        let second = broker.read("a").unwrap();
        assert_ne!(first["username"], second["username"]);
        assert_ne!(first["password"], second["password"]);
        assert!(
            broker.world.opens(&first) && broker.world.opens(&second),
            "both work"
        );
        // To the platform the binding is what it was.
        assert_eq!(
            broker.get(&binding("a")).await.expect(200).body["credentials"],
            told
        );
        assert_eq!(
            broker.put(&binding("a"), &by(way)).await.expect(200).body["credentials"],
            told
        );

        broker.advance(GRACE - Duration::from_secs(1));
        assert_eq!(broker.sweeper().bindings().await.unwrap().retired, 0);
        assert!(broker.world.opens(&first));
        broker.advance(Duration::from_secs(1));
        assert_eq!(broker.sweeper().bindings().await.unwrap().retired, 1);
        broker.run_until_idle().await;
        assert!(
            !broker.world.opens(&first) && broker.world.opens(&second),
            "the grace is over"
        );
        assert_eq!(broker.sweeper().bindings().await.unwrap().retired, 0, "once");

        // And again: the first name's turn.
        rotate(&broker, "a").await.expect(200);
        let third = broker.read("a").unwrap();
        assert_eq!(third["username"], first["username"]);
        assert!(broker.world.opens(&second) && broker.world.opens(&third) && !broker.world.opens(&first));
        broker.unbound("a").await;
        assert!(broker.world.users().is_empty() && broker.world.around.bids().is_empty());
        broker.settled_and_end().await;
    }
}

/// Two users of a binding work at a time and no more: to rotate twice is how a leaked secret is made worthless at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotating_twice_takes_the_first_away_at_once() {
    let broker = full().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let first = broker.read("a").unwrap();
    rotate(&broker, "a").await.expect(200);
    let second = broker.read("a").unwrap();
    assert_eq!(rotate(&broker, "a").await.expect(200).body["generation"], 2);
    let third = broker.read("a").unwrap();
    assert!(!broker.world.opens(&first) && broker.world.opens(&second) && broker.world.opens(&third));
    assert_eq!(broker.world.users().len(), 2);
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grace_of_nothing_is_the_next_sweep() {
    let mut all = choices();
    all.engine.rotation_grace = Duration::ZERO;
    let broker = TestBroker::with(all).await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let first = broker.read("a").unwrap();
    rotate(&broker, "a").await.expect(200);
    assert!(broker.world.opens(&first));
    assert_eq!(broker.sweeper().bindings().await.unwrap().retired, 1);
    broker.run_until_idle().await;
    assert!(!broker.world.opens(&first));
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_ask_and_for_what() {
    let broker = full().await;
    for id in ["one", "two"] {
        broker.provisioned(id).await;
    }
    broker.put(&binding("a"), &by("reference")).await.expect(201);
    broker.put(&binding("inline"), &by("inline")).await.expect(201);
    rotate(&broker, "nobody").await.expect_error(404, "NotFound");
    rotate(&broker, "inline")
        .await
        .expect_error(422, "RotationNotSupported");
    for (user, status) in [("k8s", 404), ("nobody", 401)] {
        let request = broker
            .http
            .post(format!("{}{}", broker.base, rotate_path("a")))
            .basic_auth(user, Some(PASSWORD));
        assert_eq!(broker.send(request).await.status, status, "{user}");
    }
    // No version header is needed: the path has the version.
    let bare = broker
        .http
        .post(format!("{}{}", broker.base, rotate_path("a")))
        .basic_auth("cf", Some(PASSWORD));
    broker.send(bare).await.expect(200);
    broker
        .get(&rotate_path("a"))
        .await
        .expect_error(405, "MethodNotAllowed");
    broker
        .send(broker.request("POST", "/api/v1/bindings/a"))
        .await
        .expect(404);

    // The same id on two instances: one must say which.
    let twin = "/v2/service_instances/two/service_bindings/a";
    broker.put(twin, &by("reference")).await.expect(201);
    let refused = rotate(&broker, "a").await.expect(400);
    assert!(
        refused.body["description"]
            .as_str()
            .unwrap()
            .starts_with("instance_id: "),
        "{}",
        refused.text
    );
    let named = format!("{}?instance_id=two", rotate_path("a"));
    assert_eq!(
        broker.send(broker.request("POST", &named)).await.expect(200).body["generation"],
        1
    );
    let named = format!("{}?instance_id=three", rotate_path("a"));
    broker.send(broker.request("POST", &named)).await.expect(404);
    let generation = |instance: &str| {
        let bid = names::bid("cf", instance, "a");
        let broker = &broker;
        async move {
            broker
                .engine
                .store()
                .binding(&bid)
                .await
                .unwrap()
                .unwrap()
                .binding
                .generation
        }
    };
    assert_eq!((generation("one").await, generation("two").await), (1, 1));
    broker.deleted("two").await;
    broker.settled_and_end().await;
}

/// 202 with a token when it takes longer; asked again it is the same operation; polls without the token tell of the bind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_longer_is_polled_by_its_token() {
    let mut all = choices();
    all.engine.runs_work = false;
    all.engine.sync_wait = Duration::from_millis(50);
    let broker = TestBroker::with(all).await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let accepted = rotate(&broker, "a").await.expect(202);
    let token = accepted.operation().to_owned();
    assert_eq!(accepted.body.as_object().unwrap().len(), 1);
    assert_eq!(rotate(&broker, "a").await.expect(202).operation(), token);
    assert_eq!(
        broker.last_of(&binding("a"), &token).await.body["state"],
        "in progress"
    );
    assert_eq!(
        broker.last(&binding("a")).await.body["state"],
        "succeeded",
        "the bind's"
    );
    broker.get(&binding("a")).await.expect(200);
    // Meanwhile the instance is not changed or deleted under it.
    let patch = json!({"service_id": crate::support::catalog::ALPHA, "parameters": {"size": 7}});
    broker
        .patch(&format!("{}?{LATER}", instance("one")), &patch)
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    assert_eq!(
        broker.last_of(&binding("a"), &token).await.body["state"],
        "succeeded"
    );
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_cannot_work_says_so_and_changes_nothing() {
    let broker = full().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let before = broker.read("a").unwrap();
    broker.world.plan(
        "issue",
        When::Before,
        Effect::Fail(PortErrorKind::Denied, "Too many users."),
        1,
    );
    let failed = rotate(&broker, "a").await.expect(500);
    assert!(
        failed.body["description"]
            .as_str()
            .unwrap()
            .contains("Too many users."),
        "{}",
        failed.text
    );
    assert_eq!(broker.read("a").unwrap(), before);
    assert!(broker.world.opens(&before));
    assert_eq!(broker.world.users().len(), 1);
    assert_eq!(
        broker.last(&binding("a")).await.body["state"],
        "succeeded",
        "the bind's"
    );
    assert_eq!(rotate(&broker, "a").await.expect(200).body["generation"], 1);
    broker.settled_and_end().await;
}

/// The answer of `publish` is lost and the vault stays away until the time is over: it is asked before anything is undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_user_is_never_revoked() {
    let away = || Effect::Fail(PortErrorKind::Transient, "the vault is away");
    for asked in [false, true] {
        let broker = held().await;
        broker.provisioned("one").await;
        broker.handed("a", "reference").await;
        let first = broker.read("a").unwrap();
        let accepted = rotate(&broker, "a").await.expect(202);
        broker.world.plan("publish", When::After, away(), 10_000);
        if asked {
            // And nobody can say whether it was published: then both stay, and it goes on by itself.
            broker.run_due().await;
            broker.world.plan("generation", When::Before, away(), 10_000);
        }
        broker.run_until_idle().await;
        let last = broker.last_of(&binding("a"), accepted.operation()).await;
        let read = broker.read("a").unwrap();
        assert_ne!(first["username"], read["username"], "it was published");
        assert!(broker.world.opens(&first) && broker.world.opens(&read));
        if asked {
            assert_eq!(last.body["state"], "failed");
            let said = last.body["description"].as_str().unwrap();
            assert!(said.contains("both work") && said.contains("by itself"), "{said}");
            assert_eq!(broker.binding_row("a").await.generation, 0);
            assert!(!broker.left_over().await.is_empty(), "and what it is at is kept");
            broker.world.calm();
            assert_eq!(broker.sweeper().bindings().await.unwrap().retired, 1);
            broker.run_until_idle().await;
        } else {
            assert_eq!(last.body["state"], "succeeded", "{}", last.text);
        }
        let row = broker.binding_row("a").await;
        assert_eq!((row.generation, json!(row.handle)), (1, read["username"].clone()));
        assert_eq!(broker.read("a").unwrap(), read, "one generation, not two");
        broker.world.calm();
        broker.settled_and_end().await;
    }
}

/// Where only Secrets are, nobody can be asked: writing again is how one finds out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mounted_user_is_never_revoked() {
    let broker = held().await;
    broker.provisioned("one").await;
    broker.handed("a", "secret").await;
    let first = broker.read("a").unwrap();
    rotate(&broker, "a").await.expect(202);
    let away = Effect::Fail(PortErrorKind::Transient, "the cluster is away");
    broker.world.plan("project", When::After, away, 10_000);
    broker.run_until_idle().await;
    let read = broker.read("a").unwrap();
    assert_ne!(first["username"], read["username"]);
    assert!(
        broker.world.opens(&first) && broker.world.opens(&read),
        "both stay"
    );
    broker.world.calm();
    broker.advance(Duration::from_secs(61));
    broker.sweeper().bindings().await.unwrap();
    broker.run_until_idle().await;
    assert_eq!(
        json!(broker.binding_row("a").await.handle),
        broker.read("a").unwrap()["username"]
    );
    broker.settled_and_end().await;
}

/// What a frozen worker publishes after its rotation was undone opens nothing; the sweep notices and rotates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_publish_is_followed_by_another_rotation() {
    let broker = held().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    broker.world.plan(
        "publish",
        When::Before,
        Effect::Fail(PortErrorKind::Denied, "no"),
        1,
    );
    rotate_and_run(&broker, "a").await;
    let dead = Map::from_iter([
        ("username".to_owned(), json!("b_late")),
        ("password".to_owned(), json!("x")),
    ]);
    broker
        .world
        .around
        .kept
        .lock()
        .unwrap()
        .get_mut(&bid("a"))
        .unwrap()
        .versions
        .push(dead);
    assert!(!broker.world.opens(&broker.read("a").unwrap()));
    broker.advance(SETTLED);
    assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 1);
    broker.run_until_idle().await;
    assert!(broker.world.opens(&broker.read("a").unwrap()), "works again");
    assert_eq!(
        broker.binding_row("a").await.generation,
        2,
        "the vault's own count"
    );
    assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 0, "once");
    broker.settled_and_end().await;
}

/// A secret that an operator lost in the vault comes back with the next rotation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_brings_a_lost_secret_back() {
    let broker = full().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    broker.world.around.kept.lock().unwrap().clear();
    assert!(broker.read("a").is_none());
    rotate(&broker, "a").await.expect(200);
    assert!(broker.world.opens(&broker.read("a").unwrap()));
    broker.settled_and_end().await;
}

/// Mechanisms that state the whole list of revocations: former users stand in it, also after the id was used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn former_users_stay_on_the_list_of_the_revoked() {
    let broker = full().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let first = broker.binding_row("a").await.handle;
    rotate(&broker, "a").await.expect(200);
    let row = broker.binding_row("a").await;
    let listed = async || {
        let store = broker.engine.store();
        let all = store.revoked_handles(&row.iid).await.unwrap();
        all.into_iter().map(|(handle, _)| handle).collect::<Vec<_>>()
    };
    assert!(listed().await.is_empty(), "it has its grace");
    broker.advance(GRACE);
    broker.sweeper().bindings().await.unwrap();
    broker.run_until_idle().await;
    assert_eq!(listed().await, std::slice::from_ref(&first));
    broker.unbound("a").await;
    assert_eq!(listed().await, [first.clone(), row.handle.clone()]);
    // The id again: its new user has the first one's name, so that is let in; the other is not.
    broker.settle().await;
    broker.handed("a", "reference").await;
    assert_eq!(listed().await, std::slice::from_ref(&row.handle));
    assert!(broker.world.opens(&broker.read("a").unwrap()));
    broker.settled_and_end().await;
}

/// A deprovision closes a binding with two users; nobody is let in when the data comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_users_end_with_the_instance() {
    let broker = full().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    rotate(&broker, "a").await.expect(200);
    let row = broker.binding_row("a").await;
    broker.deleted("one").await;
    let users = broker.engine.store().other_users(&row.bid).await.unwrap();
    assert!(
        users
            .iter()
            .all(|user| user.state == UserState::Revoked && user.refused)
    );
    let listed = broker.engine.store().revoked_handles(&row.iid).await.unwrap();
    assert_eq!(listed.len(), 2);
    broker.settle().await;
    broker.end().await;
}

/// Expiry ends both users too, and waits for a rotation that is at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_comes_after_a_rotation() {
    let broker = held().await;
    let plan = crate::support::catalog::SHORT;
    broker
        .provisioned_as(crate::support::catalog::ALPHA, plan, json!({}))
        .await;
    let body = json!({"service_id": crate::support::catalog::ALPHA, "plan_id": plan});
    broker
        .put(&format!("{}?{LATER}", binding("a")), &body)
        .await
        .expect(202);
    broker.run_until_idle().await;
    rotate(&broker, "a").await.expect(202);
    broker.advance(Duration::from_secs(601));
    assert_eq!(broker.sweeper().bindings().await.unwrap().expired, 0);
    broker.run_until_idle().await;
    assert_eq!(broker.sweeper().bindings().await.unwrap().expired, 1);
    broker.run_until_idle().await;
    assert!(broker.world.users().is_empty() && broker.world.around.bids().is_empty());
    rotate(&broker, "a").await.expect_error(404, "NotFound");
    broker.settled_and_end().await;
}

/// Eight at once on one binding: one operation, one new generation.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_who_ask_at_once_get_one_rotation() {
    let broker = full().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let all = (0..8).map(|_| rotate(&broker, "a"));
    let answers = futures::future::join_all(all).await;
    for answer in &answers {
        // Who asks after one has ended begins another.
        assert!([200, 202].contains(&answer.status), "{}", answer.text);
    }
    broker.run_until_idle().await;
    let rows = broker.engine.store().operations_list(None, 100).await.unwrap();
    let rotations = rows
        .iter()
        .filter(|r| r.operation.kind == OperationKind::Rotate)
        .count();
    let row = broker.binding_row("a").await;
    assert_eq!(row.generation as usize, rotations);
    assert!(broker.world.opens(&broker.read("a").unwrap()));
    broker.settled_and_end().await;
}

/// Applications that read the secret again whenever it fails them never fail twice in a row, however often it is rotated.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_reads_again_always_gets_in() {
    let mut all = choices();
    all.engine.rotation_grace = Duration::ZERO;
    let broker = TestBroker::with(all).await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (world, bid, ends) = (broker.world.clone(), bid("a"), stop.clone());
    let application = tokio::task::spawn_blocking(move || {
        let (mut held, mut tries, mut again) = (world.around.readable(&bid).unwrap(), 0u64, 0u64);
        while !ends.load(std::sync::atomic::Ordering::Relaxed) {
            tries += 1;
            if !world.opens(&held) {
                again += 1;
                held = world.around.readable(&bid).unwrap();
                assert!(world.opens(&held), "what was just read does not work");
            }
            std::thread::yield_now();
        }
        (tries, again)
    });
    for _ in 0..20 {
        rotate(&broker, "a").await.expect(200);
        broker.sweeper().bindings().await.unwrap();
        broker.run_until_idle().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (tries, again) = application.await.unwrap();
    assert!(tries > 100 && again > 0, "{tries} {again}");
    broker.settled_and_end().await;
}

/// Nothing can be made from a plan that is no longer known; what was made goes on working.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_left_the_catalog_cannot_be_rotated() {
    let broker = full().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let mut sources = crate::support::catalog::sources();
    sources.remove("plans/alpha/small.yaml");
    let offering = sources["catalog/alpha/offering.yaml"].replace("updates:\n  small: [medium, short]\n", "");
    sources.insert("catalog/alpha/offering.yaml".into(), offering);
    let known = chandler::domain::catalog::KnownMechanisms;
    let without = chandler::domain::catalog::Catalog::load(&sources, &known).unwrap();
    broker.engine.set_catalog(without).await.unwrap();
    let refused = rotate(&broker, "a").await.expect_error(409, "Conflict");
    assert!(refused.text.contains("no longer in the catalog"));
    let whole =
        chandler::domain::catalog::Catalog::load(&crate::support::catalog::sources(), &known).unwrap();
    broker.engine.set_catalog(whole).await.unwrap();
    rotate(&broker, "a").await.expect(200);
    broker.settled_and_end().await;
}

/// A broker that lost its vault from its configuration does not take credentials away from applications that still read there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_rotated_where_nobody_would_see_it() {
    let url = crate::support::postgres::fresh_url().await;
    let mut all = choices();
    all.database = Some(url.clone());
    let broker = TestBroker::with(all).await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let before = broker.read("a").unwrap();
    let ports = chandler::engine::Ports {
        vault: None,
        identity: None,
        ..broker.engine.ports().clone()
    };
    let store = chandler::store::Store::open(&chandler::store::StoreOptions::new(&url))
        .await
        .unwrap();
    let without = chandler::engine::Engine::new(store, ports, chandler::engine::Settings::default());
    let known = chandler::domain::catalog::KnownMechanisms;
    let catalog =
        chandler::domain::catalog::Catalog::load(&crate::support::catalog::sources(), &known).unwrap();
    without.set_catalog(catalog).await.unwrap();
    let caller = chandler::domain::request::Caller {
        platform: "cf".into(),
        ..chandler::domain::request::Caller::default()
    };
    let ask = chandler::domain::request::Rotate {
        binding_id: "a".into(),
        instance_id: None,
    };
    let refused = without.rotate(&caller, ask).await.unwrap_err();
    assert!(refused.description.contains("not configured"), "{refused}");
    assert!(
        without.fetch_binding(&caller, "one", "a").await.is_err(),
        "and nothing is made up"
    );
    assert_eq!(broker.read("a").unwrap(), before);
    without.store().close().await;
    rotate(&broker, "a").await.expect(200);
    broker.settled_and_end().await;
}
