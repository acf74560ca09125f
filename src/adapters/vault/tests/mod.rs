//! The client against a vault that fails on demand: what it asks, what it repeats, and what it says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;
mod sessions;

use super::*;
use crate::domain::delivery::BindingRef;
use crate::domain::instance::Millis;
use crate::domain::secret::Secret;
use crate::ports::{BindingVault, Grade, PortError, PortErrorKind, SecretStore};
use fake::{Fake, Fault};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::path::Path;

struct Noon;

impl Clock for Noon {
    fn now(&self) -> Millis {
        1_000_000
    }
}

/// The vault with files for logging in.
struct Scene {
    fake: Fake,
    dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let scene = Self {
            fake: Fake::start().await,
            dir: tempfile::tempdir().unwrap(),
        };
        scene.write("role-id", "the-role-id");
        scene.write("secret-id", "the-secret-id");
        scene
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn app_role(&self, wrapped: bool) -> LogIn {
        LogIn::AppRole {
            mount: "approle".to_owned(),
            role_id_file: self.dir.path().join("role-id"),
            secret_id_file: self.dir.path().join("secret-id"),
            wrapped,
        }
    }

    fn vault_with(&self, login: LogIn) -> Arc<Vault> {
        Arc::new(vault_at(&self.fake.address, login))
    }

    fn vault(&self) -> Arc<Vault> {
        self.vault_with(self.app_role(false))
    }
}

fn read_secret(file: &Path) -> Result<SecretString, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(SecretString::from(text))
}

fn vault_at(address: &str, login: LogIn) -> Vault {
    Vault::new(settings(address, login), Arc::new(Noon)).unwrap()
}

fn settings(address: &str, login: LogIn) -> VaultSettings {
    VaultSettings {
        address: address.to_owned(),
        public_address: "https://vault.example.com/".to_owned(),
        namespace: None,
        ca: None,
        login,
        read_secret,
        kv_mount: "osb".to_owned(),
        internal_mount: "osb-int".to_owned(),
        instance_secrets: true,
        jwt_mount: "osb-jwt".to_owned(),
        jwt_role: "binding".to_owned(),
        request_limit: Duration::from_millis(500),
        minimum: Minimum {
            vault: "2.0.4".to_owned(),
            openbao: "2.6.2".to_owned(),
            refuse_older: false,
        },
    }
}

/// A name of ours that ends with `number`.
fn name(number: usize) -> String {
    let digits: String = format!("{number:06}")
        .chars()
        .map(|c| char::from(b'a' + c as u8 - b'0'))
        .collect();
    format!("{}{digits}", "a".repeat(20))
}

fn binding(number: usize) -> BindingRef {
    BindingRef {
        tenant: "cf".to_owned(),
        iid: name(0),
        bid: name(number),
    }
}

fn password(text: &str) -> Secret {
    Secret::from_pairs([("password", text)])
}

fn place(binding: &BindingRef) -> String {
    format!("osb/{}/{}/{}", binding.tenant, binding.iid, binding.client_id())
}

#[tokio::test]
async fn a_bind_takes_two_calls_and_its_repetition_finds_it() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    vault.keep_logged_in().await.unwrap();
    scene.fake.seen();
    let binding = binding(1);
    let notes = [
        ("tenant", "cf".to_owned()),
        ("empty", String::new()),
        ("long", "x".repeat(600)),
    ];
    let publish = |text: &'static str| {
        vault.publish(
            &binding,
            0,
            Box::leak(Box::new(password(text))),
            &notes,
            Some(1_060_000),
        )
    };
    publish("first").await.unwrap();
    let path = format!("{}/{}/{}", binding.tenant, binding.iid, binding.client_id());
    assert_eq!(
        scene.fake.seen(),
        [
            format!("POST osb/metadata/{path}"),
            format!("POST osb/data/{path}")
        ]
    );
    let entry = scene.fake.state().secrets[&place(&binding)].clone();
    assert_eq!(entry.versions, [json!({"password": "first"})]);
    assert_eq!(entry.metadata["delete_version_after"], "60s");

    publish("second").await.unwrap();
    assert_eq!(scene.fake.seen().len(), 3);
    let entry = scene.fake.state().secrets[&place(&binding)].clone();
    assert_eq!(
        entry.versions,
        [json!({"password": "first"})],
        "the first made stays"
    );
    assert_eq!(vault.generation(&binding).await.unwrap(), Some(0));
}

