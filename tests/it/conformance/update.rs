//! PATCH instance: rules U-01 to U-19.

use crate::support::broker::TestBroker;
use crate::support::catalog::{self, ALPHA, BARE, BETA, BETA_SMALL, ELSEWHERE, MEDIUM, SHORT, SMALL};
use crate::support::flow::{LATER, binding, delete_later, instance};
use crate::support::world::{Effect, When};
use chandler::ports::PortErrorKind;
use serde_json::{Value, json};

fn one() -> String {
    instance("one")
}

async fn patch(broker: &TestBroker, body: &Value) -> crate::support::broker::Answer {
    broker.patch(&format!("{}?{LATER}", one()), body).await
}

/// Asserts that nothing changed: what GET tells, the row, and what the world saw.
struct Unchanged {
    fetched: Value,
    row: chandler::domain::instance::Instance,
    applies: usize,
}

impl Unchanged {
    async fn from(broker: &TestBroker) -> Self {
        Self {
            fetched: broker.get(&one()).await.expect(200).body,
            row: broker.row("one").await,
            applies: broker.world.count("apply"),
        }
    }

    async fn check(&self, broker: &TestBroker) {
        assert_eq!(broker.get(&one()).await.expect(200).body, self.fetched);
        assert_eq!(broker.row("one").await, self.row, "U-13");
        assert_eq!(broker.world.count("apply"), self.applies);
        assert_eq!(broker.engine.store().open_operations().await.unwrap().0, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u02_a_request_that_changes_nothing_is_200() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(ALPHA, SMALL, json!({"size": 5})).await;
    let before = Unchanged::from(&broker).await;
    for body in [
        json!({"service_id": ALPHA}),
        json!({"service_id": ALPHA, "plan_id": SMALL}),
        json!({"service_id": ALPHA, "parameters": {"size": 5}}),
        json!({"service_id": ALPHA, "parameters": null, "context": null, "previous_values": null, "maintenance_info": null}),
    ] {
        let answer = patch(&broker, &body).await.expect(200);
        assert_eq!(answer.body.get("operation"), None, "{body}: {}", answer.text);
        assert!(answer.body["metadata"]["labels"].is_object(), "{body}: U-01");
        assert_eq!(answer.body.get("instance_usable"), None, "E-04");
        before.check(&broker).await;
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u03_an_asynchronous_update_is_202_and_a_resend_gets_the_same_operation() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let body = json!({"service_id": ALPHA, "plan_id": MEDIUM, "parameters": {"size": 7}});
    let first = patch(&broker, &body).await.expect(202);
    assert!(!first.operation().is_empty() && first.operation().len() <= 10_000);
    assert_eq!(
        patch(&broker, &body).await.expect(202).operation(),
        first.operation()
    );
    // U-09 for the re-send, as §16 step 8 says.
    broker
        .patch(&one(), &body)
        .await
        .expect_error(422, "AsyncRequired");
    let polled = broker.last_of(&one(), first.operation()).await;
    assert_eq!(polled.body["state"], "in progress");
    // L-08: the old plan, the new plan, nothing.
    for plan in [SMALL, MEDIUM] {
        let path = format!(
            "{}/last_operation?operation={}&plan_id={plan}&service_id={ALPHA}",
            one(),
            first.operation()
        );
        assert_eq!(broker.get(&path).await.expect(200).body["state"], "in progress");
    }
    broker.get(&one()).await.expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    let done = broker.last_of(&one(), first.operation()).await;
    assert_eq!(done.body["state"], "succeeded");
    assert_eq!(
        (
            done.body.get("instance_usable"),
            done.body.get("update_repeatable")
        ),
        (None, None),
        "E-04"
    );
    let now = broker.get(&one()).await.expect(200).body;
    assert_eq!(
        (&now["plan_id"], &now["parameters"]),
        (&json!(MEDIUM), &json!({"size": 7}))
    );
    // The same once more is no running operation but nothing to do.
    patch(&broker, &body).await.expect(200);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u04_missing_service_id_and_malformed_bodies_are_400() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let before = Unchanged::from(&broker).await;
    for body in [
        json!({}),
        json!({"plan_id": MEDIUM}),
        json!({"service_id": null, "plan_id": MEDIUM}),
        json!({"service_id": "", "plan_id": MEDIUM}),
        json!({"service_id": 1}),
        json!({"service_id": ALPHA, "plan_id": 1}),
        json!({"service_id": ALPHA, "parameters": "size=3"}),
        json!({"service_id": ALPHA, "parameters": [1]}),
        json!({"service_id": ALPHA, "context": "cf"}),
        json!({"service_id": ALPHA, "previous_values": 1}),
        json!({"service_id": ALPHA, "maintenance_info": "1.0.0"}),
        json!({"service_id": ALPHA, "maintenance_info": {"version": 1}}),
        json!([]),
        json!("x"),
    ] {
        patch(&broker, &body).await.expect_error(400, "BadRequest");
    }
    for text in ["", "{", "service_id=x"] {
        let request = broker
            .request("PATCH", &format!("{}?{LATER}", one()))
            .header("content-type", "application/json")
            .body(text);
        broker.send(request).await.expect_error(400, "BadRequest");
    }
    before.check(&broker).await;
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u05_ids_that_do_not_fit_are_400() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let before = Unchanged::from(&broker).await;
    for body in [
        json!({"service_id": "unknown"}),
        json!({"service_id": BETA}),
        json!({"service_id": BETA, "plan_id": BETA_SMALL}),
        json!({"service_id": ALPHA, "plan_id": "unknown"}),
        json!({"service_id": ALPHA, "plan_id": BETA_SMALL}),
        json!({"service_id": ALPHA.to_uppercase()}),
    ] {
        let refused = patch(&broker, &body).await.expect_error(400, "BadRequest");
        assert!(refused.text.contains("_id"), "names the member: {}", refused.text);
        assert_eq!(refused.body.get("update_repeatable"), None);
    }
    before.check(&broker).await;
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u06_without_plan_id_or_with_the_current_one_the_plan_stays() {
    let broker = TestBroker::start().await;
    // BARE cannot change its plan, but naming it is no change.
    broker.provisioned_as(ALPHA, BARE, json!({})).await;
    for (plan, size) in [(None, 4), (Some(BARE), 5), (Some(""), 6)] {
        let mut body = json!({"service_id": ALPHA, "parameters": {"size": size}});
        if let Some(plan) = plan {
            body["plan_id"] = json!(plan);
        }
        patch(&broker, &body).await.expect(202);
        broker.run_until_idle().await;
        let now = broker.get(&one()).await.expect(200).body;
        assert_eq!(
            (&now["plan_id"], &now["parameters"]["size"]),
            (&json!(BARE), &json!(size))
        );
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u07_absent_and_empty_parameters_leave_them_as_they_are() {
    let broker = TestBroker::start().await;
    broker
        .provisioned_as(ALPHA, SMALL, json!({"size": 5, "colour": "red"}))
        .await;
    for body in [
        json!({"service_id": ALPHA}),
        json!({"service_id": ALPHA, "parameters": {}}),
    ] {
        patch(&broker, &body).await.expect(200);
    }
    let plan_only = json!({"service_id": ALPHA, "plan_id": SHORT, "parameters": {}});
    patch(&broker, &plan_only).await.expect(202);
    broker.run_until_idle().await;
    let now = broker.get(&one()).await.expect(200).body;
    assert_eq!(
        (&now["plan_id"], &now["parameters"]),
        (&json!(SHORT), &json!({"size": 5, "colour": "red"}))
    );
    // What is named changes, the rest stays.
    patch(&broker, &json!({"service_id": ALPHA, "parameters": {"size": 6}}))
        .await
        .expect(202);
    broker.run_until_idle().await;
    let now = broker.get(&one()).await.expect(200).body;
    assert_eq!(now["parameters"], json!({"size": 6, "colour": "red"}));
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u08_unsupported_plan_change_is_refused() {
    let broker = TestBroker::start().await;
    for (from, to) in [(BARE, SMALL), (MEDIUM, SMALL), (SMALL, BARE), (SMALL, ELSEWHERE)] {
        broker.provisioned_as(ALPHA, from, json!({})).await;
        let before = Unchanged::from(&broker).await;
        let body = json!({"service_id": ALPHA, "plan_id": to, "parameters": {"size": 8}, "context": {"platform": "x"}});
        let refused = patch(&broker, &body)
            .await
            .expect_error(422, "PlanChangeNotSupported");
        assert_eq!(refused.body["update_repeatable"], json!(false));
        assert_eq!(refused.body["instance_usable"], json!(true));
        if from == SMALL {
            assert!(
                refused.text.contains("medium, short"),
                "says what is possible: {}",
                refused.text
            );
        }
        before.check(&broker).await;
        broker.deleted("one").await;
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u09_without_the_flag_is_async_required() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let before = Unchanged::from(&broker).await;
    for body in [
        json!({"service_id": ALPHA}),
        json!({"service_id": ALPHA, "plan_id": SMALL, "parameters": {}}),
        json!({"service_id": ALPHA, "context": {"platform": "x"}}),
        json!({"service_id": ALPHA, "plan_id": MEDIUM}),
        // Before plan rules, versions and schemas (§16).
        json!({"service_id": ALPHA, "plan_id": BARE}),
        json!({"service_id": ALPHA, "maintenance_info": {"version": "9.9.9"}}),
        json!({"service_id": ALPHA, "parameters": {"size": 99}}),
    ] {
        for path in [
            one(),
            format!("{}?accepts_incomplete=false", one()),
            format!("{}?accepts_incomplete=1", one()),
        ] {
            let refused = broker
                .patch(&path, &body)
                .await
                .expect_error(422, "AsyncRequired");
            assert_eq!(
                (
                    refused.body.get("instance_usable"),
                    refused.body.get("update_repeatable")
                ),
                (None, None)
            );
        }
    }
    before.check(&broker).await;
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u10_a_version_that_is_not_the_catalogs_conflicts() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let before = Unchanged::from(&broker).await;
    for body in [
        json!({"service_id": ALPHA, "maintenance_info": {"version": "1.1.0"}}),
        json!({"service_id": ALPHA, "maintenance_info": {"version": "1.0.0+build"}}),
        json!({"service_id": ALPHA, "maintenance_info": {"version": "latest"}}),
        json!({"service_id": ALPHA, "plan_id": SMALL, "maintenance_info": {"version": "0.9.0"}, "parameters": {"size": 4}}),
        // The version of the plan the instance will have counts, not of the one it has.
        json!({"service_id": ALPHA, "plan_id": MEDIUM, "maintenance_info": {"version": "1.0.0"}}),
    ] {
        let refused = patch(&broker, &body)
            .await
            .expect_error(422, "MaintenanceInfoConflict");
        assert_eq!(refused.body.get("instance_usable"), None, "{}", refused.text);
        before.check(&broker).await;
    }
    // Equal to the instance's: nothing to do for this part; other members do not matter.
    let same =
        json!({"service_id": ALPHA, "maintenance_info": {"version": "1.0.0", "description": "other words"}});
    patch(&broker, &same).await.expect(200);
    patch(&broker, &json!({"service_id": ALPHA, "maintenance_info": {}}))
        .await
        .expect(200);
    before.check(&broker).await;
    broker.deleted_and_end().await;
}

/// Puts a catalog into use in which the plan small runs another version.
async fn maintained(broker: &TestBroker, version: &str) {
    use chandler::domain::catalog::{Catalog, KnownMechanisms};
    let mut sources = catalog::sources();
    let plan = sources.get_mut("plans/alpha/small.yaml").unwrap();
    plan.push_str(&format!(
        "values:\n  memory: 96Mi\nmaintenance_info:\n  version: {version}\n  description: Next.\n"
    ));
    let loaded = Catalog::load(&sources, &KnownMechanisms).unwrap_or_else(|p| panic!("{p:?}"));
    broker.engine.set_catalog(loaded).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u10_a_newer_version_performs_the_maintenance() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    maintained(&broker, "1.2.0").await;
    assert_eq!(
        broker.get(&one()).await.body["maintenance_info"]["version"],
        "1.0.0",
        "G-06"
    );
    // Nobody asked for the maintenance yet.
    patch(&broker, &json!({"service_id": ALPHA})).await.expect(200);
    patch(
        &broker,
        &json!({"service_id": ALPHA, "maintenance_info": {"version": "1.0.0"}}),
    )
    .await
    .expect_error(422, "MaintenanceInfoConflict");
    let applied = broker
        .world
        .instances
        .lock()
        .unwrap()
        .values()
        .next()
        .unwrap()
        .applied
        .clone();
    patch(
        &broker,
        &json!({"service_id": ALPHA, "plan_id": SMALL, "maintenance_info": {"version": "1.2.0"}}),
    )
    .await
    .expect(202);
    broker.run_until_idle().await;
    assert_eq!(broker.last(&one()).await.body["state"], "succeeded");
    assert_eq!(
        broker.get(&one()).await.body["maintenance_info"]["version"],
        "1.2.0"
    );
    assert_ne!(
        broker
            .world
            .instances
            .lock()
            .unwrap()
            .values()
            .next()
            .unwrap()
            .applied,
        applied,
        "the plan's new values"
    );
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u10_a_plan_change_brings_the_new_plans_version() {
    let broker = TestBroker::start().await;
    for named in [true, false] {
        broker.provisioned("one").await;
        let mut body = json!({"service_id": ALPHA, "plan_id": MEDIUM});
        if named {
            body["maintenance_info"] = json!({"version": "1.1.0"});
        }
        patch(&broker, &body).await.expect(202);
        broker.run_until_idle().await;
        let now = broker.get(&one()).await.expect(200).body;
        assert_eq!(
            now["maintenance_info"]["version"], "1.1.0",
            "G-06: what it runs, named={named}"
        );
        broker.deleted("one").await;
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u11_a_context_alone_is_stored_and_touches_nothing() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let applies = broker.world.count("apply");
    let context = json!({"platform": "cloudfoundry", "instance_name": "renamed", "space_name": "there"});
    patch(&broker, &json!({"service_id": ALPHA, "context": context}))
        .await
        .expect(200);
    assert_eq!(broker.row("one").await.context, Some(context.clone()));
    // The stored one is replaced, not merged; an absent one changes nothing.
    patch(
        &broker,
        &json!({"service_id": ALPHA, "context": {"platform": "kubernetes"}}),
    )
    .await
    .expect(200);
    assert_eq!(
        broker.row("one").await.context,
        Some(json!({"platform": "kubernetes"}))
    );
    patch(&broker, &json!({"service_id": ALPHA})).await.expect(200);
    assert_eq!(
        broker.row("one").await.context,
        Some(json!({"platform": "kubernetes"}))
    );
    assert_eq!(broker.world.count("apply"), applies);
    // With other changes it is stored too.
    patch(
        &broker,
        &json!({"service_id": ALPHA, "parameters": {"size": 4}, "context": context}),
    )
    .await
    .expect(202);
    broker.run_until_idle().await;
    assert_eq!(broker.row("one").await.context, Some(context));
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u12_previous_values_are_informational() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for (size, previous) in [
        json!({}),
        json!({"plan_id": null, "service_id": null, "organization_id": null, "space_id": null, "maintenance_info": null}),
        // Lies: the broker trusts its own records.
        json!({"plan_id": BARE, "service_id": "other", "organization_id": "x", "maintenance_info": {"version": "9.9.9"}}),
        json!({"maintenance_info": {}, "surprise": [1]}),
    ]
    .into_iter()
    .enumerate()
    {
        let size = size + 4;
        let body = json!({"service_id": ALPHA, "parameters": {"size": size}, "previous_values": previous});
        patch(&broker, &body).await.expect(202);
        broker.run_until_idle().await;
        assert_eq!(broker.get(&one()).await.expect(200).body["parameters"]["size"], json!(size));
    }
    // Not even to allow what the real plan does not: SMALL cannot become BARE.
    let body = json!({"service_id": ALPHA, "plan_id": BARE, "previous_values": {"plan_id": BARE}});
    patch(&broker, &body)
        .await
        .expect_error(422, "PlanChangeNotSupported");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u13_a_refused_update_applies_none_of_its_parts() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(ALPHA, SMALL, json!({"size": 5})).await;
    let before = Unchanged::from(&broker).await;
    // Each has right parts (context, a plan that may be, a good size) and one wrong one.
    for (wrong, status) in [
        (
            json!({"service_id": ALPHA, "plan_id": MEDIUM, "parameters": {"size": 99}}),
            400,
        ),
        (
            json!({"service_id": ALPHA, "plan_id": MEDIUM, "parameters": {"size": 4}, "maintenance_info": {"version": "0.1.0"}}),
            422,
        ),
        (
            json!({"service_id": ALPHA, "plan_id": BARE, "parameters": {"size": 4}}),
            422,
        ),
        (json!({"service_id": BETA, "parameters": {"size": 4}}), 400),
    ] {
        let mut body = wrong.clone();
        body["context"] = json!({"platform": "new"});
        patch(&broker, &body).await.expect(status);
        before.check(&broker).await;
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u14_u18_a_failed_update_says_whether_the_instance_works_and_keeps_the_old_values() {
    let broker = TestBroker::start().await;
    broker.provisioned_as(ALPHA, SMALL, json!({"size": 5})).await;
    let before = broker.get(&one()).await.expect(200).body;
    let body = json!({"service_id": ALPHA, "plan_id": MEDIUM, "parameters": {"size": 7}});

    // Cannot be applied, but going back works.
    let first = patch(&broker, &body).await.expect(202);
    broker.world.plan(
        "apply",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "Too little memory here."),
        1,
    );
    broker.run_until_idle().await;
    let last = broker.last_of(&one(), first.operation()).await;
    assert_eq!(
        (&last.body["state"], &last.body["instance_usable"]),
        (&json!("failed"), &json!(true))
    );
    assert!(
        last.body["description"]
            .as_str()
            .unwrap()
            .contains("Too little memory here."),
        "{}",
        last.text
    );
    assert_eq!(broker.get(&one()).await.expect(200).body, before, "G-09");
    assert_eq!(broker.last(&one()).await.body, last.body, "L-06");

    // Nor does going back work: the instance is broken, and an update may repair it (U-18).
    patch(&broker, &body).await.expect(202);
    broker.world.plan(
        "apply",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "Nothing goes."),
        2,
    );
    broker.run_until_idle().await;
    let last = broker.last(&one()).await;
    assert_eq!(
        (
            &last.body["state"],
            &last.body["instance_usable"],
            &last.body["update_repeatable"]
        ),
        (&json!("failed"), &json!(false), &json!(true))
    );
    assert_eq!(broker.get(&one()).await.expect(200).body, before, "G-09");

    // Flags stand on the failed operation alone.
    patch(&broker, &json!({"service_id": ALPHA})).await.expect(202);
    let running = broker.last(&one()).await;
    assert_eq!(
        (
            running.body.get("instance_usable"),
            running.body.get("update_repeatable")
        ),
        (None, None),
        "E-04"
    );
    broker.run_until_idle().await;
    let done = broker.last(&one()).await;
    assert_eq!(done.body["state"], "succeeded");
    assert_eq!(
        (
            done.body.get("instance_usable"),
            done.body.get("update_repeatable")
        ),
        (None, None),
        "E-04"
    );
    assert_eq!(broker.get(&one()).await.expect(200).body, before);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u15_the_dashboard_is_told_in_the_first_response_and_stays() {
    let mut choices = crate::support::broker::Choices::default();
    choices.engine.dashboard_url = Some("https://dash.example.test/{instance_id}/{plan}".into());
    let broker = TestBroker::with(choices).await;
    let put = broker
        .put(&format!("{}?{LATER}", one()), &catalog::provision_body())
        .await
        .expect(202);
    broker.run_until_idle().await;
    let url = put.body["dashboard_url"].clone();
    assert!(url.as_str().unwrap().ends_with("/small"), "{url}");
    for (body, status) in [
        (json!({"service_id": ALPHA}), 200),
        (json!({"service_id": ALPHA, "plan_id": MEDIUM}), 202),
    ] {
        let answer = patch(&broker, &body).await.expect(status);
        let told = answer.body.get("dashboard_url");
        assert!(
            told.is_none() || told == Some(&url),
            "absent or unchanged, never null: {}",
            answer.text
        );
        broker.run_until_idle().await;
        assert_eq!(broker.get(&one()).await.expect(200).body["dashboard_url"], url);
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u16_a_different_update_while_one_runs_is_a_concurrency_error() {
    let broker = TestBroker::held().await;
    broker.provisioned("one").await;
    let running = patch(&broker, &json!({"service_id": ALPHA, "parameters": {"size": 7}}))
        .await
        .expect(202);
    for body in [
        json!({"service_id": ALPHA}),
        json!({"service_id": ALPHA, "parameters": {"size": 8}}),
        json!({"service_id": ALPHA, "plan_id": MEDIUM, "parameters": {"size": 7}}),
        json!({"service_id": ALPHA, "context": {"platform": "x"}}),
    ] {
        patch(&broker, &body).await.expect_error(422, "ConcurrencyError");
        assert_eq!(
            broker.last(&one()).await.body["state"],
            "in progress",
            "S-05: undisturbed"
        );
    }
    broker.run_until_idle().await;
    assert_eq!(
        broker.last_of(&one(), running.operation()).await.body["state"],
        "succeeded"
    );
    assert_eq!(broker.get(&one()).await.expect(200).body["parameters"]["size"], 7);

    // So while a binding is made, and while it is deleted.
    broker
        .put(
            &format!("{}?{LATER}", binding("a")),
            &json!({"service_id": ALPHA, "plan_id": SMALL}),
        )
        .await
        .expect(202);
    let other = json!({"service_id": ALPHA, "parameters": {"size": 2}});
    patch(&broker, &other).await.expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker
        .delete(&format!("{}?{}", binding("a"), delete_later()))
        .await
        .expect(202);
    patch(&broker, &other).await.expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;

    // And while the instance goes.
    broker
        .delete(&format!("{}?{}", one(), delete_later()))
        .await
        .expect(202);
    patch(&broker, &other).await.expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u16_an_update_while_the_instance_is_made_is_a_concurrency_error() {
    let broker = TestBroker::held().await;
    broker
        .put(&format!("{}?{LATER}", one()), &catalog::provision_body())
        .await
        .expect(202);
    for body in [
        json!({"service_id": ALPHA}),
        json!({"service_id": ALPHA, "plan_id": MEDIUM}),
    ] {
        patch(&broker, &body).await.expect_error(422, "ConcurrencyError");
    }
    broker.run_until_idle().await;
    assert_eq!(broker.last(&one()).await.body["state"], "succeeded");
    assert_eq!(broker.get(&one()).await.expect(200).body["plan_id"], SMALL);
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u17_an_unknown_instance_is_404() {
    let broker = TestBroker::start().await;
    // Before catalog ids and before the flag (§16), after shape.
    for body in [
        json!({"service_id": ALPHA}),
        json!({"service_id": "unknown", "plan_id": "unknown"}),
    ] {
        broker.patch(&one(), &body).await.expect_error(404, "NotFound");
        patch(&broker, &body).await.expect_error(404, "NotFound");
    }
    patch(&broker, &json!({})).await.expect_error(400, "BadRequest");
    broker.provisioned("one").await;
    // Another platform's instance of the same name is not known to this one.
    let foreign = broker
        .http
        .patch(format!("{}{}?{LATER}", broker.base, one()))
        .basic_auth("k8s", Some(crate::support::broker::PASSWORD))
        .header("X-Broker-API-Version", "2.17")
        .json(&json!({"service_id": ALPHA}));
    broker.send(foreign).await.expect_error(404, "NotFound");
    broker.deleted("one").await;
    patch(&broker, &json!({"service_id": ALPHA}))
        .await
        .expect_error(404, "NotFound");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u19_parameters_that_break_the_update_schema_are_400() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    let before = Unchanged::from(&broker).await;
    for (parameters, named) in [
        (json!({"size": 10}), "parameters.size"),
        (json!({"size": 0}), "parameters.size"),
        (json!({"size": "3"}), "parameters.size"),
        (json!({"size": 4, "unknown": 1}), "parameters.unknown"),
        // May be chosen at creation only.
        (json!({"colour": "red"}), "parameters.colour"),
    ] {
        let body = json!({"service_id": ALPHA, "parameters": parameters});
        let refused = patch(&broker, &body).await.expect_error(400, "BadRequest");
        assert!(
            refused.body["description"].as_str().unwrap().contains(named),
            "{}",
            refused.text
        );
    }
    before.check(&broker).await;
    broker.deleted_and_end().await;
}
