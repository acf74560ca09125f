//! Bindings' clients on a real Keycloak.

use crate::own_keycloak::Keycloak as Own;
use crate::realm::{
    Place, Realm, binding, claims, now, post_form, rsa, settle, signed, spec, spec_with, worst,
};
use chandler::adapters::keycloak::{KeycloakSettings, Look, Plan};
use chandler::domain::delivery::ClientAuth;
use chandler::domain::secret::Secret;
use chandler::ports::{BindingIdentity, FoundIdentity, Grade, PortErrorKind};
use futures::future::join_all;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What a binding's token must say, and all of what the vault believes of it.
fn exactly_this_bindings(realm: &Realm, number: usize, answer: &Value) {
    let binding = binding(number);
    let claims = claims(answer["access_token"].as_str().unwrap());
    assert_eq!(claims["iss"], realm.issuer());
    assert_eq!(claims["aud"], "osb-vault", "one audience");
    assert_eq!(claims["azp"], binding.client_id());
    assert_eq!(claims["typ"], "Bearer");
    assert_eq!(claims["osb_kind"], "binding");
    assert_eq!(claims["osb_tenant"], binding.tenant);
    assert_eq!(claims["osb_instance"], binding.iid);
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        120
    );
    for none in ["realm_access", "resource_access", "allowed-origins", "email"] {
        assert!(claims.get(none).is_none(), "{none}: {claims}");
    }
    assert!(
        answer.get("refresh_token").is_none(),
        "nothing outlives the token"
    );
}

#[tokio::test]
async fn a_secret_gets_a_token_of_this_binding_until_it_is_disabled() {
    let realm = Realm::make().await;
    let keycloak = realm.keycloak();
    let bound = spec(&keycloak, 1);
    keycloak.ensure(&bound).await.unwrap();
    let (id, secret) = (bound.binding.client_id(), bound.secret.text("client_secret"));
    let (status, answer) = realm.log_in(&id, secret).await;
    assert_eq!(status, 200, "{answer}");
    exactly_this_bindings(&realm, 1, &answer);
    assert_eq!(realm.log_in(&id, "wrong").await.0, 401);
    let proof = keycloak.proof(&bound.binding, &bound.auth).await.unwrap();
    assert_eq!(
        proof.as_ref(),
        Some(&bound.secret),
        "GET answers what bind answered"
    );
    for refused in [
        "password",
        "refresh_token",
        "urn:ietf:params:oauth:grant-type:token-exchange",
    ] {
        let fields = [
            ("grant_type", refused),
            ("client_id", id.as_str()),
            ("client_secret", secret),
            ("username", "x"),
            ("password", "x"),
            ("refresh_token", "x"),
            ("subject_token", answer["access_token"].as_str().unwrap()),
            (
                "subject_token_type",
                "urn:ietf:params:oauth:token-type:access_token",
            ),
        ];
        let (status, _) = post_form(&realm.web(), &realm.token_uri(), &fields).await;
        assert!((400..404).contains(&status), "{refused}: {status}");
    }
    keycloak.disable(&bound.binding.bid).await.unwrap();
    assert_eq!(realm.log_in(&id, secret).await.0, 401);
    assert_eq!(
        realm.client(&id).await.unwrap()["secret"],
        secret,
        "nothing else has changed"
    );
    keycloak.disable(&bound.binding.bid).await.unwrap();
    keycloak.ensure(&bound).await.unwrap();
    assert_eq!(realm.log_in(&id, secret).await.0, 200, "ensure enables");
    for _ in 0..2 {
        keycloak.delete(&bound.binding.bid).await.unwrap();
        assert_eq!(realm.log_in(&id, secret).await.0, 401);
    }
    keycloak.disable(&bound.binding.bid).await.unwrap();
    assert_eq!(keycloak.proof(&bound.binding, &bound.auth).await.unwrap(), None);
}

fn assertion_claims(realm: &Realm, subject: &str) -> Value {
    let random = format!("{:?}{}", Instant::now(), subject);
    json!({
        "iss": subject, "sub": subject, "aud": realm.issuer(), "jti": random, "iat": now(), "exp": now() + 60,
    })
}

