//! The life of secrets: those of bindings, which the broker writes and cannot read, and those of instances.

use super::{Scene, binding, data, path};
use chandler::adapters::vault::InstanceSecrets;
use chandler::domain::secret::Secret;
use chandler::ports::{BindingVault, PortErrorKind, SecretStore};
use futures::future::join_all;
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_secret_is_published_rotated_and_withdrawn() {
    let scene = Scene::dev().await;
    let one = binding(1);
    scene.vault.withdraw(&one).await.unwrap();
    assert_eq!(scene.vault.generation(&one).await.unwrap(), None);
    for text in ["first", "another worker's"] {
        scene.publish(&one, 0, text).await;
    }
    let token = scene.application(&one).await;
    assert_eq!(
        scene.fetch(&token, &one).await,
        (200, json!({"password": "first"}))
    );
    let (_, metadata) = scene
        .server
        .ask("GET", &path("metadata", &one), &token, None)
        .await;
    assert_eq!(
        metadata["data"]["custom_metadata"],
        json!({"tenant": "cf", "request_id": "r-1"})
    );
    for _ in 0..2 {
        scene.publish(&one, 1, "second").await;
    }
    assert_eq!(scene.vault.generation(&one).await.unwrap(), Some(1));
    assert_eq!(scene.fetch(&token, &one).await.1, json!({"password": "second"}));
    let late = scene
        .vault
        .publish(&one, 0, &Secret::default(), &[], None)
        .await
        .unwrap_err();
    assert_eq!(late.kind, PortErrorKind::Conflict);
    let begun = Instant::now();
    scene.vault.withdraw(&one).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(scene.fetch(&token, &one).await.0, 403, "its token ends with it");
    let gone = scene
        .server
        .ask("GET", &path("metadata", &one), &scene.server.root, None)
        .await;
    assert_eq!(gone.0, 404);
    scene.vault.withdraw(&one).await.unwrap();
    // A token of the identity provider that lives a little longer still logs in, and finds nothing.
    let token = scene.application(&one).await;
    assert_eq!(scene.fetch(&token, &one).await.0, 404);
    scene.vault.withdraw(&one).await.unwrap();
    assert_eq!(scene.fetch(&token, &one).await.0, 403);
    let entities = scene
        .server
        .ask("LIST", "identity/entity/id", &scene.server.root, None)
        .await
        .1;
    let left = entities["data"]["keys"].as_array().map_or(0, Vec::len);
    assert_eq!(left, 1, "the broker's own: no entity piles up");
}

#[tokio::test]
async fn eight_workers_write_one_secret() {
    let scene = Scene::dev().await;
    let one = binding(1);
    let workers = (0..8).map(|number| {
        let (vault, one) = (scene.vault.clone(), one.clone());
        tokio::spawn(async move {
            let secret = Secret::from_pairs([("password", number.to_string())]);
            vault
                .publish(&one, 0, &secret, &[("worker", number.to_string())], None)
                .await
        })
    });
    for done in join_all(workers.collect::<Vec<_>>()).await {
        done.unwrap().unwrap();
    }
    assert_eq!(scene.vault.generation(&one).await.unwrap(), Some(0));
}

#[tokio::test]
async fn a_secret_ends_by_itself() {
    let scene = Scene::dev().await;
    let one = binding(1);
    let secret = Secret::from_pairs([("password", "p")]);
    let soon = super::now() + 8;
    scene
        .vault
        .publish(&one, 0, &secret, &[], Some(soon * 1000))
        .await
        .unwrap();
    let token = scene.application(&one).await;
    assert_eq!(scene.fetch(&token, &one).await.0, 200);
    let left = u64::try_from(soon + 1 - super::now()).unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(left * 1000 + 100)).await;
    assert_eq!(scene.fetch(&token, &one).await.0, 404);
    assert_eq!(
        scene.vault.generation(&one).await.unwrap(),
        Some(0),
        "what is left is to be withdrawn"
    );
    scene.vault.withdraw(&one).await.unwrap();
    assert_eq!(scene.vault.generation(&one).await.unwrap(), None);
}

