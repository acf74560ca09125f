//! The audit trail: what a binding's life leaves in it, on both databases; that it is written with the change or not at
//! all, whoever writes beside it; and that whoever meddles with its rows is found out.

use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::{self, ids};
use crate::support::postgres;
use crate::support::world::{Effect, When};
use base64::Engine as _;
use chandler::domain::audit::{Action, Broken, Event, Head, Record};
use chandler::domain::error::Error;
use chandler::domain::request::Caller;
use chandler::engine::Runner;
use chandler::ports::PortErrorKind;
use chandler::store::{Fail, Store, StoreOptions};
use serde_json::{Value, json};
use std::time::Duration;

const I: &str = "/v2/service_instances/one";
const A: &str = "/v2/service_instances/one/service_bindings/a";

/// Runs a test body on SQLite and on PostgreSQL, with the address of an empty database.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() {
            let dir = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}/store.db?mode=rwc", dir.path().display());
            super::$name(url).await;
        } )* }
        mod postgresql { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() {
            super::$name(super::postgres::fresh_url().await).await;
        } )* }
    };
}

on_both!(
    sixteen_writers_make_one_chain,
    an_event_is_there_with_its_change_or_not_at_all,
    the_end_of_an_operation_is_told_with_its_beginning,
    whoever_meddles_with_the_rows_is_found_out,
    a_life_is_told_from_the_first_bind_to_the_last_revocation,
    nothing_is_given_out_unrecorded,
    a_worker_that_dies_leaves_one_beginning_and_one_end,
);

async fn open(url: &str) -> Store {
    let store = Store::open(&StoreOptions::new(url)).await.unwrap();
    store.migrate().await.unwrap();
    store
}

fn caller() -> Caller {
    Caller {
        platform: "cf".into(),
        originating: Some(("cloudfoundry".into(), json!({"user_id": "u"}))),
        request_id: Some("r".into()),
    }
}

fn read(binding: &str) -> Event {
    Event::asked(&caller(), Action::Read, "one", binding, 5)
}

async fn all(store: &Store) -> Vec<Record> {
    store.audit_page(0, 100_000).await.unwrap()
}

/// Follows the chain to the head the database names.
async fn check(store: &Store) -> Result<usize, Broken> {
    let (records, head) = (all(store).await, store.audit_head().await.unwrap());
    let mut at = Head::start();
    for record in &records {
        at.follow(record)?;
    }
    at.ends_at(&head)?;
    Ok(records.len())
}

async fn sql(url: &str, statement: &'static str) {
    let pool = sqlx::AnyPool::connect(url).await.unwrap();
    sqlx::query(statement).execute(&pool).await.unwrap();
    pool.close().await;
}

