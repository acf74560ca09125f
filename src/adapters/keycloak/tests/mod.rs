//! The adapter against a strict fake, for the faults a real server does not give on demand. What a real server does is
//! in `tests/platform/keycloak.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use super::*;
use crate::domain::instance::Millis;
use fake::{Fake, Fault, SECRET};
use secrecy::SecretString;
use std::sync::Mutex;
use std::time::Instant;

struct Noon;

impl Clock for Noon {
    fn now(&self) -> Millis {
        1_790_000_000_000
    }
}

fn fixed(text: &str) -> ReadSecret {
    let text = text.to_owned();
    Arc::new(move || Ok(text.clone().into()))
}

fn keycloak_with(fake: &Fake, proof: Proof) -> Keycloak {
    let settings = KeycloakSettings {
        url: fake.url.clone(),
        public_url: "https://id.example.com/".into(),
        ca_pem: None,
        realm: "osb-bindings".into(),
        client_id: "osb-broker".into(),
        proof,
        audience: "osb-vault".into(),
        token_seconds: 120,
        kubernetes_provider: None,
        request_time: Duration::from_millis(700),
        min_version: "26.6".into(),
        refuse_older: false,
    };
    Keycloak::new(settings, Arc::new(Noon)).unwrap()
}

async fn scene() -> (Fake, Keycloak) {
    let fake = Fake::start().await;
    let keycloak = keycloak_with(&fake, Proof::Secret(fixed(SECRET)));
    (fake, keycloak)
}

fn bid(number: usize) -> String {
    crate::domain::names::bid("cf", "instance", &number.to_string())
}

fn binding(number: usize) -> BindingRef {
    BindingRef {
        tenant: "cf".into(),
        iid: crate::domain::names::iid("cf", "instance"),
        bid: bid(number),
    }
}

fn spec(keycloak: &Keycloak, number: usize) -> IdentitySpec {
    IdentitySpec {
        binding: binding(number),
        label: "postgres/small".into(),
        auth: ClientAuth::ClientSecret,
        secret: keycloak.generate(&ClientAuth::ClientSecret).unwrap(),
    }
}

