//! The realm as an operator makes it ready, how the broker gets into it, and what a look at it tells.

use crate::realm::{BROKER_SECRET, Realm, fixed, said, spec, worst};
use chandler::adapters::keycloak::{BrokerProof, Done, Key, KeycloakSettings, Look, Plan, Proof};
use chandler::ports::{BindingIdentity, Grade, PortErrorKind};
use serde_json::json;

#[tokio::test]
async fn the_set_up_is_complete_repeatable_and_looked_at() {
    let plan = Realm::plan();
    let realm = Realm::of(&plan).await;
    let keycloak = realm.keycloak();
    let found = keycloak.check(Look::Whole).await;
    assert_eq!(worst(&found), Grade::Warning, "{found:#?}");
    // The one warning: a server does not tell its version to a client of a realm.
    assert_eq!(
        found
            .iter()
            .filter(|finding| finding.grade == Grade::Warning)
            .count(),
        1,
        "{found:#?}"
    );
    assert_eq!(said(&found, "manage-clients and no other"), Grade::Good);
    assert_eq!(said(&found, "Nobody can register"), Grade::Good);
    let again = realm.apply(&plan).await;
    assert!(
        again.iter().all(|done| matches!(done, Done::Had(_))),
        "{again:#?}"
    );

    // What an administrator changed by hand is seen, and set right.
    let broker = realm.client("osb-broker").await.unwrap();
    let broker = broker["id"].as_str().unwrap();
    let administration = realm.client("realm-management").await.unwrap();
    let administration = administration["id"].as_str().unwrap();
    let (_, role) = realm
        .admin(
            "GET",
            &format!("/clients/{administration}/roles/manage-realm"),
            None,
        )
        .await;
    let (_, account) = realm
        .admin("GET", &format!("/clients/{broker}/service-account-user"), None)
        .await;
    let account = account["id"].as_str().unwrap();
    for path in [
        format!("/clients/{broker}/scope-mappings/clients/{administration}"),
        format!("/users/{account}/role-mappings/clients/{administration}"),
    ] {
        assert_eq!(realm.admin("POST", &path, Some(json!([role]))).await.0, 204);
    }
    let kind = "org.keycloak.services.clientregistration.policy.ClientRegistrationPolicy";
    let (_, policies) = realm
        .admin("GET", &format!("/components?type={kind}"), None)
        .await;
    for policy in policies.as_array().unwrap() {
        if policy["providerId"] == "max-clients" || policy["providerId"] == "trusted-hosts" {
            let path = format!("/components/{}", policy["id"].as_str().unwrap());
            assert_eq!(realm.admin("DELETE", &path, None).await.0, 204);
        }
    }
    let open = json!({"registrationAllowed": true, "adminEventsDetailsEnabled": true});
    assert_eq!(realm.admin("PUT", "", Some(open)).await.0, 204);
    let found = realm.keycloak().check(Look::Whole).await;
    assert_eq!(
        said(&found, "rights it does not need: realm-management/manage-realm"),
        Grade::Warning
    );
    assert_eq!(said(&found, "ANYBODY can register"), Grade::Error);
    let (_, clients) = realm.admin("GET", "/clients", None).await;
    assert_eq!(
        clients.as_array().unwrap().len(),
        7,
        "the look itself registered nothing"
    );
    let changed = realm.apply(&plan).await;
    let changes: Vec<_> = changed
        .iter()
        .filter(|done| matches!(done, Done::Changed(_)))
        .collect();
    assert_eq!(changes.len(), 5, "{changed:#?}");
    let found = realm.keycloak().check(Look::Whole).await;
    assert_eq!(worst(&found), Grade::Warning, "{found:#?}");
    assert_eq!(said(&found, "manage-clients and no other"), Grade::Good);
}

#[tokio::test]
async fn with_an_initial_token_nobody_registers_a_client_either() {
    let realm = Realm::make().await;
    let (status, token) = realm
        .admin(
            "POST",
            "/clients-initial-access",
            Some(json!({"count": 3, "expiration": 600})),
        )
        .await;
    assert_eq!(status, 201, "{token}");
    let found = realm.keycloak().check(Look::Whole).await;
    assert_eq!(said(&found, "Initial access tokens"), Grade::Warning);
    let url = format!("{}/clients-registrations/openid-connect", realm.issuer());
    let answer = realm
        .web()
        .post(url)
        .bearer_auth(token["token"].as_str().unwrap())
        .json(&json!({"client_name": "osb-b-*", "redirect_uris": ["https://x.example.com/"]}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 403);
}

#[tokio::test]
async fn a_realm_with_people_is_left_alone() {
    let realm = Realm::make().await;
    let person = json!({"username": "ada", "enabled": true});
    assert_eq!(realm.admin("POST", "/users", Some(person)).await.0, 201);
    let plan = Plan {
        realm: realm.name.clone(),
        ..Realm::plan()
    };
    let refused = realm.place.operator().apply(&plan, |_| {}).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Denied);
    assert!(refused.message.contains("has users"), "{refused}");
}

#[tokio::test]
async fn the_broker_itself_logs_in_with_a_key() {
    let pem = Key::generate().unwrap();
    let key = Key::read(&fixed(&pem)).unwrap();
    let mut plan = Realm::plan();
    plan.proof = BrokerProof::Keys(key.key_set().unwrap());
    let realm = Realm::of(&plan).await;
    let with = |pem: &str| {
        Realm::keycloak_with(KeycloakSettings {
            proof: Proof::PrivateKey(fixed(pem)),
            ..realm.settings()
        })
    };
    let keycloak = with(&pem);
    let bound = spec(&keycloak, 1);
    keycloak.ensure(&bound).await.unwrap();
    realm.token(&bound).await;
    // A second process has assertions of its own, and so has every renewal.
    with(&pem).delete(&bound.binding.bid).await.unwrap();
    let stranger = with(&Key::generate().unwrap());
    let error = stranger.ensure(&bound).await.unwrap_err();
    assert!(error.message.contains("does not accept the broker's log-in"));
    let with_secret = realm.keycloak();
    let error = with_secret.ensure(&bound).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient, "an operator can mend it");
    assert!(!format!("{error:?}").contains(BROKER_SECRET));
    let found = with_secret.check(Look::Quick).await;
    assert_eq!(said(&found, "log-in of osb-broker"), Grade::Error);
}

#[tokio::test]
async fn what_is_configured_wrongly_is_told() {
    let realm = Realm::make().await;
    let look = async |settings| Realm::keycloak_with(settings).check(Look::Quick).await;
    let no_realm = look(KeycloakSettings {
        realm: "chandler-test-none".into(),
        ..realm.settings()
    });
    assert_eq!(
        said(&no_realm.await, "has no realm chandler-test-none"),
        Grade::Error
    );
    let nowhere = look(KeycloakSettings {
        url: "http://127.0.0.1:1".into(),
        ..realm.settings()
    });
    assert_eq!(worst(&nowhere.await), Grade::Unknown, "it may come back");
    // This server names itself by the address it is asked at; one with a fixed name would be an error.
    let elsewhere = look(KeycloakSettings {
        public_url: "https://id.example.com".into(),
        ..realm.settings()
    });
    assert_eq!(
        said(&elsewhere.await, "set Keycloak's `hostname`"),
        Grade::Warning
    );
}
