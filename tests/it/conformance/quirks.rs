//! What real platforms send, word for word, as whole stories (osb-rules §18), and the profile's contexts and
//! originating identities.

use crate::support::broker::{Answer, Choices, PASSWORD, TestBroker};
use crate::support::catalog::{ALPHA, BETA, BETA_SMALL, MEDIUM, SMALL, ids};
use crate::support::flow::{LATER, binding, delete_later, instance};
use crate::support::world::{Effect, When};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chandler::ports::PortErrorKind;
use serde_json::{Value, json};

/// A platform: what it announces and who it says is asking.
struct Client<'a> {
    broker: &'a TestBroker,
    user: &'static str,
    version: &'static str,
    identity: Option<(&'static str, Value)>,
}

impl Client<'_> {
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self
            .broker
            .http
            .request(method.clone(), format!("{}{path}", self.broker.base))
            .basic_auth(self.user, Some(PASSWORD))
            .header("X-Broker-API-Version", self.version)
            .header(
                "X-Broker-API-Request-Identity",
                "26be1b11-cc3e-4e6a-9c1a-000000000001",
            )
            .header("X-Api-Info-Location", "api.example.test/v2/info")
            .header("b3", "1234567890abcdef1234567890abcdef-1234567890abcdef-1")
            .header("Accept", "application/json");
        if let Some((platform, who)) = &self.identity {
            let value = format!("{platform} {}", BASE64_STANDARD.encode(who.to_string()));
            request = request.header("X-Broker-API-Originating-Identity", value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = self.broker.send(request).await;
        assert_eq!(
            answer.headers["x-broker-api-request-identity"], "26be1b11-cc3e-4e6a-9c1a-000000000001",
            "H-08"
        );
        assert_no_null(&answer.body, &answer.text);
        if method == "PATCH" || method == "DELETE" {
            assert_ne!(answer.status, 201, "an error to Cloud Foundry");
        }
        answer
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path, Some(body)).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, None).await
    }
}

/// Z-02: members without a value are left out, down to the metadata; credentials are the service's own matter.
fn assert_no_null(value: &Value, text: &str) {
    for (name, member) in value.as_object().into_iter().flatten() {
        assert!(!member.is_null(), "{name} is null: {text}");
        if name != "credentials" {
            assert_no_null(member, text);
        }
    }
}

fn cloud_foundry(broker: &TestBroker) -> Client<'_> {
    Client {
        broker,
        user: "cf",
        version: "2.15",
        identity: Some((
            "cloudfoundry",
            json!({"user_id": "683ea748-3092-4ff4-b656-39cacc4d5360", "user_name": "x@y"}),
        )),
    }
}

