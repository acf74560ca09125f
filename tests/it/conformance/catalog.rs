//! C: what the catalog says, what it promises, and what becomes of instances when it changes.

use super::common::{binding, by_hand, flagged, instance, last, merged, provision};
use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::{ALPHA, BARE, BETA, BETA_SMALL, ELSEWHERE, MEDIUM, SHORT, SMALL, sources};
use chandler::domain::catalog::{Catalog, KnownMechanisms, Sources};
use serde_json::{Value, json};
use std::collections::BTreeSet;

async fn served() -> Value {
    let broker = TestBroker::start().await;
    let body = broker.get("/v2/catalog").await.expect(200).body;
    broker.end().await;
    body
}

fn list<'a>(of: &'a Value, member: &str) -> &'a Vec<Value> {
    of[member].as_array().unwrap()
}

fn text<'a>(of: &'a Value, member: &str) -> &'a str {
    let text = of[member].as_str().unwrap_or_default();
    assert!(!text.is_empty(), "{member} of {of}");
    text
}

fn plan<'a>(catalog: &'a Value, id: &str) -> &'a Value {
    list(catalog, "services")
        .iter()
        .flat_map(|s| list(s, "plans"))
        .find(|p| p["id"] == id)
        .unwrap()
}

/// The complaints about the test catalog with one file changed.
fn complaints(file: &str, from: &str, to: &str) -> String {
    let mut changed = sources();
    let before = changed[file].clone();
    let after = before.replace(from, to);
    assert_ne!(before, after, "{file} has no {from}");
    changed.insert(file.into(), after);
    let problems = Catalog::load(&changed, &KnownMechanisms).expect_err(&format!("{file}: {from} -> {to}"));
    format!("{problems:?}")
}