#[tokio::test]
async fn a_private_key_gets_a_token_and_no_secret_does() {
    let realm = Realm::make().await;
    let keycloak = realm.keycloak();
    let (key, jwks) = rsa("app");
    let bound = spec_with(&keycloak, 1, ClientAuth::PrivateKeyJwt { jwks });
    assert_eq!(bound.secret, Secret::default());
    keycloak.ensure(&bound).await.unwrap();
    let id = bound.binding.client_id();
    let assertion = signed(&key, Algorithm::RS256, "app", &assertion_claims(&realm, &id));
    let (status, answer) = realm.assert(&assertion).await;
    assert_eq!(status, 200, "{answer}");
    exactly_this_bindings(&realm, 1, &answer);
    assert_ne!(realm.assert(&assertion).await.0, 200, "an assertion counts once");
    let (stranger, _) = rsa("app");
    let forged = signed(&stranger, Algorithm::RS256, "app", &assertion_claims(&realm, &id));
    assert_ne!(realm.assert(&forged).await.0, 200);
    let mut elsewhere = assertion_claims(&realm, &id);
    elsewhere["aud"] = json!("https://another.example.com");
    let elsewhere = signed(&key, Algorithm::RS256, "app", &elsewhere);
    assert_ne!(realm.assert(&elsewhere).await.0, 200);
    // Keycloak makes a secret for every client; it must be good for nothing.
    let made = realm.client(&id).await.unwrap()["secret"]
        .as_str()
        .unwrap_or("none")
        .to_owned();
    assert_ne!(realm.log_in(&id, &made).await.0, 200);
    let proof = keycloak.proof(&bound.binding, &bound.auth).await.unwrap();
    assert_eq!(proof, Some(Secret::default()));
    keycloak.disable(&bound.binding.bid).await.unwrap();
    let again = signed(&key, Algorithm::RS256, "app", &assertion_claims(&realm, &id));
    assert_eq!(realm.assert(&again).await.0, 401);
}

/// A cluster's issuer of service accounts' tokens: its description and its keys, on a port of its own.
async fn cluster(jwks: Value) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let told = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/openid/v1/jwks")});
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8192];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let wants_keys = String::from_utf8_lossy(&request[..length]).starts_with("GET /openid/v1/jwks ");
            let body = if wants_keys {
                jwks.to_string()
            } else {
                told.to_string()
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    issuer
}

#[tokio::test]
async fn a_service_account_of_a_cluster_gets_a_token_and_only_one_binding_has_it() {
    let (key, jwks) = rsa("cluster-key");
    let issuer = cluster(jwks).await;
    let mut plan = Realm::plan();
    plan.kubernetes = Some(("cluster".into(), issuer.clone()));
    let realm = Realm::of(&plan).await;
    let keycloak = Realm::keycloak_with(KeycloakSettings {
        kubernetes_provider: Some("cluster".into()),
        ..realm.settings()
    });
    let account = |name: &str| ClientAuth::Kubernetes {
        namespace: "shop".into(),
        service_account: name.into(),
    };
    let token_of = |name: &str, key| {
        let claims = json!({
            "iss": issuer, "sub": format!("system:serviceaccount:shop:{name}"), "aud": [realm.issuer()],
            "iat": now(), "nbf": now(), "exp": now() + 600,
        });
        signed(key, Algorithm::RS256, "cluster-key", &claims)
    };
    let bound = spec_with(&keycloak, 1, account("orders"));
    keycloak.ensure(&bound).await.unwrap();
    for _ in 0..2 {
        let (status, answer) = realm.assert(&token_of("orders", &key)).await;
        assert_eq!(status, 200, "{answer}");
        exactly_this_bindings(&realm, 1, &answer);
    }
    let (stranger, _) = rsa("cluster-key");
    assert_ne!(realm.assert(&token_of("orders", &stranger)).await.0, 200);
    assert_ne!(realm.assert(&token_of("billing", &key)).await.0, 200);

    // Keycloak would take a second client of the same service account, and from then on let neither in.
    let second = spec_with(&keycloak, 2, account("orders"));
    let refused = keycloak.ensure(&second).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Invalid);
    assert!(
        refused
            .message
            .contains("another binding has this service account"),
        "{refused}"
    );
    assert_eq!(realm.client(&second.binding.client_id()).await, None);
    assert_eq!(realm.assert(&token_of("orders", &key)).await.0, 200);
    keycloak.ensure(&bound).await.unwrap();
    let other = spec_with(&keycloak, 3, account("billing"));
    keycloak.ensure(&other).await.unwrap();
    let (status, answer) = realm.assert(&token_of("billing", &key)).await;
    assert_eq!(status, 200, "{answer}");
    exactly_this_bindings(&realm, 3, &answer);
    keycloak.disable(&bound.binding.bid).await.unwrap();
    assert_eq!(realm.assert(&token_of("orders", &key)).await.0, 401);
}