/// The fake was asked nothing that a real server refuses.
fn clean(fake: &Fake) {
    let wrong = &fake.state.lock().unwrap().wrong;
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn transient(result: PortResult<()>) -> PortError {
    let error = result.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
    error
}

#[tokio::test]
async fn a_bind_is_one_call_once_the_broker_is_in() {
    let (fake, keycloak) = scene().await;
    keycloak.ensure(&spec(&keycloak, 1)).await.unwrap();
    assert_eq!((fake.count("/token"), fake.count("")), (1, 2));
    keycloak.ensure(&spec(&keycloak, 2)).await.unwrap();
    assert_eq!((fake.count("/token"), fake.count("")), (1, 3));
    clean(&fake);
}

#[tokio::test]
async fn a_repeated_ensure_sets_the_whole_state_again() {
    let (fake, keycloak) = scene().await;
    let wanted = spec(&keycloak, 1);
    keycloak.ensure(&wanted).await.unwrap();
    let mut touched = fake.client(&wanted.binding.client_id()).unwrap();
    touched["enabled"] = json!(false);
    touched["fullScopeAllowed"] = json!(true);
    touched["protocolMappers"] = json!([]);
    touched["secret"] = json!("another");
    fake.put(touched);
    keycloak.ensure(&wanted).await.unwrap();
    let client = fake.client(&wanted.binding.client_id()).unwrap();
    assert_eq!(
        (&client["enabled"], &client["fullScopeAllowed"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(client["protocolMappers"].as_array().unwrap().len(), 4);
    assert_eq!(client["secret"], wanted.secret.text("client_secret"));
    assert_eq!(fake.state.lock().unwrap().clients.len(), 1);
    clean(&fake);
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_client() {
    let (fake, keycloak) = scene().await;
    let wanted = spec(&keycloak, 1);
    fake.fault("POST /admin", Fault::Lost);
    transient(keycloak.ensure(&wanted).await);
    assert!(fake.client(&wanted.binding.client_id()).is_some(), "it was made");
    keycloak.ensure(&wanted).await.unwrap();
    assert_eq!(fake.state.lock().unwrap().clients.len(), 1);
    fake.fault("PUT /admin", Fault::Lost);
    transient(keycloak.disable(&bid(1)).await);
    assert_eq!(
        fake.client(&wanted.binding.client_id()).unwrap()["enabled"],
        false
    );
    keycloak.disable(&bid(1)).await.unwrap();
    fake.fault("DELETE /admin", Fault::Lost);
    transient(keycloak.delete(&bid(1)).await);
    assert!(fake.client(&wanted.binding.client_id()).is_none());
    keycloak.delete(&bid(1)).await.unwrap();
    clean(&fake);
}

#[tokio::test]
async fn two_workers_make_one_client() {
    let (fake, keycloak) = scene().await;
    fake.fault("POST /admin", Fault::Overtaken);
    keycloak.ensure(&spec(&keycloak, 1)).await.unwrap();
    assert_eq!(fake.state.lock().unwrap().clients.len(), 1);
    assert_eq!(fake.count("/admin"), 3, "POST, GET, PUT");
    // Made and gone again in between.
    fake.fault("POST /admin", Fault::Status(409));
    let error = keycloak.ensure(&spec(&keycloak, 2)).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Conflict);
    clean(&fake);
}

#[tokio::test]
async fn somebody_elses_client_is_not_taken_over() {
    let (fake, keycloak) = scene().await;
    let wanted = spec(&keycloak, 1);
    let foreign = json!({
        "id": "f0f0", "clientId": wanted.binding.client_id(), "enabled": true, "secret": "theirs",
        "attributes": {}, "protocolMappers": [{"name": "more rights"}],
    });
    fake.put(foreign.clone());
    let error = keycloak.ensure(&wanted).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Denied);
    assert!(error.detail.starts_with("ALARM"), "{}", error.detail);
    assert_eq!(fake.client(&wanted.binding.client_id()), Some(foreign));
    // But a binding that ends leaves nothing that could log in by its name.
    keycloak.disable(&bid(1)).await.unwrap();
    assert_eq!(
        fake.client(&wanted.binding.client_id()).unwrap()["enabled"],
        false
    );
    keycloak.delete(&bid(1)).await.unwrap();
    assert!(fake.client(&wanted.binding.client_id()).is_none());
    clean(&fake);
}

#[tokio::test]
async fn what_may_pass_by_itself_is_transient_and_the_next_try_succeeds() {
    for status in [500, 502, 503, 429] {
        for place in ["/token", "POST /admin"] {
            let (fake, keycloak) = scene().await;
            let wanted = spec(&keycloak, 1);
            fake.fault(place, Fault::Status(status));
            transient(keycloak.ensure(&wanted).await);
            assert_eq!(fake.count(place), 1, "a port does not try again by itself");
            keycloak.ensure(&wanted).await.unwrap();
            clean(&fake);
        }
    }
    let (fake, keycloak) = scene().await;
    drop(fake);
    let nowhere = KeycloakSettings {
        url: "http://127.0.0.1:1".into(),
        ..keycloak.settings.clone()
    };
    let keycloak = Keycloak::new(nowhere, Arc::new(Noon)).unwrap();
    transient(keycloak.delete(&bid(1)).await);
}

#[tokio::test]
async fn a_slow_server_is_left_in_time_and_its_late_work_is_found() {
    let (fake, keycloak) = scene().await;
    let wanted = spec(&keycloak, 1);
    fake.fault("POST /admin", Fault::Slow(Duration::from_secs(5)));
    let began = Instant::now();
    transient(keycloak.ensure(&wanted).await);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    keycloak.ensure(&wanted).await.unwrap();
    assert_eq!(fake.state.lock().unwrap().clients.len(), 1);
    clean(&fake);
}

#[tokio::test]
async fn a_token_that_ended_early_is_renewed_once() {
    let (fake, keycloak) = scene().await;
    keycloak.ensure(&spec(&keycloak, 1)).await.unwrap();
    fake.forget_tokens();
    keycloak.ensure(&spec(&keycloak, 2)).await.unwrap();
    assert_eq!(fake.count("/token"), 2);
    fake.forget_requests();
    fake.fault("POST /admin", Fault::Status(401));
    fake.fault("POST /admin", Fault::Status(401));
    let error = keycloak.ensure(&spec(&keycloak, 3)).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Denied);
    assert_eq!((fake.count("/token"), fake.count("POST /admin")), (1, 2));
    clean(&fake);
}

#[tokio::test]
async fn a_token_near_its_end_is_not_used() {
    let (fake, keycloak) = scene().await;
    fake.state.lock().unwrap().token_life = 0;
    keycloak.delete(&bid(1)).await.unwrap();
    // The client is looked for by its id, then by its name.
    assert_eq!((fake.count("/token"), fake.count("/admin")), (2, 2));
    clean(&fake);
}

#[tokio::test]
async fn many_calls_share_one_log_in_and_its_failure() {
    let (fake, keycloak) = scene().await;
    let keycloak = &keycloak;
    let all = (0..20).map(|n| async move { keycloak.ensure(&spec(keycloak, n)).await });
    for done in futures::future::join_all(all).await {
        done.unwrap();
    }
    assert_eq!(fake.count("/token"), 1);
    assert_eq!(fake.state.lock().unwrap().clients.len(), 20);
    fake.forget_tokens();
    fake.forget_requests();
    let all = (20..40).map(|n| async move { keycloak.ensure(&spec(keycloak, n)).await });
    for done in futures::future::join_all(all).await {
        done.unwrap();
    }
    assert_eq!(fake.count("/token"), 1, "one renewal, however many were refused");

    let (fake, keycloak) = scene().await;
    let keycloak = &keycloak;
    fake.fault("/token", Fault::Slow(Duration::from_secs(5)));
    let began = Instant::now();
    let all = (0..20).map(|n| async move { keycloak.ensure(&spec(keycloak, n)).await });
    for done in futures::future::join_all(all).await {
        transient(done);
    }
    assert_eq!(fake.count("/token"), 1);
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "nobody waits for a row of time limits"
    );
    keycloak.ensure(&spec(keycloak, 1)).await.unwrap();
    clean(&fake);
}

#[tokio::test]
async fn a_changed_secret_counts_without_a_restart_and_shows_in_no_error() {
    let fake = Fake::start().await;
    let kept = Arc::new(Mutex::new("an-old-secret".to_owned()));
    let reading = kept.clone();
    let read: ReadSecret = Arc::new(move || Ok(SecretString::from(reading.lock().unwrap().clone())));
    let keycloak = keycloak_with(&fake, Proof::Secret(read));
    let error = transient(keycloak.ensure(&spec(&keycloak, 1)).await);
    assert!(error.message.contains("does not accept the broker's log-in"));
    assert!(!format!("{error:?}").contains("an-old-secret"), "{error:?}");
    SECRET.clone_into(&mut kept.lock().unwrap());
    keycloak.ensure(&spec(&keycloak, 1)).await.unwrap();
    clean(&fake);
}

#[tokio::test]
async fn no_secret_is_in_any_error() {
    let (fake, keycloak) = scene().await;
    for fault in [400, 401, 403, 404, 409, 500].map(Fault::Status) {
        for place in ["POST /admin", "GET /admin", "PUT /admin", "/token"] {
            let wanted = spec(&keycloak, 1);
            fake.fault(place, fault);
            if place != "POST /admin" {
                fake.fault("POST /admin", Fault::Status(409));
            }
            if place == "/token" {
                fake.forget_tokens();
            }
            if let Err(error) = keycloak.ensure(&wanted).await {
                let shown = format!("{error:?} {error}");
                assert!(!shown.contains(wanted.secret.text("client_secret")), "{shown}");
                assert!(!shown.contains(SECRET) && !shown.contains("token-"), "{shown}");
            }
            let mut state = fake.state.lock().unwrap();
            state.clients.clear();
            state.forget_faults();
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_closed_and_gone_already() {
    let (fake, keycloak) = scene().await;
    keycloak.disable(&bid(1)).await.unwrap();
    keycloak.delete(&bid(1)).await.unwrap();
    assert_eq!(
        keycloak
            .proof(&binding(1), &ClientAuth::ClientSecret)
            .await
            .unwrap(),
        None
    );
    clean(&fake);
}

#[tokio::test]
async fn disable_changes_nothing_else_and_delete_needs_one_call() {
    let (fake, keycloak) = scene().await;
    let wanted = spec(&keycloak, 1);
    keycloak.ensure(&wanted).await.unwrap();
    let mut before = fake.client(&wanted.binding.client_id()).unwrap();
    fake.forget_requests();
    keycloak.disable(&bid(1)).await.unwrap();
    before["enabled"] = json!(false);
    assert_eq!(fake.client(&wanted.binding.client_id()), Some(before));
    keycloak.delete(&bid(1)).await.unwrap();
    assert_eq!(fake.count(""), 2);
    clean(&fake);
}

#[tokio::test]
async fn a_client_under_another_id_is_found_by_its_name() {
    let (fake, keycloak) = scene().await;
    let wanted = spec(&keycloak, 1);
    keycloak.ensure(&wanted).await.unwrap();
    let mut moved = fake.client(&wanted.binding.client_id()).unwrap();
    moved["id"] = json!("moved");
    fake.state.lock().unwrap().clients.clear();
    fake.put(moved);
    keycloak.ensure(&wanted).await.unwrap();
    let proof = keycloak.proof(&wanted.binding, &wanted.auth).await.unwrap();
    assert_eq!(proof, Some(wanted.secret.clone()));
    keycloak.disable(&bid(1)).await.unwrap();
    assert_eq!(
        fake.client(&wanted.binding.client_id()).unwrap()["enabled"],
        false
    );
    keycloak.delete(&bid(1)).await.unwrap();
    assert!(fake.state.lock().unwrap().clients.is_empty());
    clean(&fake);
}

#[tokio::test]
async fn the_proof_is_what_was_generated() {
    let (fake, keycloak) = scene().await;
    let wanted = spec(&keycloak, 1);
    assert_eq!(wanted.secret.text("client_secret").len(), 43);
    assert_ne!(wanted.secret, spec(&keycloak, 1).secret);
    keycloak.ensure(&wanted).await.unwrap();
    let proof = keycloak.proof(&wanted.binding, &wanted.auth).await.unwrap();
    assert_eq!(proof, Some(wanted.secret.clone()));
    let jwks = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "eA"}]});
    let signed = IdentitySpec {
        binding: binding(2),
        secret: Secret::default(),
        auth: ClientAuth::PrivateKeyJwt { jwks },
        ..wanted
    };
    assert_eq!(keycloak.generate(&signed.auth).unwrap(), Secret::default());
    assert_eq!(keycloak.proof(&signed.binding, &signed.auth).await.unwrap(), None);
    keycloak.ensure(&signed).await.unwrap();
    assert_eq!(
        keycloak.proof(&signed.binding, &signed.auth).await.unwrap(),
        Some(Secret::default())
    );
    clean(&fake);
}

