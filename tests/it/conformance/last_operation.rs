//! L and K: what is told of operations.

use super::common::{binding, by_hand, change, delete, flagged, instance, last, state_of, told, with_http};
use crate::support::broker::TestBroker;
use crate::support::catalog::{self, ALPHA, MEDIUM, SHORT, SMALL, ids};
use crate::support::world::{Effect, When};
use chandler::http::DeletedAnswer;
use chandler::ports::PortErrorKind;
use serde_json::{Value, json};
use std::time::Duration;

fn fail(call: &'static str, times: u32) -> (&'static str, When, Effect, u32) {
    (
        call,
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "The server said no."),
        times,
    )
}

fn plan(broker: &TestBroker, (call, when, effect, times): (&'static str, When, Effect, u32)) {
    broker.world.plan(call, when, effect, times);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l01_three_states_and_a_description() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    *broker.world.looks.lock().unwrap() = 2;
    broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202);
    let check = |told: &Value, state: &str| {
        assert_eq!(told["state"], state);
        assert!(
            told.get("description")
                .is_none_or(|d| d.as_str().is_some_and(|d| !d.is_empty())),
            "{told}"
        );
        for name in told.as_object().unwrap().keys() {
            assert!(
                ["state", "description", "instance_usable", "update_repeatable"].contains(&name.as_str()),
                "{name}"
            );
        }
    };
    check(&told(&broker, &i).await, "in progress");
    broker.run_due().await;
    let waiting = told(&broker, &i).await;
    check(&waiting, "in progress");
    assert!(
        waiting["description"].as_str().unwrap().contains("more looks"),
        "what it waits for: {waiting}"
    );
    broker.run_until_idle().await;
    check(&told(&broker, &i).await, "succeeded");
    *broker.world.refuse_ready.lock().unwrap() = Some("The disk is full.".into());
    broker
        .put(&flagged(&instance("f")), &catalog::provision_body())
        .await
        .expect(202);
    broker.run_until_idle().await;
    let failed = told(&broker, &instance("f")).await;
    check(&failed, "failed");
    assert!(
        failed["description"]
            .as_str()
            .unwrap()
            .contains("The disk is full.")
    );
    *broker.world.refuse_ready.lock().unwrap() = None;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l02_k02_never_known_is_404() {
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    broker.provisioned("j").await;
    broker.bound("i", "b").await;
    let token = broker
        .put(&flagged(&instance("k")), &catalog::provision_body())
        .await
        .expect(202)
        .operation()
        .to_owned();
    for path in [
        instance("unknown"),
        binding("i", "unknown"),
        binding("j", "b"),
        binding("unknown", "b"),
    ] {
        broker.get(&last(&path)).await.expect_error(404, "NotFound");
        broker
            .get(&format!("{}?operation={token}", last(&path)))
            .await
            .expect_error(404, "NotFound");
    }
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l03_k03_no_poll_of_something_known_is_refused_for_its_values() {
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    broker.bound("i", "b").await;
    let long = format!("operation={}", "x".repeat(12_000));
    for query in [
        "operation=",
        "operation=%00",
        "operation=%FF",
        "operation=a&operation=b",
        "service_id=&plan_id=",
        "service_id=%27",
        "plan_id=nothing",
        "accepts_incomplete=maybe",
        "&&",
        "=",
        long.as_str(),
    ] {
        for path in [instance("i"), binding("i", "b")] {
            let answer = broker.get(&format!("{}?{query}", last(&path))).await.expect(200);
            assert_eq!(answer.body["state"], "succeeded", "{query}");
        }
    }
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l04_k05_retry_after_is_whole_seconds_while_in_progress() {
    let broker = by_hand().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    let seconds = |answer: &crate::support::broker::Answer| -> u32 {
        answer.headers["retry-after"].to_str().unwrap().parse().unwrap()
    };
    broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202);
    assert!((1..=60).contains(&seconds(&broker.get(&last(&i)).await)));
    broker.run_until_idle().await;
    assert!(broker.get(&last(&i)).await.headers.get("retry-after").is_none());
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    assert!((1..=60).contains(&seconds(&broker.get(&last(&b)).await)));
    broker.run_until_idle().await;
    assert!(broker.get(&last(&b)).await.headers.get("retry-after").is_none());
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l05_k04_410_only_for_finished_deletes_and_only_by_setting() {
    let broker = with_http(|http| http.deleted_answer = DeletedAnswer::Gone).await;
    let (i, b) = (instance("i"), binding("i", "b"));
    let created = broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202)
        .operation()
        .to_owned();
    broker.get(&last(&i)).await.expect(200);
    broker.run_until_idle().await;
    broker.get(&last(&i)).await.expect(200);
    let updated = broker
        .patch(&flagged(&i), &change())
        .await
        .expect(202)
        .operation()
        .to_owned();
    broker.run_until_idle().await;
    broker.get(&last(&i)).await.expect(200);
    broker
        .put(&flagged(&b), &json!({"service_id": ALPHA, "plan_id": MEDIUM}))
        .await
        .expect(202);
    broker.run_until_idle().await;
    broker.get(&last(&b)).await.expect(200);
    // A delete that fails is told as failed.
    plan(&broker, fail("revoke", 1));
    broker.delete(&delete(&b)).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &b).await["state"], "failed");
    broker.delete(&delete(&b)).await.expect(202);
    broker.run_until_idle().await;
    broker.get(&last(&b)).await.expect_error(410, "Gone");
    let deleted = broker
        .delete(&delete(&i))
        .await
        .expect(202)
        .operation()
        .to_owned();
    assert_eq!(state_of(&broker, &i, &deleted).await, "in progress");
    broker.run_until_idle().await;
    for (operation, status) in [(&created, 200), (&updated, 200), (&deleted, 410)] {
        broker
            .get(&format!("{}?operation={operation}", last(&i)))
            .await
            .expect(status);
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l06_k08_a_terminal_state_is_told_again_until_retention_is_over() {
    let broker = TestBroker::start().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    broker.provisioned("i").await;
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    broker.run_until_idle().await;
    broker.deleted("i").await;
    let hour = Duration::from_secs(3600);
    for _ in 0..3 {
        broker.advance(hour);
        broker.sweeper().once().await.unwrap();
        assert_eq!(told(&broker, &i).await["state"], "succeeded");
        assert_eq!(told(&broker, &b).await["state"], "succeeded");
    }
    broker.advance(7 * 24 * hour);
    assert_eq!(broker.sweeper().once().await.unwrap().purged, 1);
    for path in [i.clone(), b] {
        broker.get(&last(&path)).await.expect_error(404, "NotFound");
    }
    broker.delete(&delete(&i)).await.expect_error(410, "Gone");
    // The id is free again.
    broker.provisioned("i").await;
    broker.deleted("i").await;
    broker.end().await;
}

/// Our own clearing up after a failed bind is no operation a platform asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l06_k08_a_failed_bind_stays_failed_after_we_cleared_up() {
    let broker = TestBroker::start().await;
    let b = binding("i", "b");
    broker.provisioned("i").await;
    broker.world.plan(
        "issue",
        When::After,
        Effect::Fail(PortErrorKind::Invalid, "No answer."),
        1,
    );
    plan(&broker, fail("revoke", 1));
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &b).await["state"], "failed");
    assert_eq!(broker.world.users().len(), 1, "left behind");
    broker.advance(Duration::from_secs(61));
    assert_eq!(broker.sweeper().once().await.unwrap().residual, 1);
    assert_eq!(told(&broker, &b).await["state"], "failed", "while we clear up");
    broker.run_until_idle().await;
    assert!(broker.world.users().is_empty());
    assert_eq!(told(&broker, &b).await["state"], "failed", "and after it");
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l07_the_operation_named_or_the_latest() {
    let broker = by_hand().await;
    let i = instance("i");
    let created = broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202)
        .operation()
        .to_owned();
    broker.run_until_idle().await;
    *broker.world.refuse_ready.lock().unwrap() = Some("No room.".into());
    let failed = broker
        .patch(&flagged(&i), &change())
        .await
        .expect(202)
        .operation()
        .to_owned();
    broker.run_due().await;
    *broker.world.refuse_ready.lock().unwrap() = None;
    broker.run_until_idle().await;
    let running = broker
        .patch(&flagged(&i), &change())
        .await
        .expect(202)
        .operation()
        .to_owned();
    for (operation, state) in [
        (&created, "succeeded"),
        (&failed, "failed"),
        (&running, "in progress"),
    ] {
        assert_eq!(state_of(&broker, &i, operation).await, state);
    }
    assert_eq!(told(&broker, &i).await["state"], "in progress");
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &i).await["state"], "succeeded");
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l07_the_latest_operation_may_have_been_a_synchronous_one() {
    let broker = TestBroker::start().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    broker.provisioned("i").await;
    plan(&broker, fail("apply", 1));
    broker.patch(&flagged(&i), &change()).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &i).await["state"], "failed");
    broker
        .patch(
            &flagged(&i),
            &json!({"service_id": ALPHA, "context": {"platform": "x"}}),
        )
        .await
        .expect(200);
    assert_eq!(
        told(&broker, &i).await["state"],
        "succeeded",
        "the update answered with 200"
    );
    broker.bound("i", "b").await;
    assert_eq!(told(&broker, &b).await["state"], "succeeded");
    broker.delete(&format!("{b}?{}", ids())).await.expect(200);
    assert_eq!(told(&broker, &b).await["state"], "succeeded");
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l08_ids_in_a_poll_are_hints_only() {
    let broker = by_hand().await;
    let i = instance("i");
    broker.provisioned("i").await;
    let operation = broker
        .patch(&flagged(&i), &json!({"service_id": ALPHA, "plan_id": SHORT}))
        .await
        .expect(202)
        .operation()
        .to_owned();
    for query in [
        String::new(),
        format!("&service_id={ALPHA}&plan_id={SMALL}"),
        format!("&service_id={ALPHA}&plan_id={SHORT}"),
        "&service_id=&plan_id=".to_owned(),
        "&service_id=other&plan_id=other".to_owned(),
    ] {
        let answer = broker
            .get(&format!("{}?operation={operation}{query}", last(&i)))
            .await
            .expect(200);
        assert_eq!(answer.body["state"], "in progress", "{query}");
    }
    broker.run_until_idle().await;
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l09_failed_updates_and_deprovisions_say_whether_the_instance_works() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    broker.provisioned("i").await;
    plan(&broker, fail("apply", 1));
    broker.patch(&flagged(&i), &change()).await.expect(202);
    broker.run_until_idle().await;
    let undone = told(&broker, &i).await;
    assert_eq!(
        (&undone["state"], &undone["instance_usable"]),
        (&json!("failed"), &json!(true))
    );
    plan(&broker, fail("apply", 2));
    broker.patch(&flagged(&i), &change()).await.expect(202);
    broker.run_until_idle().await;
    let broken = told(&broker, &i).await;
    assert_eq!(
        (
            &broken["state"],
            &broken["instance_usable"],
            &broken["update_repeatable"]
        ),
        (&json!("failed"), &json!(false), &json!(true))
    );
    plan(&broker, fail("remove", 1));
    broker.delete(&delete(&i)).await.expect(202);
    broker.run_until_idle().await;
    let left = told(&broker, &i).await;
    assert_eq!(
        (&left["state"], &left["instance_usable"]),
        (&json!("failed"), &json!(false))
    );
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l10_k07_what_is_told_succeeded_can_be_fetched_from_then_on() {
    let broker = by_hand().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    *broker.world.looks.lock().unwrap() = 4;
    for (path, body) in [(&i, catalog::provision_body()), (&b, catalog::bind_body())] {
        broker.put(&flagged(path), &body).await.expect(202);
        for _ in 0..200 {
            let state = told(&broker, path).await["state"].clone();
            let fetched = broker.get(path).await.status;
            assert_eq!(
                fetched,
                if state == "succeeded" { 200 } else { 404 },
                "{path} {state}"
            );
            if state == "succeeded" {
                break;
            }
            broker.advance(Duration::from_millis(50));
            broker.run_due().await;
        }
        assert_eq!(told(&broker, path).await["state"], "succeeded");
    }
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l11_an_operation_ends_itself_by_the_maximum_polling_duration() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    *broker.world.looks.lock().unwrap() = u32::MAX;
    broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202);
    broker.advance(Duration::from_secs(590));
    broker.run_due().await;
    assert_eq!(told(&broker, &i).await["state"], "in progress");
    broker.advance(Duration::from_secs(11));
    broker.run_due().await;
    let late = told(&broker, &i).await;
    assert_eq!(late["state"], "failed", "600 s after it was accepted");
    *broker.world.looks.lock().unwrap() = 0;
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_k08_a_delete_that_takes_over_is_what_is_told() {
    let broker = by_hand().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    let creating = broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202)
        .operation()
        .to_owned();
    let deleting = broker
        .delete(&delete(&i))
        .await
        .expect(202)
        .operation()
        .to_owned();
    assert_ne!(creating, deleting);
    assert_eq!(told(&broker, &i).await["state"], "in progress", "the delete");
    assert_eq!(state_of(&broker, &i, &creating).await, "failed");
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &i).await["state"], "succeeded");
    assert_eq!(state_of(&broker, &i, &creating).await, "failed");
    assert!(broker.world.instances.lock().unwrap().is_empty());

    broker.provisioned("i").await;
    let creating = broker
        .put(&flagged(&b), &catalog::bind_body())
        .await
        .expect(202)
        .operation()
        .to_owned();
    let deleting = broker
        .delete(&delete(&b))
        .await
        .expect(202)
        .operation()
        .to_owned();
    assert_eq!(told(&broker, &b).await["state"], "in progress");
    assert_eq!(state_of(&broker, &b, &creating).await, "failed");
    broker.run_until_idle().await;
    assert_eq!(
        (
            told(&broker, &b).await["state"].as_str(),
            state_of(&broker, &b, &deleting).await.as_str()
        ),
        (Some("succeeded"), "succeeded")
    );
    assert!(broker.world.users().is_empty());
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l13_an_operation_nobody_knows_means_the_latest() {
    let broker = TestBroker::start().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    let other = broker
        .put(&flagged(&instance("other")), &catalog::provision_body())
        .await
        .expect(202)
        .operation()
        .to_owned();
    broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202);
    for word in ["made-up", "", &other, "%00", "null"] {
        assert_eq!(state_of(&broker, &i, word).await, "in progress", "{word}");
    }
    broker.run_until_idle().await;
    broker.bound("i", "b").await;
    for path in [&i, &b] {
        assert_eq!(state_of(&broker, path, "made-up").await, "succeeded");
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k01_bindings_tell_state_and_description_only() {
    let broker = by_hand().await;
    let b = binding("i", "b");
    broker.provisioned("i").await;
    let check = |told: Value, state: &str| {
        assert_eq!(told["state"], state);
        for name in told.as_object().unwrap().keys() {
            assert!(["state", "description"].contains(&name.as_str()), "{told}");
        }
    };
    plan(&broker, fail("issue", 1));
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    check(told(&broker, &b).await, "in progress");
    broker.run_until_idle().await;
    check(told(&broker, &b).await, "failed");
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    broker.run_until_idle().await;
    check(told(&broker, &b).await, "succeeded");
    plan(&broker, fail("revoke", 1));
    broker.delete(&delete(&b)).await.expect(202);
    broker.run_until_idle().await;
    check(told(&broker, &b).await, "failed");
    broker.deleted("i").await;
    broker.end().await;
}
