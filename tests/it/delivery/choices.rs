//! Which way is chosen, and what is refused, over HTTP.

use super::{by, choices, full};
use crate::support::broker::TestBroker;
use crate::support::catalog::{ALPHA, SMALL, bind_body, sources};
use crate::support::flow::{binding, instance};
use chandler::domain::delivery::Delivery;
use chandler::engine::PlatformWays;
use serde_json::{Value, json};

fn with(parameters: Value) -> Value {
    let mut body = bind_body();
    body["parameters"] = parameters;
    body
}

async fn mode(broker: &TestBroker, id: &str, body: &Value) -> String {
    let answer = broker.put(&binding(id), body).await.expect(201);
    answer.body["credentials"]["credential_mode"]
        .as_str()
        .unwrap_or("none")
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parameter_the_plan_the_platform_and_the_broker_in_this_order() {
    let broker = full().await;
    broker.provisioned("one").await;
    assert_eq!(
        mode(&broker, "a", &bind_body()).await,
        "reference",
        "the platform's first"
    );
    assert_eq!(mode(&broker, "b", &by("inline")).await, "inline");
    assert_eq!(mode(&broker, "c", &by("secret")).await, "secret");
    // The successor is like the one it follows, not like what is usual.
    assert_eq!(
        mode(&broker, "d", &json!({"predecessor_binding_id": "b"})).await,
        "inline"
    );
    broker
        .put(&binding("x"), &by("carrier pigeon"))
        .await
        .expect_error(400, "BadRequest");
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_narrows_what_a_platform_may_have() {
    let mut all = choices();
    let path = "plans/alpha/small.yaml";
    let narrowed = format!("{}delivery: [inline, reference]\n", all.catalog[path]);
    all.catalog.insert(path.into(), narrowed);
    let broker = TestBroker::with(all).await;
    broker.provisioned("one").await;
    assert_eq!(mode(&broker, "a", &bind_body()).await, "inline");
    assert_eq!(mode(&broker, "b", &by("reference")).await, "reference");
    let refused = broker.put(&binding("c"), &by("secret")).await.expect(400);
    let said = refused.body["description"].as_str().unwrap();
    assert_eq!(said, "parameters.delivery: choose one of inline, reference.");
    broker.settled_and_end().await;
}

/// Where nothing is configured a bind is what it always was, and the broker's own parameters do not exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_anything_around_nothing_changes() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for name in ["delivery", "client_auth", "secret_namespace"] {
        let refused = broker
            .put(&binding("x"), &with(json!({name: "inline"})))
            .await
            .expect(400);
        let said = refused.body["description"].as_str().unwrap();
        assert!(
            said.starts_with(&format!("parameters.{name}: is not known here")),
            "{said}"
        );
    }
    let answer = broker.put(&binding("a"), &bind_body()).await.expect(201);
    let members: Vec<&String> = answer.body["credentials"].as_object().unwrap().keys().collect();
    assert_eq!(
        members,
        ["host", "password", "port", "provider", "role", "type", "username"]
    );
    let catalog = broker.get("/v2/catalog").await.expect(200).text;
    assert!(!catalog.contains("secret_namespace") && !catalog.contains("client_auth"));
    broker
        .send(broker.request("POST", &super::rotate_path("a")))
        .await
        .expect_error(422, "RotationNotSupported");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalog_tells_of_the_brokers_own_parameters() {
    let broker = full().await;
    let body = broker.get("/v2/catalog").await.expect(200).body;
    let plan = body["services"][0]["plans"]
        .as_array()
        .unwrap()
        .iter()
        .find(|plan| plan["id"] == SMALL)
        .unwrap();
    let schema = &plan["schemas"]["service_binding"]["create"]["parameters"];
    let properties = schema["properties"].as_object().unwrap();
    for name in ["role", "delivery", "client_auth", "secret_namespace"] {
        assert!(properties.contains_key(name), "{schema}");
    }
    assert_eq!(
        properties["delivery"]["enum"],
        json!(["reference", "secret", "inline"])
    );
    // A platform checks what people type against it before it asks: what works must pass.
    let validator = jsonschema::draft4::new(schema).unwrap();
    let key = json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "BB"});
    for good in [
        json!({}),
        json!({"delivery": "inline", "role": "owner"}),
        json!({"client_auth": {"method": "private_key_jwt", "jwks": {"keys": [key]}}}),
        json!({"client_auth": {"method": "kubernetes", "namespace": "a", "service_account": "b"}}),
        json!({"delivery": "secret", "secret_namespace": "apps"}),
    ] {
        assert!(validator.is_valid(&good), "{good}");
    }
    assert!(!validator.is_valid(&json!({"delivery": "inlin"})));
    assert!(schema.to_string().len() < 65_536, "C-14");
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_may_not_use_the_brokers_names() {
    let mut all = sources();
    let path = "catalog/alpha/bind.schema.json";
    let taken = all[path].replace("\"role\"", "\"delivery\"");
    all.insert(path.into(), taken);
    let mechanisms = chandler::domain::catalog::KnownMechanisms;
    let problems = chandler::domain::catalog::Catalog::load(&all, &mechanisms).unwrap_err();
    let told = problems
        .iter()
        .any(|p| p.path == "properties.delivery" && p.file == path);
    assert!(told, "{problems:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_go_only_where_the_platform_may_put_them() {
    let mut all = choices();
    all.engine.platforms.insert(
        "cf".into(),
        PlatformWays {
            delivery: vec![Delivery::Inline, Delivery::Secret],
            namespaces: vec!["apps".into(), "shop".into()],
        },
    );
    let broker = TestBroker::with(all).await;
    broker.provisioned("one").await;
    let ask = |parameters: Value| {
        let broker = &broker;
        async move { broker.put(&binding("a"), &with(parameters)).await }
    };
    for parameters in [
        json!({"delivery": "secret"}),
        json!({"delivery": "secret", "secret_namespace": "kube-system"}),
        json!({"delivery": "inline", "secret_namespace": "shop"}),
    ] {
        let refused = ask(parameters).await.expect(400);
        let said = refused.body["description"].as_str().unwrap();
        assert!(said.starts_with("parameters.secret_namespace: "), "{said}");
    }
    ask(json!({"delivery": "reference"})).await.expect(400);
    let made = ask(json!({"delivery": "secret", "secret_namespace": "shop"}))
        .await
        .expect(201);
    assert_eq!(made.body["credentials"]["secret"]["namespace"], "shop");
    broker.settled_and_end().await;
}

/// One service account is one binding's identity: two would be one client to the identity provider.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_is_one_bindings() {
    let broker = full().await;
    broker.provisioned("one").await;
    let body = |name: &str| {
        with(json!({"client_auth": {"method": "kubernetes", "namespace": "apps", "service_account": name}}))
    };
    let made = broker.put(&binding("a"), &body("web")).await.expect(201);
    let keycloak = &made.body["credentials"]["keycloak"];
    assert!(keycloak.get("client_secret").is_none(), "{keycloak}");
    assert_eq!(
        broker.put(&binding("a"), &body("web")).await.expect(200).body,
        made.body
    );
    let refuse = async |id: &str, body: Value| {
        let refused = broker.put(&binding(id), &body).await.expect(400);
        let said = refused.body["description"].as_str().unwrap().to_owned();
        assert!(
            said.starts_with("parameters.client_auth.service_account: apps/web "),
            "{said}"
        );
    };
    refuse("b", body("web")).await;
    refuse("c", json!({"predecessor_binding_id": "a"})).await;
    let mut successor = body("web-2");
    successor["predecessor_binding_id"] = json!("a");
    broker.put(&binding("d"), &successor).await.expect(201);
    // Another platform's is another's all the same.
    let other = broker
        .http
        .put(format!(
            "{}{}?accepts_incomplete=true",
            broker.base,
            instance("two")
        ))
        .basic_auth("k8s", Some(crate::support::broker::PASSWORD))
        .header("X-Broker-API-Version", "2.17")
        .json(&crate::support::catalog::provision_body());
    broker.send(other).await.expect(202);
    broker.run_until_idle().await;
    let other = |id: &str| {
        broker
            .http
            .put(format!(
                "{}{}/service_bindings/{id}",
                broker.base,
                instance("two")
            ))
            .basic_auth("k8s", Some(crate::support::broker::PASSWORD))
            .header("X-Broker-API-Version", "2.17")
            .json(&body("web"))
    };
    broker.send(other("z")).await.expect(400);
    // Free again once the binding is gone.
    broker
        .delete(&format!("{}?service_id={ALPHA}&plan_id={SMALL}", binding("a")))
        .await
        .expect(200);
    broker.send(other("z")).await.expect(201);
    let gone = broker
        .http
        .delete(format!(
            "{}{}?accepts_incomplete=true&service_id={ALPHA}&plan_id={SMALL}",
            broker.base,
            instance("two")
        ))
        .basic_auth("k8s", Some(crate::support::broker::PASSWORD))
        .header("X-Broker-API-Version", "2.17");
    broker.send(gone).await.expect(202);
    broker.run_until_idle().await;
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_keys_are_refused_and_not_repeated() {
    let broker = full().await;
    broker.provisioned("one").await;
    let auth =
        |key: Value| with(json!({"client_auth": {"method": "private_key_jwt", "jwks": {"keys": [key]}}}));
    let private = json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "BB", "d": "PrivatePartOfAKey"});
    let refused = broker.put(&binding("a"), &auth(private)).await.expect(400);
    assert!(
        refused.body["description"]
            .as_str()
            .unwrap()
            .starts_with("parameters.client_auth.jwks: ")
    );
    assert!(!refused.text.contains("PrivatePart"), "{}", refused.text);
    let public = json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "BB"});
    let made = broker.put(&binding("a"), &auth(public)).await.expect(201);
    assert!(!made.text.contains("client_secret"), "{}", made.text);
    assert_eq!(
        broker.get(&binding("a")).await.expect(200).body["credentials"],
        made.body["credentials"]
    );
    broker.settled_and_end().await;
}