#[tokio::test]
async fn names_the_broker_never_gives_never_leave_it() {
    let (fake, keycloak) = scene().await;
    for bad in ["*", "../../x", "ABC", ""] {
        let mut wanted = spec(&keycloak, 1);
        bad.clone_into(&mut wanted.binding.bid);
        assert_eq!(
            keycloak.ensure(&wanted).await.unwrap_err().kind,
            PortErrorKind::Invalid
        );
        assert!(keycloak.proof(&wanted.binding, &wanted.auth).await.is_err());
        assert!(keycloak.disable(bad).await.is_err());
        assert!(keycloak.delete(bad).await.is_err());
    }
    assert_eq!(fake.count(""), 0);
}

#[tokio::test]
async fn pages_show_every_client_and_mark_the_strange_ones() {
    let (fake, keycloak) = scene().await;
    for n in 0..250 {
        let name = format!("osb-b-{}", bid(n));
        fake.put(json!({"id": format!("{n}"), "clientId": name, "enabled": n != 7, "secret": "hunter2"}));
    }
    for (id, name) in [
        ("x", "osb-b-*"),
        ("y", "osb-b-ABC"),
        ("z", "not-osb-b-but-near"),
        ("b", "osb-broker"),
    ] {
        fake.put(json!({"id": id, "clientId": name, "enabled": true, "secret": "hunter2"}));
    }
    let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = keycloak.page(after.as_deref()).await.unwrap();
        assert!(page.items.len() <= 100);
        assert!(!format!("{page:?}").contains("hunter2"));
        all.extend(page.items);
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, 3);
    let mut strange: Vec<_> = all
        .iter()
        .filter(|found| found.bid.is_none())
        .map(|found| found.client_id.as_str())
        .collect();
    strange.sort_unstable();
    assert_eq!(strange, ["osb-b-*", "osb-b-ABC"]);
    assert_eq!(all.len(), 252);
    let off: Vec<_> = all.iter().filter(|found| !found.enabled).collect();
    assert_eq!(off.len(), 1);
    assert_eq!(off[0].bid, Some(bid(7)));
    assert_eq!(
        keycloak.page(Some("x")).await.unwrap_err().kind,
        PortErrorKind::Invalid
    );
    clean(&fake);
}

#[tokio::test]
async fn applications_are_told_where_to_go_and_nothing_secret() {
    let (fake, keycloak) = scene().await;
    let told = keycloak.coordinates(&binding(1), &ClientAuth::ClientSecret);
    let issuer = "https://id.example.com/realms/osb-bindings";
    assert_eq!(
        Value::Object(told),
        json!({
            "issuer": issuer,
            "token_uri": format!("{issuer}/protocol/openid-connect/token"),
            "client_id": format!("osb-b-{}", bid(1)),
            "grant_type": "client_credentials",
            "audience": "osb-vault",
            "client_auth": "client_secret",
        })
    );
    let jwks = json!({"keys": []});
    let told = keycloak.coordinates(&binding(1), &ClientAuth::PrivateKeyJwt { jwks });
    assert_eq!(told["client_auth"], "private_key_jwt");
    assert_eq!(told["assertion_audience"], issuer);
    assert_eq!(fake.count(""), 0);
}
