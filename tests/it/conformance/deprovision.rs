//! DELETE of an instance: rules D-01 to D-11.

use crate::support::broker::{Choices, PASSWORD, TestBroker};
use crate::support::catalog::{
    ALPHA, BETA, BETA_SMALL, MEDIUM, SHORT, SMALL, bind_body, ids, provision_body,
};
use crate::support::flow::{LATER, binding, delete_later, instance};
use crate::support::world::{Effect, When};
use chandler::ports::PortErrorKind;
use serde_json::json;
use std::time::Duration;

fn one() -> String {
    instance("one")
}

fn later() -> String {
    format!("{}?{}", one(), delete_later())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d01_everything_made_is_removed() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.provisioned("two").await;
    broker.bound("one", "a").await;
    let kept = broker.bound("two", "a").await;
    broker.delete(&later()).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(
        broker.world.instances.lock().unwrap().len(),
        1,
        "and nothing else"
    );
    assert!(broker.opens(&kept));
    let iid = broker.row("one").await.iid;
    let secrets = broker.engine.ports().secrets.list("").await.unwrap();
    assert!(!secrets.iter().any(|name| name.starts_with(&iid)), "{secrets:?}");
    broker.get(&one()).await.expect_error(404, "NotFound");
    broker.get(&binding("a")).await.expect_error(404, "NotFound");
    broker.deleted("two").await;
    assert!(broker.engine.ports().secrets.list("").await.unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d02_an_asynchronous_deprovision_is_202_and_repeats_get_the_same_operation() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let first = broker.delete(&later()).await.expect(202);
    assert!(!first.operation().is_empty() && first.operation().len() <= 10_000);
    assert_eq!(first.body.as_object().unwrap().len(), 1, "{}", first.text);
    for _ in 0..2 {
        assert_eq!(
            broker.delete(&later()).await.expect(202).operation(),
            first.operation()
        );
        assert_eq!(
            broker.last_of(&one(), first.operation()).await.body["state"],
            "in progress"
        );
    }
    broker.get(&one()).await.expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    for _ in 0..2 {
        assert_eq!(
            broker.last_of(&one(), first.operation()).await.body["state"],
            "succeeded",
            "L-06, Z-01"
        );
    }
    broker.get(&one()).await.expect_error(404, "NotFound");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d03_missing_ids_are_400_also_for_an_unknown_instance() {
    let broker = TestBroker::start().await;
    let queries = [
        String::new(),
        LATER.to_owned(),
        format!("service_id={ALPHA}"),
        format!("{LATER}&service_id={ALPHA}"),
        format!("{LATER}&plan_id={SMALL}"),
        format!("{LATER}&service_id=&plan_id={SMALL}"),
        format!("{LATER}&service_id={ALPHA}&plan_id="),
    ];
    for known in [false, true] {
        if known {
            broker.provisioned("one").await;
        }
        for query in &queries {
            let refused = broker
                .delete(&format!("{}?{query}", one()))
                .await
                .expect_error(400, "BadRequest");
            assert_eq!(refused.body.get("instance_usable"), None, "E-04");
        }
    }
    broker.get(&one()).await.expect(200);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d03_another_offerings_id_is_400() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for service in [BETA, "unknown"] {
        let path = format!("{}?{LATER}&service_id={service}&plan_id={BETA_SMALL}", one());
        broker.delete(&path).await.expect_error(400, "BadRequest");
    }
    broker.get(&one()).await.expect(200);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d04_what_does_not_exist_is_410() {
    let broker = TestBroker::start().await;
    let all_gone = async || {
        for query in [delete_later(), format!("{LATER}&service_id=x&plan_id=y")] {
            let gone = broker
                .delete(&format!("{}?{query}", one()))
                .await
                .expect_error(410, "Gone");
            assert!(gone.body.is_object(), "Z-02");
        }
    };
    all_gone().await;
    broker.provisioned("one").await;
    broker
        .delete(&format!("{}?{}", instance("ONE"), delete_later()))
        .await
        .expect_error(410, "Gone");
    let foreign = broker
        .http
        .delete(format!("{}{}", broker.base, later()))
        .basic_auth("k8s", Some(PASSWORD))
        .header("X-Broker-API-Version", "2.17");
    broker.send(foreign).await.expect_error(410, "Gone");
    broker.get(&one()).await.expect(200);
    broker.deleted("one").await;
    all_gone().await;
    all_gone().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d05_without_the_flag_is_async_required() {
    let broker = TestBroker::start().await;
    let without = [
        format!("{}?{}", one(), ids()),
        format!("{}?{}&accepts_incomplete=false", one(), ids()),
    ];
    // Before D-04.
    for path in &without {
        broker.delete(path).await.expect_error(422, "AsyncRequired");
    }
    broker.provisioned("one").await;
    for path in &without {
        let refused = broker.delete(path).await.expect_error(422, "AsyncRequired");
        assert_eq!(refused.body.get("instance_usable"), None, "E-04");
    }
    broker.get(&one()).await.expect(200);
    broker.delete(&later()).await.expect(202);
    broker
        .delete(&without[0])
        .await
        .expect_error(422, "AsyncRequired");
    broker.run_until_idle().await;
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d06_while_a_binding_is_made_or_deleted_is_a_concurrency_error() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    let bind = broker
        .put(&format!("{}?{LATER}", binding("a")), &bind_body())
        .await
        .expect(202);
    broker
        .delete(&later())
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    assert_eq!(
        broker.last_of(&binding("a"), bind.operation()).await.body["state"],
        "succeeded",
        "S-05"
    );
    broker
        .delete(&format!("{}?{}", binding("a"), delete_later()))
        .await
        .expect(202);
    broker
        .delete(&later())
        .await
        .expect_error(422, "ConcurrencyError");
    broker.get(&one()).await.expect(200);
    broker.run_until_idle().await;
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d06_an_update_can_be_stopped_and_is() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let update = json!({"service_id": ALPHA, "plan_id": MEDIUM});
    let update = broker
        .patch(&format!("{}?{LATER}", one()), &update)
        .await
        .expect(202);
    let gone = broker.delete(&later()).await.expect(202);
    assert_eq!(
        broker.last_of(&one(), update.operation()).await.body["state"],
        "failed"
    );
    broker.run_until_idle().await;
    assert_eq!(
        broker.last_of(&one(), gone.operation()).await.body["state"],
        "succeeded"
    );
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d07_deprovision_during_provision_halts_it() {
    // Nothing done yet; and half-way, when the thing exists already.
    for half_way in [false, true] {
        let broker = TestBroker::held().await;
        *broker.world.looks.lock().unwrap() = 100;
        let put = broker
            .put(&format!("{}?{LATER}", one()), &provision_body())
            .await
            .expect(202);
        if half_way {
            broker.run_due().await;
            assert_eq!(broker.world.instances.lock().unwrap().len(), 1);
        }
        let gone = broker.delete(&later()).await.expect(202);
        assert_ne!(gone.operation(), put.operation());
        assert_eq!(
            broker.last_of(&one(), put.operation()).await.body["state"],
            "failed",
            "L-12"
        );
        assert_eq!(
            broker.last(&one()).await.body["state"],
            "in progress",
            "L-12: the latest is the delete"
        );
        assert_eq!(
            broker.delete(&later()).await.expect(202).operation(),
            gone.operation(),
            "D-02"
        );
        broker
            .put(&format!("{}?{LATER}", one()), &provision_body())
            .await
            .expect_error(422, "ConcurrencyError");
        broker.run_until_idle().await;
        assert_eq!(broker.last(&one()).await.body["state"], "succeeded");
        assert!(
            broker.world.instances.lock().unwrap().is_empty(),
            "leftovers are removed"
        );
        broker.get(&one()).await.expect(404);
        broker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d08_an_instance_whose_provision_failed_is_deletable() {
    let broker = TestBroker::start().await;
    let fail = |kind| Effect::Fail(kind, "Not on this machine.");
    for call in ["place", "apply", "observe", "prepare"] {
        broker
            .world
            .plan(call, When::After, fail(PortErrorKind::Invalid), 1);
        let put = broker
            .put(&format!("{}?{LATER}", one()), &provision_body())
            .await
            .expect(202);
        broker.run_until_idle().await;
        let last = broker.last_of(&one(), put.operation()).await;
        assert_eq!(last.body["state"], "failed", "{call}");
        assert!(last.text.contains("Not on this machine."), "{}", last.text);
        assert_eq!(
            (
                last.body.get("instance_usable"),
                last.body.get("update_repeatable")
            ),
            (None, None),
            "E-04"
        );
        let gone = broker.delete(&later()).await.expect(202);
        broker.run_until_idle().await;
        assert_eq!(
            broker.last_of(&one(), gone.operation()).await.body["state"],
            "succeeded",
            "{call}"
        );
        assert_eq!(
            broker.last_of(&one(), put.operation()).await.body["state"],
            "failed",
            "L-06"
        );
        assert!(broker.world.instances.lock().unwrap().is_empty());
        broker.delete(&later()).await.expect_error(410, "Gone");
    }
    // The id is free again.
    broker.provisioned("one").await;
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d09_bindings_go_with_their_instance_by_default() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let credentials = [broker.bound("one", "a").await, broker.bound("one", "b").await];
    broker.delete(&later()).await.expect(202);
    broker.run_until_idle().await;
    assert!(credentials.iter().all(|c| !broker.opens(c)));
    for id in ["a", "b"] {
        broker.get(&binding(id)).await.expect(404);
        broker
            .delete(&format!("{}?{}", binding(id), ids()))
            .await
            .expect(410);
    }
    // A new instance of the same name does not bring them back.
    broker.provisioned("one").await;
    broker.get(&binding("a")).await.expect(404);
    let fresh = broker.bound("one", "a").await;
    assert_ne!(fresh["password"], credentials[0]["password"]);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d09_by_setting_bindings_must_go_first() {
    let mut choices = Choices::default();
    choices.engine.refuse_deprovision_with_bindings = true;
    let broker = TestBroker::with(choices).await;
    broker.provisioned_as(ALPHA, SHORT, json!({})).await;
    let body = json!({"service_id": ALPHA, "plan_id": SHORT});
    let delete = format!("{}?{LATER}&service_id={ALPHA}&plan_id={SHORT}", one());
    let made = broker.put(&binding("a"), &body).await.expect(201);
    broker.put(&binding("b"), &body).await.expect(201);
    let refused = broker.delete(&delete).await.expect_error(400, "BadRequest");
    assert!(refused.text.contains("2 service binding"), "{}", refused.text);
    assert!(broker.opens(&made.body["credentials"]), "E-05");
    broker
        .delete(&format!("{}?service_id={ALPHA}&plan_id={SHORT}", binding("b")))
        .await
        .expect(200);
    broker.delete(&delete).await.expect_error(400, "BadRequest");
    // One that failed is none, nor is one whose time is over.
    broker.world.plan(
        "issue",
        When::Before,
        Effect::Fail(PortErrorKind::Denied, "no"),
        1,
    );
    broker.put(&binding("c"), &body).await.expect(500);
    broker.advance(Duration::from_secs(600));
    broker.sweeper().once().await.unwrap();
    broker.run_until_idle().await;
    broker.delete(&delete).await.expect(202);
    broker.run_until_idle().await;
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d10_a_failed_deprovision_says_so_and_may_be_tried_again() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.world.plan(
        "remove",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "It does not let go."),
        1,
    );
    let failed = broker.delete(&later()).await.expect(202);
    broker.run_until_idle().await;
    let last = broker.last_of(&one(), failed.operation()).await;
    assert_eq!(
        (&last.body["state"], &last.body["instance_usable"]),
        (&json!("failed"), &json!(false))
    );
    assert_eq!(
        last.body.get("update_repeatable"),
        None,
        "E-04: of an update only"
    );
    assert!(last.text.contains("It does not let go."), "{}", last.text);
    // It stays known, and is neither changed nor bound nor made anew.
    broker.get(&one()).await.expect(200);
    let path = format!("{}?{LATER}", one());
    broker
        .patch(&path, &json!({"service_id": ALPHA, "parameters": {"size": 4}}))
        .await
        .expect_error(400, "BadRequest");
    broker
        .put(&binding("a"), &bind_body())
        .await
        .expect_error(400, "BadRequest");
    let again = broker.delete(&later()).await.expect(202);
    assert_ne!(again.operation(), failed.operation());
    broker.run_until_idle().await;
    assert_eq!(
        broker.last_of(&one(), again.operation()).await.body["state"],
        "succeeded"
    );
    assert_eq!(
        broker.last_of(&one(), failed.operation()).await.body["state"],
        "failed"
    );
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d11_force_is_ignored_as_unknown() {
    let mut choices = Choices::default();
    choices.engine.refuse_deprovision_with_bindings = true;
    let broker = TestBroker::with(choices).await;
    broker.provisioned("one").await;
    broker.bound("one", "a").await;
    broker
        .delete(&format!("{}&force=true", later()))
        .await
        .expect_error(400, "BadRequest");
    broker
        .delete(&format!("{}?force=true&{}", one(), ids()))
        .await
        .expect_error(422, "AsyncRequired");
    broker
        .delete(&format!("{}?{}", binding("a"), ids()))
        .await
        .expect(200);
    broker
        .delete(&format!("{}&force=false", later()))
        .await
        .expect(202);
    broker.run_until_idle().await;
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_an_instance_of_a_plan_that_left_the_catalog_is_deleted_as_usual() {
    use chandler::domain::catalog::{Catalog, KnownMechanisms};
    let broker = TestBroker::start().await;
    broker.provisioned_as(BETA, BETA_SMALL, json!({})).await;
    let mut sources = crate::support::catalog::sources();
    sources.retain(|path, _| !path.contains("/beta/"));
    let loaded = Catalog::load(&sources, &KnownMechanisms).unwrap_or_else(|p| panic!("{p:?}"));
    broker.engine.set_catalog(loaded).await.unwrap();
    broker.get(&one()).await.expect(200);
    broker.last(&one()).await;
    broker.deleted_and_end().await;
}
