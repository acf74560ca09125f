//! Log-ins: how often, with what, and what happens when one ends.

use super::fake::Fault;
use super::{Scene, binding, password};
use crate::adapters::vault::{LogIn, Vault};
use crate::ports::{BindingVault, PortErrorKind};
use futures::future::join_all;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

fn logins(seen: &[String]) -> usize {
    seen.iter().filter(|line| line.contains("/login")).count()
}

fn renewals(seen: &[String]) -> usize {
    seen.iter().filter(|line| line.contains("renew-self")).count()
}

/// Sixteen requests at once, all of which must succeed.
async fn crowd(vault: &Arc<Vault>) {
    let asks = (0..16).map(|number| {
        let vault = vault.clone();
        tokio::spawn(async move { vault.generation(&binding(number)).await })
    });
    for asked in join_all(asks.collect::<Vec<_>>()).await {
        asked.unwrap().unwrap();
    }
}

#[tokio::test]
async fn however_many_ask_one_logs_in() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    crowd(&vault).await;
    assert_eq!(logins(&scene.fake.seen()), 1);
    // Dead tokens are found by 403.
    for _ in 0..3 {
        scene.fake.revoke_all();
        crowd(&vault).await;
        assert_eq!(logins(&scene.fake.seen()), 1);
    }
}

#[tokio::test]
async fn a_refusal_that_is_meant_costs_no_log_in() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    vault.keep_logged_in().await.unwrap();
    scene.fake.state().denied.push("osb/data".to_owned());
    for _ in 0..3 {
        let error = vault
            .publish(&binding(1), 0, &password("p"), &[], None)
            .await
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Denied, "{error:?}");
    }
    assert_eq!(logins(&scene.fake.seen()), 1, "the first one");
    // Where the policy hides even that the token lives, it is one log-in each time and then the refusal.
    scene
        .fake
        .state()
        .denied
        .push("auth/token/lookup-self".to_owned());
    let error = vault
        .publish(&binding(1), 0, &password("p"), &[], None)
        .await
        .unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Denied, "{error:?}");
    assert_eq!(logins(&scene.fake.seen()), 1);
}

#[tokio::test]
async fn one_failure_is_told_to_all_who_waited_for_it() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    let slow = Fault::Slow(Duration::from_secs(5));
    scene.fake.fail("approle/login", slow);
    let started = std::time::Instant::now();
    let asks = (0..16).map(|number| {
        let vault = vault.clone();
        tokio::spawn(async move { vault.generation(&binding(number)).await })
    });
    for asked in join_all(asks.collect::<Vec<_>>()).await {
        assert_eq!(asked.unwrap().unwrap_err().kind, PortErrorKind::Transient);
    }
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "not one after the other"
    );
    assert_eq!(logins(&scene.fake.seen()), 1);
    crowd(&vault).await;
}