/// The broker's own token, in anybody's hands: it writes, it sees names, it destroys, and it reads no binding's secret.
#[tokio::test]
async fn the_broker_cannot_read_what_it_wrote() {
    let scene = Scene::dev().await;
    let one = binding(1);
    scene.publish(&one, 0, "p").await;
    let token = scene.brokers_token().await;
    let root = &scene.server.root;
    assert_eq!(scene.fetch(root, &one).await, (200, json!({"password": "p"})));
    let accessor = scene.server.root("GET", "sys/auth", None).await["data"]["osb-jwt/"]["accessor"].clone();
    let all = json!({"policy": "path \"*\" { capabilities = [\"read\"] }"});
    for (method, path, body) in [
        ("GET", data(&one), None),
        ("GET", format!("{}?version=1", data(&one)), None),
        ("GET", path("subkeys", &one), None),
        ("POST", path("undelete", &one), Some(json!({"versions": [1]}))),
        ("PATCH", data(&one), Some(json!({"data": {}}))),
        (
            "POST",
            "osb/data/cf/x/other".to_owned(),
            Some(json!({"data": {}, "options": {"cas": 0}})),
        ),
        (
            "POST",
            "osb/config".to_owned(),
            Some(json!({"cas_required": false})),
        ),
        (
            "POST",
            "sys/policies/acl/osb-binding".to_owned(),
            Some(all.clone()),
        ),
        ("POST", "sys/policies/acl/osb-broker".to_owned(), Some(all)),
        (
            "POST",
            "auth/osb-jwt/role/binding".to_owned(),
            Some(json!({"user_claim": "sub"})),
        ),
        (
            "POST",
            "auth/osb-jwt/config".to_owned(),
            Some(json!({"bound_issuer": "x"})),
        ),
        ("POST", "auth/approle/role/osb-broker/secret-id".to_owned(), None),
        ("POST", "auth/token/create".to_owned(), Some(json!({}))),
        (
            "POST",
            "identity/entity".to_owned(),
            Some(json!({"policies": ["root"]})),
        ),
        (
            "POST",
            "identity/entity-alias".to_owned(),
            Some(json!({"name": one.client_id(), "mount_accessor": accessor, "canonical_id": "x"})),
        ),
        ("DELETE", "sys/mounts/osb".to_owned(), None),
        ("GET", "sys/mounts".to_owned(), None),
        ("GET", "cubbyhole/x".to_owned(), None),
    ] {
        let (status, answer) = scene.server.ask(method, &path, &token, body.as_ref()).await;
        assert!(
            status == 403 || status == 405,
            "{method} {path}: {status} {answer}"
        );
    }
    assert_eq!(scene.fetch(root, &one).await, (200, json!({"password": "p"})));
}

#[tokio::test]
async fn instances_secrets_are_made_once_and_destroyed() {
    let scene = Scene::dev().await;
    let secrets = InstanceSecrets::new(scene.vault.clone());
    let other = InstanceSecrets::new(scene.vault.clone());
    let iid = binding(1).iid;
    let (admin, generated) = (format!("{iid}/admin"), format!("{iid}/generated"));
    let word = |text: &str| Secret::from_pairs([("password", text)]);
    assert_eq!(secrets.get(&admin).await.unwrap(), None);
    assert_eq!(secrets.create(&admin, &word("one")).await.unwrap(), word("one"));
    assert_eq!(other.create(&admin, &word("two")).await.unwrap(), word("one"));
    assert_eq!(other.get(&admin).await.unwrap(), Some(word("one")));
    secrets.create(&generated, &word("g")).await.unwrap();
    assert_eq!(
        secrets.list(&format!("{iid}/")).await.unwrap(),
        [admin.clone(), generated.clone()]
    );
    assert_eq!(
        secrets.list("").await.unwrap(),
        [admin.clone(), generated.clone()]
    );
    for name in [&admin, &generated, &admin] {
        secrets.destroy(name).await.unwrap();
        assert_eq!(secrets.get(name).await.unwrap(), None);
    }
    assert_eq!(secrets.list("").await.unwrap(), Vec::<String>::new());
    assert_eq!(secrets.create(&admin, &word("new")).await.unwrap(), word("new"));
}

#[tokio::test]
async fn the_walk_meets_every_binding() {
    const BINDINGS: usize = 300;
    let scene = Scene::dev().await;
    let secret = Secret::from_pairs([("password", "p")]);
    let mut put = Vec::new();
    for number in 0..BINDINGS {
        let mut one = binding(number);
        one.tenant = ["a", "a-b", "b"][number % 3].to_owned();
        scene.vault.publish(&one, 0, &secret, &[], None).await.unwrap();
        put.push(one);
    }
    let (mut met, mut after) = (Vec::new(), None);
    loop {
        let page = scene.vault.page(after.as_deref()).await.unwrap();
        met.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    put.sort();
    met.sort();
    assert_eq!(met, put);
}
