//! What an application can do with its token, and with tokens that it should not have got: its own secret, and nothing.

use super::{Realm, Scene, apply, binding, claims, data, now, path, setup, unsigned};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chandler::adapters::vault::BrokerLogIn;
use chandler::domain::delivery::BindingRef;
use chandler::domain::names;
use chandler::domain::secret::Secret;
use chandler::ports::{BindingVault, PortErrorKind};
use serde_json::{Value, json};

#[tokio::test]
async fn a_binding_reads_its_own_secret_and_nothing_else() {
    let scene = Scene::dev().await;
    let (a, b) = (binding(1), binding(2));
    // A second binding of the same instance is as far away as any other.
    let sibling = BindingRef {
        bid: names::bid("cf", "1", "sibling"),
        ..a.clone()
    };
    for one in [&a, &b, &sibling] {
        scene.publish(one, 0, &one.bid).await;
    }
    let internal = format!("osb-int/data/{}/admin", a.iid);
    let admin = json!({"data": {"password": "admin"}, "options": {"cas": 0}});
    scene.server.root("POST", &internal, Some(admin)).await;
    let token = scene.application(&a).await;
    assert_eq!(scene.fetch(&token, &a).await, (200, json!({"password": a.bid})));
    let write = json!({"data": {"password": "x"}, "options": {"cas": 1}});
    let mine = data(&a);
    let folder = mine.rsplit_once('/').unwrap().0.to_owned();
    for (method, path, body) in [
        ("GET", data(&b), None),
        ("GET", data(&sibling), None),
        ("GET", path("metadata", &b), None),
        ("GET", format!("{folder}/osb-b-*"), None),
        ("GET", format!("{folder}/%2a"), None),
        ("GET", format!("{mine}/../osb-b-{}", sibling.bid), None),
        ("GET", format!("{mine}%2f..%2fosb-b-{}", sibling.bid), None),
        (
            "GET",
            format!("osb/subkeys/{}/{}/{}", a.tenant, a.iid, a.client_id()),
            None,
        ),
        ("LIST", "osb/metadata/".to_owned(), None),
        ("LIST", format!("osb/metadata/{}/", a.tenant), None),
        ("LIST", format!("osb/metadata/{}/{}/", a.tenant, a.iid), None),
        ("LIST", format!("{}/", path("metadata", &a)), None),
        ("POST", mine.clone(), Some(write.clone())),
        ("PATCH", mine.clone(), Some(write.clone())),
        ("DELETE", mine.clone(), None),
        ("DELETE", path("metadata", &a), None),
        (
            "POST",
            path("metadata", &a),
            Some(json!({"delete_version_after": "1s"})),
        ),
        ("POST", path("destroy", &a), Some(json!({"versions": [1]}))),
        ("POST", data(&b), Some(write)),
        ("GET", internal, None),
        ("LIST", "osb-int/metadata/".to_owned(), None),
        ("GET", "sys/auth".to_owned(), None),
        ("GET", "sys/policies/acl/osb-broker".to_owned(), None),
        ("POST", "auth/token/create".to_owned(), Some(json!({}))),
        ("GET", "auth/token/lookup-self".to_owned(), None),
        (
            "POST",
            "identity/lookup/entity".to_owned(),
            Some(json!({"name": "x"})),
        ),
        ("POST", "sys/wrapping/wrap".to_owned(), Some(json!({"a": "b"}))),
        ("GET", "cubbyhole/x".to_owned(), None),
    ] {
        let (status, answer) = scene.server.ask(method, &path, &token, body.as_ref()).await;
        // A way out of a folder is not even a path of the vault's.
        let refused = status == 403 || (path.contains("..") && matches!(status, 301 | 400 | 404));
        assert!(refused, "{method} {path}: {status} {answer}");
        assert!(
            !answer.to_string().contains(&b.bid) && !answer.to_string().contains("\"admin\""),
            "{answer}"
        );
    }
    let (status, answer) = scene
        .server
        .ask("POST", "auth/token/renew-self", &token, Some(&json!({})))
        .await;
    assert_ne!(status, 200, "{answer}");
    assert_eq!(scene.fetch(&token, &a).await, (200, json!({"password": a.bid})));
    assert_eq!(scene.vault.generation(&a).await.unwrap(), Some(0));
}

