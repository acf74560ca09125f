//! The order of checks with requests that break several rules at once, and Z: answers the specification leaves open.

use super::common::{
    binding, delete, flagged, instance, last, merged, provision, provision_plan, request_of, told, with_http,
};
use crate::http::wire::{VERSION, right, serve};
use crate::support::broker::{Answer, TestBroker};
use crate::support::catalog::{self, ALPHA, BARE, BETA, BETA_SMALL, MEDIUM, SHORT, SMALL, ids};
use crate::support::world::{Effect, When};
use chandler::http::{DeletedAnswer, Settings};
use chandler::ports::PortErrorKind;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_of_size_credentials_version_route_and_shape() {
    let (broker, server) = serve(Settings {
        max_body: 100,
        ..Settings::default()
    })
    .await;
    let authorization = right();
    let auth = ("Authorization", authorization.as_str());
    let wrong = ("X-Broker-API-Version", "1.0");
    let identity = ("X-Broker-API-Originating-Identity", "nonsense");
    let large = "x".repeat(101);
    let i = instance("i");
    for (headers, method, target, body, status) in [
        // Everything is wrong, then one thing less each time.
        (vec![wrong, identity], "POST", "/v2/nothing", large.as_str(), 413),
        (vec![wrong, identity], "POST", "/v2/nothing", "{", 401),
        (vec![auth, wrong, identity], "POST", "/v2/nothing", "{", 412),
        (vec![auth, VERSION, identity], "POST", "/v2/nothing", "{", 404),
        (vec![auth, VERSION, identity], "POST", i.as_str(), "{", 405),
        (vec![auth, VERSION, identity], "PUT", i.as_str(), "{", 400),
        (vec![auth, VERSION], "PUT", i.as_str(), "{", 400),
    ] {
        let reply = server.ask(method, target, &headers, body).await;
        assert_eq!(reply.status, status, "{method} {target}: {reply:?}");
        reply.refusal();
    }
    broker.end().await;
}