#[tokio::test]
async fn generations_follow_one_another() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    let binding = binding(1);
    let publish = async |generation: u32| {
        let data = password(&generation.to_string());
        vault
            .publish(
                &binding,
                generation,
                &data,
                &[("n", generation.to_string())],
                None,
            )
            .await
    };
    let kind = |result: PortResult<()>| result.unwrap_err().kind;
    assert_eq!(vault.generation(&binding).await.unwrap(), None);
    assert_eq!(kind(publish(1).await), PortErrorKind::Gone, "nothing to follow");
    for generation in [0, 1, 1, 2] {
        publish(generation).await.unwrap();
    }
    assert_eq!(kind(publish(1).await), PortErrorKind::Conflict);
    assert_eq!(kind(publish(0).await), PortErrorKind::Conflict);
    assert_eq!(kind(publish(4).await), PortErrorKind::Gone);
    assert_eq!(vault.generation(&binding).await.unwrap(), Some(2));
    let entry = scene.fake.state().secrets[&place(&binding)].clone();
    let written: Vec<Value> = (0..3).map(|n| json!({"password": n.to_string()})).collect();
    assert_eq!(entry.versions, written);
    assert_eq!(entry.metadata["delete_version_after"], "0s");
}

#[tokio::test]
async fn a_lost_answer_is_repeated_into_the_same_state() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    let binding = binding(1);
    for lost in ["POST osb/metadata", "POST osb/data"] {
        scene.fake.fail(lost, Fault::Lost);
        let error = vault
            .publish(&binding, 0, &password("p"), &[], None)
            .await
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Transient, "{lost}");
        vault
            .publish(&binding, 0, &password("p"), &[], None)
            .await
            .unwrap();
        assert_eq!(
            scene.fake.state().secrets[&place(&binding)].versions.len(),
            1,
            "{lost}"
        );
        for lost in ["DELETE osb/metadata", "identity/lookup", "DELETE identity"] {
            scene
                .fake
                .state()
                .entities
                .insert(binding.client_id(), "entity-1".to_owned());
            scene.fake.fail(lost, Fault::Lost);
            let error = vault.withdraw(&binding).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Transient, "{lost}");
            vault.withdraw(&binding).await.unwrap();
            assert!(
                scene.fake.state().secrets.is_empty() && scene.fake.state().entities.is_empty(),
                "{lost}"
            );
        }
    }
}

#[tokio::test]
async fn withdrawing_ends_the_secret_first_and_then_its_tokens() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    let binding = binding(1);
    vault.withdraw(&binding).await.unwrap();
    vault
        .publish(&binding, 0, &password("p"), &[], None)
        .await
        .unwrap();
    scene
        .fake
        .state()
        .entities
        .insert(binding.client_id(), "entity-1".to_owned());
    scene
        .fake
        .state()
        .entities
        .insert("osb-b-other".to_owned(), "entity-2".to_owned());
    scene.fake.seen();
    vault.withdraw(&binding).await.unwrap();
    assert_eq!(
        scene.fake.seen(),
        [
            format!("DELETE osb/metadata/cf/{}/{}", binding.iid, binding.client_id()),
            "POST identity/lookup/entity".to_owned(),
            "DELETE identity/entity/id/entity-1".to_owned()
        ]
    );
    assert_eq!(scene.fake.state().entities.len(), 1, "others stay");
}

#[tokio::test]
async fn what_keeps_the_vault_from_working_is_told_apart() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    let ask = async || vault.generation(&binding(1)).await.unwrap_err();
    let health = |initialized: bool, sealed: bool, standby: bool| {
        scene.fake.state().health =
            json!({"initialized": initialized, "sealed": sealed, "standby": standby, "version": "2.6.2"});
    };
    vault.keep_logged_in().await.unwrap();
    let sick = |status| {
        scene.fake.fail(
            "GET osb",
            Fault::Answer(status, json!({"errors": ["Vault is sealed"]})),
        );
    };
    for ((initialized, sealed, standby), status, word) in [
        ((true, true, false), 503, "sealed"),
        ((false, true, false), 503, "not initialised"),
        ((true, false, true), 500, "standby"),
        ((true, false, false), 500, "trouble of its own"),
        ((true, false, false), 429, "too much"),
        ((true, false, false), 412, "caught up"),
    ] {
        health(initialized, sealed, standby);
        sick(status);
        let error = ask().await;
        assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
        assert!(error.message.contains(word), "{word}: {error:?}");
        assert!(error.detail.contains(&status.to_string()), "{error:?}");
    }
    health(true, false, false);
    scene.fake.fail("GET osb", Fault::Slow(Duration::from_secs(2)));
    let error = ask().await;
    assert!(
        error.kind == PortErrorKind::Transient && error.message.contains("too long"),
        "{error:?}"
    );
    scene.fake.fail("GET osb", Fault::Lost);
    let error = ask().await;
    assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
    assert_eq!(
        vault.generation(&binding(1)).await.unwrap(),
        None,
        "and all is well again"
    );

    let nobody = vault_at("http://127.0.0.1:1", scene.app_role(false));
    let error = nobody.generation(&binding(1)).await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Transient && error.message.contains("reached"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let scene = Scene::new().await;
    let elsewhere = Fake::start().await;
    let vault = scene.vault();
    let to = format!("{}/v1/osb/metadata/x", elsewhere.address);
    scene.fake.fail("GET osb", Fault::Elsewhere(to));
    let error = vault.generation(&binding(1)).await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Transient && error.message.contains("standby"),
        "{error:?}"
    );
    assert!(elsewhere.seen().is_empty(), "the token stays with its server");
}