fn cf_context(instance_name: Option<&str>) -> Value {
    let mut context = json!({
        "platform": "cloudfoundry",
        "organization_guid": "org-guid", "organization_name": "system",
        "space_guid": "space-guid", "space_name": "development",
        "organization_annotations": {"prefix.example.test/foo": "bar"}, "space_annotations": {},
    });
    if let Some(name) = instance_name {
        context["instance_name"] = json!(name);
        context["instance_annotations"] = json!({"a": "b"});
    }
    context
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_foundry_instance_from_create_to_delete() {
    let broker = TestBroker::held().await;
    let cf = cloud_foundry(&broker);
    let one = instance("one");
    let put = json!({"service_id": ALPHA, "plan_id": SMALL, "organization_guid": "org-guid", "space_guid": "space-guid",
        "context": cf_context(Some("db")), "maintenance_info": {"version": "1.0.0"}});
    let made = cf.put(&format!("{one}?{LATER}"), put.clone()).await.expect(202);
    let poll = async |operation: &str, plan: &str| {
        cf.get(&format!(
            "{one}/last_operation?operation={operation}&plan_id={plan}&service_id={ALPHA}"
        ))
        .await
        .expect(200)
    };
    let polling = poll(made.operation(), SMALL).await;
    assert_eq!(polling.body["state"], "in progress");
    assert!(
        polling.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u32>()
            .is_ok(),
        "dates count as 0 there"
    );
    broker.run_until_idle().await;
    assert_eq!(poll(made.operation(), SMALL).await.body["state"], "succeeded");
    cf.get(&one).await.expect(200);
    cf.put(&format!("{one}?{LATER}"), put).await.expect(200);

    // cf rename-service: a PATCH with everything it always sends; only the context is new.
    let patch = async |more: Value| {
        let mut body = json!({"service_id": ALPHA, "plan_id": SMALL, "parameters": {}, "context": cf_context(Some("renamed")),
            "previous_values": {"plan_id": SMALL, "service_id": ALPHA, "organization_id": "org-guid",
                "space_id": "space-guid", "maintenance_info": null}});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        cf.call("PATCH", &format!("{one}?{LATER}"), Some(body)).await
    };
    let applies = broker.world.count("apply");
    patch(json!({})).await.expect(200);
    assert_eq!(broker.world.count("apply"), applies);
    assert_eq!(
        broker.row("one").await.context.unwrap()["instance_name"],
        "renamed",
        "X-03"
    );
    // It may carry the version the instance has already.
    patch(json!({"maintenance_info": {"version": "1.0.0"}}))
        .await
        .expect(200);

    // cf update-service -c, then -p: the target plan's version is added, polls name the old plan.
    patch(json!({"parameters": {"size": 4}})).await.expect(202);
    broker.run_until_idle().await;
    let change = json!({"plan_id": MEDIUM, "maintenance_info": {"version": "1.1.0", "description": "Newer."},
        "previous_values": {"plan_id": SMALL, "maintenance_info": {"version": "1.0.0"}}});
    let changed = patch(change).await.expect(202);
    assert_eq!(
        poll(changed.operation(), SMALL).await.body["state"],
        "in progress"
    );
    broker.run_until_idle().await;
    assert_eq!(poll(changed.operation(), SMALL).await.body["state"], "succeeded");
    let now = cf.get(&one).await.expect(200).body;
    assert_eq!(
        (&now["plan_id"], &now["parameters"], &now["maintenance_info"]),
        (&json!(MEDIUM), &json!({"size": 4}), &json!({"version": "1.1.0"}))
    );

    // cf delete-service, polled to the end and beyond: never 404 (Z-01).
    let query = format!("{LATER}&service_id={ALPHA}&plan_id={MEDIUM}");
    let gone = cf.delete(&format!("{one}?{query}")).await.expect(202);
    broker.run_until_idle().await;
    for _ in 0..2 {
        assert_eq!(poll(gone.operation(), MEDIUM).await.body["state"], "succeeded");
    }
    cf.delete(&format!("{one}?{query}")).await.expect(410);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloud_foundry_apps_and_service_keys() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    let cf = cloud_foundry(&broker);
    // v3: an app binding and a key, always with the flag.
    for (id, resource) in [
        (
            "app",
            json!({"app_guid": "app-guid", "space_guid": "space-guid", "app_annotations": {"a/b": "c"}}),
        ),
        (
            "key",
            json!({"credential_client_id": "cc_service_key_client", "space_guid": "space-guid"}),
        ),
    ] {
        let mut body = json!({"service_id": ALPHA, "plan_id": SMALL, "bind_resource": resource, "context": cf_context(None)});
        if id == "app" {
            body["app_guid"] = json!("app-guid");
        }
        let path = format!("{}?{LATER}", binding(id));
        let accepted = cf.put(&path, body.clone()).await.expect(202);
        let poll = format!(
            "{}/last_operation?operation={}&service_id={ALPHA}&plan_id={SMALL}",
            binding(id),
            accepted.operation()
        );
        assert_eq!(cf.get(&poll).await.expect(200).body["state"], "in progress");
        broker.run_until_idle().await;
        assert_eq!(cf.get(&poll).await.expect(200).body["state"], "succeeded");
        let got = cf.get(&binding(id)).await.expect(200);
        assert!(broker.opens(&got.body["credentials"]));
        for member in ["syslog_drain_url", "route_service_url", "volume_mounts"] {
            assert!(got.body.get(member).is_none(), "{member} fails the bind there");
        }
        assert!(
            got.body["endpoints"].is_array(),
            "2.15 is the first version that gets them"
        );
    }
    // Unbound with the flag, polled after it is gone.
    for id in ["app", "key"] {
        let gone = cf
            .delete(&format!("{}?{}", binding(id), delete_later()))
            .await
            .expect(202);
        broker.run_until_idle().await;
        let poll = format!("{}/last_operation?operation={}", binding(id), gone.operation());
        assert_eq!(cf.get(&poll).await.expect(200).body["state"], "succeeded");
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_cloud_foundry_keys_come_and_go_without_the_flag() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let cf = cloud_foundry(&broker);
    let body = json!({"service_id": ALPHA, "plan_id": SMALL, "context": cf_context(None),
        "bind_resource": {"credential_client_id": "cc_service_key_client"}});
    let made = cf.put(&binding("key"), body).await.expect(201);
    assert!(broker.opens(&made.body["credentials"]));
    assert_eq!(
        cf.delete(&format!("{}?{}", binding("key"), ids()))
            .await
            .expect(200)
            .text,
        "{}"
    );
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_never_make_cloud_foundry_mitigate_orphans() {
    let broker = TestBroker::held().await;
    let cf = cloud_foundry(&broker);
    // 422 with a word it does not know, 410 and 5xx would; the rest is a plain refusal.
    let harmless = |answer: Answer| {
        let known = [
            "AsyncRequired",
            "ConcurrencyError",
            "RequiresApp",
            "MaintenanceInfoConflict",
        ];
        let fine = [400, 404, 409].contains(&answer.status)
            || answer.status == 422 && known.contains(&answer.error());
        assert!(fine, "{} {}", answer.status, answer.text);
    };
    let good = json!({"service_id": ALPHA, "plan_id": SMALL, "organization_guid": "o", "space_guid": "s"});
    let with = |more: Value| {
        let mut body = good.clone();
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let later = format!("{}?{LATER}", instance("one"));
    harmless(cf.put(&instance("one"), good.clone()).await);
    for more in [
        json!({"service_id": "x"}),
        json!({"plan_id": "x"}),
        json!({"parameters": {"size": 99}}),
        json!({"parameters": 1}),
        json!({"maintenance_info": {"version": "0.0.1"}}),
    ] {
        harmless(cf.put(&later, with(more)).await);
    }
    cf.put(&later, good.clone()).await.expect(202);
    harmless(cf.put(&later, with(json!({"plan_id": MEDIUM}))).await);
    let bind = format!("{}?{LATER}", binding("a"));
    let small = json!({"service_id": ALPHA, "plan_id": SMALL});
    harmless(cf.put(&bind, small.clone()).await);
    broker.run_until_idle().await;
    for body in [
        json!({"service_id": ALPHA, "plan_id": MEDIUM}),
        json!({"service_id": ALPHA, "plan_id": SMALL, "parameters": {"role": "x"}}),
        json!({"predecessor_binding_id": "unknown"}),
        json!({}),
    ] {
        harmless(cf.put(&bind, body).await);
    }
    cf.put(&bind, small.clone()).await.expect(202);
    harmless(
        cf.put(
            &bind,
            json!({"service_id": ALPHA, "plan_id": SMALL, "parameters": {"role": "owner"}}),
        )
        .await,
    );
    harmless(cf.put(&binding("a"), small).await);
    broker.run_until_idle().await;
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_go_client_knows_errors_by_their_sentence() {
    let broker = TestBroker::held().await;
    let go = Client {
        broker: &broker,
        user: "cf",
        version: "2.14",
        identity: None,
    };
    let one = instance("one");
    let put = json!({"service_id": ALPHA, "plan_id": SMALL, "organization_guid": "o", "space_guid": "s"});
    let sentence = |answer: Answer| answer.body["description"].as_str().unwrap().to_owned();
    assert_eq!(
        sentence(go.put(&one, put.clone()).await.expect(422)),
        "This service plan requires client support for asynchronous service operations."
    );
    go.put(&format!("{one}?{LATER}"), put).await.expect(202);
    assert_eq!(
        sentence(
            go.put(&binding("a"), json!({"service_id": ALPHA, "plan_id": SMALL}))
                .await
                .expect(422)
        ),
        "The Service Broker does not support concurrent requests that mutate the same resource."
    );
    broker.run_until_idle().await;
    broker.deleted("one").await;
    broker.provisioned_as(BETA, BETA_SMALL, json!({})).await;
    assert_eq!(
        sentence(
            go.put(&binding("a"), json!({"service_id": BETA, "plan_id": BETA_SMALL}))
                .await
                .expect(422)
        ),
        "This service supports generation of credentials through binding an application only."
    );
    // It reads the body even of a 410.
    assert!(
        go.delete(&format!("{}?{}", binding("a"), ids()))
            .await
            .expect(410)
            .body
            .is_object()
    );
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_go_client_gets_no_202_without_asking_and_no_endpoints() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let go = Client {
        broker: &broker,
        user: "cf",
        version: "2.14",
        identity: None,
    };
    let made = go
        .put(&binding("a"), json!({"service_id": ALPHA, "plan_id": SMALL}))
        .await
        .expect(201);
    // Z-03(a): it would take text ports for a broken answer, which is a failed bind and an orphan.
    assert!(made.body.get("endpoints").is_none(), "{}", made.text);
    let got = go.get(&binding("a")).await.expect(200);
    assert!(got.body.get("endpoints").is_none());
    assert_eq!(got.body["credentials"], made.body["credentials"]);
    assert_eq!(
        go.delete(&format!("{}?{}", binding("a"), ids()))
            .await
            .expect(200)
            .text,
        "{}"
    );
    broker.deleted_and_end().await;
}

fn service_catalog(broker: &TestBroker) -> Client<'_> {
    let who = json!({"username": "system:serviceaccount:kube-service-catalog:x", "uid": "c2dde242-5ce4-11e7-988c-000c2946f14f",
        "groups": ["admin", "dev"], "extra": {"scopes": ["a", "b"]}});
    Client {
        broker,
        user: "k8s",
        version: "2.13",
        identity: Some(("kubernetes", who)),
    }
}

fn k8s_put() -> Value {
    json!({"service_id": ALPHA, "plan_id": SMALL, "organization_guid": "cluster-uid", "space_guid": "namespace-uid",
        "context": {"platform": "kubernetes", "namespace": "team-a", "clusterid": "cluster-uid", "instance_name": "db"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_catalog_binds_without_the_flag() {
    let broker = TestBroker::start().await;
    let k8s = service_catalog(&broker);
    let one = instance("one");
    let put = k8s.put(&format!("{one}?{LATER}"), k8s_put()).await.expect(202);
    let poll = format!(
        "{one}/last_operation?operation={}&plan_id={SMALL}&service_id={ALPHA}",
        put.operation()
    );
    assert_eq!(k8s.get(&poll).await.expect(200).body["state"], "in progress");
    broker.run_until_idle().await;
    assert_eq!(k8s.get(&poll).await.expect(200).body["state"], "succeeded");
    let bind = json!({"service_id": ALPHA, "plan_id": SMALL, "app_guid": "namespace-uid",
        "bind_resource": {"app_guid": "namespace-uid"},
        "context": {"platform": "kubernetes", "namespace": "team-a", "clusterid": "cluster-uid"}});
    let made = k8s.put(&binding("a"), bind.clone()).await.expect(201);
    let credentials = &made.body["credentials"];
    assert!(broker.opens(credentials));
    for key in credentials.as_object().unwrap().keys() {
        let good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        assert!(
            !key.is_empty() && key.chars().all(good),
            "{key} is no key of a Secret"
        );
    }
    assert_eq!(
        k8s.put(&binding("a"), bind).await.expect(200).body,
        made.body,
        "its retry"
    );
    k8s.delete(&format!("{}?{}", binding("a"), ids()))
        .await
        .expect(200);
    k8s.delete(&format!("{one}?{}", delete_later())).await.expect(202);
    broker.run_until_idle().await;
    k8s.delete(&format!("{one}?{}", delete_later())).await.expect(410);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_catalog_deletes_what_failed_and_makes_it_again_under_the_same_id() {
    let broker = TestBroker::start().await;
    let k8s = service_catalog(&broker);
    let one = instance("one");
    broker.world.plan(
        "apply",
        When::After,
        Effect::Fail(PortErrorKind::Invalid, "no room"),
        1,
    );
    let first = k8s.put(&format!("{one}?{LATER}"), k8s_put()).await.expect(202);
    broker.run_until_idle().await;
    let poll = |operation: &str| {
        format!("{one}/last_operation?operation={operation}&plan_id={SMALL}&service_id={ALPHA}")
    };
    assert_eq!(
        k8s.get(&poll(first.operation())).await.expect(200).body["state"],
        "failed"
    );
    k8s.delete(&format!("{one}?{}", delete_later())).await.expect(202);
    broker.run_until_idle().await;
    assert!(broker.world.instances.lock().unwrap().is_empty());
    let second = k8s.put(&format!("{one}?{LATER}"), k8s_put()).await.expect(202);
    assert_ne!(second.operation(), first.operation());
    broker.run_until_idle().await;
    assert_eq!(
        k8s.get(&poll(second.operation())).await.expect(200).body["state"],
        "succeeded"
    );
    k8s.get(&one).await.expect(200);
    k8s.delete(&format!("{one}?{}", delete_later())).await.expect(202);
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_will_stay_wrong_is_400_because_service_catalog_retries_the_rest_for_a_week() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let k8s = Client {
        user: "cf",
        ..service_catalog(&broker)
    };
    let later = |id: &str| format!("{}?{LATER}", instance(id));
    for more in [
        json!({"parameters": {"size": 99}}),
        json!({"plan_id": "x"}),
        json!({"service_id": "x"}),
    ] {
        let mut body = k8s_put();
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        k8s.put(&later("two"), body.clone()).await.expect(400);
        k8s.call("PATCH", &later("one"), Some(body)).await.expect(400);
    }
    k8s.put(
        &binding("a"),
        json!({"service_id": ALPHA, "plan_id": SMALL, "parameters": {"role": "x"}}),
    )
    .await
    .expect(400);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_manager_from_create_to_delete() {
    let broker = TestBroker::held().await;
    let one = instance("one");
    // Catalog as 2.14, calls of its own platform as 2.13; the operator's user stands in the identity.
    let who = json!({"user_id": "u-1", "zone": "t-1"});
    let reader = Client {
        broker: &broker,
        user: "cf",
        version: "2.14",
        identity: None,
    };
    let catalog = reader.get("/v2/catalog").await.expect(200).body;
    let alpha = catalog["services"]
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["id"] == ALPHA)
        .unwrap();
    assert_eq!(
        alpha["bindings_retrievable"], true,
        "else it never sends the flag for bindings"
    );
    assert_eq!(alpha["instances_retrievable"], true);
    let manager = Client {
        broker: &broker,
        user: "cf",
        version: "2.13",
        identity: Some(("service-manager", who)),
    };
    let context = json!({"platform": "service-manager", "tenant_id": "t-1", "subaccount_id": "t-1", "zone_id": "t-1",
        "instance_name": "db", "env_type": "sm", "signature": "MEUCIQDx"});
    let body = json!({"service_id": ALPHA, "plan_id": SMALL, "organization_guid": "-", "space_guid": "-", "context": context});
    let put = manager.put(&format!("{one}?{LATER}"), body).await.expect(202);
    let poll = async |operation: &str, plan: &str| {
        let path = format!("{one}/last_operation?operation={operation}&plan_id={plan}&service_id={ALPHA}");
        manager.get(&path).await.expect(200).body["state"].clone()
    };
    assert_eq!(poll(put.operation(), SMALL).await, "in progress");
    broker.run_until_idle().await;
    assert_eq!(poll(put.operation(), SMALL).await, "succeeded");
    assert_eq!(
        broker.row("one").await.context,
        Some(context.clone()),
        "X-06: stored as it came"
    );

    // Its update polls name the new plan.
    let update = json!({"service_id": ALPHA, "plan_id": MEDIUM, "context": context, "parameters": {},
        "previous_values": {"plan_id": SMALL, "service_id": ALPHA}});
    let update = manager
        .call("PATCH", &format!("{one}?{LATER}"), Some(update))
        .await
        .expect(202);
    assert_eq!(poll(update.operation(), MEDIUM).await, "in progress");
    broker.run_until_idle().await;
    assert_eq!(poll(update.operation(), MEDIUM).await, "succeeded");

    // With the flag, polled, then read: any error of LO-B would be final.
    let bind = json!({"service_id": ALPHA, "plan_id": MEDIUM, "bind_resource": {},
        "context": {"platform": "service-manager", "tenant_id": "t-1", "signature": "MEUCIQDx"}});
    let bound = manager
        .put(&format!("{}?{LATER}", binding("a")), bind)
        .await
        .expect(202);
    let last = format!(
        "{}/last_operation?operation={}&plan_id={MEDIUM}&service_id={ALPHA}",
        binding("a"),
        bound.operation()
    );
    assert_eq!(manager.get(&last).await.expect(200).body["state"], "in progress");
    broker.run_until_idle().await;
    assert_eq!(manager.get(&last).await.expect(200).body["state"], "succeeded");
    let got = manager.get(&binding("a")).await.expect(200);
    assert!(broker.opens(&got.body["credentials"]) && got.body.get("endpoints").is_none());
    let query = format!("{LATER}&service_id={ALPHA}&plan_id={MEDIUM}");
    let gone = manager
        .delete(&format!("{}?{query}", binding("a")))
        .await
        .expect(202);
    broker.run_until_idle().await;
    let last = format!("{}/last_operation?operation={}", binding("a"), gone.operation());
    assert_eq!(manager.get(&last).await.expect(200).body["state"], "succeeded");
    let gone = manager.delete(&format!("{one}?{query}")).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(poll(gone.operation(), MEDIUM).await, "succeeded");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bind_that_does_not_end_in_time_is_told_and_can_be_deleted() {
    let mut choices = Choices::default();
    choices.engine.sync_wait = std::time::Duration::from_millis(200);
    let broker = TestBroker::with(choices).await;
    broker.provisioned("one").await;
    let manager = Client {
        broker: &broker,
        user: "cf",
        version: "2.13",
        identity: None,
    };
    let body = json!({"service_id": ALPHA, "plan_id": SMALL});
    // The backend sleeps: the caller is told in time, and the orphan deletion that follows finds everything.
    broker.world.plan("issue", When::After, Effect::Hang, 1);
    let late = manager
        .put(&binding("a"), body.clone())
        .await
        .expect_error(503, "ServiceUnavailable");
    assert!(
        late.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u32>()
            .is_ok()
    );
    assert_eq!(broker.world.users().len(), 1);
    assert_eq!(
        manager
            .get(&format!("{}/last_operation", binding("a")))
            .await
            .expect(200)
            .body["state"],
        "in progress"
    );
    manager
        .delete(&format!("{}?{}", binding("a"), ids()))
        .await
        .expect(200);
    assert!(broker.world.users().is_empty());
    manager.put(&binding("a"), body).await.expect(201);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_identities_of_the_profile_and_of_others_are_accepted_everywhere() {
    let broker = TestBroker::start().await;
    for (n, (platform, who)) in [
        ("cloudfoundry", json!({"user_id": "u"})),
        ("cloudfoundry", json!({"user_id": "u", "more": {"x": [1, null]}})),
        (
            "kubernetes",
            json!({"username": "duke", "uid": "1", "groups": ["a"], "extra": {"k": ["v"]}}),
        ),
        (
            "kubernetes",
            json!({"username": "duke", "uid": "1", "groups": [], "extra": {}, "later": true}),
        ),
        ("service-manager", json!({})),
        ("osb-checker", json!({"name": "\u{fc}\u{1f600}"})),
    ]
    .into_iter()
    .enumerate()
    {
        let client = Client {
            broker: &broker,
            user: "cf",
            version: "2.17",
            identity: Some((platform, who)),
        };
        let id = instance(&format!("i{n}"));
        let bind = format!("{id}/service_bindings/b");
        client.get("/v2/catalog").await.expect(200);
        let body =
            json!({"service_id": ALPHA, "plan_id": SMALL, "organization_guid": "o", "space_guid": "s"});
        client.put(&format!("{id}?{LATER}"), body).await.expect(202);
        broker.run_until_idle().await;
        client.get(&format!("{id}/last_operation")).await.expect(200);
        client.get(&id).await.expect(200);
        client
            .call(
                "PATCH",
                &format!("{id}?{LATER}"),
                Some(json!({"service_id": ALPHA})),
            )
            .await
            .expect(200);
        client
            .put(&bind, json!({"service_id": ALPHA, "plan_id": SMALL}))
            .await
            .expect(201);
        client.get(&bind).await.expect(200);
        client.get(&format!("{bind}/last_operation")).await.expect(200);
        client.delete(&format!("{bind}?{}", ids())).await.expect(200);
        client
            .delete(&format!("{id}?{}", delete_later()))
            .await
            .expect(202);
        broker.run_until_idle().await;
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x02_a_header_and_a_context_of_different_platforms_are_not_refused() {
    let broker = TestBroker::start().await;
    // H-07: the platform's fault; logged and served.
    let client = service_catalog(&broker);
    let client = Client { user: "cf", ..client };
    let body = json!({"service_id": ALPHA, "plan_id": SMALL, "organization_guid": "o", "space_guid": "s",
        "context": cf_context(Some("db"))});
    client
        .put(&format!("{}?{LATER}", instance("one")), body)
        .await
        .expect(202);
    broker.run_until_idle().await;
    let bind = json!({"service_id": ALPHA, "plan_id": SMALL, "context": cf_context(None)});
    client.put(&binding("a"), bind).await.expect(201);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x03_x04_x06_contexts_are_stored_whole_and_never_refused() {
    let broker = TestBroker::start().await;
    let contexts = [
        cf_context(Some("db")),
        json!({"platform": "kubernetes", "namespace": "n", "clusterid": "c", "instance_name": "db",
            "namespace_annotations": {"a": "b"}, "instance_annotations": {}}),
        json!({"platform": "service-manager", "tenant_id": "t", "signature": "x"}),
        json!({"platform": "osb-checker"}),
        json!({"platform": "unheard-of", "deep": {"list": [1, {"x": null}]}}),
        json!({"platform": 7}),
        json!({"no_platform": true}),
        json!({}),
    ];
    for context in &contexts {
        let body = json!({"service_id": ALPHA, "plan_id": SMALL, "organization_guid": "o", "space_guid": "s", "context": context});
        broker
            .put(&format!("{}?{LATER}", instance("one")), &body)
            .await
            .expect(202);
        broker.run_until_idle().await;
        assert_eq!(broker.row("one").await.context.as_ref(), Some(context));
        // Names and clusters may change over time: the same request with another context is the same request (P-06).
        let mut renamed = body.clone();
        renamed["context"] = json!({"platform": "cloudfoundry", "space_name": "new"});
        broker
            .put(&format!("{}?{LATER}", instance("one")), &renamed)
            .await
            .expect(200);
        let bind = json!({"service_id": ALPHA, "plan_id": SMALL, "context": context});
        broker.put(&binding("a"), &bind).await.expect(201);
        let patch =
            json!({"service_id": ALPHA, "context": {"platform": "kubernetes", "clusterid": "another"}});
        broker
            .patch(&format!("{}?{LATER}", instance("one")), &patch)
            .await
            .expect(200);
        assert_eq!(broker.row("one").await.context.unwrap()["clusterid"], "another");
        broker.deleted("one").await;
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x05_bind_resources_of_the_profile_are_kept_whole() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let resource = json!({"app_guid": "a", "space_guid": "s", "route": "https://r.example.test/x",
        "app_annotations": {"prefix/name": "v"}, "credential_client_id": "c", "backup_agent": true});
    let body = json!({"service_id": ALPHA, "plan_id": SMALL, "bind_resource": resource});
    broker.put(&binding("a"), &body).await.expect(201);
    assert_eq!(
        broker.binding_row("a").await.attributes.bind_resource,
        Some(resource.clone())
    );
    // Annotations are part of it: B-05 compares the whole.
    let mut other = body.clone();
    other["bind_resource"]["app_annotations"] = json!({});
    broker
        .put(&binding("a"), &other)
        .await
        .expect_error(409, "Conflict");
    broker.put(&binding("a"), &body).await.expect(200);
    broker.deleted_and_end().await;
}
