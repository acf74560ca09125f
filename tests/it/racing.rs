//! Sixteen clients at once on one instance and one binding id: one of them wins, the others are told what is,
//! and nothing is made twice. On SQLite and on PostgreSQL, because locking is where they differ.

use crate::support::broker::{Answer, Choices, TestBroker};
use crate::support::catalog::{self, ALPHA, SMALL, ids};
use crate::support::postgres;
use futures::future::join_all;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

const CLIENTS: usize = 16;
const ROUNDS: usize = 4;
const I: &str = "/v2/service_instances/one";
const B: &str = "/v2/service_instances/one/service_bindings/b";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn races_on_sqlite() {
    races(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn races_on_postgresql() {
    races(Some(postgres::fresh_url().await)).await;
}

async fn races(database: Option<String>) {
    let mut choices = Choices {
        database,
        ..Choices::default()
    };
    // Who works when is part of what is tried: only the test does.
    choices.engine.runs_work = false;
    let broker = TestBroker::with(choices).await;
    for _ in 0..ROUNDS {
        identical_creates(&broker).await;
        different_creates(&broker).await;
        updates(&broker).await;
        binds(&broker).await;
        different_binds(&broker).await;
        exclusive(&broker, "PATCH").await;
        exclusive(&broker, "DELETE").await;
        everything(&broker).await;
    }
    broker.end().await;
}

/// How often each outcome came: status, error word and operation.
fn counted(answers: &[Answer]) -> BTreeMap<(u16, String), usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts
            .entry((answer.status, answer.error().to_owned()))
            .or_default() += 1;
    }
    counts
}

fn operations(answers: &[Answer]) -> BTreeSet<&str> {
    answers
        .iter()
        .filter(|a| a.status == 202)
        .map(Answer::operation)
        .collect()
}

#[track_caller]
fn only(answers: &[Answer], allowed: &[(u16, &str)]) {
    for answer in answers {
        assert!(
            allowed.contains(&(answer.status, answer.error())),
            "{} {}",
            answer.status,
            answer.text
        );
    }
}

fn sized(size: usize) -> Value {
    let mut body = catalog::provision_body();
    body["parameters"] = json!({"size": size});
    body
}

async fn clear(broker: &TestBroker) {
    broker.run_until_idle().await;
    let gone = broker
        .delete(&format!("{I}?accepts_incomplete=true&{}", ids()))
        .await;
    assert!(matches!(gone.status, 202 | 410), "{}", gone.text);
    broker.run_until_idle().await;
    let left = broker.left_over().await;
    assert!(left.is_empty(), "{left:?}");
}

/// P-05: all get the one operation.
async fn identical_creates(broker: &TestBroker) {
    let path = format!("{I}?accepts_incomplete=true");
    let body = catalog::provision_body();
    let answers = join_all((0..CLIENTS).map(|_| broker.put(&path, &body))).await;
    only(&answers, &[(202, "")]);
    assert_eq!(operations(&answers).len(), 1);
    clear(broker).await;
}

/// P-06: those who asked for what was made first get its operation, all others 409.
async fn different_creates(broker: &TestBroker) {
    let path = format!("{I}?accepts_incomplete=true");
    let answers = join_all((0..CLIENTS).map(|i| {
        let path = &path;
        async move { broker.put(path, &sized(1 + i % 4)).await }
    }))
    .await;
    only(&answers, &[(202, ""), (409, "Conflict")]);
    assert_eq!(operations(&answers).len(), 1);
    let winners: BTreeSet<_> = (0..CLIENTS)
        .filter(|i| answers[*i].status == 202)
        .map(|i| 1 + i % 4)
        .collect();
    assert_eq!(
        (winners.len(), counted(&answers)[&(202, String::new())]),
        (1, CLIENTS / 4)
    );
    broker.run_until_idle().await;
    let made = broker.get(I).await.expect(200);
    assert_eq!(
        made.body["parameters"]["size"],
        json!(winners.first()),
        "what was made is what the winners asked for"
    );
    clear(broker).await;
}