/// Sixteen at once, on PostgreSQL through two brokers' pools; some fail, before or after they wrote.
async fn sixteen_writers_make_one_chain(url: String) {
    let first = open(&url).await;
    let second = if url.starts_with("postgres") {
        open(&url).await
    } else {
        first.clone()
    };
    let tasks: Vec<_> = (0..16)
        .map(|writer| {
            let store = if writer % 2 == 0 {
                first.clone()
            } else {
                second.clone()
            };
            tokio::spawn(async move {
                for n in 0..20 {
                    let name = format!("w{writer}n{n}");
                    let fate = (writer + n) % 5;
                    let done = store
                        .write(move |tx| {
                            let name = name.clone();
                            Box::pin(async move {
                                if fate == 3 {
                                    tx.audit(read("never"));
                                    return Err(Error::conflict("before it wrote").into());
                                }
                                tx.remember_catalog_ids(&[(name.clone(), "offering".into(), name.clone())])
                                    .await?;
                                tx.audit(read(&name));
                                if fate == 4 {
                                    return Err(Error::conflict("after it wrote").into());
                                }
                                tx.audit(read(&name));
                                Ok(())
                            })
                        })
                        .await;
                    assert_eq!(
                        done.is_ok(),
                        fate < 3,
                        "writer {writer}, write {n}: {:?}",
                        done.err()
                    );
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let good = (0..16)
        .flat_map(|w| (0..20).map(move |n| (w + n) % 5))
        .filter(|fate| *fate < 3)
        .count();
    assert_eq!(check(&first).await, Ok(2 * good));
    assert_eq!(
        first.catalog_ids().await.unwrap().len(),
        good,
        "each with its change"
    );
    for pair in all(&first).await.chunks(2) {
        assert_eq!(
            pair[0].event, pair[1].event,
            "what is written together stands together"
        );
    }
    first.close().await;
    second.close().await;
}

async fn an_event_is_there_with_its_change_or_not_at_all(url: String) {
    let store = open(&url).await;
    let with_change = |store: Store, name: &'static str| async move {
        store
            .write(move |tx| {
                Box::pin(async move {
                    tx.audit(read(name));
                    tx.remember_catalog_ids(&[(name.into(), "plan".into(), name.into())])
                        .await?;
                    if name == "panics" {
                        panic!("a bug between the change and its event");
                    }
                    if name == "slow" {
                        tokio::time::sleep(Duration::from_millis(150)).await;
                    }
                    Ok(())
                })
            })
            .await
    };
    with_change(store.clone(), "good").await.unwrap();
    assert!(with_change(store.clone(), "panics").await.is_err());
    assert_eq!(
        (check(&store).await, store.catalog_ids().await.unwrap().len()),
        (Ok(1), 1)
    );

    // The caller goes away in between: the write runs to its end, both halves of it.
    let task = tokio::spawn(with_change(store.clone(), "slow"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    task.abort();
    for _ in 0..100 {
        if store.catalog_ids().await.unwrap().len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        (check(&store).await, store.catalog_ids().await.unwrap().len()),
        (Ok(2), 2)
    );

    // The event cannot be appended: the change is not made either, nor a neighbour's that shares its commit.
    sql(&url, "DELETE FROM audit_head").await;
    let failed = with_change(store.clone(), "unrecorded").await;
    assert!(matches!(failed, Err(Fail::Db(_))));
    assert_eq!(store.catalog_ids().await.unwrap().len(), 2);
    store.close().await;
}

async fn the_end_of_an_operation_is_told_with_its_beginning(url: String) {
    let store = open(&url).await;
    let asked = Event::asked(&caller(), Action::Bind, "one", "a", 5).by("op1");
    // Accepted and superseded, once in one transaction and once in two.
    for _ in 0..2 {
        let asked = asked.clone();
        store
            .write(move |tx| {
                let asked = asked.clone();
                Box::pin(async move {
                    tx.audit(asked);
                    tx.supersede("op1", "why", 6).await?;
                    tx.supersede("never told of", "why", 6).await
                })
            })
            .await
            .unwrap();
    }
    store
        .write(|tx| Box::pin(async move { tx.supersede("op1", "why", 7).await }))
        .await
        .unwrap();
    let records = all(&store).await;
    let seen: Vec<_> = records
        .iter()
        .map(|r| (r.event.outcome.as_str(), r.event.at))
        .collect();
    assert_eq!(
        seen,
        [
            ("accepted", 5),
            ("superseded", 6),
            ("accepted", 5),
            ("superseded", 6),
            ("superseded", 7)
        ]
    );
    assert_eq!(
        records[4].event.clone().ended("accepted", 5),
        asked,
        "with all that is known of it"
    );
    assert_eq!(check(&store).await, Ok(5));
    store.close().await;
}

async fn whoever_meddles_with_the_rows_is_found_out(url: String) {
    let store = open(&url).await;
    for n in 0..8 {
        store.audit(read(&format!("b{n}"))).await.unwrap();
    }
    assert_eq!(check(&store).await, Ok(8));
    for (harm, broken, undo) in [
        (
            "UPDATE audit_events SET platform = 'k8s' WHERE seq = 3",
            Broken::Changed { seq: 3 },
            "UPDATE audit_events SET platform = 'cf' WHERE seq = 3",
        ),
        (
            "UPDATE audit_events SET request_id = NULL WHERE seq = 8",
            Broken::Changed { seq: 8 },
            "UPDATE audit_events SET request_id = 'r' WHERE seq = 8",
        ),
        (
            "UPDATE audit_events SET seq = 100 WHERE seq = 4",
            Broken::Missing { first: 4, last: 4 },
            "UPDATE audit_events SET seq = 4 WHERE seq = 100",
        ),
        (
            "UPDATE audit_events SET binding_id = CASE seq WHEN 5 THEN 'b5' ELSE 'b4' END WHERE seq IN (5, 6)",
            Broken::Changed { seq: 5 },
            "UPDATE audit_events SET binding_id = CASE seq WHEN 5 THEN 'b4' ELSE 'b5' END WHERE seq IN (5, 6)",
        ),
        (
            "INSERT INTO audit_events SELECT 9, at, action, outcome, cause, platform, origin, request_id, instance, binding, \
             instance_id, binding_id, operation, predecessor, previous, hash FROM audit_events WHERE seq = 8",
            Broken::Unlinked { seq: 9 },
            "DELETE FROM audit_events WHERE seq = 9",
        ),
        (
            "UPDATE audit_head SET seq = 10",
            Broken::Missing { first: 9, last: 10 },
            "UPDATE audit_head SET seq = 8",
        ),
        (
            "UPDATE audit_head SET seq = 7",
            Broken::OtherEnd { seq: 8, expected: 7 },
            "UPDATE audit_head SET seq = 8",
        ),
        (
            "DELETE FROM audit_events WHERE seq >= 7",
            Broken::Missing { first: 7, last: 8 },
            "SELECT 1",
        ),
    ] {
        sql(&url, harm).await;
        assert_eq!(check(&store).await, Err(broken), "{harm}");
        sql(&url, undo).await;
    }
    // An end that was cut off is not healed by what comes after it.
    store.audit(read("later")).await.unwrap();
    assert_eq!(check(&store).await, Err(Broken::Missing { first: 7, last: 8 }));
    // Rows moved under one another's numbers.
    sql(&url, "UPDATE audit_events SET seq = 50 - seq WHERE seq IN (2, 3)").await;
    sql(&url, "UPDATE audit_events SET seq = seq - 45 WHERE seq > 45").await;
    assert_eq!(check(&store).await, Err(Broken::Unlinked { seq: 2 }));
    store.close().await;
}

async fn broker(url: String) -> TestBroker {
    let mut choices = Choices {
        database: Some(url),
        ..Choices::default()
    };
    choices.engine.runs_work = false;
    TestBroker::with(choices).await
}

/// Action, outcome, cause and the platform's id of the binding, in order.
async fn told(broker: &TestBroker) -> Vec<String> {
    assert!(check(broker.engine.store()).await.is_ok());
    all(broker.engine.store())
        .await
        .into_iter()
        .map(|r| {
            let e = r.event;
            format!("{} {} {} {}", e.action, e.outcome, e.cause, e.binding_id)
        })
        .collect()
}

async fn bound(broker: &TestBroker, name: &str, body: &Value) {
    let path = format!("{I}/service_bindings/{name}?accepts_incomplete=true");
    broker.put(&path, body).await.expect(202);
    broker.run_until_idle().await;
}

async fn a_life_is_told_from_the_first_bind_to_the_last_revocation(url: String) {
    let broker = broker(url).await;
    broker.provisioned("one").await;
    assert!(told(&broker).await.is_empty(), "instances are not in the trail");
    let identity = base64::prelude::BASE64_STANDARD.encode(r#"{"user_id":"ada"}"#);
    let bind = broker
        .request("PUT", &format!("{A}?accepts_incomplete=true"))
        .header(
            "X-Broker-API-Originating-Identity",
            format!("cloudfoundry {identity}"),
        )
        .header("X-Broker-API-Request-Identity", "request-7")
        .json(&catalog::bind_body());
    broker.send(bind).await.expect(202);
    broker.run_until_idle().await;
    let answered = broker.get(A).await.expect(200);
    // The same request again gives the credentials out again.
    broker.put(A, &catalog::bind_body()).await.expect(200);
    // What is refused, or finds nothing, changes and gives nothing.
    broker
        .get(&format!("{I}/service_bindings/none"))
        .await
        .expect(404);
    broker.put(A, &json!({"service_id": catalog::ALPHA, "plan_id": catalog::SMALL, "parameters": {"role": "owner"}, "app_guid": "x"}))
        .await
        .expect(409);
    broker
        .delete(&format!("{I}/service_bindings/none?{}", ids()))
        .await
        .expect(410);
    bound(&broker, "b", &json!({"predecessor_binding_id": "a"})).await;
    broker
        .delete(&format!("{A}?accepts_incomplete=true&{}", ids()))
        .await
        .expect(202);
    broker.run_until_idle().await;
    // Overtaken by its own unbind.
    let c = format!("{I}/service_bindings/c?accepts_incomplete=true");
    broker.put(&c, &catalog::bind_body()).await.expect(202);
    broker.delete(&format!("{c}&{}", ids())).await.expect(202);
    broker.run_until_idle().await;
    // One that cannot work, and its undo.
    let refuse = Effect::Fail(PortErrorKind::Denied, "no");
    broker.world.plan("verify", When::Before, refuse, 1);
    bound(&broker, "d", &catalog::bind_body()).await;
    // With the instance goes what is left: b alone.
    broker.deleted("one").await;
    assert_eq!(
        told(&broker).await,
        [
            "bind accepted platform a",
            "bind succeeded platform a",
            "read succeeded platform a",
            "read succeeded platform a",
            "rotate accepted platform b",
            "rotate succeeded platform b",
            "unbind accepted platform a",
            "unbind succeeded platform a",
            "bind accepted platform c",
            "bind superseded platform c",
            "unbind accepted platform c",
            "unbind succeeded platform c",
            "bind accepted platform d",
            "bind failed platform d",
            "revoke accepted deprovision ",
            "revoke succeeded deprovision b",
            "revoke succeeded deprovision ",
        ]
    );
    let records = all(broker.engine.store()).await;
    for record in &records[..2] {
        let e = &record.event;
        assert_eq!(e.origin.as_deref(), Some("cloudfoundry {\"user_id\":\"ada\"}"));
        assert_eq!(
            (e.request_id.as_deref(), e.platform.as_str()),
            (Some("request-7"), "cf")
        );
        assert_eq!(e.operation, records[0].event.operation);
    }
    assert_eq!(
        records[4].event.predecessor.as_deref(),
        Some(records[0].event.binding.as_str())
    );
    assert_eq!(records[15].event.operation, records[14].event.operation);
    // Nothing secret, no parameters.
    let text = serde_json::to_string(&records).unwrap();
    let password = answered.body["credentials"]["password"].as_str().unwrap();
    for never in [password, "SecretOfTheFakeWorld", "parameters", "readwrite"] {
        assert!(!text.contains(never), "{never}");
    }
    broker.end().await;
}

/// What the broker orders itself has its own cause, and an answer given at once needs no second event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_and_left_overs_are_told() {
    let broker = TestBroker::start().await;
    let body = json!({"service_id": catalog::ALPHA, "plan_id": catalog::SHORT, "organization_guid": "o", "space_guid": "s"});
    broker
        .put(&format!("{I}?accepts_incomplete=true"), &body)
        .await
        .expect(202);
    broker.run_until_idle().await;
    let body = json!({"service_id": catalog::ALPHA, "plan_id": catalog::SHORT});
    broker.put(A, &body).await.expect(201);
    broker.advance(Duration::from_secs(601));
    broker.world.plan(
        "revoke",
        When::Before,
        Effect::Fail(PortErrorKind::Denied, "no"),
        1,
    );
    assert_eq!(broker.sweeper().bindings().await.unwrap().expired, 1);
    broker.run_until_idle().await;
    broker.advance(Duration::from_secs(61));
    assert_eq!(broker.sweeper().bindings().await.unwrap().residual, 1);
    broker.run_until_idle().await;
    assert_eq!(
        told(&broker).await,
        [
            "bind accepted platform a",
            "bind succeeded platform a",
            "revoke accepted expiry a",
            "revoke failed expiry a",
            "revoke accepted residue a",
            "revoke succeeded residue a",
        ]
    );
    let path = format!(
        "{I}?accepts_incomplete=true&service_id={}&plan_id={}",
        catalog::ALPHA,
        catalog::SHORT
    );
    broker.delete(&path).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(
        told(&broker).await.len(),
        6,
        "nothing was left to end with the instance"
    );
    broker.end().await;
}

/// The trail cannot be written: no credentials leave, no binding changes; instances go on.
async fn nothing_is_given_out_unrecorded(url: String) {
    let broker = broker(url.clone()).await;
    broker.provisioned("one").await;
    bound(&broker, "a", &catalog::bind_body()).await;
    let last = broker.engine.store().audit_head().await.unwrap();
    sql(&url, "ALTER TABLE audit_head RENAME TO audit_head_away").await;
    let refused = broker.get(A).await.expect_error(503, "ServiceUnavailable");
    assert!(!refused.text.contains("SecretOfTheFakeWorld"), "{}", refused.text);
    assert!(refused.headers.contains_key("retry-after"));
    broker.put(A, &catalog::bind_body()).await.expect(503);
    let other = format!("{I}/service_bindings/b?accepts_incomplete=true");
    broker.put(&other, &catalog::bind_body()).await.expect(503);
    broker
        .delete(&format!("{A}?accepts_incomplete=true&{}", ids()))
        .await
        .expect(503);
    assert_eq!(
        broker.engine.store().open_operations().await.unwrap().0,
        0,
        "nothing was accepted"
    );
    broker.provisioned("two").await;
    broker.get(&format!("{A}/last_operation")).await.expect(200);
    sql(&url, "ALTER TABLE audit_head_away RENAME TO audit_head").await;
    assert_eq!(broker.engine.store().audit_head().await.unwrap(), last);
    broker.get(A).await.expect(200);
    for name in ["one", "two"] {
        broker.deleted(name).await;
    }
    assert!(check(broker.engine.store()).await.is_ok());
    broker.end().await;
}

async fn a_worker_that_dies_leaves_one_beginning_and_one_end(url: String) {
    for call in ["issue", "verify"] {
        let broker = broker(url.clone()).await;
        let name = format!("of-{call}");
        broker.provisioned(&name).await;
        let path = format!("/v2/service_instances/{name}/service_bindings/{call}");
        broker
            .put(&format!("{path}?accepts_incomplete=true"), &catalog::bind_body())
            .await
            .expect(202);
        broker.world.plan(call, When::After, Effect::Hang, 1);
        let runner = Runner::new(broker.engine.clone());
        let dying = tokio::spawn(async move { runner.run_due().await });
        broker.world.hung.notified().await;
        dying.abort();
        let _ = dying.await;
        broker.engine.store().expire_leases().await.unwrap();
        broker.run_until_idle().await;
        let of_this: Vec<_> = told(&broker)
            .await
            .into_iter()
            .filter(|t| t.ends_with(call))
            .collect();
        assert_eq!(
            of_this,
            [
                format!("bind accepted platform {call}"),
                format!("bind succeeded platform {call}")
            ]
        );
        broker.deleted(&name).await;
        broker.end().await;
    }
}

/// Two brokers, one PostgreSQL, both working: one unbroken chain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_brokers_keep_one_chain() {
    let url = postgres::fresh_url().await;
    let broker = broker(url.clone()).await;
    broker.provisioned("one").await;
    let other = broker.replica(&url, "other").await;
    let asking = (0..16).map(|n| {
        let path = format!("{I}/service_bindings/b{n}?accepts_incomplete=true");
        let broker = &broker;
        async move { broker.put(&path, &catalog::bind_body()).await.expect(202) }
    });
    futures::future::join_all(asking).await;
    let workers = [broker.engine.clone(), other.clone()]
        .map(|engine| tokio::spawn(async move { Runner::new(engine).run_due().await }));
    let reading = (0..16).map(|n| {
        let path = format!("{I}/service_bindings/b{n}");
        let broker = &broker;
        async move { broker.get(&path).await.status }
    });
    let read = futures::future::join_all(reading)
        .await
        .into_iter()
        .filter(|s| *s == 200)
        .count();
    for worker in workers {
        worker.await.unwrap();
    }
    broker.run_until_idle().await;
    assert_eq!(check(broker.engine.store()).await, Ok(32 + read));
    assert_eq!(check(other.store()).await, Ok(32 + read));
    other.store().close().await;
    broker.deleted("one").await;
    broker.end().await;
}
