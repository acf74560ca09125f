//! P: PUT instance.

use super::common::{
    delete, everything, flagged, instance, last, provision, provision_plan, state_of, told, with_http,
};
use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::{self, ALPHA, BARE, BETA, BETA_SMALL, ELSEWHERE, MEDIUM, SMALL, sources};
use crate::support::world::{Effect, When};
use chandler::ports::PortErrorKind;
use serde_json::{Value, json};

/// Which of a broker's plans tell no maintenance version: a catalog without any.
fn without_maintenance() -> Choices {
    let mut catalog = sources();
    for file in ["catalog/alpha/offering.yaml", "catalog/beta/offering.yaml"] {
        let text = catalog[file].replace("maintenance_info:\n  version: 1.0.0\n  description: First.\n", "");
        catalog.insert(file.into(), text);
    }
    Choices {
        catalog,
        ..Choices::default()
    }
}

async fn failed(broker: &TestBroker, id: &str, body: &Value) {
    *broker.world.refuse_ready.lock().unwrap() = Some("The disk is full.".into());
    broker.put(&flagged(&instance(id)), body).await.expect(202);
    broker.run_until_idle().await;
    *broker.world.refuse_ready.lock().unwrap() = None;
    assert_eq!(told(broker, &instance(id)).await["state"], "failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p02_p03_accepted_with_operation_dashboard_and_metadata() {
    let mut choices = Choices::default();
    choices.engine.dashboard_url = Some("https://dash.example.test/{service}/{plan}/{instance_id}".into());
    let broker = TestBroker::with(choices).await;
    let mut urls = Vec::new();
    for id in ["i", "j"] {
        let answer = broker
            .put(&flagged(&instance(id)), &catalog::provision_body())
            .await
            .expect(202);
        assert!(!answer.operation().is_empty());
        assert!(answer.body["metadata"]["labels"].is_object());
        urls.push(answer.body["dashboard_url"].as_str().unwrap().to_owned());
    }
    assert!(
        urls[0].starts_with("https://dash.example.test/alpha/small/") && urls[0] != urls[1],
        "P-03: {urls:?}"
    );
    broker.run_until_idle().await;
    assert_eq!(
        broker.get(&instance("i")).await.expect(200).body["dashboard_url"],
        json!(urls[0])
    );
    let again = broker
        .put(&instance("i"), &catalog::provision_body())
        .await
        .expect(200);
    assert_eq!(again.body["dashboard_url"], json!(urls[0]));
    broker.end().await;
    let broker = TestBroker::start().await;
    let answer = broker
        .put(&flagged(&instance("i")), &catalog::provision_body())
        .await
        .expect(202);
    assert!(answer.body.get("dashboard_url").is_none(), "left out, not null");
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p04_identical_and_complete_is_200_with_or_without_the_flag() {
    let broker = TestBroker::start().await;
    let body = provision(json!({"parameters": {"size": 3, "colour": "blue"}}));
    let first = broker.put(&flagged(&instance("i")), &body).await.expect(202);
    broker.run_until_idle().await;
    let before = everything(&broker).await;
    let reordered = provision(json!({"parameters": {"colour": "blue", "size": 3}}));
    for answer in [
        broker.put(&flagged(&instance("i")), &body).await,
        broker.put(&instance("i"), &body).await,
        broker.put(&instance("i"), &reordered).await,
    ] {
        let answer = answer.expect(200);
        assert_eq!(answer.body["metadata"], first.body["metadata"]);
        assert!(answer.body.get("operation").is_none());
    }
    assert_eq!(everything(&broker).await, before);
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p05_identical_and_running_is_202_with_the_same_operation() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    let first = broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202)
        .operation()
        .to_owned();
    for _ in 0..3 {
        assert_eq!(
            broker
                .put(&flagged(&i), &catalog::provision_body())
                .await
                .expect(202)
                .operation(),
            first
        );
    }
    broker
        .put(&i, &catalog::provision_body())
        .await
        .expect_error(422, "AsyncRequired");
    broker.run_until_idle().await;
    assert_eq!(broker.world.count("place"), 1, "one instance was made");
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p05_many_at_once_make_one_instance() {
    let broker = TestBroker::start().await;
    let body = catalog::provision_body();
    let path = flagged(&instance("i"));
    let all = futures::future::join_all((0..20).map(|_| broker.put(&path, &body))).await;
    let first = all[0].operation().to_owned();
    for answer in all {
        assert_eq!(answer.expect(202).operation(), first);
    }
    broker.run_until_idle().await;
    assert_eq!(broker.world.instances.lock().unwrap().len(), 1);
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p06_different_attributes_conflict() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    let original = provision(json!({"parameters": {"size": 2}}));
    broker.put(&flagged(&i), &original).await.expect(202);
    let different = [
        provision(json!({})),
        provision(json!({"parameters": {}})),
        provision(json!({"parameters": {"size": 3}})),
        provision(json!({"parameters": {"size": 2, "colour": "red"}})),
        provision(json!({"parameters": {"size": 2}, "plan_id": MEDIUM})),
        provision(json!({"parameters": {"size": 2}, "service_id": BETA, "plan_id": BETA_SMALL})),
        provision(json!({"parameters": {"size": 2}, "organization_guid": "other"})),
        provision(json!({"parameters": {"size": 2}, "space_guid": "other"})),
        // Wrong in itself too: the conflict comes first.
        provision(json!({"parameters": {"size": "no number"}})),
    ];
    for running in [true, false] {
        let before = everything(&broker).await;
        for body in &different {
            for path in [flagged(&i), i.clone()] {
                broker.put(&path, body).await.expect_error(409, "Conflict");
            }
        }
        assert_eq!(everything(&broker).await, before, "the original is untouched");
        let same = broker.put(&flagged(&i), &original).await;
        assert_eq!(same.status, if running { 202 } else { 200 });
        // Not attributes: context and maintenance_info.
        let mut same = original.clone();
        same["context"] = json!({"platform": "cloudfoundry", "instance_name": "new name"});
        same["maintenance_info"] = json!({"version": "1.0.0"});
        assert!(broker.put(&flagged(&i), &same).await.status < 300);
        broker.run_until_idle().await;
    }
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p07_missing_members_are_400_and_the_context_may_stand_for_the_guids() {
    for strict in [false, true] {
        let broker = with_http(|http| http.require_guids = strict).await;
        let path = flagged(&instance("i"));
        for name in ["service_id", "plan_id", "organization_guid", "space_guid"] {
            for value in [json!(null), json!("")] {
                let mut body = catalog::provision_body();
                if value.is_null() {
                    body.as_object_mut().unwrap().remove(name);
                } else {
                    body[name] = value;
                }
                let answer = broker.put(&path, &body).await.expect_error(400, "BadRequest");
                assert!(
                    answer.body["description"].as_str().unwrap().contains(name),
                    "{}",
                    answer.text
                );
            }
        }
        let context_only =
            json!({"service_id": ALPHA, "plan_id": SMALL, "context": {"platform": "service-manager"}});
        let answer = broker.put(&path, &context_only).await;
        assert_eq!(answer.status, if strict { 400 } else { 202 });
        let no_platform = json!({"service_id": ALPHA, "plan_id": SMALL, "context": {"namespace": "x"}});
        broker
            .put(&flagged(&instance("j")), &no_platform)
            .await
            .expect_error(400, "BadRequest");
        // No format is asked of the guids.
        broker
            .put(
                &flagged(&instance("k")),
                &provision(json!({"organization_guid": "-", "space_guid": "-"})),
            )
            .await
            .expect(202);
        broker.run_until_idle().await;
        broker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p08_ids_that_are_not_in_the_catalog_are_400() {
    let broker = TestBroker::start().await;
    for (members, names) in [
        (json!({"service_id": "unknown"}), "service_id"),
        (json!({"service_id": ALPHA.to_uppercase()}), "service_id"),
        (json!({"service_id": SMALL}), "service_id"),
        (json!({"plan_id": "unknown"}), "plan_id"),
        (json!({"plan_id": BETA_SMALL}), "plan_id"),
        (json!({"plan_id": ELSEWHERE}), "plan_id"),
        (json!({"plan_id": "small"}), "plan_id"),
    ] {
        let answer = broker
            .put(&flagged(&instance("i")), &provision(members))
            .await
            .expect_error(400, "BadRequest");
        assert!(
            answer.body["description"].as_str().unwrap().starts_with(names),
            "{}",
            answer.text
        );
    }
    broker.get(&last(&instance("i"))).await.expect(404);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p09_wrong_types_are_400() {
    let broker = TestBroker::start().await;
    for members in [
        json!({"parameters": []}),
        json!({"parameters": "size=1"}),
        json!({"parameters": 1}),
        json!({"context": []}),
        json!({"service_id": 1}),
        json!({"plan_id": {}}),
        json!({"organization_guid": 1}),
        json!({"space_guid": ["x"]}),
        json!({"maintenance_info": "1.0.0"}),
        json!({"maintenance_info": {"version": 1}}),
    ] {
        let answer = broker
            .put(&flagged(&instance("i")), &provision(members.clone()))
            .await
            .expect_error(400, "BadRequest");
        let name = members.as_object().unwrap().keys().next().unwrap().clone();
        assert!(
            answer.body["description"].as_str().unwrap().contains(&name),
            "{}",
            answer.text
        );
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_parameters_against_the_schema_are_400_and_name_the_field() {
    let broker = TestBroker::start().await;
    for (parameters, field) in [
        (json!({"size": 0}), "parameters.size"),
        (json!({"size": 10}), "parameters.size"),
        (json!({"size": 1.5}), "parameters.size"),
        (json!({"size": "1"}), "parameters.size"),
        (json!({"colour": "green"}), "parameters.colour"),
        (json!({"flavour": "x"}), "parameters.flavour"),
        (json!({"Size": 1}), "parameters.Size"),
    ] {
        let body = provision(json!({"parameters": parameters}));
        let answer = broker
            .put(&flagged(&instance("i")), &body)
            .await
            .expect_error(400, "BadRequest");
        assert!(
            answer.body["description"].as_str().unwrap().contains(field),
            "{}",
            answer.text
        );
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_async_required_comes_before_the_parameters() {
    let broker = TestBroker::start().await;
    for members in [
        json!({}),
        json!({"parameters": {"size": 99}}),
        json!({"maintenance_info": {"version": "9.9.9"}}),
    ] {
        broker
            .put(&instance("i"), &provision(members))
            .await
            .expect_error(422, "AsyncRequired");
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_another_maintenance_version_conflicts_whatever_it_looks_like() {
    let broker = TestBroker::start().await;
    for (plan, version) in [
        (SMALL, "1.0.1"),
        (SMALL, "1.1.0"),
        (MEDIUM, "1.0.0"),
        (SMALL, "1.0.0+build"),
        (SMALL, "v1.0.0"),
        (SMALL, "1.0"),
        (SMALL, "1.0.0 "),
        (SMALL, "not a version"),
        (SMALL, ""),
    ] {
        let mut body = provision_plan(plan);
        body["maintenance_info"] = json!({"version": version, "description": "First."});
        broker
            .put(&flagged(&instance("i")), &body)
            .await
            .expect_error(422, "MaintenanceInfoConflict");
    }
    broker.get(&last(&instance("i"))).await.expect(404);
    broker.end().await;
    // The plan has none.
    let broker = TestBroker::with(without_maintenance()).await;
    let mut body = provision_plan(BARE);
    body["maintenance_info"] = json!({"version": "1.0.0"});
    broker
        .put(&flagged(&instance("i")), &body)
        .await
        .expect_error(422, "MaintenanceInfoConflict");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_the_catalogs_maintenance_version_is_accepted_and_kept() {
    let broker = TestBroker::start().await;
    let mut body = provision_plan(MEDIUM);
    body["maintenance_info"] = json!({"version": "1.1.0", "description": "ignored", "more": 1});
    broker.put(&flagged(&instance("i")), &body).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(
        broker.get(&instance("i")).await.expect(200).body["maintenance_info"],
        json!({"version": "1.1.0"})
    );
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p14_maintenance_info_may_be_absent_or_empty() {
    let broker = TestBroker::start().await;
    for (n, info) in [
        json!(null),
        json!({}),
        json!({"description": "x"}),
        json!({"version": null}),
    ]
    .into_iter()
    .enumerate()
    {
        let mut body = catalog::provision_body();
        body["maintenance_info"] = info;
        broker
            .put(&flagged(&instance(&n.to_string())), &body)
            .await
            .expect(202);
    }
    broker.run_until_idle().await;
    assert_eq!(
        broker.get(&instance("1")).await.expect(200).body["maintenance_info"],
        json!({"version": "1.0.0"})
    );
    broker.end().await;
    let broker = TestBroker::with(without_maintenance()).await;
    let mut body = catalog::provision_body();
    body["maintenance_info"] = json!({});
    broker.put(&flagged(&instance("i")), &body).await.expect(202);
    broker.run_until_idle().await;
    assert!(
        broker
            .get(&instance("i"))
            .await
            .expect(200)
            .body
            .get("maintenance_info")
            .is_none()
    );
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_the_operation_is_short_and_never_null() {
    let broker = TestBroker::start().await;
    let accepted = broker
        .put(&flagged(&instance("i")), &catalog::provision_body())
        .await
        .expect(202);
    assert!((1..10_000).contains(&accepted.operation().len()));
    broker.run_until_idle().await;
    let done = broker
        .put(&flagged(&instance("i")), &catalog::provision_body())
        .await
        .expect(200);
    assert!(done.body.get("operation").is_none(), "left out instead of null");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p16_metadata_is_objects_and_the_same_on_fetch() {
    let broker = TestBroker::start().await;
    let accepted = broker
        .put(&flagged(&instance("i")), &catalog::provision_body())
        .await
        .expect(202);
    let labels = accepted.body["metadata"]["labels"].as_object().unwrap();
    assert!(labels.values().all(Value::is_string));
    broker.run_until_idle().await;
    let fetched = broker.get(&instance("i")).await.expect(200);
    assert_eq!(fetched.body["metadata"], accepted.body["metadata"]);
    // After a plan change the whole set is the new one.
    broker
        .patch(
            &flagged(&instance("i")),
            &json!({"service_id": ALPHA, "plan_id": MEDIUM}),
        )
        .await
        .expect(202);
    broker.run_until_idle().await;
    let after = broker.get(&instance("i")).await.expect(200);
    assert_eq!(after.body["metadata"]["labels"]["chandler.osb/plan"], "medium");
    assert_eq!(
        after.body["metadata"]["labels"].as_object().unwrap().len(),
        labels.len()
    );
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p17_while_it_is_updated_or_deleted_it_is_busy() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    broker.provisioned("i").await;
    let same = catalog::provision_body();
    let other = provision(json!({"space_guid": "other"}));
    broker
        .patch(&flagged(&i), &json!({"service_id": ALPHA, "plan_id": MEDIUM}))
        .await
        .expect(202);
    broker
        .put(&flagged(&i), &same)
        .await
        .expect_error(422, "ConcurrencyError");
    broker
        .put(&flagged(&i), &other)
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker.delete(&delete(&i)).await.expect(202);
    broker
        .put(&flagged(&i), &same)
        .await
        .expect_error(422, "ConcurrencyError");
    broker
        .put(&flagged(&i), &other)
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &i).await["state"], "succeeded");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p18_after_a_failure_an_identical_request_is_a_fresh_attempt() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    let body = provision(json!({"parameters": {"size": 2}}));
    failed(&broker, "i", &body).await;
    broker
        .put(&flagged(&i), &provision(json!({"parameters": {"size": 3}})))
        .await
        .expect_error(409, "Conflict");
    broker.put(&i, &body).await.expect_error(422, "AsyncRequired");
    broker.get(&i).await.expect_error(404, "NotFound");
    let fresh = broker
        .put(&flagged(&i), &body)
        .await
        .expect(202)
        .operation()
        .to_owned();
    assert_eq!(state_of(&broker, &i, &fresh).await, "in progress");
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &i).await["state"], "succeeded");
    broker.get(&i).await.expect(200);
    assert_eq!(broker.world.instances.lock().unwrap().len(), 1);
    broker.deleted("i").await;
    assert!(broker.world.instances.lock().unwrap().is_empty());
    // Failed at any step.
    for call in ["place", "apply", "observe", "prepare"] {
        broker
            .world
            .plan(call, When::After, Effect::Fail(PortErrorKind::Invalid, "No."), 1);
        broker.put(&flagged(&i), &body).await.expect(202);
        broker.run_until_idle().await;
        assert_eq!(told(&broker, &i).await["state"], "failed", "{call}");
        broker.put(&flagged(&i), &body).await.expect(202);
        broker.run_until_idle().await;
        assert_eq!(told(&broker, &i).await["state"], "succeeded", "{call}");
        broker.deleted("i").await;
    }
    broker.end().await;
}