#[tokio::test]
async fn only_tokens_of_bindings_log_in() {
    let scene = Scene::dev().await;
    let client_id = binding(1).client_id();
    let with = |member: &str, value: Value| {
        let mut claims = claims(&client_id);
        claims[member] = value;
        claims
    };
    scene
        .log_in(&scene.realm.sign(&claims(&client_id)))
        .await
        .unwrap();
    let mut without = Vec::new();
    for member in ["azp", "aud", "iss", "exp", "osb_kind"] {
        let mut claims = claims(&client_id);
        claims.as_object_mut().unwrap().remove(member);
        if member == "exp" {
            claims.as_object_mut().unwrap().remove("iat");
        }
        without.push((format!("no {member}"), claims));
    }
    let wrong = [
        ("ended", with("exp", json!(now() - 30))),
        ("not yet", with("nbf", json!(now() + 60))),
        ("another audience", with("aud", json!("account"))),
        (
            "the client as audience, as ID tokens have it",
            with("aud", json!(client_id)),
        ),
        (
            "another issuer",
            with("iss", json!("https://keycloak.test/realms/master")),
        ),
        ("another kind", with("osb_kind", json!("portal"))),
        ("another client", with("azp", json!("osb-broker"))),
        ("a client by subject alone", {
            let mut claims = with("sub", json!(client_id));
            claims["azp"] = json!("account");
            claims
        }),
        ("a list of clients", with("azp", json!([client_id]))),
    ];
    let wrong = wrong.map(|(what, claims)| (what.to_owned(), claims));
    for (what, claims) in wrong.into_iter().chain(without) {
        assert!(scene.log_in(&scene.realm.sign(&claims)).await.is_err(), "{what}");
    }
    let good = scene.realm.sign(&claims(&client_id));
    let (head_and_claims, signature) = good.rsplit_once('.').unwrap();
    let mut flipped = URL_SAFE_NO_PAD.decode(signature).unwrap();
    flipped[10] ^= 1;
    let other_claims = unsigned("RS256", &claims(&binding(2).client_id()));
    for (what, jwt) in [
        ("signed by another key", Realm::new().sign(&claims(&client_id))),
        ("alg none", format!("{}.", unsigned("none", &claims(&client_id)))),
        (
            "alg none with a signature",
            format!("{}.{signature}", unsigned("none", &claims(&client_id))),
        ),
        (
            "an algorithm with a shared secret",
            format!("{}.{signature}", unsigned("HS256", &claims(&client_id))),
        ),
        (
            "a signature for other claims",
            format!("{other_claims}.{signature}"),
        ),
        (
            "a changed signature",
            format!("{head_and_claims}.{}", URL_SAFE_NO_PAD.encode(flipped)),
        ),
        ("no signature", head_and_claims.to_owned()),
        ("nothing", String::new()),
    ] {
        assert!(scene.log_in(&jwt).await.is_err(), "{what}");
    }
}

/// Vault before 2.0.4 fills its policy in with whatever a client is called, so that a client called `osb-b-*` reads all.
/// What keeps it out is that there is no such client: the broker's one rule for names. The doctor's warning tells of it.
#[tokio::test]
async fn a_name_with_a_star_opens_others_unless_nobody_has_it() {
    let scene = Scene::dev().await;
    let one = binding(1);
    scene.publish(&one, 0, "p").await;
    let star = BindingRef {
        bid: "*".to_owned(),
        ..one.clone()
    };
    assert_eq!(names::bid_of_client(&star.client_id()), None);
    let secret = Secret::from_pairs([("password", "x")]);
    let refused = scene
        .vault
        .publish(&star, 0, &secret, &[], None)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Invalid);

    let health = scene.server.ask("GET", "sys/health", "", None).await.1;
    let old = health["version"].as_str().unwrap().starts_with("1.");
    for client_id in ["osb-b-*", "osb-b-+", "osb-b-x/../y"] {
        let Ok(token) = scene.log_in(&scene.realm.sign(&claims(client_id))).await else {
            continue;
        };
        let (status, _) = scene.fetch(&token, &one).await;
        let opens = client_id == "osb-b-*" && old;
        assert_eq!(status == 200, opens, "{client_id}: {status}");
    }
}

/// What ends a stolen secret id, and where it is of no use to begin with.
#[tokio::test]
async fn a_stolen_secret_id_ends_with_its_destruction_and_at_the_borders_of_its_network() {
    let scene = Scene::dev().await;
    let read = |name: &str| std::fs::read_to_string(scene.dir.path().join(name)).unwrap();
    let log_in = async |secret_id: &str| {
        let body = json!({"role_id": read("role-id"), "secret_id": secret_id});
        scene
            .server
            .ask("POST", "auth/approle/login", "", Some(&body))
            .await
    };
    let stolen = read("secret-id");
    let (status, answer) = log_in(&stolen).await;
    assert_eq!(status, 200, "{answer}");
    let token = answer["auth"]["client_token"].as_str().unwrap();
    assert!(answer["auth"]["lease_duration"].as_u64().unwrap() <= 3600);

    let role = "auth/approle/role/osb-broker";
    let destroyed = json!({"secret_id": stolen});
    scene
        .server
        .root("POST", &format!("{role}/secret-id/destroy"), Some(destroyed))
        .await;
    let (status, answer) = log_in(&stolen).await;
    assert!(matches!(status, 400 | 403), "{status} {answer}");
    // A token that it was exchanged for before lives on until it is revoked, too.
    assert_eq!(scene.server.ask("GET", "sys/auth", token, None).await.0, 200);
    let told = json!({"accessor": accessor_of(&scene, token).await});
    scene
        .server
        .root("POST", "auth/token/revoke-accessor", Some(told))
        .await;
    assert_eq!(scene.server.ask("GET", "sys/auth", token, None).await.0, 403);

    for (cidr, lets_in) in [("127.0.0.0/8", true), ("192.0.2.0/24", false)] {
        let mut setup = setup(&scene.server, &scene.realm, scene.dir.path());
        setup.broker = BrokerLogIn::AppRole {
            mount: "approle".to_owned(),
            role: "osb-broker".to_owned(),
            cidrs: vec![cidr.to_owned()],
        };
        apply(&setup, &scene.server).await;
        let made = scene
            .server
            .root("POST", &format!("{role}/secret-id"), None)
            .await;
        let (status, answer) = log_in(made["data"]["secret_id"].as_str().unwrap()).await;
        assert_eq!(status == 200, lets_in, "{cidr}: {status} {answer}");
    }
}

async fn accessor_of(scene: &Scene, token: &str) -> Value {
    let told = json!({"token": token});
    let found = scene.server.root("POST", "auth/token/lookup", Some(told)).await;
    found["data"]["accessor"].clone()
}
