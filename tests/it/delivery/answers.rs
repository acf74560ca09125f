//! What is answered and what is where, for each way.

use super::{by, full, held};
use crate::support::broker::{Answer, TestBroker};
use crate::support::catalog::{ALPHA, SHORT, bind_body, ids};
use crate::support::flow::binding;
use crate::support::world::{Effect, When};
use chandler::ports::PortErrorKind;
use serde_json::{Value, json};

async fn same_again(broker: &TestBroker, id: &str, body: &Value, first: &Answer) {
    let again = broker.put(&binding(id), body).await.expect(200);
    assert_eq!(again.body, first.body, "a repeated PUT");
    let got = broker.get(&binding(id)).await.expect(200);
    assert_eq!(got.body["credentials"], first.body["credentials"], "GET");
    assert_eq!(got.body["endpoints"], first.body["endpoints"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_says_where_and_how_and_nothing_secret_of_the_instance() {
    let broker = full().await;
    broker.provisioned("one").await;
    let made = broker.put(&binding("a"), &by("reference")).await.expect(201);
    let credentials = &made.body["credentials"];
    let bid = super::bid("a");
    let iid = broker.row("one").await.iid;
    let secret = credentials["keycloak"]["client_secret"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        *credentials,
        json!({
            "type": "fake", "provider": "chandler", "host": "127.0.0.1", "port": 4000, "role": "readwrite",
            "credential_mode": "reference",
            "keycloak": {"client_id": format!("osb-b-{bid}"), "token_uri": "https://id.test/token",
                "grant_type": "client_credentials", "client_secret": secret},
            "vault": {"address": "https://vault.test", "data_path": format!("v1/osb/data/cf/{iid}/osb-b-{bid}")},
        })
    );
    assert!(made.body["endpoints"].is_array(), "B-16");
    same_again(&broker, "a", &by("reference"), &made).await;
    // What lies in the vault is what inline answers, no more and no less, and it works.
    let inline = broker.put(&binding("b"), &by("inline")).await.expect(201).body["credentials"].clone();
    let kept = broker.world.around.kept.lock().unwrap()[&bid].clone();
    let mut names: Vec<_> = kept.versions[0].keys().cloned().collect();
    names.extend(["credential_mode".into(), "keycloak".into(), "vault".into()]);
    names.sort();
    assert_eq!(
        names,
        inline.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    );
    assert!(broker.world.opens(&kept.versions[0]));
    assert_eq!(kept.notes["platform"], "cf");
    assert_eq!(kept.notes["plan"], "small");
    let client = broker.world.around.clients.lock().unwrap()[&bid].clone();
    assert!(client.enabled && client.secret == secret && client.label == "alpha/small");
    assert_eq!(
        (client.binding.tenant.as_str(), &client.binding.iid),
        ("cf", &iid)
    );
    // At rest the broker itself has neither password nor client secret.
    let secrets = &broker.engine.ports().secrets;
    for name in secrets.list(&format!("{iid}/")).await.unwrap() {
        let kept = secrets.get(&name).await.unwrap().unwrap();
        let text = serde_json::to_string(kept.expose()).unwrap();
        let of_a = name.contains(&bid);
        assert!(!of_a || !text.contains("SecretOfTheFakeWorld"), "{name}");
    }
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_come_in_this_order_and_are_few() {
    let broker = full().await;
    broker.provisioned("one").await;
    let calls = async |work: &str| {
        broker.world.calls.lock().unwrap().clear();
        match work {
            "unbind" => drop(
                broker
                    .delete(&format!("{}?{}", binding("a"), ids()))
                    .await
                    .expect(200),
            ),
            way => drop(broker.put(&binding("a"), &by(way)).await.expect(201)),
        }
        broker.world.calls.lock().unwrap().join(" ")
    };
    assert_eq!(calls("reference").await, "issue verify publish ensure proof");
    assert_eq!(calls("unbind").await, "disable revoke withdraw delete");
    assert_eq!(calls("inline").await, "issue verify publish ensure");
    assert_eq!(calls("unbind").await, "disable revoke withdraw delete");
    assert_eq!(calls("secret").await, "issue verify project");
    assert_eq!(calls("unbind").await, "revoke unproject");
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inline_carries_all_and_says_the_other_way_too() {
    let broker = full().await;
    broker.provisioned("one").await;
    let made = broker.put(&binding("a"), &by("inline")).await.expect(201);
    let credentials = &made.body["credentials"];
    assert!(broker.opens(credentials));
    assert_eq!(credentials["credential_mode"], "inline");
    let client = broker.world.around.clients.lock().unwrap()[&super::bid("a")].clone();
    assert_eq!(credentials["keycloak"]["client_secret"], json!(client.secret));
    assert!(credentials["vault"]["data_path"].is_string());
    same_again(&broker, "a", &by("inline"), &made).await;
    // Its answers need nobody else.
    broker.world.plan(
        "proof",
        When::Before,
        Effect::Fail(PortErrorKind::Transient, "away"),
        100,
    );
    broker.get(&binding("a")).await.expect(200);
    broker.world.calm();
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_named_and_not_told() {
    let broker = full().await;
    broker.provisioned("one").await;
    let made = broker.put(&binding("a"), &by("secret")).await.expect(201);
    let name = format!("osb-b-{}", super::bid("a"));
    assert_eq!(
        made.body["credentials"],
        json!({"type": "fake", "provider": "chandler", "host": "127.0.0.1", "port": 4000, "role": "readwrite",
            "credential_mode": "secret", "secret": {"namespace": "apps", "name": name}})
    );
    same_again(&broker, "a", &by("secret"), &made).await;
    let there = broker.world.around.projected.lock().unwrap()[&("apps".into(), name)].clone();
    assert_eq!(there.entries["type"], "fake");
    assert!(broker.world.opens(&there.entries));
    assert!(
        broker.world.around.clients.lock().unwrap().is_empty(),
        "nobody needs a client"
    );
    assert!(broker.world.around.kept.lock().unwrap().is_empty());
    broker.settled_and_end().await;
}

/// Somebody else's Secret of that name is left alone, and the bind says no.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_secret_is_not_touched() {
    let broker = full().await;
    broker.provisioned("one").await;
    let key = ("apps".to_owned(), format!("osb-b-{}", super::bid("a")));
    let theirs = crate::support::outside::Projected {
        owner: None,
        entries: serde_json::Map::new(),
    };
    broker
        .world
        .around
        .projected
        .lock()
        .unwrap()
        .insert(key.clone(), theirs.clone());
    let refused = broker.put(&binding("a"), &by("secret")).await;
    assert_eq!(refused.status, 500, "{}", refused.text);
    assert!(refused.text.contains("somebody else's"), "{}", refused.text);
    assert_eq!(broker.world.around.projected.lock().unwrap()[&key], theirs);
    assert!(broker.world.users().is_empty());
    broker.settled_and_end().await;
}

/// While the identity provider is away a GET is refused for now; nothing is made up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_cannot_be_read_while_nobody_knows_the_proof() {
    let broker = full().await;
    broker.provisioned("one").await;
    let made = broker.put(&binding("a"), &by("reference")).await.expect(201);
    broker.world.plan(
        "proof",
        When::Before,
        Effect::Fail(PortErrorKind::Transient, "away"),
        1,
    );
    let refused = broker.get(&binding("a")).await.expect(503);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(
        broker.get(&binding("a")).await.expect(200).body["credentials"],
        made.body["credentials"]
    );
    // A client that somebody removed by hand is our trouble, not the platform's.
    broker.world.around.clients.lock().unwrap().clear();
    broker.get(&binding("a")).await.expect(500);
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_that_expires_goes_from_everywhere() {
    let broker = held().await;
    broker.provisioned_as(ALPHA, SHORT, json!({})).await;
    let body = json!({"service_id": ALPHA, "plan_id": SHORT});
    broker
        .put(&format!("{}?accepts_incomplete=true", binding("a")), &body)
        .await
        .expect(202);
    broker.run_until_idle().await;
    let row = broker.binding_row("a").await;
    let kept = broker.world.around.kept.lock().unwrap()[&row.bid].clone();
    assert_eq!(kept.expires_at, row.expires_at, "the vault has a belt of its own");
    assert!(row.expires_at.is_some());
    broker.advance(std::time::Duration::from_secs(601));
    assert_eq!(broker.sweeper().bindings().await.unwrap().expired, 1);
    broker.run_until_idle().await;
    assert!(broker.world.around.bids().is_empty() && broker.world.users().is_empty());
    broker.get(&binding("a")).await.expect(404);
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_the_instance_takes_its_bindings_out_of_everything_first() {
    let broker = held().await;
    broker.provisioned("one").await;
    for (id, way) in [("a", "reference"), ("b", "secret"), ("c", "inline")] {
        broker.handed(id, way).await;
    }
    broker.world.calls.lock().unwrap().clear();
    broker.deleted("one").await;
    let calls = broker.world.calls.lock().unwrap().clone();
    let at = |call: &str| calls.iter().position(|c| *c == call).unwrap();
    assert!(
        !calls.contains(&"revoke"),
        "the users go with the server: {calls:?}"
    );
    for call in ["disable", "withdraw", "unproject", "delete"] {
        assert!(at(call) < at("remove"), "{calls:?}");
    }
    assert!(broker.world.around.bids().is_empty());
    broker.settle().await;
    broker.end().await;
}

/// OSB rotation: a successor by reference has a client, a path and a user of its own beside its predecessor's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_by_reference_is_a_binding_of_its_own() {
    let broker = full().await;
    broker.provisioned("one").await;
    let old = broker.put(&binding("a"), &bind_body()).await.expect(201).body["credentials"].clone();
    let follows = json!({"predecessor_binding_id": "a"});
    let new = broker.put(&binding("b"), &follows).await.expect(201).body["credentials"].clone();
    assert_eq!(new["credential_mode"], "reference");
    assert_ne!(old["keycloak"], new["keycloak"]);
    assert_ne!(old["vault"]["data_path"], new["vault"]["data_path"]);
    let read = |id: &str| broker.read(id).unwrap();
    assert!(
        broker.world.opens(&read("a")) && broker.world.opens(&read("b")),
        "both work"
    );
    broker.unbound("a").await;
    assert!(broker.read("a").is_none() && broker.world.opens(&read("b")));
    broker.settled_and_end().await;
}
