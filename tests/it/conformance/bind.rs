//! PUT and GET of a binding: rules B-01 to B-19, F-01 to F-04, and K for what binding leaves behind.

use crate::support::broker::{Answer, PASSWORD, TestBroker};
use crate::support::catalog::{self, ALPHA, BARE, BETA, BETA_SMALL, MEDIUM, SHORT, SMALL, bind_body, ids};
use crate::support::flow::{LATER, binding, delete_later, instance};
use crate::support::world::{Effect, When};
use chandler::ports::PortErrorKind;
use futures::FutureExt as _;
use serde_json::{Value, json};
use std::time::Duration;

async fn put(broker: &TestBroker, id: &str, body: &Value) -> Answer {
    broker.put(&binding(id), body).await
}

async fn put_later(broker: &TestBroker, id: &str, body: &Value) -> Answer {
    broker.put(&format!("{}?{LATER}", binding(id)), body).await
}

/// `alpha/small` with more members.
fn with(more: Value) -> Value {
    let mut body = bind_body();
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b01_a_synchronous_bind_is_201_with_the_binding() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let made = put(&broker, "a", &bind_body()).await.expect(201);
    let credentials = &made.body["credentials"];
    assert!(
        broker.opens(credentials),
        "complete when answered (S-01): {}",
        made.text
    );
    assert_eq!(
        (&credentials["host"], &credentials["port"], &credentials["role"]),
        (&json!("127.0.0.1"), &json!(4000), &json!("readwrite"))
    );
    assert_eq!(made.body.get("operation"), None);
    assert_eq!(made.headers["cache-control"], "no-store");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b02_b12_an_asynchronous_bind_is_202_with_the_operation_alone() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    let accepted = put_later(&broker, "a", &with(json!({"parameters": {"role": "readonly"}})))
        .await
        .expect(202);
    assert!(!accepted.operation().is_empty() && accepted.operation().len() <= 10_000);
    assert_eq!(accepted.body.as_object().unwrap().len(), 1, "{}", accepted.text);
    let polling = broker.last_of(&binding("a"), accepted.operation()).await;
    assert_eq!(polling.body["state"], "in progress");
    assert!(
        polling.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u32>()
            .is_ok(),
        "K-05"
    );
    broker.get(&binding("a")).await.expect_error(404, "NotFound");
    broker.run_until_idle().await;
    assert_eq!(
        broker.last_of(&binding("a"), accepted.operation()).await.body["state"],
        "succeeded"
    );
    let got = broker.get(&binding("a")).await.expect(200);
    assert!(broker.opens(&got.body["credentials"]), "K-07, F-01: {}", got.text);
    assert_eq!(got.body["credentials"]["role"], "readonly");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b03_identical_and_complete_is_200_with_the_same_data() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for body in [
        bind_body(),
        with(
            json!({"parameters": {"role": "owner"}, "bind_resource": {"app_guid": "app", "route": "r"}, "app_guid": "app"}),
        ),
    ] {
        let made = put(&broker, "a", &body).await.expect(201);
        let issued = broker.world.count("issue");
        assert_eq!(put(&broker, "a", &body).await.expect(200).body, made.body);
        assert_eq!(
            put_later(&broker, "a", &body).await.expect(200).body,
            made.body,
            "with the flag too"
        );
        // Context is no attribute; absent, null and empty parameters are the same.
        let mut again = body.clone();
        again["context"] = json!({"platform": "cloudfoundry", "space_name": "renamed"});
        if body.get("parameters").is_none() {
            again["parameters"] = json!({});
        }
        assert_eq!(put(&broker, "a", &again).await.expect(200).body, made.body);
        assert_eq!(broker.world.count("issue"), issued, "nothing was made again");
        broker
            .delete(&format!("{}?{}", binding("a"), ids()))
            .await
            .expect(200);
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b04_identical_and_running_is_202_with_the_same_operation() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    let body = with(json!({"parameters": {"role": "owner"}, "bind_resource": {"app_guid": "x"}}));
    let first = put_later(&broker, "a", &body).await.expect(202);
    assert_eq!(put_later(&broker, "a", &body).await.expect(202).body, first.body);
    // §16 step 8: an identical one without the flag.
    put(&broker, "a", &body).await.expect_error(422, "AsyncRequired");
    broker.run_until_idle().await;
    assert_eq!(broker.world.users().len(), 1);
    put_later(&broker, "a", &body).await.expect(200);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b05_other_parameters_conflict() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    let body = with(json!({"parameters": {"role": "readonly"}, "bind_resource": {"app_guid": "x"}}));
    let others = [
        bind_body(),
        with(json!({"parameters": {"role": "owner"}, "bind_resource": {"app_guid": "x"}})),
        with(json!({"parameters": {"role": "readonly"}})),
        with(json!({"parameters": {"role": "readonly"}, "bind_resource": {"app_guid": "y"}})),
        with(
            json!({"parameters": {"role": "readonly"}, "bind_resource": {"app_guid": "x"}, "app_guid": "x"}),
        ),
        // Even what would be refused by itself: a bad role, a plan that is not the instance's.
        with(json!({"parameters": {"role": "nonsense"}, "bind_resource": {"app_guid": "x"}})),
        with(
            json!({"plan_id": MEDIUM, "parameters": {"role": "readonly"}, "bind_resource": {"app_guid": "x"}}),
        ),
        json!({"service_id": BETA, "plan_id": BETA_SMALL, "parameters": {"role": "readonly"}, "bind_resource": {"app_guid": "x"}}),
    ];
    let first = put_later(&broker, "a", &body).await.expect(202);
    for complete in [false, true] {
        for other in &others {
            let refused = put_later(&broker, "a", other).await.expect_error(409, "Conflict");
            assert_eq!(refused.body.get("instance_usable"), None, "E-04");
        }
        if !complete {
            assert_eq!(
                broker.last_of(&binding("a"), first.operation()).await.body["state"],
                "in progress"
            );
            broker.run_until_idle().await;
        }
    }
    let got = broker.get(&binding("a")).await.expect(200);
    assert_eq!(got.body["parameters"], json!({"role": "readonly"}), "untouched");
    assert!(broker.opens(&got.body["credentials"]));
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b06_missing_and_malformed_members_are_400() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for body in [
        json!({}),
        json!({"plan_id": SMALL}),
        json!({"service_id": ALPHA}),
        json!({"service_id": "", "plan_id": SMALL}),
        json!({"service_id": ALPHA, "plan_id": null}),
        json!({"service_id": [ALPHA], "plan_id": SMALL}),
        with(json!({"parameters": "role=owner"})),
        with(json!({"bind_resource": "app"})),
        with(json!({"bind_resource": {"app_guid": 7}})),
        with(json!({"context": []})),
        json!([]),
    ] {
        put(&broker, "a", &body).await.expect_error(400, "BadRequest");
    }
    let text = broker
        .request("PUT", &binding("a"))
        .header("content-type", "application/json")
        .body("{\"service_id\":");
    broker.send(text).await.expect_error(400, "BadRequest");
    assert!(broker.world.users().is_empty());
    broker
        .delete(&format!("{}?{}", binding("a"), ids()))
        .await
        .expect(410);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b06_ids_that_are_unknown_or_not_the_instances_are_400() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for (service, plan, named) in [
        ("unknown", SMALL, "service_id"),
        (ALPHA, "unknown", "plan_id"),
        (ALPHA, BETA_SMALL, "plan_id"),
        (ALPHA, MEDIUM, "plan_id"),
        (BETA, BETA_SMALL, "service_id"),
    ] {
        let refused = put(&broker, "a", &json!({"service_id": service, "plan_id": plan}))
            .await
            .expect_error(400, "BadRequest");
        assert!(
            refused.body["description"].as_str().unwrap().contains(named),
            "{}",
            refused.text
        );
    }
    // After an update the new plan is the instance's own.
    broker
        .patch(
            &format!("{}?{LATER}", instance("one")),
            &json!({"service_id": ALPHA, "plan_id": MEDIUM}),
        )
        .await
        .expect(202);
    broker.run_until_idle().await;
    put(&broker, "a", &bind_body())
        .await
        .expect_error(400, "BadRequest");
    put(&broker, "a", &with(json!({"plan_id": MEDIUM})))
        .await
        .expect(201);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b07_without_an_application_requires_app() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(BETA, BETA_SMALL, json!({})).await;
    let ids = json!({"service_id": BETA, "plan_id": BETA_SMALL});
    let with = |more: Value| {
        let mut body = ids.clone();
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    for body in [
        ids.clone(),
        with(json!({"bind_resource": {}})),
        with(json!({"bind_resource": {"app_guid": ""}})),
        with(json!({"bind_resource": {"app_guid": null, "space_guid": "s"}, "app_guid": null})),
        with(json!({"bind_resource": {"credential_client_id": "key"}})),
        // Before the schema (§16, 9 before 10).
        with(json!({"parameters": {"role": "nonsense"}})),
    ] {
        let refused = put(&broker, "a", &body).await.expect_error(422, "RequiresApp");
        assert_eq!(
            refused.body["description"],
            "This service supports generation of credentials through binding an application only."
        );
    }
    assert!(broker.world.users().is_empty());
    for (id, more) in [
        ("a", json!({"bind_resource": {"app_guid": "app"}})),
        ("b", json!({"app_guid": "app"})),
        ("c", json!({"bind_resource": {"app_guid": ""}, "app_guid": "app"})),
    ] {
        put(&broker, id, &with(more)).await.expect(201);
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b09_b18_many_bindings_side_by_side_each_with_its_own_credentials() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    // RFC 1198 and B-09: the same application several times, at the same time.
    let body = with(json!({"bind_resource": {"app_guid": "app"}}));
    let all =
        futures::future::join_all(["a", "b", "c", "d"].map(|id| put(&broker, id, &body).boxed_local())).await;
    let credentials: Vec<Value> = all
        .into_iter()
        .map(|answer| answer.expect(201).body["credentials"].clone())
        .collect();
    for member in ["username", "password"] {
        let distinct: std::collections::BTreeSet<_> =
            credentials.iter().map(|c| c[member].to_string()).collect();
        assert_eq!(distinct.len(), 4, "{member}");
    }
    broker
        .delete(&format!("{}?{}", binding("b"), ids()))
        .await
        .expect(200);
    let open: Vec<bool> = credentials.iter().map(|c| broker.opens(c)).collect();
    assert_eq!(open, [true, false, true, true]);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b09_while_the_instance_changes_is_a_concurrency_error() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    broker
        .patch(
            &format!("{}?{LATER}", instance("one")),
            &json!({"service_id": ALPHA, "parameters": {"size": 7}}),
        )
        .await
        .expect(202);
    put_later(&broker, "a", &bind_body())
        .await
        .expect_error(422, "ConcurrencyError");
    put(&broker, "a", &bind_body())
        .await
        .expect_error(422, "ConcurrencyError");
    broker.get(&binding("a")).await.expect(404);
    broker.run_until_idle().await;
    assert_eq!(
        broker.last(&instance("one")).await.body["state"],
        "succeeded",
        "S-05"
    );
    broker.bound_later("a", &bind_body()).await;
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b09_while_the_binding_is_deleted_is_a_concurrency_error() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    broker.bound_later("a", &bind_body()).await;
    let gone = broker
        .delete(&format!("{}?{}", binding("a"), delete_later()))
        .await
        .expect(202);
    put_later(&broker, "a", &bind_body())
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    assert_eq!(
        broker.last_of(&binding("a"), gone.operation()).await.body["state"],
        "succeeded"
    );
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b10_an_unknown_instance_is_404() {
    let broker = TestBroker::start().await;
    // Before catalog ids (§16), after shape.
    for body in [
        bind_body(),
        json!({"service_id": "x", "plan_id": "y"}),
        json!({"predecessor_binding_id": "p"}),
    ] {
        put(&broker, "a", &body).await.expect_error(404, "NotFound");
        put_later(&broker, "a", &body).await.expect_error(404, "NotFound");
    }
    put(&broker, "a", &json!({}))
        .await
        .expect_error(400, "BadRequest");
    broker.provisioned("one").await;
    let foreign = broker
        .http
        .put(format!("{}{}", broker.base, binding("a")))
        .basic_auth("k8s", Some(PASSWORD))
        .header("X-Broker-API-Version", "2.17")
        .json(&bind_body());
    broker.send(foreign).await.expect_error(404, "NotFound");
    broker.deleted("one").await;
    put(&broker, "a", &bind_body())
        .await
        .expect_error(404, "NotFound");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b10_while_the_instance_comes_or_goes_is_a_concurrency_error() {
    let broker = TestBroker::held().await;
    let path = format!("{}?{LATER}", instance("one"));
    broker.put(&path, &catalog::provision_body()).await.expect(202);
    put_later(&broker, "a", &bind_body())
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker
        .delete(&format!("{}?{}", instance("one"), delete_later()))
        .await
        .expect(202);
    put_later(&broker, "a", &bind_body())
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    assert!(broker.world.users().is_empty() && broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b10_a_plan_that_is_not_bindable_is_400() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(ALPHA, BARE, json!({})).await;
    for body in [
        with(json!({"plan_id": BARE})),
        with(json!({"plan_id": BARE, "parameters": {"role": "nonsense"}})),
    ] {
        let refused = put(&broker, "a", &body).await.expect_error(400, "BadRequest");
        assert!(refused.text.contains("not bindable"), "{}", refused.text);
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b10_an_instance_that_was_never_made_cannot_be_bound() {
    let broker = TestBroker::start().await;
    *broker.world.refuse_ready.lock().unwrap() = Some("It does not start.".into());
    broker
        .put(
            &format!("{}?{LATER}", instance("one")),
            &catalog::provision_body(),
        )
        .await
        .expect(202);
    broker.run_until_idle().await;
    put(&broker, "a", &bind_body())
        .await
        .expect_error(400, "BadRequest");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b11_parameters_that_break_the_binding_schema_are_400() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for (parameters, named) in [
        (json!({"role": "superuser"}), "parameters.role"),
        (json!({"role": 1}), "parameters.role"),
        (json!({"role": ["owner"]}), "parameters.role"),
        (json!({"size": 3}), "parameters.size"),
    ] {
        let refused = put(&broker, "a", &with(json!({"parameters": parameters})))
            .await
            .expect_error(400, "BadRequest");
        assert!(
            refused.body["description"].as_str().unwrap().contains(named),
            "{}",
            refused.text
        );
    }
    assert!(broker.world.users().is_empty());
    for role in ["owner", "readwrite", "readonly"] {
        let made = put(&broker, role, &with(json!({"parameters": {"role": role}})))
            .await
            .expect(201);
        assert_eq!(made.body["credentials"]["role"], role);
    }
    let granted: Vec<String> = {
        let all = broker.world.instances.lock().unwrap();
        all.values()
            .flat_map(|i| i.users.values().map(|(_, role)| role.clone()))
            .collect()
    };
    assert_eq!(granted.len(), 3);
    assert!(
        ["owner", "readwrite", "readonly"]
            .iter()
            .all(|r| granted.contains(&(*r).to_owned())),
        "{granted:?}"
    );
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b13_nothing_is_returned_that_needs_a_requires_entry() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let body = with(json!({"bind_resource": {"app_guid": "a", "route": "https://route.example.test"}}));
    let made = put(&broker, "a", &body).await.expect(201);
    let got = broker.get(&binding("a")).await.expect(200);
    for member in ["syslog_drain_url", "route_service_url", "volume_mounts"] {
        assert!(
            made.body.get(member).is_none() && got.body.get(member).is_none(),
            "{member}: {}",
            made.text
        );
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b16_endpoints_have_text_ports_and_a_known_protocol() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let made = put(&broker, "a", &bind_body()).await.expect(201);
    assert_eq!(
        made.body["endpoints"],
        json!([{"host": "127.0.0.1", "ports": ["4000"], "protocol": "tcp"}])
    );
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b17_a_limited_life_is_told_in_metadata() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(ALPHA, SHORT, json!({})).await;
    let body = with(json!({"plan_id": SHORT}));
    let made = put(&broker, "a", &body).await.expect(201);
    let row = broker.binding_row("a").await;
    assert_eq!(
        (row.expires_at, row.renew_before),
        (Some(row.created_at + 600_000), Some(row.created_at + 480_000))
    );
    let told = |name: &str| {
        let text = made.body["metadata"][name].as_str().unwrap().to_owned();
        let form = "dddd-dd-ddTdd:dd:dd.dZ";
        assert_eq!(text.len(), form.len(), "{text}");
        for (is, wanted) in text.chars().zip(form.chars()) {
            assert!(
                if wanted == 'd' {
                    is.is_ascii_digit()
                } else {
                    is == wanted
                },
                "{text}"
            );
        }
        let format = time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(&text, &format)
            .unwrap()
            .unix_timestamp()
    };
    assert_eq!(told("expires_at"), row.expires_at.unwrap() / 1000);
    assert_eq!(told("renew_before"), row.renew_before.unwrap() / 1000);
    assert_eq!(
        made.body["metadata"].as_object().unwrap().len(),
        2,
        "no connection data"
    );
    assert_eq!(
        broker.get(&binding("a")).await.expect(200).body["metadata"],
        made.body["metadata"]
    );
    broker.advance(Duration::from_secs(60));
    assert_eq!(
        put(&broker, "a", &body).await.expect(200).body,
        made.body,
        "B-03: asking again does not prolong it"
    );
    broker.deleted_and_end().await;

    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let made = put(&broker, "a", &bind_body()).await.expect(201);
    assert_eq!(made.body.get("metadata"), None, "a binding without end has none");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b17_the_sweep_revokes_at_expiry() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(ALPHA, SHORT, json!({})).await;
    let body = with(json!({"plan_id": SHORT}));
    let credentials = put(&broker, "a", &body).await.expect(201).body["credentials"].clone();
    let kept = put(&broker, "gone", &body).await.expect(201).body["credentials"].clone();
    let ids = format!("service_id={ALPHA}&plan_id={SHORT}");
    broker.advance(Duration::from_millis(599_999));
    assert_eq!(
        broker.sweeper().once().await.unwrap().expired,
        0,
        "a moment before nothing happens"
    );
    broker.get(&binding("a")).await.expect(200);

    broker.advance(Duration::from_millis(1));
    // Even before the sweep comes by it is not handed out any more.
    broker.get(&binding("a")).await.expect_error(404, "NotFound");
    assert_eq!(broker.sweeper().once().await.unwrap().expired, 2);
    broker.run_until_idle().await;
    assert!(!broker.opens(&credentials) && !broker.opens(&kept));
    assert_eq!(
        broker.sweeper().once().await.unwrap().expired,
        0,
        "once is enough"
    );
    broker.get(&binding("a")).await.expect_error(404, "NotFound");
    // The id stays taken until it is unbound, and does not come back to life.
    put(&broker, "a", &body).await.expect_error(409, "Conflict");
    assert!(broker.left_over().await.is_empty());

    // Unbinding what has expired is what the platform still does: 200, then 410.
    broker
        .delete(&format!("{}?{ids}", binding("a")))
        .await
        .expect(200);
    broker
        .delete(&format!("{}?{ids}", binding("a")))
        .await
        .expect(410);
    broker
        .delete(&format!("{}?{LATER}&{ids}", binding("gone")))
        .await
        .expect(202);
    broker.run_until_idle().await;
    assert_eq!(broker.last(&binding("gone")).await.body["state"], "succeeded");
    // And the id may be used again (I-05).
    let fresh = put(&broker, "a", &body).await.expect(201);
    assert!(broker.opens(&fresh.body["credentials"]) && !broker.opens(&credentials));
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b19_absent_and_unknown_members_are_accepted() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for (n, more) in [
        json!({}),
        json!({"bind_resource": null, "context": null, "parameters": null, "app_guid": null, "predecessor_binding_id": null}),
        json!({"bind_resource": {}, "context": {}, "parameters": {}}),
        json!({"bind_resource": {"app_guid": "a", "space_guid": "s", "route": "r", "app_annotations": {"x/y": "z"},
               "credential_client_id": "c", "backup_agent": true}, "surprise": [{}]}),
        json!({"context": {"platform": "osb-checker", "more": {"a": [1]}}}),
    ]
    .into_iter()
    .enumerate()
    {
        put(&broker, &format!("b{n}"), &with(more)).await.expect(201);
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_bind_leaves_nothing_and_may_be_tried_again() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for call in ["issue", "verify"] {
        broker.world.plan(
            call,
            When::After,
            Effect::Fail(PortErrorKind::Denied, "The backend says no."),
            1,
        );
        let failed = put(&broker, "a", &bind_body()).await.expect(500);
        assert!(failed.text.contains("The backend says no."), "{}", failed.text);
        assert_eq!(failed.body.get("instance_usable"), None, "E-04");
        assert!(broker.world.users().is_empty());
        broker.get(&binding("a")).await.expect(404);
        let last = broker.last(&binding("a")).await;
        assert_eq!(last.body["state"], "failed");
        assert_eq!(
            (
                last.body.get("instance_usable"),
                last.body.get("update_repeatable")
            ),
            (None, None),
            "K-01"
        );
        // O-01: the platform cleans up, or tries once more.
        if call == "issue" {
            broker
                .delete(&format!("{}?{}", binding("a"), ids()))
                .await
                .expect(200);
            broker
                .delete(&format!("{}?{}", binding("a"), ids()))
                .await
                .expect(410);
        } else {
            put(&broker, "a", &with(json!({"parameters": {"role": "owner"}})))
                .await
                .expect_error(409, "Conflict");
        }
        put(&broker, "a", &bind_body()).await.expect(201);
        broker
            .delete(&format!("{}?{}", binding("a"), ids()))
            .await
            .expect(200);
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i05_a_binding_id_may_be_used_again_after_unbind() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let first = broker.bound("one", "a").await;
    broker
        .delete(&format!("{}?{}", binding("a"), ids()))
        .await
        .expect(200);
    let other = with(json!({"parameters": {"role": "owner"}}));
    let second = put(&broker, "a", &other).await.expect(201).body["credentials"].clone();
    assert_ne!(first["password"], second["password"]);
    assert!(
        !broker.opens(&first) && broker.opens(&second),
        "the old password does not come back with the id"
    );
    assert_eq!(second["role"], "owner");
    assert_eq!(
        broker.get(&binding("a")).await.expect(200).body["parameters"],
        json!({"role": "owner"})
    );
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_f03_fetch_tells_everything_every_time() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let body = with(json!({"parameters": {"role": "readonly"}, "bind_resource": {"app_guid": "app"}}));
    let made = put(&broker, "a", &body).await.expect(201);
    for _ in 0..3 {
        let got = broker.get(&binding("a")).await.expect(200);
        assert_eq!(got.body["credentials"], made.body["credentials"], "F-03");
        assert_eq!(got.body["endpoints"], made.body["endpoints"]);
        assert_eq!(got.body["parameters"], json!({"role": "readonly"}));
        assert_eq!(got.headers["cache-control"], "no-store");
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_what_is_unknown_failed_or_gone_is_404() {
    let broker = TestBroker::start().await;
    broker.get(&binding("a")).await.expect_error(404, "NotFound");
    broker.provisioned("one").await;
    broker.get(&binding("a")).await.expect_error(404, "NotFound");
    broker.bound("one", "a").await;
    // Another instance, another platform, another case (I-01).
    broker
        .get("/v2/service_instances/two/service_bindings/a")
        .await
        .expect_error(404, "NotFound");
    broker.get(&binding("A")).await.expect_error(404, "NotFound");
    let foreign = broker
        .http
        .get(format!("{}{}", broker.base, binding("a")))
        .basic_auth("k8s", Some(PASSWORD))
        .header("X-Broker-API-Version", "2.17");
    broker.send(foreign).await.expect_error(404, "NotFound");
    broker
        .delete(&format!("{}?{}", binding("a"), ids()))
        .await
        .expect(200);
    broker.get(&binding("a")).await.expect_error(404, "NotFound");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f04_query_ids_are_only_hints() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    broker.bound("one", "a").await;
    for query in [
        "",
        "service_id=x&plan_id=y",
        "service_id=&plan_id",
        "service_id=a&service_id=b",
    ] {
        broker.get(&format!("{}?{query}", binding("a"))).await.expect(200);
        broker
            .get(&format!("{}/last_operation?{query}", binding("a")))
            .await
            .expect(200);
    }
    broker.deleted_and_end().await;
}
