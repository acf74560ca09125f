//! E: statuses, error bodies, content types, unknown and null members, limits.

use super::common::{binding, delete, everything, flagged, instance, last, merged, provision, with_http};
use crate::support::broker::{Answer, Choices, TestBroker};
use crate::support::catalog::{self, ALPHA, BARE, BETA, BETA_SMALL, ELSEWHERE, MEDIUM, SMALL, ids};
use crate::support::world::{Effect, When};
use chandler::domain::error::{ASYNC_REQUIRED, CONCURRENCY_ERROR, REQUIRES_APP};
use chandler::ports::PortErrorKind;
use serde_json::{Value, json};

/// E-02 for one answer, whatever its status.
fn well_formed(answer: &Answer) {
    assert_eq!(
        answer.headers["content-type"], "application/json",
        "E-06: {}",
        answer.text
    );
    let word = answer.error();
    let camel =
        word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphanumeric());
    assert!(camel, "E-02: {}", answer.text);
    assert!(
        answer.body["description"].as_str().is_some_and(|d| d.len() > 10),
        "E-02: {}",
        answer.text
    );
    for (name, value) in answer.body.as_object().unwrap() {
        assert!(!value.is_null(), "Z-02: {name}");
        let known = ["error", "description", "instance_usable", "update_repeatable"].contains(&name.as_str());
        assert!(known, "E-09: {name}");
    }
}

/// Requests a live instance `i` with a live binding `b` refuses, with the status and the word of the refusal.
fn refused() -> Vec<(&'static str, String, Option<Value>, u16, &'static str)> {
    let (i, b) = (instance("i"), binding("i", "b"));
    let new = instance("new");
    let put = |members: Value| Some(provision(members));
    let alpha = |members: Value| Some(merged(json!({"service_id": ALPHA}), members));
    vec![
        ("PUT", flagged(&new), Some(json!({})), 400, "BadRequest"),
        (
            "PUT",
            flagged(&new),
            put(json!({"service_id": null})),
            400,
            "BadRequest",
        ),
        (
            "PUT",
            flagged(&new),
            put(json!({"service_id": "unknown"})),
            400,
            "BadRequest",
        ),
        (
            "PUT",
            flagged(&new),
            put(json!({"plan_id": BETA_SMALL})),
            400,
            "BadRequest",
        ),
        (
            "PUT",
            flagged(&new),
            put(json!({"plan_id": ELSEWHERE})),
            400,
            "BadRequest",
        ),
        (
            "PUT",
            flagged(&new),
            put(json!({"parameters": {"size": 99}})),
            400,
            "BadRequest",
        ),
        (
            "PUT",
            flagged(&new),
            put(json!({"parameters": []})),
            400,
            "BadRequest",
        ),
        (
            "PUT",
            flagged(&new),
            put(json!({"maintenance_info": {"version": "9.0.0"}})),
            422,
            "MaintenanceInfoConflict",
        ),
        ("PUT", new, put(json!({})), 422, "AsyncRequired"),
        (
            "PUT",
            flagged(&i),
            put(json!({"space_guid": "other"})),
            409,
            "Conflict",
        ),
        ("PATCH", i.clone(), alpha(json!({})), 422, "AsyncRequired"),
        ("PATCH", flagged(&i), Some(json!({})), 400, "BadRequest"),
        (
            "PATCH",
            flagged(&i),
            Some(json!({"service_id": BETA})),
            400,
            "BadRequest",
        ),
        (
            "PATCH",
            flagged(&i),
            alpha(json!({"plan_id": "unknown"})),
            400,
            "BadRequest",
        ),
        (
            "PATCH",
            flagged(&i),
            alpha(json!({"plan_id": BARE})),
            422,
            "PlanChangeNotSupported",
        ),
        (
            "PATCH",
            flagged(&i),
            alpha(json!({"parameters": {"size": "x"}})),
            400,
            "BadRequest",
        ),
        (
            "PATCH",
            flagged(&i),
            alpha(json!({"plan_id": MEDIUM, "maintenance_info": {"version": "1.0.0"}})),
            422,
            "MaintenanceInfoConflict",
        ),
        (
            "PATCH",
            flagged(&instance("unknown")),
            alpha(json!({})),
            404,
            "NotFound",
        ),
        (
            "DELETE",
            format!("{i}?accepts_incomplete=true"),
            None,
            400,
            "BadRequest",
        ),
        ("DELETE", format!("{i}?{}", ids()), None, 422, "AsyncRequired"),
        ("DELETE", delete(&instance("unknown")), None, 410, "Gone"),
        (
            "PUT",
            b.clone(),
            alpha(json!({"plan_id": SMALL, "parameters": {"role": "readonly"}})),
            409,
            "Conflict",
        ),
        ("PUT", binding("i", "new"), alpha(json!({})), 400, "BadRequest"),
        (
            "PUT",
            binding("i", "new"),
            alpha(json!({"plan_id": MEDIUM})),
            400,
            "BadRequest",
        ),
        (
            "PUT",
            binding("i", "new"),
            alpha(json!({"plan_id": SMALL, "parameters": {"role": "king"}})),
            400,
            "BadRequest",
        ),
        (
            "PUT",
            binding("unknown", "b"),
            Some(catalog::bind_body()),
            404,
            "NotFound",
        ),
        ("DELETE", b.clone(), None, 400, "BadRequest"),
        ("DELETE", delete(&binding("i", "unknown")), None, 410, "Gone"),
        ("GET", instance("unknown"), None, 404, "NotFound"),
        ("GET", binding("i", "unknown"), None, 404, "NotFound"),
        ("GET", last(&instance("unknown")), None, 404, "NotFound"),
        ("GET", last(&binding("i", "unknown")), None, 404, "NotFound"),
        ("GET", "/v2/nothing".into(), None, 404, "NotFound"),
        ("POST", i, None, 405, "MethodNotAllowed"),
    ]
}