#[tokio::test]
async fn many_at_once_make_one_client() {
    let realm = Realm::make().await;
    let keycloak = realm.keycloak();
    let keycloaks: Vec<_> = (0..8).map(|_| realm.keycloak()).collect();
    for number in 0..5 {
        let bound = spec(&keycloak, number);
        let all = keycloaks
            .iter()
            .map(|keycloak| settle("ensure", || keycloak.ensure(&bound)));
        join_all(all).await;
        let client = realm.client(&bound.binding.client_id()).await.unwrap();
        assert_eq!(client["protocolMappers"].as_array().unwrap().len(), 4);
        let (status, answer) = realm
            .log_in(&bound.binding.client_id(), bound.secret.text("client_secret"))
            .await;
        assert_eq!(status, 200);
        exactly_this_bindings(&realm, number, &answer);
    }
}

#[tokio::test]
async fn what_was_added_to_a_client_is_taken_away_again() {
    let realm = Realm::make().await;
    let keycloak = realm.keycloak();
    let bound = spec(&keycloak, 1);
    keycloak.ensure(&bound).await.unwrap();
    let client = realm.client(&bound.binding.client_id()).await.unwrap();
    let path = format!("/clients/{}", client["id"].as_str().unwrap());
    let mapper = json!({
        "name": "more", "protocol": "openid-connect", "protocolMapper": "oidc-hardcoded-claim-mapper",
        "config": {"claim.name": "osb_tenant2", "claim.value": "x", "access.token.claim": "true"},
    });
    let added = realm
        .admin("POST", &format!("{path}/protocol-mappers/models"), Some(mapper))
        .await;
    assert_eq!(added.0, 201);
    let (_, scopes) = realm.admin("GET", "/client-scopes", None).await;
    for (name, kind) in [
        ("roles", "default"),
        ("profile", "default"),
        ("email", "optional"),
    ] {
        let scope = scopes
            .as_array()
            .unwrap()
            .iter()
            .find(|scope| scope["name"] == name)
            .unwrap();
        let below = format!("{path}/{kind}-client-scopes/{}", scope["id"].as_str().unwrap());
        assert_eq!(realm.admin("PUT", &below, None).await.0, 204);
    }
    let wider = json!({"fullScopeAllowed": true, "standardFlowEnabled": true, "redirectUris": ["https://x/*"], "enabled": false});
    assert_eq!(realm.admin("PUT", &path, Some(wider)).await.0, 204);
    keycloak.ensure(&bound).await.unwrap();
    let client = realm.client(&bound.binding.client_id()).await.unwrap();
    let names: BTreeSet<_> = client["protocolMappers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mapper| mapper["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        BTreeSet::from(["osb-audience", "osb-instance", "osb-kind", "osb-tenant"])
    );
    let mut scopes: Vec<_> = client["defaultClientScopes"].as_array().unwrap().clone();
    scopes.sort_by_key(ToString::to_string);
    assert_eq!(scopes, ["basic", "service_account"]);
    assert_eq!(client["optionalClientScopes"], json!([]));
    for off in ["fullScopeAllowed", "standardFlowEnabled"] {
        assert_eq!(client[off], false);
    }
    assert_eq!(client["redirectUris"], json!([]));
    let token = realm.token(&bound).await;
    exactly_this_bindings(&realm, 1, &json!({"access_token": token}));
}

#[tokio::test]
async fn longest_texts_fit() {
    let realm = Realm::make().await;
    let keycloak = realm.keycloak();
    let mut bound = spec(&keycloak, 1);
    bound.label = "ü".repeat(5000);
    bound.binding.tenant = "t".repeat(63);
    keycloak.ensure(&bound).await.unwrap();
    let token = claims(&realm.token(&bound).await);
    assert_eq!(token["osb_tenant"], bound.binding.tenant);
}

async fn all_pages(keycloak: &chandler::adapters::keycloak::Keycloak) -> Vec<FoundIdentity> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = keycloak.page(after.as_deref()).await.unwrap();
        all.extend(page.items);
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