#[tokio::test]
async fn a_refused_log_in_may_pass() {
    let scene = Scene::new().await;
    scene.write("secret-id", "another");
    let vault = scene.vault();
    let error = vault.keep_logged_in().await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Transient && error.message.contains("not let the broker in"),
        "{error:?}"
    );
    assert!(error.detail.contains("invalid role or secret ID"), "{error:?}");
    scene.write("secret-id", "the-secret-id");
    vault.keep_logged_in().await.unwrap();
    std::fs::remove_file(scene.dir.path().join("role-id")).unwrap();
    let error = scene.vault().keep_logged_in().await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Transient && error.detail.contains("role-id"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_token_is_renewed_at_two_thirds_of_its_life() {
    let scene = Scene::new().await;
    (scene.fake.state().life, scene.fake.state().renewed_life) = (1, 1);
    let vault = scene.vault();
    vault.keep_logged_in().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    crowd(&vault).await;
    assert_eq!(renewals(&scene.fake.seen()), 0);
    scene.fake.state().renewed_life = 3600;
    tokio::time::sleep(Duration::from_millis(450)).await;
    crowd(&vault).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    crowd(&vault).await;
    let seen = scene.fake.seen();
    assert_eq!((renewals(&seen), logins(&seen)), (1, 0));
}

#[tokio::test]
async fn what_renewal_does_not_make_longer_is_exchanged() {
    for (renewable, renewed_life) in [(false, 0), (true, 1)] {
        let scene = Scene::new().await;
        scene.fake.state().life = 3;
        (scene.fake.state().renewable, scene.fake.state().renewed_life) = (renewable, renewed_life);
        let vault = scene.vault();
        vault.keep_logged_in().await.unwrap();
        scene.fake.seen();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        crowd(&vault).await;
        assert_eq!(logins(&scene.fake.seen()), 1, "renewable: {renewable}");
    }
}

#[tokio::test]
async fn while_the_vault_cannot_renew_the_old_token_serves() {
    let scene = Scene::new().await;
    scene.fake.state().life = 2;
    let vault = scene.vault();
    vault.keep_logged_in().await.unwrap();
    scene.fake.seen();
    tokio::time::sleep(Duration::from_millis(1400)).await;
    scene.fake.fail(
        "renew-self",
        Fault::Answer(500, json!({"errors": ["internal error"]})),
    );
    crowd(&vault).await;
    let seen = scene.fake.seen();
    assert_eq!(
        (renewals(&seen), logins(&seen)),
        (1, 0),
        "tried once, then left alone for a while"
    );
    tokio::time::sleep(Duration::from_millis(700)).await;
    crowd(&vault).await;
    assert_eq!(logins(&scene.fake.seen()), 1, "it has ended");
}

#[tokio::test]
async fn a_wrapped_secret_id_is_unwrapped_once() {
    let scene = Scene::new().await;
    let wrap = |token: &str, secret_id: &str| {
        let origin = "auth/approle/role/osb-broker/secret-id".to_owned();
        let wrapped = (secret_id.to_owned(), origin);
        scene.fake.state().wrapped.insert(token.to_owned(), wrapped);
        scene.write("secret-id", token);
    };
    wrap("hvs.wrapping-1", "the-secret-id");
    let vault = scene.vault_with(scene.app_role(true));
    crowd(&vault).await;
    for _ in 0..2 {
        scene.fake.revoke_all();
        crowd(&vault).await;
    }
    std::fs::remove_file(scene.dir.path().join("secret-id")).unwrap();
    scene.fake.revoke_all();
    crowd(&vault).await;
    let seen = scene.fake.seen();
    assert_eq!(
        seen.iter().filter(|line| line.contains("unwrap")).count(),
        1,
        "{seen:?}"
    );
    // Exchanged beside the running broker.
    wrap("hvs.wrapping-2", "the-second-secret-id");
    scene.fake.state().secret_ids = ["the-second-secret-id".to_owned()].into();
    scene.fake.revoke_all();
    crowd(&vault).await;
}

#[tokio::test]
async fn a_wrapping_token_that_was_used_or_exchanged_is_an_alarm() {
    let scene = Scene::new().await;
    scene.write("secret-id", "hvs.used-before");
    let error = scene
        .vault_with(scene.app_role(true))
        .keep_logged_in()
        .await
        .unwrap_err();
    assert!(
        error.kind == PortErrorKind::Denied && error.message.contains("used before"),
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains("hvs."), "{error:?}");

    let wrapped = ("the-secret-id".to_owned(), "cubbyhole/of-a-thief".to_owned());
    scene
        .fake
        .state()
        .wrapped
        .insert("hvs.exchanged".to_owned(), wrapped);
    scene.write("secret-id", "hvs.exchanged");
    scene.fake.seen();
    let error = scene
        .vault_with(scene.app_role(true))
        .keep_logged_in()
        .await
        .unwrap_err();
    assert!(
        error.kind == PortErrorKind::Denied && error.message.contains("exchanged"),
        "{error:?}"
    );
    assert!(
        scene.fake.seen().iter().all(|line| !line.contains("unwrap")),
        "it is not used"
    );

    // The vault in trouble is no alarm.
    scene.fake.fail(
        "wrapping/lookup",
        Fault::Answer(503, json!({"errors": ["sealed"]})),
    );
    let error = scene
        .vault_with(scene.app_role(true))
        .keep_logged_in()
        .await
        .unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
}

#[tokio::test]
async fn files_are_read_at_each_log_in() {
    let scene = Scene::new().await;
    scene.write("pod", "pod-token\n");
    let login = LogIn::Kubernetes {
        mount: "kubernetes".to_owned(),
        role: "osb-broker".to_owned(),
        token_file: scene.dir.path().join("pod"),
    };
    let vault = scene.vault_with(login);
    crowd(&vault).await;
    scene.write("pod", "another-token");
    scene.fake.revoke_all();
    let error = vault.generation(&binding(1)).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
    scene.write("pod", "pod-token");
    crowd(&vault).await;

    let until = std::time::Instant::now() + Duration::from_mins(1);
    scene.fake.state().tokens.insert("hvs.first".to_owned(), until);
    scene.write("token", "hvs.first");
    let vault = scene.vault_with(LogIn::TokenFile(scene.dir.path().join("token")));
    crowd(&vault).await;
    scene.fake.revoke_all();
    let error = vault.generation(&binding(1)).await.unwrap_err();
    assert_eq!(
        error.kind,
        PortErrorKind::Denied,
        "the file holds the same dead token: {error:?}"
    );
    scene.fake.state().tokens.insert("hvs.second".to_owned(), until);
    scene.write("token", "hvs.second");
    crowd(&vault).await;
}
