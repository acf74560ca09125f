//! The broker's log-in on real servers: ended tokens, a sealed or killed vault, wrapped secret ids.

use super::{Scene, Server, app_role, binding, file, settings, vault_of};
use chandler::domain::secret::Secret;
use chandler::ports::{BindingVault, PortErrorKind};
use futures::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn a_revoked_token_costs_one_log_in() {
    let scene = Scene::dev().await;
    scene.publish(&binding(1), 0, "p").await;
    for round in 2..5 {
        scene
            .server
            .root("PUT", "sys/leases/revoke-prefix/auth/approle/login", None)
            .await;
        let asks = (0..8).map(|_| {
            let vault = scene.vault.clone();
            tokio::spawn(async move { vault.generation(&binding(1)).await })
        });
        for asked in join_all(asks.collect::<Vec<_>>()).await {
            assert_eq!(asked.unwrap().unwrap(), Some(0));
        }
        scene.publish(&binding(round), 0, "p").await;
        let tokens = scene
            .server
            .ask("LIST", "auth/token/accessors", &scene.server.root, None)
            .await
            .1;
        let mut brokers = 0;
        for accessor in tokens["data"]["keys"].as_array().unwrap() {
            let found = json!({"accessor": accessor});
            let token = scene
                .server
                .root("POST", "auth/token/lookup-accessor", Some(found))
                .await;
            brokers += usize::from(token["data"]["policies"] == json!(["osb-broker"]));
        }
        assert_eq!(brokers, 1, "however many found the old one dead");
    }
}

#[tokio::test]
async fn a_vault_that_is_sealed_or_killed_is_told_apart_and_waited_for() {
    let scene = Scene::on(Server::lasting().await).await;
    let one = binding(1);
    scene.publish(&one, 0, "p").await;
    let secret = Secret::from_pairs([("password", "second")]);
    let trouble = async |word: &str| {
        for error in [
            scene
                .vault
                .publish(&one, 1, &secret, &[], None)
                .await
                .unwrap_err(),
            scene.vault.withdraw(&one).await.unwrap_err(),
            scene.vault.page(None).await.unwrap_err(),
        ] {
            assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
            assert!(error.message.contains(word), "{word}: {error:?}");
        }
    };
    scene.server.seal().await;
    trouble("sealed").await;
    scene.server.unseal().await;
    assert_eq!(scene.vault.generation(&one).await.unwrap(), Some(0));

    scene.server.kill();
    // Connections that were open end first.
    let error = scene.vault.generation(&one).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
    trouble("reached").await;
    scene.server.start().await;
    trouble("sealed").await;
    scene.server.unseal().await;
    scene.vault.publish(&one, 1, &secret, &[], None).await.unwrap();
    let token = scene.application(&one).await;
    assert_eq!(scene.fetch(&token, &one).await.1, json!({"password": "second"}));
    scene.vault.withdraw(&one).await.unwrap();

    // Without its authority the server is a stranger.
    let mut strangers = settings(&scene.server, app_role(scene.dir.path(), false));
    strangers.ca = None;
    let error = vault_of(strangers).generation(&one).await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Transient && error.detail.to_lowercase().contains("certificate"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_wrapped_secret_id_is_good_for_one_broker() {
    let scene = Scene::dev().await;
    let path = "auth/approle/role/osb-broker/secret-id";
    let wrapping = scene.server.shell(&format!(
        "export VAULT_ADDR={}; vault write -f -wrap-ttl=15m -field=wrapping_token {path}",
        scene.server.address
    ));
    std::fs::write(file(&scene.dir, "wrapped"), wrapping.trim()).unwrap();
    let login = || settings(&scene.server, app_role(scene.dir.path(), true));
    let vault = vault_of(login());
    assert_eq!(vault.generation(&binding(1)).await.unwrap(), None);
    scene
        .server
        .root("PUT", "sys/leases/revoke-prefix/auth/approle/login", None)
        .await;
    assert_eq!(
        vault.generation(&binding(1)).await.unwrap(),
        None,
        "it logs in again from memory"
    );

    let error = vault_of(login()).generation(&binding(1)).await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Denied && error.message.contains("used before"),
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains(wrapping.trim()), "{error:?}");

    // What a thief wraps himself is not used.
    let forged = scene.server.shell(&format!(
        "export VAULT_ADDR={}; vault write -wrap-ttl=15m -field=wrapping_token sys/wrapping/wrap secret_id=x",
        scene.server.address
    ));
    std::fs::write(file(&scene.dir, "wrapped"), forged.trim()).unwrap();
    let error = vault_of(login()).generation(&binding(1)).await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Denied && error.message.contains("exchanged"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let scene = Scene::dev().await;
    let role = "auth/approle/role/osb-broker";
    scene
        .server
        .root(
            "POST",
            role,
            Some(json!({"token_period": 3, "token_policies": ["osb-broker"]})),
        )
        .await;
    let accessors = async || {
        let tokens = scene
            .server
            .ask("LIST", "auth/token/accessors", &scene.server.root, None)
            .await
            .1;
        tokens["data"]["keys"]
            .as_array()
            .map(|keys| keys.iter().map(Value::to_string).collect::<Vec<_>>())
    };
    scene.vault.keep_logged_in().await.unwrap();
    let before = accessors().await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        scene.vault.generation(&binding(1)).await.unwrap();
    }
    assert_eq!(
        accessors().await,
        before,
        "the same token, after nearly twice its life"
    );
}