/// The test catalog without some of its files.
fn without(files: &[&str]) -> Sources {
    let mut all = sources();
    for file in files {
        all.remove(*file).unwrap();
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_services_is_an_array_that_is_not_empty() {
    let catalog = served().await;
    assert_eq!(list(&catalog, "services").len(), 2);
    assert_eq!(catalog.as_object().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c02_c03_offerings_and_plans_have_what_they_must() {
    let catalog = served().await;
    for offering in list(&catalog, "services") {
        for member in ["name", "id", "description"] {
            text(offering, member);
        }
        assert!(offering["bindable"].is_boolean());
        assert!(!list(offering, "plans").is_empty());
        for plan in list(offering, "plans") {
            for member in ["id", "name", "description"] {
                text(plan, member);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c03_plans_that_cannot_be_provisioned_here_are_not_shown() {
    let catalog = served().await;
    let ids: Vec<_> = list(&catalog, "services")
        .iter()
        .flat_map(|s| list(s, "plans"))
        .map(|p| text(p, "id"))
        .collect();
    assert_eq!(ids.len(), 5);
    assert!(!ids.contains(&ELSEWHERE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c04_names_are_unique_and_only_inside_their_offering() {
    let catalog = served().await;
    let names: BTreeSet<_> = list(&catalog, "services")
        .iter()
        .map(|s| text(s, "name"))
        .collect();
    assert_eq!(names.len(), 2);
    for offering in list(&catalog, "services") {
        let plans: BTreeSet<_> = list(offering, "plans").iter().map(|p| text(p, "name")).collect();
        assert_eq!(plans.len(), list(offering, "plans").len());
    }
    // Two offerings may both have a plan `small`; one may not have two, and differing in case they are different.
    assert_eq!(
        (
            &plan(&catalog, SMALL)["name"],
            &plan(&catalog, BETA_SMALL)["name"]
        ),
        (&json!("small"), &json!("small"))
    );
    assert!(complaints("plans/alpha/medium.yaml", "name: medium", "name: small").contains("C-04"));
    let mut cased = sources();
    let medium = cased["plans/alpha/short.yaml"].replace("name: short", "name: Medium");
    cased.insert("plans/alpha/short.yaml".into(), medium);
    let offering = cased["catalog/alpha/offering.yaml"].replace("[medium, short]", "[medium, Medium]");
    cased.insert("catalog/alpha/offering.yaml".into(), offering);
    assert!(Catalog::load(&cased, &KnownMechanisms).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_ids_are_unique_over_everything() {
    complaints("plans/beta/small.yaml", BETA_SMALL, SMALL);
    complaints("plans/beta/small.yaml", BETA_SMALL, ALPHA);
    complaints("catalog/beta/offering.yaml", BETA, ALPHA);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c06_names_are_friendly_to_command_lines() {
    for bad in [
        "name: \"my plan\"",
        "name: \"-\"",
        "name: \"größe\"",
        "name: \"\"",
        &format!("name: {}", "x".repeat(64)),
    ] {
        complaints("plans/alpha/small.yaml", "name: small", bad);
    }
    for offering in list(&served().await, "services") {
        let described = list(offering, "plans").iter().chain([offering]);
        for one in described {
            let name = text(one, "name");
            assert!(
                name.chars()
                    .all(|c| c.is_ascii_alphanumeric() || ".-".contains(c)),
                "{name}"
            );
            assert!(text(one, "description").chars().count() <= 255);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c07_requires_knows_three_words() {
    complaints(
        "catalog/alpha/offering.yaml",
        "tags: [fake]",
        "requires: [everything]",
    );
    for offering in list(&served().await, "services") {
        for word in offering["requires"].as_array().into_iter().flatten() {
            assert!(["syslog_drain", "route_forwarding", "volume_mount"].contains(&word.as_str().unwrap()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c08_what_is_called_retrievable_can_be_fetched_for_every_plan() {
    let broker = TestBroker::start().await;
    let catalog = broker.get("/v2/catalog").await.expect(200).body;
    for offering in list(&catalog, "services") {
        assert_eq!(
            (
                &offering["instances_retrievable"],
                &offering["bindings_retrievable"]
            ),
            (&json!(true), &json!(true))
        );
        for plan in list(offering, "plans") {
            let id = text(plan, "id");
            let of = json!({"service_id": offering["id"], "plan_id": id});
            broker
                .put(&flagged(&instance(id)), &provision(of.clone()))
                .await
                .expect(202);
            broker.run_until_idle().await;
            let fetched = broker.get(&instance(id)).await.expect(200).body;
            assert_eq!(
                (&fetched["service_id"], &fetched["plan_id"]),
                (&offering["id"], &plan["id"])
            );
            if plan["bindable"] == true {
                let bind = merged(of, json!({"bind_resource": {"app_guid": "app"}}));
                let bound = broker.put(&binding(id, "b"), &bind).await.expect(201).body;
                assert_eq!(
                    broker.get(&binding(id, "b")).await.expect(200).body["credentials"],
                    bound["credentials"]
                );
            }
        }
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c09_context_updates_are_announced_and_handled() {
    let broker = TestBroker::start().await;
    let catalog = broker.get("/v2/catalog").await.expect(200).body;
    for offering in list(&catalog, "services") {
        assert_eq!(offering["allow_context_updates"], true);
    }
    broker.provisioned("i").await;
    let renamed =
        json!({"service_id": ALPHA, "context": {"platform": "cloudfoundry", "instance_name": "renamed"}});
    broker.patch(&flagged(&instance("i")), &renamed).await.expect(200);
    let stored = broker.engine.store().instances_page("", None, 10).await.unwrap();
    assert_eq!(stored[0].context.as_ref().unwrap()["instance_name"], "renamed");
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c10_plan_values_win_over_the_offerings() {
    let catalog = served().await;
    let alpha = list(&catalog, "services")
        .iter()
        .find(|s| s["id"] == ALPHA)
        .unwrap();
    assert_eq!(
        (&alpha["bindable"], &alpha["plan_updateable"]),
        (&json!(true), &json!(true))
    );
    for (id, bindable, updateable) in [
        (SMALL, true, true),
        (MEDIUM, true, false),
        (SHORT, true, false),
        (BARE, false, false),
    ] {
        let plan = plan(&catalog, id);
        assert_eq!(
            (&plan["bindable"], &plan["plan_updateable"]),
            (&json!(bindable), &json!(updateable)),
            "{id}"
        );
    }
    assert!(!catalog.to_string().contains("plan_updatable"));
    // What the catalog says is what happens.
    let broker = TestBroker::start().await;
    broker
        .put(&flagged(&instance("i")), &provision(json!({"plan_id": BARE})))
        .await
        .expect(202);
    broker.run_until_idle().await;
    broker
        .put(&binding("i", "b"), &json!({"service_id": ALPHA, "plan_id": BARE}))
        .await
        .expect_error(400, "BadRequest");
    let change = json!({"service_id": ALPHA, "plan_id": SMALL});
    broker
        .patch(&flagged(&instance("i")), &change)
        .await
        .expect_error(422, "PlanChangeNotSupported");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c11_free_rotatable_and_polling_duration() {
    let catalog = served().await;
    for (id, rotatable) in [(SMALL, true), (BARE, false), (BETA_SMALL, false)] {
        let plan = plan(&catalog, id);
        assert_eq!(
            (&plan["free"], &plan["binding_rotatable"]),
            (&json!(true), &json!(rotatable)),
            "{id}"
        );
        assert_eq!(plan["maximum_polling_duration"], 600);
    }
    for offering in list(&catalog, "services") {
        assert!(offering.get("binding_rotatable").is_none(), "plan level only");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_maintenance_info_has_a_semantic_version() {
    for offering in list(&served().await, "services") {
        for plan in list(offering, "plans") {
            let info = &plan["maintenance_info"];
            assert_eq!(text(info, "version").split('.').count(), 3);
            text(info, "description");
            assert_eq!(
                info.as_object().unwrap().len(),
                2,
                "Cloud Foundry refuses other members"
            );
        }
    }
    for bad in ["1", "v1.0.0", "1.0", "latest", "01.0.0"] {
        let to = format!("version: \"{bad}\"");
        assert!(complaints("catalog/alpha/offering.yaml", "version: 1.0.0", &to).contains("C-12"));
    }
    let mut built = sources();
    let text = built["catalog/alpha/offering.yaml"].replace("version: 1.0.0", "version: 1.0.0-rc.1+build.5");
    built.insert("catalog/alpha/offering.yaml".into(), text);
    assert!(Catalog::load(&built, &KnownMechanisms).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_c14_schemas_are_draft_04_and_for_bindings_only_where_there_are_some() {
    for offering in list(&served().await, "services") {
        for plan in list(offering, "plans") {
            let schemas = plan["schemas"].as_object().unwrap();
            assert_eq!(schemas.contains_key("service_binding"), plan["bindable"] == true);
            let mut all = vec![
                &schemas["service_instance"]["create"],
                &schemas["service_instance"]["update"],
            ];
            assert_eq!(schemas["service_instance"].as_object().unwrap().len(), 2);
            if let Some(binding) = schemas.get("service_binding") {
                assert_eq!(binding.as_object().unwrap().len(), 1);
                all.push(&binding["create"]);
            }
            for one in all {
                assert_eq!(one.as_object().unwrap().len(), 1);
                let schema = &one["parameters"];
                assert_eq!(schema["$schema"], "http://json-schema.org/draft-04/schema#");
                assert!(
                    schema.to_string().len() <= 65_536 && !schema.to_string().contains("\"$ref\":\"http")
                );
            }
        }
    }
    let file = "catalog/alpha/create.schema.json";
    complaints(
        file,
        "\"$schema\": \"http://json-schema.org/draft-04/schema#\", ",
        "",
    );
    complaints(file, "draft-04", "draft-07");
    complaints(
        file,
        "\"type\": \"integer\"",
        "\"$ref\": \"http://example.test/x.json\"",
    );
    complaints(
        file,
        "\"type\": \"object\"",
        &format!(
            "\"type\": \"object\", \"description\": \"{}\"",
            "x".repeat(65_536)
        ),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c15_metadata_is_conventional() {
    for offering in list(&served().await, "services") {
        let metadata = &offering["metadata"];
        for member in [
            "displayName",
            "longDescription",
            "providerDisplayName",
            "documentationUrl",
            "supportUrl",
        ] {
            text(metadata, member);
        }
        assert!(metadata.get("shareable").is_none_or(Value::is_boolean));
        for plan in list(offering, "plans") {
            text(&plan["metadata"], "displayName");
            assert!(list(&plan["metadata"], "bullets").iter().all(Value::is_string));
        }
    }
    complaints("plans/alpha/small.yaml", "bullets: [\"One\"]", "bullets: One");
    complaints(
        "plans/alpha/small.yaml",
        "bullets: [\"One\"]",
        "costs: [{amount: {eur: \"ten\"}, unit: MONTHLY}]",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_instances_of_a_removed_plan_stay_operable() {
    let broker = TestBroker::start().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    let of = json!({"service_id": ALPHA, "plan_id": MEDIUM});
    for id in ["i", "kept"] {
        broker
            .put(&flagged(&instance(id)), &provision(of.clone()))
            .await
            .expect(202);
        broker.run_until_idle().await;
        broker.put(&binding(id, "b"), &of).await.expect(201);
    }
    let less = without(&["plans/alpha/medium.yaml"]);
    let mut less = less;
    let offering = less["catalog/alpha/offering.yaml"].replace("[medium, short]", "[short]");
    less.insert("catalog/alpha/offering.yaml".into(), offering);
    broker
        .engine
        .set_catalog(Catalog::load(&less, &KnownMechanisms).unwrap())
        .await
        .unwrap();

    broker
        .put(&flagged(&instance("new")), &provision(of))
        .await
        .expect_error(400, "BadRequest");
    assert_eq!(broker.get(&i).await.expect(200).body["plan_id"], MEDIUM);
    assert_eq!(broker.get(&last(&i)).await.expect(200).body["state"], "succeeded");
    assert!(broker.get(&b).await.expect(200).body["credentials"].is_object());
    broker.get(&last(&b)).await.expect(200);
    let query = format!("service_id={ALPHA}&plan_id={MEDIUM}");
    broker.delete(&format!("{b}?{query}")).await.expect(200);
    broker
        .delete(&format!("{i}?accepts_incomplete=true&{query}"))
        .await
        .expect(202);
    broker.run_until_idle().await;

    // The whole offering goes.
    let gone: Vec<_> = less
        .keys()
        .filter(|path| path.contains("/alpha/"))
        .cloned()
        .collect();
    for path in &gone {
        less.remove(path);
    }
    broker
        .engine
        .set_catalog(Catalog::load(&less, &KnownMechanisms).unwrap())
        .await
        .unwrap();
    broker.get(&instance("kept")).await.expect(200);
    broker.get(&binding("kept", "b")).await.expect(200);
    broker.sweeper().once().await.unwrap();
    broker
        .delete(&format!("{}?{query}", binding("kept", "b")))
        .await
        .expect(200);
    broker
        .delete(&format!("{}?accepts_incomplete=true&{query}", instance("kept")))
        .await
        .expect(202);
    broker.run_until_idle().await;
    assert_eq!(
        broker.get(&last(&instance("kept"))).await.expect(200).body["state"],
        "succeeded"
    );
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_a_provision_that_runs_when_its_plan_goes_ends_and_can_be_deleted() {
    let broker = by_hand().await;
    let of = json!({"service_id": ALPHA, "plan_id": BARE});
    broker
        .put(&flagged(&instance("i")), &provision(of))
        .await
        .expect(202);
    let less = Catalog::load(&without(&["plans/alpha/bare.yaml"]), &KnownMechanisms).unwrap();
    broker.engine.set_catalog(less).await.unwrap();
    broker.run_until_idle().await;
    assert_eq!(
        broker.get(&last(&instance("i"))).await.expect(200).body["state"],
        "failed"
    );
    let path = format!(
        "{}?accepts_incomplete=true&service_id={ALPHA}&plan_id={BARE}",
        instance("i")
    );
    broker.delete(&path).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(
        broker.get(&last(&instance("i"))).await.expect(200).body["state"],
        "succeeded"
    );
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c18_an_invalid_catalog_is_refused_with_every_reason() {
    let offering = "catalog/alpha/offering.yaml";
    let plan = "plans/alpha/small.yaml";
    for (file, from, to) in [
        (
            offering,
            "description: A service of the fake world",
            "description: \"\"",
        ),
        (
            offering,
            "description: A service of the fake world",
            "descriptoin: x",
        ),
        (
            offering,
            "maximum_polling_duration: 600",
            "maximum_polling_duration: soon",
        ),
        (offering, "small: [medium, short]", "small: [nothing]"),
        (plan, "description: The plan small", "description: \"\""),
        (plan, "id: 0a0a0a0a", "id: \"\" #"),
        ("catalog/alpha/binding.yaml", "mechanism: sql", "mechanism: magic"),
        (
            "catalog/alpha/create.schema.json",
            "{\"$schema\"",
            "{{\"$schema\"",
        ),
    ] {
        assert!(complaints(file, from, to).contains(file), "{file}: {from}");
    }
    let long = format!("description: {}", "x".repeat(10_001));
    complaints(plan, "description: The plan small", &long);
    // All at once, not one by one.
    let mut two = sources();
    for (file, from, to) in [(offering, "1.0.0", "one"), (plan, "name: small", "name: \"a b\"")] {
        let text = two[file].replace(from, to);
        two.insert(file.into(), text);
    }
    let text = format!("{:?}", Catalog::load(&two, &KnownMechanisms).unwrap_err());
    assert!(text.contains(offering) && text.contains(plan), "{text}");
    // What is served does not depend on what could not be loaded.
    assert_eq!(Choices::default().catalog.len(), sources().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c16_no_dashboard_client_is_announced_because_there_is_none() {
    assert!(!served().await.to_string().contains("dashboard_client"));
}
