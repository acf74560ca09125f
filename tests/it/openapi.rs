//! The OpenAPI document is true: the committed copy is the one the code makes, it names every call there is and no
//! other, and whatever the broker answers is in it with the shape it really has.

use crate::support::broker::{Answer, Choices, TestBroker};
use crate::support::catalog::{self, ALPHA, BARE, BETA, BETA_SMALL, MEDIUM, SMALL, ids};
use crate::support::world::World;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

const I: &str = "/v2/service_instances/{instance_id}";
const B: &str = "/v2/service_instances/{instance_id}/service_bindings/{binding_id}";
const R: &str = "/api/v1/bindings/{binding_id}/rotate";
const METHODS: [&str; 7] = ["GET", "PUT", "PATCH", "DELETE", "POST", "OPTIONS", "TRACE"];

fn document() -> Value {
    serde_json::from_str(&chandler::http::openapi::document_json()).unwrap()
}

#[test]
fn the_committed_document_is_fresh() {
    let committed =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/chandler.json")).unwrap();
    assert!(
        committed == chandler::http::openapi::document_json(),
        "openapi/chandler.json is stale; run `make gen`"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_names_every_call_and_no_other() {
    let broker = TestBroker::start().await;
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    for (path, item) in paths {
        let real = path.replace("{instance_id}", "i").replace("{binding_id}", "b");
        for method in METHODS {
            let served = broker.send(broker.request(method, &real)).await.status != 405;
            let named = item.get(method.to_lowercase()).is_some();
            assert_eq!(served, named, "{method} {path}");
        }
    }
    let named: BTreeSet<_> = paths.keys().map(String::as_str).collect();
    let last = |path: &str| format!("{path}/last_operation");
    assert_eq!(
        named,
        BTreeSet::from([R, "/v2/catalog", I, last(I).as_str(), B, last(B).as_str()])
    );
    assert_eq!(
        broker.get("/openapi.json").await.body,
        document,
        "what is served is what is committed"
    );
    broker.end().await;
}

/// What was answered, held against the document.
struct Witness {
    document: Value,
    seen: BTreeSet<(String, String, u16)>,
}

impl Witness {
    fn saw(&mut self, method: &str, path: &str, answer: &Answer, status: u16) {
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        let responses = &self.document["paths"][path][method.to_lowercase()]["responses"];
        let documented = &responses[status.to_string()];
        assert!(
            documented.is_object(),
            "{method} {path} {status} is not documented"
        );
        self.seen.insert((method.into(), path.into(), status));
        let Some(schema) = documented.pointer("/content/application~1json/schema") else {
            assert!(
                answer.text.is_empty(),
                "{method} {path} {status} has a body nobody told of: {}",
                answer.text
            );
            return;
        };
        let whole = json!({"allOf": [schema], "components": self.document["components"]});
        let validator = jsonschema::draft202012::new(&whole).unwrap();
        let wrong: Vec<_> = validator
            .iter_errors(&answer.body)
            .map(|e| e.to_string())
            .collect();
        assert!(
            wrong.is_empty(),
            "{method} {path} {status}: {wrong:?} in {}",
            answer.text
        );
        for (member, value) in answer.body.as_object().unwrap() {
            let known = self.knows(schema, member);
            assert!(
                known,
                "{method} {path} {status}: the document does not know `{member}`"
            );
            assert!(!value.is_null(), "Z-02: {member}");
        }
        let headers = documented["headers"].as_object().cloned().unwrap_or_default();
        for name in ["retry-after", "www-authenticate", "allow", "etag"] {
            let told = headers.keys().any(|h| h.eq_ignore_ascii_case(name));
            assert!(
                told || !answer.headers.contains_key(name),
                "{method} {path} {status}: nobody told of {name}"
            );
        }
    }

    fn knows(&self, schema: &Value, member: &str) -> bool {
        let reference = schema["$ref"].as_str().unwrap_or_default();
        let target = self
            .document
            .pointer(reference.trim_start_matches('#'))
            .unwrap_or(schema);
        target["properties"].get(member).is_some()
    }
}

/// A rotation in place, on a broker with a vault.
async fn rotations(w: &mut Witness) {
    let mut choices = Choices {
        world: Arc::new(World::with_all_around()),
        ..Choices::default()
    };
    choices.engine.sync_wait = std::time::Duration::from_secs(20);
    let broker = TestBroker::with(choices).await;
    let rotate = async |id: &str| {
        let path = R.replace("{binding_id}", id);
        broker.send(broker.request("POST", &path)).await
    };
    w.saw("POST", R, &rotate("b").await, 404);
    broker.provisioned("one").await;
    broker.bound("one", "b").await;
    w.saw("POST", R, &rotate("b").await, 200);
    let mut inline = catalog::bind_body();
    inline["parameters"] = json!({"delivery": "inline"});
    broker
        .put("/v2/service_instances/one/service_bindings/i", &inline)
        .await
        .expect(201);
    w.saw("POST", R, &rotate("i").await, 422);
    // What it was made from is not known any more.
    let all = broker.engine.served().catalog.clone();
    let mut without = all.clone();
    without.offerings.retain(|offering| offering.id != ALPHA);
    broker.engine.set_catalog(without).await.unwrap();
    w.saw("POST", R, &rotate("b").await, 409);
    broker.engine.set_catalog(all).await.unwrap();
    broker.deleted("one").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_documented_with_its_shape() {
    let broker = TestBroker::start().await;
    let mut witness = Witness {
        document: document(),
        seen: BTreeSet::new(),
    };
    let w = &mut witness;
    rotations(w).await;
    let flag = "accepts_incomplete=true";
    let (i, b) = (
        "/v2/service_instances/i",
        "/v2/service_instances/i/service_bindings/b",
    );
    let last_i = format!("{I}/last_operation");
    let last_b = format!("{B}/last_operation");

    w.saw("GET", "/v2/catalog", &broker.get("/v2/catalog").await, 200);
    let etag = broker.get("/v2/catalog").await.headers["etag"].clone();
    w.saw(
        "GET",
        "/v2/catalog",
        &broker
            .send(broker.request("GET", "/v2/catalog").header("If-None-Match", etag))
            .await,
        304,
    );

    // What every call may answer before it is looked at closely.
    for (path, item) in document()["paths"].as_object().unwrap() {
        let real = path.replace("{instance_id}", "i").replace("{binding_id}", "b");
        for method in METHODS
            .into_iter()
            .filter(|m| item.get(m.to_lowercase()).is_some())
        {
            let request = |user: &str, version: &str| {
                let base = broker
                    .http
                    .request(method.parse().unwrap(), format!("{}{real}", broker.base));
                base.basic_auth(user, Some(crate::support::broker::PASSWORD))
                    .header("X-Broker-API-Version", version)
            };
            w.saw(method, path, &broker.send(request("nobody", "2.17")).await, 401);
            if path.starts_with("/v2/") {
                w.saw(method, path, &broker.send(request("cf", "1.0")).await, 412);
            }
            w.saw(
                method,
                path,
                &broker
                    .send(request("cf", "2.17").header("X-Broker-API-Originating-Identity", "x"))
                    .await,
                400,
            );
            w.saw(
                method,
                path,
                &broker.send(request("cf", "2.17").body(vec![b' '; 2 << 20])).await,
                413,
            );
        }
    }

    // Nothing there yet.
    w.saw("GET", I, &broker.get(i).await, 404);
    w.saw(
        "GET",
        &last_i,
        &broker.get(&format!("{i}/last_operation")).await,
        404,
    );
    w.saw("GET", B, &broker.get(b).await, 404);
    w.saw(
        "GET",
        &last_b,
        &broker.get(&format!("{b}/last_operation")).await,
        404,
    );
    w.saw(
        "PATCH",
        I,
        &broker
            .patch(&format!("{i}?{flag}"), &json!({"service_id": ALPHA}))
            .await,
        404,
    );
    w.saw(
        "DELETE",
        I,
        &broker.delete(&format!("{i}?{flag}&{}", ids())).await,
        410,
    );
    w.saw("PUT", B, &broker.put(b, &catalog::bind_body()).await, 404);
    w.saw("DELETE", B, &broker.delete(&format!("{b}?{}", ids())).await, 410);

    // An instance.
    w.saw("PUT", I, &broker.put(i, &catalog::provision_body()).await, 422);
    w.saw(
        "PUT",
        I,
        &broker
            .put(&format!("{i}?{flag}"), &catalog::provision_body())
            .await,
        202,
    );
    w.saw(
        "GET",
        &last_i,
        &broker.get(&format!("{i}/last_operation")).await,
        200,
    );
    broker.run_until_idle().await;
    w.saw(
        "PUT",
        I,
        &broker
            .put(&format!("{i}?{flag}"), &catalog::provision_body())
            .await,
        200,
    );
    let mut other = catalog::provision_body();
    other["space_guid"] = "other".into();
    w.saw("PUT", I, &broker.put(&format!("{i}?{flag}"), &other).await, 409);
    w.saw("GET", I, &broker.get(i).await, 200);
    w.saw(
        "PATCH",
        I,
        &broker
            .patch(&format!("{i}?{flag}"), &json!({"service_id": ALPHA}))
            .await,
        200,
    );
    let bare = broker
        .patch(
            &format!("{i}?{flag}"),
            &json!({"service_id": ALPHA, "plan_id": BARE}),
        )
        .await;
    w.saw("PATCH", I, &bare, 422);
    let medium = json!({"service_id": ALPHA, "plan_id": MEDIUM, "maintenance_info": {"version": "1.1.0"}, "parameters": {"size": 4}});
    w.saw(
        "PATCH",
        I,
        &broker.patch(&format!("{i}?{flag}"), &medium).await,
        202,
    );
    w.saw("GET", I, &broker.get(i).await, 422);
    broker.run_until_idle().await;
    w.saw("GET", I, &broker.get(i).await, 200);

    // Bindings, on the plan it has now.
    let body = json!({"service_id": ALPHA, "plan_id": MEDIUM, "parameters": {"role": "readonly"}});
    w.saw("PUT", B, &broker.put(b, &body).await, 201);
    w.saw("PUT", B, &broker.put(b, &body).await, 200);
    w.saw(
        "PUT",
        B,
        &broker
            .put(b, &json!({"service_id": ALPHA, "plan_id": MEDIUM}))
            .await,
        409,
    );
    w.saw("GET", B, &broker.get(b).await, 200);
    w.saw(
        "GET",
        &last_b,
        &broker.get(&format!("{b}/last_operation")).await,
        200,
    );
    let beta =
        json!({"service_id": BETA, "plan_id": BETA_SMALL, "organization_guid": "o", "space_guid": "s"});
    broker
        .put(&format!("/v2/service_instances/beta?{flag}"), &beta)
        .await
        .expect(202);
    broker.run_until_idle().await;
    let appless = json!({"service_id": BETA, "plan_id": BETA_SMALL});
    w.saw(
        "PUT",
        B,
        &broker
            .put("/v2/service_instances/beta/service_bindings/x", &appless)
            .await,
        422,
    );
    w.saw(
        "DELETE",
        B,
        &broker.delete(&format!("{b}?service_id={ALPHA}")).await,
        400,
    );
    w.saw("DELETE", B, &broker.delete(&format!("{b}?{}", ids())).await, 200);
    let later = broker.put(&format!("{i}/service_bindings/c?{flag}"), &body).await;
    w.saw("PUT", B, &later, later.status);
    broker.run_until_idle().await;
    let gone = broker
        .delete(&format!("{i}/service_bindings/c?{flag}&{}", ids()))
        .await;
    w.saw("DELETE", B, &gone, gone.status);
    broker.run_until_idle().await;

    // The end.
    w.saw("DELETE", I, &broker.delete(&format!("{i}?{}", ids())).await, 422);
    w.saw(
        "DELETE",
        I,
        &broker.delete(&format!("{i}?{flag}&{}", ids())).await,
        202,
    );
    broker.run_until_idle().await;
    w.saw(
        "GET",
        &last_i,
        &broker.get(&format!("{i}/last_operation")).await,
        200,
    );
    broker
        .delete(&format!(
            "/v2/service_instances/beta?{flag}&service_id={BETA}&plan_id={BETA_SMALL}"
        ))
        .await
        .expect(202);
    broker.run_until_idle().await;
    assert!(
        broker
            .get(&format!("{i}?service_id={ALPHA}&plan_id={SMALL}"))
            .await
            .status
            == 404
    );

    // The other way round: what the document promises was seen, but for what needs a fault, a setting or a race.
    let rare = [201, 202, 405, 410, 422, 429, 500, 503];
    // Nothing of ours is deleted within the call; another provisioner may.
    w.seen.insert(("DELETE".into(), I.into(), 200));
    for (path, item) in document()["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Some(responses) = operation["responses"].as_object() else {
                continue;
            };
            for status in responses.keys() {
                let status: u16 = status.parse().unwrap();
                let seen = w.seen.contains(&(method.to_uppercase(), path.clone(), status));
                assert!(
                    seen || rare.contains(&status),
                    "{method} {path} {status} is documented and was not met"
                );
            }
        }
    }
    broker.end().await;
}
