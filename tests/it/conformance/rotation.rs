//! PUT of a binding that takes over from another: rules.

use crate::support::broker::{Answer, PASSWORD, TestBroker};
use crate::support::catalog::{
    ALPHA, BARE, BETA, BETA_SMALL, MEDIUM, SHORT, SMALL, bind_body, ids, provision_body,
};
use crate::support::flow::{LATER, binding, delete_later, instance};
use crate::support::world::{Effect, When};
use chandler::ports::PortErrorKind;
use serde_json::{Value, json};
use std::time::Duration;

async fn put(broker: &TestBroker, id: &str, body: &Value) -> Answer {
    broker.put(&binding(id), body).await
}

fn follows(id: &str) -> Value {
    json!({"predecessor_binding_id": id})
}

/// `follows` with more members.
fn follows_with(id: &str, more: Value) -> Value {
    let mut body = follows(id);
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_both_bindings_are_valid_until_unbind() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let old = broker.bound("one", "a").await;
    let body = json!({"service_id": ALPHA, "plan_id": SMALL, "predecessor_binding_id": "a"});
    let new = put(&broker, "b", &body).await.expect(201).body["credentials"].clone();
    assert_ne!(old["username"], new["username"]);
    assert!(broker.opens(&old) && broker.opens(&new));
    assert_eq!(
        broker.get(&binding("a")).await.expect(200).body["credentials"],
        old,
        "the predecessor is as it was"
    );
    // Either may go first, and the other stays.
    broker
        .delete(&format!("{}?{}", binding("a"), ids()))
        .await
        .expect(200);
    assert!(!broker.opens(&old) && broker.opens(&new));
    let third = put(&broker, "c", &follows("b")).await.expect(201).body["credentials"].clone();
    broker
        .delete(&format!("{}?{}", binding("c"), ids()))
        .await
        .expect(200);
    assert!(broker.opens(&new) && !broker.opens(&third));
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_an_asynchronous_rotation() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    let old = broker.bound_later("a", &bind_body()).await;
    let path = format!("{}?{LATER}", binding("b"));
    let accepted = broker.put(&path, &follows("a")).await.expect(202);
    assert_eq!(
        accepted.body.as_object().unwrap().len(),
        1,
        "B-02: {}",
        accepted.text
    );
    assert_eq!(
        broker.put(&path, &follows("a")).await.expect(202).operation(),
        accepted.operation(),
        "B-04"
    );
    broker.get(&binding("b")).await.expect(404);
    assert!(broker.opens(&old));
    broker.run_until_idle().await;
    let new = broker.get(&binding("b")).await.expect(200).body["credentials"].clone();
    assert!(broker.opens(&old) && broker.opens(&new));
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_each_ends_at_its_own_expiry() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(ALPHA, SHORT, json!({})).await;
    let first = put(&broker, "a", &json!({"service_id": ALPHA, "plan_id": SHORT}))
        .await
        .expect(201);
    // Rotated at renew_before, as a platform does.
    broker.advance(Duration::from_secs(480));
    let second = put(&broker, "b", &follows("a")).await.expect(201);
    let at = |answer: &Answer| answer.body["metadata"]["expires_at"].as_str().unwrap().to_owned();
    assert!(
        at(&first) < at(&second),
        "the successor has a whole life of its own"
    );
    let (old, new) = (&first.body["credentials"], &second.body["credentials"]);
    broker.advance(Duration::from_secs(119));
    broker.sweeper().once().await.unwrap();
    broker.run_until_idle().await;
    assert!(broker.opens(old) && broker.opens(new), "until expiry");
    broker.advance(Duration::from_secs(1));
    assert_eq!(broker.sweeper().once().await.unwrap().expired, 1);
    broker.run_until_idle().await;
    assert!(!broker.opens(old) && broker.opens(new));
    broker.get(&binding("a")).await.expect(404);
    broker.get(&binding("b")).await.expect(200);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r02_the_ids_may_be_left_out_and_are_checked_when_present() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.bound("one", "a").await;
    for (n, body) in [
        follows("a"),
        follows_with("a", json!({"service_id": ALPHA})),
        follows_with("a", json!({"plan_id": SMALL})),
        follows_with(
            "a",
            json!({"service_id": null, "plan_id": "", "context": {"platform": "x"}}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        put(&broker, &format!("good{n}"), &body).await.expect(201);
    }
    for body in [
        follows_with("a", json!({"service_id": "unknown"})),
        follows_with("a", json!({"service_id": BETA, "plan_id": BETA_SMALL})),
        follows_with("a", json!({"plan_id": "unknown"})),
        follows_with("a", json!({"plan_id": MEDIUM})),
        follows_with("a", json!({"service_id": 1})),
    ] {
        put(&broker, "bad", &body).await.expect_error(400, "BadRequest");
    }
    // Null and "" are no predecessor: then the ids are required (B-06).
    for body in [json!({"predecessor_binding_id": null}), follows("")] {
        put(&broker, "bad", &body).await.expect_error(400, "BadRequest");
    }
    broker
        .delete(&format!("{}?{}", binding("bad"), ids()))
        .await
        .expect(410);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_a_predecessor_that_is_not_there_is_400() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.provisioned("two").await;
    broker.bound("two", "of-two").await;
    broker.bound("one", "a").await;
    broker.bound("one", "unbound").await;
    broker
        .delete(&format!("{}?{}", binding("unbound"), ids()))
        .await
        .expect(200);
    broker.world.plan(
        "issue",
        When::Before,
        Effect::Fail(PortErrorKind::Denied, "no"),
        1,
    );
    put(&broker, "failed", &bind_body()).await.expect(500);
    let users = broker.world.users().len();
    for predecessor in ["unknown", "of-two", "unbound", "failed", "A"] {
        let refused = put(&broker, "b", &follows(predecessor))
            .await
            .expect_error(400, "BadRequest");
        assert!(
            refused.text.contains("predecessor_binding_id"),
            "{}",
            refused.text
        );
    }
    // Itself, whether it exists or not.
    for id in ["a", "b"] {
        let refused = put(&broker, id, &follows(id))
            .await
            .expect_error(400, "BadRequest");
        assert!(refused.text.contains("itself"), "{}", refused.text);
    }
    // Another platform's, on an instance of the same name.
    let foreign = |method, path: String, body: Value| {
        let request = broker.http.request(method, format!("{}{path}", broker.base));
        let request = request
            .basic_auth("k8s", Some(PASSWORD))
            .header("X-Broker-API-Version", "2.17");
        broker.send(request.json(&body))
    };
    foreign(
        reqwest::Method::PUT,
        format!("{}?{LATER}", instance("one")),
        provision_body(),
    )
    .await
    .expect(202);
    broker.run_until_idle().await;
    foreign(reqwest::Method::PUT, binding("b"), follows("a"))
        .await
        .expect_error(400, "BadRequest");
    foreign(
        reqwest::Method::DELETE,
        format!("{}?{}", instance("one"), delete_later()),
        json!({}),
    )
    .await
    .expect(202);
    broker.run_until_idle().await;
    assert_eq!(broker.world.users().len(), users, "nothing was made");
    broker.get(&binding("b")).await.expect(404);
    broker.deleted("two").await;
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_an_expired_predecessor_is_400() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(ALPHA, SHORT, json!({})).await;
    put(&broker, "a", &json!({"service_id": ALPHA, "plan_id": SHORT}))
        .await
        .expect(201);
    broker.advance(Duration::from_secs(600));
    for swept in [false, true] {
        if swept {
            broker.sweeper().once().await.unwrap();
            broker.run_until_idle().await;
        }
        let refused = put(&broker, "b", &follows("a"))
            .await
            .expect_error(400, "BadRequest");
        assert!(
            refused.text.contains("expired"),
            "swept={swept}: {}",
            refused.text
        );
    }
    put(&broker, "b", &json!({"service_id": ALPHA, "plan_id": SHORT}))
        .await
        .expect(201);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_a_predecessor_that_is_being_made_is_busy_and_one_being_deleted_is_400() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    broker
        .put(&format!("{}?{LATER}", binding("a")), &bind_body())
        .await
        .expect(202);
    let rotate = format!("{}?{LATER}", binding("b"));
    broker
        .put(&rotate, &follows("a"))
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker
        .delete(&format!("{}?{}", binding("a"), delete_later()))
        .await
        .expect(202);
    broker
        .put(&rotate, &follows("a"))
        .await
        .expect_error(400, "BadRequest");
    broker.run_until_idle().await;
    broker
        .put(&rotate, &follows("a"))
        .await
        .expect_error(400, "BadRequest");
    broker.get(&binding("b")).await.expect(404);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_a_plan_that_is_not_rotatable_is_400() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(BETA, BETA_SMALL, json!({})).await;
    let body = json!({"service_id": BETA, "plan_id": BETA_SMALL, "app_guid": "app"});
    put(&broker, "a", &body).await.expect(201);
    for request in [follows("a"), follows_with("a", body.clone()), follows("unknown")] {
        let refused = put(&broker, "b", &request).await.expect_error(400, "BadRequest");
        assert!(refused.text.contains("rotated"), "{}", refused.text);
    }
    // A second plain binding for the same application is how such a plan is rotated.
    put(&broker, "b", &body).await.expect(201);
    broker.deleted_and_end().await;

    let broker = TestBroker::start().await;
    broker.provisioned_as(ALPHA, BARE, json!({})).await;
    put(&broker, "b", &follows("a"))
        .await
        .expect_error(400, "BadRequest");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_while_the_instance_changes_is_a_concurrency_error() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    broker.bound_later("a", &bind_body()).await;
    let change = json!({"service_id": ALPHA, "parameters": {"size": 8}});
    broker
        .patch(&format!("{}?{LATER}", instance("one")), &change)
        .await
        .expect(202);
    broker
        .put(&format!("{}?{LATER}", binding("b")), &follows("a"))
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker.bound_later("b", &follows("a")).await;
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_parameters_and_bind_resource_are_inherited() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let resource = json!({"app_guid": "app", "space_guid": "s"});
    let body = json!({"service_id": ALPHA, "plan_id": SMALL, "parameters": {"role": "readonly"}, "bind_resource": resource,
        "app_guid": "app"});
    put(&broker, "a", &body).await.expect(201);
    // Absent, null and empty are all "absent"; b3 inherits through b2.
    for (id, request) in [
        ("b1", follows("a")),
        (
            "b2",
            follows_with("a", json!({"parameters": {}, "bind_resource": null})),
        ),
        ("b3", follows("b2")),
    ] {
        let made = put(&broker, id, &request).await.expect(201);
        assert_eq!(made.body["credentials"]["role"], "readonly", "{id}");
        assert_eq!(
            broker.get(&binding(id)).await.expect(200).body["parameters"],
            json!({"role": "readonly"})
        );
        let row = broker.binding_row(id).await;
        assert_eq!(
            (row.attributes.bind_resource, row.attributes.app_guid.as_deref()),
            (Some(resource.clone()), Some("app"))
        );
    }
    // What is given counts instead, each member by itself.
    let other = follows_with("a", json!({"parameters": {"role": "owner"}}));
    assert_eq!(
        put(&broker, "c", &other).await.expect(201).body["credentials"]["role"],
        "owner"
    );
    assert_eq!(
        broker.binding_row("c").await.attributes.bind_resource,
        Some(resource)
    );
    put(
        &broker,
        "d",
        &follows_with("a", json!({"parameters": {"role": "nonsense"}})),
    )
    .await
    .expect_error(400, "BadRequest");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_a_resend_is_compared_with_its_predecessor_too() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.bound("one", "a").await;
    broker.bound("one", "z").await;
    let made = put(&broker, "b", &follows("a")).await.expect(201);
    for _ in 0..2 {
        assert_eq!(
            put(&broker, "b", &follows("a")).await.expect(200).body,
            made.body,
            "B-03"
        );
        // A lost answer may be asked for again even when the predecessor is gone already.
        broker.delete(&format!("{}?{}", binding("a"), ids())).await;
    }
    for other in [
        bind_body(),
        follows("z"),
        follows("unknown"),
        follows_with("a", json!({"parameters": {"role": "owner"}})),
    ] {
        put(&broker, "b", &other).await.expect_error(409, "Conflict");
    }
    // And a plain binding is not turned into a successor.
    put(&broker, "z", &follows("b"))
        .await
        .expect_error(409, "Conflict");
    assert!(broker.opens(&made.body["credentials"]));
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_rotation_leaves_the_predecessor_alone() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let old = broker.bound("one", "a").await;
    broker.world.plan(
        "verify",
        When::Before,
        Effect::Fail(PortErrorKind::Denied, "no"),
        1,
    );
    put(&broker, "b", &follows("a")).await.expect(500);
    assert!(broker.opens(&old));
    assert_eq!(broker.world.users().len(), 1);
    broker.get(&binding("b")).await.expect(404);
    put(&broker, "b", &follows("a")).await.expect(201);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_after_a_plan_change_follows_the_new_plan() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.bound("one", "a").await;
    let change = json!({"service_id": ALPHA, "plan_id": SHORT});
    broker
        .patch(&format!("{}?{LATER}", instance("one")), &change)
        .await
        .expect(202);
    broker.run_until_idle().await;
    let made = put(&broker, "b", &follows("a")).await.expect(201);
    assert!(
        made.body["metadata"]["expires_at"].is_string(),
        "the new plan's bindings have an end: {}",
        made.text
    );
    assert_eq!(broker.binding_row("b").await.attributes.plan_id, SHORT);
    assert_eq!(
        broker.get(&binding("a")).await.expect(200).body.get("metadata"),
        None,
        "the old one keeps its terms"
    );
    broker.deleted_and_end().await;
}