#[tokio::test]
async fn a_namespace_goes_with_every_request_but_the_servers_own() {
    let scene = Scene::new().await;
    let in_team = VaultSettings {
        namespace: Some("team/a".to_owned()),
        ..settings(&scene.fake.address, scene.app_role(false))
    };
    let vault = Vault::new(in_team, Arc::new(Noon)).unwrap();
    vault.generation(&binding(1)).await.unwrap();
    assert_eq!(vault.coordinates(&binding(1))["namespace"], "team/a");
    let asked = |first: &str| scene.fake.state().namespaces[first].clone();
    assert_eq!(
        (asked("auth"), asked("osb")),
        ("team/a".to_owned(), "team/a".to_owned())
    );
    scene.fake.fail("GET osb", Fault::Answer(503, json!({})));
    vault.generation(&binding(1)).await.unwrap_err();
    assert_eq!(asked("sys"), "", "the server's health is asked of its root");
}

#[tokio::test]
async fn endless_answers_are_cut() {
    let scene = Scene::new().await;
    let patient = VaultSettings {
        request_limit: Duration::from_secs(20),
        ..settings(&scene.fake.address, scene.app_role(false))
    };
    let vault = Vault::new(patient, Arc::new(Noon)).unwrap();
    vault.keep_logged_in().await.unwrap();
    let endless = json!({"data": {"keys": ["x".repeat(17 * 1024 * 1024)]}});
    scene.fake.fail("GET osb", Fault::Answer(200, endless));
    let error = vault.generation(&binding(1)).await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Invalid && error.message.contains("larger"),
        "{error:?}"
    );
}

#[tokio::test]
async fn no_error_repeats_what_was_sent() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    vault.keep_logged_in().await.unwrap();
    let check = |error: PortError| {
        for text in [&error.message, &error.detail, &format!("{error:?}")] {
            for secret in ["hvs.token", "correct-horse-battery", "the-secret-id"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
    };
    scene.fake.fail("POST osb/data", Fault::Echo);
    let data = password("correct-horse-battery");
    check(vault.publish(&binding(1), 0, &data, &[], None).await.unwrap_err());
    let secrets = InstanceSecrets::new(vault.clone());
    scene.fake.fail("POST osb-int/data", Fault::Echo);
    check(
        secrets
            .create(&format!("{}/admin", name(1)), &data)
            .await
            .unwrap_err(),
    );
    scene.fake.fail("approle/login", Fault::Echo);
    check(scene.vault().keep_logged_in().await.unwrap_err());
    assert!(!format!("{vault:?}").contains("hvs"));
}

#[tokio::test]
async fn the_walk_meets_every_binding_once_and_nothing_else() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    let mut put = Vec::new();
    {
        let mut state = scene.fake.state();
        // With the slash of a folder behind them, these names come in another order.
        for (tenant, instances) in [("a", 150), ("a-b", 3), ("b", 101)] {
            for instance in 0..instances {
                for number in 0..=(instance % 3) {
                    let binding = BindingRef {
                        tenant: tenant.to_owned(),
                        iid: name(instance),
                        bid: name(number),
                    };
                    state.secrets.insert(place(&binding), fake::Entry::default());
                    put.push(binding);
                }
            }
        }
        for strange in [
            format!("osb/UPPER/{}/osb-b-{}", name(1), name(1)),
            format!("osb/a/not-ours/osb-b-{}", name(1)),
            format!("osb/a/{}/osb-b-short", name(1)),
            format!("osb/a/{}/osb-b-*", name(1)),
            format!("osb/a/{}/deeper/x", name(1)),
            "osb/leaf".to_owned(),
        ] {
            state.secrets.insert(strange, fake::Entry::default());
        }
    }
    let (mut met, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = vault.page(after.as_deref()).await.unwrap();
        assert!(page.items.len() <= 300);
        met.extend(page.items);
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    put.sort();
    met.sort();
    assert_eq!(met, put);
    assert_eq!(pages, 6);
}

#[tokio::test]
async fn the_first_secret_of_an_instance_wins() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    let (one, other) = (
        InstanceSecrets::new(vault.clone()),
        InstanceSecrets::new(vault.clone()),
    );
    let admin = format!("{}/admin", name(1));
    assert_eq!(one.get(&admin).await.unwrap(), None);
    assert_eq!(
        one.create(&admin, &password("one")).await.unwrap(),
        password("one")
    );
    assert_eq!(
        other.create(&admin, &password("other")).await.unwrap(),
        password("one")
    );
    scene.fake.seen();
    assert_eq!(other.get(&admin).await.unwrap(), Some(password("one")));
    assert!(
        scene.fake.seen().is_empty(),
        "what was just read is not read again"
    );

    one.create(&format!("{}/generated", name(1)), &password("g"))
        .await
        .unwrap();
    one.create(&format!("{}/admin", name(2)), &password("two"))
        .await
        .unwrap();
    let prefix = format!("{}/", name(1));
    assert_eq!(
        one.list(&prefix).await.unwrap(),
        [format!("{prefix}admin"), format!("{prefix}generated")]
    );
    scene.fake.seen();
    let all = one.list("").await.unwrap();
    assert!(
        all.contains(&admin) && all.contains(&format!("{}/admin", name(2))),
        "{all:?}"
    );
    assert_eq!(scene.fake.seen().len(), 1, "one call for all instances");

    one.destroy(&admin).await.unwrap();
    one.destroy(&admin).await.unwrap();
    assert_eq!(one.get(&admin).await.unwrap(), None);
    assert_eq!(
        one.create(&admin, &password("new")).await.unwrap(),
        password("new")
    );
    for strange in ["../admin", "admin", "x/admin"] {
        assert_eq!(one.get(strange).await.unwrap_err().kind, PortErrorKind::Invalid);
    }
    let lost = format!("{}/admin", name(3));
    scene.fake.fail("POST osb-int", Fault::Lost);
    assert_eq!(
        one.create(&lost, &password("a")).await.unwrap_err().kind,
        PortErrorKind::Transient
    );
    assert_eq!(one.create(&lost, &password("b")).await.unwrap(), password("a"));
}

