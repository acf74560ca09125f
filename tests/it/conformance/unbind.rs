//! DELETE of a binding: rules N-01 to N-08.

use crate::support::broker::{PASSWORD, TestBroker};
use crate::support::catalog::{ALPHA, BETA, BETA_SMALL, MEDIUM, SMALL, bind_body, ids, provision_body};
use crate::support::flow::{LATER, binding, delete_later, instance};
use crate::support::world::{Effect, When};
use chandler::ports::PortErrorKind;
use serde_json::json;

fn now(id: &str) -> String {
    format!("{}?{}", binding(id), ids())
}

fn later(id: &str) -> String {
    format!("{}?{}", binding(id), delete_later())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n01_a_synchronous_unbind_is_200_and_the_credentials_are_dead() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let credentials = broker.bound("one", "a").await;
    let kept = broker.bound("one", "b").await;
    let gone = broker.delete(&now("a")).await.expect(200);
    assert_eq!(gone.text, "{}");
    assert!(!broker.opens(&credentials) && broker.opens(&kept));
    assert_eq!(broker.world.users().len(), 1);
    broker.get(&binding("a")).await.expect(404);
    assert_eq!(
        broker.last(&binding("a")).await.body["state"],
        "succeeded",
        "L-07: also when it was synchronous"
    );
    assert!(broker.left_over().await.is_empty(), "no secret is left");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n02_an_asynchronous_unbind_is_202_and_repeats_get_the_same_operation() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    let credentials = broker.bound_later("a", &bind_body()).await;
    let first = broker.delete(&later("a")).await.expect(202);
    assert!(!first.operation().is_empty());
    assert_eq!(first.body.as_object().unwrap().len(), 1, "{}", first.text);
    for _ in 0..2 {
        assert_eq!(
            broker.delete(&later("a")).await.expect(202).operation(),
            first.operation()
        );
        assert_eq!(
            broker.last_of(&binding("a"), first.operation()).await.body["state"],
            "in progress"
        );
    }
    broker.get(&binding("a")).await.expect(404);
    broker.run_until_idle().await;
    assert!(!broker.opens(&credentials));
    for _ in 0..2 {
        assert_eq!(
            broker.last_of(&binding("a"), first.operation()).await.body["state"],
            "succeeded",
            "K-08, Z-01"
        );
    }
    broker.delete(&later("a")).await.expect_error(410, "Gone");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n03_missing_ids_are_400_when_the_binding_exists() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let credentials = broker.bound("one", "a").await;
    for query in [
        String::new(),
        format!("service_id={ALPHA}"),
        format!("plan_id={SMALL}"),
        format!("service_id=&plan_id={SMALL}"),
        format!("service_id={ALPHA}&plan_id="),
        format!("{LATER}&service_id={ALPHA}"),
    ] {
        broker
            .delete(&format!("{}?{query}", binding("a")))
            .await
            .expect_error(400, "BadRequest");
    }
    assert!(broker.opens(&credentials), "E-05");
    broker.get(&binding("a")).await.expect(200);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n04_what_does_not_exist_is_410() {
    let broker = TestBroker::start().await;
    // Wins over missing ids (N-03) and over unknown ones; repeatable for ever (O-01).
    let queries = [
        "",
        "service_id=x",
        "service_id=x&plan_id=y",
        LATER,
        &delete_later(),
        &ids(),
    ]
    .map(str::to_owned);
    let all_gone = async |id: &str| {
        for query in &queries {
            let gone = broker
                .delete(&format!("{}?{query}", binding(id)))
                .await
                .expect_error(410, "Gone");
            assert!(gone.body.is_object(), "Z-02");
        }
    };
    all_gone("a").await;
    broker.provisioned("one").await;
    all_gone("a").await;
    broker.bound("one", "a").await;
    all_gone("b").await;
    broker
        .delete("/v2/service_instances/two/service_bindings/a")
        .await
        .expect_error(410, "Gone");
    let foreign = broker
        .http
        .delete(format!("{}{}", broker.base, now("a")))
        .basic_auth("k8s", Some(PASSWORD))
        .header("X-Broker-API-Version", "2.17");
    broker.send(foreign).await.expect_error(410, "Gone");
    broker.get(&binding("a")).await.expect(200);
    broker.delete(&now("a")).await.expect(200);
    all_gone("a").await;
    // Gone together with its instance (D-09).
    broker.bound("one", "a").await;
    broker.deleted("one").await;
    all_gone("a").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n05_a_running_unbind_asked_for_without_the_flag_is_async_required() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    broker.bound_later("a", &bind_body()).await;
    let running = broker.delete(&later("a")).await.expect(202);
    broker.delete(&now("a")).await.expect_error(422, "AsyncRequired");
    broker
        .delete(&format!("{}&accepts_incomplete=false", now("a")))
        .await
        .expect_error(422, "AsyncRequired");
    broker.run_until_idle().await;
    assert_eq!(
        broker.last_of(&binding("a"), running.operation()).await.body["state"],
        "succeeded"
    );
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n06_while_the_instance_changes_or_goes_is_a_concurrency_error() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    let credentials = broker.bound_later("a", &bind_body()).await;
    let update = json!({"service_id": ALPHA, "parameters": {"size": 8}});
    broker
        .patch(&format!("{}?{LATER}", instance("one")), &update)
        .await
        .expect(202);
    for path in [now("a"), later("a")] {
        broker.delete(&path).await.expect_error(422, "ConcurrencyError");
    }
    broker.run_until_idle().await;
    assert!(broker.opens(&credentials));
    assert_eq!(
        broker.last(&instance("one")).await.body["state"],
        "succeeded",
        "S-05"
    );
    broker
        .delete(&format!("{}?{}", instance("one"), delete_later()))
        .await
        .expect(202);
    broker
        .delete(&later("a"))
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker.delete(&later("a")).await.expect_error(410, "Gone");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n07_unbind_during_bind_halts_it() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    // Nothing done yet; and stopped half-way, when the user exists already.
    for half_way in [false, true] {
        let bind = broker
            .put(&format!("{}?{LATER}", binding("a")), &bind_body())
            .await
            .expect(202);
        if half_way {
            broker.world.plan(
                "verify",
                When::Before,
                Effect::Fail(PortErrorKind::Transient, "away"),
                1,
            );
            broker.run_due().await;
            assert_eq!(broker.world.users().len(), 1);
            assert_eq!(broker.last(&binding("a")).await.body["state"], "in progress");
        }
        let gone = broker.delete(&later("a")).await.expect(202);
        assert_ne!(gone.operation(), bind.operation());
        assert_eq!(
            broker.last_of(&binding("a"), bind.operation()).await.body["state"],
            "failed",
            "L-12"
        );
        assert_eq!(
            broker.last(&binding("a")).await.body["state"],
            "in progress",
            "L-12: the latest is the delete"
        );
        broker
            .put(&format!("{}?{LATER}", binding("a")), &bind_body())
            .await
            .expect_error(422, "ConcurrencyError");
        broker.run_until_idle().await;
        assert_eq!(
            broker.last_of(&binding("a"), gone.operation()).await.body["state"],
            "succeeded"
        );
        assert!(broker.world.users().is_empty(), "what existed is removed");
        broker.get(&binding("a")).await.expect(404);
        broker.delete(&later("a")).await.expect_error(410, "Gone");
        assert!(broker.left_over().await.is_empty());
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n07_unbind_without_the_flag_during_bind_halts_it_too() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    // The bind sticks in its first call, on a worker that never comes back.
    broker.world.plan("issue", When::After, Effect::Hang, 1);
    let bind = broker
        .put(&format!("{}?{LATER}", binding("a")), &bind_body())
        .await
        .expect(202);
    broker.world.hung.notified().await;
    broker.delete(&now("a")).await.expect(200);
    assert_eq!(
        broker.last_of(&binding("a"), bind.operation()).await.body["state"],
        "failed"
    );
    assert!(broker.world.users().is_empty());
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n08_ids_that_do_not_match_are_400() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let credentials = broker.bound("one", "a").await;
    for (service, plan) in [
        (BETA, BETA_SMALL),
        (BETA, SMALL),
        ("unknown", SMALL),
        (ALPHA, "unknown"),
        (ALPHA, BETA_SMALL),
    ] {
        broker
            .delete(&format!("{}?service_id={service}&plan_id={plan}", binding("a")))
            .await
            .expect_error(400, "BadRequest");
    }
    assert!(broker.opens(&credentials), "E-05");
    // Z-04: the first of two counts.
    broker
        .delete(&format!(
            "{}?service_id={ALPHA}&service_id={BETA}&plan_id={SMALL}",
            binding("a")
        ))
        .await
        .expect(200);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n08_the_plan_before_an_update_is_accepted() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.bound("one", "a").await;
    broker.bound("one", "b").await;
    let update = json!({"service_id": ALPHA, "plan_id": MEDIUM});
    broker
        .patch(&format!("{}?{LATER}", instance("one")), &update)
        .await
        .expect(202);
    broker.run_until_idle().await;
    broker.delete(&now("a")).await.expect(200);
    broker
        .delete(&format!("{}?service_id={ALPHA}&plan_id={MEDIUM}", binding("b")))
        .await
        .expect(200);
    assert!(broker.world.users().is_empty());
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_a_binding_of_a_plan_that_left_the_catalog_is_deleted_as_usual() {
    use chandler::domain::catalog::{Catalog, KnownMechanisms};
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let credentials = broker.bound("one", "a").await;
    let mut sources = crate::support::catalog::sources();
    sources.remove("plans/alpha/small.yaml");
    let offering = sources.get_mut("catalog/alpha/offering.yaml").unwrap();
    *offering = offering.replace("updates:\n  small: [medium, short]\n", "");
    let loaded = Catalog::load(&sources, &KnownMechanisms).unwrap_or_else(|p| panic!("{p:?}"));
    broker.engine.set_catalog(loaded).await.unwrap();
    broker.get(&binding("a")).await.expect(200);
    broker.delete(&now("a")).await.expect(200);
    assert!(!broker.opens(&credentials));
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_unbind_says_so_and_may_be_tried_again() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.bound("one", "a").await;
    broker.world.plan(
        "revoke",
        When::Before,
        Effect::Fail(PortErrorKind::Denied, "The backend says no."),
        1,
    );
    let failed = broker.delete(&now("a")).await.expect(500);
    assert!(failed.text.contains("The backend says no."), "{}", failed.text);
    assert_eq!(
        (
            failed.body.get("instance_usable"),
            failed.body.get("update_repeatable")
        ),
        (None, None),
        "E-04"
    );
    let last = broker.last(&binding("a")).await;
    assert_eq!(last.body["state"], "failed");
    assert_eq!(last.body.get("instance_usable"), None, "K-01");
    assert_eq!(broker.world.users().len(), 1);
    broker.delete(&now("a")).await.expect(200);
    assert!(broker.world.users().is_empty());
    broker.delete(&now("a")).await.expect(410);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unbind_of_an_instance_that_is_made_anew_does_not_touch_it() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.bound("one", "a").await;
    broker.deleted("one").await;
    broker
        .put(&format!("{}?{LATER}", instance("one")), &provision_body())
        .await
        .expect(202);
    broker.run_until_idle().await;
    broker.delete(&now("a")).await.expect_error(410, "Gone");
    let fresh = broker.bound("one", "a").await;
    assert!(broker.opens(&fresh), "I-05");
    broker.deleted_and_end().await;
}
