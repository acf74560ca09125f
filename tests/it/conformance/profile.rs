//! X: identities and contexts of the platforms, known and unknown.

use super::common::{binding, flagged, instance, merged, provision};
use crate::support::broker::TestBroker;
use crate::support::catalog::{self, ALPHA};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

async fn stored_context(broker: &TestBroker, id: &str) -> Value {
    let all = broker.engine.store().instances_page("", None, 100).await.unwrap();
    all.into_iter().find(|i| i.instance_id == id).unwrap().context.unwrap_or_default()
}

/// Provisions with a context, changes it and binds with one; each is kept as it was sent.
async fn lives_with(context: Value, changed: Value, of_binding: Value) {
    let broker = TestBroker::start().await;
    let i = instance("i");
    broker.put(&flagged(&i), &provision(json!({"context": context}))).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(stored_context(&broker, "i").await, context);
    // Names change over time: still the same instance.
    broker.put(&flagged(&i), &provision(json!({"context": changed}))).await.expect(200);
    broker.patch(&flagged(&i), &json!({"service_id": ALPHA, "context": changed})).await.expect(200);
    assert_eq!(stored_context(&broker, "i").await, changed);
    let bind = merged(catalog::bind_body(), json!({"context": of_binding}));
    broker.put(&binding("i", "b"), &bind).await.expect(201);
    broker.put(&binding("i", "b"), &catalog::bind_body()).await.expect(200);
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_identities_of_both_platforms_and_more_members_are_taken() {
    let broker = TestBroker::start().await;
    for (platform, identity) in [
        ("cloudfoundry", json!({"user_id": "683ea748", "more": true})),
        ("kubernetes", json!({"username": "duke", "uid": "c2dde242", "groups": ["admin"], "extra": {"mydata": ["data1"]}})),
        ("kubernetes", json!({"username": "duke"})),
        ("osb-checker", json!({})),
    ] {
        let value = format!("{platform} {}", BASE64_STANDARD.encode(identity.to_string()));
        let request = broker.request("GET", "/v2/catalog").header("X-Broker-API-Originating-Identity", value);
        broker.send(request).await.expect(200);
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x03_cloud_foundry_contexts_are_kept_and_may_change() {
    let context = json!({"platform": "cloudfoundry", "organization_guid": "o", "organization_name": "org", "space_guid": "s",
        "space_name": "dev", "instance_name": "db", "organization_annotations": {"a.b/c": "d"}, "space_annotations": {},
        "instance_annotations": {}});
    let changed = merged(context.clone(), json!({"organization_name": "renamed", "instance_name": "db2"}));
    lives_with(context.clone(), changed, merged(context, json!({"instance_name": null}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x04_kubernetes_contexts_are_kept_and_may_change() {
    let context = json!({"platform": "kubernetes", "namespace": "dev", "clusterid": "8263feaf", "instance_name": "db",
        "namespace_annotations": {"a": "b"}, "instance_annotations": {}});
    let changed = merged(context.clone(), json!({"clusterid": "another"}));
    lives_with(context.clone(), changed, merged(context, json!({"instance_name": null}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x05_bind_resources_of_applications_and_service_keys_are_taken() {
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    for (n, resource) in [
        json!({"app_guid": "a", "space_guid": "s", "app_annotations": {"x.y/z": "1"}}),
        json!({"credential_client_id": "key"}),
        json!({"app_guid": "a"}),
        json!({}),
    ]
    .into_iter()
    .enumerate()
    {
        let path = binding("i", &n.to_string());
        let body = merged(catalog::bind_body(), json!({"bind_resource": resource}));
        broker.put(&path, &body).await.expect(201);
        broker.put(&path, &body).await.expect(200);
    }
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x06_unknown_platforms_are_kept_and_never_refused() {
    for platform in ["service-manager", "osb-checker", "something else"] {
        let context = json!({"platform": platform, "tenant": {"id": 1}, "signature": "abc"});
        lives_with(context.clone(), merged(context.clone(), json!({"zone": "eu"})), context).await;
    }
}
