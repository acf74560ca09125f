//! I: ids are opaque, ours are short and stable.

use super::common::{binding, delete, flagged, instance, last, provision, state_of};
use crate::http::wire::serve;
use crate::support::broker::TestBroker;
use crate::support::catalog::{self, ALPHA, SMALL, ids, sources};
use chandler::domain::catalog::{Catalog, KnownMechanisms};
use chandler::http::Settings;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Pairwise different ids, percent-encoded, many of them close to one another.
fn odd_ids() -> Vec<String> {
    let long = "x".repeat(8191);
    let mut ids: Vec<String> = [
        "nonexistent-instance",
        "a",
        "A",
        "a%20",
        "%20a",
        "a%2Fb",
        "a%252Fb",
        "a%5Cb",
        "..",
        ".",
        "%2E%2E%2Fetc",
        "%C3%A9",
        "e%CC%81",
        "%F0%9F%9A%A2",
        "%0d%0aX-Evil:%201",
        "a;b=c",
        "a+b",
        "a%2Bb%3F",
        "last_operation",
        "service_bindings",
        "%27;DROP%20TABLE%20instances;--",
        "%24%7Badmin.password%7D",
        "-rf",
        "1",
        "01",
    ]
    .map(str::to_owned)
    .to_vec();
    ids.push(format!("{long}x"));
    ids.push(format!("{long}y"));
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i01_any_text_is_an_id_and_different_texts_are_different_things() {
    let (broker, server) = serve(Settings::default()).await;
    let all = odd_ids();
    let body = |n: usize| {
        provision(json!({"space_guid": format!("space {n}"), "parameters": {"size": 1 + n % 9}})).to_string()
    };
    for (n, id) in all.iter().enumerate() {
        let reply = server.api("PUT", &flagged(&instance(id)), &body(n)).await;
        assert_eq!(reply.status, 202, "{id}: {reply:?}");
    }
    broker.run_until_idle().await;
    let mut users = BTreeSet::new();
    for (n, id) in all.iter().enumerate() {
        let fetched = server.api("GET", &instance(id), "").await;
        assert_eq!(
            (fetched.status, &fetched.json()["parameters"]["size"]),
            (200, &json!(1 + n % 9)),
            "{id}"
        );
        assert_eq!(
            server.api("PUT", &flagged(&instance(id)), &body(n)).await.status,
            200,
            "{id} is found again"
        );
        assert_eq!(
            server.api("GET", &last(&instance(id)), "").await.json()["state"],
            "succeeded"
        );
        let bound = server
            .api("PUT", &binding(id, id), &catalog::bind_body().to_string())
            .await;
        assert_eq!(bound.status, 201, "{id}: {bound:?}");
        users.insert(bound.json()["credentials"]["username"].to_string());
        assert_eq!(server.api("GET", &binding(id, id), "").await.status, 200);
        assert_eq!(server.api("GET", &last(&binding(id, id)), "").await.status, 200);
    }
    assert_eq!(users.len(), all.len(), "no two bindings share a user");
    // The same binding id on one instance more is another binding.
    assert_eq!(
        server
            .api("PUT", &binding("a", "A"), &catalog::bind_body().to_string())
            .await
            .status,
        201
    );
    for id in &all {
        let unbound = server
            .api("DELETE", &format!("{}?{}", binding(id, id), ids()), "")
            .await;
        assert_eq!(unbound.status, 200, "{id}: {unbound:?}");
        assert_eq!(
            server.api("DELETE", &delete(&instance(id)), "").await.status,
            202,
            "{id}"
        );
    }
    broker.run_until_idle().await;
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i01_encoded_and_plain_spellings_are_one_id() {
    let (broker, server) = serve(Settings::default()).await;
    let body = catalog::provision_body().to_string();
    assert_eq!(
        server
            .api("PUT", &flagged(&instance("a.b~c")), &body)
            .await
            .status,
        202
    );
    broker.run_until_idle().await;
    for spelling in ["a%2Eb%7Ec", "%61.b~c", "a%2eb%7ec"] {
        assert_eq!(
            server.api("GET", &instance(spelling), "").await.status,
            200,
            "{spelling}"
        );
    }
    assert_eq!(
        server.api("GET", &instance("a%252Eb~c"), "").await.status,
        404,
        "decoded once, not twice"
    );
    broker.deleted("a.b~c").await;
    broker.end().await;
}

fn minted(catalog: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for offering in catalog["services"].as_array().unwrap() {
        all.push(offering["id"].as_str().unwrap().to_owned());
        all.extend(
            offering["plans"]
                .as_array()
                .unwrap()
                .iter()
                .map(|p| p["id"].as_str().unwrap().to_owned()),
        );
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i02_ids_we_mint_are_url_safe() {
    let broker = TestBroker::start().await;
    let mut all = minted(&broker.get("/v2/catalog").await.expect(200).body);
    all.push(
        broker
            .put(&flagged(&instance("i")), &catalog::provision_body())
            .await
            .expect(202)
            .operation()
            .to_owned(),
    );
    broker.run_until_idle().await;
    all.push(
        broker
            .put(&flagged(&binding("i", "b")), &catalog::bind_body())
            .await
            .expect(202)
            .operation()
            .to_owned(),
    );
    broker.run_until_idle().await;
    for id in all {
        let safe = id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c));
        assert!(safe && !id.is_empty(), "{id}");
    }
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i03_catalog_ids_never_change() {
    let broker = TestBroker::start().await;
    let first = minted(&broker.get("/v2/catalog").await.expect(200).body);
    assert_eq!(minted(&broker.get("/v2/catalog").await.expect(200).body), first);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), first.len());
    // A catalog that gives a known plan or offering another id is refused, and the old one goes on.
    for (file, id) in [
        ("plans/alpha/small.yaml", SMALL),
        ("catalog/alpha/offering.yaml", ALPHA),
    ] {
        let mut changed = sources();
        let text = changed[file].replace(id, "0f0f0f0f-0000-4000-8000-00000000ffff");
        changed.insert(file.into(), text);
        let loaded = Catalog::load(&changed, &KnownMechanisms).unwrap();
        let refusal = broker.engine.set_catalog(loaded).await.unwrap_err();
        assert!(refusal.description.contains(id), "{refusal}");
        assert_eq!(minted(&broker.get("/v2/catalog").await.expect(200).body), first);
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i04_operation_tokens_are_short_and_come_back_percent_encoded() {
    let broker = TestBroker::start().await;
    let i = instance("i");
    let first = broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202)
        .operation()
        .to_owned();
    assert!((1..=100).contains(&first.len()), "{first}");
    broker.run_until_idle().await;
    let second = broker
        .delete(&delete(&i))
        .await
        .expect(202)
        .operation()
        .to_owned();
    assert_ne!(first, second);
    let encoded: String = first.bytes().map(|b| format!("%{b:02X}")).collect();
    assert_eq!(
        state_of(&broker, &i, &encoded).await,
        "succeeded",
        "matched after decoding"
    );
    assert_eq!(state_of(&broker, &i, &second).await, "in progress");
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i05_an_id_may_be_used_again_once_the_old_thing_is_gone() {
    let broker = TestBroker::start().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    broker.provisioned("i").await;
    let first = broker.bound("i", "b").await;
    broker.delete(&format!("{b}?{}", ids())).await.expect(200);
    let second = broker.bound("i", "b").await;
    assert_ne!(first["password"], second["password"]);
    let lets_in = |c: &Value| {
        broker
            .world
            .lets_in(c["username"].as_str().unwrap(), c["password"].as_str().unwrap())
    };
    assert!(!lets_in(&first) && lets_in(&second));

    let gone = broker
        .delete(&delete(&i))
        .await
        .expect(202)
        .operation()
        .to_owned();
    broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    // Another plan, other attributes: nothing of the old instance counts any more.
    let other =
        provision(json!({"plan_id": catalog::SHORT, "parameters": {"size": 5}, "space_guid": "elsewhere"}));
    let again = broker
        .put(&flagged(&i), &other)
        .await
        .expect(202)
        .operation()
        .to_owned();
    assert_eq!(state_of(&broker, &i, &again).await, "in progress");
    assert_eq!(
        state_of(&broker, &i, &gone).await,
        "succeeded",
        "the old delete is still told"
    );
    broker.run_until_idle().await;
    let fetched = broker.get(&i).await.expect(200).body;
    assert_eq!(
        (&fetched["plan_id"], &fetched["parameters"]),
        (&json!(catalog::SHORT), &json!({"size": 5}))
    );
    broker.get(&b).await.expect_error(404, "NotFound");
    broker.delete(&delete(&b)).await.expect_error(410, "Gone");
    let bind = json!({"service_id": ALPHA, "plan_id": catalog::SHORT});
    broker.put(&b, &bind).await.expect(201);
    broker
        .delete(&format!(
            "{i}?accepts_incomplete=true&service_id={ALPHA}&plan_id={}",
            catalog::SHORT
        ))
        .await
        .expect(202);
    broker.run_until_idle().await;
    broker.end().await;
}
