//! S: synchronous and asynchronous answers, and what goes on side by side.

use super::common::{
    binding, by_hand, change, delete, everything, flagged, instance, merged, provision, state_of,
};
use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::{self, ALPHA, MEDIUM, ids};
use crate::support::world::{Effect, When};
use chandler::domain::error::{ASYNC_REQUIRED, CONCURRENCY_ERROR};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s01_success_is_told_only_when_complete() {
    let broker = TestBroker::start().await;
    let b = binding("i", "b");
    broker.provisioned("i").await;
    broker
        .patch(&flagged(&instance("i")), &json!({"service_id": ALPHA}))
        .await
        .expect(200);
    let bound = broker.put(&b, &catalog::bind_body()).await.expect(201).body["credentials"].clone();
    let (user, password) = (
        bound["username"].as_str().unwrap(),
        bound["password"].as_str().unwrap(),
    );
    assert!(
        broker.world.lets_in(user, password),
        "201: the credentials work already"
    );
    broker.delete(&format!("{b}?{}", ids())).await.expect(200);
    assert!(!broker.world.lets_in(user, password), "200: they work no more");
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s02_async_only_without_the_flag_starts_nothing() {
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    let before = everything(&broker).await;
    let calls = broker.world.calls.lock().unwrap().len();
    for query in ["", "?accepts_incomplete=false", "?accepts_incomplete="] {
        let joint = if query.is_empty() { "?" } else { "&" };
        for answer in [
            broker
                .put(&format!("{}{query}", instance("n")), &catalog::provision_body())
                .await,
            broker
                .patch(&format!("{}{query}", instance("i")), &change())
                .await,
            broker
                .delete(&format!("{}{query}{joint}{}", instance("i"), ids()))
                .await,
        ] {
            assert_eq!(
                answer.expect_error(422, "AsyncRequired").body["description"],
                ASYNC_REQUIRED
            );
        }
    }
    broker.run_until_idle().await;
    assert_eq!(everything(&broker).await, before);
    assert_eq!(broker.world.calls.lock().unwrap().len(), calls);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s03_with_the_flag_202_and_an_operation_or_at_once() {
    let broker = by_hand().await;
    let i = instance("i");
    let mut tokens = Vec::new();
    tokens.push(
        broker
            .put(&flagged(&i), &catalog::provision_body())
            .await
            .expect(202),
    );
    broker.run_until_idle().await;
    tokens.push(broker.patch(&flagged(&i), &change()).await.expect(202));
    broker.run_until_idle().await;
    let bind = json!({"service_id": ALPHA, "plan_id": MEDIUM});
    tokens.push(broker.put(&flagged(&binding("i", "b")), &bind).await.expect(202));
    broker.run_until_idle().await;
    tokens.push(broker.delete(&delete(&binding("i", "b"))).await.expect(202));
    broker.run_until_idle().await;
    tokens.push(broker.delete(&delete(&i)).await.expect(202));
    broker.run_until_idle().await;
    assert!(tokens.iter().all(|answer| !answer.operation().is_empty()));
    broker.end().await;
    // A bind that is done within the grace is answered at once, flag or no flag.
    let mut choices = Choices::default();
    choices.engine.async_grace = Duration::from_secs(5);
    let broker = TestBroker::with(choices).await;
    broker.provisioned("i").await;
    broker
        .put(&flagged(&binding("i", "b")), &catalog::bind_body())
        .await
        .expect(201);
    broker.delete(&delete(&binding("i", "b"))).await.expect(200);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s04_an_identical_request_while_it_runs_gets_202_and_the_same_operation() {
    let broker = by_hand().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    let again = |first: String, second: crate::support::broker::Answer| {
        assert_eq!(second.expect(202).operation(), first);
    };
    let body = provision(json!({"parameters": {"size": 4, "colour": "red"}}));
    let first = broker
        .put(&flagged(&i), &body)
        .await
        .expect(202)
        .operation()
        .to_owned();
    let reordered =
        provision(json!({"parameters": {"colour": "red", "size": 4}, "context": {"platform": "x"}}));
    again(first.clone(), broker.put(&flagged(&i), &body).await);
    again(first, broker.put(&flagged(&i), &reordered).await);
    broker.run_until_idle().await;

    let first = broker
        .patch(&flagged(&i), &change())
        .await
        .expect(202)
        .operation()
        .to_owned();
    again(first, broker.patch(&flagged(&i), &change()).await);
    broker.run_until_idle().await;

    let bind = json!({"service_id": ALPHA, "plan_id": MEDIUM, "parameters": {"role": "readonly"}});
    let first = broker
        .put(&flagged(&b), &bind)
        .await
        .expect(202)
        .operation()
        .to_owned();
    again(first, broker.put(&flagged(&b), &bind).await);
    broker.run_until_idle().await;

    let first = broker
        .delete(&delete(&b))
        .await
        .expect(202)
        .operation()
        .to_owned();
    again(first, broker.delete(&delete(&b)).await);
    broker.run_until_idle().await;

    let first = broker
        .delete(&delete(&i))
        .await
        .expect(202)
        .operation()
        .to_owned();
    again(first, broker.delete(&delete(&i)).await);
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s05_a_concurrent_request_is_refused_and_disturbs_nothing() {
    let broker = by_hand().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    broker.provisioned("i").await;
    let running = broker
        .patch(&flagged(&i), &change())
        .await
        .expect(202)
        .operation()
        .to_owned();
    let before = everything(&broker).await;
    for answer in [
        broker
            .patch(
                &flagged(&i),
                &merged(change(), json!({"parameters": {"size": 2}})),
            )
            .await,
        broker.put(&b, &catalog::bind_body()).await,
        broker.put(&flagged(&i), &catalog::provision_body()).await,
        broker.get(&i).await,
    ] {
        assert_eq!(
            answer.expect_error(422, "ConcurrencyError").body["description"],
            CONCURRENCY_ERROR
        );
    }
    assert_eq!(everything(&broker).await, before);
    assert_eq!(state_of(&broker, &i, &running).await, "in progress");
    broker.run_until_idle().await;
    assert_eq!(state_of(&broker, &i, &running).await, "succeeded");
    assert_eq!(broker.get(&i).await.expect(200).body["plan_id"], MEDIUM);
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s06_bindings_of_one_instance_are_made_side_by_side_but_not_beside_an_update() {
    let broker = by_hand().await;
    broker.provisioned("i").await;
    for name in ["a", "b", "c"] {
        broker
            .put(&flagged(&binding("i", name)), &catalog::bind_body())
            .await
            .expect(202);
    }
    broker
        .patch(&flagged(&instance("i")), &change())
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    for name in ["a", "b", "c"] {
        broker.get(&binding("i", name)).await.expect(200);
    }
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s07_answers_come_promptly_though_the_backend_hangs() {
    let mut choices = Choices::default();
    choices.engine.sync_wait = Duration::from_millis(400);
    choices.engine.async_grace = Duration::from_millis(200);
    let broker = TestBroker::with(choices).await;
    broker.provisioned("i").await;
    broker.world.plan("issue", When::Before, Effect::Hang, 2);
    let begun = Instant::now();
    broker
        .put(&flagged(&instance("n")), &catalog::provision_body())
        .await
        .expect(202);
    broker
        .put(&flagged(&binding("i", "a")), &catalog::bind_body())
        .await
        .expect(202);
    broker
        .put(&binding("i", "b"), &catalog::bind_body())
        .await
        .expect_error(503, "ServiceUnavailable");
    broker
        .delete(&delete(&instance("i")))
        .await
        .expect_error(422, "ConcurrencyError");
    broker.delete(&delete(&binding("i", "a"))).await;
    broker.delete(&delete(&binding("i", "b"))).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    broker.run_until_idle().await;
    assert!(broker.world.users().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_only_true_is_true() {
    let broker = TestBroker::start().await;
    for word in ["false", "1", "yes", "", "truee", "true%20", "t"] {
        let path = format!("{}?accepts_incomplete={word}", instance("i"));
        broker
            .put(&path, &catalog::provision_body())
            .await
            .expect_error(422, "AsyncRequired");
    }
    for (n, word) in ["true", "True", "TRUE", "tRuE"].iter().enumerate() {
        let path = format!("{}?accepts_incomplete={word}", instance(&n.to_string()));
        broker.put(&path, &catalog::provision_body()).await.expect(202);
    }
    broker.run_until_idle().await;
    broker.end().await;
}