async fn with_instance_and_binding() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    broker.bound("i", "b").await;
    broker
}

async fn ask(broker: &TestBroker, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let mut request = broker.request(method, path);
    if let Some(body) = body {
        request = request.json(body);
    }
    broker.send(request).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e01_e02_each_situation_has_its_status_and_a_body_with_both_members() {
    let broker = with_instance_and_binding().await;
    for (method, path, body, status, word) in refused() {
        let answer = ask(&broker, method, &path, body.as_ref()).await;
        assert_eq!(
            (answer.status, answer.error()),
            (status, word),
            "{method} {path} {body:?}: {}",
            answer.text
        );
        well_formed(&answer);
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e02_errors_of_the_broker_itself_have_a_body_without_insides() {
    let broker = with_instance_and_binding().await;
    broker.world.plan(
        "issue",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "The server said no."),
        1,
    );
    let answer = broker
        .put(&binding("i", "c"), &catalog::bind_body())
        .await
        .expect_error(500, "InternalError");
    well_formed(&answer);
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e03_reserved_codes_come_with_422_and_the_sentences_clients_compare() {
    // Byte for byte what Go clients look for.
    assert_eq!(
        ASYNC_REQUIRED,
        "This service plan requires client support for asynchronous service operations."
    );
    assert_eq!(
        REQUIRES_APP,
        "This service supports generation of credentials through binding an application only."
    );
    assert_eq!(
        CONCURRENCY_ERROR,
        "The Service Broker does not support concurrent requests that mutate the same resource."
    );
    let broker = TestBroker::start().await;
    let sentence = |answer: Answer, word: &str, sentence: &str| {
        assert_eq!(answer.expect_error(422, word).body["description"], sentence);
    };
    let body = provision(json!({"service_id": BETA, "plan_id": BETA_SMALL}));
    sentence(
        broker.put(&instance("i"), &body).await,
        "AsyncRequired",
        ASYNC_REQUIRED,
    );
    broker.put(&flagged(&instance("i")), &body).await.expect(202);
    let bind = json!({"service_id": BETA, "plan_id": BETA_SMALL, "bind_resource": {"app_guid": "a"}});
    sentence(
        broker.put(&binding("i", "b"), &bind).await,
        "ConcurrencyError",
        CONCURRENCY_ERROR,
    );
    broker.run_until_idle().await;
    let without_app = merged(bind, json!({"bind_resource": null}));
    sentence(
        broker.put(&binding("i", "b"), &without_app).await,
        "RequiresApp",
        REQUIRES_APP,
    );
    let wrong = merged(body, json!({"maintenance_info": {"version": "7.0.0"}}));
    let answer = broker
        .put(&flagged(&instance("j")), &wrong)
        .await
        .expect_error(422, "MaintenanceInfoConflict");
    assert!(
        answer.body["description"].as_str().unwrap().contains("1.0.0"),
        "{}",
        answer.text
    );
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e04_flags_only_on_failed_updates_and_deprovisions() {
    let broker = with_instance_and_binding().await;
    for (method, path, body, ..) in refused() {
        let answer = ask(&broker, method, &path, body.as_ref()).await;
        assert!(
            answer.body.get("update_repeatable").is_none() || method == "PATCH",
            "{method} {path}: {}",
            answer.text
        );
        let may = method == "PATCH" || (method == "DELETE" && !path.contains("service_bindings"));
        assert!(
            answer.body.get("instance_usable").is_none() || may,
            "{method} {path}: {}",
            answer.text
        );
    }
    // A failed provision and a failed bind carry neither, though the instance does not work.
    *broker.world.refuse_ready.lock().unwrap() = Some("The disk is full.".into());
    broker
        .put(&flagged(&instance("f")), &catalog::provision_body())
        .await
        .expect(202);
    broker.run_until_idle().await;
    *broker.world.refuse_ready.lock().unwrap() = None;
    broker.world.plan(
        "issue",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "No."),
        1,
    );
    broker
        .put(&flagged(&binding("i", "f")), &catalog::bind_body())
        .await
        .expect(202);
    broker.run_until_idle().await;
    for path in [instance("f"), binding("i", "f")] {
        let told = broker.get(&last(&path)).await.expect(200).body;
        assert_eq!(told["state"], "failed");
        assert!(
            told.get("instance_usable").is_none() && told.get("update_repeatable").is_none(),
            "{told}"
        );
    }
    // A failed deprovision says `instance_usable` and nothing of updates.
    broker.world.plan(
        "remove",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "No."),
        1,
    );
    broker.delete(&delete(&instance("f"))).await.expect(202);
    broker.run_until_idle().await;
    let told = broker.get(&last(&instance("f"))).await.expect(200).body;
    assert_eq!(
        (&told["state"], &told["instance_usable"]),
        (&json!("failed"), &json!(false))
    );
    assert!(told.get("update_repeatable").is_none(), "{told}");
    broker.deleted("f").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e05_a_4xx_changes_nothing() {
    let broker = with_instance_and_binding().await;
    let before = everything(&broker).await;
    for (method, path, body, ..) in refused() {
        let answer = ask(&broker, method, &path, body.as_ref()).await;
        assert!((400..500).contains(&answer.status));
        assert_eq!(everything(&broker).await, before, "{method} {path} {body:?}");
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e06_json_both_ways_and_a_missing_type_is_processed() {
    let broker = TestBroker::start().await;
    let untyped = broker
        .request("PUT", &flagged(&instance("i")))
        .body(catalog::provision_body().to_string());
    let answer = broker.send(untyped).await.expect(202);
    assert_eq!(answer.headers["content-type"], "application/json");
    broker.run_until_idle().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    broker.bound("i", "b").await;
    for path in ["/v2/catalog", &i, &b, &last(&i), &last(&b)] {
        assert_eq!(
            broker.get(path).await.expect(200).headers["content-type"],
            "application/json",
            "{path}"
        );
    }
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e07_wrong_types_and_unreadable_bodies_are_400() {
    let broker = TestBroker::start().await;
    let good = catalog::provision_body().to_string();
    for content_type in [
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "application/jsonp",
    ] {
        let request = broker
            .request("PUT", &flagged(&instance("i")))
            .header("Content-Type", content_type)
            .body(good.clone());
        broker.send(request).await.expect_error(400, "BadRequest");
    }
    for bad in [
        "{",
        "",
        "null",
        "[]",
        "\"text\"",
        "{\"service_id\":}",
        "\u{feff}{}",
        "{}{}",
        "{'a':1}",
    ] {
        for (method, path) in [
            ("PUT", instance("i")),
            ("PATCH", instance("i")),
            ("PUT", binding("i", "b")),
        ] {
            let request = broker
                .request(method, &flagged(&path))
                .header("Content-Type", "application/json")
                .body(bad);
            broker.send(request).await.expect_error(400, "BadRequest");
        }
    }
    let utf8 = broker
        .request("PUT", &flagged(&instance("i")))
        .header("Content-Type", "application/json; charset=UTF-8")
        .body(good);
    broker.send(utf8).await.expect(202);
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e08_unknown_members_anywhere_are_ignored() {
    let broker = TestBroker::start().await;
    let more = json!({"surprise": {"a": [1, null]}});
    let body = provision(json!({
        "surprise": [1], "context": {"platform": "cloudfoundry", "surprise": {"b": 2}},
        "maintenance_info": {"version": "1.0.0", "surprise": 3},
    }));
    broker.put(&flagged(&instance("i")), &body).await.expect(202);
    broker.run_until_idle().await;
    broker
        .put(&flagged(&instance("i")), &catalog::provision_body())
        .await
        .expect(200);
    let patch =
        json!({"service_id": ALPHA, "surprise": more, "previous_values": {"surprise": 1, "plan_id": SMALL}});
    broker.patch(&flagged(&instance("i")), &patch).await.expect(200);
    let bind = merged(
        catalog::bind_body(),
        json!({"surprise": more, "bind_resource": {"surprise": 1}, "context": {"surprise": 1}}),
    );
    broker.put(&binding("i", "b"), &bind).await.expect(201);
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e09_our_own_additions_have_a_unique_prefix() {
    let broker = TestBroker::start().await;
    let accepted = broker
        .put(&flagged(&instance("i")), &catalog::provision_body())
        .await
        .expect(202);
    broker.run_until_idle().await;
    let fetched = broker.get(&instance("i")).await.expect(200);
    for (answer, known) in [
        (&accepted, &["operation", "dashboard_url", "metadata"][..]),
        (
            &fetched,
            &[
                "service_id",
                "plan_id",
                "dashboard_url",
                "parameters",
                "maintenance_info",
                "metadata",
            ][..],
        ),
    ] {
        for name in answer.body.as_object().unwrap().keys() {
            assert!(known.contains(&name.as_str()), "{name}");
        }
        for name in answer.body["metadata"].as_object().unwrap().keys() {
            assert!(["labels", "attributes"].contains(&name.as_str()), "{name}");
        }
        let labels = answer.body["metadata"]["labels"].as_object().unwrap();
        assert!(!labels.is_empty());
        for name in labels.keys() {
            assert!(name.starts_with("chandler.osb/"), "{name}");
        }
    }
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e10_null_means_absent_and_required_members_may_not_be_null_or_empty() {
    let broker = TestBroker::start().await;
    let with = |body: Value, members: Value| {
        let mut body = body;
        body.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        body
    };
    for name in ["service_id", "plan_id", "organization_guid", "space_guid"] {
        for value in [json!(null), json!("")] {
            let body = with(catalog::provision_body(), json!({name: value}));
            let answer = broker
                .put(&flagged(&instance("i")), &body)
                .await
                .expect_error(400, "BadRequest");
            assert!(answer.text.contains(name), "{}", answer.text);
        }
    }
    let nulls = with(
        catalog::provision_body(),
        json!({"parameters": null, "context": null, "maintenance_info": null}),
    );
    broker.put(&flagged(&instance("i")), &nulls).await.expect(202);
    broker.run_until_idle().await;
    for same in [
        json!({}),
        json!({"maintenance_info": {}}),
        json!({"maintenance_info": {"version": null}}),
        json!({"parameters": {}}),
    ] {
        broker
            .put(&flagged(&instance("i")), &with(catalog::provision_body(), same))
            .await
            .expect(200);
    }
    for nulls in [
        json!({"service_id": ALPHA, "plan_id": null, "parameters": null, "context": null, "maintenance_info": null, "previous_values": null}),
        json!({"service_id": ALPHA, "previous_values": {"plan_id": null, "maintenance_info": null}}),
    ] {
        broker.patch(&flagged(&instance("i")), &nulls).await.expect(200);
    }
    broker
        .patch(&flagged(&instance("i")), &json!({"service_id": null}))
        .await
        .expect_error(400, "BadRequest");
    let nulls = with(
        catalog::bind_body(),
        json!({"parameters": null, "context": null, "bind_resource": null, "app_guid": null, "predecessor_binding_id": null}),
    );
    broker.put(&binding("i", "b"), &nulls).await.expect(201);
    broker
        .put(&binding("i", "b"), &catalog::bind_body())
        .await
        .expect(200);
    broker
        .put(
            &binding("i", "c"),
            &with(catalog::bind_body(), json!({"plan_id": null})),
        )
        .await
        .expect_error(400, "BadRequest");
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e11_bodies_beyond_the_limit_are_413_and_nothing_else_is_limited() {
    let broker = with_http(|http| http.max_body = 60_000).await;
    let padded = |length: usize| {
        let mut body = provision(json!({"context": {"platform": "x", "text": ""}}));
        let rest = length - body.to_string().len();
        body["context"]["text"] = json!("x".repeat(rest));
        body
    };
    let answer = broker
        .put(&flagged(&instance("i")), &padded(60_001))
        .await
        .expect_error(413, "RequestTooLarge");
    well_formed(&answer);
    broker
        .put(&flagged(&instance("i")), &padded(60_000))
        .await
        .expect(202);
    broker.run_until_idle().await;
    let long = provision(json!({"organization_guid": "o".repeat(5000), "space_guid": "-"}));
    broker.put(&flagged(&instance("long")), &long).await.expect(202);
    broker.run_until_idle().await;
    broker.end().await;
    // The default leaves room for any honest request.
    assert!(Choices::default().http.max_body >= 128 * 1024);
}