fn names(answer: Answer, status: u16, what: &str) {
    let text = answer.expect(status).text;
    assert!(text.contains(what), "{what}: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_for_put_instance() {
    let broker = TestBroker::start().await;
    let (i, n) = (instance("i"), instance("n"));
    broker.provisioned("i").await;
    let bad = json!({"maintenance_info": {"version": "9.0.0"}, "parameters": {"size": 99}});
    // 5 before 6: the missing member, not the unknown service.
    let body = provision(json!({"service_id": "unknown", "plan_id": null}));
    names(broker.put(&n, &body).await, 400, "plan_id");
    // 6 before 7: the unknown plan, though the id is taken.
    names(
        broker.put(&i, &provision(json!({"plan_id": "unknown"}))).await,
        400,
        "plan_id",
    );
    // 7 before 8, 9, 10: taken, though there is no flag and all else is wrong.
    broker
        .put(&i, &provision(bad.clone()))
        .await
        .expect_error(409, "Conflict");
    broker
        .put(&i, &provision(json!({"maintenance_info": {"version": "9.0.0"}})))
        .await
        .expect(200);
    // 8 before 9 before 10.
    broker
        .put(&n, &provision(bad.clone()))
        .await
        .expect_error(422, "AsyncRequired");
    broker
        .put(&flagged(&n), &provision(bad))
        .await
        .expect_error(422, "MaintenanceInfoConflict");
    // 8, 9, 10 before 11.
    broker.delete(&delete(&i)).await.expect(202);
    broker
        .put(&i, &catalog::provision_body())
        .await
        .expect_error(422, "AsyncRequired");
    let body = provision(json!({"maintenance_info": {"version": "9.0.0"}}));
    broker
        .put(&flagged(&i), &body)
        .await
        .expect_error(422, "MaintenanceInfoConflict");
    names(
        broker
            .put(&flagged(&i), &provision(json!({"parameters": {"size": 99}})))
            .await,
        400,
        "parameters.size",
    );
    broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_for_patch_instance() {
    let broker = TestBroker::start().await;
    let (i, n) = (instance("i"), instance("n"));
    broker.provisioned("i").await;
    let alpha = |members: Value| merged(json!({"service_id": ALPHA}), members);
    // Shape before existence before the catalog.
    names(
        broker.patch(&n, &json!({"plan_id": SMALL})).await,
        400,
        "service_id",
    );
    broker
        .patch(&n, &json!({"service_id": "unknown"}))
        .await
        .expect_error(404, "NotFound");
    names(
        broker
            .patch(&i, &json!({"service_id": "unknown", "parameters": {"size": 99}}))
            .await,
        400,
        "service_id",
    );
    names(
        broker.patch(&i, &alpha(json!({"plan_id": "unknown"}))).await,
        400,
        "plan_id",
    );
    names(
        broker.patch(&i, &json!({"service_id": BETA})).await,
        400,
        "service_id",
    );
    // 8 before 9 before 10.
    let bad = json!({"plan_id": BARE, "maintenance_info": {"version": "9.0.0"}, "parameters": {"size": 99}});
    broker
        .patch(&i, &alpha(bad.clone()))
        .await
        .expect_error(422, "AsyncRequired");
    broker
        .patch(&flagged(&i), &alpha(bad.clone()))
        .await
        .expect_error(422, "PlanChangeNotSupported");
    broker
        .patch(&flagged(&i), &alpha(merged(bad, json!({"plan_id": MEDIUM}))))
        .await
        .expect_error(422, "MaintenanceInfoConflict");
    // 9 and 10 before 11; 7 before 8 to 11.
    let change = alpha(json!({"plan_id": MEDIUM}));
    broker.patch(&flagged(&i), &change).await.expect(202);
    broker
        .patch(&flagged(&i), &alpha(json!({"plan_id": BARE})))
        .await
        .expect_error(422, "PlanChangeNotSupported");
    names(
        broker
            .patch(&flagged(&i), &alpha(json!({"parameters": {"size": 99}})))
            .await,
        400,
        "parameters.size",
    );
    broker
        .patch(&flagged(&i), &alpha(json!({"plan_id": SHORT})))
        .await
        .expect_error(422, "ConcurrencyError");
    broker.patch(&flagged(&i), &change).await.expect(202);
    broker.patch(&i, &change).await.expect_error(422, "AsyncRequired");
    broker.run_until_idle().await;
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_for_put_binding() {
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    broker.bound("i", "b").await;
    let of = provision(json!({"service_id": BETA, "plan_id": BETA_SMALL}));
    broker.put(&flagged(&instance("beta")), &of).await.expect(202);
    broker.run_until_idle().await;
    let alpha = |members: Value| merged(catalog::bind_body(), members);
    // Shape before existence before the catalog.
    names(
        broker
            .put(&binding("n", "b"), &json!({"service_id": "unknown"}))
            .await,
        400,
        "plan_id",
    );
    broker
        .put(&binding("n", "b"), &alpha(json!({"service_id": "unknown"})))
        .await
        .expect_error(404, "NotFound");
    names(
        broker
            .put(&binding("i", "b"), &alpha(json!({"plan_id": "unknown"})))
            .await,
        400,
        "plan_id",
    );
    // 7 before "does not fit the instance" before 10.
    let misfit = alpha(json!({"plan_id": MEDIUM, "parameters": {"role": "king"}}));
    broker
        .put(&binding("i", "b"), &misfit)
        .await
        .expect_error(409, "Conflict");
    names(broker.put(&binding("i", "n"), &misfit).await, 400, "plan_id");
    // 9 before 10.
    let bad = json!({"service_id": BETA, "plan_id": BETA_SMALL, "parameters": {"role": "king"}});
    broker
        .put(&binding("beta", "b"), &bad)
        .await
        .expect_error(422, "RequiresApp");
    // 10 before 11.
    broker
        .patch(
            &flagged(&instance("i")),
            &json!({"service_id": ALPHA, "plan_id": MEDIUM}),
        )
        .await
        .expect(202);
    let bad = alpha(json!({"parameters": {"role": "king"}}));
    names(broker.put(&binding("i", "n"), &bad).await, 400, "parameters.role");
    broker
        .put(&binding("i", "n"), &catalog::bind_body())
        .await
        .expect_error(422, "ConcurrencyError");
    broker
        .put(&binding("i", "b"), &catalog::bind_body())
        .await
        .expect(200);
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_for_both_deletes() {
    let broker = super::common::by_hand().await;
    let (i, n) = (instance("i"), instance("n"));
    broker.provisioned("i").await;
    // DELETE instance: missing ids, then the flag, then existence, then concurrency.
    broker.delete(&n).await.expect_error(400, "BadRequest");
    broker
        .delete(&format!("{n}?accepts_incomplete=true&service_id={ALPHA}"))
        .await
        .expect_error(400, "BadRequest");
    broker
        .delete(&format!("{n}?{}", ids()))
        .await
        .expect_error(422, "AsyncRequired");
    broker.delete(&delete(&n)).await.expect_error(410, "Gone");
    let b = binding("i", "b");
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    broker.delete(&flagged(&i)).await.expect_error(400, "BadRequest");
    broker
        .delete(&format!("{i}?{}", ids()))
        .await
        .expect_error(422, "AsyncRequired");
    broker
        .delete(&delete(&i))
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    // DELETE binding: existence, then missing ids, then concurrency.
    broker.delete(&binding("i", "n")).await.expect_error(410, "Gone");
    broker.delete(&binding("n", "b")).await.expect_error(410, "Gone");
    broker
        .patch(&flagged(&i), &json!({"service_id": ALPHA, "plan_id": MEDIUM}))
        .await
        .expect(202);
    broker.delete(&binding("i", "n")).await.expect_error(410, "Gone");
    broker.delete(&b).await.expect_error(400, "BadRequest");
    broker
        .delete(&delete(&b))
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn z01_finished_delete_answers_succeeded_or_410_by_setting_and_never_404() {
    for (setting, status) in [(DeletedAnswer::Succeeded, 200), (DeletedAnswer::Gone, 410)] {
        let broker = with_http(|http| http.deleted_answer = setting).await;
        let (i, b) = (instance("i"), binding("i", "b"));
        broker.provisioned("i").await;
        broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
        broker.run_until_idle().await;
        for path in [b, i] {
            let operation = broker
                .delete(&delete(&path))
                .await
                .expect(202)
                .operation()
                .to_owned();
            broker.run_until_idle().await;
            for query in [
                format!("?operation={operation}"),
                String::new(),
                format!("?operation={operation}&{}", ids()),
            ] {
                let answer = broker
                    .get(&format!("{}{query}", last(&path)))
                    .await
                    .expect(status);
                if status == 200 {
                    assert_eq!(answer.body["state"], "succeeded");
                } else {
                    assert_eq!(answer.error(), "Gone");
                }
            }
        }
        broker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn z02_every_body_is_an_object_without_nulls() {
    let broker = TestBroker::start().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    // The harness refuses any JSON answer that is no object; what is left is nulls and emptiness.
    let mut seen = vec![
        broker.put(&flagged(&i), &catalog::provision_body()).await,
        broker.get(&last(&i)).await,
    ];
    broker.run_until_idle().await;
    seen.push(broker.put(&i, &catalog::provision_body()).await);
    seen.push(broker.get(&i).await);
    seen.push(broker.patch(&flagged(&i), &json!({"service_id": ALPHA})).await);
    seen.push(broker.put(&b, &catalog::bind_body()).await);
    seen.push(broker.get(&b).await);
    seen.push(broker.get(&last(&b)).await);
    seen.push(broker.delete(&format!("{b}?{}", ids())).await);
    seen.push(broker.delete(&format!("{b}?{}", ids())).await);
    seen.push(broker.delete(&delete(&i)).await);
    broker.run_until_idle().await;
    seen.push(broker.delete(&delete(&i)).await);
    seen.push(broker.get(&last(&i)).await);
    seen.push(broker.get("/v2/catalog").await);
    for answer in seen {
        assert!(
            answer.body.is_object() && answer.headers["content-type"] == "application/json",
            "{}",
            answer.text
        );
        let members = answer.body.as_object().unwrap();
        assert!(members.values().all(|v| !v.is_null()), "{}", answer.text);
        // Authors may want a null inside credentials; nowhere else is one.
        let rest: Vec<_> = members
            .iter()
            .filter(|(name, _)| *name != "credentials")
            .collect();
        assert!(!json!(rest).to_string().contains(":null"), "{}", answer.text);
    }
    broker.end().await;
}

/// A broker with an instance of `alpha/short`, a binding of it, and an update that failed.
async fn for_versions(strict: bool) -> TestBroker {
    let broker = with_http(|http| http.strict_versions = strict).await;
    broker
        .put(&flagged(&instance("i")), &provision_plan(SHORT))
        .await
        .expect(202);
    broker.run_until_idle().await;
    broker
        .put(
            &binding("i", "b"),
            &json!({"service_id": ALPHA, "plan_id": SHORT}),
        )
        .await
        .expect(201);
    broker.world.plan(
        "apply",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "No."),
        1,
    );
    broker
        .patch(
            &flagged(&instance("i")),
            &json!({"service_id": ALPHA, "parameters": {"size": 8}}),
        )
        .await
        .expect(202);
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &instance("i")).await["state"], "failed");
    broker
}

async fn announcing(broker: &TestBroker, minor: u32, path: &str) -> Value {
    let request = request_of(broker, "cf", "GET", path).header("X-Broker-API-Version", format!("2.{minor}"));
    broker.send(request).await.expect(200).body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn z03_a_endpoints_only_from_2_15_and_the_rest_always() {
    let broker = for_versions(false).await;
    let newest = announcing(&broker, 17, "/v2/catalog").await;
    for minor in [13, 14, 15, 16, 17, 99] {
        let bound = announcing(&broker, minor, &binding("i", "b")).await;
        assert_eq!(bound.get("endpoints").is_some(), minor >= 15, "2.{minor}");
        assert!(bound["credentials"].is_object());
        assert!(bound["metadata"]["expires_at"].is_string() && bound["metadata"]["renew_before"].is_string());
        assert_eq!(announcing(&broker, minor, "/v2/catalog").await, newest);
        let fetched = announcing(&broker, minor, &instance("i")).await;
        assert!(fetched["maintenance_info"].is_object() && fetched["metadata"].is_object());
        assert_eq!(
            announcing(&broker, minor, &last(&instance("i"))).await["instance_usable"],
            true
        );
    }
    // The answer to PUT as well.
    let put = request_of(&broker, "cf", "PUT", &binding("i", "b")).header("X-Broker-API-Version", "2.14");
    let answer = broker
        .send(put.json(&json!({"service_id": ALPHA, "plan_id": SHORT})))
        .await
        .expect(200);
    assert!(answer.body.get("endpoints").is_none());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn z03_b_strict_answers_hold_nothing_newer_than_announced() {
    let broker = for_versions(true).await;
    for minor in [13, 14, 15, 16, 17, 99] {
        let from = |since: u32, object: &Value, name: &str| {
            assert_eq!(
                object.get(name).is_some(),
                minor >= since,
                "2.{minor}: {name} in {object}"
            );
        };
        let catalog = announcing(&broker, minor, "/v2/catalog").await;
        for offering in catalog["services"].as_array().unwrap() {
            from(14, offering, "instances_retrievable");
            from(14, offering, "bindings_retrievable");
            from(15, offering, "allow_context_updates");
            from(0, offering, "plan_updateable");
            from(0, offering, "metadata");
            for plan in offering["plans"].as_array().unwrap() {
                from(15, plan, "maintenance_info");
                from(15, plan, "maximum_polling_duration");
                from(15, plan, "plan_updateable");
                from(17, plan, "binding_rotatable");
                from(0, plan, "schemas");
                from(0, plan, "bindable");
                from(0, plan, "free");
            }
        }
        let fetched = announcing(&broker, minor, &instance("i")).await;
        from(15, &fetched, "maintenance_info");
        from(16, &fetched, "metadata");
        let bound = announcing(&broker, minor, &binding("i", "b")).await;
        from(15, &bound, "endpoints");
        from(16, &bound, "metadata");
        from(0, &bound, "credentials");
        if minor >= 16 {
            from(16, &bound["metadata"], "expires_at");
            from(17, &bound["metadata"], "renew_before");
        }
        from(
            16,
            &announcing(&broker, minor, &last(&instance("i"))).await,
            "instance_usable",
        );
    }
    // Refusals too.
    let patch = |minor: u32| {
        request_of(&broker, "cf", "PATCH", &flagged(&instance("i")))
            .header("X-Broker-API-Version", format!("2.{minor}"))
            .json(&json!({"service_id": ALPHA, "plan_id": BARE}))
    };
    let (old, new) = (
        broker.send(patch(15)).await.expect(422),
        broker.send(patch(16)).await.expect(422),
    );
    assert!(
        old.body.get("update_repeatable").is_none() && new.body["update_repeatable"] == false,
        "{}",
        new.text
    );
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn z04_repeated_query_keys_take_the_first() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    broker.provisioned("i").await;
    let wrong_first =
        format!("{i}?accepts_incomplete=true&service_id=wrong&service_id={ALPHA}&plan_id={SMALL}");
    broker.delete(&wrong_first).await.expect_error(400, "BadRequest");
    let path = format!("{i}?accepts_incomplete=false&accepts_incomplete=true&{}", ids());
    broker.delete(&path).await.expect_error(422, "AsyncRequired");
    let path = format!(
        "{i}?accepts_incomplete=true&{}&service_id=wrong&plan_id=wrong&accepts_incomplete=false",
        ids()
    );
    let operation = broker.delete(&path).await.expect(202).operation().to_owned();
    let poll = format!(
        "{}?operation={operation}&operation=other&service_id=a&service_id=b",
        last(&i)
    );
    broker.get(&poll).await.expect(200);
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn z05_where_the_openapi_document_says_less_the_specification_wins() {
    let broker = TestBroker::start().await;
    let catalog = broker.get("/v2/catalog").await.expect(200).body;
    for name in [
        "instances_retrievable",
        "bindings_retrievable",
        "allow_context_updates",
    ] {
        assert!(catalog["services"][0][name].is_boolean());
    }
    assert!(catalog["services"][0].get("binding_rotatable").is_none());
    broker.provisioned("i").await;
    let patch = json!({"service_id": ALPHA, "plan_id": MEDIUM, "maintenance_info": {"version": "1.1.0"},
        "previous_values": {"plan_id": SMALL, "maintenance_info": {"version": "1.0.0"}}});
    broker.patch(&flagged(&instance("i")), &patch).await.expect(202);
    broker
        .get(&instance("i"))
        .await
        .expect_error(422, "ConcurrencyError");
    let poll = broker
        .request("GET", &last(&instance("i")))
        .header("X-Broker-API-Originating-Identity", "cloudfoundry e30=")
        .header("X-Broker-API-Request-Identity", "r1");
    assert_eq!(
        broker.send(poll).await.expect(200).headers["x-broker-api-request-identity"],
        "r1"
    );
    broker.run_until_idle().await;
    broker
        .put(
            &binding("i", "a"),
            &json!({"service_id": ALPHA, "plan_id": MEDIUM}),
        )
        .await
        .expect(201);
    broker
        .put(&binding("i", "b"), &json!({"predecessor_binding_id": "a"}))
        .await
        .expect(201);
    broker.deleted("i").await;
    broker.end().await;
}
