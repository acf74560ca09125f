//! What `chandler bootstrap vault` prints and does, and what `chandler doctor` says of it.

use super::{Realm, Scene, apply, settings, setup};
use crate::vault::server::Server;
use chandler::adapters::vault::{Change, LogIn, Looker};
use chandler::ports::Grade;
use serde_json::json;

#[tokio::test]
async fn it_is_done_once_however_often() {
    let (server, realm, dir) = (Server::dev(), Realm::new(), tempfile::tempdir().unwrap());
    let setup = setup(&server, &realm, dir.path());
    let first = apply(&setup, &server).await;
    assert!(
        first.iter().filter(|(_, change)| *change == Change::Made).count() >= 9,
        "{first:?}"
    );
    assert!(
        apply(&setup, &server)
            .await
            .iter()
            .all(|(_, change)| *change == Change::Nothing)
    );

    let wider = json!({"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["osb-vault"], "token_policies": ["root"]});
    server
        .root("POST", "auth/osb-jwt/role/binding", Some(wider))
        .await;
    server
        .root("POST", "osb/config", Some(json!({"cas_required": false})))
        .await;
    let policy = json!({"policy": "path \"*\" { capabilities = [\"read\"] }"});
    server
        .root("POST", "sys/policies/acl/osb-binding", Some(policy))
        .await;
    let changed: Vec<String> = apply(&setup, &server)
        .await
        .into_iter()
        .filter(|(_, change)| *change == Change::Changed)
        .map(|(title, _)| title)
        .collect();
    assert_eq!(changed.len(), 3, "{changed:?}");
}

#[tokio::test]
async fn what_is_printed_is_what_is_done() {
    let (server, realm, dir) = (Server::dev(), Realm::new(), tempfile::tempdir().unwrap());
    let setup = setup(&server, &realm, dir.path());
    let script = setup.script();
    assert!(!script.contains(&server.root));
    server.shell(&script);
    server.shell(&script);
    let left = apply(&setup, &server).await;
    assert!(
        left.iter().all(|(_, change)| *change == Change::Nothing),
        "{left:?}"
    );
}

#[tokio::test]
async fn what_is_somebody_elses_is_left_alone() {
    let (server, realm, dir) = (Server::dev(), Realm::new(), tempfile::tempdir().unwrap());
    server
        .root(
            "POST",
            "sys/mounts/osb",
            Some(json!({"type": "kv", "options": {"version": "1"}})),
        )
        .await;
    let setup = setup(&server, &realm, dir.path());
    let token = secrecy::SecretString::from(server.root.as_str());
    let error = setup.apply(&token, &mut |_, _| {}).await.unwrap_err();
    assert!(
        error.message.contains("osb") && error.message.contains("another mount"),
        "{error:?}"
    );
    let nobody = secrecy::SecretString::from("hvs.nobody");
    let error = setup.apply(&nobody, &mut |_, _| {}).await.unwrap_err();
    assert!(
        error.message.contains("operator's token") && !error.detail.contains("hvs."),
        "{error:?}"
    );
}

#[tokio::test]
async fn doctor_finds_exactly_the_rights_that_are_needed() {
    let scene = Scene::dev().await;
    let found = scene.vault.check(Looker::Broker).await;
    let odd: Vec<_> = found
        .iter()
        .filter(|finding| finding.grade != Grade::Good)
        .collect();
    assert_eq!(odd.len(), 1, "{odd:?}");
    assert!(
        odd[0].grade == Grade::Warning && odd[0].text.contains("older than 2.0.4"),
        "{odd:?}"
    );

    let policy = scene
        .server
        .root("GET", "sys/policies/acl/osb-broker", None)
        .await;
    let policy = policy["data"]["policy"].as_str().unwrap().to_owned();
    let put = async |text: String| {
        scene
            .server
            .root(
                "POST",
                "sys/policies/acl/osb-broker",
                Some(json!({"policy": text})),
            )
            .await;
        scene.vault.check(Looker::Broker).await
    };
    let found = put(policy.replace("[\"create\", \"update\"]", "[\"create\", \"update\", \"read\"]")).await;
    assert!(
        found
            .iter()
            .any(|f| f.grade == Grade::Warning && f.text.contains("may also read osb/data/+/+/osb-b-*")),
        "{found:?}"
    );
    let found = put(format!(
        "{policy}\npath \"sys/policies/acl/*\" {{ capabilities = [\"update\"] }}\n"
    ))
    .await;
    assert!(
        found
            .iter()
            .any(|f| f.text.contains("change what bindings may read")),
        "{found:?}"
    );
    let found = put(policy.replace(
        "path \"identity/lookup/entity\"",
        "path \"identity/lookup/group\"",
    ))
    .await;
    assert!(
        found
            .iter()
            .any(|f| f.grade == Grade::Error && f.text.contains("identity/lookup/entity")),
        "{found:?}"
    );
    scene
        .server
        .root("DELETE", "auth/osb-jwt/role/binding", None)
        .await;
    scene.server.root("DELETE", "sys/mounts/osb-int", None).await;
    let found = put(policy).await;
    for word in ["role binding is missing", "no store osb-int"] {
        assert!(
            found
                .iter()
                .any(|f| f.grade == Grade::Error && f.text.contains(word)),
            "{word}: {found:?}"
        );
    }

    let token = super::file(&scene.dir, "root");
    std::fs::write(&token, &scene.server.root).unwrap();
    let vault = super::vault_of(settings(&scene.server, LogIn::TokenFile(token)));
    let found = vault.check(Looker::Broker).await;
    assert!(
        found
            .iter()
            .any(|f| f.grade == Grade::Warning && f.text.contains("root")),
        "{found:?}"
    );
}