#[tokio::test]
async fn the_sweep_sees_every_client_and_is_alarmed_by_strange_names() {
    let realm = Realm::make().await;
    let keycloak = realm.keycloak();
    let numbers: Vec<usize> = (0..150).collect();
    for some in numbers.chunks(10) {
        let specs: Vec<_> = some.iter().map(|number| spec(&keycloak, *number)).collect();
        join_all(
            specs
                .iter()
                .map(|bound| settle("ensure", || keycloak.ensure(bound))),
        )
        .await;
    }
    keycloak.disable(&binding(7).bid).await.unwrap();
    let strange = [
        "osb-b-*",
        "osb-b-+",
        "osb-b-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "osb-b-x/y",
    ];
    for name in strange.iter().chain(&["other", "my-osb-b-client"]) {
        let made = realm
            .admin("POST", "/clients", Some(json!({"clientId": name})))
            .await;
        assert_eq!(made.0, 201, "{name}: {}", made.1);
    }
    let found = all_pages(&keycloak).await;
    let wanted: BTreeSet<_> = numbers.iter().map(|number| Some(binding(*number).bid)).collect();
    let known: BTreeSet<_> = found
        .iter()
        .map(|found| found.bid.clone())
        .filter(Option::is_some)
        .collect();
    assert_eq!(known, wanted);
    let alarms: BTreeSet<_> = found
        .iter()
        .filter(|found| found.bid.is_none())
        .map(|found| found.client_id.as_str())
        .collect();
    assert_eq!(alarms, BTreeSet::from(strange));
    let off: Vec<_> = found
        .iter()
        .filter(|found| !found.enabled)
        .map(|found| found.bid.clone())
        .collect();
    assert_eq!(off, [Some(binding(7).bid)]);
    let said = keycloak.check(Look::Whole).await;
    let alarm = said
        .iter()
        .find(|finding| finding.text.contains("ALARM"))
        .unwrap();
    assert_eq!(alarm.grade, Grade::Error);
    assert!(alarm.text.contains("osb-b-*"), "{}", alarm.text);
    let strangers = said
        .iter()
        .find(|finding| finding.text.contains("my-osb-b-client"))
        .unwrap();
    assert_eq!(strangers.grade, Grade::Warning);
}

#[tokio::test]
async fn somebody_elses_client_is_not_taken_over_and_not_left() {
    let realm = Realm::make().await;
    let keycloak = realm.keycloak();
    let bound = spec(&keycloak, 1);
    let id = bound.binding.client_id();
    let theirs = json!({"clientId": id, "serviceAccountsEnabled": true, "secret": "theirs-0123456789"});
    assert_eq!(realm.admin("POST", "/clients", Some(theirs)).await.0, 201);
    let refused = keycloak.ensure(&bound).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Denied);
    assert!(refused.detail.contains("ALARM"), "{}", refused.detail);
    assert_eq!(realm.log_in(&id, "theirs-0123456789").await.0, 200, "untouched");
    keycloak.disable(&bound.binding.bid).await.unwrap();
    assert_eq!(realm.log_in(&id, "theirs-0123456789").await.0, 401);
    keycloak.delete(&bound.binding.bid).await.unwrap();
    assert_eq!(realm.client(&id).await, None);
}

/// A realm on a server that has only just begun to listen; both go together.
async fn realm_on(own: &Own, plan: &Plan) -> ManuallyDrop<Realm> {
    let place = Place {
        url: own.url.clone(),
        admin: "admin".into(),
        password: own.password.clone(),
        ca_pem: Some(own.authority.clone()),
    };
    // It is not ready when it says so: the operator's tool is tried again, like everything.
    let operator = place.operator();
    settle("set up", || operator.apply(plan, |_| {})).await;
    let name = plan.realm.clone();
    ManuallyDrop::new(Realm { place, name })
}

#[tokio::test]
async fn a_restart_in_the_middle_over_tls_loses_and_doubles_nothing() {
    let mut own = Own::start(&[]);
    let realm = realm_on(&own, &Realm::plan()).await;
    let keycloak = realm.keycloak();
    let first = spec(&keycloak, 0);
    keycloak.ensure(&first).await.unwrap();
    let failed = AtomicU32::new(0);
    let restarted = AtomicBool::new(false);
    // Three workers bind all the time, before, during and after.
    let worker = async |lane: usize| {
        let (mut bound, mut after) = (Vec::new(), 0);
        while after < 5 {
            after += usize::from(restarted.load(Ordering::Relaxed));
            let spec = spec(&keycloak, 1000 * lane + bound.len());
            let ensure = || async {
                let done = keycloak.ensure(&spec).await;
                failed.fetch_add(u32::from(done.is_err()), Ordering::Relaxed);
                done
            };
            settle("ensure", ensure).await;
            bound.push(spec);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bound
    };
    let restart = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let own = tokio::task::spawn_blocking(move || {
            own.restart();
            own
        });
        let own = own.await.unwrap();
        settle("list", || keycloak.page(None)).await;
        restarted.store(true, Ordering::Relaxed);
        own
    };
    let (own, lanes) = tokio::join!(restart, join_all([1, 2, 3].map(worker)));
    let failed = failed.load(Ordering::Relaxed);
    assert!(failed > 0, "it was away for a while");
    let bound: Vec<_> = lanes.into_iter().flatten().collect();
    println!("{} binds around a restart, {failed} tries failed", bound.len());
    assert_eq!(all_pages(&keycloak).await.len(), 1 + bound.len());
    for bound in bound.iter().chain([&first]) {
        let claims = claims(&realm.token(bound).await);
        assert_eq!(claims["azp"], bound.binding.client_id());
    }
    assert!(worst(&keycloak.check(Look::Whole).await) <= Grade::Warning);
    let trusting_nobody = Realm::keycloak_with(KeycloakSettings {
        ca_pem: None,
        ..realm.settings()
    });
    let error = trusting_nobody.delete(&first.binding.bid).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient);
    assert!(
        error.detail.to_lowercase().contains("certificate"),
        "{}",
        error.detail
    );
    drop(own);
    let error = keycloak.delete(&first.binding.bid).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient);
}

