//! G: GET instance.

use super::common::{delete, flagged, instance, provision, told};
use crate::support::broker::TestBroker;
use crate::support::catalog::{self, ALPHA, MEDIUM, SMALL};
use crate::support::world::{Effect, When};
use chandler::domain::error::CONCURRENCY_ERROR;
use chandler::ports::PortErrorKind;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g01_a_complete_instance_is_told_as_it_is() {
    let broker = TestBroker::start().await;
    let body = provision(json!({"parameters": {"size": 5, "colour": "red"}}));
    broker.put(&flagged(&instance("i")), &body).await.expect(202);
    broker.run_until_idle().await;
    let fetched = broker.get(&instance("i")).await.expect(200).body;
    for (name, value) in [
        ("service_id", json!(ALPHA)),
        ("plan_id", json!(SMALL)),
        ("parameters", json!({"size": 5, "colour": "red"})),
        ("maintenance_info", json!({"version": "1.0.0"})),
    ] {
        assert_eq!(fetched[name], value, "{name}");
    }
    assert!(fetched["metadata"]["labels"].is_object());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g02_unknown_unfinished_failed_and_deleted_are_404() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    broker.get(&i).await.expect_error(404, "NotFound");
    *broker.world.refuse_ready.lock().unwrap() = Some("No.".into());
    broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202);
    broker.get(&i).await.expect_error(404, "NotFound");
    broker.run_until_idle().await;
    broker.get(&i).await.expect_error(404, "NotFound");
    *broker.world.refuse_ready.lock().unwrap() = None;
    broker.deleted("i").await;
    broker.get(&i).await.expect_error(404, "NotFound");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g03_while_an_update_runs_it_is_not_readable() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    broker.provisioned("i").await;
    broker
        .patch(&flagged(&i), &json!({"service_id": ALPHA, "plan_id": MEDIUM}))
        .await
        .expect(202);
    let answer = broker.get(&i).await.expect_error(422, "ConcurrencyError");
    assert_eq!(answer.body["description"], CONCURRENCY_ERROR);
    broker.run_until_idle().await;
    assert_eq!(broker.get(&i).await.expect(200).body["plan_id"], MEDIUM);
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g04_ids_in_the_query_are_hints() {
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    let plain = broker.get(&instance("i")).await.expect(200).text;
    for query in [
        format!("service_id={ALPHA}&plan_id={SMALL}"),
        "service_id=&plan_id=x".into(),
        "service_id=a&service_id=b".into(),
    ] {
        assert_eq!(
            broker
                .get(&format!("{}?{query}", instance("i")))
                .await
                .expect(200)
                .text,
            plain,
            "{query}"
        );
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g06_the_version_it_runs_not_the_one_of_the_catalog() {
    use chandler::domain::catalog::{Catalog, KnownMechanisms};
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    let mut newer = catalog::sources();
    let text = newer["catalog/alpha/offering.yaml"].replace("version: 1.0.0", "version: 2.0.0");
    newer.insert("catalog/alpha/offering.yaml".into(), text);
    broker
        .engine
        .set_catalog(Catalog::load(&newer, &KnownMechanisms).unwrap())
        .await
        .unwrap();
    let version =
        || async { broker.get(&instance("i")).await.expect(200).body["maintenance_info"]["version"].clone() };
    assert_eq!(version().await, "1.0.0");
    let upgrade = json!({"service_id": ALPHA, "maintenance_info": {"version": "2.0.0"}});
    broker.patch(&flagged(&instance("i")), &upgrade).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(version().await, "2.0.0");
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g07_while_it_is_deleted_it_is_busy_and_then_gone() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    broker.provisioned("i").await;
    broker.delete(&delete(&i)).await.expect(202);
    broker.get(&i).await.expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker.get(&i).await.expect_error(404, "NotFound");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g08_members_without_a_value_are_left_out() {
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    let fetched = broker.get(&instance("i")).await.expect(200);
    for name in ["dashboard_url", "parameters"] {
        assert!(fetched.body.get(name).is_none(), "{}", fetched.text);
    }
    assert!(!fetched.text.contains("null"), "{}", fetched.text);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g09_after_a_failed_update_the_values_last_applied() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    let body = provision(json!({"parameters": {"size": 2}}));
    broker.put(&flagged(&i), &body).await.expect(202);
    broker.run_until_idle().await;
    let before = broker.get(&i).await.expect(200).body;
    let change = json!({"service_id": ALPHA, "plan_id": MEDIUM, "parameters": {"size": 8}});
    for times in [1, 2] {
        // Once: it is put back. Twice: putting it back fails too.
        broker.world.plan(
            "apply",
            When::Before,
            Effect::Fail(PortErrorKind::Invalid, "No."),
            times,
        );
        broker.patch(&flagged(&i), &change).await.expect(202);
        broker.run_until_idle().await;
        assert_eq!(told(&broker, &i).await["state"], "failed");
        assert_eq!(broker.get(&i).await.expect(200).body, before);
    }
    broker.deleted("i").await;
    broker.end().await;
}
