//! One instance and its bindings from beginning to end, as a platform sees it.

use crate::support::broker::TestBroker;
use crate::support::catalog::{self, ids};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_story() {
    let broker = TestBroker::start().await;
    let put = broker
        .put(
            "/v2/service_instances/one?accepts_incomplete=true",
            &catalog::provision_body(),
        )
        .await
        .expect(202);
    let polling = broker
        .get(&format!(
            "/v2/service_instances/one/last_operation?operation={}",
            put.operation()
        ))
        .await
        .expect(200);
    assert_eq!(polling.body["state"], "in progress");
    broker.get("/v2/service_instances/one").await.expect(404);
    broker.run_until_idle().await;
    broker.get("/v2/service_instances/one").await.expect(200);

    let first = broker.bound("one", "a").await;
    let rotated = broker
        .put(
            "/v2/service_instances/one/service_bindings/b",
            &json!({"predecessor_binding_id": "a"}),
        )
        .await
        .expect(201);
    let second = &rotated.body["credentials"];
    assert_ne!(first["password"], second["password"]);
    let lets_in = |c: &serde_json::Value| {
        broker
            .world
            .lets_in(c["username"].as_str().unwrap(), c["password"].as_str().unwrap())
    };
    assert!(
        lets_in(&first) && lets_in(second),
        "both are valid during the overlap"
    );

    broker
        .delete(&format!("/v2/service_instances/one/service_bindings/a?{}", ids()))
        .await
        .expect(200);
    assert!(!lets_in(&first) && lets_in(second));
    broker
        .delete(&format!("/v2/service_instances/one/service_bindings/b?{}", ids()))
        .await
        .expect(200);
    broker.deleted("one").await;
    let last = broker
        .get("/v2/service_instances/one/last_operation")
        .await
        .expect(200);
    assert_eq!(last.body["state"], "succeeded");
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}