/// U-03, U-16: one update runs; the same again gets its operation, another one 422.
async fn updates(broker: &TestBroker) {
    broker.provisioned("one").await;
    let path = format!("{I}?accepts_incomplete=true");
    let answers = join_all((0..CLIENTS).map(|i| {
        let body = json!({"service_id": ALPHA, "parameters": {"size": 1 + i % 2}});
        let path = &path;
        async move { broker.patch(path, &body).await }
    }))
    .await;
    only(&answers, &[(202, ""), (422, "ConcurrencyError")]);
    assert_eq!(
        (
            operations(&answers).len(),
            counted(&answers)[&(202, String::new())]
        ),
        (1, CLIENTS / 2)
    );
    broker.run_until_idle().await;
    let winner = (0..CLIENTS).find(|i| answers[*i].status == 202).unwrap();
    assert_eq!(
        broker.get(I).await.body["parameters"]["size"],
        json!(1 + winner % 2)
    );
    clear(broker).await;
}

/// B-04, then B-03: one operation, one user, the same credentials for all; N-02 for its end.
async fn binds(broker: &TestBroker) {
    broker.provisioned("one").await;
    let path = format!("{B}?accepts_incomplete=true");
    let body = catalog::bind_body();
    let answers = join_all((0..CLIENTS).map(|_| broker.put(&path, &body))).await;
    only(&answers, &[(202, "")]);
    assert_eq!(operations(&answers).len(), 1);
    broker.run_until_idle().await;
    let again = join_all((0..CLIENTS).map(|_| broker.put(&path, &body))).await;
    only(&again, &[(200, "")]);
    assert!(again.iter().all(|a| a.body == again[0].body), "B-03");
    assert_eq!(broker.world.users().len(), 1);
    let path = format!("{path}&{}", ids());
    let answers = join_all((0..CLIENTS).map(|_| broker.delete(&path))).await;
    only(&answers, &[(202, "")]);
    assert_eq!(operations(&answers).len(), 1);
    broker.run_until_idle().await;
    assert!(broker.world.users().is_empty());
    clear(broker).await;
}

/// B-05: one of the different bodies wins.
async fn different_binds(broker: &TestBroker) {
    broker.provisioned("one").await;
    let roles = ["owner", "readwrite", "readonly", "owner"];
    let path = format!("{B}?accepts_incomplete=true");
    let answers = join_all((0..CLIENTS).map(|i| {
        let body = json!({"service_id": ALPHA, "plan_id": SMALL, "parameters": {"role": roles[i % 4]}});
        let path = &path;
        async move { broker.put(path, &body).await }
    }))
    .await;
    only(&answers, &[(202, ""), (409, "Conflict")]);
    assert_eq!(operations(&answers).len(), 1);
    broker.run_until_idle().await;
    let winner = (0..CLIENTS).find(|i| answers[*i].status == 202).unwrap();
    assert_eq!(
        broker.get(B).await.expect(200).body["credentials"]["role"],
        roles[winner % 4]
    );
    clear(broker).await;
}

/// D-06, U-16, B-09: while nobody works, work on the instance and work on its bindings are never both accepted.
async fn exclusive(broker: &TestBroker, method: &str) {
    broker.provisioned("one").await;
    let query = format!("?accepts_incomplete=true&{}", ids());
    let answers = join_all((0..CLIENTS).map(|i| {
        let query = &query;
        async move {
            match (i % 2, method) {
                (0, _) => broker.put(&format!("{B}{i}{query}"), &catalog::bind_body()).await,
                (_, "PATCH") => {
                    broker
                        .patch(
                            &format!("{I}{query}"),
                            &json!({"service_id": ALPHA, "parameters": {"size": 7}}),
                        )
                        .await
                }
                _ => broker.delete(&format!("{I}{query}")).await,
            }
        }
    }))
    .await;
    only(&answers, &[(202, ""), (422, "ConcurrencyError")]);
    let accepted = |kind: usize| {
        (0..CLIENTS)
            .filter(|i| i % 2 == kind && answers[*i].status == 202)
            .count()
    };
    let (binds, changes) = (accepted(0), accepted(1));
    assert!(
        (binds == 0) != (changes == 0),
        "{method}: {binds} binds and {changes} changes were accepted together"
    );
    broker.run_until_idle().await;
    let path = format!("{I}{query}");
    assert!(matches!(broker.delete(&path).await.status, 202 | 410));
    clear(broker).await;
}