#[test]
fn coordinates_tell_where_and_nothing_secret() {
    let scene_dir = tempfile::tempdir().unwrap();
    let login = LogIn::TokenFile(scene_dir.path().join("token"));
    let vault = vault_at("http://127.0.0.1:1", login);
    let binding = binding(1);
    let path = format!("cf/{}/{}", binding.iid, binding.client_id());
    assert_eq!(
        Value::Object(vault.coordinates(&binding)),
        json!({
            "address": "https://vault.example.com",
            "auth_path": "osb-jwt",
            "role": "binding",
            "kv_mount": "osb",
            "kv_path": path,
            "data_path": format!("v1/osb/data/{path}"),
        })
    );
}

#[tokio::test]
async fn a_store_that_gets_ready_and_one_that_is_not_there() {
    let scene = Scene::new().await;
    let vault = scene.vault();
    let preparing =
        "Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period";
    scene.fake.fail(
        "POST osb/data",
        Fault::Answer(400, json!({"errors": [preparing]})),
    );
    let error = vault
        .publish(&binding(1), 0, &password("p"), &[], None)
        .await
        .unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
    let no_mount = json!({"errors": ["no handler for route \"osb/metadata/x\". route entry not found."]});
    scene.fake.fail("GET osb", Fault::Answer(404, no_mount));
    let error = vault.generation(&binding(1)).await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Invalid && error.message.contains("bootstrap vault"),
        "{error:?}"
    );
}

#[tokio::test]
async fn doctor_tells_what_is_missing_and_wastes_nothing() {
    let scene = Scene::new().await;
    let found = scene.vault().check(Looker::Broker).await;
    let errors = found
        .iter()
        .filter(|finding| finding.grade == Grade::Error)
        .count();
    assert!(errors > 5, "no rights at all: {found:?}");
    assert!(
        found
            .iter()
            .any(|finding| finding.grade == Grade::Good && finding.text.contains("OpenBao 2.6.2"))
    );

    scene.fake.seen();
    let found = scene.vault_with(scene.app_role(true)).check(Looker::Person).await;
    assert!(
        found.iter().any(|finding| finding.text.contains("wrapped")),
        "{found:?}"
    );
    assert!(scene.fake.seen().iter().all(|line| !line.contains("wrapping")));

    scene.fake.state().health =
        json!({"initialized": true, "sealed": true, "standby": false, "version": "2.6.2"});
    let found = scene.vault().check(Looker::Broker).await;
    assert!(found.len() == 1 && found[0].grade == Grade::Unknown, "{found:?}");
}