/// A namespace with service accounts, on a cluster that shows its keys to everybody; gone with this.
struct Accounts(String);

fn kubectl(arguments: &[&str]) -> String {
    let program = std::env::var("CHANDLER_TESTBED_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let done = Command::new(program).args(arguments).output().expect("a kubectl");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{arguments:?}: {said}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

impl Accounts {
    fn new(names: &[&str]) -> Self {
        let namespace = format!("keycloak-{}", &chandler::app::random_token()[..8]);
        kubectl(&["create", "namespace", &namespace]);
        let accounts = Self(namespace);
        for name in names {
            kubectl(&["-n", &accounts.0, "create", "serviceaccount", name]);
        }
        let role = "--clusterrole=system:service-account-issuer-discovery";
        let everybody = "--group=system:unauthenticated";
        kubectl(&["create", "clusterrolebinding", &accounts.0, role, everybody]);
        accounts
    }

    fn token(&self, account: &str, audience: &str) -> String {
        let audience = format!("--audience={audience}");
        kubectl(&[
            "-n",
            &self.0,
            "create",
            "token",
            account,
            &audience,
            "--duration=10m",
        ])
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        kubectl(&["delete", "clusterrolebinding", &self.0, "--wait=false"]);
        kubectl(&["delete", "namespace", &self.0, "--wait=false"]);
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes node, and to run in its network"]
async fn a_pods_token_gets_a_bindings_token() {
    let accounts = Accounts::new(&["orders", "billing"]);
    let cluster: Value = serde_json::from_str(&kubectl(&["config", "view", "--raw", "-o", "json"])).unwrap();
    let authority = &cluster["clusters"][0]["cluster"];
    let dir = tempfile::tempdir().unwrap();
    let mut file = dir.path().join("cluster.pem");
    match authority["certificate-authority-data"].as_str() {
        Some(data) => std::fs::write(&file, data_encoding::BASE64.decode(data.as_bytes()).unwrap()).unwrap(),
        None => file = authority["certificate-authority"].as_str().unwrap().into(),
    }
    let own = Own::start(&[format!("--truststore-paths={}", file.display())]);
    let told = kubectl(&["get", "--raw", "/.well-known/openid-configuration"]);
    let issuer = serde_json::from_str::<Value>(&told).unwrap()["issuer"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut plan = Realm::plan();
    plan.kubernetes = Some(("cluster".into(), issuer));
    let realm = realm_on(&own, &plan).await;
    let keycloak = Realm::keycloak_with(KeycloakSettings {
        kubernetes_provider: Some("cluster".into()),
        ..realm.settings()
    });
    let account = |name: &str| ClientAuth::Kubernetes {
        namespace: accounts.0.clone(),
        service_account: name.into(),
    };
    let bound = spec_with(&keycloak, 1, account("orders"));
    keycloak.ensure(&bound).await.unwrap();
    let audience = keycloak.coordinates(&bound.binding, &bound.auth)["assertion_audience"]
        .as_str()
        .unwrap()
        .to_owned();
    let (status, answer) = realm.assert(&accounts.token("orders", &audience)).await;
    assert_eq!(status, 200, "{answer}");
    exactly_this_bindings(&realm, 1, &answer);
    for (what, token) in [
        ("another account", accounts.token("billing", &audience)),
        (
            "another audience",
            accounts.token("orders", "https://another.example.com"),
        ),
    ] {
        assert_ne!(realm.assert(&token).await.0, 200, "{what}");
    }
    keycloak.disable(&bound.binding.bid).await.unwrap();
    assert_eq!(realm.assert(&accounts.token("orders", &audience)).await.0, 401);
}