/// PUT, PATCH, DELETE, bind, unbind and polls at once while a worker runs: only answers the rules know, and afterwards
/// one consistent state.
async fn everything(broker: &TestBroker) {
    broker.provisioned("one").await;
    let query = format!("?accepts_incomplete=true&{}", ids());
    let clients = join_all((0..CLIENTS).map(|i| {
        let query = &query;
        async move {
            let (bind, other) = (
                catalog::bind_body(),
                json!({"service_id": ALPHA, "plan_id": SMALL, "parameters": {"role": "owner"}}),
            );
            match i % 8 {
                0 => {
                    broker
                        .put(&format!("{I}{query}"), &catalog::provision_body())
                        .await
                }
                1 => broker.put(&format!("{I}{query}"), &sized(5)).await,
                2 => {
                    broker
                        .patch(
                            &format!("{I}{query}"),
                            &json!({"service_id": ALPHA, "parameters": {"size": 7}}),
                        )
                        .await
                }
                3 => broker.put(&format!("{B}{query}"), &bind).await,
                4 => broker.put(&format!("{B}{query}"), &other).await,
                5 => broker.delete(&format!("{B}{query}")).await,
                6 => broker.delete(&format!("{I}{query}")).await,
                _ => broker.get(&format!("{I}/last_operation")).await,
            }
        }
    }));
    let done = AtomicBool::new(false);
    let work = async {
        while !done.load(Ordering::SeqCst) {
            broker.run_due().await;
            tokio::task::yield_now().await;
        }
    };
    let clients = async {
        let answers = clients.await;
        done.store(true, Ordering::SeqCst);
        answers
    };
    let (answers, ()) = tokio::join!(clients, work);
    let allowed: [&[(u16, &str)]; 8] = [
        &[(200, ""), (202, ""), (422, "ConcurrencyError"), (409, "Conflict")],
        &[(202, ""), (409, "Conflict"), (422, "ConcurrencyError"), (200, "")],
        &[(200, ""), (202, ""), (404, "NotFound"), (422, "ConcurrencyError")],
        &[
            (200, ""),
            (202, ""),
            (201, ""),
            (404, "NotFound"),
            (409, "Conflict"),
            (422, "ConcurrencyError"),
        ],
        &[
            (200, ""),
            (202, ""),
            (201, ""),
            (404, "NotFound"),
            (409, "Conflict"),
            (422, "ConcurrencyError"),
        ],
        &[(200, ""), (202, ""), (410, "Gone"), (422, "ConcurrencyError")],
        &[(202, ""), (410, "Gone"), (422, "ConcurrencyError")],
        &[(200, "")],
    ];
    for (i, answer) in answers.iter().enumerate() {
        only(std::slice::from_ref(answer), allowed[i % 8]);
    }
    broker.run_until_idle().await;
    // Whatever won: users exist exactly for bindings that can be fetched.
    let fetched = broker.get(B).await;
    assert!(matches!(fetched.status, 200 | 404), "{}", fetched.text);
    assert_eq!(
        broker.world.users().len(),
        usize::from(fetched.status == 200),
        "{}",
        fetched.text
    );
    let instance = broker.get(I).await;
    assert!(matches!(instance.status, 200 | 404), "{}", instance.text);
    assert_eq!(
        broker.world.instances.lock().unwrap().len(),
        usize::from(instance.status == 200)
    );
    clear(broker).await;
}
